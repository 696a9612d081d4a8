import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readText } from '../../../extension/cli/readText';
import { run, type Parts } from '../../../extension/cli/run';
import type { Engine, JobOptions } from '../../../extension/engine/client';
import { EngineError } from '../../../extension/engine/errors';
import { defaultParams } from '../../../extension/engine/params';
import type { BenchResult, DoctorResult, Event } from '../../../extension/engine/protocol';
import { defaultSampling } from '../../../extension/engine/sampling';

/** Stands for the engine: answers with `results`, keeps what it was asked. */
class FakeEngine {
  readonly asked: [string, Record<string, unknown>][] = [];
  disposed = 0;
  events: Partial<Event>[] = [];

  constructor(readonly results: Record<string, unknown>) {}

  private job(name: string, body: Record<string, unknown>, options: JobOptions) {
    this.asked.push([name, body]);
    for (const event of this.events) options.onEvent?.(event as Event);
    const result = this.results[name];
    return { result: result instanceof Error ? Promise.reject(result) : Promise.resolve(result) };
  }

  ask = (body: object, options: JobOptions) => this.job('ask', { ...body }, options);
  pack = (body: object, options: JobOptions) => this.job('pack', { ...body }, options);
  score = (body: object, options: JobOptions) => this.job('score', { ...body }, options);
  calibrate = (body: object, options: JobOptions) => this.job('calibrate', { ...body }, options);
  bench = (body: object, options: JobOptions) => this.job('bench', { ...body }, options);
  save = (body: object, options: JobOptions) => this.job('save', { ...body }, options);
  doctor = (body: object, options: JobOptions) => this.job('doctor', { ...body }, options);
  dispose = async () => void this.disposed++;
}

const stats = {
  model: 'fake',
  backend: 'cpu',
  device: 'CPU',
  fallback: '',
  speculation: null,
  times: null,
  params: { ...defaultParams },
  promptTokens: 100,
  reusedTokens: 40,
  computedTokens: 60,
  ttftMs: 110,
  phases: { queueMs: 1, loadMs: 2, scanMs: 3, tokenizeMs: 4, prefillMs: 90, firstTokenMs: 10 },
  prefillTokensPerSecond: 600,
  decodeTokensPerSecond: 20,
  kvCache: 'bf16',
  thinking: null as { ms: number; tokens: number } | null,
  attention: {
    density: 0.6,
    sparseDensity: 0.2,
    coverageMean: 0.97,
    coverageP5: 0.91,
    layers: [{ density: 0.2, heads: [0.1, 0.3] }],
  },
  memory: { weightBytes: 1, kvBytes: 2, scratchBytes: 3, fixedBytes: 0 },
};
const answer = {
  answer: 'It retries twice.',
  thinking: '',
  citations: [
    {
      path: 'src/retry.ts',
      quote: 'const retries = 2',
      startLine: 3,
      endLine: 3,
      status: 'verified',
      absolutePath: '/w/src/retry.ts',
    },
    { path: 'no.ts', quote: 'x y', startLine: 0, endLine: 0, status: 'invented', absolutePath: '' },
  ],
  files: { full: 2, path: 1, out: 0 },
  stopReason: 'end',
  stats,
};
const doctor: DoctorResult = {
  version: '1',
  platform: 'linux-x64',
  devices: [{ name: 'cpu', usable: true, reason: 'avx2' }],
  cpuFeatures: ['avx2'],
  kernels: { attention: 'avx2', linear: 'ggml' },
  memory: [],
  sessions: { folder: '/c/longsight/sessions', files: 2, bytes: 3 * 2 ** 30 },
  problems: [],
};

