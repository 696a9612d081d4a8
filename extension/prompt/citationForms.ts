/**
 * Finds paths with quotes in the text of an answer. Forms: `[path "words"]`, the same in round
 * brackets, with backticks, emphasis, a colon or comma between, other quotation marks, words before
 * the path, a line number at the path, or nothing around it when the path is one of the workspace.
 * A path of the workspace alone in square brackets is a citation without words. Whatever stands
 * exactly as the workspace has it is a path, even if it looks like a quotation or a line number.
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

export interface KnownPaths {
  /** The path of a file exactly as the workspace or the prompt writes it. */
  isExact(path: string): boolean;
  /** Also a part of one, or another case of it. */
  isKnown(path: string): boolean;
}

/** A citation is a line or two; more is not one. */
const longestCitation = 600;
const longestPath = 300;
/** Paths such as `app/[id]/page.tsx` have brackets, but not deeply nested ones. */
const deepestBrackets = 3;
/** The words may hold closing brackets; so many are tried as the end of the citation. */
const mostClosings = 8;
/** Paths may hold marks, such as apostrophes; so many are tried as the opening of the words. */
const mostMarks = 8;
/** What no person reads to the end is not checked to the end. */
const mostCitations = 1_000;

const brackets: Readonly<Record<string, string>> = { '[': ']', '(': ')' };
/** Opening quotation marks, and the marks that close what they open. */
const marks: Readonly<Record<string, string>> = {
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

export function findQuotedPaths(answer: string, paths: KnownPaths): QuotedPath[] {
  const found: QuotedPath[] = [];
  let at = 0;
  while (at < answer.length && found.length < mostCitations) {
    const citation = citationAt(answer, at, paths);
    if (citation !== null) found.push(citation);
    at = citation === null ? at + 1 : citation.end;
  }
  return found;
}

function citationAt(answer: string, at: number, paths: KnownPaths): QuotedPath | null {
  if (answer.charAt(at) in brackets) return bracketed(answer, at, paths);
  const startsWord = at === 0 || /[\s`*_]/.test(answer.charAt(at - 1));
  return startsWord ? bare(answer, at, paths) : null;
}

/** `[path "words"]`, `(path: 'words')`, `["path", "words"]`, `["words" path]`, `[path]`. */
function bracketed(answer: string, start: number, paths: KnownPaths): QuotedPath | null {
  const open = answer.charAt(start);
  const window = answer.slice(start + 1, start + longestCitation);
  const found = (path: string, quote: string, length: number): QuotedPath => ({
    path,
    quote: quote.trim(),
    start,
    end: start + 1 + length,
  });

  const exact = exactPathIn(window, open, paths);
  if (exact !== null) return found(exact.path, exact.quote, exact.length);
  const quotation = quotationIn(window, 0, open);
  if (quotation !== null) {
    const both = quotedPathIn(window, quotation, open, paths);
    if (both !== null) return found(both.path, both.quote, both.length);
    const path = pathIn(quotation.before, paths) ?? pathIn(quotation.after, paths);
    if (path !== null) return found(path, quotation.quote, quotation.length);
  }
  // Without words only a path of the workspace is a citation: brackets have many other uses.
  const alone = open === '[' ? pathAlone(window, paths) : null;
  return alone === null ? null : found(alone.path, '', alone.length);
}

/** A path with marks or brackets of its own, with words behind it. */
function exactPathIn(
  window: string,
  open: string,
  paths: KnownPaths,
): { path: string; quote: string; length: number } | null {
  const limit = Math.min(window.length, longestPath);
  let tried = 0;
  for (let at = 1; at < limit && window.charAt(at) !== '\n'; at++) {
    if (!(window.charAt(at) in marks)) continue;
    if (++tried > mostMarks) break;
    const path = withoutSeparators(window.slice(0, at));
    if (path === '' || !paths.isExact(path)) continue;
    const quotation = quotationIn(window, at, open);
    if (quotation !== null) return { path, quote: quotation.quote, length: quotation.length };
  }
  return null;
}

function withoutSeparators(text: string): string {
  let to = text.length;
  while (to > 0 && ' \t:,;'.includes(text.charAt(to - 1))) to--;
  return text.slice(0, to).trimStart();
}

/** The path may have closing brackets itself; of the ends that make one, the first counts. */
function pathAlone(window: string, paths: KnownPaths): { path: string; length: number } | null {
  let end = -1;
  for (let tried = 0; tried < mostClosings; tried++) {
    end = window.indexOf(']', end + 1);
    if (end < 0 || end > longestPath) return null;
    const written = window.slice(0, end).trim();
    if (written.includes('\n')) return null;
    if (paths.isExact(written)) return { path: written, length: end + 1 };
    const path = cleanPath(written);
    if (path !== '' && (tried === 0 ? paths.isKnown(path) : paths.isExact(path))) {
      return { path, length: end + 1 };
    }
  }
  return null;
}

interface Quotation {
  before: string;
  quote: string;
  /** Between the closing mark and the closing bracket. */
  after: string;
  /** Of the window, up to and with the closing bracket. */
  length: number;
  /** Offset of the opening mark. */
  at: number;
}

/** The first quotation in a bracket, from `from` on, up to a mark that the bracket's end follows. */
function quotationIn(window: string, from: number, open: string): Quotation | null {
  const at = firstMark(window, from, open);
  if (at < 0) return null;
  const closing = marks[window.charAt(at)] ?? '';
  let bracket = at;
  for (let tried = 0; tried < mostClosings; tried++) {
    bracket = window.indexOf(brackets[open] ?? '', bracket + 1);
    if (bracket < 0) return null;
    const end = lastIndexOfAny(window, closing, bracket - 1);
    if (end <= at) continue;
    const after = window.slice(end + 1, bracket);
    if (after.includes('\n')) return null;
    const before = window.slice(from, at);
    return { before, quote: window.slice(at + 1, end), after, length: bracket + 1, at };
  }
  return null;
}

/** Offset of the first quotation mark in this bracket; -1 when it ends before, or is no citation. */
function firstMark(window: string, from: number, open: string): number {
  const limit = Math.min(window.length, from + longestPath);
  let depth = 0;
  for (let at = from; at < limit; at++) {
    const character = window.charAt(at);
    if (character in marks) return at;
    if (character === '\n') return -1;
    if (character === open && ++depth > deepestBrackets) return -1;
    if (character === brackets[open] && --depth < 0) return -1;
  }
  return -1;
}

/** `["path" "words"]`: what begins the bracket is a quoted path if another quotation follows. */
function quotedPathIn(
  window: string,
  first: Quotation,
  open: string,
  paths: KnownPaths,
): { path: string; quote: string; length: number } | null {
  if (first.before.trim() !== '') return null;
  const closing = marks[window.charAt(first.at)] ?? '';
  let end = indexOfAny(window, closing, first.at + 1);
  while (end > 0 && window.charAt(end - 1) === '\\') end = indexOfAny(window, closing, end + 1);
  if (end < 0) return null;
  const second = quotationIn(window, end + 1, open);
  // Between them only separators and a line number.
  if (
    second === null ||
    !/^[\s,:;*_#–—-]*(L?\d+[\s–-]*){0,2}[\s,:;*_–—-]*$/.test(second.before.slice(0, 40))
  ) {
    return null;
  }
  const shown = window.slice(first.at, end + 1);
  const path = paths.isKnown(shown) ? shown : pathIn(shown, paths);
  return path === null ? null : { path, quote: second.quote, length: second.length };
}

// A backtick right behind the path closes it: the words begin after a blank or a colon.
const barePath =
  /^([^\s"“„«'‘`()[\]]{1,300})[`*_]{0,3}(?:[:,]?[ \t]{0,3}(["“„«])|(?:[:,][ \t]{0,3}|[ \t]{1,3})(`))/;
