import assert from 'node:assert/strict';
import {
  opensThought,
  ThoughtSplitter,
  withThoughtEnded,
  type Split,
} from '../../../extension/prompt/thinking';

/** What a splitter tells about text that comes in these pieces. */
function split(pieces: readonly string[], opened = false): Split & { splits: Split[] } {
  const splitter = new ThoughtSplitter(opened);
  const splits = [...pieces.map((piece) => splitter.push(piece)), splitter.end()];
  return {
    thinking: splits.map(({ thinking }) => thinking).join(''),
    answer: splits.map(({ answer }) => answer).join(''),
    splits,
  };
}

const cases: [what: string, opened: boolean, text: string, thinking: string, answer: string][] = [
  ['a thought, then an answer', false, '<think>\nA b.\n</think>\n\nYes.', 'A b.', 'Yes.'],
  ['blanks before the thought', false, ' \n<think>a</think>b', 'a', 'b'],
  ['no blanks at all', false, '<think>a</think>b', 'a', 'b'],
  ['an empty thought', false, '<think>\n\n</think>\n\nYes.', '', 'Yes.'],
  ['a thought that does not end', false, '<think>a\n\nb \n', 'a\n\nb', ''],
  ['a thought cut off in its closing tag', false, '<think>a </thi', 'a </thi', ''],
  ['only an opening tag', false, '<think>', '', ''],
  ['an answer alone', false, '  Yes, <b>.', '', '  Yes, <b>.'],
  ['an answer that begins like a tag', false, '<thin ice', '', '<thin ice'],
  ['an answer that is a beginning of a tag', false, '<thi', '', '<thi'],
  ['nothing', false, '', '', ''],
  ['blanks alone', false, ' \n', '', ' \n'],
  ['tags within an answer', false, 'Use <think>x</think>.', '', 'Use <think>x</think>.'],
  ['tags after a thought', false, '<think>a</think>See <think>.', 'a', 'See <think>.'],
  ['an opening tag within a thought', false, '<think>a <think> b</think>c', 'a <think> b', 'c'],
  ['things like a closing tag', false, '<think>a </ b </think c</think>d', 'a </ b </think c', 'd'],
  ['a closing tag without a thought', false, 'a</think>b', '', 'a</think>b'],
  ['a thought that the prompt opened', true, 'A b.\n</think>\n\nYes.', 'A b.', 'Yes.'],
  ['one that is opened twice', true, '<think>\nA.</think>Yes.', 'A.', 'Yes.'],
  ['one that ends at once', true, '\n</think>\n\nYes.', '', 'Yes.'],
  ['one that does not end', true, 'A b', 'A b', ''],
  ['one that begins like a tag', true, '<thing>', '<thing>', ''],
  [
    'letters of two units',
    true,
    '\u{1F914}\u{1F914}</think>\u{1F600}',
    '\u{1F914}\u{1F914}',
    '\u{1F600}',
  ],
];

describe('prompt/thinking', () => {
  for (const [what, opened, text, thinking, answer] of cases) {
    it(`splits ${what}, wherever it is cut`, () => {
      const check = (pieces: string[]) => {
        const { thinking: thought, answer: rest } = split(pieces, opened);
        assert.deepEqual([thought, rest], [thinking, answer], JSON.stringify(pieces));
      };
      check([text]);
      check(Array.from(text));
      for (let first = 0; first <= text.length; first++) {
        for (let second = first; second <= text.length; second++) {
          check([text.slice(0, first), text.slice(first, second), text.slice(second)]);
        }
      }
    });
  }

  it('holds back only what may be a tag or a blank before one', () => {
    const { splits } = split([
      '<think>',
      '\nOne',
      ' two <',
      '/b> ',
      '</thi',
      'nk>',
      '\n',
      'A',
      ' <',
    ]);
    assert.deepEqual(splits.map(({ thinking }) => thinking).slice(0, 6), [
      '',
      'One',
      ' two',
      ' </b>',
      '',
      '',
    ]);
    assert.deepEqual(splits.map(({ answer }) => answer).slice(6), ['', 'A', ' <', '']);
  });

  it('knows whether it is in a thought', () => {
    const splitter = new ThoughtSplitter(false);
    const states = [' ', '<thi', 'nk>', 'a', '</think', '>', 'b'].map((text) => {
      splitter.push(text);
      return splitter.isThinking();
    });
    assert.deepEqual(states, [false, false, true, true, true, false, false]);
    assert.equal(new ThoughtSplitter(true).isThinking(), true);
  });

  it('sees a thought that a prompt opens, and ends it', () => {
    for (const end of ['<|Assistant|><think>\n', '<think>', 'x<think>  ']) {
      assert.ok(opensThought(end));
      assert.ok(!opensThought(withThoughtEnded(end)));
    }
    assert.ok(!opensThought('<|im_start|>assistant\n'));
    assert.equal(withThoughtEnded('A<think>\n'), 'A<think>\n\n</think>\n\n');
  });
});
