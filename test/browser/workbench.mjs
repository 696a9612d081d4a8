// The installed package in a workbench, used as a person does: palette, side bar, webviews.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { openBrowser, startCodeServer } from '../../scripts/code-server.mjs';

const root = path.resolve(import.meta.dirname, '../..');
const shots = path.join(root, 'test-results');

/** By the name in the list of themes; `body` is the class that webviews get. */
export const themes = {
  dark: { name: 'Dark Modern', body: 'vscode-dark' },
  light: { name: 'Light Modern', body: 'vscode-light' },
  'high-contrast': { name: 'Dark High Contrast', body: 'vscode-high-contrast' },
};

export class Workbench {
  /** Requests to other hosts than the server. */
  foreign = [];

  /**
   * @param {object} options
   * @param {Record<string, unknown>} [options.settings] user settings
   * @param {string[]} options.files those of the sample workspace that are kept
   * @param {boolean} [options.trust] false: the folder is opened in Restricted Mode
   * @param {Record<string, unknown>} [options.workspaceSettings] of the folder itself
   * @param {string} [options.worker] plays the engine process instead of the packaged one
   */
  static async start({ settings = {}, files, trust = true, workspaceSettings, worker }) {
    const { LONGSIGHT_VSIX: vsix, LONGSIGHT_TEST_MODEL: model } = process.env;
    assert.ok(vsix, 'LONGSIGHT_VSIX names the package');
    assert.ok(model, 'LONGSIGHT_TEST_MODEL names the model');
    const workbench = new Workbench();
    workbench.workspace = fs.mkdtempSync(path.join(os.tmpdir(), 'longsight sämple '));
    for (const file of files) {
      const source = path.join(root, 'test/fixtures/sample-workspace', file);
      fs.cpSync(source, path.join(workbench.workspace, file));
    }
    if (workspaceSettings !== undefined) {
      fs.mkdirSync(path.join(workbench.workspace, '.vscode'));
      const file = path.join(workbench.workspace, '.vscode/settings.json');
      fs.writeFileSync(file, JSON.stringify(workspaceSettings));
    }
    try {
      workbench.server = await startCodeServer({
        vsix: [vsix],
        settings: {
          'workbench.colorTheme': themes.dark.name,
          // No dialog: what is not trusted opens in Restricted Mode.
          ...(trust ? {} : { 'security.workspace.trust.startupPrompt': 'never' }),
          ...settings,
        },
        trust,
      });
      workbench.writeSettings('Machine', { 'longsight.model': model });
      if (worker !== undefined) workbench.replaceWorker(worker);
      workbench.browser = await openBrowser();
      const context = await workbench.browser.newContext({
        viewport: { width: 1280, height: 900 },
      });
      await context.grantPermissions(['clipboard-read', 'clipboard-write'], {
        origin: workbench.server.url,
      });
      workbench.page = await context.newPage();
      workbench.page.setDefaultTimeout(30_000);
      workbench.watchRequests();
      await workbench.open();
    } catch (error) {
      await workbench.stop();
      throw error;
    }
    return workbench;
  }

  async stop() {
    await this.browser?.close();
    await this.server?.stop();
    fs.rmSync(this.workspace, { recursive: true, force: true });
  }

  async screenshot(name) {
    fs.mkdirSync(shots, { recursive: true });
    await this.page.screenshot({ path: path.join(shots, `${name}.png`) });
  }

  get status() {
    return this.page.locator('.statusbar-item[id="longsight.longsight.longsight.status"]');
  }

  container(name) {
    return this.page.locator(`.activitybar a.action-label[aria-label^="${name}"]`).first();
  }

  /** Runs a command by its title in the palette. */
  async palette(title) {
    const input = this.page.locator('.quick-input-widget input[type="text"]');
    // A key sent before the keybinding service is up is lost.
    for (let tries = 0; tries < 10 && !(await input.isVisible()); tries++) {
      await this.page.keyboard.press('F1');
      await input.waitFor({ state: 'visible', timeout: 1500 }).catch(() => {});
    }
    await input.fill(`>${title}`);
    const row = this.page.locator('.quick-input-list .monaco-list-row', { hasText: title });
    // The best match need not be the first row.
    await row.first().click();
  }

  /** Asks by the palette: the command, then the question in its input box. */
  async ask(question) {
    await this.palette('Longsight: Ask Workspace');
    const box = this.page.locator('.quick-input-widget');
    await box.locator('.quick-input-message', { hasText: 'whole workspace' }).waitFor();
    await box.locator('input[type="text"]').fill(question);
    await this.page.keyboard.press('Enter');
    await box.waitFor({ state: 'hidden' });
  }

  chat() {
    return this.webview('.composer');
  }

  stats() {
    return this.webview('section[aria-label="Time to first token"]');
  }

  /** Chooses a colour theme from the list. */
  async chooseTheme(name) {
    await this.palette('Preferences: Color Theme');
    const box = this.page.locator('.quick-input-widget');
    // The palette is on its way out when the list comes in: tell them apart.
    await box.locator('input[type="text"][placeholder*="Color Theme"]').fill(name);
    await box.locator('.monaco-list-row.focused', { hasText: name }).waitFor();
    await this.page.keyboard.press('Enter');
    await box.waitFor({ state: 'hidden' });
  }

  async open() {
    await this.page.goto(`${this.server.url}?folder=${encodeURIComponent(this.workspace)}`);
    await this.page.waitForSelector('.monaco-workbench', { timeout: 60_000 });
    // Contributions are known when the activity bar shows the extension's container.
    await this.container('Longsight').waitFor();
  }

  /** The document that contains `selector`, whatever the order in which webviews were made. */
  async webview(selector, timeoutMs = 30_000) {
    const deadline = performance.now() + timeoutMs;
    while (performance.now() < deadline) {
      for (const frame of this.page.frames()) {
        const count = await frame
          .locator(selector)
          .count()
          .catch(() => 0);
        if (count > 0) return frame;
      }
      await this.page.waitForTimeout(100);
    }
    throw new Error(`No webview shows ${selector} after ${timeoutMs} ms.`);
  }

  /** `Machine` holds what is not taken from a user's own settings, such as paths. */
  writeSettings(layer, values) {
    const file = path.join(this.server.root, 'data', layer, 'settings.json');
    fs.mkdirSync(path.dirname(file), { recursive: true });
    const before = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : {};
    fs.writeFileSync(file, JSON.stringify({ ...before, ...values }));
  }

  replaceWorker(worker) {
    const extensions = path.join(this.server.root, 'ext');
    const installed = fs.readdirSync(extensions).find((name) => name.startsWith('longsight.'));
    assert.ok(installed, 'the package is installed');
    fs.copyFileSync(worker, path.join(extensions, installed, 'dist', 'worker.js'));
  }

  watchRequests() {
    this.page.on('request', (request) => {
      const { protocol, host } = new URL(request.url());
      // The resources of webviews have an address that never leaves the browser.
      const local =
        host === this.server.authority || host.endsWith('.vscode-resource.vscode-cdn.net');
      if (/^(http|ws)/.test(protocol) && !local) this.foreign.push(request.url());
    });
  }
}
