import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { Jobs } from '../../../extension/engine/jobs';
import { defaultParams } from '../../../extension/engine/params';
import {
  nothingNew,
  type AskRequest,
  type AskResult,
  type ConfirmEvent,
  type ErrorEvent,
  type Event,
  type JobRequest,
  type PackRequest,
  type PackResult,
  type SaveRequest,
  type SaveResult,
} from '../../../extension/engine/protocol';
import { defaultSampling } from '../../../extension/engine/sampling';
import { FakeAddon, fakeCuda, memory } from './fakeAddon';

describe('engine/asking', () => {
  let folder: string;
  let workspace: string;
  let modelPath: string;
  let fake: FakeAddon;
  let events: Event[];
  let jobs: Jobs;

  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-asking-'));
    workspace = path.join(folder, 'project');
    modelPath = path.join(folder, 'model.gguf');
    writeFileSync(modelPath, 'x');
    mkdirSync(workspace);
    file('README.md', 'A project about retries.\n');
    file('retry.ts', 'export const retries = 2;\n');
    fake = new FakeAddon();
    events = [];
    jobs = new Jobs({
      cuda: fakeCuda(),
      addon: () => fake.addon,
      send: (event) => events.push(event),
      now: () => performance.now(),
      version: '1',
    });
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const file = (name: string, text: string) => writeFileSync(path.join(workspace, name), text);
  const address = { sessionId: 's', requestId: 'r' };
  const request = (over: Partial<AskRequest> = {}): AskRequest => ({
    type: 'ask',
    ...address,
    model: {
      path: modelPath,
      backend: 'auto',
      device: -1,
      threads: 0,
      contextTokens: 0,
      kvCache: 'bf16',
    },
    params: { ...defaultParams },
    workspace: {
      folders: [{ name: 'project', path: workspace }],
      unsaved: {},
      budgetTokens: 0,
      strict: false,
    },
    chat: [],
    question: 'How often?',
    answerTokens: 100,
    sampling: { ...defaultSampling, stop: ['STOP'] },
    thinking: false,
    savedSession: '',
    confirmAbovePrefillMs: 0,
    ...over,
  });
  const ended = async () => {
    while (!events.some((event) => event.type === 'result' || event.type === 'error')) {
      await wait(1);
    }
    return events.at(-1)!;
  };
  const run = async <T = AskResult>(asked: JobRequest): Promise<T> => {
    events = [];
    jobs.handle(asked);
    const last = await ended();
    assert.equal(last.type, 'result', JSON.stringify(last));
    return (last as unknown as { result: T }).result;
  };
  const fail = async (asked: JobRequest) => {
    events = [];
    jobs.handle(asked);
    const last = await ended();
    assert.equal(last.type, 'error', JSON.stringify(last));
    return last.error;
  };
  const promptText = (index = 0) =>
    Buffer.from(Uint8Array.from(fake.prompts[index]!.tokens)).toString();

  it('goes through the phases in order and tells the plan before the prefill', async () => {
    await run(request());
    const told = events.flatMap((event) =>
      event.type === 'phase' ? [event.phase] : event.type === 'plan' ? ['(plan)'] : [],
    );
    assert.deepEqual(told, [
      'scan',
      'tokenize',
      '(plan)',
      'prefill',
      'firstToken',
      'decode',
      'done',
    ]);
    const order = events.map(({ type }) => type);
    assert.ok(
      order.indexOf('token') < events.findIndex((e) => e.type === 'phase' && e.phase === 'decode'),
    );
  });

  it('puts the files before the question, with the border between them', async () => {
    await run(request());
    const { borders, denseFrom, tokens } = fake.prompts[0]!;
    assert.deepEqual(borders, [denseFrom, tokens.length]);
    const text = promptText();
    assert.ok(text.indexOf('retries = 2') < denseFrom);
    assert.ok(text.indexOf('How often?') >= denseFrom);
    assert.ok(text.trimEnd().endsWith('<|im_start|>assistant'));
  });

  it('keeps the files part for another question and for later turns', async () => {
    await run(request());
    await run(request({ question: 'And why is that so?' }));
    await run(
      request({ chat: [{ question: 'How often?', answer: 'read 1 of 2 files\n\nTwice.' }] }),
    );
    const parts = fake.prompts.map(({ tokens, denseFrom }) => tokens.subarray(0, denseFrom));
    assert.deepEqual(parts[0], parts[1]);
    assert.deepEqual(parts[0], parts[2]);
    assert.ok(promptText(2).includes('Twice.') && !promptText(2).includes('read 1 of 2'));
  });

  it('returns the answer as it was streamed, with its statistics', async () => {
    const result = await run(request());
    const streamed = events.flatMap((event) => (event.type === 'token' ? [event.text] : []));
    assert.deepEqual(streamed, ['Hel', 'lo']);
    assert.equal(result.answer, 'Hello');
    assert.equal(result.stopReason, 'end');
    assert.deepEqual(result.files, { full: 2, path: 0, out: 0 });
    assert.equal(result.stats.model, 'fake');
    assert.equal(result.stats.promptTokens, fake.prompts[0]!.tokens.length);
    assert.deepEqual(result.stats.memory, memory);
    assert.deepEqual(fake.options.at(-1), {
      maxTokens: 100,
      sampling: { ...defaultSampling, stop: ['STOP'] },
      ignoreEnd: false,
    });
  });

  it('tells what was read together with the first token when something was left out', async () => {
    file('.env', 'KEY=1\n');
    const result = await run(request());
    const streamed = events.flatMap((event) => (event.type === 'token' ? [event.text] : []));
    assert.deepEqual(streamed, ['read 2 of 3 files\n\nHel', 'lo']);
    assert.equal(result.answer, 'read 2 of 3 files\n\nHello');
    assert.ok(!promptText().includes('KEY=1'));
    fake.settings.texts = [];
    assert.equal((await run(request())).answer, 'read 2 of 3 files\n\n');
  });

  describe('with a model that thinks', () => {
    /** Writes like Qwen 3: thinks unless the prompt holds an empty thought. */
    const thinkingTemplate =
      '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}' +
      '<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}';
    const alwaysOpen =
      '{% for m in messages %}{{ m.content }}\n{% endfor %}<|Assistant|>{{ "<think>\n" }}';
    const told = () =>
      events.flatMap((event): string[] => {
        if (event.type === 'phase') return [`(${event.phase})`];
        if (event.type === 'token') return [`answer ${event.text}`];
        return event.type === 'thinking' ? [`thought ${event.text}`] : [];
      });

    it('tells thought from answer, and counts it after the first token', async () => {
      file('.env', 'KEY=1\n');
      fake.settings.spec = { chatTemplate: thinkingTemplate };
      fake.settings.texts = ['<think>', '\nFirst', ' [retry.ts "retries = 2"]', '</think>', '\n\n'];
      fake.settings.texts.push('Twice', '.');
      const result = await run(request({ thinking: true }));
      assert.deepEqual(told().slice(-8), [
        '(firstToken)',
        '(thinking)',
        'thought First',
        'thought  [retry.ts "retries = 2"]',
        'answer read 2 of 3 files\n\nTwice',
        '(decode)',
        'answer .',
        '(done)',
      ]);
      assert.equal(result.thinking, 'First [retry.ts "retries = 2"]');
      assert.equal(result.answer, 'read 2 of 3 files\n\nTwice.');
      assert.deepEqual(result.citations, []);
      assert.equal(result.stats.thinking?.tokens, 4);
      assert.ok(result.stats.thinking.ms >= 0);
      assert.ok(promptText().endsWith('<|im_start|>assistant\n'));
    });

    it('gives a thought room beside the answer, but no more than a quarter of the context', async () => {
      fake.settings.spec = { chatTemplate: thinkingTemplate };
      const maxTokens = async (over: Partial<AskRequest>) => {
        await run(request(over));
        return fake.options.at(-1)!.maxTokens;
      };
      assert.equal(await maxTokens({ thinking: true }), 500);
      assert.equal(await maxTokens({ thinking: true, answerTokens: 1000 }), 1000 + 2048);
      assert.equal(await maxTokens({ thinking: false }), 100);
      fake.settings.spec = {};
      jobs = new Jobs({
        cuda: fakeCuda(),
        addon: () => fake.addon,
        send: (e) => events.push(e),
        now: () => 0,
        version: '1',
      });
      assert.equal(await maxTokens({ thinking: true }), 100);
    });

    it('does not let it think by default', async () => {
      fake.settings.spec = { chatTemplate: thinkingTemplate };
      const result = await run(request());
      assert.ok(promptText().endsWith('assistant\n<think>\n\n</think>\n\n'));
      assert.equal(result.answer, 'Hello');
      assert.equal(result.thinking, '');
      assert.equal(result.stats.thinking, null);
    });

    it('goes on with a thought that the prompt opened, also when it does not end', async () => {
      fake.settings.spec = { chatTemplate: alwaysOpen };
      fake.settings.texts = ['Well', ', hm'];
      const result = await run(request({ thinking: true }));
      assert.deepEqual(told().slice(-4), ['(thinking)', 'thought Well', 'thought , hm', '(done)']);
      assert.equal(result.thinking, 'Well, hm');
      assert.equal(result.answer, '');
      assert.equal(result.stats.thinking?.tokens, 2);
      assert.ok(promptText().endsWith('<think>\n'));
    });

    it('ends the time to the first token while a beginning of a tag is held back', async () => {
      fake.settings.texts = ['<', 'b> is bold'];
      const result = await run(request({ thinking: true }));
      assert.deepEqual(told().slice(-5), [
        '(firstToken)',
        'answer ',
        'answer <b> is bold',
        '(decode)',
        '(done)',
      ]);
      assert.equal(result.answer, '<b> is bold');
      assert.equal(result.stats.thinking, null);
    });

    it('sends no thought of earlier turns', async () => {
      fake.settings.spec = { chatTemplate: thinkingTemplate };
      const chat = [{ question: 'How often?', answer: 'Twice.' }];
      await run(request({ thinking: true, chat }));
      assert.ok(promptText().includes('assistant\nTwice.<|im_end|>'));
    });
  });

  it('checks citations against what was packed', async () => {
    fake.settings.texts = ['Twice [retry.ts "const retries = 2"] and [none.ts "x = 1"].'];
    const { citations } = await run(request());
    assert.deepEqual(
      citations.map(({ path: file, status, startLine }) => [file, status, startLine]),
      [
        ['retry.ts', 'verified', 1],
        ['none.ts', 'invented', 0],
      ],
    );
    assert.equal(citations[0]!.absolutePath, path.join(workspace, 'retry.ts'));
  });

  it('reads unsaved text instead of the disk', async () => {
    const unsaved = { [path.join(workspace, 'retry.ts')]: 'export const retries = 9;\n' };
    await run(request({ workspace: { ...request().workspace, unsaved } }));
    assert.ok(promptText().includes('retries = 9') && !promptText().includes('retries = 2'));
  });

  it('asks before a long prefill, names a budget that is short enough, and waits', async () => {
    file('big.ts', 'x'.repeat(4000));
    jobs.handle(request({ confirmAbovePrefillMs: 3000 }));
    while (!events.some(({ type }) => type === 'confirm')) await wait(1);
    await wait(20);
    assert.ok(!fake.calls.includes('generate'));
    const confirm = events.find(({ type }) => type === 'confirm') as ConfirmEvent;
    assert.ok(confirm.predictedPrefillMs > 4000);
    jobs.handle({ type: 'proceed', ...address });
    assert.equal((await ended()).type, 'result');

    const budgetTokens = confirm.suggestedBudgetTokens;
    assert.ok(budgetTokens > 0 && budgetTokens % 256 === 0, `${budgetTokens}`);
    await run(
      request({
        confirmAbovePrefillMs: 3000,
        workspace: { ...request().workspace, budgetTokens },
      }),
    );
    assert.ok(!events.some(({ type }) => type === 'confirm'));
  });

  it('can be cancelled while it waits for a person', async () => {
    jobs.handle(request({ confirmAbovePrefillMs: 1 }));
    while (!events.some(({ type }) => type === 'confirm')) await wait(1);
    jobs.handle({ type: 'cancel', ...address });
    assert.equal(((await ended()) as ErrorEvent).error.code, 'cancelled');
    assert.ok(!fake.calls.includes('generate'));
  });

  it('can be cancelled in the prefill', async () => {
    fake.settings.hang = true;
    jobs.handle(request());
    while (!fake.calls.includes('generate')) await wait(1);
    jobs.handle({ type: 'cancel', ...address });
    assert.equal(((await ended()) as ErrorEvent).error.code, 'cancelled');
  });

  it('refuses empty and missing folders, and an empty question', async () => {
    const of = (folderPath: string) =>
      request({
        workspace: { ...request().workspace, folders: [{ name: 'x', path: folderPath }] },
      });
    const empty = path.join(folder, 'empty');
    mkdirSync(empty);
    assert.equal((await fail(of(empty))).code, 'emptyWorkspace');
    assert.equal((await fail(of('/none/such'))).code, 'folderNotFound');
    assert.equal((await fail(request({ question: ' \n' }))).code, 'invalidParams');
  });

  it('refuses what does not fit with strict, and a prompt that fits nowhere', async () => {
    file('big.ts', 'x'.repeat(9000));
    const error = await fail(request({ workspace: { ...request().workspace, strict: true } }));
    assert.equal(error.code, 'overBudget');
    assert.equal((await run(request())).files.path, 1);
    assert.equal((await fail(request({ question: 'q'.repeat(9000) }))).code, 'promptTooLong');
  });

  it('answers nothing about files of which none fits', async () => {
    const error = await fail(request({ workspace: { ...request().workspace, budgetTokens: 5 } }));
    assert.equal(error.code, 'overBudget');
    assert.match(error.message, /None of the 2 files fits into the 5 tokens/);
  });

  it('uses the largest context that fits into memory', async () => {
    fake.settings.largestContextTokens = 3000;
    await run(request());
    const rest = { backend: 'cpu', device: 0, threads: 3, ropeBaseScale: 1 };
    assert.deepEqual(fake.options[0], { contextTokens: 3000, kvCache: 'bf16', ...rest });
    const result = await run(request({ model: { ...request().model, kvCache: 'q8' } }));
    assert.deepEqual(fake.options.at(-2), { contextTokens: 4500, kvCache: 'q8', ...rest });
    assert.equal(result.stats.kvCache, 'q8');
  });

  it('packs without loading weights', async () => {
    const pack: PackRequest = {
      type: 'pack',
      ...address,
      model: request().model,
      workspace: request().workspace,
      withText: true,
    };
    const result = await run<PackResult>(pack);
    assert.deepEqual(
      result.files.map(({ path: name, tier, reason }) => [name, tier, reason]),
      [
        ['README.md', 'full', 'readme'],
        ['retry.ts', 'full', 'source'],
      ],
    );
    assert.ok(result.totalTokens >= result.files.reduce((sum, { tokens }) => sum + tokens, 0));
    assert.ok(result.text!.includes('retries = 2'));
    assert.ok(!fake.calls.includes('createSession'));
    assert.ok(!('text' in (await run<PackResult>({ ...pack, withText: false }))));
  });

  describe('saved sessions', () => {
    const saved = () => path.join(folder, 'cache', 'project.session');
    const save = (over: Partial<SaveRequest> = {}): SaveRequest => ({
      type: 'save',
      ...address,
      file: saved(),
      mostFolderBytes: 0,
      ...over,
    });
    const ask = (over: Partial<AskRequest> = {}) =>
      run(request({ savedSession: saved(), ...over }));
    const restart = () => {
      fake.calls.length = 0;
      jobs = new Jobs({
        cuda: fakeCuda(),
        addon: () => fake.addon,
        send: (event) => events.push(event),
        now: () => performance.now(),
        version: '1',
      });
    };
    const done = (name: string) => fake.calls.filter((call) => call.startsWith(name)).length;
    const warnings = () =>
      events.flatMap((event) =>
        event.type === 'log' && event.level === 'warn' ? [event.text] : [],
      );

    it('saves the rows of the files, in a phase with progress, and restores them once', async () => {
      await ask();
      const { denseFrom } = fake.prompts[0]!;
      const result = await run<SaveResult>(save());
      assert.deepEqual(result, { saved: true, reason: '', tokens: denseFrom, bytes: denseFrom });
      assert.ok(events.some((event) => event.type === 'phase' && event.phase === 'save'));
      assert.ok(events.some((event) => event.type === 'progress' && event.phase === 'save'));
      restart();
      await ask();
      assert.ok(events.some((event) => event.type === 'progress' && event.phase === 'load'));
      const plan = events.find((event) => event.type === 'plan');
      assert.equal(plan?.type === 'plan' && plan.reusedTokens, denseFrom);
      await ask({ question: 'And why?' });
      assert.equal(done('restore'), 1);
      assert.ok(fake.calls.indexOf('restore') < fake.calls.indexOf('generate'));
    });

    it('writes a file anew only when it would spare less than most of the work', async () => {
      assert.equal((await run<SaveResult>(save())).saved, false);
      await ask();
      assert.equal((await run<SaveResult>(save())).saved, true);
      assert.equal((await run<SaveResult>(save())).saved, false);
      await ask({ question: 'Something else?' });
      assert.equal((await run<SaveResult>(save())).reason, nothingNew);
      // Restored by another process, it is as good as before.
      restart();
      await ask();
      assert.equal((await run<SaveResult>(save())).saved, false);
      assert.equal(done('save'), 0);
      // Other parameters, other files, another place: nothing of that is on the disk.
      await ask({ params: { ...defaultParams, epsilon: 0.1 } });
      assert.equal((await run<SaveResult>(save())).saved, true);
      file('README.md', 'Everything is different here.\n');
      await ask({ params: { ...defaultParams, epsilon: 0.1 } });
      assert.equal((await run<SaveResult>(save())).saved, true);
      const elsewhere = path.join(folder, 'cache', 'other.session');
      assert.equal((await run<SaveResult>(save({ file: elsewhere }))).saved, true);
    });

    it('goes on without a file that is damaged or of another session, and replaces it', async () => {
      for (const code of ['damagedSessionFile', 'otherSessionFile', 'unreadableFile']) {
        restart();
        mkdirSync(path.dirname(saved()), { recursive: true });
        writeFileSync(saved(), 'old');
        fake.settings.restoreError = Object.assign(new Error('It is bad.'), { code, action: 'A.' });
        await ask();
        assert.match(warnings()[0]!, /It is bad\. The workspace is read anew\./);
        assert.equal((await run<SaveResult>(save())).saved, true, code);
      }
    });

    it('takes no file of another kind, and an empty one for none', async () => {
      mkdirSync(path.dirname(saved()), { recursive: true });
      writeFileSync(saved(), '');
      await ask();
      assert.equal(done('restore'), 0);
      restart();
      writeFileSync(saved(), '# Notes');
      fake.settings.restoreError = Object.assign(new Error('Not a session.'), {
        code: 'notSessionFile',
        action: 'A.',
      });
      const error = await fail(request({ savedSession: saved() }));
      assert.equal(error.code, 'notSessionFile');
      assert.equal(done('generate'), 0);
    });

    it('says why a session that is too large is not saved', async () => {
      await ask();
      const result = await run<SaveResult>(save({ mostFolderBytes: 1 }));
      assert.equal(result.saved, false);
      assert.match(result.reason, /of 1 that are allowed/);
      assert.equal(done('save'), 0);
      assert.match(warnings()[0]!, /not saved/);
    });

    it('stops saving when told to', async () => {
      await ask();
      fake.settings.hang = true;
      events = [];
      jobs.handle(save());
      while (done('save') === 0) await wait(1);
      jobs.handle({ type: 'cancel', ...address });
      const last = await ended();
      assert.equal(last.type === 'error' && last.error.code, 'cancelled');
      assert.equal(done('cancel'), 1);
    });
  });
});
