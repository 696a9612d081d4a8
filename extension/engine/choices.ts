/** What a person can choose: a part of the protocol, which exports it. Units as there. */

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
