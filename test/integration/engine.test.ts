import assert from 'node:assert/strict';
import { setTimeout as wait } from 'node:timers/promises';
import { Engine, type AskAnswer } from '../../extension/engine/client';
import { defaultParams } from '../../extension/engine/params';
import type {
  AskRequest,
  Event,
  Phase,
  PlanEvent,
  SampleAttentionParams,
  Sampling,
} from '../../extension/engine/protocol';
import { defaultSampling } from '../../extension/engine/sampling';
import { cpuMs, sampleWorkspace, testModel, workerPath } from './support/longsight';

/** Small enough to be quick, with segments that are sparse nevertheless. */
const params: SampleAttentionParams = {
  ...defaultParams,
  denseBelowTokens: 256,
  segmentRows: 256,
  windowTokens: 128,
};
const workspaceTokens = 950;

type AskBody = Omit<AskRequest, 'type' | 'sessionId' | 'requestId'>;

function question(over: Partial<AskBody> = {}): AskBody {
  return {
    model: {
      path: testModel(),
      backend: 'auto',
      device: -1,
      threads: 0,
      contextTokens: 2048,
      kvCache: 'bf16',
    },
    params,
    workspace: {
      folders: [{ name: 'sample', path: sampleWorkspace }],
      unsaved: {},
      budgetTokens: workspaceTokens,
      strict: false,
    },
    chat: [],
    question: 'How is the delay before a retry computed?',
    answerTokens: 12,
    sampling: { ...defaultSampling },
    thinking: false,
    savedSession: '',
    confirmAbovePrefillMs: 0,
    ...over,
  };
}

