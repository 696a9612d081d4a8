/**
 * The asking side of the engine: what the editor and the command line use. It starts the engine
 * process when it is needed, keeps a visible queue in front of it, measures the time to the first
 * token, and survives the process.
 */
import { randomUUID } from 'node:crypto';
import { EngineChild, type ChildEnd } from './child';
import { FirstTokenClock } from './clock';
import { CrashRecord, describeCrash } from './crashes';
import { cancelled, EngineError } from './errors';
import type { EvaluationResult } from './evaluation';
import type {
  AskRequest,
  AskResult,
  BenchRequest,
  BenchResult,
  DoctorRequest,
  DoctorResult,
  EvaluateRequest,
  Event,
  JobRequest,
  PackRequest,
  PackResult,
  Phase,
  ResultEvent,
  CalibrateRequest,
  CalibrateResult,
  SaveRequest,
  SaveResult,
  ScoreRequest,
  ScoreResult,
  Stats,
} from './protocol';

/** `AskResult` with the asking side's clock in its stats. */
export type AskAnswer = Omit<AskResult, 'stats'> & { stats: Stats };

export interface JobOptions {
  /** Conversation or caller that the request belongs to; default: one per engine. */
  sessionId?: string;
  signal?: AbortSignal;
  /** Every event of this request, in order; first called after the request function returned. */
  onEvent?: (event: Event) => void;
}

/** A request under way. `result` rejects with an `EngineError`. */
export interface Job<R> {
  readonly sessionId: string;
  readonly requestId: string;
  readonly result: Promise<R>;
  /** Leaves the queue, or stops the engine; `result` then rejects with code `cancelled`. */
  cancel(): void;
  /** Answers a `confirm` event with yes. */
  proceed(): void;
}

export type LogLevel = 'info' | 'warn' | 'error';

export interface EngineOptions {
  /** Absolute path of the bundled worker.js; longsight.node lies beside it. */
  workerPath: string;
  /** Computes below normal priority, so that typing in an editor comes first; default true. */
  background?: boolean;
  /** How long a process that holds memory of a GPU may idle before it is ended; 0 = for ever. */
  gpuIdleMs?: () => number;
  log?: (level: LogLevel, text: string) => void;
}

type Body<T extends JobRequest> = Omit<T, 'type' | 'sessionId' | 'requestId'>;
type AnyResult = ResultEvent['result'];

interface Pending {
  request: JobRequest;
  onEvent: ((event: Event) => void) | undefined;
  clock: FirstTokenClock;
  phase: Phase;
  ahead: number;
  cancelRequested: boolean;
  settle(outcome: { result: AnyResult } | { error: EngineError }): void;
}

const closeGraceMs = 3_000;
const watchMs = 5_000;
const silenceMs = 15_000;
// Between segments of a prefill the engine looks at its cancel flag many times a second.
const unansweredCancelMs = 15_000;

export class Engine {
  private child: EngineChild | null = null;
  private running: Pending | null = null;
  private readonly waiting: Pending[] = [];
  private readonly crashes = new CrashRecord();
  private readonly defaultSession = randomUUID();
  private disposed = false;
  private watch: NodeJS.Timeout | null = null;
  private lastHeardMs = 0;
  private silenceLogged = false;
  private onGpu = false;
  private release: NodeJS.Timeout | null = null;

  constructor(private readonly options: EngineOptions) {}

  /** Process id of the engine process while there is one. */
  get pid(): number | undefined {
    return this.child?.pid;
  }

  ask(body: Body<AskRequest>, options: JobOptions = {}): Job<AskAnswer> {
    return this.submit({ type: 'ask', ...body }, options);
  }

  /**
   * Saves what was read of the workspace. Every other request goes first: it stops a save that runs
   * or waits, which then rejects with `cancelled`.
   */
  save(body: Body<SaveRequest>, options: JobOptions = {}): Job<SaveResult> {
    return this.submit({ type: 'save', ...body }, options);
  }

  pack(body: Body<PackRequest>, options: JobOptions = {}): Job<PackResult> {
    return this.submit({ type: 'pack', ...body }, options);
  }

  calibrate(body: Body<CalibrateRequest>, options: JobOptions = {}): Job<CalibrateResult> {
    return this.submit({ type: 'calibrate', ...body }, options);
  }

  score(body: Body<ScoreRequest>, options: JobOptions = {}): Job<ScoreResult> {
    return this.submit({ type: 'score', ...body }, options);
  }

  bench(body: Body<BenchRequest>, options: JobOptions = {}): Job<BenchResult> {
    return this.submit({ type: 'bench', ...body }, options);
  }

