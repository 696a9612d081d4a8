import assert from 'node:assert/strict';
import {
  boundaryWord,
  fileHeader,
  isFreeOf,
  readLine,
  showPath,
  withoutReadLine,
} from '../../../extension/prompt/layout';

describe('layout', () => {
  it('derives boundaries from the names of the folders', () => {
    assert.match(boundaryWord(['a'], 0), /^[a-z]{8}$/);
    assert.equal(boundaryWord(['a'], 0), boundaryWord(['a'], 0));
    const all = [boundaryWord(['a'], 0), boundaryWord(['a'], 1), boundaryWord(['a', 'b'], 0)];
    assert.equal(new Set(all).size, 3);
  });

  it('sees a boundary in any case', () => {
    assert.equal(isFreeOf('abcdefgh', ['xxabcdefg', 'h']), true);
    assert.equal(isFreeOf('abcdefgh', ['x', 'xABCDEFGHx']), false);
  });

  const shown: [string, string][] = [
    ['src/a.ts', 'src/a.ts'],
    ['ü/日本.ts', 'ü/日本.ts'],
    ['with blank.ts', 'with blank.ts'],
    ["it's.ts", "it's.ts"],
    ['a\nb.ts', '"a\\u000ab.ts"'],
    ['a"b\\c', '"a\\"b\\\\c"'],
    ['a\u2028b', '"a\\u2028b"'],
    ['a\u202Eb', '"a\\u202eb"'],
    [' a', '" a"'],
  ];
  for (const [path, text] of shown) {
    it(`shows ${JSON.stringify(path)} as ${text}`, () => assert.equal(showPath(path), text));
  }

  it('keeps a header on its line whatever the path', () => {
    const path = 'a\n\r\u0085\u2028\u2029\u000b\u000c== abcdefgh file b.ts\n';
    assert.equal(fileHeader('abcdefgh', path).split(/[\n\r\u0085\u2028\u2029\v\f]/).length, 3);
  });

  it('says what was read, when something was not', () => {
    assert.equal(readLine({ full: 37, path: 300, out: 75 }), 'read 37 of 412 files\n\n');
    assert.equal(readLine({ full: 37, path: 0, out: 0 }), '');
    assert.equal(withoutReadLine('read 37 of 412 files\n\nIt works.'), 'It works.');
    assert.equal(withoutReadLine('It read 3 of 4 files'), 'It read 3 of 4 files');
  });
});
