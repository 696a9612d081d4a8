/** Decides on the asking side when a session is saved: after an answer, when nobody asks. */
import type { Engine } from './client';
import { toErrorInfo } from './errors';

export interface SavePlace {
  /** Absolute path; empty = sessions are not kept. */
  file: string;
  /** Most that all saved sessions together may take. */
  mostFolderBytes: number;
}

/** The next question usually comes soon after an answer, and goes first. */
export const idleMs = 20_000;
/** Spares the disk while files are edited between questions. */
export const againAfterMs = 600_000;

export class IdleSaver {
  private timer: NodeJS.Timeout | null = null;
  private readonly savedAtMs = new Map<string, number>();

  constructor(
    private readonly engine: Pick<Engine, 'save'>,
    private readonly log: (text: string) => void,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** A question is asked. (A save that is already running, the engine stops by itself.) */
  asked(): void {
    if (this.timer) clearTimeout(this.timer);
    this.timer = null;
  }

  /** A question has ended, with an answer or without: what was read is worth keeping. */
  ended(place: SavePlace): void {
    this.asked();
    if (place.file === '') return;
    const last = this.savedAtMs.get(place.file);
    const wait = last === undefined ? 0 : last + againAfterMs - this.now();
    this.timer = setTimeout(() => void this.save(place), Math.max(idleMs, wait));
    this.timer.unref();
  }

  private async save(place: SavePlace): Promise<void> {
    try {
      const { saved } = await this.engine.save(place).result;
      if (saved) this.savedAtMs.set(place.file, this.now());
    } catch (error) {
      const { code, message } = toErrorInfo(error);
      // Cancelled by a question, whose end comes back here.
      if (code !== 'cancelled') this.log(`The session was not saved: ${message}`);
    }
  }
}
