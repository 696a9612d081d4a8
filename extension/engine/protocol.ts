/**
 * Every message between the asking side (extension host or CLI) and the engine process.
 * Pure types and small pure helpers: no `vscode`, no node process API, no addon.
 * All times are milliseconds, all sizes bytes, unless a name says otherwise.
 */

import type { EvaluationPlan, EvaluationProgress, EvaluationResult } from './evaluation';
import type {
  Backend,
  ChatTurn,
  ModelRequest,
  SampleAttentionParams,
  Sampling,
  WorkspaceRequest,
} from './choices';
import type {
  AskResult,
  BenchResult,
  CalibrateResult,
  DoctorResult,
  EngineErrorInfo,
  FileCounts,
  PackResult,
  SaveResult,
  ScoreResult,
} from './results';

export * from './choices';
export * from './results';

// ---------------------------------------------------------------- requests

interface Addressed {
  sessionId: string;
  requestId: string;
}

export interface AskRequest extends Addressed {
  type: 'ask';
  model: ModelRequest;
  params: SampleAttentionParams;
  workspace: WorkspaceRequest;
  chat: ChatTurn[];
  question: string;
  answerTokens: number;
  sampling: Sampling;
  /** A reasoning model may think before it answers. */
  thinking: boolean;
  /** File from which a new session takes over rows before it computes; empty = none. */
  savedSession: string;
  /** Predictions above this pause before prefill with a `confirm` event; 0 = never. */
  confirmAbovePrefillMs: number;
}

/** Saves the rows of the workspace that was last asked about. Any other request stops it. */
export interface SaveRequest extends Addressed {
  type: 'save';
  /** Absolute path. */
  file: string;
  /** Most that all saved sessions in its folder may take; 0 = no limit, and none is deleted. */
  mostFolderBytes: number;
}

export interface PackRequest extends Addressed {
  type: 'pack';
  model: ModelRequest;
  workspace: WorkspaceRequest;
  withText: boolean;
}

export interface ScoreRequest extends Addressed {
  type: 'score';
  model: ModelRequest;
  params: SampleAttentionParams;
  /** Raw bytes: no template, no special tokens. */
  text: Uint8Array;
  /** First tokens of the text that are used; 0 = all. */
  tokens: number;
  /** Last tokens that are scored; 0 = 1024, or half of a shorter text. */
  tail: number;
  tailPolicy: 'dense' | 'same';
  against: 'dense' | null;
  ropeBaseScale: number;
}

export interface SyntheticModel {
  /** Shape, e.g. `llama-3.1-8b`. */
  name: string;
  /** Type of the matrices, e.g. `q4_k_m`. */
  weights: string;
}

export interface BenchRequest extends Addressed {
  type: 'bench';
  model: ModelRequest;
  params: SampleAttentionParams;
  /** Random weights instead of the file that `model` names. */
  synthetic: SyntheticModel | null;
  /** Column lists drawn with this density instead of the policy's; null = none. */
  forcedDensity: number | null;
  tokenCounts: number[];
  /** Also: new tokens, as a question, behind a prefix that is in the cache. */
  prefix: { tokens: number; newTokens: number } | null;
  /** Repeated or cut to each length; random weights get random tokens. */
  text: Uint8Array;
  decodeTokens: number;
  speculate: boolean;
  runs: number;
  ropeBaseScale: number;
}

export interface CalibrateRequest extends Addressed {
  type: 'calibrate';
  model: ModelRequest;
  params: SampleAttentionParams;
  /** Raw bytes: no template, no special tokens. */
  texts: Uint8Array[];
  /** First tokens of each text that are used; 0 = all. */
  tokens: number;
  /** What to reach at least density; both null = the density of `params.epsilon`. */
  coverage: number | null;
  kl: number | null;
  ropeBaseScale: number;
}

export interface EvaluateRequest extends Addressed, EvaluationPlan {
  type: 'evaluate';
  model: ModelRequest;
}

