/** Progress on standard error: one line that is rewritten on a terminal, few lines elsewhere. */
import type { Event, Phase } from '../engine/protocol';
import { formatSpeed, progressText, type Progress } from '../status/format';

const rewriteEveryMs = 100;
const plainEveryMs = 10_000;

export class ProgressLine {
  private state: Progress = emptyProgress('queue');
  private shown = false;
  private lastMs = -Infinity;

  constructor(
    private readonly write: (text: string) => void,
    private readonly terminal: boolean,
    /** Thoughts are written where this line is. */
    private readonly thoughtsShown = false,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** Tokens are not progress: the answer itself shows it, and so does a thought that is shown. */
  show(event: Event): void {
    if (event.type === 'phase') {
      this.state = { ...emptyProgress(event.phase), ahead: event.ahead ?? 0 };
      if (this.isSilent(event.phase)) this.clear();
      else this.print(true);
    } else if (event.type === 'progress' && event.phase === this.state.phase) {
      this.state = {
        ...this.state,
        share: event.total > 0 ? event.done / event.total : null,
        etaMs: event.etaMs,
        perSecond: event.unit === 'tokens' ? event.perSecond : 0,
      };
      if (!this.isSilent(event.phase)) this.print(false);
    }
  }

  /** Takes the line away before something else is written. */
  clear(): void {
    if (this.shown) this.write('\r\x1b[2K');
    this.shown = false;
  }

  private isSilent(phase: Phase): boolean {
    return phase === 'decode' || phase === 'done' || (phase === 'thinking' && this.thoughtsShown);
  }

  private print(newPhase: boolean): void {
    const nowMs = this.now();
    const every = this.terminal ? rewriteEveryMs : plainEveryMs;
    if (!newPhase && nowMs - this.lastMs < every) return;
    this.lastMs = nowMs;
    const speed = this.state.perSecond > 0 ? ` · ${formatSpeed(this.state.perSecond)}` : '';
    const line = progressText(this.state) + speed;
    if (this.terminal) {
      this.write(`\r\x1b[2K${line}`);
      this.shown = true;
    } else {
      this.write(`${line}\n`);
    }
  }
}

function emptyProgress(phase: Phase): Progress {
  return { phase, ahead: 0, share: null, etaMs: null, perSecond: 0 };
}
