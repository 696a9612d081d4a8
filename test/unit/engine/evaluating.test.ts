import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { EvaluationResult } from '../../../extension/engine/evaluation';
import { Jobs } from '../../../extension/engine/jobs';
import { defaultParams } from '../../../extension/engine/params';
import { chance, plantValues } from '../../../extension/engine/probing';
import type { EvaluateRequest, Event } from '../../../extension/engine/protocol';
import { FakeAddon, fakeCuda } from './fakeAddon';

const lines = (count: number) =>
  Array.from({ length: count }, (_, i) => `line ${i} of a text\n`).join('');

describe('engine/evaluating', () => {
  let folder: string;
  let fake: FakeAddon;
  let events: Event[];
  let jobs: Jobs;

  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-evaluating-'));
    writeFileSync(path.join(folder, 'model.gguf'), 'x');
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

  const setting = (epsilon: number) => ({
    policy: 'peak',
    params: { ...defaultParams, epsilon },
  });
  const request = (over: Partial<EvaluateRequest> = {}): EvaluateRequest => ({
    type: 'evaluate',
    sessionId: 's',
    requestId: 'r',
    model: {
      path: path.join(folder, 'model.gguf'),
      backend: 'auto',
      device: -1,
      threads: 0,
      contextTokens: 0,
      kvCache: 'bf16',
    },
    texts: [
      { name: 'a', bytes: Buffer.from(lines(300)) },
      { name: 'b', bytes: Buffer.from(lines(400)) },
    ],
    lengths: [
      { tokens: 1000, ropeBaseScale: 1 },
      { tokens: 3000, ropeBaseScale: 2 },
    ],
    settings: [setting(0.001), setting(0.01)],
    tails: [64, 500],
    probe: false,
    ...over,
  });
  const run = async (asked: EvaluateRequest): Promise<Event> => {
    events = [];
    jobs.handle(asked);
    while (!['result', 'error'].includes(events.at(-1)?.type ?? '')) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return events.at(-1)!;
  };
  const resultOf = async (asked: EvaluateRequest) => {
    const last = await run(asked);
    assert.equal(last.type, 'result', JSON.stringify(last));
    return (last as unknown as { result: EvaluationResult }).result;
  };

  it('measures dense first, then every setting, each with all tails, longest first', async () => {
    const { rows, probes } = await resultOf(request());
    assert.deepEqual(
      rows.map(({ text, tokens, policy, epsilon, tail }) =>
        [text, tokens, policy, epsilon, tail].join(' '),
      ),
      [
        ...['a 1000', 'b 1000', 'a 3000', 'b 3000'].flatMap((place) =>
          ['dense ', 'peak 0.001', 'peak 0.01'].flatMap((name) =>
            [500, 64].map((tail) => `${place} ${name} ${tail}`),
          ),
        ),
      ],
    );
    assert.deepEqual(probes, []);
    const prompt = fake.prompts[0]!;
    assert.equal(prompt.params.policy, 'dense');
    assert.deepEqual([prompt.borders, prompt.denseFrom], [[500, 1000], 500]);
    assert.deepEqual(fake.prompts[1]!.borders, [936, 1000]);
    // One session a length; each setting begins with an empty cache.
    assert.equal(fake.calls.filter((call) => call === 'createSession').length, 2);
    assert.equal(fake.calls.filter((call) => call === 'reset').length, 12);
    assert.ok(
      fake.options.filter((each) => 'tail' in each).every((each) => each.againstDense === true),
    );
    const row = rows.at(-1)!;
    assert.deepEqual(
      [row.ropeBaseScale, row.kl, row.top1Agreement, row.nll, row.density, row.sparseDensity],
      [2, 0.001, 0.99, 2, 0.5, 0.2],
    );
    assert.deepEqual([row.coverageMean, row.coverageP5, row.prefillMs], [0.97, 0.9, 10]);
  });

  it('says no time for a prefill that took a part over', async () => {
    fake.settings.reusedShare = 0.5;
    const { rows } = await resultOf(request());
    assert.ok(rows.every(({ prefillMs }) => prefillMs === null));
  });

  it('tells each measurement as it comes, and how much is done', async () => {
    const result = await resultOf(request());
    const told = events.filter((event) => event.type === 'evaluated');
    assert.deepEqual(
      told.map(({ part }) => ('row' in part ? part.row : null)),
      result.rows,
    );
    assert.deepEqual(
      told.map(({ done, total }) => `${done}/${total}`),
      result.rows.map((_, i) => `${i + 1}/24`),
    );
    const progress = events.filter(
      (event) => event.type === 'progress' && event.phase === 'prefill',
    ) as { done: number; total: number }[];
    assert.ok(progress.length > 0);
    for (const { done, total } of progress) assert.ok(done > 0 && done <= total * (1 + 1e-9));
    assert.ok(Math.abs(progress.at(-1)!.done - progress.at(-1)!.total) < 1e-6);
  });

  it('plants the same values for all settings and asks for each', async () => {
    const { probes } = await resultOf(request({ probe: true, tails: [100] }));
    // 5 values at 1,000 tokens, 7 at 3,000; 2 texts, 3 settings.
    assert.equal(probes.length, (5 + 7) * 2 * 3);
    const one = probes.filter(
      ({ text, tokens, policy }) => `${text}${tokens}${policy}` === 'a1000dense',
    );
    assert.deepEqual(
      one.map(({ depth }) => Math.round(depth * 10)),
      [1, 3, 5, 7, 9],
    );
    for (const probe of probes) {
      assert.equal(probe.logProbability, -2 * 6);
      assert.equal(probe.chance, chance);
      assert.equal(probe.found, false);
    }
    const told = events.filter((event) => event.type === 'evaluated');
    assert.equal(told.at(-1)!.done, told.at(-1)!.total);
    const alone = await resultOf(request({ probe: true, tails: [] }));
    assert.deepEqual([alone.rows, alone.probes], [[], probes]);
  });

  it('refuses a plan that cannot be run before anything is measured', async () => {
    const refused = async (over: Partial<EvaluateRequest>, message: RegExp) => {
      const last = await run(request(over));
      assert.equal(last.type, 'error');
      assert.match(last.error.message, message);
      assert.equal(last.error.code, 'invalidParams');
      assert.ok(!fake.calls.includes('score'));
    };
    await refused({ texts: [] }, /No texts/);
    await refused({ lengths: [] }, /No lengths/);
    await refused({ tails: [] }, /No tails/);
    await refused({ tails: [1000] }, /tail = 1000 .*2 to 999/);
    await refused({ lengths: [{ tokens: 10, ropeBaseScale: 0 }], tails: [3] }, /ropeBaseScale = 0/);
    await refused({ settings: [setting(2)] }, /epsilon = 2/);
    await refused({ lengths: [{ tokens: 7000, ropeBaseScale: 1 }] }, /text a has \d+ tokens.*7000/);
    const short = { lengths: [{ tokens: 200, ropeBaseScale: 1 }], tails: [64], probe: true };
    await refused(short, /5 lines.*of 200 tokens/);
  });

  it('stops when it is cancelled; what was told stays', async () => {
    fake.settings.afterScores = (count) => {
      if (count === 3) jobs.handle({ type: 'cancel', sessionId: 's', requestId: 'r' });
    };
    const last = await run(request());
    assert.equal(last.type === 'error' && last.error.code, 'cancelled');
    assert.equal(fake.calls.filter((call) => call === 'score').length, 3);
    assert.ok(events.filter((event) => event.type === 'evaluated').length >= 2);
  });
});