/** Text between marks that are far apart is no quotation. */
const longestBareQuote = 200;

/** `src/a.ts "words"` in running text: only for a path of the workspace. */
function bare(answer: string, start: number, paths: KnownPaths): QuotedPath | null {
  const match = barePath.exec(answer.slice(start, start + longestPath + 10));
  if (match === null) return null;
  const path = cleanPath(match[1] ?? '');
  if (path === '' || !paths.isKnown(path)) return null;
  const from = start + match[0].length;
  const window = answer.slice(from, from + longestBareQuote);
  const end = indexOfAny(window, marks[match[2] ?? match[3] ?? ''] ?? '', 0);
  if (end <= 0 || window.slice(0, end).includes('\n')) return null;
  return { path, quote: window.slice(0, end).trim(), start, end: from + end + 1 };
}

/** The path in a text that should be one; null when it is something else. */
function pathIn(text: string, paths: KnownPaths): string | null {
  const written = text.trim();
  if (paths.isExact(written)) return written;
  const path = cleanPath(text);
  if (path === '') return null;
  if (paths.isKnown(path)) return path;
  // "see src/a.ts": the last word; a path with blanks is known or it is none.
  const last = cleanPath(path.slice(path.lastIndexOf(' ') + 1));
  return looksLikePath(last) ? last : null;
}

const decoration = '*_`"\'“”‘’«»<>,:;–— \t\r\n-';
const leadingDecoration = '*`"\'“”‘’«»<';

/** Takes off decoration, words such as "file", and line numbers. */
function cleanPath(text: string): string {
  const bare = stripped(text.trim())
    .replace(/^(?:file|path|in|from|see)\b[:\s]\s{0,3}/i, '')
    .replace(/[,\s]{0,3}\(?\blines? {1,3}\d+(?: ?[-–] ?\d+)?\)?$/i, '')
    .replace(/#L\d+(?:[-–]L?\d+)?$|:L?\d+(?:[-–:]L?\d+)?$/, '');
  return stripped(bare);
}

function stripped(text: string): string {
  let from = 0;
  let to = text.length;
  while (from < to && leadingDecoration.includes(text.charAt(from))) from++;
  while (to > from && decoration.includes(text.charAt(to - 1))) to--;
  return text.slice(from, to);
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

function lastIndexOfAny(text: string, characters: string, from: number): number {
  let last = -1;
  for (const character of characters) last = Math.max(last, text.lastIndexOf(character, from));
  return last;
}
