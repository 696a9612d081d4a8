/** How often the engine process was lost, and when to stop starting it anew. */
import type { ChildEnd } from './child';
import { EngineError } from './errors';
import type { Phase } from './protocol';

const limit = 3;
const windowMs = 5 * 60_000;

export class CrashRecord {
  private times: number[] = [];
  private last = '';

  /** `now` in ms, monotonic. */
  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Records a crash and returns the error for the request that was running. */
  add(end: ChildEnd, phase: Phase | null): EngineError {
    this.times.push(this.now());
    this.last = describeCrash(end, phase);
    return new EngineError('engineCrashed', this.last, wayOut(end));
  }

  /** Why no new process is started now; `null` when one may be. */
  refusal(): EngineError | null {
    const now = this.now();
    this.times = this.times.filter((time) => now - time < windowMs);
    const oldest = this.times.at(-limit);
    if (oldest === undefined) return null;
    const waitSeconds = Math.ceil((windowMs - (now - oldest)) / 1000);
    return new EngineError(
      'engineCrashed',
      `The engine process crashed ${this.times.length} times in 5 minutes. ${this.last}`,
      `See the log, try a smaller model or context, and ask again in ${waitSeconds} s.`,
    );
  }
}

export function describeCrash(end: ChildEnd, phase: Phase | null): string {
  return `The engine process ${describeEnd(end, phase === null ? '' : ` in phase ${phase}`)}`;
}

/** `was ended by signal SIGSEGV. Its last line: …` */
export function describeEnd(end: ChildEnd, when = ''): string {
  const how = end.failure
    ? `could not be run (${end.failure})`
    : end.signal !== null
      ? `was ended by signal ${end.signal}`
      : `ended with exit code ${end.exitCode ?? 'unknown'}`;
  const lastLine = end.lastLines.filter((line) => line.trim() !== '').at(-1);
  const said = lastLine === undefined ? '' : ` Its last line: ${lastLine.trim().slice(0, 300)}`;
  return `${how}${when}.${said}`;
}

function wayOut(end: ChildEnd): string {
  return end.signal === 'SIGKILL'
    ? 'Ask again: it starts anew. If the system ended it for lack of memory, use a smaller model or context.'
    : 'Ask again: it starts anew. If this repeats, see the log and try a smaller model or context.';
}
