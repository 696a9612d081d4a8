// The installed VSIX in a real workbench, driven as a person would: palette, chat view, citations,
// statistics, keyboard, themes. Screenshots go to test-results/ to be looked at.
//   LONGSIGHT_VSIX        the package
//   LONGSIGHT_TEST_MODEL  the GGUF
import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { openBrowser, startCodeServer } from '../../scripts/code-server.mjs';
import { Workbench } from './workbench.mjs';

const root = path.resolve(import.meta.dirname, '../..');
const shots = path.join(root, 'test-results');
const themes = {
  dark: 'Dark Modern',
  light: 'Light Modern',
  'high-contrast': 'Default High Contrast',
};

describe('the installed extension in a workbench', function () {
  this.timeout(120_000);
  let server;
  let browser;
  let page;
  let workbench;
  let workspace;
  const foreign = [];

  const shot = (name) => page.screenshot({ path: path.join(shots, `${name}.png`) });

  before(async () => {
    const vsix = process.env.LONGSIGHT_VSIX;
    const model = process.env.LONGSIGHT_TEST_MODEL;
    assert.ok(vsix, 'LONGSIGHT_VSIX names the package');
    assert.ok(model, 'LONGSIGHT_TEST_MODEL names the model');
    fs.mkdirSync(shots, { recursive: true });
    workspace = fs.mkdtempSync(path.join(os.tmpdir(), 'longsight sämple '));
    fs.cpSync(path.join(root, 'test/fixtures/sample-workspace'), workspace, { recursive: true });
    server = await startCodeServer({
      vsix: [vsix],
      settings: {
        'longsight.answerTokens': 48,
        'longsight.sparsity.denseBelowTokens': 1024,
        'workbench.colorTheme': themes.dark,
      },
    });
    // The path of a model belongs to the machine: it is not taken from the user's settings.
    fs.mkdirSync(path.join(server.root, 'data', 'Machine'), { recursive: true });
    fs.writeFileSync(
      path.join(server.root, 'data', 'Machine', 'settings.json'),
      JSON.stringify({ 'longsight.model': model }),
    );
    browser = await openBrowser();
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: server.url });
    page = await context.newPage();
    page.setDefaultTimeout(30_000);
    page.on('request', (request) => {
      const { protocol, host } = new URL(request.url());
      // The resources of webviews have an address of their own that never leaves the browser.
      const local = host === server.authority || host.endsWith('.vscode-resource.vscode-cdn.net');
      if (/^(http|ws)/.test(protocol) && !local) foreign.push(request.url());
    });
    workbench = new Workbench(page);
    await workbench.open(server.url, workspace);
  });

  afterEach(async function () {
    if (this.currentTest?.state === 'failed') await shot('browser-failed');
  });

  after(async () => {
    await browser?.close();
    await server?.stop();
    if (workspace) fs.rmSync(workspace, { recursive: true, force: true });
  });

  it('asks from the palette and streams the answer into the chat view', async () => {
    await workbench.palette('Longsight: Ask Workspace');
    const prefill = workbench.status.filter({ hasText: /Prefill \d+%/ });
    const sawPrefill = prefill.waitFor({ timeout: 60_000 });
    await workbench.answerInput('How are jobs retried?');
    await sawPrefill;
    const chat = await workbench.chat();
    await chat.locator('.entry .question', { hasText: 'How are jobs retried?' }).waitFor();
    await shot('chat-running-dark');
    const entry = chat.locator('.entry');
    await chat
      .locator('.entry[data-state="running"] .answer', { hasText: /\w/ })
      .waitFor({ timeout: 60_000 });
    const early = await entry.locator('.answer').innerText();
    await chat.locator('.entry[data-state="done"]').waitFor({ timeout: 60_000 });
    const whole = await entry.locator('.answer').innerText();
    assert.ok(whole.length > early.length, `${early.length} < ${whole.length} characters`);
    await entry.locator('.stats-line', { hasText: /TTFT .* attention/ }).waitFor();
    assert.match(await entry.locator('.files').innerText(), /^Read /);
    await workbench.status.filter({ hasText: /TTFT [\d.]+ s · \d+(\.\d+)?% attention/ }).waitFor();
  });

  it('shows the statistics of the answer on a click on the status bar item', async () => {
    await workbench.status.locator('a').click();
    const stats = await workbench.stats();
    const cells = stats.locator('.heat tbody tr:not(.mean) td');
    assert.ok((await cells.count()) >= 9, 'a cell for each layer and head');
    // By keyboard: into the grid, one layer on, and the value is read out.
    await stats.locator('.heat td[tabindex="0"]').focus();
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowRight');
    assert.match(await stats.locator('.readout').innerText(), /^Layer 2, head 1: /);
    const rows = await stats
      .locator('section[aria-label="Time to first token"] tbody tr th')
      .allInnerTexts();
    assert.deepEqual(rows, ['Queue', 'Load', 'Scan', 'Tokenize', 'Prefill', 'First token', 'TTFT']);
    await stats.locator('h1').click();
  });

  it('is readable in dark, light and high contrast', async () => {
    for (const [name, theme] of Object.entries(themes)) {
      await setSetting('workbench.colorTheme', theme);
      const kind = {
        dark: 'vscode-dark',
        light: 'vscode-light',
        'high-contrast': 'vscode-high-contrast',
      }[name];
      const chat = await workbench.chat();
      await chat.locator(`body.${kind}`).waitFor();
      const stats = await workbench.stats();
      await stats.locator(`body.${kind}`).waitFor();
      for (const frame of [chat, stats])
        assert.ok((await contrast(frame)) >= 4.5, `${name} contrast`);
      await shot(`chat-and-stats-${name}`);
    }
    await setSetting('workbench.colorTheme', themes.dark);
  });

  it('is used by keyboard alone: Enter asks, Shift+Enter breaks the line, Escape stops', async () => {
    const chat = await workbench.chat();
    const input = chat.locator('.question-input');
    await input.focus();
    await input.pressSequentially('First line');
    await page.keyboard.press('Shift+Enter');
    await input.pressSequentially('second line');
    assert.equal(await input.inputValue(), 'First line\nsecond line');
    await page.keyboard.press('Enter');
    assert.equal(await input.inputValue(), '');
    const entry = chat.locator('.entry').nth(1);
    await entry.locator('.question', { hasText: 'second line' }).waitFor();
    await chat.locator('button', { hasText: /^Stop$/ }).waitFor();
    await page.keyboard.press('Escape');
    await chat.locator('.entry[data-state="stopped"]').waitFor({ timeout: 10_000 });
    await workbench.status.filter({ hasText: 'Stopped' }).waitFor();
  });

  it('copies an answer', async () => {
    const chat = await workbench.chat();
    const answer = await chat.locator('.entry .answer').first().innerText();
    await chat.locator('.entry button', { hasText: 'Copy Answer' }).first().click();
    await page.locator('.statusbar-item', { hasText: 'Copied' }).waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(copied.includes(answer.trim().split(/\s+/)[0]), 'the clipboard holds the answer');
  });

  it('shows the transcript again after the view was hidden', async () => {
    const chat = await workbench.chat();
    await chat.locator('.question-input').fill('A draft');
    await page.locator('.activitybar a.action-label[aria-label^="Explorer"]').first().click();
    await page.locator('.explorer-folders-view').waitFor();
    await page.locator('.activitybar a.action-label[aria-label^="Longsight"]').click();
    const again = await workbench.chat();
    await again.locator('.entry[data-state="done"]').waitFor();
    assert.equal(await again.locator('.entry').count(), 2);
    assert.equal(await again.locator('.question-input').inputValue(), 'A draft');
    await again.locator('.question-input').fill('');
  });

  it('reached no other host', () => {
    assert.deepEqual(foreign, []);
  });

  async function setSetting(key, value) {
    const file = path.join(server.root, 'data', 'User', 'settings.json');
    const settings = { ...JSON.parse(fs.readFileSync(file, 'utf8')), [key]: value };
    fs.writeFileSync(file, JSON.stringify(settings));
  }

  /** The lowest contrast of text against what is behind it, in one document. */
  function contrast(frame) {
    return frame.evaluate(() => {
      const parse = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
      const background = (element) => {
        for (let at = element; at; at = at.parentElement) {
          const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
          if (a > 0.99) return [r, g, b];
        }
        const name = document.querySelector('.composer') ? 'sideBar' : 'editor';
        const style = getComputedStyle(document.documentElement);
        const hex = style.getPropertyValue(`--vscode-${name}-background`).trim();
        return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
      };
      const luminance = (rgb) => {
        const [r, g, b] = rgb
          .map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      let lowest = 21;
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (
          !walker.currentNode.data.trim() ||
          !element?.checkVisibility() ||
          element.closest(':disabled, script, style')
        )
          continue;
        const behind = background(element);
        const [r, g, b, a = 1] = parse(getComputedStyle(element).color);
        const front = [r, g, b].map((v, i) => v * a + behind[i] * (1 - a));
        const [x, y] = [luminance(front), luminance(behind)].sort((m, n) => n - m);
        lowest = Math.min(lowest, (x + 0.05) / (y + 0.05));
      }
      return lowest;
    });
  }
});
