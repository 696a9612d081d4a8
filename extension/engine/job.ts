/** What one running request of the engine process can use. */
import type { NativeSession, SessionEvent } from './addon';
import { cancelled } from './errors';
import type { Event, Phase, ProgressEvent } from './protocol';

type Unaddressed<T> = T extends unknown ? Omit<T, 'sessionId' | 'requestId'> : never;
export type JobEvent = Unaddressed<Event>;

export interface JobContext {
  send(event: JobEvent): void;
  signal: AbortSignal;
  /** Resolves when the asking side says `proceed`; rejects when it cancels. */
  proceeded(): Promise<void>;
  /** Monotonic clock in ms. */
  now(): number;
}

/** Begins a phase on the asking side. */
export function beginPhase(context: JobContext, phase: Phase): void {
  throwIfCancelled(context);
  context.send({ type: 'phase', phase });
}

export function throwIfCancelled(context: JobContext): void {
  if (context.signal.aborted) throw cancelled();
}

/** Runs one operation of a session so that the request's signal stops it. */
export async function stoppable<T>(
  context: JobContext,
  session: NativeSession,
  run: () => Promise<T>,
): Promise<T> {
  throwIfCancelled(context);
  const stop = () => session.cancel();
  const running = run();
  context.signal.addEventListener('abort', stop, { once: true });
  try {
    return await running;
  } finally {
    context.signal.removeEventListener('abort', stop);
  }
}

const progressEveryMs = 100;

type Measured = Pick<ProgressEvent, 'done' | 'total'> &
  Partial<Pick<ProgressEvent, 'perSecond' | 'etaMs'>>;

export interface Progress {
  report(measured: Measured): void;
  /** In the shapes in which the addon reports. */
  bytes(doneBytes: number, totalBytes: number): void;
  session(event: SessionEvent): void;
}

/**
 * Reports progress of one phase, at most ten times a second and always at the end. Speed and time
 * left are derived from the clock where the source does not know them.
 */
export function progressOf(
  context: JobContext,
  phase: Phase,
  unit: ProgressEvent['unit'],
): Progress {
  const startMs = context.now();
  let lastMs = -Infinity;
  const report = ({ done, total, perSecond, etaMs }: Measured) => {
    const nowMs = context.now();
    if (done !== total && nowMs - lastMs < progressEveryMs) return;
    lastMs = nowMs;
    const seconds = (nowMs - startMs) / 1000;
    const speed = perSecond ?? (seconds > 0 ? done / seconds : 0);
    const left = total > 0 && speed > 0 ? ((total - done) / speed) * 1000 : null;
    context.send({
      type: 'progress',
      phase,
      done,
      total,
      unit,
      perSecond: speed,
      etaMs: etaMs === undefined ? left : etaMs,
    });
  };
  return {
    report,
    bytes: (done, total) => report({ done, total }),
    session: (event) => {
      if (event.type !== 'prefill') return;
      const { done, total, tokensPerSecond: perSecond, etaMs } = event;
      report({ done, total, perSecond, etaMs });
    },
  };
}