export interface DoctorRequest extends Addressed {
  type: 'doctor';
  /** null = report the machine only. */
  model: ModelRequest | null;
  params: SampleAttentionParams;
}

export interface CancelRequest extends Addressed {
  type: 'cancel';
}

/** Answer to a `confirm` event: go on. (To give up, cancel.) */
export interface ProceedRequest extends Addressed {
  type: 'proceed';
}

export type JobRequest =
  | AskRequest
  | SaveRequest
  | PackRequest
  | ScoreRequest
  | CalibrateRequest
  | BenchRequest
  | EvaluateRequest
  | DoctorRequest;
export type Request = JobRequest | CancelRequest | ProceedRequest;

// ---------------------------------------------------------------- events

export type Phase =
  | 'queue'
  | 'load'
  | 'scan'
  | 'tokenize'
  | 'prefill'
  | 'firstToken'
  | 'thinking'
  | 'decode'
  | 'save'
  | 'done';

/**
 * A phase begins. `queue` and `load` come from the asking side's client (so that `load` holds the
 * start of the process too), the others from the engine process.
 */
export interface PhaseEvent extends Addressed {
  type: 'phase';
  phase: Phase;
  /** Only for `queue`: requests that run before this one. */
  ahead?: number;
}

/** Inside a phase. */
export interface ProgressEvent extends Addressed {
  type: 'progress';
  phase: Phase;
  done: number;
  /** 0 = unknown. */
  total: number;
  /** `work`: relative cost, for shares alone. */
  unit: 'bytes' | 'files' | 'tokens' | 'work';
  perSecond: number;
  /** Left in this phase; null = not known yet. */
  etaMs: number | null;
}

/** Where the model computes: sent when it is loaded. */
export interface PlaceEvent extends Addressed {
  type: 'place';
  backend: Backend;
  /** As in `EngineStats`. */
  device: string;
  fallback: string;
}

/** Sent after tokenizing, before prefill. */
export interface PlanEvent extends Addressed {
  type: 'plan';
  promptTokens: number;
  reusedTokens: number;
  computedTokens: number;
  predictedPrefillMs: number;
  files: FileCounts;
}

/** The prediction is above `confirmAbovePrefillMs`: the engine waits for `proceed` or `cancel`. */
export interface ConfirmEvent extends Addressed {
  type: 'confirm';
  predictedPrefillMs: number;
  computedTokens: number;
  /** Workspace tokens for which the prediction is below the limit: what `Fewer Files` would use. */
  suggestedBudgetTokens: number;
}

/**
 * More of the answer: whole UTF-8 characters only. The first may be empty: it ends the time to the
 * first token while the token's text is held back, because it may begin a thought.
 */
export interface TokenEvent extends Addressed {
  type: 'token';
  text: string;
}

/** More of the thought that precedes the answer. */
export interface ThinkingEvent extends Addressed {
  type: 'thinking';
  text: string;
  /** Since the first generated token. */
  elapsedMs: number;
}

export interface EvaluatedEvent extends Addressed, EvaluationProgress {
  type: 'evaluated';
}

export interface ResultEvent extends Addressed {
  type: 'result';
  result:
    | AskResult
    | SaveResult
    | PackResult
    | ScoreResult
    | CalibrateResult
    | BenchResult
    | EvaluationResult
    | DoctorResult;
}

export interface ErrorEvent extends Addressed {
  type: 'error';
  error: EngineErrorInfo;
}

/** A line for the log: never file contents. */
export interface LogEvent extends Addressed {
  type: 'log';
  level: 'info' | 'warn' | 'error';
  text: string;
}

/** Sent once a second while the process lives; sessionId and requestId of the running job or ''. */
export interface HeartbeatEvent extends Addressed {
  type: 'heartbeat';
  rssBytes: number;
}

export type Event =
  | PhaseEvent
  | ProgressEvent
  | PlaceEvent
  | PlanEvent
  | ConfirmEvent
  | TokenEvent
  | ThinkingEvent
  | EvaluatedEvent
  | ResultEvent
  | ErrorEvent
  | LogEvent
  | HeartbeatEvent;
