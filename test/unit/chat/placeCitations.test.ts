import assert from 'node:assert/strict';
import {
  placeCitations,
  placedCitation,
  uncheckedSpans,
} from '../../../extension/chat/placeCitations';

const mark = (index: number) => `\uE000${index}\uE001`;

/** Spans of every `[…]` in the text. */
function spansOf(text: string) {
  return [...text.matchAll(/\[[^\]]*\]/g)].map(({ index, 0: match }) => ({
    start: index,
    end: index + match.length,
  }));
}

describe('chat/placeCitations', () => {
  it('puts a mark in place of each span', () => {
    const answer = 'One [a/__init__.py "x"], two [b.ts "y"].';
    assert.equal(placeCitations(answer, spansOf(answer)), `One ${mark(0)}, two ${mark(1)}.`);
    assert.equal(placeCitations(answer, []), answer);
  });

  it('keeps the place behind characters of two units', () => {
    const answer = '😀 [a.ts "😀"]';
    assert.equal(placeCitations(answer, spansOf(answer)), `😀 ${mark(0)}`);
  });

  it('lets no answer forge a mark, without moving what follows', () => {
    const answer = `${mark(0)} [a.ts "x"]`;
    const placed = placeCitations(answer, spansOf(answer));
    assert.equal(placed, `\uFFFD0\uFFFD ${mark(0)}`);
    assert.deepEqual(placed.split(placedCitation), ['\uFFFD0\uFFFD ', '0', '']);
  });

  it('leaves out spans that overlap or lie outside', () => {
    const spans = [
      { start: 0, end: 4 },
      { start: 2, end: 6 },
      { start: 6, end: 99 },
    ];
    assert.equal(placeCitations('abcdefgh', spans), `${mark(0)}efgh`);
  });

  it('finds citations before they are checked', () => {
    const answer = 'A [link](x), [a/__init__.py "x [1] y"] and [b.ts “z”], [c.ts "open';
    assert.deepEqual(
      uncheckedSpans(answer).map(({ start, end }) => answer.slice(start, end)),
      ['[a/__init__.py "x [1] y"]', '[b.ts “z”]'],
    );
  });
});
