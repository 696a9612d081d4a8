/** Finds quoted words in a text, whatever the white space, and says on which lines they are. */

export interface Place {
  /** 1-based, inclusive. */
  startLine: number;
  endLine: number;
}

/** More places than this are not looked for: two are enough to be ambiguous. */
const mostPlaces = 2;

/** A text prepared for many searches. */
export class QuotableText {
  /** The text without white space, and its lower case with the same offsets. */
  readonly squeezed: string;
  readonly lower: string;
  /** Offsets in `squeezed` at which lines begin, ascending; the first is 0. */
  private readonly lineStarts: number[] = [0];

  constructor(text: string) {
    const lines = text.split(/\r\n|\r|\n/).map(squeeze);
    let offset = 0;
    for (const line of lines) {
      offset += line.length;
      this.lineStarts.push(offset);
    }
    this.lineStarts.pop();
    this.squeezed = lines.join('');
    this.lower = lowerCase(this.squeezed);
  }

  /** The 1-based line of an offset in `squeezed`; of an empty line's, the last with that offset. */
  lineAt(offset: number): number {
    let low = 0;
    let high = this.lineStarts.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((this.lineStarts[middle] ?? 0) <= offset) low = middle;
      else high = middle;
    }
    return low + 1;
  }
}

/** The first places where the quote occurs; with the case of the text if it occurs so at all. */
export function findQuote(text: QuotableText, quote: string): Place[] {
  for (const words of readings(quote)) {
    const exact = placesOf(text, text.squeezed, words);
    if (exact.length > 0) return exact;
    const anyCase = placesOf(text, text.lower, lowerCase(words));
    if (anyCase.length > 0) return anyCase;
  }
  return [];
}

/** The quote as written, then without what writers add: escapes, ellipses, a full stop. */
function readings(quote: string): string[] {
  const written = squeeze(quote);
  const unescaped = written.replace(/\\(["'`\\])/g, '$1');
  const trimmed = unescaped.replace(/^(\.{3,}|…)/, '').replace(/(\.{3,}|…)$/, '');
  const bare = trimmed.replace(/[.,;:!?]$/, '');
  return [...new Set([written, unescaped, trimmed, bare])].filter((words) =>
    /[\p{L}\p{N}\p{P}\p{S}]/u.test(words),
  );
}

function placesOf(text: QuotableText, searched: string, words: string): Place[] {
  const places: Place[] = [];
  let at = searched.indexOf(words);
  while (at >= 0 && places.length < mostPlaces) {
    places.push({ startLine: text.lineAt(at), endLine: text.lineAt(at + words.length - 1) });
    at = searched.indexOf(words, at + 1);
  }
  return places;
}

function squeeze(text: string): string {
  return text.replace(/\s+/g, '');
}

/** Lower case of the same length, so that offsets stay true. */
function lowerCase(text: string): string {
  const lower = text.toLowerCase();
  if (lower.length === text.length) return lower;
  return Array.from(text, (character) => {
    const one = character.toLowerCase();
    return one.length === character.length ? one : character;
  }).join('');
}
