/** `bench`: speed, density and memory of prefill and decode, on text or on random weights. */
import type { GenerateResult, NativeModel, NativeSession } from './addon';
import { tokenizeRaw } from './scoring';
import { beginPhase, progressOf, stoppable, type JobContext } from './job';
import { EngineError } from './errors';
import type { Loaded, ModelKeeper, ModelSource } from './loading';
import { PeakMemory } from './peakMemory';
import { totalBytes, type BenchRequest, type BenchResult, type BenchRow } from './protocol';
import { randomOf } from './random';
import { defaultSampling } from './sampling';

export async function runBench(
  request: BenchRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<BenchResult> {
  const { synthetic, prefix } = request;
  // Random weights are made on a GPU only.
  const source: ModelSource =
    synthetic === null ? request.model : { ...request.model, backend: 'cuda', synthetic };
  const { model } = await keeper.openModel(source, context.signal);
  const prompts = request.tokenCounts.map((tokens) => ({ tokens, reused: 0 }));
  if (prefix !== null) {
    prompts.push({ tokens: prefix.tokens + prefix.newTokens, reused: prefix.tokens });
  }
  const longest = Math.max(...prompts.map(({ tokens }) => tokens));
  const promptOf = await promptsOf(request, model, longest);
  const trained = Math.floor(model.spec.contextTokens * request.ropeBaseScale);
  const need = {
    params: request.params,
    ropeBaseScale: request.ropeBaseScale,
    // The first token needs no room where only the prompt is measured.
    minTokens: longest + (request.decodeTokens || (longest === trained ? 0 : 1)),
  };
  const loaded = await keeper.openSession(source, need, context);
  const bench = new Bench(request, loaded, context);
  const results: BenchRow[] = [];
  for (const { tokens, reused } of prompts) {
    results.push(await bench.measure(promptOf(tokens), reused));
  }
  const { placing } = loaded;
  return {
    model: model.spec.name,
    weights: synthetic === null ? model.spec.fileType : synthetic.weights,
    synthetic: synthetic !== null,
    forcedDensity: request.forcedDensity,
    backend: placing.place.backend,
    device: placing.device,
    kvCache: request.model.kvCache,
    params: request.params,
    runs: request.runs,
    contextTokens: loaded.session.contextTokens,
    estimatedBytes: totalBytes(
      model.estimateMemory({
        ...placing.place,
        contextTokens: loaded.session.contextTokens,
        params: request.params,
        kvCache: request.model.kvCache,
      }),
    ),
    results,
  };
}

/** Prompts of any length: the text repeated or cut, or random tokens. */
async function promptsOf(
  request: BenchRequest,
  model: NativeModel,
  longest: number,
): Promise<(count: number) => Int32Array> {
  const all =
    request.synthetic === null
      ? await tokenizeRaw(model, request.text)
      : randomTokens(longest, model.spec.vocabulary);
  return (count) => {
    const tokens = new Int32Array(count);
    for (let at = 0; at < count; at += all.length) {
      tokens.set(all.subarray(0, Math.min(all.length, count - at)), at);
    }
    return tokens;
  };
}

function randomTokens(count: number, vocabulary: number): Int32Array {
  const random = randomOf(1);
  return Int32Array.from({ length: count }, () => Math.floor(random() * vocabulary));
}

class Bench {
  private readonly session: NativeSession;

  constructor(
    private readonly request: BenchRequest,
    loaded: Loaded,
    private readonly context: JobContext,
  ) {
    this.session = loaded.session;
  }

  /** The run with the median prefill; `reused` tokens are in the cache before each. */
  async measure(tokens: Int32Array, reused: number): Promise<BenchRow> {
    const runs: BenchRow[] = [];
    for (let run = 0; run < this.request.runs; run++) runs.push(await this.run(tokens, reused));
    runs.sort((a, b) => a.prefillMs - b.prefillMs);
    return runs[Math.floor((runs.length - 1) / 2)]!;
  }

  private async run(tokens: Int32Array, reused: number): Promise<BenchRow> {
    const { decodeTokens } = this.request;
    this.session.reset();
    beginPhase(this.context, 'prefill');
    if (reused > 0) await this.generate(tokens, reused, tokens.length, 0);
    const peak = new PeakMemory();
    // One token even without decode: the time to it is what people wait for.
    const outcome = await this.generate(
      tokens,
      tokens.length,
      reused > 0 ? reused : tokens.length,
      this.session.contextTokens > tokens.length ? Math.max(1, decodeTokens) : 0,
    ).finally(() => peak.stop());
    requireReused(outcome, reused);
    const decodeMs = (1000 * (outcome.generatedTokens - 1)) / outcome.decodeTokensPerSecond;
    const decoded = decodeTokens > 1 && outcome.decodeTokensPerSecond > 0;
    return {
      tokens: tokens.length,
      reusedTokens: outcome.reusedTokens,
      ttftMs: outcome.prefillMs + outcome.decodeMs - (decoded ? decodeMs : 0),
      prefillMs: outcome.prefillMs,
      tokensPerSecond: outcome.prefillTokensPerSecond,
      density: outcome.attention.density,
      sparseDensity: outcome.attention.sparseDensity,
      coverageMean: outcome.attention.coverageMean,
      decodeTokensPerSecond: decoded ? outcome.decodeTokensPerSecond : null,
      speculation: outcome.speculation,
      times: outcome.times,
      peakBytes: outcome.devicePeakBytes ?? peak.bytes(),
    };
  }

  /** The first `count` tokens; those from `denseFrom` on are the question. */
  private generate(
    tokens: Int32Array,
    count: number,
    denseFrom: number,
    maxTokens: number,
  ): Promise<GenerateResult> {
    const { context, request, session } = this;
    const prompt = tokens.subarray(0, count);
    const border = Math.min(denseFrom, count);
    const borders = border < count ? [border, count] : [count];
    const report = progressOf(context, 'prefill', 'tokens').session;
    return stoppable(context, session, () =>
      session.generate(
        { tokens: prompt, borders, denseFrom: border, params: request.params },
        {
          maxTokens,
          sampling: defaultSampling,
          ignoreEnd: true,
          speculate: request.speculate,
          ...(request.forcedDensity === null ? {} : { forcedDensity: request.forcedDensity }),
        },
        (event) => {
          report(event);
          if (event.type === 'prefilled' && maxTokens > 1) {
            context.send({ type: 'phase', phase: 'decode' });
          }
        },
      ),
    );
  }
}

/** A row that reused anything else would be no measurement. */
function requireReused({ reusedTokens, promptTokens }: GenerateResult, wanted: number): void {
  if (reusedTokens === wanted) return;
  throw new EngineError(
    'internal',
    `bench reused ${reusedTokens} of ${promptTokens} tokens, not ${wanted}.`,
    'Report this together with the command.',
  );
}
