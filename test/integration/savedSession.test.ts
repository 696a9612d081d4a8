import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { Engine, type AskAnswer } from '../../extension/engine/client';
import { toErrorInfo } from '../../extension/engine/errors';
import { defaultParams } from '../../extension/engine/params';
import type { AskRequest, ModelRequest } from '../../extension/engine/protocol';
import { defaultSampling } from '../../extension/engine/sampling';
import {
  cli,
  sampleWorkspace,
  temporaryFolder,
  testModel,
  untilGone,
  workerPath,
} from './support/longsight';

describe('integration: saved sessions with a real model', function () {
  this.timeout(300_000);
  const folder = temporaryFolder();
  const engines: Engine[] = [];
  const log: string[] = [];
  let engine: Engine;
  let file: string;
  let cold: AskAnswer;

  const newEngine = () => {
    engine = new Engine({ workerPath, background: false, log: (_level, text) => log.push(text) });
    engines.push(engine);
  };
  before(() => {
    file = path.join(folder(), 'cache', 'sample.session');
    newEngine();
  });
  after(() => Promise.all(engines.map((one) => one.dispose())));

  const modelOf = (contextTokens: number): ModelRequest => ({
    path: testModel(),
    backend: 'auto',
    device: -1,
    threads: 0,
    contextTokens,
    kvCache: 'bf16',
  });
  const ask = (over: Partial<Omit<AskRequest, 'type' | 'sessionId' | 'requestId'>> = {}) =>
    engine.ask({
      model: modelOf(4096),
      params: { ...defaultParams, denseBelowTokens: 256, segmentRows: 512, windowTokens: 128 },
      workspace: {
        folders: [{ name: 'sample', path: sampleWorkspace }],
        unsaved: {},
        budgetTokens: 2500,
        strict: false,
      },
      chat: [],
      question: 'How is the delay before a retry computed?',
      answerTokens: 12,
      sampling: { ...defaultSampling },
      thinking: false,
      savedSession: file,
      confirmAbovePrefillMs: 0,
      ...over,
    }).result;
  const save = () => engine.save({ file, mostFolderBytes: 1e9 }).result;

  it('answers the same in another process, with what the first one read', async () => {
    cold = await ask();
    assert.equal(cold.stats.reusedTokens, 0);
    const saved = await save();
    assert.equal(saved.saved, true);
    assert.equal(statSync(file).size, saved.bytes);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal((await save()).saved, false);
    await engine.dispose();

    newEngine();
    // The context may have another size.
    const warm = await ask({ model: modelOf(3500) });
    const { reusedTokens, promptTokens, phases } = warm.stats;
    assert.equal(reusedTokens, saved.tokens);
    assert.ok(reusedTokens > 0.95 * promptTokens, `${reusedTokens} of ${promptTokens}`);
    assert.equal(warm.answer, cold.answer);
    assert.deepEqual(
      [warm.stats.attention.sparseDensity, warm.stats.attention.coverageMean],
      [cold.stats.attention.sparseDensity, cold.stats.attention.coverageMean],
    );
    const share = phases.prefillMs / cold.stats.phases.prefillMs;
    assert.ok(share < 0.15, `prefill took ${(100 * share).toFixed(1)} % of the cold one`);
    assert.match(log.join('\n'), /Restored \d+ tokens/);
  });

  it('gives way to a question at once', async () => {
    const other = path.join(folder(), 'cache', 'other.session');
    const saving = engine.save({ file: other, mostFolderBytes: 0 });
    const outcome = saving.result.then(
      () => 'saved',
      (error: unknown) => toErrorInfo(error).code,
    );
    const next = await ask({ question: 'Where are jobs written to disk?' });
    assert.ok(next.stats.phases.queueMs < 1000, `${next.stats.phases.queueMs} ms`);
    assert.ok(['saved', 'cancelled'].includes(await outcome));
    assert.ok(next.stats.reusedTokens > 0.9 * next.stats.promptTokens);
  });

  it('keeps the old file when the process is killed while it saves', async () => {
    const before = readFileSync(file);
    // Other parameters: the file has to be written anew.
    await ask({ params: { ...defaultParams, policy: 'dense' } });
    const pid = engine.pid!;
    const saving = engine.save(
      { file, mostFolderBytes: 0 },
      {
        onEvent: (event) => {
          if (event.type === 'progress' && event.phase === 'save') process.kill(pid, 'SIGKILL');
        },
      },
    ).result;
    await assert.rejects(saving, { code: 'engineCrashed' });
    assert.ok(await untilGone(pid, 2000));
    assert.ok(readFileSync(file).equals(before));
    const again = await ask();
    assert.ok(again.stats.reusedTokens > 0.95 * again.stats.promptTokens);
    assert.equal(again.answer, cold.answer);
  });

  it('goes on without a damaged file and replaces it', async () => {
    await engine.dispose();
    const bytes = readFileSync(file);
    bytes[bytes.length >> 1]! ^= 1;
    writeFileSync(file, bytes);
    newEngine();
    log.length = 0;
    const answer = await ask();
    assert.equal(answer.stats.reusedTokens, 0);
    assert.equal(answer.answer, cold.answer);
    assert.match(log.join('\n'), /is damaged: the checksum of block \d+ is wrong/);
    assert.equal((await save()).saved, true);
    assert.ok(!readFileSync(file).equals(bytes));
  });

  it('takes over what a session saved that had taken over a part itself', async () => {
    const named = path.join(folder(), 'edited.session');
    const project = path.join(folder(), 'edited');
    mkdirSync(project);
    const line = 'The code of this room is a secret that only this line knows.\n';
    for (const name of ['a.md', 'b.md', 'c.md']) {
      writeFileSync(path.join(project, name), `# ${name}\n${line.repeat(4)}`);
    }
    const reused: number[] = [];
    for (let edit = 0; edit < 4; edit++) {
      writeFileSync(path.join(project, 'c.md'), `# edit ${edit}\n${line.repeat(4)}`);
      const { status, stdout, stderr } = await cli([
        ...['ask', '--workspace', project, '--question', 'What is this?', '--json'],
        ...['--model', testModel(), '--context-tokens', '2048', '--max-tokens', '2'],
        ...['--session', named],
      ]);
      assert.equal(status, 0, stderr);
      assert.ok(!/read anew/.test(stderr), stderr);
      reused.push(JSON.parse(stdout).stats.reusedTokens);
    }
    assert.equal(reused[0], 0);
    assert.ok(reused[1]! > 200, reused.join());
    assert.deepEqual(reused.slice(2), [reused[1], reused[1]]);
  });

  it('works from the command line', async () => {
    const named = path.join(folder(), 'cli.session');
    const run = (session: string, question: string) =>
      cli(
        [
          ...['ask', '--workspace', sampleWorkspace, '--question', question, '--json'],
          ...['--model', testModel(), '--context-tokens', '4096', '--budget', '2500'],
          ...['--max-tokens', '6', '--session', session],
        ],
        { env: { ...process.env, XDG_CACHE_HOME: folder() } },
      );
    const first = await run(named, 'What is this?');
    assert.equal(first.status, 0, first.stderr);
    assert.match(first.stderr, /Saving the session/);
    const second = await run(named, 'What is this?');
    assert.equal(second.status, 0, second.stderr);
    const [a, b] = [JSON.parse(first.stdout), JSON.parse(second.stdout)];
    assert.equal(b.answer, a.answer);
    assert.ok(b.stats.reusedTokens > 0.95 * b.stats.promptTokens);

    const notes = path.join(folder(), 'notes.md');
    writeFileSync(notes, '# Notes\n');
    const refused = await run(notes, 'What is this?');
    assert.equal(refused.status, 1);
    assert.equal(JSON.parse(refused.stdout).error.code, 'notSessionFile');
    assert.equal(readFileSync(notes, 'utf8'), '# Notes\n');

    const automatic = await run('auto', 'What is this?');
    assert.equal(automatic.status, 0, automatic.stderr);
    const [stored, ...others] = readdirSync(path.join(folder(), 'longsight/sessions'));
    assert.deepEqual(others, []);
    // Nobody has named this file: what a power loss made of it must not end every question.
    const zeroed = path.join(folder(), 'longsight/sessions', stored!);
    writeFileSync(zeroed, Buffer.alloc(4096));
    const anew = await run('auto', 'What is this?');
    assert.equal(anew.status, 0, anew.stderr);
    assert.match(anew.stderr, /is not a saved session\. The workspace is read anew\./);
    assert.ok(statSync(zeroed).size > 1e7);
    const doctor = await cli(['doctor', '--json', '--model', testModel()], {
      env: { ...process.env, XDG_CACHE_HOME: folder() },
    });
    const { sessions } = JSON.parse(doctor.stdout);
    assert.equal(sessions.folder, path.join(folder(), 'longsight/sessions'));
    assert.equal(sessions.files, 1);
    assert.ok(sessions.bytes > 1e7);
  });
});
