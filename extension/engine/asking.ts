/** `ask`: from a question about folders to a checked answer. */
import { checkCitations } from '../prompt/citations';
import { readLine, withoutReadLine } from '../prompt/layout';
import type { Packing } from '../prompt/pack';
import { canThink } from '../prompt/template';
import { opensThought } from '../prompt/thinking';
import type { GenerateResult, NativeSession, PrefillPlan, Prompt } from './addon';
import { Answer } from './answer';
import { EngineError } from './errors';
import { beginPhase, stoppable, type JobContext } from './job';
import { restoreRows } from './keeping';
import type { Loaded, ModelKeeper } from './loading';
import { packPrompt, promptOf } from './packing';
import type { AskRequest, AskResult, ChatTurn, EngineStats, ThinkingStats } from './protocol';

export async function runAsk(
  request: AskRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<AskResult> {
  const { params, thinking } = request;
  const loaded = await keeper.openSession(
    request.model,
    { params, ropeBaseScale: 1, minTokens: 0 },
    context,
  );
  await restoreRows(loaded, request.savedSession, context);
  const { session } = loaded;
  const { contextTokens } = session;
  const answerTokens = tokensToGenerate(request, loaded);
  const { packing, parts, citable } = await packPrompt(
    {
      workspace: request.workspace,
      contextTokens,
      answerTokens,
      chat: request.chat.map(asWritten),
      question: request.question,
      thinking,
    },
    loaded,
    context,
  );
  requireFiles(packing, contextTokens);
  const prompt = await promptOf(parts, params, loaded, context);
  requireRoom(prompt.tokens.length, answerTokens, contextTokens);
  const plan = await session.plan(prompt);
  loaded.kept.begin(prompt, plan.reusedTokens);
  await announce(request, session, prompt, plan, packing, context);

  beginPhase(context, 'prefill');
  const answer = new Answer(context, {
    head: readLine(packing.counts),
    maxTokens: answerTokens,
    thoughtOpened: opensThought(parts[1].pieces.at(-1)?.text ?? ''),
  });
  const outcome = await stoppable(context, session, () =>
    session.generate(
      prompt,
      { maxTokens: answerTokens, sampling: request.sampling, ignoreEnd: false },
      (event) => answer.take(event),
    ),
  );
  const text = answer.end();
  const { citations, spans } = checkCitations(text, citable);
  return {
    answer: text,
    thinking: answer.thinking,
    citations,
    citationSpans: spans,
    files: packing.counts,
    stopReason: outcome.stopReason,
    stats: statsOf(outcome, answer.thinkingStats, loaded, request),
  };
}

/** Tells what will be computed, and asks first when that is predicted to take long. */
async function announce(
  request: AskRequest,
  session: NativeSession,
  prompt: Prompt,
  plan: PrefillPlan,
  { counts: files, usedTokens }: Packing,
  context: JobContext,
): Promise<void> {
  context.send({ type: 'plan', ...plan, files });
  const limitMs = request.confirmAbovePrefillMs;
  if (limitMs <= 0 || plan.predictedPrefillMs <= limitMs) return;
  context.send({
    type: 'confirm',
    predictedPrefillMs: plan.predictedPrefillMs,
    computedTokens: plan.computedTokens,
    suggestedBudgetTokens: await budgetWithin(limitMs, session, prompt, usedTokens),
  });
  await context.proceeded();
}

const budgetStep = 256;

/** Largest number of workspace tokens, a multiple of 256, whose prediction is below the limit. */
async function budgetWithin(
  limitMs: number,
  session: NativeSession,
  prompt: Prompt,
  workspaceTokens: number,
): Promise<number> {
  // The prompt with fewer files is not known yet; one of the same kind and length stands for it.
  const predicted = async (tokens: number) => {
    const left = prompt.denseFrom - workspaceTokens + tokens;
    const question = prompt.tokens.subarray(prompt.denseFrom);
    const shorter = new Int32Array(left + question.length);
    shorter.set(prompt.tokens.subarray(0, left));
    shorter.set(question, left);
    const borders = [left, shorter.length];
    const plan = await session.plan({ ...prompt, tokens: shorter, borders, denseFrom: left });
    return plan.predictedPrefillMs;
  };
  let fits = 0;
  let tooLong = Math.ceil(workspaceTokens / budgetStep);
  while (tooLong - fits > 1) {
    const middle = Math.floor((fits + tooLong) / 2);
    if ((await predicted(middle * budgetStep)) <= limitMs) fits = middle;
    else tooLong = middle;
  }
  return fits * budgetStep;
}

/** A thought is longer than the answer that it leads to. */
const thoughtTokensPerAnswerToken = 4;

/** Most tokens of thought and answer together; a thought gets at most a quarter of the context. */
function tokensToGenerate(request: AskRequest, { model, session }: Loaded): number {
  const { answerTokens, thinking } = request;
  if (!thinking || !canThink(model.spec)) return answerTokens;
  const thought = thoughtTokensPerAnswerToken * answerTokens;
  return answerTokens + Math.min(thought, Math.floor(session.contextTokens / 4));
}

/** The model is not shown a line that it did not write. */
function asWritten({ question, answer }: ChatTurn): ChatTurn {
  return { question, answer: withoutReadLine(answer) };
}

/** An answer about no file would be made up. */
function requireFiles({ counts, budgetTokens }: Packing, contextTokens: number): void {
  if (counts.full > 0) return;
  throw new EngineError(
    'overBudget',
    `None of the ${counts.path + counts.out} files fits into the ${budgetTokens} tokens that are ` +
      `left for files in a context of ${contextTokens}.`,
    'Use a larger context or budget, a shorter answer, or a smaller folder.',
  );
}

/** Last line of defence: the packing has already kept room for the answer. */
function requireRoom(promptTokens: number, answerTokens: number, contextTokens: number): void {
  if (promptTokens + answerTokens <= contextTokens) return;
  throw new EngineError(
    'promptTooLong',
    `The prompt has ${promptTokens} tokens; with ${answerTokens} for the answer it does not fit ` +
      `into the context of ${contextTokens}.`,
    'Use a larger context, a smaller budget, or a shorter answer.',
  );
}

function statsOf(
  outcome: GenerateResult,
  thinking: ThinkingStats | null,
  loaded: Loaded,
  request: AskRequest,
): EngineStats {
  return {
    model: loaded.model.spec.name,
    backend: loaded.placing.place.backend,
    device: loaded.placing.device,
    fallback: loaded.placing.fallback,
    params: request.params,
    kvCache: request.model.kvCache,
    ...(outcome.attention.calibrated && loaded.calibration !== undefined
      ? { calibration: loaded.calibration }
      : {}),
    promptTokens: outcome.promptTokens,
    reusedTokens: outcome.reusedTokens,
    computedTokens: outcome.computedTokens,
    prefillTokensPerSecond: outcome.prefillTokensPerSecond,
    decodeTokensPerSecond: outcome.decodeTokensPerSecond,
    thinking,
    attention: outcome.attention,
    memory: outcome.memory,
    speculation: outcome.speculation,
    times: outcome.times,
  };
}
