import assert from 'node:assert/strict';
import { placeCitations, placedCitation } from '../../../extension/chat/placeCitations';
import { exampleCitation } from './examples';

const mark = (index: number) => `\uE000${index}\uE001`;

describe('chat/placeCitations', () => {
  it('replaces the path that has the quote behind it, not an earlier mention', () => {
    const answer = 'In src/a.ts there is more. See src/a.ts "const a = 1".';
    assert.equal(
      placeCitations(answer, [exampleCitation()]),
      `In src/a.ts there is more. See ${mark(0)} "const a = 1".`,
    );
  });

  it('replaces the whole form that the model is asked for', () => {
    for (const form of [
      '[src/a.ts "const a = 1"]',
      '[`src/a.ts` “const a = 1”]',
      '[ src/a.ts: "const a = 1" ]',
    ]) {
      assert.equal(placeCitations(`So ${form}.`, [exampleCitation()]), `So ${mark(0)}.`, form);
    }
    assert.equal(
      placeCitations('[src/a.ts "const a = 1" and more]', [exampleCitation()]),
      `[${mark(0)} "const a = 1" and more]`,
    );
  });

  it('takes a mere mention when the quote stands elsewhere', () => {
    assert.equal(placeCitations('See src/a.ts.', [exampleCitation()]), `See ${mark(0)}.`);
  });

  it('places several citations in order, the same path twice included', () => {
    const answer = 'src/a.ts "x" and src/b.ts "y" and src/a.ts "z"';
    const citations = [
      exampleCitation({ quote: 'x' }),
      exampleCitation({ path: 'src/b.ts', quote: 'y' }),
      exampleCitation({ quote: 'z' }),
    ];
    assert.equal(
      placeCitations(answer, citations),
      `${mark(0)} "x" and ${mark(1)} "y" and ${mark(2)} "z"`,
    );
  });

  it('leaves out what is not in the text', () => {
    assert.equal(
      placeCitations('Nothing.', [exampleCitation(), exampleCitation({ path: '' })]),
      'Nothing.',
    );
  });

  it('lets no answer forge a mark', () => {
    const placed = placeCitations(`${mark(0)} src/a.ts`, [exampleCitation()]);
    assert.equal(placed, `\uFFFD0\uFFFD ${mark(0)}`);
    assert.deepEqual(placed.split(placedCitation), ['\uFFFD0\uFFFD ', '0', '']);
  });
});
