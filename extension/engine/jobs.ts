/** Runs the requests that reach the engine process, one at a time. */
import type { Addon } from './addon';
import { runAsk } from './asking';
import { runBench } from './benching';
import { runCalibrate } from './calibrating';
import type { CudaProbe } from './cudaProbe';
import { runDoctor } from './doctor';
import { cancelled, toErrorInfo } from './errors';
import { runEvaluate } from './evaluating';
import type { JobContext } from './job';
import { runSave } from './keeping';
import { ModelKeeper, unlessAborted } from './loading';
import type { Event, JobRequest, Request, ResultEvent } from './protocol';
import { runPack } from './packing';
import { requireValidRequest } from './requests';
import { runScore } from './scoring';

export interface JobsParts {
  /** Loads the addon on first use; throws a typed error when it cannot. */
  addon: () => Addon;
  cuda: CudaProbe;
  send: (event: Event) => void;
  /** Monotonic clock in ms. */
  now: () => number;
  version: string;
}

interface Running {
  sessionId: string;
  requestId: string;
  abort: AbortController;
  proceed: () => void;
  proceeded: Promise<void>;
}

export class Jobs {
  private running: Running | null = null;
  private readonly keeper: ModelKeeper;

  constructor(private readonly parts: JobsParts) {
    this.keeper = new ModelKeeper(parts.addon, parts.cuda);
  }

  /** Address of the running request; empty strings when there is none. */
  current(): { sessionId: string; requestId: string } {
    const { sessionId = '', requestId = '' } = this.running ?? {};
    return { sessionId, requestId };
  }

  handle(request: Request): void {
    switch (request.type) {
      case 'cancel':
        if (this.running?.requestId === request.requestId) this.running.abort.abort();
        break;
      case 'proceed':
        if (this.running?.requestId === request.requestId) this.running.proceed();
        break;
      default:
        void this.run(request);
    }
  }

  private async run(request: JobRequest): Promise<void> {
    const { sessionId, requestId } = request;
    const { send } = this.parts;
    if (this.running) {
      const message = `Request ${requestId} came while ${this.running.requestId} was running.`;
      send({ type: 'error', sessionId, requestId, error: toErrorInfo(new Error(message)) });
      return;
    }
    let proceed = () => {};
    const proceeded = new Promise<void>((resolve) => (proceed = resolve));
    const running = { sessionId, requestId, abort: new AbortController(), proceed, proceeded };
    this.running = running;
    const context: JobContext = {
      send: (event) => send({ ...event, sessionId, requestId } as Event),
      signal: running.abort.signal,
      proceeded: () => unlessAborted(running.abort.signal, proceeded),
      now: this.parts.now,
    };
    let last: Event;
    try {
      const result = await this.dispatch(request, context);
      context.send({ type: 'phase', phase: 'done' });
      last = { type: 'result', sessionId, requestId, result };
    } catch (error) {
      // Stopping native work may surface as another error of the interrupted step.
      const reason = context.signal.aborted ? cancelled() : error;
      const info = toErrorInfo(reason);
      if (info.code === 'internal' && error instanceof Error) {
        context.send({ type: 'log', level: 'error', text: error.stack ?? error.message });
      }
      last = { type: 'error', sessionId, requestId, error: info };
    }
    // Free before the asking side learns of the end, since it then sends the next request.
    this.running = null;
    send(last);
  }

  private dispatch(request: JobRequest, context: JobContext): Promise<ResultEvent['result']> {
    requireValidRequest(request);
    switch (request.type) {
      case 'ask':
        return runAsk(request, this.keeper, context);
      case 'save':
        return runSave(request, this.keeper, context);
      case 'pack':
        return runPack(request, this.keeper, context);
      case 'score':
        return runScore(request, this.keeper, context);
      case 'calibrate':
        return runCalibrate(request, this.keeper, context);
      case 'bench':
        return runBench(request, this.keeper, context);
      case 'evaluate':
        return runEvaluate(request, this.keeper, context);
      case 'doctor':
        return runDoctor(request, this.parts, this.keeper, context);
    }
  }
}
