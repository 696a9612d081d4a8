/** Tokens of texts that are tokenized alone, kept by content: an edit costs one file. */
import { createHash } from 'node:crypto';
import type { CountTokens, Piece } from '../prompt/pieces';
import type { NativeModel } from './addon';

type Key = string;

/** One call of the tokenizer takes about this much, so that progress moves and cancelling works. */
const batchCharacters = 1 << 19;

export class TokenCache {
  private readonly kept = new Map<Key, Int32Array>();
  /** Texts of this request and of the one before: the others are forgotten. */
  private used = new Set<Key>();
  private usedBefore = new Set<Key>();

  constructor(private readonly model: Pick<NativeModel, 'tokenize'>) {}

  /** A new prompt is made: what the last two did not use is forgotten. */
  begin(): void {
    for (const key of this.kept.keys()) {
      if (!this.used.has(key) && !this.usedBefore.has(key)) this.kept.delete(key);
    }
    this.usedBefore = this.used;
    this.used = new Set();
  }

  /** Tokens of each piece. `onTokenized` hears of every text that had to be tokenized. */
  async tokens(
    pieces: readonly Piece[],
    signal: AbortSignal,
    onTokenized: (characters: number) => void = () => undefined,
  ): Promise<Int32Array[]> {
    const keys = pieces.map(keyOf);
    for (const key of keys) this.used.add(key);
    const missing = new Map<Key, Piece>();
    keys.forEach((key, index) => {
      if (!this.kept.has(key)) missing.set(key, pieces[index]!);
    });
    for (const batch of batches([...missing])) {
      signal.throwIfAborted();
      const lists = await this.model.tokenize(batch.map(([, piece]) => piece));
      batch.forEach(([key], index) => this.kept.set(key, lists[index]!));
      onTokenized(batch.reduce((sum, [, piece]) => sum + piece.text.length, 0));
    }
    return keys.map((key) => this.kept.get(key)!);
  }

  /** For rooms that only budget. */
  counter(signal: AbortSignal, onTokenized?: (characters: number) => void): CountTokens {
    return async (pieces) =>
      (await this.tokens(pieces, signal, onTokenized)).map((tokens) => tokens.length);
  }
}

function keyOf({ text, special }: Piece): Key {
  // Short texts (template, headers, paths) are their own key: hashing them would cost more.
  const mark = special ? 's' : 't';
  if (text.length <= 64) return `${mark}=${text}`;
  return `${mark}#${createHash('sha256').update(text, 'utf8').digest('base64')}`;
}

function* batches(pieces: [Key, Piece][]): Generator<[Key, Piece][]> {
  let batch: [Key, Piece][] = [];
  let characters = 0;
  for (const entry of pieces) {
    batch.push(entry);
    characters += entry[1].text.length;
    if (characters >= batchCharacters) {
      yield batch;
      batch = [];
      characters = 0;
    }
  }
  if (batch.length > 0) yield batch;
}

/** All lists in one. */
export function concatenate(lists: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(lists.reduce((sum, list) => sum + list.length, 0));
  let at = 0;
  for (const list of lists) {
    all.set(list, at);
    at += list.length;
  }
  return all;
}
