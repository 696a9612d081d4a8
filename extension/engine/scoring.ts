/** `score`: how well the model predicts the tail of a text, and how close that is to dense. */
import type { NativeModel } from './addon';
import { EngineError, invalidParams } from './errors';
import { beginPhase, progressOf, stoppable, type JobContext } from './job';
import type { ModelKeeper } from './loading';
import type { ScoreRequest, ScoreResult } from './protocol';

const defaultTail = 1024;

export async function runScore(
  request: ScoreRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<ScoreResult> {
  const { model } = await keeper.openModel(request.model, context.signal);
  const all = await tokenizeRaw(model, request.text);
  if (request.tokens > all.length) {
    throw invalidParams(
      `The text has ${all.length} tokens, fewer than tokens = ${request.tokens}.`,
      'Use a longer text or fewer tokens.',
    );
  }
  const tokens = request.tokens > 0 ? all.subarray(0, request.tokens) : all;
  const tail = checkedTail(request.tail, tokens.length);
  const { session } = await keeper.openSession(
    request.model,
    {
      params: request.params,
      ropeBaseScale: request.ropeBaseScale,
      minTokens: tokens.length,
    },
    context,
  );
  beginPhase(context, 'prefill');
  const denseFrom = request.tailPolicy === 'dense' ? tokens.length - tail : tokens.length;
  const inside = denseFrom > 0 && denseFrom < tokens.length;
  const borders = inside ? [denseFrom, tokens.length] : [tokens.length];
  const outcome = await stoppable(context, session, () =>
    session.score(
      { tokens, borders, denseFrom, params: request.params },
      { tail, againstDense: request.against === 'dense' },
      progressOf(context, 'prefill', 'tokens').session,
    ),
  );
  const { density, sparseDensity, coverageMean, coverageP5 } = outcome.attention;
  return {
    tokens: tokens.length,
    nll: outcome.nll,
    perplexity: Math.exp(outcome.nll),
    density,
    sparseDensity,
    coverageMean,
    coverageP5,
    ...(outcome.attention.calibrated ? { calibrated: true } : {}),
    ...(outcome.kl === undefined ? {} : { kl: outcome.kl }),
    ...(outcome.top1Agreement === undefined ? {} : { top1Agreement: outcome.top1Agreement }),
  };
}

/** Tokens of raw bytes: no template, no special tokens, no BOS. */
export async function tokenizeRaw(model: NativeModel, text: Uint8Array): Promise<Int32Array> {
  const [tokens] = await model.tokenize([{ text, special: false }]);
  if (tokens === undefined || tokens.length < 2) {
    throw new EngineError(
      'invalidParams',
      `The text has ${tokens?.length ?? 0} tokens; at least 2 are needed.`,
      'Use a longer text.',
    );
  }
  return tokens;
}

function checkedTail(tail: number, tokens: number): number {
  // Half of a short text, so that the other half still is context.
  if (tail === 0) return Math.max(2, Math.min(defaultTail, Math.floor(tokens / 2)));
  if (tail < 2 || tail > tokens) {
    throw invalidParams(
      `tail = ${tail} is outside its range: 2 to ${tokens}, the tokens of the text.`,
      'Use a shorter tail or a longer text.',
    );
  }
  return tail;
}
