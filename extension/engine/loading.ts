/** Keeps one model and one session (KV cache) between requests and replaces them on demand. */
import { access, constants, stat } from 'node:fs/promises';
import type { Addon, NativeModel, NativeSession } from './addon';
import { findCalibration, useCalibration } from './calibration';
import { cancelled, EngineError, invalidParams } from './errors';
import { Kept } from './keeping';
import { defaultParams } from './params';
import type { KvCacheType, MemoryEstimate, ModelRequest, SampleAttentionParams } from './protocol';
import { TokenCache } from './tokenCache';

export interface SessionNeed {
  params: SampleAttentionParams;
  ropeBaseScale: number;
  /** The KV cache must hold at least this many tokens; 0 = as many as the request says. */
  minTokens: number;
}

export interface OpenModel {
  model: NativeModel;
  tokens: TokenCache;
}

export interface Loaded extends OpenModel {
  session: NativeSession;
  kept: Kept;
  /** Path of the calibration that the session uses where it fits. */
  calibration: string | undefined;
}

export type LoadProgress = (doneBytes: number, totalBytes: number) => void;

// Less than this holds no question about a workspace.
const smallestContextTokens = 512;

export class ModelKeeper {
  private model: (OpenModel & { key: string }) | null = null;
  private session: { key: string; request: ModelRequest; loaded: Loaded } | null = null;
  /** Openings run one after another; one whose request was cancelled still ends properly. */
  private tail: Promise<unknown> = Promise.resolve();

  constructor(private readonly addon: () => Addon) {}

  /** Header, metadata and vocabulary; the same model as last time when the file is unchanged. */
  async openModel(request: ModelRequest, signal: AbortSignal): Promise<OpenModel> {
    return unlessAborted(
      signal,
      this.inTurn(() => this.switchModel(request)),
    );
  }

  /**
   * Weights and KV cache as well. Errors: those of the file, `notEnoughMemory`, `invalidParams`,
   * `promptTooLong`. On abort it returns at once; what is being read stays for the next request.
   */
  async openSession(
    request: ModelRequest,
    need: SessionNeed,
    onProgress: LoadProgress,
    signal: AbortSignal,
  ): Promise<Loaded> {
    return unlessAborted(
      signal,
      this.inTurn(() => this.switchSession(request, need, onProgress)),
    );
  }

  /** The session of the last request; undefined when there is none. */
  openedSession(): Loaded | undefined {
    return this.session?.loaded;
  }

  /** Size of the context that a question would get, without loading weights. */
  contextTokens({ model }: OpenModel, request: ModelRequest): number {
    const open = this.session?.loaded;
    const opened = this.session?.request;
    if (
      open?.model === model &&
      opened?.contextTokens === request.contextTokens &&
      opened.kvCache === request.kvCache
    ) {
      return open.session.contextTokens;
    }
    return chooseContext(model, request, {
      params: defaultParams,
      ropeBaseScale: 1,
      minTokens: 0,
    });
  }

  private inTurn<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.tail.then(run);
    this.tail = turn.catch(() => undefined);
    return turn;
  }

  private async switchModel(request: ModelRequest): Promise<OpenModel> {
    requireDevice(request);
    const key = await fileKey(request.path);
    if (this.model?.key === key) return this.model;
    this.dropModel();
    const model = await this.addon().openModel(request.path);
    this.model = { key, model, tokens: new TokenCache(model) };
    return this.model;
  }

  private async switchSession(
    request: ModelRequest,
    need: SessionNeed,
    onProgress: LoadProgress,
  ): Promise<Loaded> {
    const { model, tokens } = await this.switchModel(request);
    const threads = request.threads || this.addon().machine().physicalCores;
    const { kvCache } = request;
    const { minTokens, ropeBaseScale } = need;
    const calibration = request.calibration === 'off' ? null : await findCalibration(request.path);
    const key = [
      request.contextTokens,
      minTokens,
      threads,
      ropeBaseScale,
      kvCache,
      calibration?.key,
    ].join('/');
    if (this.session?.key === key) return this.session.loaded;
    this.dropSession();
    const contextTokens = chooseContext(model, request, need);
    const session = await model.createSession(
      { backend: 'cpu', device: 0, contextTokens, threads, ropeBaseScale, kvCache },
      onProgress,
    );
    if (calibration !== null) useCalibration(session, calibration);
    const loaded = { model, tokens, session, kept: new Kept(), calibration: calibration?.path };
    this.session = { key, request, loaded };
    return loaded;
  }

  private dropSession(): void {
    this.session?.loaded.session.dispose();
    this.session = null;
  }

  private dropModel(): void {
    this.dropSession();
    this.model?.model.dispose();
    this.model = null;
  }
}

