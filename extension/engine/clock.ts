/**
 * Time to first token, from one monotonic clock: the asking side's. Each boundary is the arrival of
 * an event, so the phases sum to the total by construction. Time in which a person is asked whether
 * to start is not counted.
 */
import type { Phase, PhaseTimes } from './protocol';

const before = ['queue', 'load', 'scan', 'tokenize', 'prefill', 'firstToken'] as const;
type Counted = (typeof before)[number];

export interface FirstTokenTimes {
  ttftMs: number;
  phases: PhaseTimes;
}

export class FirstTokenClock {
  private readonly spent: Record<Counted, number> = {
    queue: 0,
    load: 0,
    scan: 0,
    tokenize: 0,
    prefill: 0,
    firstToken: 0,
  };
  private current: Counted = 'queue';
  private since: number;
  private paused = false;
  private stopped = false;

  /** `now` is monotonic, in ms. The clock starts here: create it on submit. */
  constructor(private readonly now: () => number) {
    this.since = now();
  }

  /** A phase begins. A phase never begins twice and never goes back. */
  phase(phase: Phase): void {
    if (this.stopped) return;
    const index = before.indexOf(phase as Counted);
    if (index <= before.indexOf(this.current)) {
      // What is not counted lies behind the first token.
      if (index < 0) this.firstToken();
      return;
    }
    this.settle();
    this.current = phase as Counted;
  }

  /** A person is being asked. */
  pause(): void {
    if (this.stopped || this.paused) return;
    this.settle();
    this.paused = true;
  }

  resume(): void {
    if (this.stopped || !this.paused) return;
    this.since = this.now();
    this.paused = false;
  }

  /** The first token arrived; everything later is ignored. */
  firstToken(): void {
    if (this.stopped) return;
    this.settle();
    this.stopped = true;
  }

  /** Valid after the first token; before it, the times so far. */
  times(): FirstTokenTimes {
    const { queue, load, scan, tokenize, prefill, firstToken } = this.spent;
    return {
      ttftMs: queue + load + scan + tokenize + prefill + firstToken,
      phases: {
        queueMs: queue,
        loadMs: load,
        scanMs: scan,
        tokenizeMs: tokenize,
        prefillMs: prefill,
        firstTokenMs: firstToken,
      },
    };
  }

  private settle(): void {
    const at = this.now();
    if (!this.paused) this.spent[this.current] += at - this.since;
    this.since = at;
    this.paused = false;
  }
}
