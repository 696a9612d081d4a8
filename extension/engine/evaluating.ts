/**
 * `evaluate`: what each setting of SampleAttention costs and loses against dense attention, on
 * several texts and lengths. The dense run of a text is made once and kept by the session; of two
 * tails with the same setting the second takes over the segments that both have.
 */
import type { NativeModel, NativeSession, Prompt, ScoreOutcome, SessionEvent } from './addon';
import { invalidParams } from './errors';
import type {
  EvaluationLength,
  EvaluationPart,
  EvaluationPlan,
  EvaluationPoint,
  EvaluationResult,
  EvaluationRow,
  EvaluationSetting,
  ProbeRow,
} from './evaluation';
import { beginPhase, progressOf, stoppable, type JobContext } from './job';
import type { ModelKeeper } from './loading';
import { defaultParams } from './params';
import { chance, plantValues, type PlantedText } from './probing';
import type { EvaluateRequest, SampleAttentionParams } from './protocol';
import { tokenizeRaw } from './scoring';

interface Text {
  name: string;
  tokens: Int32Array;
}

export async function runEvaluate(
  request: EvaluateRequest,
  keeper: ModelKeeper,
  context: JobContext,
): Promise<EvaluationResult> {
  const { model } = await keeper.openModel(request.model, context.signal);
  const texts = await tokenizeAll(model, request);
  const planted = request.probe ? await plantAll(model, texts, request.lengths) : null;
  beginPhase(context, 'prefill');
  const evaluation = new Evaluation(request, texts, planted, context);
  for (const length of request.lengths) {
    const { session } = await keeper.openSession(
      request.model,
      {
        params: largestOf(model, request, length.tokens),
        ropeBaseScale: length.ropeBaseScale,
        minTokens: length.tokens,
      },
      context,
    );
    for (const text of texts) await evaluation.measure(session, text, length);
  }
  const { settings, rows, probes } = evaluation;
  return { model: model.spec.name, settings, rows, probes };
}

/** Everything is tokenized and checked before the first of many long runs. */
async function tokenizeAll(model: NativeModel, request: EvaluateRequest): Promise<Text[]> {
  const longest = Math.max(...request.lengths.map(({ tokens }) => tokens));
  const texts: Text[] = [];
  for (const { name, bytes } of request.texts) {
    const tokens = await tokenizeRaw(model, bytes);
    if (tokens.length < longest) {
      throw invalidParams(
        `The text ${name} has ${tokens.length} tokens, fewer than tokens = ${longest}.`,
        'Use longer texts or fewer tokens.',
      );
    }
    texts.push({ name, tokens });
  }
  return texts;
}

/** The parameters that need most memory, of those that will run in one session. */
function largestOf(
  model: NativeModel,
  { settings, model: { kvCache } }: EvaluateRequest,
  contextTokens: number,
): SampleAttentionParams {
  const scratchBytes = (params: SampleAttentionParams) =>
    model.estimateMemory({ backend: 'cpu', device: 0, contextTokens, params, kvCache })
      .scratchBytes;
  return settings
    .map(({ params }) => params)
    .reduce((a, b) => (scratchBytes(b) > scratchBytes(a) ? b : a), defaultParams);
}

type Planted = Map<Text, Map<number, PlantedText>>;

async function plantAll(
  model: NativeModel,
  texts: Text[],
  lengths: EvaluationLength[],
): Promise<Planted> {
  const all: Planted = new Map();
  for (const text of texts) {
    const byLength = new Map<number, PlantedText>();
    for (const { tokens } of lengths) {
      byLength.set(tokens, await plantValues(model, text.tokens, tokens));
    }
    all.set(text, byLength);
  }
  return all;
}

class Evaluation {
  readonly rows: EvaluationRow[] = [];
  readonly probes: ProbeRow[] = [];
  /** Dense first. */
  readonly settings: EvaluationSetting[];
  /** Longest first: its dense run then holds the rows of all. */
  private readonly tails: number[];
  private readonly progress: WholeProgress;
  private done = 0;
  private readonly total: number;

  constructor(
    plan: EvaluationPlan,
    texts: Text[],
    private readonly planted: Planted | null,
    private readonly context: JobContext,
  ) {
    const isDense = ({ params }: EvaluationSetting) => params.policy === 'dense';
    const dense = plan.settings.find(isDense) ?? {
      policy: 'dense',
      params: { ...defaultParams, policy: 'dense' },
    };
    this.settings = [dense, ...plan.settings.filter((setting) => !isDense(setting))];
    this.tails = [...plan.tails].sort((a, b) => b - a);
    const measurements = this.settings.length * (this.tails.length + (plan.probe ? 1 : 0));
    this.total = texts.length * plan.lengths.length * measurements;
    let work = 0;
    for (const { tokens } of plan.lengths) {
      for (const setting of this.settings) {
        for (const tail of this.tails) work += this.workOf(setting, tokens, tail);
        if (planted) work += wholeWork(setting, tokens);
      }
    }
    this.progress = new WholeProgress(context, work * texts.length);
  }

