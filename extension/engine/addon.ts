/**
 * The typed face of the native addon `longsight.node`. Only `worker.ts` loads it.
 * Long work runs on threads of the addon; every promise rejects with an `Error` that carries
 * `code` (an ErrorCode of the protocol) and `action`.
 */
import type {
  AttentionStats,
  Backend,
  KvCacheType,
  MemoryEstimate,
  MemoryStats,
  ModelReport,
  PartTimes,
  SampleAttentionParams,
  Sampling,
  SpeculationStats,
  StopReason,
} from './protocol';

export interface Machine {
  cpuFeatures: string[];
  /** Chosen kernel sets, e.g. `avx2` and `avx2, decoding ggml haswell`. */
  kernels: { attention: string; linear: string };
  totalMemoryBytes: number;
  availableMemoryBytes: number;
  physicalCores: number;
}

/** A GPU that can be used. */
export interface CudaDevice {
  /** As the setting and `--device` name it: the driver's number. */
  index: number;
  name: string;
  /** e.g. `9.0` */
  computeCapability: string;
  totalBytes: number;
  /** When it was asked. */
  freeBytes: number;
}

/** A GPU that is too old, and why. */
export interface RefusedCudaDevice {
  index: number;
  name: string;
  reason: string;
}

export interface CudaDevices {
  usable: CudaDevice[];
  refused: RefusedCudaDevice[];
  /** Newest CUDA that the driver runs, e.g. `13.0`. */
  driverCuda: string;
}

/** Where a session computes. */
export interface Place {
  backend: Backend;
  /** `CudaDevice.index`; 0 on the CPU. */
  device: number;
}

/** A model with random weights, made where it computes; it has no tokenizer. */
export interface SyntheticOptions {
  /** Of all matrices but the norms: a type of ggml in lower case, e.g. `bf16`, `q4_k_m`. */
  weights: string;
  seed: number;
}

export interface Addon {
  machine(): Machine;
  /** Reads header, metadata and vocabulary; no weights. Refuses what cannot be run. */
  openModel(path: string): Promise<NativeModel>;
  /**
   * Opens longsight-cuda.so beside the addon and asks the driver. Both lists are empty when there is
   * no GPU. Throws `deviceUnavailable` for what a person can change: the library is missing or does
   * not load, the driver is missing, too old or does not start. A broken driver may crash or block:
   * only a process that may be lost calls this first (engine/cudaProbe.ts).
   */
  cudaDevices(): CudaDevices;
  /** Throws `invalidParams`, naming what it knows, for another name or type. */
  openSynthetic(name: string, options: SyntheticOptions): NativeModel;
}

export interface ModelSpec extends ModelReport {
  /** The GGUF's Jinja template; empty when it has none. */
  chatTemplate: string;
  bosText: string;
  eosText: string;
  /** The tokenizer wants a BOS token before any prompt. */
  addBos: boolean;
  weightBytes: number;
  /** Number of tokens. */
  vocabulary: number;
}

/** `special`: special tokens in the text are parsed (template pieces); otherwise never. */
export interface Piece {
  text: string | Uint8Array;
  special: boolean;
}

export interface NativeModel {
  readonly spec: ModelSpec;
  /** One token list a piece; pieces do not influence each other. */
  tokenize(pieces: Piece[]): Promise<Int32Array[]>;
  /** Bytes of the tokens; special tokens as their text. */
  detokenize(tokens: Int32Array): Promise<Uint8Array>;
  /** Of a context, 0 = the largest that fits. On a GPU its driver is asked for free memory. */
  estimateMemory(
    options: Place & {
      contextTokens: number;
      params: SampleAttentionParams;
      kvCache: KvCacheType;
    },
  ): MemoryEstimate;
  /** Loads the weights once for all sessions and reserves the KV cache. */
  createSession(
    options: Place & {
      contextTokens: number;
      threads: number;
      ropeBaseScale: number;
      kvCache: KvCacheType;
      /** On a GPU: rows that a prefill takes through all layers together; absent = as it likes. */
      chunkRows?: number;
    },
    onProgress: (doneBytes: number, totalBytes: number) => void,
  ): Promise<NativeSession>;
  dispose(): void;
}

export interface Prompt {
  tokens: Int32Array;
  /** End positions of the parts, ascending; the last is tokens.length. */
  borders: number[];
  /** Position of the first row of the chat and question. */
  denseFrom: number;
  params: SampleAttentionParams;
}

export interface PrefillPlan {
  promptTokens: number;
  reusedTokens: number;
  computedTokens: number;
  predictedPrefillMs: number;
}