const bench: BenchResult = {
  model: 'Llama 3.1 8B shape',
  weights: 'q4_k_m',
  synthetic: true,
  forcedDensity: 0.13,
  backend: 'cuda',
  device: 'NVIDIA H100 80GB HBM3',
  kvCache: 'bf16',
  params: defaultParams,
  runs: 3,
  contextTokens: 131_137,
  estimatedBytes: 25 * 2 ** 30,
  results: [
    {
      tokens: 131_072,
      reusedTokens: 0,
      ttftMs: 4512.3,
      prefillMs: 4500.1,
      tokensPerSecond: 29_126,
      density: 0.13,
      sparseDensity: 0.13,
      coverageMean: 0.2,
      decodeTokensPerSecond: 80,
      speculation: { draftedTokens: 10, acceptedTokens: 7 },
      times: {
        linearMs: 2400,
        expandMs: 90,
        stage1Ms: 80,
        stage2Ms: 70,
        stage3Ms: 1600,
        auditMs: 5.25,
        restMs: 200,
      },
      peakBytes: 24.5 * 2 ** 30,
    },
  ],
};

describe('cli/run', () => {
  let engine: FakeEngine;
  let out: string;
  let err: string;
  let parts: Parts;

  beforeEach(() => {
    out = '';
    err = '';
    engine = new FakeEngine({
      ask: answer,
      pack: {
        files: [{ path: 'a', tokens: 5, tier: 'full', reason: 'source', extra: 1 }],
        totalTokens: 5,
      },
      score: { tokens: 10, nll: 1, perplexity: Math.E, density: 1, sparseDensity: null },
      bench,
      calibrate: {
        path: '/m.gguf.calibration.json',
        target: { coverage: null, kl: 0.01 },
        textTokens: [10, 20],
        plain: { density: 0.2, coverage: 0.95 },
        chosen: { density: 0.15, coverage: 0.94 },
        kl: 0.009,
      },
      doctor,
      save: { saved: true, reason: '', tokens: 5, bytes: 100 },
    });
    parts = {
      terminal: {
        stdout: (text) => (out += text),
        stderr: (text) => (err += text),
        rewritable: false,
        env: {},
        cwd: '/w',
      },
      signal: new AbortController().signal,
      version: '0.1.0',
      startEngine: () => engine as unknown as Engine,
      findModel: async () => '/models/found.gguf',
    };
  });

  const cli = (...argv: string[]) => run(argv, parts);
  const ask = (...more: string[]) => cli('ask', '--workspace', '.', '--question', 'Why?', ...more);
  const body = () => engine.asked[0]![1];

  it('prints the version and help without an engine', async () => {
    assert.equal(await cli('--version'), 0);
    assert.equal(out, '0.1.0\n');
    for (const argv of [['--help'], ['help'], ['ask', '--help'], ['help', 'bench']]) {
      out = '';
      assert.equal(await cli(...argv), 0);
      assert.match(out, /^Usage: longsight/);
    }
    assert.match(out, /--decode N/);
    assert.match(out, /--window-tokens N/);
    assert.match(out, /--policy P .* dense, peak, mass, paper \(peak\)/);
    assert.deepEqual(engine.asked, []);
  });

  it('says which command or option was probably meant', async () => {
    const said: [string[], string][] = [
      [['akk'], 'There is no command akk. Did you mean ask?'],
      [['help', 'evalaute'], 'There is no command evalaute. Did you mean evaluate?'],
      [['pakc', '--json'], 'Did you mean pack?'],
      [['frobnicate'], 'There is no command frobnicate. See'],
      [['pack', '--workspac', '.'], "Unknown option '--workspac'. Did you mean --workspace?"],
      [['ask', '--max_tokens', '3'], 'Did you mean --max-tokens?'],
      [['ask', '--context', '1'], 'Did you mean --context-tokens?'],
      [['ask', '--frobnicate'], "Unknown option '--frobnicate'. See"],
      [['ask', '--question', '--json'], '--question=VALUE'],
    ];
    for (const [argv, sentence] of said) {
      err = '';
      assert.equal(await cli(...argv), 2);
      assert.ok(err.includes(sentence), err);
    }
    assert.deepEqual(engine.asked, []);
  });

  it('takes values that begin with a dash', async () => {
    assert.equal(await ask('--device', '-1', '--question', '- why?', '--logit-bias', '5=-2'), 0);
    assert.equal(body()['question'], '- why?');
    assert.equal((body()['model'] as { device: number }).device, -1);
    assert.equal(await ask('--max-tokens', '-1'), 2);
    assert.match(err, /--max-tokens -1 is not an integer from 1/);
  });

  it('reads no text without end, and stops reading when told to', async () => {
    const { signal } = parts;
    await assert.rejects(readText('/dev/zero', signal, 100_000), {
      code: 'unreadableFile',
      message: 'The text /dev/zero has more than 100000 bytes.',
    });
    const file = path.join(mkdtempSync(path.join(os.tmpdir(), 'longsight-text-')), 'a.txt');
    writeFileSync(file, 'a'.repeat(100_000));
    assert.equal((await readText(file, signal, 100_000)).length, 100_000);
    rmSync(path.dirname(file), { recursive: true });
    await assert.rejects(readText(file, signal), { code: 'unreadableFile', message: /ENOENT/ });

    const stop = new AbortController();
    setImmediate(() => stop.abort());
    parts.signal = stop.signal;
    assert.equal(await cli('score', '--text', '/dev/zero'), 130);
    assert.deepEqual(engine.asked, []);
  });

  it('lets no control character of an answer, a path or a file reach the terminal', async () => {
    const escapes = 'a\x1b]0;owned\x07b\u009b31m\x7f\r\n\tc\rd';
    const shown = 'a\u241b]0;owned\u2407b\\u009b31m\\u007f\n\tc\u240dd';
    const hostile = {
      ...answer,
      answer: escapes,
      citations: [{ ...answer.citations[0]!, path: 'x\x1b[2J.ts', quote: '\x1b[8mq' }],
    };
    engine.results['ask'] = hostile;
    engine.results['pack'] = {
      files: [{ path: '\u202egpj.\x1b[2J', tokens: 5, tier: 'full', reason: 'source' }],
      totalTokens: 5,
      text: escapes,
    };
    parts.terminal.rewritable = true;
    const isHarmless = (text: string) =>
      !/[\0-\x08\x0b-\x1f\x7f-\x9f\u202e]/.test(text.replaceAll(/\x1b\[(2m|22m|2K)|\r/g, ''));
    engine.events = [
      { type: 'thinking', text: escapes, elapsedMs: 1 },
      { type: 'token', text: escapes.slice(0, 5) },
    ];
    assert.equal(await ask(), 0);
    assert.ok(out.startsWith(`${shown}\n\nCitations:\n`), JSON.stringify(out));
    assert.ok(isHarmless(out), JSON.stringify(out));
    assert.ok(err.includes(`\x1b[2m${shown}\x1b[22m`), JSON.stringify(err));
    assert.ok(isHarmless(err), JSON.stringify(err));

    out = '';
    assert.equal(await cli('pack', '--workspace', '.', '--text'), 0);
    assert.ok(out.includes(shown) && out.includes('\\u202egpj.\\u001b[2J'), JSON.stringify(out));
    assert.ok(isHarmless(out), JSON.stringify(out));

    out = '';
    assert.equal(await ask('--json'), 0);
    assert.equal(JSON.parse(out).answer, escapes);
    assert.ok(isHarmless(out), JSON.stringify(out));

    out = '';
    err = '';
    engine.results['ask'] = new EngineError('folderNotFound', `No ${escapes}.`, 'Go.');
    assert.equal(await ask('--json'), 1);
    assert.equal(JSON.parse(out).error.message, `No ${escapes}.`);
    assert.ok(isHarmless(out) && isHarmless(err), JSON.stringify(err));
  });

  it('asks with the documented defaults', async () => {
    assert.equal(await ask(), 0);
    assert.deepEqual(body(), {
      workspace: {
        folders: [{ name: 'w', path: '/w' }],
        unsaved: {},
        budgetTokens: 0,
        strict: false,
      },
      question: 'Why?',
      chat: [],
      answerTokens: 512,
      sampling: { ...defaultSampling },
      thinking: false,
      params: { ...defaultParams },
      savedSession: '',
      confirmAbovePrefillMs: 0,
      model: {
        path: '/models/found.gguf',
        backend: 'auto',
        device: -1,
        threads: 0,
        contextTokens: 0,
        kvCache: 'bf16',
        calibration: 'auto',
      },
    });
    assert.equal(engine.disposed, 1);
  });

  it('hands every flag on', async () => {
    const flags =
      '--model m.gguf --backend cpu --device 1 --threads 3 --context-tokens 4096 --kv-cache q8 ' +
      '--calibration off --max-tokens 7 --temperature .5 ' +
      '--top-p 0.9 --top-k 40 --min-p 0.05 --repetition-penalty 1.1 --seed 42 --logit-bias 7=1.5 ' +
      '--logit-bias 8=-inf --strict --budget 1000 --policy peak --alpha 0.5 --epsilon 1e-2 ' +
      '--score-dims all --sample-stride 4 --segment-rows 512 --window-tokens 128 --window-fraction 0.1 ' +
      '--sink-tokens 0 --dense-below-tokens 1024 --max-list-share 1 --audit-rows 4';
    assert.equal(await ask(...flags.split(' ')), 0, err);
    const asked = body() as { workspace: object; sampling: object; params: object; model: object };
    assert.deepEqual(asked.model, {
      path: '/w/m.gguf',
      backend: 'cpu',
      device: 1,
      threads: 3,
      contextTokens: 4096,
      kvCache: 'q8',
      calibration: 'off',
    });
    assert.deepEqual(asked.sampling, {
      temperature: 0.5,
      topP: 0.9,
      topK: 40,
      minP: 0.05,
      repetitionPenalty: 1.1,
      logitBias: [
        [7, 1.5],
        [8, -Infinity],
      ],
      seed: 42,
      stop: [],
    });
    assert.deepEqual(asked.params, {
      policy: 'peak',
      alpha: 0.5,
      epsilon: 0.01,
      scoreDims: 'all',
      sampleStride: 4,
      segmentRows: 512,
      windowTokens: 128,
      windowFraction: 0.1,
      sinkTokens: 0,
      denseBelowTokens: 1024,
      maxListShare: 1,
      auditRows: 4,
    });
    assert.deepEqual(asked.workspace, {
      folders: [{ name: 'w', path: '/w' }],
      unsaved: {},
      budgetTokens: 1000,
      strict: true,
    });
  });

  it('restores and saves a session where --session says', async () => {
    const places = () =>
      engine.asked.map(([kind, asked]) => [kind, asked]) as [string, Record<string, string>][];
    assert.equal(await ask('--session', 'my.session'), 0, err);
    assert.equal(places()[0]![1].savedSession, '/w/my.session');
    assert.deepEqual(places()[1], ['save', { file: '/w/my.session', mostFolderBytes: 0 }]);

    engine.asked.length = 0;
    parts.terminal.env = { XDG_CACHE_HOME: '/cache' };
    assert.equal(await ask('--session', 'auto'), 0, err);
    const { file, mostFolderBytes } = places()[1]![1];
    assert.equal(file, places()[0]![1].savedSession);
    assert.match(file!, /^\/cache\/longsight\/sessions\/[0-9a-f]{32}\.session$/);
    assert.equal(mostFolderBytes, 8e9);

    engine.asked.length = 0;
    assert.equal(await ask(), 0);
    assert.deepEqual(
      places().map(([kind]) => kind),
      ['ask'],
    );
  });

  it('prints the answer and fails when the session cannot be saved', async () => {
    engine.results.save = new EngineError('writeFailed', 'Disk full.', 'Free some space.');
    assert.equal(await ask('--session', 'my.session', '--json'), 1);
    assert.equal(out.split('\n').length, 2);
    assert.equal(JSON.parse(out).answer, answer.answer);
    assert.match(err, /not saved\. Disk full\. Free some space\./);
  });

  it('takes a bias as JSON too', async () => {
    const bias = () => (body() as { sampling: { logitBias: unknown } }).sampling.logitBias;
    const expected = [
      [15043, -2.5],
      [12, -Infinity],
    ];
    assert.equal(await ask('--logit-bias', '{"15043": -2.5, "12": "-inf"}'), 0, err);
    assert.deepEqual(
      (bias() as [number, number][]).sort((a, b) => b[0] - a[0]),
      expected,
    );
    engine.asked.length = 0;
    assert.equal(await ask('--logit-bias', '[[15043, -2.5], [12, false]]'), 0, err);
    assert.deepEqual(bias(), expected);
  });

  it('names a wrong flag of sampling with its range', async () => {
    const wrong: [string[], RegExp][] = [
      [['--top-p', '0'], /--top-p: topP = 0 is outside its range: above 0, at most 1/],
      [['--top-k=-1'], /--top-k: topK = -1 is outside its range: 0 to/],
      [['--top-k', '1.5'], /not an integer/],
      [['--min-p', '2'], /minP = 2 .* 0 to 1/],
      [['--repetition-penalty', '0'], /repetitionPenalty = 0 .* above 0, at most 10/],
      [['--temperature', 'hot'], /temperature = hot .* 0 to 5/],
      [['--seed', '4294967296'], /seed = 4294967296 .* 4294967295/],
      [['--logit-bias', '5'], /--logit-bias 5 is neither TOKEN=BIAS nor JSON/],
      [['--logit-bias', '{"a"'], /neither/],
      [['--logit-bias', '[1, 2]'], /neither/],
      [['--logit-bias', 'x=1'], /NaN is not the id of a token/],
      [['--logit-bias', '5=1001'], /token 5 = 1001 .* -1000 to 1000/],
      [['--logit-bias', '5=inf'], /token 5/],
    ];
    for (const [flags, message] of wrong) {
      err = '';
      assert.equal(await ask(...flags), 2, flags.join(' '));
      assert.match(err, message);
    }
  });

  it('prints exactly one JSON object of the documented shape', async () => {
    engine.events = [{ type: 'token', text: 'It ' } as Partial<Event>];
    assert.equal(await ask('--json'), 0);
    assert.equal(out.split('\n').length, 2);
    const { citations, ...rest } = JSON.parse(out);
    assert.deepEqual(citations, [
      { path: 'src/retry.ts', startLine: 3, endLine: 3, status: 'verified' },
      { path: 'no.ts', startLine: 0, endLine: 0, status: 'invented' },
    ]);
    assert.deepEqual(rest, { answer: answer.answer, thinking: '', files: answer.files, stats });
    out = '';
    assert.equal(await cli('pack', '--workspace', '.', '--json'), 0);
    assert.deepEqual(JSON.parse(out), {
      files: [{ path: 'a', tokens: 5, tier: 'full', reason: 'source' }],
      totalTokens: 5,
    });
  });

  it('streams the answer, then citations; statistics go to standard error', async () => {
    engine.events = [
      { type: 'phase', phase: 'prefill' },
      { type: 'token', text: 'It ' },
      { type: 'token', text: 'retries' },
    ] as Partial<Event>[];
    assert.equal(await ask(), 0);
    assert.ok(out.startsWith('It retries twice.\n'), out);
    assert.match(out, /verified {2}src\/retry\.ts:3 "const retries = 2"/);
    assert.match(out, /invented {2}no\.ts "x y"/);
    assert.match(err, /Prefill/);
    assert.match(err, /TTFT .* = queue .* first token/);
    assert.match(err, /density 60%, sparse rows 20%, coverage 97\.0%/);
  });

  describe('with a model that thinks', () => {
    beforeEach(() => {
      engine = new FakeEngine({
        ask: {
          ...answer,
          thinking: 'Let me see.',
          stats: { ...stats, thinking: { ms: 4100, tokens: 31 } },
        },
      });
      engine.events = [
        { type: 'phase', phase: 'thinking' },
        { type: 'thinking', text: 'Let me', elapsedMs: 1 },
        { type: 'thinking', text: ' see.', elapsedMs: 2 },
        { type: 'token', text: 'It ' },
        { type: 'phase', phase: 'decode' },
      ] as Partial<Event>[];
    });

    it('writes the thought dim on a terminal, never among the answer', async () => {
      parts.terminal.rewritable = true;
      assert.equal(await ask('--thinking'), 0);
      assert.equal(body().thinking, true);
      assert.ok(out.startsWith('It retries twice.\n'), out);
      assert.ok(err.includes('\x1b[2mLet me\x1b[22m\x1b[2m see.\x1b[22m\n\n'), err);
      assert.match(err, /Thought +31 tokens in 4\.1 s, after the first token/);
    });

    it('writes it elsewhere only when told to, without control characters', async () => {
      assert.equal(await ask('--thinking'), 0);
      assert.ok(!err.includes('Let me'), err);
      err = '';
      assert.equal(await ask('--thinking', '--show-thinking'), 0);
      assert.ok(err.includes('Let me see.\n\n') && !err.includes('\x1b'), err);
    });

    it('gives it a field of its own in JSON', async () => {
      assert.equal(await ask('--thinking', '--json'), 0);
      const { thinking, answer: text, stats: counted } = JSON.parse(out);
      assert.deepEqual([thinking, text], ['Let me see.', 'It retries twice.']);
      assert.deepEqual(counted.thinking, { ms: 4100, tokens: 31 });
      assert.ok(!err.includes('Let me'), err);
    });
  });

  it('calls wrong usage wrong, names value and range, and starts nothing', async () => {
    const wrong: [string[], RegExp][] = [
      [[], /No command/],
      [['frobnicate'], /no command frobnicate/],
      [['ask'], /--workspace is missing/],
      [['ask', '--workspace', '.'], /--question is missing/],
      [['ask', '--workspace', '.', '--question', ' '], /--question is empty/],
      [['pack', '--workspace'], /--workspace/],
      [['pack', '--workspace', '.', '--frob'], /--frob/],
      [['pack', '--workspace', '.', 'stray'], /stray/],
      [['pack', '--workspace', '.', '--strict'], /--strict/],
      [['pack', '--workspace', '.', '--json=1'], /--json/],
      [['pack', '--workspace', '.', '--epsilon', '1'], /epsilon = 1 .*at least 0, below 1/],
      [['pack', '--workspace', '.', '--epsilon', 'x'], /epsilon = x /],
      [['pack', '--workspace', '.', '--segment-rows', '300'], /segmentRows = 300 .*256 to 8192/],
      [['pack', '--workspace', '.', '--policy', 'sparse'], /policy = sparse .*dense, peak, mass/],
      [['pack', '--workspace', '.', '--threads', '-1'], /threads/],
      [['pack', '--workspace', '.', '--threads', '0x10'], /threads 0x10 .*0 to 1024/],
      [['pack', '--workspace', '.', '--backend', 'tpu'], /tpu .*auto, cuda, cpu/],
      [['pack', '--workspace', '.', '--device', 'cuda'], /--device cuda is not an integer from -1/],
      [['pack', '--workspace', '.', '--kv-cache', 'q4'], /q4 .*bf16, q8/],
      [['bench'], /--tokens is missing/],
      [['bench', '--prefix', '100'], /--prefix is given without --new/],
      [['bench', '--new', '100', '--tokens', '5'], /--new is given without --prefix/],
      [['bench', '--tokens', '5', '--weights', 'bf16'], /--weights .* without --synthetic/],
      [['bench', '--tokens', '5', '--synthetic', 'x', '--backend', 'cpu'], /needs a GPU/],
      [['bench', '--tokens', '5', '--synthetic', 'x', '--force-density', '0'], /above 0/],
      [['bench', '--tokens', '5', '--synthetic', 'x', '--text', 'a'], /--text and --synthetic/],
      [['bench', '--tokens', '100,,200'], /--tokens ""/],
      [['bench', '--tokens', '100,0'], /--tokens 0 .*from 1/],
      [['score'], /--text is missing/],
      [['score', '--text', 'x', '--tail-policy', 'odd'], /odd .*dense, same/],
      [['score', '--text', 'x', '--against', 'peak'], /--against peak/],
      [['score', '--text', 'x', '--rope-base-scale', '0'], /0 .*1 to 1000/],
    ];
    for (const [argv, message] of wrong) {
      out = '';
      err = '';
      assert.equal(await cli(...argv), 2, argv.join(' '));
      assert.match(err, message, argv.join(' '));
      assert.equal(out, '');
    }
    assert.deepEqual(engine.asked, []);
    assert.equal(await ask('--temperature', '9', '--json'), 2);
    assert.match(JSON.parse(out).error.message, /temperature = 9 .*0 to 5/);
  });

  it('ends with 1 and a typed error, as JSON too', async () => {
    const failing = new FakeEngine({ ask: new EngineError('overBudget', 'Too much.', 'Less.') });
    parts.startEngine = () => failing as unknown as Engine;
    assert.equal(await ask('--json'), 1);
    assert.deepEqual(JSON.parse(out), {
      error: { code: 'overBudget', message: 'Too much.', action: 'Less.' },
    });
    assert.match(err, /longsight: Too much\. Less\./);
    assert.equal(failing.disposed, 1);
  });

  it('ends with 130 when interrupted', async () => {
    const abort = new AbortController();
    parts.signal = abort.signal;
    const stopped = new FakeEngine({ ask: new EngineError('cancelled', 'Cancelled.', '') });
    parts.startEngine = () => stopped as unknown as Engine;
    abort.abort();
    assert.equal(await ask(), 130);
  });

  it('takes the model from the flag, the environment, the models folder, in this order', async () => {
    parts.terminal.env = { LONGSIGHT_MODEL: '/env.gguf' };
    await ask('--model', '/flag.gguf');
    await ask();
    parts.terminal.env = {};
    await ask();
    const paths = engine.asked.map(([, { model }]) => (model as { path: string }).path);
    assert.deepEqual(paths, ['/flag.gguf', '/env.gguf', '/models/found.gguf']);
    parts.findModel = async () => undefined;
    out = '';
    assert.equal(await ask('--json'), 1);
    assert.equal(JSON.parse(out).error.code, 'noModel');
  });

  it('takes --policy paper as a preset that other flags change', async () => {
    assert.equal(await ask('--policy', 'paper', '--sample-stride', '10'), 0);
    const { policy, sampleStride, windowFraction, segmentRows } = body().params as Record<
      string,
      unknown
    >;
    assert.deepEqual([policy, sampleStride, windowFraction, segmentRows], ['mass', 10, 0.08, 0]);
  });

  it('calibrates on every text that is named', async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-cli-'));
    const files = ['a', 'b'].map((name) => path.join(folder, name));
    for (const file of files) writeFileSync(file, file);
    const texts = files.flatMap((file) => ['--text', file]);
    assert.equal(await cli('calibrate', ...texts, '--tokens', '100', '--kl', '.01'), 0);
    assert.deepEqual(
      (body().texts as Uint8Array[]).map((text) => Buffer.from(text).toString()),
      files,
    );
    assert.deepEqual([body().coverage, body().kl, body().tokens], [null, 0.01, 100]);
    assert.match(out, /One epsilon .*20%.*\n.*By head .*15%.*KL 9\.000e-3/);
    assert.match(out, /Written +\/m\.gguf\.calibration\.json/);
    assert.equal(await cli('calibrate', ...texts, '--kl', '1', '--coverage', '.9'), 2);
    assert.match(err, /--coverage and --kl are both given/);
    assert.equal(await cli('calibrate'), 2);
    assert.match(err, /--text is missing/);
    rmSync(folder, { recursive: true });
  });

  it('scores a file as bytes, and names one that cannot be read', async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-cli-'));
    const file = path.join(folder, 'text');
    writeFileSync(file, Buffer.from([0xff, 0x41]));
    const flags = '--tokens 100 --tail 10 --tail-policy same --against dense --rope-base-scale 4';
    assert.equal(await cli('score', '--text', file, ...flags.split(' ')), 0);
    const { text, tokens, tail, tailPolicy, against, ropeBaseScale } = body();
    assert.deepEqual([...(text as Uint8Array)], [0xff, 0x41]);
    assert.deepEqual(
      [tokens, tail, tailPolicy, against, ropeBaseScale],
      [100, 10, 'same', 'dense', 4],
    );
    assert.equal(await cli('score', '--text', path.join(folder, 'none'), '--json'), 1);
    assert.equal(JSON.parse(out.trim().split('\n').at(-1)!).error.code, 'unreadableFile');
    rmSync(folder, { recursive: true });
  });

  it('benches random weights, and says that the density was forced', async () => {
    const line = 'bench --synthetic llama-3.1-8b --weights q4_k_m --tokens 131072 --runs 3';
    await cli(
      ...line.split(' '),
      ...'--force-density .13 --decode 64 --prefix 10 --new 2'.split(' '),
    );
    const { synthetic, forcedDensity, prefix, runs, speculate, text } = body();
    assert.deepEqual(synthetic, { name: 'llama-3.1-8b', weights: 'q4_k_m' });
    assert.deepEqual([forcedDensity, runs, speculate], [0.13, 3, false]);
    assert.deepEqual(prefix, { tokens: 10, newTokens: 2 });
    assert.equal((text as Uint8Array).length, 0);
    assert.match(out, /^Llama 3\.1 8B shape, random q4_k_m weights on NVIDIA H100 80GB HBM3, bf16/);
    assert.match(
      out,
      /medians of 3\nFORCED density 13% where attention is sparse, since random weights have no/,
    );
    assert.match(out, /131,072 +- +4\.512 s +4\.500 s .* 12\.50 ms /);
    assert.match(out, /linear +expand +stage 1 .*\n131,072 +2400\.0 ms .* 5\.25 ms +200\.0 ms/);
    assert.match(out, /7 of 10 guessed tokens were right \(70%\)/);
    assert.match(out, /25\.0 GiB estimated for a context of 131,137, 24\.5 GiB at the peak/);
  });

  it('says once, and not in the result, why a GPU is not used', async () => {
    const fallback = 'The NVIDIA driver is 535.1; the GPU needs 580 or newer.';
    const place = { type: 'place', backend: 'cpu', device: 'CPU', fallback };
    engine.events = [place, place] as unknown as Event[];
    await cli('bench', '--tokens', '100', '--json');
    assert.equal(err.split(`On the CPU: ${fallback}\n`).length, 2, err);
    assert.ok(!out.includes('535.1'));
  });

  it('benches generated words that repeat, and says so', async () => {
    await cli('bench', '--tokens', '100,2000', '--decode', '8');
    await cli('bench', '--tokens', '100,2000');
    const [first, second] = engine.asked.map(([, asked]) => asked.text as Uint8Array);
    assert.ok(first!.length >= 16_000);
    assert.deepEqual(first, second);
    assert.deepEqual(body().tokenCounts, [100, 2000]);
    assert.equal(body().decodeTokens, 8);
    assert.match(err, /generated words/);
  });

  it('examines the machine without a model, and fails only when no device is usable', async () => {
    parts.findModel = async () => undefined;
    assert.equal(await cli('doctor', '--json'), 0);
    assert.equal(body().model, null);
    assert.equal(JSON.parse(out).problems[0].code, 'noModel');
    const broken = new FakeEngine({
      doctor: {
        ...doctor,
        devices: [{ name: 'cpu', usable: false, reason: 'bad ELF' }],
        problems: [{ code: 'addonFailedToLoad', message: 'bad ELF.', action: 'Build it.' }],
      },
    });
    parts.startEngine = () => broken as unknown as Engine;
    out = '';
    assert.equal(await cli('doctor'), 1);
    assert.match(out, /Device cpu +not usable: bad ELF/);
    assert.match(out, /Problem +bad ELF\. Build it\./);
  });
});