  /** All settings on one text at one length. */
  async measure(session: NativeSession, text: Text, length: EvaluationLength): Promise<void> {
    for (const setting of this.settings) {
      // The first tail computes everything, so that its time is that of a whole prefill.
      session.reset();
      for (const tail of this.tails) await this.score(session, text, length, setting, tail);
    }
    const planted = this.planted?.get(text)?.get(length.tokens);
    if (!planted) return;
    for (const setting of this.settings) {
      await this.probe(session, planted, setting, pointOf(text, length, setting));
    }
  }

  private async score(
    session: NativeSession,
    text: Text,
    length: EvaluationLength,
    setting: EvaluationSetting,
    tail: number,
  ): Promise<void> {
    const count = length.tokens;
    const prompt: Prompt = {
      tokens: text.tokens.subarray(0, count),
      borders: [count - tail, count],
      denseFrom: count - tail,
      params: setting.params,
    };
    const work = this.workOf(setting, count, tail);
    const outcome = await this.run(session, prompt, tail, true, this.progress.part(work));
    this.progress.finish(work);
    const { density, sparseDensity, coverageMean, coverageP5 } = outcome.attention;
    const row: EvaluationRow = {
      ...pointOf(text, length, setting),
      tail,
      density,
      sparseDensity,
      coverageMean,
      coverageP5,
      kl: outcome.kl!,
      top1Agreement: outcome.top1Agreement!,
      nll: outcome.nll,
      prefillMs: outcome.computedTokens === count ? outcome.prefillMs : null,
    };
    this.rows.push(row);
    this.tell({ row });
  }

  private async probe(
    session: NativeSession,
    planted: PlantedText,
    setting: EvaluationSetting,
    point: EvaluationPoint,
  ): Promise<void> {
    const from = planted.tokens.length;
    const work = wholeWork(setting, point.tokens);
    session.reset();
    const probes: ProbeRow[] = [];
    // The first question reads the text, the others take it over.
    let report = this.progress.part(work);
    for (const { depth, asked, valueTokens } of planted.values) {
      const tokens = new Int32Array(from + asked.length);
      tokens.set(planted.tokens);
      tokens.set(asked, from);
      const prompt: Prompt = {
        tokens,
        borders: [from, tokens.length],
        denseFrom: from,
        params: setting.params,
      };
      const outcome = await this.run(session, prompt, valueTokens + 1, false, report);
      report = () => undefined;
      const logProbability = -outcome.nll * valueTokens;
      probes.push({ ...point, depth, logProbability, chance, found: outcome.accuracy === 1 });
    }
    this.progress.finish(work);
    this.probes.push(...probes);
    this.tell({ probes });
  }

  private run(
    session: NativeSession,
    prompt: Prompt,
    tail: number,
    againstDense: boolean,
    onEvent: (event: SessionEvent) => void,
  ): Promise<ScoreOutcome> {
    return stoppable(this.context, session, () =>
      session.score(prompt, { tail, againstDense }, onEvent),
    );
  }

  private tell(part: EvaluationPart): void {
    this.context.send({ type: 'evaluated', part, done: ++this.done, total: this.total });
  }

  /** Of a tail: for all but the longest only the segments that the one before did not have. */
  private workOf(setting: EvaluationSetting, tokens: number, tail: number): number {
    const before = this.tails[this.tails.indexOf(tail) - 1];
    if (before === undefined) return wholeWork(setting, tokens);
    const { policy, segmentRows } = setting.params;
    const step = policy === 'dense' ? 1 : segmentRows;
    const common = step === 0 ? 0 : Math.floor((tokens - before) / step) * step;
    return Math.round(wholeWork(setting, tokens) * (1 - common / tokens));
  }
}

function pointOf(
  text: Text,
  { tokens, ropeBaseScale }: EvaluationLength,
  { policy, params }: EvaluationSetting,
): EvaluationPoint {
  return {
    text: text.name,
    tokens,
    ropeBaseScale,
    policy,
    alpha: params.policy === 'mass' ? params.alpha : null,
    epsilon: params.policy === 'peak' ? params.epsilon : null,
  };
}

/**
 * Relative work of a prefill: as if attention cost as much as the linear layers at 8,192 tokens, and
 * a third of that where it is sparse. Whole numbers, so that the parts sum to the total. Only the
 * estimate of the time left depends on it.
 */
function wholeWork({ params }: EvaluationSetting, tokens: number): number {
  return Math.round(tokens * (1 + (tokens / 8192) * (params.policy === 'dense' ? 1 : 1 / 3)));
}

/** Progress over all runs. The time left is judged by the work that is behind. */
class WholeProgress {
  private readonly startMs: number;
  private readonly report;
  private finished = 0;

  constructor(
    private readonly context: JobContext,
    private readonly total: number,
  ) {
    this.startMs = context.now();
    this.report = progressOf(context, 'prefill', 'work').report;
  }

  /** Listener of a run that is `work` of the whole. */
  part(work: number): (event: SessionEvent) => void {
    return (event) => {
      if (event.type !== 'prefill' || event.total === 0) return;
      this.show(this.finished + (work * event.done) / event.total);
    };
  }

  finish(work: number): void {
    this.finished += work;
    this.show(this.finished);
  }

  private show(done: number): void {
    const elapsedMs = this.context.now() - this.startMs;
    const etaMs = done > 0 ? (elapsedMs / done) * (this.total - done) : null;
    this.report({ done, total: this.total, etaMs });
  }
}
