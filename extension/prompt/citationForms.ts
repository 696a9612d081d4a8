/**
 * Finds paths with quotes in the text of an answer. Forms: `[path "words"]`, the same in round
 * brackets, with backticks, emphasis, a colon or comma between, other quotation marks, words before
 * the path, a line number at the path, or nothing around it when the path is one of the workspace.
 * A path of the workspace alone in square brackets is a citation without words.
 *
 * Every scan looks at a bounded stretch, so the time grows linearly with the answer.
 */

export interface QuotedPath {
  /** Without line numbers and decoration. */
  path: string;
  /** '' when the answer gives none. */
  quote: string;
  /** UTF-16 offsets in the answer, end exclusive. */
  start: number;
  end: number;
}

type IsKnown = (path: string) => boolean;

/** A citation is a line or two; more is not one. */
const longestCitation = 600;
const longestPath = 300;
/** What no person reads to the end is not checked to the end. */
const mostCitations = 1_000;

const closing: Record<string, string> = {
  '"': '"',
  '“': '”',
  '”': '”',
  '„': '“”',
  '«': '»',
  '»': '«',
  '‘': '’',
  "'": "'",
  '`': '`',
};
const brackets: Record<string, string> = { '[': ']', '(': ')' };

export function findQuotedPaths(answer: string, isKnown: IsKnown): QuotedPath[] {
  const found: QuotedPath[] = [];
  let at = 0;
  while (at < answer.length && found.length < mostCitations) {
    const citation = citationAt(answer, at, isKnown);
    if (citation === null) {
      at++;
      continue;
    }
    found.push(citation);
    at = citation.end;
  }
  return found;
}

function citationAt(answer: string, at: number, isKnown: IsKnown): QuotedPath | null {
  const character = answer[at] as string;
  if (character in brackets) return bracketed(answer, at, isKnown);
  const before = at === 0 ? ' ' : (answer[at - 1] as string);
  if (/[\s`*_]/.test(before) || at === 0) return bare(answer, at, isKnown);
  return null;
}

/** `[path "words"]`, `(path: 'words')`, `["words" path]`, `[path]`. */
function bracketed(answer: string, start: number, isKnown: IsKnown): QuotedPath | null {
  const close = brackets[answer[start] as string] as string;
  const window = answer.slice(start + 1, start + longestCitation);
  const quoted = quoteIn(window, close);
  if (quoted !== null) {
    const { before, quote, after, length } = quoted;
    const end = start + 1 + length;
    const path = pathOf(before, isKnown) ?? pathOf(after, isKnown);
    if (path !== null) return { path, quote, start, end };
  }
  const length = window.indexOf(close);
  if (length < 0 || close !== ']') return null;
  const inside = window.slice(0, length);
  // Without words only a path of the workspace is a citation: brackets have many other uses.
  const path = cleanPath(inside);
  if (path === '' || !isKnown(path)) return null;
  return { path, quote: '', start, end: start + length + 2 };
}

interface Quoted {
  before: string;
  quote: string;
  after: string;
  /** Up to and with the closing bracket. */
  length: number;
}

/**
 * Splits the inside of a bracket at its quotation. Words may contain brackets and quotation marks,
 * so the quotation ends at a mark that the closing bracket follows, with no more than a path
 * between them.
 */
function quoteIn(window: string, close: string): Quoted | null {
  for (let open = 0; open < Math.min(window.length, longestPath); open++) {
    const character = window[open] as string;
    if (character === close || character === '\n') return null;
    const ends = closing[character];
    if (ends === undefined) continue;
    const before = window.slice(0, open);
    // `path` in backticks or quotation marks is not yet the quotation.
    if (before.trim() === '') {
      const end = indexOfAny(window, ends, open + 1);
      const rest = end < 0 ? '' : window.slice(end + 1);
      if (
        end >= 0 &&
        /^[\s,:;*_#–—-]*(?:L?\d+[\s\-–L\d]*)?[\s,:;*_–—-]*["“”„«»‘'`]/.test(rest.slice(0, 40))
      ) {
        const inner = quoteIn(rest, close);
        if (inner !== null) {
          const consumed = end + 1;
          return {
            before: window.slice(open, consumed) + inner.before,
            quote: inner.quote,
            after: inner.after,
            length: consumed + inner.length,
          };
        }
      }
    }
    for (
      let end = indexOfAny(window, ends, open + 1);
      end >= 0;
      end = indexOfAny(window, ends, end + 1)
    ) {
      const bracket = window.indexOf(close, end + 1);
      if (bracket < 0) return null;
      const after = window.slice(end + 1, bracket);
      if (indexOfAny(after, ends, 0) >= 0) continue;
      if (/\n/.test(after) || after.length > longestPath) return null;
      const quote = window.slice(open + 1, end).trim();
      return { before, quote, after, length: bracket + 1 };
    }
  }
  return null;
}

/** `src/a.ts "words"` in running text: only for a path of the workspace. */
function bare(answer: string, start: number, isKnown: IsKnown): QuotedPath | null {
  const match = /^([^\s"“„«'‘`()[\]]{1,300})[`*_]{0,3}[:,]?[ \t]{0,3}(["“„«`])/.exec(
    answer.slice(start, start + longestPath + 10),
  );
  if (match === null) return null;
  const path = cleanPath(match[1] as string);
  if (!isKnown(path)) return null;
  const from = start + match[0].length;
  const window = answer.slice(from, from + longestCitation);
  const end = indexOfAny(window, closing[match[2] as string] as string, 0);
  if (end <= 0 || /\n\s*\n/.test(window.slice(0, end))) return null;
  return { path, quote: window.slice(0, end).trim(), start, end: from + end + 1 };
}

/** The path in a text that should be one; null when it is something else. */
function pathOf(text: string, isKnown: IsKnown): string | null {
  const path = cleanPath(text);
  if (path === '') return null;
  if (isKnown(path)) return path;
  // "see src/a.ts": the last word; a path with blanks is known or it is none.
  const last = cleanPath(path.slice(path.search(/\S+$/)));
  return looksLikePath(last) ? last : null;
}

/** Takes off decoration, words such as "file", and line numbers. */
function cleanPath(text: string): string {
  return text
    .trim()
    .replace(/^[*_`"'“”‘’<]+|[*_`"'“”‘’>,:;–—\s-]+$/g, '')
    .replace(/^(?:file|path|in|from|see)\b[:\s]\s*/i, '')
    .replace(/[,\s]*\(?\blines?\s{1,3}\d+(?:\s?[-–]\s?\d+)?\)?$/i, '')
    .replace(/#L\d+(?:[-–]L?\d+)?$|:L?\d+(?:[-–:]L?\d+)?$/, '')
    .replace(/^[*_`"'“”‘’]+|[*_`"'“”‘’,:;\s]+$/g, '');
}

/** A folder separator with something around it, or a name with an extension. */
function looksLikePath(path: string): boolean {
  if (path.includes('://') || /\s/.test(path)) return false;
  return /[^/\\][/\\][^/\\]/.test(path) || /^\.?[\w@+-][\w.@+-]*\.[A-Za-z]\w{0,9}$/.test(path);
}

function indexOfAny(text: string, characters: string, from: number): number {
  let first = -1;
  for (const character of characters) {
    const at = text.indexOf(character, from);
    if (at >= 0 && (first < 0 || at < first)) first = at;
  }
  return first;
}