  /** The parts of the result come as `evaluated` events, too, which remain when the rest fails. */
  evaluate(body: Body<EvaluateRequest>, options: JobOptions = {}): Job<EvaluationResult> {
    return this.submit({ type: 'evaluate', ...body }, options);
  }

  doctor(body: Body<DoctorRequest>, options: JobOptions = {}): Job<DoctorResult> {
    return this.submit({ type: 'doctor', ...body }, options);
  }

  /** Ends all requests with `cancelled` and the process with them. */
  async dispose(): Promise<void> {
    this.disposed = true;
    for (const job of [...this.waiting.splice(0), ...(this.running ? [this.running] : [])]) {
      job.settle({ error: cancelled() });
    }
    this.running = null;
    const child = this.child;
    this.child = null;
    this.stopWatch();
    this.keep();
    await child?.close(closeGraceMs);
  }

  private submit<R>(
    body: Omit<JobRequest, 'sessionId' | 'requestId'>,
    options: JobOptions,
  ): Job<R> {
    const clock = new FirstTokenClock(() => performance.now());
    const sessionId = options.sessionId ?? this.defaultSession;
    const requestId = randomUUID();
    const request = { ...body, sessionId, requestId } as JobRequest;
    let job!: Pending;
    const result = new Promise<R>((resolve, reject) => {
      let settled = false;
      job = {
        request,
        onEvent: options.onEvent,
        clock,
        phase: 'queue',
        ahead: -1,
        cancelRequested: false,
        settle: (outcome) => {
          if (settled) return;
          settled = true;
          options.signal?.removeEventListener('abort', onAbort);
          if ('error' in outcome) reject(outcome.error);
          else resolve(outcome.result as R);
        },
      };
    });
    const onAbort = () => this.cancel(job);
    if (options.signal?.aborted) queueMicrotask(onAbort);
    else options.signal?.addEventListener('abort', onAbort, { once: true });
    if (request.type !== 'save') this.cancelSaves();
    this.waiting.push(job);
    // The caller gets its handle before the first event.
    queueMicrotask(() => this.next());
    return {
      sessionId,
      requestId,
      result,
      cancel: onAbort,
      proceed: () => {
        clock.resume();
        if (this.running === job) this.child?.send({ type: 'proceed', sessionId, requestId });
      },
    };
  }

  /** Starts the first waiting request when none runs, and tells the others their place. */
  private next(): void {
    const failure = this.disposed ? cancelled() : this.crashes.refusal();
    if (failure) {
      for (const job of this.waiting.splice(0)) job.settle({ error: failure });
      return;
    }
    if (!this.running) {
      const job = this.waiting.shift();
      if (!job) return this.releaseLater();
      this.keep();
      this.tellPlace(job, 0);
      this.running = job;
      this.beginPhase(job, 'load');
      try {
        this.child ??= this.startChild();
      } catch (error) {
        this.running = null;
        job.settle({ error: cannotStart(error) });
        this.next();
        return;
      }
      this.child.send(job.request);
    }
    this.waiting.forEach((job, index) => this.tellPlace(job, index + 1));
  }

  /** The process is needed. */
  private keep(): void {
    if (this.release) clearTimeout(this.release);
    this.release = null;
  }

  /**
   * The process idles. Others want the memory of a GPU, too, and only the end of a process gives all
   * of it back; what was read is on the disk by then, from where the next process takes it.
   */
  private releaseLater(): void {
    this.keep();
    const idleMs = this.options.gpuIdleMs?.() ?? 0;
    if (!this.onGpu || idleMs === 0) return;
    this.release = setTimeout(
      () => this.endChild('it was idle and held memory of the GPU'),
      idleMs,
    );
    this.release.unref();
  }

  private endChild(reason: string): void {
    const child = this.child;
    this.child = null;
    this.onGpu = false;
    this.stopWatch();
    this.log('info', `The engine process is ended: ${reason}.`);
    void child?.close(closeGraceMs);
  }

  private tellPlace(job: Pending, ahead: number): void {
    if (job.ahead === ahead) return;
    job.ahead = ahead;
    this.emit(job, { type: 'phase', ...address(job), phase: 'queue', ahead });
  }

  /** `load` begins here and not in the process, so that it holds the start of the process too. */
  private beginPhase(job: Pending, phase: Phase): void {
    job.phase = phase;
    job.clock.phase(phase);
    this.emit(job, { type: 'phase', ...address(job), phase });
  }