describe('engine/probing', () => {
  const model = async () => new FakeAddon().addon.openModel('/m/model.gguf');
  const textOf = (tokens: Int32Array) => Buffer.from(Uint8Array.from(tokens)).toString();

  it('plants whole lines at even depths and asks for every one', async () => {
    const text = Int32Array.from(Buffer.from(lines(2000)));
    const { tokens, values } = await plantValues(await model(), text, 8192);
    assert.equal(values.length, 20);
    const planted = textOf(tokens);
    for (const { depth, asked, valueTokens } of values) {
      const at = Math.round(depth * tokens.length);
      const [, name, value] = /^([A-Z]+_[A-Z]+) = (\d{6})\n/.exec(planted.slice(at))!;
      assert.equal(planted[at - 1], '\n', 'between lines');
      assert.equal(planted.split(name!).length, 2, 'a name stands once');
      assert.ok(textOf(asked).endsWith(`\n${name} = ${value}`));
      assert.equal(valueTokens, 6);
      assert.ok(tokens.length + asked.length <= 8192);
      assert.ok(tokens.length + asked.length > 8192 - 64);
    }
    const depths = values.map(({ depth }) => depth);
    depths.forEach((depth, i) => assert.ok(Math.abs(depth - (i + 0.5) / 20) < 0.02, `${depth}`));
    // Without the lines it is the text.
    assert.ok(lines(2000).startsWith(planted.replace(/^[A-Z]+_[A-Z]+ = \d{6}\n/gm, '')));
  });

  it('repeats itself, and differs by length', async () => {
    const text = Int32Array.from(Buffer.from(lines(2000)));
    const first = await plantValues(await model(), text, 4096);
    assert.deepEqual(await plantValues(await model(), text, 4096), first);
    const longer = await plantValues(await model(), text, 4097);
    assert.notDeepEqual(longer.values[0]!.asked, first.values[0]!.asked);
  });

  it('cuts a text without line ends between characters', async () => {
    const bytes = Buffer.from('äöü'.repeat(1000));
    const { tokens } = await plantValues(await model(), Int32Array.from(bytes), 3000);
    assert.ok(!textOf(tokens.subarray(0, 2900)).includes('\ufffd'));
  });
});
