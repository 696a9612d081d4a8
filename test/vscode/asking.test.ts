/** Questions from the palette, answered by the real engine with a real model. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import * as vscode from 'vscode';
import type { LongsightApi } from '../../extension/extension';
import {
  longsight,
  pause,
  Question,
  setSetting,
  setting,
  shrinkWorkspace,
  until,
  workspaceFolder,
} from './longsight';

describe('asking the workspace', function () {
  this.timeout(250_000);
  let api: LongsightApi;
  let restoreWorkspace: () => void;

  before(async () => {
    restoreWorkspace = shrinkWorkspace();
    await setSetting('answerTokens', 12);
    await setSetting('confirmAboveSeconds', 0);
    await setSetting('sparsity.denseBelowTokens', 1024);
    api = await longsight();
  });

  after(() => restoreWorkspace());

  afterEach(async () => {
    await vscode.commands.executeCommand('longsight.stop');
    await until('nothing runs', () => api.conversation.open.length === 0);
  });

  it('starts nothing and loads no native code when it is activated', () => {
    assert.equal(api.enginePid(), undefined);
    const maps = fs.readFileSync('/proc/self/maps', 'utf8');
    assert.doesNotMatch(maps, /longsight\.node|libllama|libggml/);
  });

  it('lets a model be chosen at the first question, keeps it, and asks it afterwards', async () => {
    assert.equal(setting('model'), '');
    const question = await Question.ask(api, 'What is this project?');
    await pause(500);
    assert.equal(question.entry.state, 'running');
    assert.equal(api.enginePid(), undefined);
    // The list is the only thing open that can be accepted: the model from the models folder.
    const model = await until('a model is chosen', async () => {
      await vscode.commands.executeCommand('workbench.action.acceptSelectedQuickOpenItem');
      await pause(200);
      return setting('model') as string;
    });
    assert.equal(model, process.env.LONGSIGHT_TEST_MODEL);
    await question.event('phase', ({ phase }) => phase === 'tokenize');
    assert.ok(api.enginePid());
    assert.equal(question.entry.question, 'What is this project?');
  });

  let sparse = 1;

  it('streams an answer whose time to the first token is the one that was waited', async () => {
    const question = await Question.ask(api, 'How long does a failed job wait?');
    const { stats } = await question.answer();
    const tokens = question.events('token');
    const times = new Set(tokens.map(({ atMs }) => Math.round(atMs)));
    assert.ok(tokens.length >= 5, `${tokens.length} token messages`);
    assert.ok(times.size >= 5, `at ${times.size} different times`);
    const ownMs = (tokens[0]?.atMs ?? NaN) - question.submittedMs;
    assert.ok(
      Math.abs(ownMs - stats.ttftMs) <= 0.1 * stats.ttftMs,
      `own clock ${ownMs.toFixed(0)} ms, ttftMs ${stats.ttftMs.toFixed(0)}`,
    );
    const sum = Object.values(stats.phases).reduce((total, ms) => total + ms, 0);
    assert.ok(Math.abs(sum - stats.ttftMs) <= 0.02 * stats.ttftMs, `phases sum to ${sum}`);
    const { density, sparseDensity, coverageMean, coverageP5, layers } = stats.attention;
    assert.ok(density > 0 && density < 1, `density ${density}`);
    assert.ok(sparseDensity !== null && sparseDensity < 0.5, `sparseDensity ${sparseDensity}`);
    assert.ok(coverageMean !== null && coverageMean < 1 && coverageMean > 0.5);
    assert.ok(coverageP5 !== null && coverageP5 <= coverageMean);
    assert.ok(layers.length > 0 && layers.every(({ heads }) => heads.length > 0));
    assert.match(stats.model, /smollm2/i);
    sparse = sparseDensity;
  });

  it('reuses what it has read for the next question', async () => {
    const { stats } = await (await Question.ask(api, 'And what is the journal?')).answer();
    assert.ok(
      stats.reusedTokens > 0.7 * stats.promptTokens,
      `${stats.reusedTokens} of ${stats.promptTokens} reused`,
    );
  });

  it('is sparser with a larger epsilon, from the next question on', async () => {
    await setSetting('sparsity.epsilon', 0.3);
    const { stats } = await (await Question.ask(api, 'How long does a job wait?')).answer();
    assert.equal(stats.params.epsilon, 0.3);
    const { sparseDensity } = stats.attention;
    assert.ok(sparseDensity !== null && sparseDensity < sparse, `${sparseDensity} < ${sparse}`);
    await setSetting('sparsity.epsilon', undefined);
  });

  it('takes another policy and KV cache for the next question, without a reload', async () => {
    await setSetting('sparsity.policy', 'paper');
    await setSetting('kvCache', 'q8');
    const question = await Question.ask(api, 'How long does a job wait?');
    const { stats } = await question.answer();
    assert.equal(stats.kvCache, 'q8');
    assert.equal(stats.params.policy, 'mass');
    // The preset, but for what is set.
    assert.equal(stats.params.windowFraction, 0.08);
    assert.equal(stats.params.denseBelowTokens, 1024);
    await setSetting('sparsity.policy', undefined);
    await setSetting('kvCache', undefined);
  });

  it('stops the engine, not only the view', async () => {
    const question = await Question.ask(api, 'What is a lease?');
    await question.event('progress', ({ phase, done }) => phase === 'prefill' && done >= 0);
    const pid = api.enginePid();
    assert.ok(pid);
    await vscode.commands.executeCommand('longsight.stop');
    await pause(250);
    const before = cpuTicks(pid);
    await pause(1000);
    const ticks = cpuTicks(pid) - before;
    // The heartbeat may cost a tick; a working engine takes a hundred for each thread.
    assert.ok(ticks <= 3, `${ticks} ticks of processor time in a second after the stop`);
    assert.equal((await question.end()).state, 'stopped');
    assert.equal(api.enginePid(), pid);
  });

  it('survives a killed engine and answers the next question', async () => {
    const question = await Question.ask(api, 'What is a lease?');
    await question.event('phase', ({ phase }) => phase === 'prefill');
    const pid = api.enginePid();
    assert.ok(pid);
    process.kill(pid, 'SIGKILL');
    const failed = await question.end();
    assert.equal(failed.error?.code, 'engineCrashed');
    assert.match(failed.error?.message ?? '', /SIGKILL/);
    await api.perform({ type: 'remedy', id: failed.id, remedy: 'askAgain' });
    const entry = await until('an answer', () => {
      const now = api.conversation.get(failed.id);
      assert.ok(!now?.error, now?.error?.message);
      return now?.state === 'done' ? now : undefined;
    });
    assert.notEqual(entry.answer, '');
    assert.notEqual(api.enginePid(), pid);
  });

  it('asks before a long prefill, and reads fewer files when told so', async () => {
    // Nothing of it is cached.
    await setSetting('sparsity.epsilon', 0.01);
    await setSetting('confirmAboveSeconds', 0.001);
    const first = await Question.ask(api, 'What is a lease?');
    const { predictedPrefillMs } = await first.event('confirm');
    assert.equal(first.entry.state, 'confirming');
    await api.perform({ type: 'choose', id: first.entry.id, choice: 'cancel' });
    assert.equal((await first.end()).state, 'stopped');

    // Half of the files can be read in the time that is now allowed.
    await setSetting('confirmAboveSeconds', predictedPrefillMs / 2000);
    const question = await Question.ask(api, 'What is a lease?');
    const { suggestedBudgetTokens } = await question.event('confirm');
    assert.ok(suggestedBudgetTokens > 0, `budget ${suggestedBudgetTokens}`);
    const whole = await question.event('plan');
    await api.perform({ type: 'choose', id: question.entry.id, choice: 'fewerFiles' });
    const fewer = await question.event('plan', (plan) => plan !== whole);
    assert.ok(
      fewer.files.full < whole.files.full,
      `${fewer.files.full} < ${whole.files.full} files`,
    );
    await api.perform({ type: 'stop', id: question.entry.id });
    assert.equal((await question.end()).state, 'stopped');
    await setSetting('confirmAboveSeconds', 0);
    await setSetting('sparsity.epsilon', undefined);
  });

  it('reads unsaved text as the editor shows it', async () => {
    const plan = async () => {
      const question = await Question.ask(api, 'What is a lease?');
      const { promptTokens } = await question.event('plan');
      await api.perform({ type: 'stop', id: question.entry.id });
      await question.end();
      return promptTokens;
    };
    const saved = await plan();
    const file = vscode.Uri.file(path.join(workspaceFolder(), 'src', 'heap.js'));
    const editor = await vscode.window.showTextDocument(file);
    await editor.edit((edit) =>
      edit.insert(
        new vscode.Position(0, 0),
        '// A comment that nobody has saved yet.\n'.repeat(20),
      ),
    );
    const unsaved = await plan();
    assert.ok(unsaved >= saved + 100, `${saved} tokens, then ${unsaved}`);
    await vscode.commands.executeCommand('workbench.action.revertAndCloseActiveEditor');
  });

  it('names a setting that cannot be used, and works again when it is corrected', async () => {
    await setSetting('sparsity.windowTokens', 7);
    const entry = await (await Question.ask(api, 'What is a lease?')).end();
    assert.equal(entry.error?.code, 'invalidParams');
    assert.match(entry.error?.message ?? '', /longsight\.sparsity\.windowTokens = 7 .*128 to 8192/);
    await setSetting('sparsity.windowTokens', undefined);
    const question = await Question.ask(api, 'What is a lease?');
    await question.event('phase', ({ phase }) => phase === 'scan');
  });

  it('names a model that is not there', async () => {
    const model = setting('model');
    await setSetting('model', '/no/such/model.gguf');
    const entry = await (await Question.ask(api, 'What is a lease?')).end();
    assert.equal(entry.error?.code, 'modelNotFound');
    assert.match(entry.error?.message ?? '', /\/no\/such\/model\.gguf/);
    assert.notEqual(entry.error?.action, '');
    await setSetting('model', model);
  });
});

/** User and system time of all threads of a process, in clock ticks. */
function cpuTicks(pid: number): number {
  const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]);
}
