/**
 * The transcript of one conversation, kept by the host: the view only shows it and can be rebuilt
 * from it at any time. Pure: events of the engine go in, changes for the view come out.
 */
import type {
  AskResult,
  ChatTurn,
  Citation,
  ConfirmEvent,
  EngineErrorInfo,
  Event,
  FileCounts,
  StopReason,
  Stats,
  TextSpan,
} from '../engine/protocol';
import type { Progress } from '../status/format';

/**
 * `confirming`: a person is asked whether to start. `stopped`: ended by a person, what was written
 * so far stays.
 */
export type EntryState = 'running' | 'confirming' | 'done' | 'stopped' | 'failed';

export type Confirmation = Pick<
  ConfirmEvent,
  'predictedPrefillMs' | 'computedTokens' | 'suggestedBudgetTokens'
>;

/** One question and what came of it. */
export interface Entry {
  id: number;
  question: string;
  state: EntryState;
  answer: string;
  /** What the model wrote before the answer; '' when it did not think. */
  thinking: string;
  /** How long it thought, so far. */
  thinkingMs: number;
  progress: Progress;
  /** Why the CPU computes although there may be a GPU; '' where nobody can change that. */
  fallback: string;
  files: FileCounts | null;
  confirmation: Confirmation | null;
  citations: Citation[];
  citationSpans: TextSpan[];
  stopReason: StopReason | null;
  stats: Stats | null;
  error: EngineErrorInfo | null;
}

/** What an event changed: answer or thought grew, something else of the entry, or nothing. */
export type Change =
  | { kind: 'append'; text: string }
  | { kind: 'thought'; text: string; elapsedMs: number }
  | { kind: 'entry' }
  | { kind: 'none' };

/** A whole answer; its stats carry the asking side's clock. */
export type Outcome = Omit<AskResult, 'stats'> & { stats: Stats };

const waiting: Progress = { phase: 'queue', ahead: 0, share: null, etaMs: null, perSecond: 0 };

function unanswered(): Omit<Entry, 'id' | 'question'> {
  return {
    state: 'running',
    answer: '',
    thinking: '',
    thinkingMs: 0,
    progress: { ...waiting },
    fallback: '',
    files: null,
    confirmation: null,
    citations: [],
    citationSpans: [],
    stopReason: null,
    stats: null,
    error: null,
  };
}

export class Conversation {
  private readonly list: Entry[] = [];
  private nextId = 1;

  get entries(): readonly Entry[] {
    return this.list;
  }

  get(id: number): Entry | undefined {
    return this.list.find((entry) => entry.id === id);
  }

  /** Entries that still wait, run or ask, oldest first. */
  get open(): readonly Entry[] {
    return this.list.filter((entry) => isOpen(entry));
  }

  begin(question: string): Entry {
    const entry: Entry = { id: this.nextId++, question, ...unanswered() };
    this.list.push(entry);
    return entry;
  }

  /** Asks the entry's question again: everything but the question is forgotten. */
  restart(id: number): Entry | undefined {
    const entry = this.get(id);
    if (entry === undefined) return undefined;
    Object.assign(entry, unanswered());
    return entry;
  }

  /** Late events of an entry that has ended change nothing. */
  apply(id: number, event: Event): Change {
    const entry = this.get(id);
    if (entry === undefined || !isOpen(entry)) return { kind: 'none' };
    switch (event.type) {
      case 'phase':
        entry.state = 'running';
        entry.confirmation = null;
        entry.progress = { ...waiting, phase: event.phase, ahead: event.ahead ?? 0 };
        return { kind: 'entry' };
      case 'progress':
        entry.progress = {
          phase: event.phase,
          ahead: 0,
          share: event.total > 0 ? event.done / event.total : null,
          etaMs: event.etaMs,
          perSecond: event.perSecond,
        };
        return { kind: 'entry' };
      case 'place':
        entry.fallback = event.fallback;
        return { kind: 'entry' };
      case 'plan':
        entry.files = event.files;
        return { kind: 'entry' };
      case 'confirm':
        entry.state = 'confirming';
        entry.confirmation = {
          predictedPrefillMs: event.predictedPrefillMs,
          computedTokens: event.computedTokens,
          suggestedBudgetTokens: event.suggestedBudgetTokens,
        };
        return { kind: 'entry' };
      case 'token':
        entry.answer += event.text;
        return { kind: 'append', text: event.text };
      case 'thinking':
        entry.thinking += event.text;
        entry.thinkingMs = event.elapsedMs;
        return { kind: 'thought', text: event.text, elapsedMs: event.elapsedMs };
      case 'result':
        this.finish(entry, event.result as Outcome);
        return { kind: 'entry' };
      case 'error':
        this.end(entry, event.error);
        return { kind: 'entry' };
      default:
        return { kind: 'none' };
    }
  }

  /** A person said `Start`. */
  proceed(id: number): void {
    const entry = this.get(id);
    if (entry?.state !== 'confirming') return;
    entry.state = 'running';
    entry.confirmation = null;
  }

  /** Ends an entry without the engine, e.g. because nothing could be asked. */
  fail(id: number, error: EngineErrorInfo): void {
    const entry = this.get(id);
    if (entry !== undefined && isOpen(entry)) this.end(entry, error);
  }

  /** Earlier turns as the model shall see them when `id` is asked: every answer that has text. */
  turnsBefore(id: number): ChatTurn[] {
    const turns: ChatTurn[] = [];
    for (const entry of this.list) {
      if (entry.id >= id) break;
      if ((entry.state === 'done' || entry.state === 'stopped') && entry.answer !== '') {
        turns.push({ question: entry.question, answer: entry.answer });
      }
    }
    return turns;
  }

  private finish(entry: Entry, outcome: Outcome): void {
    entry.state = 'done';
    entry.confirmation = null;
    entry.answer = outcome.answer;
    entry.thinking = outcome.thinking;
    entry.thinkingMs = outcome.stats.thinking?.ms ?? 0;
    entry.citations = outcome.citations;
    entry.citationSpans = outcome.citationSpans;
    entry.files = outcome.files;
    entry.fallback = outcome.stats.fallback;
    entry.stopReason = outcome.stopReason;
    entry.stats = outcome.stats;
  }

  /** `cancelled` is a person's wish, anything else a failure. */
  private end(entry: Entry, error: EngineErrorInfo): void {
    entry.confirmation = null;
    if (error.code === 'cancelled') {
      entry.state = 'stopped';
    } else {
      entry.state = 'failed';
      entry.error = error;
    }
  }

  /** Forgets everything. Open entries must have been stopped. */
  clear(): void {
    this.list.length = 0;
  }
}

/** The model writes a thought just now. */
export function isThinking(entry: Entry): boolean {
  return entry.state === 'running' && entry.progress.phase === 'thinking';
}

export function isOpen(entry: Entry): boolean {
  return entry.state === 'running' || entry.state === 'confirming';
}
