import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import type { ModelSpec } from '../../../extension/engine/addon';
import {
  calibrationPath,
  findCalibration,
  writeCalibration,
} from '../../../extension/engine/calibration';
import { Jobs } from '../../../extension/engine/jobs';
import { defaultParams } from '../../../extension/engine/params';
import type {
  CalibrateRequest,
  CalibrateResult,
  Event,
  JobRequest,
  ScoreRequest,
} from '../../../extension/engine/protocol';
import { FakeAddon, fakeCuda } from './fakeAddon';

const summary = {
  target: { coverage: null, kl: null },
  textTokens: [4000],
  plain: { density: 0.2, coverage: 0.95 },
  chosen: { density: 0.2, coverage: 0.96 },
  kl: null,
};

describe('engine/calibration', () => {
  let folder: string;
  let model: string;

  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'longsight-calibration-'));
    model = path.join(folder, 'a.gguf');
    writeFileSync(model, 'the bytes of a model');
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const spec = () => ({ path: model, layers: 2, heads: 2 }) as ModelSpec;
  const write = () => writeCalibration(spec(), { ...defaultParams }, summary, [0.1, 0.2, 0.3, 0.4]);

  it('finds beside the model what was written, by layer', async () => {
    assert.equal(await findCalibration(model), null);
    assert.equal(await write(), calibrationPath(model));
    const found = await findCalibration(model);
    assert.deepEqual(found!.file.headEpsilons, [
      [0.1, 0.2],
      [0.3, 0.4],
    ]);
    assert.deepEqual(found!.file.params, { ...defaultParams });
    assert.deepEqual(found!.file.summary, summary);
    assert.deepEqual(readdirSync(folder).sort(), ['a.gguf', 'a.gguf.calibration.json']);
  });

  it('passes over the calibration of another model of that name', async () => {
    await write();
    writeFileSync(model, 'the bytes of b model');
    assert.equal(await findCalibration(model), null);
  });

  it('names a broken file and the way out', async () => {
    const good = JSON.parse(readFileSync(await write(), 'utf8')) as Record<string, unknown>;
    const cases: [unknown, RegExp][] = [
      ['{', /not JSON/],
      [null, /format is not/],
      [{ ...good, format: 'other' }, /format is not/],
      [{ ...good, version: 2 }, /version is not 1/],
      [{ ...good, model: {} }, /names no model/],
      [{ ...good, headEpsilons: [0.1] }, /not a list of lists/],
      [{ ...good, headEpsilons: [[0.1, 'x']] }, /not a list of lists/],
      [{ ...good, params: { ...defaultParams, epsilon: 7 } }, /epsilon = 7/],
      [{ ...good, params: undefined }, /policy = undefined/],
    ];
    for (const [content, reason] of cases) {
      const text = typeof content === 'string' ? content : JSON.stringify(content);
      writeFileSync(calibrationPath(model), text);
      await assert.rejects(findCalibration(model), (error: Error & Record<string, string>) => {
        assert.equal(error.code, 'invalidParams');
        assert.match(error.message, reason);
        assert.ok(error.message.includes(calibrationPath(model)));
        assert.match(error.action!, /calibrate/);
        return true;
      });
    }
  });

  it('says when it cannot be written', async () => {
    rmSync(folder, { recursive: true });
    await assert.rejects(write(), { code: 'ENOENT' });
    const file = path.join(os.tmpdir(), `longsight-file-${process.pid}`);
    writeFileSync(file, 'a file, not a folder');
    try {
      model = path.join(file, 'a.gguf');
      await assert.rejects(write(), { code: 'ENOTDIR' });
    } finally {
      rmSync(file);
    }
  });

  describe('in the engine', () => {
    let fake: FakeAddon;
    let jobs: Jobs;
    let events: Event[];

    beforeEach(() => {
      fake = new FakeAddon();
      events = [];
      jobs = new Jobs({
        cuda: fakeCuda(),
        addon: () => fake.addon,
        send: (event) => void events.push(event),
        now: () => performance.now(),
        version: '1',
      });
    });

    const request = () => ({
      sessionId: 's',
      requestId: 'r',
      model: {
        path: model,
        backend: 'auto',
        device: -1,
        threads: 0,
        contextTokens: 0,
        kvCache: 'bf16',
      } as const,
      params: { ...defaultParams },
      tokens: 0,
      ropeBaseScale: 1,
    });
    const calibrate = (over: Partial<CalibrateRequest> = {}): CalibrateRequest => ({
      ...request(),
      type: 'calibrate',
      texts: [Buffer.alloc(3000, 97), Buffer.alloc(5000, 98)],
      coverage: null,
      kl: null,
      ...over,
    });
    const score = (over: Partial<ScoreRequest> = {}): ScoreRequest => ({
      ...request(),
      type: 'score',
      text: Buffer.alloc(4000, 97),
      tail: 0,
      tailPolicy: 'dense',
      against: null,
      ...over,
    });
    const last = async (job: JobRequest) => {
      events = [];
      jobs.handle(job);
      const isLast = (event: Event) => event.type === 'result' || event.type === 'error';
      while (!events.some(isLast)) await wait(1);
      return events.at(-1)!;
    };
    const result = async <T>(job: JobRequest) => {
      const event = await last(job);
      assert.equal(event.type, 'result', JSON.stringify(event));
      return (event as unknown as { result: T }).result;
    };
    const failure = async (job: JobRequest) => {
      const event = await last(job);
      assert.equal(event.type, 'error', JSON.stringify(event));
      return (event as unknown as { error: { code: string; message: string } }).error;
    };

    it('calibrates on the texts and uses that in new sessions, unless switched off', async () => {
      await result(score());
      assert.ok(!fake.calls.includes('use'));
      const made = await result<CalibrateResult>(calibrate({ kl: 0.01, tokens: 4000 }));
      assert.equal(made.path, calibrationPath(model));
      assert.deepEqual(made.textTokens, [3000, 4000]);
      assert.equal(made.kl, 0.005);
      assert.deepEqual(fake.options.at(-1)!.target, { coverage: null, kl: 0.01 });

      await result(score());
      assert.ok(fake.calls.includes('use'));
      const used = fake.options.find((options) => 'headEpsilons' in options)!;
      assert.deepEqual(used.headEpsilons, [0.01, 0.02]);

      fake.calls.length = 0;
      await result(score({ model: { ...request().model, calibration: 'off' } }));
      assert.deepEqual(fake.calls, ['dispose session', 'createSession', 'score']);
    });

    it('refuses other policies, two targets and no texts', async () => {
      const mass = { ...defaultParams, policy: 'mass' as const };
      assert.match((await failure(calibrate({ params: mass }))).message, /policy is mass/);
      const both = await failure(calibrate({ kl: 0.1, coverage: 0.9 }));
      assert.match(both.message, /Both coverage and kl/);
      assert.match((await failure(calibrate({ texts: [] }))).message, /No texts/);
      assert.match((await failure(calibrate({ coverage: 2 }))).message, /coverage = 2/);
      assert.ok(!fake.calls.includes('calibrate'));
    });

    it('is cancelled without a file', async () => {
      fake.settings.hang = true;
      events = [];
      jobs.handle(calibrate());
      while (!fake.calls.includes('calibrate')) await wait(1);
      jobs.handle({ type: 'cancel', sessionId: 's', requestId: 'r' });
      while (!events.some((event) => event.type === 'error')) await wait(1);
      assert.equal((events.at(-1) as { error: { code: string } }).error.code, 'cancelled');
      assert.equal(await findCalibration(model), null);
    });
  });
});
