/**
 * Puts marks into the text of an answer where its citations stand. Markdown would tear paths apart
 * (`__init__.py` is bold there), so citations are taken out before the text is rendered, and links
 * put in place of the marks afterwards. Pure.
 */
import type { TextSpan } from '../engine/protocol';

// Private use characters: they mean nothing to markdown, and none is let through from the answer.
const open = '\uE000';
const close = '\uE001';

/** Splits rendered text at the marks; the group is the index of the citation. */
export const placedCitation = /\uE000(\d+)\uE001/;

/**
 * Where citations seem to stand in an answer that has not been checked yet, because it is still
 * growing or was stopped: `[path "words"]` only.
 */
export function uncheckedSpans(answer: string): TextSpan[] {
  return [...answer.matchAll(/\[[^[\]\n"“]{1,300}["“][^\n]{0,200}?["”]\]/g)].map((match) => ({
    start: match.index,
    end: match.index + match[0].length,
  }));
}

/** The answer with a mark in place of each span. Spans are ascending and do not overlap. */
export function placeCitations(answer: string, spans: readonly TextSpan[]): string {
  const clean = answer.replace(/[\uE000\uE001]/g, '\uFFFD');
  let text = '';
  let from = 0;
  spans.forEach(({ start, end }, index) => {
    if (start < from || end < start || end > clean.length) return;
    text += `${clean.slice(from, start)}${open}${index}${close}`;
    from = end;
  });
  return text + clean.slice(from);
}
