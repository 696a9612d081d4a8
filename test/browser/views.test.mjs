// The views of the installed package in every state, with a scripted engine: citations, keyboard,
// confirmation, errors, themes. Screenshots go to test-results/ to be looked at.
import assert from 'node:assert/strict';
import path from 'node:path';
import { lowestContrast } from './contrast.mjs';
import { themes, Workbench } from './workbench.mjs';

describe('the views in a workbench', function () {
  this.timeout(60_000);
  let workbench;
  let page;

  before(async () => {
    workbench = await Workbench.start({
      files: ['README.md', 'package.json', 'src/backoff.js', 'src/heap.js'],
      worker: path.join(import.meta.dirname, 'scriptedWorker.cjs'),
    });
    page = workbench.page;
  });

  afterEach(async function () {
    if (this.currentTest?.state === 'failed') await workbench.screenshot('views-failed');
  });

  after(() => workbench?.stop());

  const newChat = async () => {
    await workbench.palette('Longsight: New Chat');
    const chat = await workbench.chat();
    await chat.locator('.empty h2').waitFor();
    return chat;
  };

  const askIn = async (chat, question) => {
    await chat.locator('.question-input').fill(question);
    await chat.locator('.question-input').press('Enter');
  };

  /** Both views are readable in every theme; a screenshot of each. */
  const inAllThemes = async (what) => {
    for (const [shown, { name, body }] of Object.entries(themes)) {
      await workbench.chooseTheme(name);
      for (const view of [await workbench.chat(), await workbench.stats()]) {
        await view.locator(`body.${body}`).waitFor();
        const { ratio, text } = await lowestContrast(view);
        assert.ok(ratio >= 4.5, `${shown}: ${ratio.toFixed(2)} for "${text}"`);
      }
      await workbench.screenshot(['views', what, shown].filter(Boolean).join('-'));
    }
    await workbench.chooseTheme(themes.dark.name);
  };

  it('invites before the first question', async () => {
    await workbench.container('Longsight').click();
    const chat = await workbench.chat();
    await chat.locator('.empty h2', { hasText: 'Ask the whole workspace' }).waitFor();
    await chat.locator('.model', { hasText: 'SmolLM2' }).waitFor();
    await chat.locator('.examples button').first().click();
    assert.equal(await chat.locator('.question-input').inputValue(), 'What does this project do?');
    await chat.locator('.question-input').fill('');
    await workbench.palette('Longsight: Show Stats');
    await (await workbench.webview('h1')).locator('text=Nothing has been measured yet').waitFor();
    await workbench.screenshot('views-empty-dark');
  });

  it('renders an answer as text: no HTML, no image, no script', async () => {
    await workbench.ask('What happens to a failed job?');
    const chat = await workbench.chat();
    await chat.locator('.entry[data-state="done"]').waitFor();
    const answer = chat.locator('.answer');
    assert.equal(await answer.locator('img').count(), 0);
    assert.match(await answer.innerText(), /<img src="https:\/\/example\.org\/x\.png">/);
    const links = await answer
      .locator('a')
      .evaluateAll((all) => all.map((link) => link.getAttribute('href')));
    assert.deepEqual(links, ['https://example.org/y.png', 'https://example.org/']);
    assert.equal(await answer.locator('strong').innerText(), 'doubles');
    assert.equal(
      await chat.locator('.files').innerText(),
      'Read 14 of 18 files · 3 by path only · 1 left out',
    );
  });

  it('tells verified citations from others, and opens the cited line', async () => {
    const chat = await workbench.chat();
    const answer = chat.locator('.answer');
    assert.deepEqual(await answer.locator('button.citation').allInnerTexts(), ['src/backoff.js:4']);
    const invented = answer.locator('.citation.invented');
    assert.match(await invented.innerText(), /✗\s*src\/__init__\.py/);
    assert.match((await invented.getAttribute('title')) ?? '', /no file that was read/);
    assert.match(
      (await answer.locator('.citation.ambiguous').getAttribute('title')) ?? '',
      /more than one place/,
    );
    await answer.locator('button.citation').click();
    await page.locator('.tab.active', { hasText: 'backoff.js' }).waitFor();
    await page.locator('#status\\.editor\\.selection', { hasText: /Ln 4, .*selected/ }).waitFor();
    await workbench.screenshot('views-citation-dark');
  });

  it('shows the statistics, every cell within reach of the keyboard', async () => {
    await workbench.status.locator('a').click();
    const stats = await workbench.stats();
    const rows = stats.locator('section[aria-label="Time to first token"] tbody th');
    assert.deepEqual(await rows.allInnerTexts(), [
      'Queue',
      'Load',
      'Scan',
      'Tokenize',
      'Prefill',
      'First token',
      'TTFT',
    ]);
    await stats.locator('.heat td[tabindex="0"]').focus();
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowRight');
    assert.match(await stats.locator('.readout').innerText(), /^Layer 2, head 1: [\d.]+%$/);
    await page.keyboard.press('End');
    assert.match(await stats.locator('.readout').innerText(), /^Layer 30, head 1: /);
    assert.equal(await stats.locator('.heat td[tabindex="0"]').count(), 1);
    await stats.locator('h1').click();
  });

  it('is readable in dark, light and high contrast', async () => {
    await inAllThemes();
  });

  it('says in one line why the GPU is not used, while it runs and afterwards', async () => {
    const chat = await newChat();
    await askIn(chat, 'What about an old driver?');
    const line = chat.locator('.fallback');
    const reason = 'On the CPU: The NVIDIA driver is 535.183.01; the GPU needs 580 or newer.';
    await line.filter({ hasText: reason }).waitFor();
    await chat.locator('.entry[data-state="done"]').waitFor();
    assert.equal(await line.innerText(), reason);
    const facts = (await workbench.stats()).locator('section[aria-label="Model and parameters"]');
    await facts.locator('tr', { hasText: 'Why not a GPU' }).waitFor();
    await inAllThemes('fallback');
  });

  it('shows the device, the parts of the prefill and the guessed tokens of a GPU', async () => {
    const chat = await newChat();
    await askIn(chat, 'What does this cost on a GPU?');
    await chat.locator('.entry[data-state="done"]').waitFor();
    assert.ok(await chat.locator('.fallback').isHidden());
    const stats = await workbench.stats();
    const parts = stats.locator('section[aria-label="Prefill on the GPU"]');
    assert.deepEqual(await parts.locator('tbody tr').allInnerTexts(), [
      'Linear\t0.21 s\t57%',
      'Expand\t18 ms\t4.9%',
      'Stage 1\t9 ms\t2.5%',
      'Stage 2\t8 ms\t2.1%',
      'Stage 3\t96 ms\t26%',
      'Audit\t1 ms\t0.16%',
      'Rest\t31 ms\t8.3%',
    ]);
    await stats.locator('tr', { hasText: '82 of 120 guessed tokens were right (68%)' }).waitFor();
    await stats.locator('tr', { hasText: 'NVIDIA GeForce RTX 4090' }).waitFor();
    await stats.locator('tr', { hasText: 'Driver and kernels' }).waitFor();
    await parts.scrollIntoViewIfNeeded();
    await inAllThemes('gpu');
  });

  it('is used by keyboard alone: Enter asks, Shift+Enter breaks the line, Escape stops', async () => {
    const chat = await newChat();
    const input = chat.locator('.question-input');
    // A new chat begins with the cursor in the question box.
    await page.keyboard.type('First line');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('second line, slowly');
    assert.equal(await input.inputValue(), 'First line\nsecond line, slowly');
    await page.keyboard.press('Enter');
    assert.equal(await input.inputValue(), '');
    await chat.locator('.progress-label', { hasText: /Prefill \d+% · \d+ s/ }).waitFor();
    await workbench.status.filter({ hasText: /Prefill \d+% · \d+ s/ }).waitFor();
    // A second question waits, and can be taken back alone.
    await page.keyboard.type('And another one');
    await page.keyboard.press('Enter');
    const waiting = chat.locator('.entry').nth(1);
    await waiting.locator('.progress-label', { hasText: 'Waiting for 1 question' }).waitFor();
    await workbench.screenshot('views-running-dark');
    await waiting.locator('button', { hasText: 'Cancel' }).click();
    await chat.locator('.entry[data-state="stopped"]').nth(0).waitFor();
    assert.equal(await chat.locator('.entry').nth(0).getAttribute('data-state'), 'running');
    await chat.locator('.question-input').focus();
    await page.keyboard.press('Escape');
    await chat.locator('.entry[data-state="stopped"]').nth(1).waitFor();
    await workbench.status.filter({ hasText: 'Stopped' }).waitFor();
  });

  it('asks before a long prefill, with the cursor on Start', async () => {
    const chat = await newChat();
    await page.keyboard.type('A long one');
    await page.keyboard.press('Enter');
    const card = chat.locator('.entry[data-state="confirming"] .card');
    await card.locator('p', { hasText: 'Reading 118,000 tokens takes about 14 min.' }).waitFor();
    await chat.locator('button:focus', { hasText: 'Start' }).waitFor();
    await workbench.status.filter({ hasText: 'About 14 min: start?' }).waitFor();
    await workbench.screenshot('views-confirm-dark');
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    await chat.locator('.entry[data-state="done"]').waitFor();
    assert.equal(await chat.locator('.entry').count(), 1);
  });

  it('folds a thought above the answer, opened by keyboard, without citations', async () => {
    const chat = await newChat();
    await page.keyboard.type('What do you think of it, slowly?');
    await page.keyboard.press('Enter');
    const thought = chat.locator('.thought');
    await thought.locator('summary', { hasText: /^Thinking… \d+\.\d s$/ }).waitFor();
    await chat.locator('.progress-label', { hasText: /^Thinking( · [\d.]+ tok\/s)?$/ }).waitFor();
    await workbench.status.filter({ hasText: 'Thinking' }).waitFor();
    assert.equal(await thought.locator('.thought-text').isVisible(), false);
    await thought.locator('summary').focus();
    await page.keyboard.press('Enter');
    await thought.locator('strong', { hasText: 'failed' }).waitFor();
    await workbench.screenshot('views-thinking-dark');
    await page.keyboard.press('Space');
    await thought.locator('.thought-text').waitFor({ state: 'hidden' });
    await page.keyboard.press('Escape');
    await chat.locator('.entry[data-state="stopped"]').waitFor();
    await thought.locator('summary', { hasText: /^Thought for \d+\.\d s$/ }).waitFor();

    await chat.locator('.question-input').fill('And what do you think now?');
    await page.keyboard.press('Enter');
    const entry = chat.locator('.entry').nth(1);
    await chat.locator('.entry[data-state="done"]').waitFor();
    await entry.locator('summary', { hasText: /^Thought for \d+\.\d s$/ }).click();
    // The text is drawn by the toggle event, which comes after the click.
    await entry.locator('.thought-text', { hasText: '[src/queue.js "fail"]' }).waitFor();
    assert.equal(await entry.locator('.thought-text .citation').count(), 0);
    assert.doesNotMatch(await entry.locator('> .answer').innerText(), /upper bound/);
    await entry.locator('.stats-line', { hasText: /thought \d/ }).waitFor();
    for (const [shown, { name, body }] of Object.entries(themes)) {
      await workbench.chooseTheme(name);
      await chat.locator(`body.${body}`).waitFor();
      await entry.locator('.thought').scrollIntoViewIfNeeded();
      const { ratio, text } = await lowestContrast(chat);
      assert.ok(ratio >= 4.5, `${shown}: ${ratio.toFixed(2)} for "${text}"`);
      await workbench.screenshot(`views-thought-${shown}`);
    }
    await workbench.chooseTheme(themes.dark.name);
    await workbench.status.locator('a').click();
    const stats = await workbench.stats();
    await stats
      .locator('tr', { hasText: 'Thought' })
      .getByText(/61 tokens in .* after/)
      .waitFor();
  });

  it('shows an error with its ways out', async () => {
    const chat = await newChat();
    await page.keyboard.type('An error, please');
    await page.keyboard.press('Enter');
    const card = chat.locator('.card.error');
    await card.locator('.error-message', { hasText: '14.2 GiB' }).waitFor();
    assert.deepEqual(await card.locator('button').allInnerTexts(), [
      'Select Model…',
      'Open Settings',
      'Show Log',
    ]);
    await workbench.status.filter({ hasText: 'Longsight failed' }).waitFor();
    await workbench.screenshot('views-error-dark');
    await card.locator('button', { hasText: 'Open Settings' }).click();
    await page
      .locator('.settings-editor .setting-item-label', { hasText: 'Answer Tokens' })
      .waitFor();
    await workbench.screenshot('views-settings-dark');
    // Newer versions show settings in a dialog.
    await page.keyboard.press('Escape');
    await page.locator('.monaco-modal-editor-block').waitFor({ state: 'hidden' });
    await card.locator('button', { hasText: 'Select Model…' }).click();
    await page.locator('.quick-input-list .monaco-list-row', { hasText: 'Browse…' }).waitFor();
    await workbench.screenshot('views-models-dark');
    await page.keyboard.press('Escape');
    await page.locator('.quick-input-widget').waitFor({ state: 'hidden' });
  });

  it('copies an answer', async () => {
    const chat = await newChat();
    await page.keyboard.type('What happens to a failed job?');
    await page.keyboard.press('Enter');
    await chat.locator('.entry[data-state="done"]').waitFor();
    await chat.locator('.entry button', { hasText: 'Copy Answer' }).click();
    await page.locator('.statusbar-item', { hasText: 'Copied' }).waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert.match(
      copied,
      /^read 14 of 18 files\n\nA failed job waits longer each time \[src\/backoff\.js/,
    );
  });

  it('follows the answer only for a reader who is at its end', async () => {
    const chat = await workbench.chat();
    const place = () =>
      chat.locator('.scroller').evaluate((scroller) => ({
        top: scroller.scrollTop,
        below: scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop,
      }));
    await page.setViewportSize({ width: 1280, height: 480 });
    await chat.locator('.question-input').fill('And then?');
    await page.keyboard.press('Enter');
    await chat.locator('.entry').nth(1).locator('.answer strong').first().waitFor();
    assert.ok((await place()).below < 2, 'at the end while the answer grows');
    await chat.locator('.scroller').evaluate((scroller) => (scroller.scrollTop = 0));
    await chat.locator('.entry[data-state="done"]').nth(1).waitFor();
    assert.equal((await place()).top, 0, 'left alone');
    await page.setViewportSize({ width: 1280, height: 900 });
  });

  it('shows transcript and draft again after the view was hidden, and goes on meanwhile', async () => {
    const chat = await workbench.chat();
    await chat.locator('.question-input').fill('And in the end?');
    await page.keyboard.press('Enter');
    await chat.locator('.question-input').fill('A draft');
    await workbench.container('Explorer').click();
    await page.locator('.explorer-folders-view').waitFor();
    await workbench.status.filter({ hasText: 'TTFT' }).waitFor();
    await workbench.container('Longsight').click();
    const again = await workbench.chat();
    await again.locator('.entry[data-state="done"]').nth(2).waitFor();
    assert.equal(await again.locator('.question-input').inputValue(), 'A draft');
  });

  it('reached no other host', () => {
    assert.deepEqual(workbench.foreign, []);
  });
});