describe('integration: engine process with a real model', function () {
  this.timeout(400_000);
  let engine: Engine;
  const log: string[] = [];
  before(() => {
    engine = new Engine({ workerPath, background: false, log: (_level, text) => log.push(text) });
  });
  after(() => engine.dispose());

  /** Runs `when` at the first event that it is meant for. */
  const once = (matches: (event: Event) => boolean, when: () => void) => {
    let done = false;
    return (event: Event) => {
      if (done || !matches(event)) return;
      done = true;
      when();
    };
  };
  const prefilled = (tokens: number) => (event: Event) =>
    event.type === 'progress' && event.phase === 'prefill' && event.done >= tokens;
  /** The process does nothing from 250 ms after now on. */
  const assertIdleSoon = async () => {
    const pid = engine.pid!;
    await wait(250);
    const before = cpuMs(pid);
    await wait(600);
    const spent = cpuMs(pid) - before;
    assert.ok(spent <= 60, `${spent} ms of CPU time in 600 ms after the stop`);
  };

  let first: AskAnswer;

  it('answers, with phases that sum to the time that the test itself measures', async () => {
    const events: { event: Event; atMs: number }[] = [];
    const submitted = performance.now();
    first = await engine.ask(question(), {
      onEvent: (event) => events.push({ event, atMs: performance.now() - submitted }),
    }).result;

    const tokens = events.filter(({ event }) => event.type === 'token');
    assert.ok(tokens.length >= 5, `${tokens.length} tokens`);
    assert.ok(new Set(tokens.map(({ atMs }) => Math.round(atMs))).size >= 5);
    const text = tokens.map(({ event }) => event.type === 'token' && event.text).join('');
    assert.equal(text, first.answer);
    assert.match(first.answer, /^read \d+ of 9 files\n\n./);

    const { ttftMs, phases, ...stats } = first.stats;
    const sum = Object.values(phases).reduce((total, ms) => total + ms, 0);
    assert.ok(Math.abs(sum - ttftMs) <= 0.02 * ttftMs, `${sum} of ${ttftMs}`);
    assert.ok(Math.abs(tokens[0]!.atMs - ttftMs) <= 0.1 * ttftMs);
    assert.ok(phases.prefillMs > 0.5 * ttftMs, JSON.stringify(phases));
    const order = events.flatMap(({ event }) => (event.type === 'phase' ? [event.phase] : []));
    const expected: Phase[] = ['queue', 'load', 'scan', 'tokenize', 'prefill', 'firstToken'];
    assert.deepEqual(order, [...expected, 'decode', 'done']);

    const progress = events.flatMap(({ event }) =>
      event.type === 'progress' && event.phase === 'prefill' ? [event] : [],
    );
    assert.ok(progress.length >= 3, `${progress.length} reports`);
    progress.forEach(({ done, total }, index) => {
      assert.ok(done <= total && done >= (progress[index - 1]?.done ?? 0));
    });

    assert.equal(stats.promptTokens, stats.computedTokens);
    assert.equal(stats.reusedTokens, 0);
    assert.ok(stats.prefillTokensPerSecond > 0 && stats.decodeTokensPerSecond > 0);
    assert.ok(stats.memory.weightBytes > 50e6 && stats.memory.kvBytes > 0);
    assert.ok(first.files.full >= 2 && first.files.full < 9);
  });

  it('computes a part of the attention and measures what that part holds', () => {
    const { density, sparseDensity, coverageMean, coverageP5, layers } = first.stats.attention;
    assert.ok(sparseDensity! > 0 && sparseDensity! < 0.9, `${sparseDensity}`);
    assert.ok(density > sparseDensity! && density < 1);
    assert.ok(coverageP5! > 0.3 && coverageP5! <= coverageMean! && coverageMean! <= 1);
    assert.equal(layers.length, 30);
    layers.forEach((layer, index) => {
      assert.equal(layer.heads.length, 9);
      // The last layer attends only where logits are wanted, which is not in the files.
      const last = index === 29;
      assert.ok(layer.heads.every((head) => (last ? head === null : head! > 0 && head! <= 1)));
    });
  });

  it('reuses the workspace for a second question', async () => {
    const plans: PlanEvent[] = [];
    const warm = await engine.ask(question({ question: 'Where are jobs written to disk?' }), {
      onEvent: (event) => event.type === 'plan' && plans.push(event),
    }).result;
    assert.ok(warm.stats.reusedTokens > 0.8 * warm.stats.promptTokens);
    assert.equal(plans[0]!.reusedTokens, warm.stats.reusedTokens);
    assert.equal(plans[0]!.computedTokens, warm.stats.computedTokens);
    const share = warm.stats.phases.prefillMs / first.stats.phases.prefillMs;
    assert.ok(share < 0.15, `prefill took ${(100 * share).toFixed(1)} % of the first`);
    assert.ok(warm.stats.phases.loadMs < 200, `${warm.stats.phases.loadMs}`);
  });

  it('answers the same when nothing is reused', async () => {
    const over = { question: 'Where are jobs written?' };
    const warm = await engine.ask(question(over)).result;
    assert.ok(warm.stats.reusedTokens > 0);
    const fresh = new Engine({ workerPath, background: false });
    try {
      const cold = await fresh.ask(question(over)).result;
      assert.equal(cold.stats.reusedTokens, 0);
      assert.equal(warm.answer, cold.answer);
    } finally {
      await fresh.dispose();
    }
  });

  it('computes everything with the policy dense', async () => {
    const answer = await engine.ask(question({ params: { ...params, policy: 'dense' } })).result;
    assert.equal(answer.stats.attention.density, 1);
    assert.equal(answer.stats.attention.sparseDensity, null);
    assert.equal(answer.stats.attention.coverageMean, null);
    // Rows that the other policy computed densely as well are the same.
    assert.ok(answer.stats.reusedTokens <= params.denseBelowTokens);
  });

  it('keeps what it reads in about half the memory when told so', async () => {
    const q8 = { ...question().model, kvCache: 'q8' as const };
    const answer = await engine.ask(question({ model: q8 })).result;
    assert.equal(answer.stats.kvCache, 'q8');
    assert.equal(answer.stats.reusedTokens, 0);
    const share = answer.stats.memory.kvBytes / first.stats.memory.kvBytes;
    assert.ok(share > 0.45 && share < 0.6, `${share} of the bytes`);
    assert.match(answer.answer, /^read \d+ of 9 files\n\n./);
  });

  it('lets a second question wait while the first runs', async () => {
    const over = { params: { ...params, policy: 'dense' as const } };
    const places: (number | undefined)[] = [];
    const one = engine.ask(question(over));
    const two = engine.ask(question({ ...over, question: 'What is a heap here?' }), {
      onEvent: (event) => {
        if (event.type === 'phase' && event.phase === 'queue') places.push(event.ahead);
      },
    });
    const answers = await Promise.all([one.result, two.result]);
    assert.deepEqual(places, [1, 0]);
    assert.ok(answers[1].stats.phases.queueMs > answers[0].stats.phases.prefillMs);
    assert.notEqual(answers[0].answer, answers[1].answer);
  });

  it('stops in the prefill within 250 ms and keeps the segments that are done', async () => {
    const over = { params: { ...params, epsilon: 0.02 } };
    const abort = new AbortController();
    const job = engine.ask(question(over), {
      signal: abort.signal,
      onEvent: once(prefilled(512), () => abort.abort()),
    });
    const idle = new Promise<void>((resolve, reject) => {
      abort.signal.addEventListener('abort', () => assertIdleSoon().then(resolve, reject));
    });
    await assert.rejects(job.result, { code: 'cancelled' });
    await idle;
    const answer = await engine.ask(question(over)).result;
    assert.ok(answer.stats.reusedTokens >= 512, `${answer.stats.reusedTokens}`);
    // A prefill that has ended would leave all rows but the last.
    assert.ok(answer.stats.reusedTokens < answer.stats.promptTokens - 1);
  });

  it('stops while it answers', async () => {
    const abort = new AbortController();
    const over = { params: { ...params, epsilon: 0.02 }, answerTokens: 1000 };
    let tokens = 0;
    const job = engine.ask(question(over), {
      signal: abort.signal,
      onEvent: (event) => {
        if (event.type === 'token' && ++tokens === 3) abort.abort();
      },
    });
    const idle = new Promise<void>((resolve, reject) => {
      abort.signal.addEventListener('abort', () => assertIdleSoon().then(resolve, reject));
    });
    await assert.rejects(job.result, { code: 'cancelled' });
    await idle;
  });

  it('survives kill -9 in the middle of an answer', async () => {
    const over = { params: { ...params, epsilon: 0.02 }, answerTokens: 1000 };
    const pid = engine.pid!;
    const job = engine.ask(question(over), {
      onEvent: once(
        (event) => event.type === 'token',
        () => process.kill(pid, 'SIGKILL'),
      ),
    });
    await assert.rejects(job.result, {
      code: 'engineCrashed',
      message: /SIGKILL/,
      action: /Ask again/,
    });
    const answer = await engine.ask(question({ answerTokens: 4 })).result;
    assert.ok(answer.answer.length > 0);
    assert.notEqual(engine.pid, pid);
  });

  it('samples the same answer for the same seed', async () => {
    const sampled = (seed: number) =>
      engine.ask(question({ sampling: { ...defaultSampling, temperature: 1, topP: 0.95, seed } }))
        .result;
    const [a, b, c] = [await sampled(7), await sampled(7), await sampled(8)];
    assert.equal(a.answer, b.answer);
    assert.notEqual(a.answer, c.answer);
  });

  it('hands every step of sampling to the native sampler', async () => {
    const asked = (over: Partial<Sampling>) =>
      engine.ask(question({ sampling: { ...defaultSampling, ...over } })).result;
    const greedy = await asked({});
    const oneOf = await asked({ temperature: 5, topK: 1 });
    assert.equal(oneOf.answer, greedy.answer);
    const onlyBest = await asked({ temperature: 5, minP: 1 });
    assert.equal(onlyBest.answer, greedy.answer);
    const penalized = await asked({ repetitionPenalty: 10 });
    assert.notEqual(penalized.answer, greedy.answer);
    const biased = await asked({ logitBias: [[40, 1000]] });
    assert.equal(new Set(biased.answer.replace(/^read .*\n\n/, '')).size, 1, biased.answer);
    await assert.rejects(asked({ logitBias: [[10_000_000, 1]] }), {
      code: 'invalidParams',
      message: /token 10000000: the vocabulary has the tokens 0 to 49151/,
    });
  });

  it('ends at a stop string, which is not part of the answer', async () => {
    const whole = (await engine.ask(question()).result).answer.replace(/^read .*\n\n/, '');
    const stop = whole.slice(8, 14);
    const cut = await engine.ask(question({ sampling: { ...defaultSampling, stop: [stop] } }))
      .result;
    assert.equal(cut.stopReason, 'stop');
    assert.equal(cut.answer.replace(/^read .*\n\n/, ''), whole.slice(0, whole.indexOf(stop)));
  });

  it('told of nothing that went wrong in the log but the kill', () => {
    assert.deepEqual(
      log.filter((line) => /assert|abort|exception/i.test(line)),
      [],
    );
  });
});
