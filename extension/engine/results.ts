/** What a job ends with, a result or an error: a part of the protocol, which exports it. Units as there. */

import type { Backend, KvCacheType, SampleAttentionParams } from './choices';

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
