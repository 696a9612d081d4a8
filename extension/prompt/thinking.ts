/**
 * Thought of a reasoning model, told from its answer while both are still being written:
 * `<think>…</think>` at the head of what it generates. Pure.
 */

const openTag = '<think>';
const closeTag = '</think>';

/** Whether the prompt ends inside a thought, so that the model goes on with it. */
export function opensThought(promptEnd: string): boolean {
  return promptEnd.trimEnd().endsWith(openTag);
}

/** A prompt that ends inside a thought, with the thought ended: the model answers at once. */
export function withThoughtEnded(promptEnd: string): string {
  return `${promptEnd.trimEnd()}\n\n${closeTag}\n\n`;
}

/** What became certain by one more piece of text; either may be empty. */
export interface Split {
  thinking: string;
  answer: string;
}

/**
 * Where the text so far ends: before it is known whether there is a thought; in a thought of which
 * nothing was seen yet; in a thought; behind a thought, before the answer; in the answer.
 */
type Place = 'undecided' | 'opened' | 'thought' | 'closed' | 'answer';

/**
 * Takes generated text in pieces of any size. What may still turn out to be a tag, or blanks around
 * one, is held back. Tags are only looked for before the answer begins: an answer may speak of them.
 */
export class ThoughtSplitter {
  private place: Place;
  private held = '';

  /** `opened`: the prompt ended inside a thought. */
  constructor(opened: boolean) {
    this.place = opened ? 'opened' : 'undecided';
  }

  /** The text so far ends inside a thought. */
  isThinking(): boolean {
    return this.place === 'opened' || this.place === 'thought';
  }

  push(text: string): Split {
    this.held += text;
    if (this.place === 'undecided') this.decide();
    if (this.place === 'opened') this.open();
    const thinking = this.place === 'thought' ? this.takeThought() : '';
    if (this.place === 'closed') {
      this.held = this.held.trimStart();
      if (this.held !== '') this.place = 'answer';
    }
    return { thinking, answer: this.place === 'answer' ? this.take(this.held.length) : '' };
  }

  /** The rest, when nothing more comes. */
  end(): Split {
    const rest = this.take(this.held.length);
    return this.isThinking()
      ? { thinking: rest.trimEnd(), answer: '' }
      : { thinking: '', answer: rest };
  }

  private decide(): void {
    const text = this.held.trimStart();
    if (text.startsWith(openTag)) this.place = 'opened';
    else if (!openTag.startsWith(text)) this.place = 'answer';
  }

  private open(): void {
    let text = this.held.trimStart();
    // Models also write the tag where the prompt has written it already.
    if (text !== openTag && openTag.startsWith(text)) return;
    if (text.startsWith(openTag)) text = text.slice(openTag.length).trimStart();
    this.held = text;
    if (text !== '') this.place = 'thought';
  }

  private takeThought(): string {
    const close = this.held.indexOf(closeTag);
    if (close >= 0) {
      this.place = 'closed';
      return this.take(close, closeTag.length).trimEnd();
    }
    const certain = this.held.length - beginningOfTag(this.held);
    return this.take(this.held.slice(0, certain).trimEnd().length);
  }

  /** The first `length` characters of what is held, which go with the `skipped` behind them. */
  private take(length: number, skipped = 0): string {
    const text = this.held.slice(0, length);
    this.held = this.held.slice(length + skipped);
    return text;
  }
}

/** Length of the longest end of `text` that is a beginning of the closing tag. */
function beginningOfTag(text: string): number {
  for (let length = Math.min(closeTag.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(closeTag.slice(0, length))) return length;
  }
  return 0;
}
