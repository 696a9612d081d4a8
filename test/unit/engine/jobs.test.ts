import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { Jobs } from '../../../extension/engine/jobs';
import { defaultParams } from '../../../extension/engine/params';
import type {
  BenchRequest,
  BenchResult,
  DoctorRequest,
  DoctorResult,
  ErrorEvent,
  Event,
  JobRequest,
  ScoreRequest,
  ScoreResult,
} from '../../../extension/engine/protocol';
import { FakeAddon, fakeCuda } from './fakeAddon';

describe('engine/jobs', () => {
  let folder: string;
  let modelPath: string;
  let fake: FakeAddon;
  let events: Event[];
  let jobs: Jobs;

  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-jobs-'));
    modelPath = path.join(folder, 'model.gguf');
    writeFileSync(modelPath, 'x');
    fake = new FakeAddon();
    events = [];
    jobs = new Jobs({
      cuda: fakeCuda(),
      addon: () => fake.addon,
      send: (event) => events.push(event),
      now: () => performance.now(),
      version: '1.2.3',
    });
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const address = (requestId = 'r') => ({ sessionId: 's', requestId });
  const model = () => ({
    path: modelPath,
    backend: 'auto' as const,
    device: -1,
    threads: 0,
    contextTokens: 0,
    kvCache: 'bf16' as const,
  });
  const score = (over: Partial<ScoreRequest> = {}): ScoreRequest => ({
    type: 'score',
    ...address(),
    model: model(),
    params: { ...defaultParams },
    text: Buffer.alloc(4000, 97),
    tokens: 0,
    tail: 0,
    tailPolicy: 'dense',
    against: null,
    ropeBaseScale: 1,
    ...over,
  });
  const bench = (over: Partial<BenchRequest> = {}): BenchRequest => ({
    type: 'bench',
    ...address(),
    model: model(),
    params: { ...defaultParams },
    synthetic: null,
    forcedDensity: null,
    prefix: null,
    speculate: false,
    runs: 1,
    tokenCounts: [100],
    text: Buffer.from('abc'),
    decodeTokens: 0,
    ropeBaseScale: 1,
    ...over,
  });
  const doctor = (over: Partial<DoctorRequest> = {}): DoctorRequest => ({
    type: 'doctor',
    ...address(),
    model: model(),
    params: { ...defaultParams },
    ...over,
  });
  const ended = async () => {
    while (!events.some((event) => event.type === 'result' || event.type === 'error')) {
      await wait(1);
    }
    return events.at(-1)!;
  };
  const run = async <T>(request: JobRequest): Promise<T> => {
    events = [];
    jobs.handle(request);
    const last = await ended();
    assert.equal(last.type, 'result', JSON.stringify(last));
    return (last as unknown as { result: T }).result;
  };
  const fail = async (request: JobRequest) => {
    events = [];
    jobs.handle(request);
    const last = await ended();
    assert.equal(last.type, 'error', JSON.stringify(last));
    return last.error;
  };

  it('addresses every event and ends with done and the result', async () => {
    await run(score());
    assert.ok(events.every((event) => event.sessionId === 's' && event.requestId === 'r'));
    assert.deepEqual(
      events.flatMap((event) => (event.type === 'phase' ? [event.phase] : [])),
      ['prefill', 'done'],
    );
    assert.deepEqual(jobs.current(), { sessionId: '', requestId: '' });
  });

  it('scores: the tail is dense by default and scored', async () => {
    const result = await run<ScoreResult>(score());
    assert.deepEqual(fake.prompts[0]!.borders, [2976, 4000]);
    assert.equal(fake.prompts[0]!.denseFrom, 2976);
    assert.deepEqual(fake.options.at(-1), { tail: 1024, againstDense: false });
    assert.equal(result.tokens, 4000);
    assert.ok(Math.abs(result.perplexity - Math.exp(2)) < 1e-9);
    assert.ok(!('kl' in result));
  });

  it('scores: tail policy same, a comparison with dense, first tokens only', async () => {
    const result = await run<ScoreResult>(
      score({ tailPolicy: 'same', against: 'dense', tokens: 1000, tail: 100 }),
    );
    assert.deepEqual(fake.prompts[0]!.borders, [1000]);
    assert.equal(fake.prompts[0]!.denseFrom, 1000);
    assert.equal(result.kl, 0.001);
    assert.equal(result.top1Agreement, 0.99);
  });

  it('scores half of a short text, and refuses what cannot be scored', async () => {
    await run(score({ text: Buffer.alloc(100, 97) }));
    assert.deepEqual(fake.options.at(-1), { tail: 50, againstDense: false });
    assert.match((await fail(score({ tokens: 5000 }))).message, /4000 tokens.*5000/);
    assert.match((await fail(score({ tail: 4001 }))).message, /tail = 4001 .*2 to 4000/);
    assert.match((await fail(score({ tail: 1 }))).message, /tail = 1 /);
    assert.match((await fail(score({ text: Buffer.from('a') }))).message, /1 tokens/);
  });

  it('scores a whole text as one dense part', async () => {
    await run(score({ tail: 4000 }));
    assert.deepEqual(fake.prompts[0]!.borders, [4000]);
    assert.equal(fake.prompts[0]!.denseFrom, 0);
  });

  it('refuses more tokens than the model takes, unless RoPE is stretched', async () => {
    const text = Buffer.alloc(9000, 97);
    const error = await fail(score({ text }));
    assert.equal(error.code, 'promptTooLong');
    assert.match(error.message, /9000 tokens.*8192/);
    await run(score({ text, ropeBaseScale: 4 }));
    assert.deepEqual(fake.options.at(-2), {
      backend: 'cpu',
      device: 0,
      contextTokens: 9000,
      threads: 3,
      ropeBaseScale: 4,
      kvCache: 'bf16',
    });
  });

  it('benches each length cold, with the text repeated or cut', async () => {
    const result = await run<BenchResult>(bench({ tokenCounts: [2, 7], decodeTokens: 4 }));
    assert.deepEqual(
      fake.prompts.map(({ tokens }) => Buffer.from(Uint8Array.from(tokens)).toString()),
      ['ab', 'abcabca'],
    );
    assert.equal(fake.calls.filter((call) => call === 'reset').length, 2);
    assert.deepEqual(
      result.results.map(({ tokens, decodeTokensPerSecond }) => [tokens, decodeTokensPerSecond]),
      [
        [2, 20],
        [7, 20],
      ],
    );
    assert.ok(result.results.every(({ peakBytes }) => peakBytes > 2 ** 20));
    const rows = await run<BenchResult>(bench());
    assert.equal(rows.results[0]!.decodeTokensPerSecond, null);
  });

  it('benches new tokens on a prefix, as often as asked', async () => {
    fake.settings.caches = true;
    const prefix = { tokens: 40, newTokens: 5 };
    const result = await run<BenchResult>(bench({ tokenCounts: [], prefix, runs: 3 }));
    assert.deepEqual(
      result.results.map(({ tokens, reusedTokens }) => [tokens, reusedTokens]),
      [[45, 40]],
    );
    assert.deepEqual(
      fake.prompts.map(({ borders, denseFrom }) => [borders, denseFrom]),
      [1, 2, 3].flatMap(() => [
        [[40], 40],
        [[40, 45], 40],
      ]),
    );
    assert.equal(result.runs, 3);
    // 10 ms of prefill, then the first token of two at 20 tokens a second: measured to 5 ms.
    assert.equal(result.results[0]!.ttftMs, 15);
  });

  it('benches random weights on a GPU only, with random tokens and a forced density', async () => {
    const synthetic = { name: 'llama-3.1-8b', weights: 'q4_k_m' };
    const over = { synthetic, forcedDensity: 0.13, model: { ...model(), path: '' } };
    const error = await fail(bench(over));
    assert.equal(error.code, 'deviceUnavailable');
    const usable = [
      { index: 0, name: 'GPU', computeCapability: '9.0', totalBytes: 8e10, freeBytes: 8e10 },
    ];
    fake.settings.gpus = [1 << 20];
    fake.calls.length = 0;
    jobs = new Jobs({
      cuda: fakeCuda({ usable }),
      addon: () => fake.addon,
      send: (event) => events.push(event),
      now: () => performance.now(),
      version: '1.2.3',
    });
    const result = await run<BenchResult>(bench(over));
    assert.deepEqual(fake.calls, [
      'openSynthetic llama-3.1-8b q4_k_m',
      'createSession',
      'reset',
      'generate',
    ]);
    const { forcedDensity, speculate } = fake.options.at(-1)!;
    assert.deepEqual([forcedDensity, speculate], [0.13, false]);
    assert.ok(fake.prompts.at(-1)!.tokens.every((token) => token >= 0 && token < 256));
    assert.deepEqual(
      [result.synthetic, result.weights, result.forcedDensity, result.device, result.backend],
      [true, 'q4_k_m', 0.13, 'GPU', 'cuda'],
    );
  });

  it('forces a density on a model from a file, too', async () => {
    const result = await run<BenchResult>(bench({ forcedDensity: 0.1 }));
    assert.equal(fake.options.at(-1)!.forcedDensity, 0.1);
    assert.deepEqual([result.synthetic, result.forcedDensity], [false, 0.1]);
    const refused = await fail(bench({ forcedDensity: 1.1 }));
    assert.match(refused.message, /forcedDensity/);
  });

  it('keeps model and session while nothing changes', async () => {
    await run(score());
    await run(score());
    assert.deepEqual(
      fake.calls.filter((call) => call !== 'score'),
      ['openModel model.gguf', 'createSession'],
    );
  });

  it('makes a new session for another size or thread count, a new model for a changed file', async () => {
    await run(score());
    await run(score({ model: { ...model(), threads: 2 } }));
    await run(score({ model: { ...model(), threads: 2, kvCache: 'q8' } }));
    assert.deepEqual(fake.calls.splice(6), ['dispose session', 'createSession', 'score']);
    await run(score({ model: { ...model(), threads: 2 } }));
    fake.calls.splice(6);
    assert.deepEqual(fake.calls.slice(3), ['dispose session', 'createSession', 'score']);
    utimesSync(modelPath, 1, 1);
    await run(score({ model: { ...model(), threads: 2 } }));
    assert.deepEqual(fake.calls.slice(6), [
      'dispose session',
      'dispose model',
      'openModel model.gguf',
      'createSession',
      'score',
    ]);
  });

  it('refuses what does not fit into memory, with the numbers and what would fit', async () => {
    fake.settings.largestContextTokens = 2048;
    const error = await fail(score());
    assert.equal(error.code, 'notEnoughMemory');
    assert.match(error.message, /context of 4000 tokens needs .*are available/);
    assert.equal(
      error.action,
      'Use a context of 2048 tokens or less, or keep the KV cache as q8 with a context of 3072 or ' +
        'less, or free memory.',
    );
    fake.settings.largestContextTokens = 3000;
    assert.match(
      (await fail(score())).action,
      /3000 tokens or less, or keep the KV cache as q8, or/,
    );
    const q8 = { ...model(), kvCache: 'q8' as const };
    fake.settings.largestContextTokens = 2000;
    assert.match(
      (await fail(score({ model: q8 }))).action,
      /^Use .* 3000 tokens .*, or free memory/,
    );
    fake.settings.largestContextTokens = 0;
    assert.match((await fail(score())).action, /smaller model/);
    assert.ok(!fake.calls.includes('createSession'));
  });

  it('names missing, foreign and forbidden choices of a model', async () => {
    const of = async (over: object) => fail(score({ model: { ...model(), ...over } }));
    assert.equal((await of({ path: '' })).code, 'noModel');
    assert.equal((await of({ path: '/none/such.gguf' })).code, 'modelNotFound');
    assert.equal((await of({ path: folder })).code, 'notGguf');
    assert.equal((await of({ backend: 'cuda' })).code, 'deviceUnavailable');
    assert.equal((await of({ contextTokens: 10_000 })).code, 'invalidParams');
    assert.equal((await of({ contextTokens: 1000 })).code, 'promptTooLong');
    assert.equal((await of({ threads: -1 })).code, 'invalidParams');
    assert.match((await of({ kvCache: 'q4' })).message, /kvCache = q4 .* bf16, q8/);
    utimesSync(modelPath, 1, 1);
    fake.settings.openError = Object.assign(new Error('cut off'), {
      code: 'truncatedGguf',
      action: 'Fetch it again.',
    });
    assert.deepEqual(await of({}), {
      code: 'truncatedGguf',
      message: 'cut off',
      action: 'Fetch it again.',
    });
  });

  it('checks parameters before anything is loaded', async () => {
    const params = { ...defaultParams, epsilon: 1 };
    assert.match((await fail(score({ params }))).message, /epsilon = 1 .* below 1/);
    const zero = { ...defaultParams, policy: 'mass' as const, alpha: 0 };
    assert.match((await fail(score({ params: zero }))).message, /alpha = 0 .* above 0/);
    assert.deepEqual(fake.calls, []);
  });

  it('cancels native work and answers as cancelled', async () => {
    fake.settings.hang = true;
    jobs.handle(score());
    while (!fake.calls.includes('score')) await wait(1);
    jobs.handle({ type: 'cancel', ...address('other') });
    jobs.handle({ type: 'cancel', ...address() });
    assert.equal(((await ended()) as ErrorEvent).error.code, 'cancelled');
    assert.equal(fake.calls.at(-1), 'cancel');
  });

  it('answers at once when loading is cancelled, and keeps what was loaded', async () => {
    fake.settings.loadMs = 100;
    jobs.handle(score());
    while (!fake.calls.includes('createSession')) await wait(1);
    jobs.handle({ type: 'cancel', ...address() });
    const started = performance.now();
    assert.equal(((await ended()) as ErrorEvent).error.code, 'cancelled');
    assert.ok(performance.now() - started < 60);
    await run(score());
    assert.equal(fake.calls.filter((call) => call === 'createSession').length, 1);
  });

  it('keeps a defect apart from errors that users can act on', async () => {
    fake.settings.openError = new Error('null is not an object');
    const error = await fail(score());
    assert.equal(error.code, 'internal');
    assert.match(error.message, /null is not an object/);
    assert.ok(events.some((event) => event.type === 'log' && /jobs\.test/.test(event.text)));
  });

  it('reports machine, model and memory', async () => {
    const result = await run<DoctorResult>(doctor());
    assert.equal(result.version, '1.2.3');
    assert.deepEqual(result.devices[0], {
      name: 'cpu',
      usable: true,
      reason: '3 cores, avx2 attention kernel',
    });
    assert.equal(result.model!.architecture, 'llama');
    assert.ok(!('chatTemplate' in result.model!));
    assert.equal(result.memory[0]!.contextTokens, 8192);
    assert.deepEqual(result.problems, []);
  });

  it('reports problems instead of failing: no addon, no usable model', async () => {
    fake.settings.openError = Object.assign(new Error('foreign'), {
      code: 'notGguf',
      action: 'A.',
    });
    assert.equal((await run<DoctorResult>(doctor())).problems[0]!.code, 'notGguf');
    jobs = new Jobs({
      cuda: fakeCuda(),
      addon: () => {
        throw Object.assign(new Error('bad ELF'), { code: 'addonFailedToLoad', action: 'Build.' });
      },
      send: (event) => events.push(event),
      now: () => 0,
      version: '1',
    });
    const result = await run<DoctorResult>(doctor());
    assert.equal(result.devices[0]!.usable, false);
    assert.match(result.devices[0]!.reason, /bad ELF/);
    assert.deepEqual(result.problems, [
      { code: 'addonFailedToLoad', message: 'bad ELF', action: 'Build.' },
    ]);
  });
});
