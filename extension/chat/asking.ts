/**
 * From a question to an entry of the conversation: settings, model, folders, engine, and every way
 * this can end. Knows no editor: what it needs from one is handed in.
 */
import type { AskAnswer, Engine, Job } from '../engine/client';
import { EngineError, toErrorInfo } from '../engine/errors';
import type { ChatTurn, Event, WorkspaceFolder } from '../engine/protocol';
import type { IdleSaver, SavePlace } from '../engine/idleSaver';
import { sessionFile, sessionsFolder } from '../engine/sessionStore';
import type { Settings } from '../config';
import { type Conversation, isOpen, type Change, type Entry } from './conversation';
import type { Choice } from './messages';

export interface AskingHost {
  /** Throws an `EngineError` when a setting cannot be used. */
  settings(): Settings;
  folders(): WorkspaceFolder[];
  /** Text of unsaved documents by absolute path. */
  unsaved(): Record<string, string>;
  /** Lets the user choose a model; undefined when none was chosen. Remembers the choice. */
  chooseModel(): Promise<string | undefined>;
  log(text: string): void;
}

export interface AskingListener {
  onChange(entry: Entry, change: Change): void;
  /** Every event of the engine, after the conversation took it. */
  onEvent(entry: Entry, event: Event): void;
  /** The conversation is empty again. */
  onCleared(): void;
}

export class Asking {
  private readonly jobs = new Map<number, Job<AskAnswer>>();
  private choosing: Promise<string | undefined> | null = null;

  constructor(
    readonly conversation: Conversation,
    private readonly engine: Pick<Engine, 'ask'>,
    private readonly saver: Pick<IdleSaver, 'asked' | 'ended'>,
    private readonly host: AskingHost,
    private readonly listener: AskingListener,
  ) {}

  /** Undefined for an empty question. Errors end up in the entry, never here. */
  ask(question: string): Entry | undefined {
    const text = question.trim();
    if (text === '') return undefined;
    const entry = this.conversation.begin(text);
    this.changed(entry);
    void this.start(entry, 0);
    return entry;
  }

  /** Asks an ended entry's question again, in its place. */
  askAgain(id: number, budgetTokens = 0): void {
    const entry = this.conversation.get(id);
    if (entry === undefined || isOpen(entry)) return;
    this.conversation.restart(id);
    this.changed(entry);
    void this.start(entry, budgetTokens);
  }

  /** Stops one entry, waiting or running; without an id all of them. */
  stop(id?: number): void {
    for (const entry of this.conversation.open) {
      if (id !== undefined && entry.id !== id) continue;
      const job = this.jobs.get(entry.id);
      if (job !== undefined) job.cancel();
      else this.fail(entry, new EngineError('cancelled', 'Stopped.', ''));
    }
  }

  /** Answers the question whether a long prefill shall start. */
  choose(id: number, choice: Choice): void {
    const entry = this.conversation.get(id);
    if (entry?.state !== 'confirming' || entry.confirmation === null) return;
    const { suggestedBudgetTokens } = entry.confirmation;
    if (choice === 'start') {
      this.conversation.proceed(id);
      this.changed(entry);
      this.jobs.get(id)?.proceed();
    } else if (choice === 'cancel') {
      this.stop(id);
    } else if (suggestedBudgetTokens > 0) {
      const job = this.jobs.get(id);
      this.jobs.delete(id);
      job?.cancel();
      this.conversation.restart(id);
      this.changed(entry);
      void this.start(entry, suggestedBudgetTokens);
    }
  }

  /** Stops everything and forgets the conversation. */
  clear(): void {
    this.stop();
    this.jobs.clear();
    this.conversation.clear();
    this.listener.onCleared();
  }

  private async start(entry: Entry, budgetTokens: number): Promise<void> {
    try {
      const settings = this.host.settings();
      const folders = this.host.folders();
      if (folders.length === 0) {
        throw new EngineError(
          'folderNotFound',
          'No folder is open, so there is nothing to read.',
          'Open the folder that you want to ask about.',
        );
      }
      const modelPath = settings.modelPath || (await this.modelFor());
      // Stopped, or forgotten, while the user was choosing.
      if (!isOpen(entry) || this.conversation.get(entry.id) !== entry) return;
      if (modelPath === undefined) {
        throw new EngineError(
          'noModel',
          'No model is chosen.',
          'Select a GGUF model: the question is asked as soon as there is one.',
        );
      }
      await this.run(entry, budgetTokens, { ...settings, modelPath }, folders);
    } catch (error) {
      this.fail(entry, error);
    }
  }

  private async run(
    entry: Entry,
    budgetTokens: number,
    settings: Settings,
    folders: WorkspaceFolder[],
  ): Promise<void> {
    // Filled when this question's turn comes: an earlier one may still be without its answer.
    const chat: ChatTurn[] = [];
    const place = placeOf(settings, folders);
    this.saver.asked();
    const job = this.engine.ask(
      {
        model: {
          path: settings.modelPath,
          backend: settings.backend,
          device: settings.cudaDevice,
          threads: settings.threads,
          contextTokens: settings.contextTokens,
          kvCache: settings.kvCache,
          calibration: settings.calibration,
        },
        params: settings.params,
        workspace: { folders, unsaved: this.host.unsaved(), budgetTokens, strict: false },
        chat,
        question: entry.question,
        answerTokens: settings.answerTokens,
        sampling: settings.sampling,
        savedSession: place.file,
        thinking: settings.thinking,
        confirmAbovePrefillMs: settings.confirmAboveSeconds * 1000,
      },
      {
        onEvent: (event) => {
          if (this.jobs.get(entry.id) !== job) return;
          if (event.type === 'phase' && event.phase === 'load') {
            chat.splice(0, chat.length, ...this.conversation.turnsBefore(entry.id));
          }
          const change = this.conversation.apply(entry.id, event);
          if (change.kind !== 'none') this.listener.onChange(entry, change);
          this.listener.onEvent(entry, event);
        },
      },
    );
    this.jobs.set(entry.id, job);
    try {
      await job.result;
    } catch (error) {
      // A question that is stopped while it waits gets no event, only this.
      if (this.jobs.get(entry.id) === job) this.fail(entry, error);
    } finally {
      if (this.jobs.get(entry.id) === job) this.jobs.delete(entry.id);
      this.saver.ended(place);
    }
  }

  /** One dialog for all questions that wait for a model. */
  private modelFor(): Promise<string | undefined> {
    this.choosing ??= this.host.chooseModel().finally(() => (this.choosing = null));
    return this.choosing;
  }

  private fail(entry: Entry, error: unknown): void {
    const info = toErrorInfo(error);
    if (info.code !== 'cancelled') this.host.log(`${info.code}: ${info.message}`);
    if (info.code === 'internal' && error instanceof Error) this.host.log(error.stack ?? '');
    if (!isOpen(entry)) return;
    this.conversation.fail(entry.id, info);
    this.changed(entry);
  }

  private changed(entry: Entry): void {
    this.listener.onChange(entry, { kind: 'entry' });
  }
}

/** Where what is read of these folders is kept; nowhere when the limit is 0. */
function placeOf(settings: Settings, folders: WorkspaceFolder[]): SavePlace {
  const mostFolderBytes = settings.savedSessionsGB * 1e9;
  if (mostFolderBytes === 0) return { file: '', mostFolderBytes };
  const paths = folders.map((folder) => folder.path);
  return { file: sessionFile(sessionsFolder(), settings.modelPath, paths), mostFolderBytes };
}