  private cancel(job: Pending): void {
    const place = this.waiting.indexOf(job);
    if (place >= 0) {
      this.waiting.splice(place, 1);
      job.settle({ error: cancelled() });
      this.next();
      return;
    }
    if (this.running !== job || job.cancelRequested) return;
    job.cancelRequested = true;
    const child = this.child;
    child?.send({ type: 'cancel', ...address(job) });
    const timer = setTimeout(() => {
      if (this.running !== job || this.child !== child) return;
      this.log('error', 'The engine did not answer the request to stop: ending its process.');
      child?.kill();
    }, unansweredCancelMs);
    timer.unref();
  }

  private cancelSaves(): void {
    for (const job of [...this.waiting, this.running]) {
      if (job?.request.type === 'save') this.cancel(job);
    }
  }

  private startChild(): EngineChild {
    const child: EngineChild = new EngineChild(
      this.options.workerPath,
      this.options.background ?? true,
      {
        onEvent: (event) => {
          if (this.child === child) this.receive(event);
        },
        onLine: (line) => this.log('info', line),
        onEnd: (end) => {
          if (this.child === child) this.lost(end);
        },
      },
    );
    this.log('info', `Engine process ${child.pid ?? '?'} started.`);
    this.heard();
    this.watch = setInterval(() => this.checkSilence(), watchMs);
    this.watch.unref();
    return child;
  }

  private receive(event: Event): void {
    this.heard();
    if (event.type === 'log') this.log(event.level, event.text);
    const job = this.running;
    if (!job || event.requestId !== job.request.requestId) return;
    switch (event.type) {
      case 'phase':
        this.beginPhase(job, event.phase);
        return;
      case 'place':
        this.onGpu = event.backend === 'cuda';
        break;
      case 'confirm':
        job.clock.pause();
        break;
      case 'token':
      case 'thinking':
        job.clock.firstToken();
        break;
      case 'result':
        this.finish(job, event);
        return;
      case 'error':
        this.running = null;
        // A GPU that has failed answers no process that has used it.
        if (this.onGpu && event.error.code === 'deviceUnavailable') this.endChild('its GPU failed');
        this.emit(job, event);
        job.settle({
          error: new EngineError(event.error.code, event.error.message, event.error.action),
        });
        this.next();
        return;
      default:
        break;
    }
    this.emit(job, event);
  }

  private finish(job: Pending, event: ResultEvent): void {
    this.running = null;
    job.clock.firstToken();
    const result =
      job.request.type === 'ask' ? withClock(event.result as AskResult, job.clock) : event.result;
    this.emit(job, { ...event, result });
    job.settle({ result });
    this.next();
  }

  /** The process is gone without having been asked to go. */
  private lost(end: ChildEnd): void {
    this.child = null;
    this.onGpu = false;
    this.stopWatch();
    const job = this.running;
    this.running = null;
    if (job?.cancelRequested) {
      this.log('warn', describeCrash(end, job.phase));
      job.settle({ error: cancelled() });
    } else {
      const error = this.crashes.add(end, job?.phase ?? null);
      this.log('error', error.message);
      if (job) {
        this.emit(job, { type: 'error', ...address(job), error: error.info });
        job.settle({ error });
      }
    }
    // Those that waited did nothing wrong: they go on with a new process.
    this.next();
  }

  private heard(): void {
    this.lastHeardMs = performance.now();
    this.silenceLogged = false;
  }

  /** A busy machine may starve the process: silence is worth a line, never a kill. */
  private checkSilence(): void {
    const silentMs = performance.now() - this.lastHeardMs;
    if (silentMs < silenceMs || this.silenceLogged || !this.running) return;
    this.silenceLogged = true;
    this.log('warn', `The engine has not been heard for ${Math.round(silentMs / 1000)} s.`);
  }

  private stopWatch(): void {
    if (this.watch) clearInterval(this.watch);
    this.watch = null;
  }

  private emit(job: Pending, event: Event): void {
    try {
      job.onEvent?.(event);
    } catch (error) {
      this.log('error', `A listener failed: ${String(error)}`);
    }
  }

  private log(level: LogLevel, text: string): void {
    this.options.log?.(level, text);
  }
}

function address(job: Pending): { sessionId: string; requestId: string } {
  return { sessionId: job.request.sessionId, requestId: job.request.requestId };
}

function withClock(result: AskResult, clock: FirstTokenClock): AskAnswer {
  return { ...result, stats: { ...result.stats, ...clock.times() } };
}

function cannotStart(error: unknown): EngineError {
  const text = error instanceof Error ? error.message : String(error);
  return new EngineError(
    'engineCrashed',
    `The engine process cannot be started: ${text}.`,
    'Free memory or processes on this machine, then ask again.',
  );
}
