/**
 * Where the citations stand in the text of an answer. Markdown would tear paths apart
 * (`__init__.py` is bold there), so they are replaced by marks before the text is rendered, and the
 * marks by links afterwards. Pure.
 */
import type { Citation } from '../engine/protocol';

// Private use characters: they mean nothing to markdown, and none is let through from the answer.
const open = '\uE000';
const close = '\uE001';

/** Splits rendered text at the marks; the group is the index of the citation. */
export const placedCitation = /\uE000(\d+)\uE001/;

/** How far behind its path a quote may begin. */
const quoteReach = 40;

interface Span {
  start: number;
  end: number;
}

/**
 * The answer with a mark in place of each citation: of all of `[path "words"]`, or of the path
 * where the model wrote it in another form. Citations come in the order in which they stand in the
 * answer; one that is not found there is left out.
 */
export function placeCitations(answer: string, citations: readonly Citation[]): string {
  const clean = answer.replace(/[\uE000\uE001]/g, '\uFFFD');
  let text = '';
  let from = 0;
  citations.forEach((citation, index) => {
    const span = findCitation(clean, citation, from);
    if (span === null) return;
    text += `${clean.slice(from, span.start)}${open}${index}${close}`;
    from = span.end;
  });
  return text + clean.slice(from);
}

/** A path with the quote close behind it is the citation; a path alone may be a mere mention. */
function findCitation(answer: string, { path, quote }: Citation, from: number): Span | null {
  if (path === '') return null;
  let mention: Span | null = null;
  for (let start = answer.indexOf(path, from); start >= 0; ) {
    const end = start + path.length;
    const next = answer.indexOf(path, end);
    const quoteAt = quote === '' ? -1 : answer.indexOf(quote, end);
    const near = quoteAt >= 0 && quoteAt - end <= quoteReach && (next < 0 || quoteAt < next);
    if (near) return withBrackets(answer, { start, end }, quoteAt + quote.length);
    mention ??= { start, end };
    start = next;
  }
  return mention;
}

/** Widens the span of a path to `[path "words"]` when that is what stands there. */
function withBrackets(answer: string, path: Span, quoteEnd: number): Span {
  const before = /\[\s*["`]?$/.exec(answer.slice(0, path.start));
  const after = /^["”'`]?\s*\]/.exec(answer.slice(quoteEnd));
  if (before === null || after === null) return path;
  return { start: before.index, end: quoteEnd + after[0].length };
}
