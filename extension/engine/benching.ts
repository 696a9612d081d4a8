/** `bench`: speed, density and memory of prefill and decode at given lengths. */
import { readFileSync, writeFileSync } from 'node:fs';
import { tokenizeRaw } from './scoring';
import { beginPhase, progressOf, stoppable, type JobContext } from './job';
import type { ModelKeeper } from './loading';
import type { BenchRequest, BenchResult, BenchRow } from './protocol';
import { defaultSampling } from './sampling';

export async function runBench(
  request: BenchRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<BenchResult> {
  const { model } = await keeper.openModel(request.model, context.signal);
  const text = await tokenizeRaw(model, request.text);
  const longest = Math.max(...request.tokenCounts) + request.decodeTokens;
  const { session } = await keeper.openSession(
    request.model,
    { params: request.params, ropeBaseScale: request.ropeBaseScale, minTokens: longest },
    context,
  );
  const results: BenchRow[] = [];
  for (const count of request.tokenCounts) {
    const tokens = repeated(text, count);
    session.reset();
    beginPhase(context, 'prefill');
    const report = progressOf(context, 'prefill', 'tokens').session;
    const peak = new PeakMemory();
    const outcome = await stoppable(context, session, () =>
      session.generate(
        { tokens, borders: [count], denseFrom: count, params: request.params },
        {
          maxTokens: request.decodeTokens,
          sampling: defaultSampling,
          ignoreEnd: true,
        },
        (event) => {
          report(event);
          if (event.type === 'prefilled' && request.decodeTokens > 0) {
            context.send({ type: 'phase', phase: 'decode' });
          }
        },
      ),
    ).finally(() => peak.stop());
    results.push({
      tokens: count,
      prefillMs: outcome.prefillMs,
      tokensPerSecond: outcome.prefillTokensPerSecond,
      density: outcome.attention.density,
      sparseDensity: outcome.attention.sparseDensity,
      coverageMean: outcome.attention.coverageMean,
      decodeTokensPerSecond: request.decodeTokens > 0 ? outcome.decodeTokensPerSecond : null,
      peakBytes: peak.bytes(),
    });
    requireCold(outcome.computedTokens, count);
  }
  return { results };
}

/** A row that reused anything would be no measurement. */
function requireCold(computedTokens: number, count: number): void {
  if (computedTokens === count) return;
  throw new Error(`bench computed ${computedTokens} of ${count} tokens after a reset`);
}

function repeated(text: Int32Array, count: number): Int32Array {
  const tokens = new Int32Array(count);
  for (let at = 0; at < count; at += text.length) {
    tokens.set(text.subarray(0, Math.min(text.length, count - at)), at);
  }
  return tokens;
}

/** Largest resident set of this process while it is watched. */
class PeakMemory {
  private sampled = process.memoryUsage.rss();
  private readonly kernelCounts = resetHighWater();
  private readonly timer = setInterval(() => this.sample(), 20);

  stop(): void {
    clearInterval(this.timer);
    this.sample();
  }

  bytes(): number {
    return this.sampled;
  }

  private sample(): void {
    const highWater = this.kernelCounts ? highWaterBytes() : 0;
    this.sampled = Math.max(this.sampled, highWater, process.memoryUsage.rss());
  }
}

/** Linux keeps the high-water mark itself and lets a process reset its own. */
function resetHighWater(): boolean {
  try {
    writeFileSync('/proc/self/clear_refs', '5');
    return true;
  } catch {
    return false;
  }
}

function highWaterBytes(): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  return match ? Number(match[1]) * 1024 : 0;
}
