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

/**
 * The answer with a mark in place of each citation's path. Citations come in the order in which
 * they stand in the answer; one that is not found there is left out.
 */
export function placeCitations(answer: string, citations: readonly Citation[]): string {
  const clean = answer.replace(/[\uE000\uE001]/g, '\uFFFD');
  let text = '';
  let from = 0;
  citations.forEach((citation, index) => {
    const at = findCitation(clean, citation, from);
    if (at < 0) return;
    text += `${clean.slice(from, at)}${open}${index}${close}`;
    from = at + citation.path.length;
  });
  return text + clean.slice(from);
}

/** A path with the quote close behind it is the citation; a path alone may be a mere mention. */
function findCitation(answer: string, citation: Citation, from: number): number {
  if (citation.path === '') return -1;
  let first = -1;
  for (let at = answer.indexOf(citation.path, from); at >= 0; ) {
    if (first < 0) first = at;
    const end = at + citation.path.length;
    const quoteAt = citation.quote === '' ? -1 : answer.indexOf(citation.quote, end);
    if (quoteAt >= 0 && quoteAt - end <= quoteReach) return at;
    at = answer.indexOf(citation.path, end);
  }
  return first;
}
