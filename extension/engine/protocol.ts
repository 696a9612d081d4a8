/**
 * Every message between the asking side (extension host or CLI) and the engine process.
 * Pure types and small pure helpers: no `vscode`, no node process API, no addon.
 * All times are milliseconds, all sizes bytes, unless a name says otherwise.
 */

import type { EvaluationPlan, EvaluationProgress, EvaluationResult } from './evaluation';

/** Section 5 of the specification; the C++ struct has the same names. */
export interface SampleAttentionParams {
  policy: 'dense' | 'peak' | 'mass';
  alpha: number;
  epsilon: number;
  scoreDims: 'slowHalf' | 'all';
  sampleStride: number;
  segmentRows: number;
  windowTokens: number;
  windowFraction: number;
  sinkTokens: number;
  denseBelowTokens: number;
  maxListShare: number;
  auditRows: number;
}

/** Where a model computes. */
export type Backend = 'cpu' | 'cuda';
/** `auto`: a GPU where one works and the model fits on it, else the CPU. */
export const backendChoices = ['auto', 'cuda', 'cpu'] as const;
export type BackendChoice = (typeof backendChoices)[number];
/** Number that stands for the GPU with the most free memory. */
export const anyDevice = -1;

/** Whether the calibration beside the model is used for prompts that it fits. */
export const calibrationModes = ['auto', 'off'] as const;
export type CalibrationMode = (typeof calibrationModes)[number];

/** How the KV cache keeps its values: 2 bytes each, or blocks of 32 in 34 bytes. */
export const kvCacheTypes = ['bf16', 'q8'] as const;
export type KvCacheType = (typeof kvCacheTypes)[number];

export interface ModelRequest {
  /** Absolute path of a GGUF file. */
  path: string;
  backend: BackendChoice;
  /** Number of the GPU, or `anyDevice`. */
  device: number;
  /** 0 = the number of physical cores. */
  threads: number;
  /** Size of the KV cache in tokens; 0 = as much of the model's context as memory allows. */
  contextTokens: number;
  kvCache: KvCacheType;
  /** Absent = `auto`. */
  calibration?: CalibrationMode;
}

/** Ranges in engine/sampling.ts; the steps and their order in native/session/sampler.h. */
export interface Sampling {
  /** 0 = greedy. */
  temperature: number;
  /** 1 = off. */
  topP: number;
  /** 0 = off. */
  topK: number;
  /** 0 = off. */
  minP: number;
  /** 1 = off. */
  repetitionPenalty: number;
  /** Pairs [token, what is added to its logit]; -Infinity bans the token. */
  logitBias: [number, number][];
  seed: number;
  /** Texts that end the answer; they are not part of it. */
  stop: string[];
}

export interface WorkspaceFolder {
  /** Shown in paths when there are several folders. */
  name: string;
  /** Absolute path. */
  path: string;
}

/** What to pack. */
export interface WorkspaceRequest {
  folders: WorkspaceFolder[];
  /** Text of documents that are open and unsaved, by absolute path: read instead of the disk. */
  unsaved: Record<string, string>;
  /** Upper bound of prompt tokens spent on the workspace; 0 = all that the context leaves. */
  budgetTokens: number;
  /** Refuse (`overBudget`) instead of leaving files out. */
  strict: boolean;
}

export interface ChatTurn {
  question: string;
  answer: string;
}

// ---------------------------------------------------------------- results

export type Tier = 'full' | 'path' | 'out';

export interface PackedFile {
  /** Relative to its folder, `/` separators; with several folders prefixed by the folder's name. */
  path: string;
  /** Tokens this file costs in its tier; for `out` 0. */
  tokens: number;
  tier: Tier;
  /** Why it is in this tier, e.g. `readme`, `manifest`, `source`, `over budget`, `secret name`, `binary`. */
  reason: string;
}

export interface PackResult {
  files: PackedFile[];
  totalTokens: number;
  /** The packed text of the workspace, when asked for. */
  text?: string;
}

export type CitationStatus = 'verified' | 'invented' | 'ambiguous';

export interface Citation {
  path: string;
  /** The quoted words. */
  quote: string;
  /** 1-based, inclusive; 0 when not verified. */
  startLine: number;
  endLine: number;
  status: CitationStatus;
  /** Absolute path of the file; empty when the path is not in the packed workspace. */
  absolutePath: string;
}

