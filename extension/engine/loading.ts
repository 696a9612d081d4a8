/** Keeps one model and one session (KV cache) between requests and replaces them on demand. */
import { access, constants, stat } from 'node:fs/promises';
import type { Addon, ByteProgress, NativeModel, NativeSession } from './addon';
import { findCalibration, useCalibration } from './calibration';
import type { CudaProbe } from './cudaProbe';
import { cancelled, EngineError, toErrorInfo } from './errors';
import { progressOf, type JobContext } from './job';
import { Kept } from './keeping';
import { defaultParams } from './params';
import {
  choosePlacing,
  isGpuRefusal,
  placingWithout,
  type Placing,
  type SessionNeed,
} from './placing';
import type { ModelRequest, SyntheticModel } from './protocol';
import { TokenCache } from './tokenCache';

/** A file, or random weights in its place. */
export type ModelSource = ModelRequest & { synthetic?: SyntheticModel };

export interface OpenModel {
  model: NativeModel;
  tokens: TokenCache;
}

export interface Loaded extends OpenModel {
  session: NativeSession;
  placing: Placing;
  kept: Kept;
  /** Path of the calibration that the session uses where it fits. */
  calibration: string | undefined;
}

export class ModelKeeper {
  private model: (OpenModel & { key: string }) | null = null;
  private session: { key: string; request: ModelRequest; loaded: Loaded } | null = null;
  /** Openings run one after another; one whose request was cancelled still ends properly. */
  private tail: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly addon: () => Addon,
    private readonly cuda: CudaProbe,
  ) {}

  /** Header, metadata and vocabulary; the same model as last time when the file is unchanged. */
  async openModel(request: ModelSource, signal: AbortSignal): Promise<OpenModel> {
    return unlessAborted(
      signal,
      this.inTurn(() => this.switchModel(request)),
    );
  }

  /**
   * Weights and KV cache as well, where the request and the machine allow. Errors: those of the
   * file, `notEnoughMemory`, `invalidParams`, `promptTooLong`, `deviceUnavailable`. On abort it returns at once; what is being read stays for the next request.
   */
  async openSession(request: ModelSource, need: SessionNeed, context: JobContext): Promise<Loaded> {
    const onProgress = progressOf(context, 'load', 'bytes').bytes;
    const loaded = await unlessAborted(
      context.signal,
      this.inTurn(() => this.switchSession(request, need, onProgress)),
    );
    const { place, device, fallback } = loaded.placing;
    context.send({ type: 'place', backend: place.backend, device, fallback });
    return loaded;
  }

  /** The session of the last request; undefined when there is none. */
  openedSession(): Loaded | undefined {
    return this.session?.loaded;
  }

  /** Size of the context that a question would get, without loading weights. */
  async contextTokens({ model }: OpenModel, request: ModelRequest): Promise<number> {
    const open = this.session?.loaded;
    const opened = this.session?.request;
    if (
      open?.model === model &&
      opened?.contextTokens === request.contextTokens &&
      opened.kvCache === request.kvCache &&
      opened.backend === request.backend &&
      opened.device === request.device
    ) {
      return open.session.contextTokens;
    }
    const need = { params: defaultParams, ropeBaseScale: 1, minTokens: 0 };
    return (await choosePlacing(model, request, need, this.cuda)).contextTokens;
  }

  private inTurn<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.tail.then(run);
    this.tail = turn.catch(() => undefined);
    return turn;
  }

  private async switchModel(request: ModelSource): Promise<OpenModel> {
    const { path, synthetic } = request;
    const key = synthetic === undefined ? await fileKey(path) : JSON.stringify(synthetic);
    if (this.model?.key === key) return this.model;
    this.dropModel();
    const model =
      synthetic === undefined
        ? await this.addon().openModel(path)
        : this.addon().openSynthetic(synthetic.name, { weights: synthetic.weights, seed: 1 });
    this.model = { key, model, tokens: new TokenCache(model) };
    return this.model;
  }

  private async switchSession(
    request: ModelSource,
    need: SessionNeed,
    onProgress: ByteProgress,
  ): Promise<Loaded> {
    const { model, tokens } = await this.switchModel(request);
    const threads = request.threads || this.addon().machine().physicalCores;
    const { kvCache } = request;
    const { minTokens, ropeBaseScale } = need;
    const { backend, device } = request;
    const calibration =
      request.calibration === 'off' || request.synthetic !== undefined
        ? null
        : await findCalibration(request.path);
    const key = [
      backend,
      device,
      request.contextTokens,
      minTokens,
      threads,
      ropeBaseScale,
      kvCache,
      calibration?.key,
    ].join('/');
    if (this.session?.key === key && !(await this.couldMove(model, request, need))) {
      return this.session.loaded;
    }
    this.dropSession();
    const create = ({ place, contextTokens }: Placing) =>
      model.createSession({ ...place, contextTokens, threads, ropeBaseScale, kvCache }, onProgress);
    let placing = await choosePlacing(model, request, need, this.cuda);
    let session: NativeSession;
    try {
      session = await create(placing);
    } catch (error) {
      const onGpu = placing.place.backend === 'cuda';
      if (!onGpu || backend !== 'auto' || !isGpuRefusal(error)) throw error;
      const { code, message, action } = toErrorInfo(error);
      placing = placingWithout(new EngineError(code, message, action), model, request, need);
      session = await create(placing);
    }
    if (calibration !== null) useCalibration(session, calibration);
    const loaded: Loaded = {
      model,
      tokens,
      session,
      placing,
      kept: new Kept(),
      calibration: calibration?.path,
    };
    this.session = { key, request, loaded };
    return loaded;
  }

  /** Memory of the GPU that was missing is there now. */
  private async couldMove(
    model: NativeModel,
    request: ModelRequest,
    need: SessionNeed,
  ): Promise<boolean> {
    if (!this.session?.loaded.placing.passing) return false;
    return (await choosePlacing(model, request, need, this.cuda)).place.backend === 'cuda';
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