export type SessionEvent =
  | { type: 'prefill'; done: number; total: number; tokensPerSecond: number; etaMs: number | null }
  /** Prefill ended; the first token is being sampled. */
  | { type: 'prefilled' }
  | { type: 'text'; text: string };

export interface GenerateResult {
  promptTokens: number;
  reusedTokens: number;
  computedTokens: number;
  generatedTokens: number;
  prefillMs: number;
  decodeMs: number;
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
  stopReason: StopReason;
  attention: AttentionStats;
  memory: MemoryStats;
  /** null when nothing was drafted. */
  speculation: SpeculationStats | null;
  /** Of this prefill, from the GPU's clock; null on the CPU. */
  times: PartTimes | null;
  /**
   * Most of the GPU's memory that was taken since the weights came, as the driver counts; null on the
   * CPU.
   */
  devicePeakBytes: number | null;
}

export interface GenerateOptions {
  /** 0 = prefill only. */
  maxTokens: number;
  sampling: Sampling;
  /** Goes on past the end-of-answer token. */
  ignoreEnd: boolean;
  /** Guess tokens from the prompt and verify several at once; absent = true. */
  speculate?: boolean;
  /**
   * For measurements with random weights, on a GPU: column lists of this density take the place of
   * those that stage 2 has made.
   */
  forcedDensity?: number;
}

export interface ScoreOutcome {
  nll: number;
  /** Share of the predictions whose most likely token is the one that follows. */
  accuracy: number;
  /** Of the scored prefill alone, without the dense one that it is compared with. */
  computedTokens: number;
  prefillMs: number;
  attention: AttentionStats;
  kl?: number;
  top1Agreement?: number;
}

export interface EpsilonChoice {
  /** Over sparse rows of the texts. */
  density: number;
  coverage: number;
  /** [layer * heads + head] */
  headEpsilons: number[];
}

export interface CalibrationOutcome {
  chosen: EpsilonChoice;
  /** `params.epsilon` for every head. */
  plain: EpsilonChoice;
  /** Of `chosen` against dense, when that was the target. */
  kl: number | null;
}

export type ByteProgress = (doneBytes: number, totalBytes: number) => void;

export interface SavedRows {
  tokens: number;
  /** Of the file. */
  bytes: number;
}

/** One KV cache. One operation at a time: a second one throws `internal` while one runs. */
export interface NativeSession {
  /** Rows of the KV cache. */
  readonly contextTokens: number;
  /** What `generate` would reuse, compute and take, from measured speeds of this session. */
  plan(prompt: Prompt): Promise<PrefillPlan>;
  /** Prefill, then decode. */
  generate(
    prompt: Prompt,
    options: GenerateOptions,
    onEvent: (event: SessionEvent) => void,
  ): Promise<GenerateResult>;
  /**
   * Mean negative log-likelihood in nats over the predictions inside the tail: token i from row i - 1
   * for tokens - tail < i < tokens, so tail - 1 of them, all made by rows of the tail. KL(dense || this)
   * and top-1 agreement over the same rows on demand; the dense run is kept for the next policies of
   * the same text (tail x embedding floats). 2 <= tail <= tokens.
   */
  score(
    prompt: Prompt,
    options: { tail: number; againstDense: boolean },
    onEvent: (event: SessionEvent) => void,
  ): Promise<ScoreOutcome>;
  /**
   * Chooses epsilons by head on sample texts: least density for the coverage or KL, or least error
   * at the density of `params.epsilon`. Forgets what is cached and the calibration in use.
   */
  calibrate(
    texts: Int32Array[],
    params: SampleAttentionParams,
    target: { coverage: number | null; kl: number | null },
    onEvent: (event: SessionEvent) => void,
  ): Promise<CalibrationOutcome>;
  /** From now on prompts whose parameters fit have these epsilons. */
  use(calibration: { params: SampleAttentionParams; headEpsilons: number[] }): void;
  /**
   * Writes the first `rows` rows at most, whole sparse segments only, to a file that takes the place
   * of `path` in one step, readable by this user only. Until then `path` stays as it was. A path in
   * /dev/shm keeps the rows in the memory of the machine.
   */
  save(path: string, rows: number, onProgress: ByteProgress): Promise<SavedRows>;
  /** Length of the file that `save` would write. */
  savedBytes(rows: number): number;
  /**
   * Fills the cache with saved rows. What cannot be used rejects with `notSessionFile`,
   * `damagedSessionFile` or `otherSessionFile` (another model, build, cache type or size).
   */
  restore(path: string, onProgress: ByteProgress): Promise<SavedRows>;
  /** Stops the running operation: it rejects with code `cancelled`. Whole segments stay reusable. */
  cancel(): void;
  /** Forgets the rows of the KV cache. */
  reset(): void;
  dispose(): void;
}
