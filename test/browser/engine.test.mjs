// The installed package with its real engine and a real model, asked from the palette.
import assert from 'node:assert/strict';
import { Workbench } from './workbench.mjs';

describe('a question in a workbench', function () {
  this.timeout(300_000);
  const patience = { timeout: 240_000 };
  let workbench;

  before(async () => {
    workbench = await Workbench.start({
      files: ['README.md', 'package.json', 'src/backoff.js', 'src/heap.js'],
      settings: {
        'longsight.answerTokens': 64,
        'longsight.confirmAboveSeconds': 0,
        'longsight.sparsity.denseBelowTokens': 1024,
      },
    });
  });

  afterEach(async function () {
    if (this.currentTest?.state === 'failed') await workbench.screenshot('engine-failed');
  });

  after(() => workbench?.stop());

  it('shows its phases, streams the answer, and says what it took', async () => {
    await workbench.container('Longsight').click();
    const chat = await workbench.chat();
    // Watched from inside: a busy machine may look at the page too seldom to see an answer grow.
    await chat.locator('body').evaluate((body) => {
      globalThis.answerLengths = new Set();
      new MutationObserver(() => {
        const answer = body.querySelector('.entry .answer');
        if (answer) globalThis.answerLengths.add(answer.textContent.length);
      }).observe(body, { subtree: true, childList: true, characterData: true });
    });
    const prefill = workbench.status.filter({ hasText: /Prefill( \d+%)?/ }).waitFor(patience);
    await workbench.ask('How long does a failed job wait?');
    await prefill;
    await chat.locator('.question', { hasText: 'How long does a failed job wait?' }).waitFor();
    await chat.locator('.entry[data-state="done"]').waitFor(patience);
    const lengths = await chat.locator('body').evaluate(() => globalThis.answerLengths.size);
    assert.ok(lengths >= 5, `The answer was seen at ${lengths} lengths`);
    await chat.locator('.stats-line', { hasText: /TTFT .* attention .* coverage/ }).waitFor();
    assert.equal(await chat.locator('.files').innerText(), 'Read all 4 files');
    await workbench.status.filter({ hasText: /TTFT .+ · [\d.]+% attention/ }).waitFor();
    await workbench.screenshot('engine-chat-dark');
  });

  it('shows the statistics of that answer', async () => {
    await workbench.status.locator('a').click();
    const stats = await workbench.stats();
    // SmolLM2-135M has 30 layers of 9 heads.
    assert.equal(await stats.locator('.heat tbody tr:not(.mean) td').count(), 270);
    assert.ok((await stats.locator('.heat tbody tr:not(.mean) td:not(.none)').count()) > 200);
    await workbench.screenshot('engine-stats-dark');
  });
});
