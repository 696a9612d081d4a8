/** What a session generates, told as events while it grows, and kept. */
import { ThoughtSplitter, type Split } from '../prompt/thinking';
import type { SessionEvent } from './addon';
import { progressOf, type JobContext, type Progress } from './job';
import type { ThinkingStats } from './protocol';

export interface AnswerOptions {
  /** What was read: stands before the answer. */
  head: string;
  /** Most tokens of thought and answer together. */
  maxTokens: number;
  /** The prompt ended inside a thought. */
  thoughtOpened: boolean;
}

export class Answer {
  thinking = '';
  private text = '';
  private readonly splitter: ThoughtSplitter;
  private readonly prefill: Progress;
  private part: 'thinking' | 'decode' | null = null;
  private progress: Progress | null = null;
  private tokens = 0;
  /** Of the part that is being written, without its first, whose arrival starts its clock. */
  private partTokens = 0;
  private firstTokenMs = 0;
  private spent: ThinkingStats = { ms: 0, tokens: 0 };

  constructor(
    private readonly context: JobContext,
    private readonly options: AnswerOptions,
  ) {
    this.prefill = progressOf(context, 'prefill', 'tokens');
    this.splitter = new ThoughtSplitter(options.thoughtOpened);
  }

  take(event: SessionEvent): void {
    if (event.type === 'prefill') this.prefill.session(event);
    else if (event.type === 'prefilled') this.context.send({ type: 'phase', phase: 'firstToken' });
    else if (event.text !== '') this.add(event.text);
  }

  /** The whole answer, also when the model said nothing. */
  end(): string {
    this.tell(this.splitter.end());
    if (this.text === '') this.send(this.options.head);
    return this.text;
  }

  /** null when there was no thought. */
  get thinkingStats(): ThinkingStats | null {
    return this.thinking === '' ? null : this.spent;
  }

  private add(text: string): void {
    const wasThinking = this.splitter.isThinking();
    if (this.tokens++ === 0) this.firstTokenMs = this.context.now();
    this.partTokens++;
    const split = this.splitter.push(text);
    if (wasThinking || this.splitter.isThinking() || split.thinking !== '') {
      this.spent = { ms: this.context.now() - this.firstTokenMs, tokens: this.tokens };
    }
    this.tell(split);
    if (this.splitter.isThinking()) this.begin('thinking');
    // Nothing can be told yet, but the first token is there.
    if (this.tokens === 1 && this.progress === null) this.context.send({ type: 'token', text: '' });
    // Nobody knows how long an answer will be.
    const total = this.options.maxTokens;
    this.progress?.report({ done: this.partTokens, total, etaMs: null });
  }

  private tell({ thinking, answer }: Split): void {
    if (thinking !== '') {
      this.begin('thinking');
      this.thinking += thinking;
      this.context.send({ type: 'thinking', text: thinking, elapsedMs: this.spent.ms });
    }
    if (answer !== '') {
      // What was read is told together with the model's first token: it must not pass for it.
      this.send(this.text === '' ? this.options.head + answer : answer);
      this.begin('decode');
    }
  }

  private begin(part: 'thinking' | 'decode'): void {
    if (this.part === part) return;
    this.part = part;
    this.partTokens = 0;
    this.context.send({ type: 'phase', phase: part });
    this.progress = progressOf(this.context, part, 'tokens');
  }

  private send(text: string): void {
    if (text === '') return;
    this.text += text;
    this.context.send({ type: 'token', text });
  }
}
