/**
 * Finds the citations of an answer, `[path "words"]` and what small models make of that form, and
 * checks each against the packed text. A pure function of its arguments.
 */
import type { Citation } from '../engine/protocol';
import { findQuotedPaths, type KnownPaths, type QuotedPath } from './citationForms';
import { findQuote, QuotableText } from './quotes';
import { showPath } from './layout';

/** What the model was shown: `text` is null for files of which only the path was. */
export interface CitableFile {
  path: string;
  absolutePath: string;
  text: string | null;
}

/** Where a citation stands in the answer: UTF-16 offsets, end exclusive. */
export interface Span {
  start: number;
  end: number;
}

/** In the order in which they stand in the answer; `spans[i]` belongs to `citations[i]`. */
export interface CheckedCitations {
  citations: Citation[];
  spans: Span[];
}

/**
 * - `verified`: the path names one packed file, and the words occur in exactly one place of it
 * - `ambiguous`: the words occur in several places or are missing, or the path fits several files
 * - `invented`: the path is not in the workspace, its text was not read, or the words are not in it
 */
export function checkCitations(answer: string, files: readonly CitableFile[]): CheckedCitations {
  const index = new PathIndex(files);
  const texts = new Map<CitableFile, QuotableText>();
  const checked = new Map<string, Citation>();
  const found = findQuotedPaths(answer, index);
  const citations = found.map((quoted) => {
    const key = JSON.stringify([quoted.path, quoted.quote]);
    const citation = checked.get(key) ?? check(quoted, index, texts);
    checked.set(key, citation);
    return { ...citation };
  });
  return { citations, spans: found.map(({ start, end }) => ({ start, end })) };
}

function check(
  { path, quote }: QuotedPath,
  index: PathIndex,
  texts: Map<CitableFile, QuotableText>,
): Citation {
  const candidates = index.find(path);
  const [file] = candidates;
  const citation = (status: Citation['status'], startLine = 0, endLine = 0): Citation => ({
    path: candidates.length === 1 && file ? file.path : path,
    quote,
    startLine,
    endLine,
    status,
    absolutePath: candidates.length === 1 && file ? file.absolutePath : '',
  });
  if (file === undefined) return citation('invented');
  if (candidates.length > 1) return citation('ambiguous');
  if (file.text === null) return citation('invented');
  if (quote === '') return citation('ambiguous');
  const text = texts.get(file) ?? new QuotableText(file.text);
  texts.set(file, text);
  const places = findQuote(text, quote);
  const [place] = places;
  if (place === undefined) return citation('invented');
  return places.length > 1
    ? citation('ambiguous')
    : citation('verified', place.startLine, place.endLine);
}

/** Files by every way in which an answer may name them. */
class PathIndex implements KnownPaths {
  private readonly exact = new Map<string, CitableFile>();
  private readonly byName = new Map<string, CitableFile[]>();

  constructor(files: readonly CitableFile[]) {
    for (const file of files) {
      for (const name of [file.path, showPath(file.path), file.absolutePath]) {
        if (!this.exact.has(name)) this.exact.set(name, file);
      }
      const name = nameOf(file.path).toLowerCase();
      const same = this.byName.get(name);
      if (same) same.push(file);
      else this.byName.set(name, [file]);
    }
  }

  isExact(path: string): boolean {
    return this.exact.has(path);
  }

  isKnown(path: string): boolean {
    return this.find(path).length > 0;
  }

  /**
   * The files that a cited path may mean: the file with this path; else those whose path ends with
   * it, as in `a.ts` for `src/a.ts`; else those that it ends with, as in `project/src/a.ts`. Exact
   * case wins over another one.
   */
  find(cited: string): CitableFile[] {
    const exact = this.exact.get(cited);
    if (exact) return [exact];
    const path = cited.replaceAll('\\', '/').replace(/^(\.{0,2}\/)+/, '');
    const cleaned = this.exact.get(path);
    if (cleaned) return [cleaned];
    const named = this.byName.get(nameOf(path).toLowerCase()) ?? [];
    const rules: ((file: CitableFile) => boolean)[] = [
      (file) => endsWithPath(file.path, path),
      (file) => endsWithPath(path, file.path),
      (file) => endsWithPath(file.path.toLowerCase(), path.toLowerCase()),
    ];
    for (const rule of rules) {
      const files = named.filter(rule);
      if (files.length > 0) return files;
    }
    return [];
  }
}

function endsWithPath(path: string, end: string): boolean {
  return path === end || path.endsWith(`/${end}`);
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
