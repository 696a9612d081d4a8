/** Citations inside an answer and in the list below it. */
import type { Citation } from '../engine/protocol';
import { placedCitation } from '../chat/placeCitations';
import { el } from './dom';

/** `src/a.ts:12` or `src/a.ts:12-14`; only the path where no lines are known. */
export function citationLabel(citation: Citation): string {
  if (citation.status !== 'verified') return citation.path;
  const { path, startLine, endLine } = citation;
  return endLine > startLine ? `${path}:${startLine}-${endLine}` : `${path}:${startLine}`;
}

const marks = { verified: '', ambiguous: '≈', invented: '✗' } as const;

function explanation(citation: Citation): string {
  switch (citation.status) {
    case 'verified':
      return `Found in the file: “${citation.quote}”. Click to open`;
    case 'ambiguous':
      return `Not verified: “${citation.quote}” was found in more than one place`;
    case 'invented':
      return citation.absolutePath === ''
        ? 'Not verified: no file that was read has this path'
        : `Not verified: “${citation.quote}” is not in this file`;
  }
}

/** A verified citation is a button with `data-citation`; anything else is text with a mark. */
export function citationElement(citation: Citation, index: number): HTMLElement {
  const title = explanation(citation);
  if (citation.status === 'verified') {
    return el(
      'button',
      { type: 'button', class: 'citation verified', title, 'data-citation': String(index) },
      citationLabel(citation),
    );
  }
  return el(
    'span',
    { class: `citation ${citation.status}`, title, tabindex: '0' },
    el('span', { class: 'mark', 'aria-hidden': 'true' }, marks[citation.status]),
    citationLabel(citation),
    el('span', { class: 'visually-hidden' }, ` (${title})`),
  );
}

/** Puts what `element` makes of an index where `placeCitations` left its marks. */
export function fillMarks(
  content: DocumentFragment,
  element: (index: number) => Node | null,
): void {
  const walker = document.createTreeWalker(content, NodeFilter.SHOW_TEXT);
  const texts: Text[] = [];
  while (walker.nextNode()) texts.push(walker.currentNode as Text);
  for (const text of texts) {
    const parts = text.data.split(placedCitation);
    if (parts.length === 1) continue;
    // Split at a group: every second part is an index.
    text.replaceWith(
      ...parts.map((part, place) => (place % 2 === 0 ? part : (element(Number(part)) ?? part))),
    );
  }
}

/** The list below the answer: each place once. */
export function sourceList(citations: readonly Citation[]): HTMLElement {
  const seen = new Set<string>();
  const list = el('ul', { class: 'sources', 'aria-label': 'Sources' });
  citations.forEach((citation, index) => {
    const key = `${citation.status} ${citationLabel(citation)}`;
    if (seen.has(key)) return;
    seen.add(key);
    list.append(el('li', {}, citationElement(citation, index)));
  });
  return list;
}

/** Index of the citation that was clicked inside `event`, if any. */
export function clickedCitation(event: Event): number | undefined {
  const target = event.target instanceof Element ? event.target.closest('[data-citation]') : null;
  const index = Number(target?.getAttribute('data-citation') ?? NaN);
  return Number.isInteger(index) ? index : undefined;
}
