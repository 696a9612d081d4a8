/** The prompt as the tokenizer gets it. */

/**
 * A run of text that is tokenized alone, so that its tokens depend on nothing around it.
 * `special`: special tokens in it are parsed. Only the chat template's own text says true.
 */
export interface Piece {
  text: string;
  special: boolean;
}

/**
 * What the prompt is made of, in order: `files` (rules, files, list of paths: the same for every
 * question about the same workspace), then `question` (earlier turns and the question). The end of
 * `files` is the first border and `denseFrom`; the end of `question` is the last border.
 */
export interface Part {
  name: 'files' | 'question';
  pieces: Piece[];
}

/** Number of tokens of each piece. Results may be cached by text: a piece's tokens never change. */
export type CountTokens = (pieces: readonly Piece[]) => Promise<number[]>;

export function sum(numbers: Iterable<number>): number {
  let total = 0;
  for (const number of numbers) total += number;
  return total;
}