export interface LayerDensity {
  /** sparseDensity of this layer; null when nothing was sparse. */
  density: number | null;
  /** sparseDensity by query head. */
  heads: (number | null)[];
}

export interface AttentionStats {
  density: number;
  sparseDensity: number | null;
  coverageMean: number | null;
  coverageP5: number | null;
  layers: LayerDensity[];
  /** Epsilons by head were used, from a calibration. */
  calibrated?: boolean;
}

export interface MemoryStats {
  weightBytes: number;
  kvBytes: number;
  scratchBytes: number;
  /** What the driver and the kernels take on a GPU whatever the model; 0 on the CPU. */
  fixedBytes: number;
}

/** All parts together. */
export function totalBytes(memory: MemoryStats): number {
  return memory.weightBytes + memory.kvBytes + memory.scratchBytes + memory.fixedBytes;
}

/** Where the time of a prefill on a GPU went. */
export interface PartTimes {
  linearMs: number;
  /** Weights from their type in the file to bf16. */
  expandMs: number;
  stage1Ms: number;
  stage2Ms: number;
  stage3Ms: number;
  auditMs: number;
  /** Norms, RoPE, KV cache, and what else is between. */
  restMs: number;
}

/** Tokens that were guessed from the prompt and then verified, so that the answer is the same. */
export interface SpeculationStats {
  draftedTokens: number;
  acceptedTokens: number;
}

/** Phases that lie before the first token, in order. They sum to ttftMs. */
export interface PhaseTimes {
  queueMs: number;
  loadMs: number;
  scanMs: number;
  tokenizeMs: number;
  prefillMs: number;
  firstTokenMs: number;
}

/** What a reasoning model spent before its answer, after the time to the first token. */
export interface ThinkingStats {
  /** From the first generated token to the end of the thought. */
  ms: number;
  /** As they show in the text: a character of several tokens counts once. */
  tokens: number;
}

/** What the engine counts. The asking side adds its own clock to make `Stats`. */
export interface EngineStats {
  model: string;
  backend: Backend;
  /** `CPU`, or the GPU's name. */
  device: string;
  /** Why `auto` took the CPU, when a person can change that; '' otherwise. */
  fallback: string;
  params: SampleAttentionParams;
  kvCache: KvCacheType;
  /** Path of the calibration that was used; absent when none was. */
  calibration?: string;
  promptTokens: number;
  reusedTokens: number;
  computedTokens: number;
  prefillTokensPerSecond: number;
  /** Over thought and answer. */
  decodeTokensPerSecond: number;
  /** null when the model did not think. */
  thinking: ThinkingStats | null;
  attention: AttentionStats;
  memory: MemoryStats;
  /** null when nothing was drafted. */
  speculation: SpeculationStats | null;
  /** Of the prefill; null on the CPU. */
  times: PartTimes | null;
}

/** ttftMs and phases: the asking side's monotonic clock from submit to the first token. */
export interface Stats extends EngineStats {
  ttftMs: number;
  phases: PhaseTimes;
}

export interface FileCounts {
  full: number;
  path: number;
  out: number;
}

/** Why decoding ended. */
export type StopReason = 'end' | 'stop' | 'length';

/** UTF-16 offsets in a text, end exclusive. */
export interface TextSpan {
  start: number;
  end: number;
}

export interface AskResult {
  answer: string;
  /** What a reasoning model wrote before its answer; '' when it did not think. Never cited from. */
  thinking: string;
  /** In the order in which they stand in the answer. */
  citations: Citation[];
  /** Where `citations[i]` stands in `answer`, for links in place. */
  citationSpans: TextSpan[];
  files: FileCounts;
  stopReason: StopReason;
  stats: EngineStats;
}

export interface ScoreResult {
  tokens: number;
  nll: number;
  perplexity: number;
  density: number;
  sparseDensity: number | null;
  coverageMean: number | null;
  coverageP5: number | null;
  /** Present with `against: 'dense'`. */
  kl?: number;
  top1Agreement?: number;
  /** Epsilons by head were used, from a calibration. */
  calibrated?: boolean;
}

export interface CalibrationPoint {
  /** Over sparse rows. */
  density: number;
  coverage: number;
}

