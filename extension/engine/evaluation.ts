/** What `evaluate` is asked and answers: types alone, part of the protocol. */
import type { SampleAttentionParams } from './protocol';

export interface EvaluationText {
  /** What it is called in results, e.g. the path as the user wrote it. */
  name: string;
  /** Raw bytes: no template, no special tokens. */
  bytes: Uint8Array;
}

export interface EvaluationLength {
  tokens: number;
  ropeBaseScale: number;
}

/** One point of a curve. */
export interface EvaluationSetting {
  /** Name of the curve: a policy, or a preset such as `paper`. */
  policy: string;
  params: SampleAttentionParams;
}

/** Every text at every length: dense first, then each setting with each tail, compared with it. */
export interface EvaluationPlan {
  texts: EvaluationText[];
  lengths: EvaluationLength[];
  settings: EvaluationSetting[];
  /** Last tokens that are scored; they attend densely and do not vote. None: planted values alone. */
  tails: number[];
  /** Also plant values in the texts and ask for them. */
  probe: boolean;
}

/** Identifies one measurement. `alpha` and `epsilon` are null where the policy does not use them. */
export interface EvaluationPoint {
  text: string;
  tokens: number;
  ropeBaseScale: number;
  policy: string;
  alpha: number | null;
  epsilon: number | null;
}

export interface EvaluationRow extends EvaluationPoint {
  /** Last tokens, which are scored and attend densely. */
  tail: number;
  density: number;
  sparseDensity: number | null;
  coverageMean: number | null;
  coverageP5: number | null;
  /** KL(dense || this) in nats, mean over the tail's predictions. */
  kl: number;
  /** Share of the tail's predictions with the same most likely token as dense. */
  top1Agreement: number;
  /** Mean negative log-likelihood of the tail in nats. */
  nll: number;
  /** Of a whole prefill; null when a part of it was taken over from the measurement before. */
  prefillMs: number | null;
}

/** A planted `NAME = value` line, asked for behind the end of the text. */
export interface ProbeRow extends EvaluationPoint {
  /** Where the line stands, as a share of the tokens before the question, 0 to 1. */
  depth: number;
  /** Log-probability of the whole right value in nats. */
  logProbability: number;
  /** The same of a uniform guess of its digits. */
  chance: number;
  /** Every token of the value was the most likely one. */
  found: boolean;
}

export interface EvaluationResult {
  model: string;
  /** All parameters of what was measured. */
  settings: EvaluationSetting[];
  rows: EvaluationRow[];
  probes: ProbeRow[];
}

/** A part of the result, as soon as it is known. */
export type EvaluationPart = { row: EvaluationRow } | { probes: ProbeRow[] };

/** One more measurement is there. It stays valid when the rest fails. */
export interface EvaluationProgress {
  part: EvaluationPart;
  /** Measurements that are done, of all. */
  done: number;
  total: number;
}