/** Size of the KV cache in tokens, within the model's context and the memory of this machine. */
function chooseContext(model: NativeModel, request: ModelRequest, need: SessionNeed): number {
  const trained = Math.floor(model.spec.contextTokens * need.ropeBaseScale);
  if (need.minTokens > trained) {
    throw new EngineError(
      'promptTooLong',
      `${need.minTokens} tokens do not fit into the model's context of ${trained}.`,
      'Use fewer tokens, a model with a longer context, or a larger --rope-base-scale.',
    );
  }
  if (request.contextTokens > trained) {
    throw invalidParams(
      `contextTokens = ${request.contextTokens} is above the model's context of ${trained}.`,
      `Use ${trained} or less, or 0 for as much as fits.`,
    );
  }
  if (request.contextTokens > 0 && request.contextTokens < need.minTokens) {
    throw new EngineError(
      'promptTooLong',
      `${need.minTokens} tokens do not fit into contextTokens = ${request.contextTokens}.`,
      'Use fewer tokens, or a larger context, or 0 for as much as is needed.',
    );
  }
  const wanted = request.contextTokens || need.minTokens || trained;
  const estimateWith = (kvCache: KvCacheType) =>
    model.estimateMemory({
      backend: 'cpu',
      device: 0,
      contextTokens: wanted,
      params: need.params,
      kvCache,
    });
  const estimate = estimateWith(request.kvCache);
  if (estimate.fits) return wanted;
  const largest = estimate.largestContextTokens;
  const flexible = request.contextTokens === 0 && need.minTokens === 0;
  if (flexible && largest >= smallestContextTokens) return Math.min(largest, wanted);
  throw notEnoughMemory(model, estimate, request.kvCache === 'q8' ? null : estimateWith('q8'));
}

/** `smaller`: what the same context would need with a smaller KV cache, if there is one. */
function notEnoughMemory(
  model: NativeModel,
  estimate: MemoryEstimate,
  smaller: MemoryEstimate | null,
): EngineError {
  const { weightBytes, kvBytes, scratchBytes, availableBytes, contextTokens } = estimate;
  const total = weightBytes + kvBytes + scratchBytes;
  const largest = estimate.largestContextTokens;
  const ways: string[] = [];
  if (largest >= smallestContextTokens) ways.push(`use a context of ${largest} tokens or less`);
  if (smaller?.fits) ways.push('keep the KV cache as q8');
  else if (smaller && smaller.largestContextTokens >= smallestContextTokens) {
    ways.push(`keep the KV cache as q8 with a context of ${smaller.largestContextTokens} or less`);
  }
  if (ways.length === 0) ways.push('use a smaller model or a smaller quantization');
  return new EngineError(
    'notEnoughMemory',
    `${model.spec.name} with a context of ${contextTokens} tokens needs ${gib(total)} ` +
      `(weights ${gib(weightBytes)}, KV cache ${gib(kvBytes)}, scratch ${gib(scratchBytes)}); ` +
      `${gib(availableBytes)} are available.`,
    capitalized(`${[...ways, 'free memory'].join(', or ')}.`),
  );
}

function capitalized(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function gib(bytes: number): string {
  return bytes >= 2 ** 30
    ? `${(bytes / 2 ** 30).toFixed(1)} GiB`
    : `${Math.ceil(bytes / 2 ** 20)} MiB`;
}

function requireDevice(request: ModelRequest): void {
  if (request.backend !== 'cuda') return;
  throw new EngineError(
    'deviceUnavailable',
    'Backend cuda is not available: this version computes on the CPU only.',
    'Use the backend cpu or auto.',
  );
}

/** Changes when the file does. */
async function fileKey(path: string): Promise<string> {
  if (path === '') {
    throw new EngineError('noModel', 'No model is chosen.', 'Choose a GGUF file.');
  }
  try {
    const info = await stat(path);
    if (!info.isFile()) {
      throw new EngineError(
        'notGguf',
        `${path} is not a file.`,
        'Choose a GGUF file, not the folder that holds it.',
      );
    }
    await access(path, constants.R_OK);
    return [path, info.mtimeMs, info.size].join('|');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') {
      throw new EngineError(
        'modelNotFound',
        `There is no model file ${path}.`,
        'Choose an existing GGUF file.',
      );
    }
    if (code === 'EACCES' || code === 'EPERM') {
      throw new EngineError(
        'unreadableFile',
        `The model file ${path} may not be read by this user (${code}).`,
        `Allow reading, e.g. with chmod +r, or choose another file.`,
      );
    }
    throw error;
  }
}

/** The promise, unless the signal fires first; the work behind the promise goes on. */
export function unlessAborted<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(cancelled());
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
