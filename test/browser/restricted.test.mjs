// Restricted Mode: what a workspace that nobody trusts can and cannot do.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { Workbench } from './workbench.mjs';

describe('an untrusted workspace in a workbench', function () {
  this.timeout(60_000);
  let workbench;

  before(async () => {
    workbench = await Workbench.start({
      files: ['README.md', 'src/backoff.js'],
      trust: false,
      worker: path.join(import.meta.dirname, 'scriptedWorker.cjs'),
      workspaceSettings: {
        'longsight.model': '/etc/hostname',
        'longsight.modelsFolder': '/etc',
      },
    });
  });

  afterEach(async function () {
    if (this.currentTest?.state === 'failed') await workbench.screenshot('restricted-failed');
  });

  after(() => workbench?.stop());

  it('is in Restricted Mode', async () => {
    await workbench.page.locator('.statusbar-item', { hasText: 'Restricted Mode' }).waitFor();
  });

  it('answers questions, with the model of the user and never that of the workspace', async () => {
    await workbench.container('Longsight').click();
    const chat = await workbench.chat();
    const chosen = path.basename(process.env.LONGSIGHT_TEST_MODEL, '.gguf');
    await chat.locator('.model', { hasText: chosen }).waitFor();
    await chat.locator('.question-input').fill('What happens to a failed job?');
    await workbench.page.keyboard.press('Enter');
    await chat.locator('.entry[data-state="done"]').waitFor();
    await workbench.screenshot('restricted-dark');
    await workbench.status.locator('a').click();
    const stats = await workbench.stats();
    await stats.locator('tr', { hasText: 'Model' }).getByText(chosen).waitFor();
    const settings = path.join(workbench.workspace, '.vscode/settings.json');
    assert.match(fs.readFileSync(settings, 'utf8'), /etc\/hostname/);
  });
});