/** What a calibration was made from and what it reaches on its own texts. */
export interface CalibrationSummary {
  target: { coverage: number | null; kl: number | null };
  textTokens: number[];
  /** The same epsilon for every head. */
  plain: CalibrationPoint;
  chosen: CalibrationPoint;
  /** Of `chosen` against dense; null unless it was the target. */
  kl: number | null;
}

export interface CalibrateResult extends CalibrationSummary {
  /** The file that was written. */
  path: string;
}

/** Reason of a save that had nothing to do. */
export const nothingNew = 'nothing new';

export interface SaveResult {
  saved: boolean;
  /** Why nothing was saved. */
  reason: string;
  tokens: number;
  /** Of the file. */
  bytes: number;
}

/** One prompt: the run with the median prefill. */
export interface BenchRow {
  tokens: number;
  /** Of them in the cache before. */
  reusedTokens: number;
  /** From the prompt's tokens to the first token of the answer. */
  ttftMs: number;
  prefillMs: number;
  tokensPerSecond: number;
  density: number;
  sparseDensity: number | null;
  coverageMean: number | null;
  /** Behind the prompt; null when there was no decode. */
  decodeTokensPerSecond: number | null;
  speculation: SpeculationStats | null;
  /** null on the CPU. */
  times: PartTimes | null;
  /** Most memory: of the GPU as its driver counts, else of the process. */
  peakBytes: number;
}

export interface BenchResult {
  model: string;
  /** Type of the weights. */
  weights: string;
  /** The weights are random. */
  synthetic: boolean;
  /** The density was not the policy's doing; null = it was. */
  forcedDensity: number | null;
  backend: Backend;
  device: string;
  kvCache: KvCacheType;
  params: SampleAttentionParams;
  /** Of each row. */
  runs: number;
  contextTokens: number;
  /** What the session was predicted to take. */
  estimatedBytes: number;
  results: BenchRow[];
}

export interface DeviceReport {
  /** `cpu`, `cuda:0` and so on; `cuda` when there is no GPU to name. */
  name: string;
  usable: boolean;
  /** Why it is not usable, or what it will run. */
  reason: string;
}

export interface ModelReport {
  path: string;
  name: string;
  architecture: string;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  contextTokens: number;
  fileType: string;
}

export interface MemoryEstimate extends MemoryStats {
  contextTokens: number;
  availableBytes: number;
  fits: boolean;
  /** Largest context that fits in availableBytes; 0 when not even the weights do. */
  largestContextTokens: number;
}

export interface DeviceMemory extends MemoryEstimate {
  /** As in `devices`. */
  device: string;
  kvCache: KvCacheType;
}

export interface DoctorResult {
  version: string;
  platform: string;
  devices: DeviceReport[];
  cpuFeatures: string[];
  kernels: { attention: string; linear: string };
  model?: ModelReport;
  /** Of the model on each device that it could run on: GPUs first. */
  memory: DeviceMemory[];
  /** Saved sessions on this machine. */
  sessions: { folder: string; files: number; bytes: number };
  /** What does not work here, each with its way out; empty when all is well. */
  problems: EngineErrorInfo[];
}

// ---------------------------------------------------------------- errors

export type ErrorCode =
  | 'noModel'
  | 'modelNotFound'
  | 'notGguf'
  | 'truncatedGguf'
  | 'unsupportedArchitecture'
  | 'unsupportedTensorType'
  | 'unsupportedTokenizer'
  | 'badChatTemplate'
  | 'invalidParams'
  | 'notEnoughMemory'
  | 'overBudget'
  | 'promptTooLong'
  | 'emptyWorkspace'
  | 'folderNotFound'
  | 'unreadableFile'
  | 'writeFailed'
  | 'notSessionFile'
  | 'damagedSessionFile'
  | 'otherSessionFile'
  | 'deviceUnavailable'
  | 'addonFailedToLoad'
  | 'glibcTooOld'
  | 'engineCrashed'
  | 'cancelled'
  | 'internal';

/** What went wrong, with its values, and the way out. */
export interface EngineErrorInfo {
  code: ErrorCode;
  /** One sentence with the values. */
  message: string;
  /** One sentence: what the user can do. */
  action: string;
}

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
  /** Column lists of this density instead of the policy's; null = none. For random weights only. */
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
