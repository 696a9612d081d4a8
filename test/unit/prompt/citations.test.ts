import assert from 'node:assert/strict';
import { checkCitations, type CitableFile } from '../../../extension/prompt/citations';
import { showPath } from '../../../extension/prompt/layout';

const file = (path: string, text: string | null): CitableFile => ({
  path,
  absolutePath: `/work/${path}`,
  text,
});

/** Each holds something that a citation uses for something else. */
const oddPaths = [
  "What's new.md",
  'back`tick.txt',
  'clo]se.txt',
  'op[en.txt',
  'sm(il:)ey.txt',
  'in progress.md',
  'File format.md',
  'a.txt',
  'a.txt:12',
  'lines 3-4',
  '#L5',
  '<b>.html',
  '«x».txt',
  '[path "words"]',
  '-',
  'app/[...all]/[id].ts',
];

const files: CitableFile[] = [
  file(
    'src/queue.ts',
    [
      'export const leaseMs = 30_000;',
      'export const mostAttempts = 5;',
      '',
      'export class Queue {',
      '  /** The next job that is due. */',
      '  async take(): Promise<Job | undefined> {',
      '    return this.items[0] ?? undefined;',
      '  }',
      '',
      '  async fail(id: number, error: Error) {',
      "    throw new Error(`job ${id}: ${error.message}`, { cause: 'x' });",
      '  }',
      '}',
      'const name = "a quoted word";',
      '',
    ].join('\n'),
  ),
  file('src/heap.ts', 'export class Heap {\n  push() {}\n  push() {}\n}\n'),
  file('README.md', '# dogear\r\n\r\nA job queue   for one\tmachine.\r\nNothing is lost.\r\n'),
  file('lib/index.ts', 'export const a = 1;\n'),
  file('app/index.ts', 'export const b = 2;\n'),
  file('docs/my notes.md', 'Remember the milk.\n'),
  file('Makefile', 'all: build\n'),
  file('odd "name".ts', 'let odd = 1;\n'),
  file('src/__init__.py', 'import os\n'),
  file('app/[id]/page.tsx', 'export default Page;\n'),
  file('logo.png', null),
  ...oddPaths.map((path) => file(path, 'first\nthe only zebra\n')),
];

/** Answer, then what is found: path, quote, status and lines. */
type Case = [name: string, answer: string, ...found: string[]];

const cases: Case[] = [
  [
    'the form that is asked for',
    'It is 30 s [src/queue.ts "export const leaseMs = 30_000;"].',
    'src/queue.ts|export const leaseMs = 30_000;|verified 1-1',
  ],
  [
    'several',
    '[src/queue.ts "mostAttempts = 5"] and [README.md "Nothing is lost."]',
    'src/queue.ts|mostAttempts = 5|verified 2-2',
    'README.md|Nothing is lost.|verified 4-4',
  ],
  [
    'over two lines',
    '[src/queue.ts "export class Queue { /** The next job"]',
    'src/queue.ts|export class Queue { /** The next job|verified 4-5',
  ],
  [
    'white space of all kinds',
    '[README.md "A job  queue for\none machine"]',
    'README.md|A job  queue for\none machine|verified 3-3',
  ],
  [
    'blanks left out',
    '[src/queue.ts "leaseMs=30_000"]',
    'src/queue.ts|leaseMs=30_000|verified 1-1',
  ],
  [
    'backticks around the path',
    '[`src/queue.ts` "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'backticks around all',
    'See `[src/queue.ts "async take()"]`.',
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['bold', '**[src/queue.ts "async take()"]**', 'src/queue.ts|async take()|verified 6-6'],
  ['bold path', '[**src/queue.ts** "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  [
    'curly quotation marks',
    '[src/queue.ts “async take()”]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'single quotation marks',
    "[src/queue.ts 'async take()']",
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['guillemets', '[src/queue.ts «async take()»]', 'src/queue.ts|async take()|verified 6-6'],
  ['words in backticks', '[src/queue.ts `async take()`]', 'src/queue.ts|async take()|verified 6-6'],
  [
    'both in quotation marks',
    '["src/queue.ts" "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'both in quotation marks with a comma',
    '["src/queue.ts", "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['a colon', '[src/queue.ts: "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  ['a dash', '[src/queue.ts — "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  [
    'round brackets',
    'It waits (src/queue.ts "async take()").',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'no brackets',
    'In src/queue.ts "async take()" is defined.',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'no brackets, backticks',
    'In `src/queue.ts`: `async take()`',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'a link',
    '[src/queue.ts "async take()"](src/queue.ts)',
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['the words first', '["async take()" src/queue.ts]', 'src/queue.ts|async take()|verified 6-6'],
  [
    'words before the path',
    '[see src/queue.ts "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'file before the path',
    '[file src/queue.ts "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['./', '[./src/queue.ts "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  ['a slash in front', '[/src/queue.ts "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  [
    'an absolute path',
    '[/work/src/queue.ts "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'the folder in front',
    '[work/src/queue.ts "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['backslashes', '[src\\queue.ts "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  ['another case', '[SRC/Queue.ts "ASYNC TAKE()"]', 'src/queue.ts|ASYNC TAKE()|verified 6-6'],
  ['the name alone', '[queue.ts "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  ['a line number', '[src/queue.ts:6 "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  ['a line range', '[src/queue.ts#L6-L8 "async take()"]', 'src/queue.ts|async take()|verified 6-6'],
  [
    'a line in words',
    '[src/queue.ts, line 6: "async take()"]',
    'src/queue.ts|async take()|verified 6-6',
  ],
  [
    'a path with blanks',
    '[docs/my notes.md "Remember the milk"]',
    'docs/my notes.md|Remember the milk|verified 1-1',
  ],
  [
    'a path with quotation marks as shown',
    '["odd \\"name\\".ts" "let odd"]',
    'odd "name".ts|let odd|verified 1-1',
  ],
  [
    'a path that markdown would change',
    '[src/__init__.py "import os"]',
    'src/__init__.py|import os|verified 1-1',
  ],
  ['a name without extension', '[Makefile "all: build"]', 'Makefile|all: build|verified 1-1'],
  [
    'brackets in the words',
    '[src/queue.ts "this.items[0] ?? undefined"]',
    'src/queue.ts|this.items[0] ?? undefined|verified 7-7',
  ],
  [
    'quotation marks in the words',
    '[src/queue.ts "const name = "a quoted word";"]',
    'src/queue.ts|const name = "a quoted word";|verified 14-14',
  ],
  [
    'brackets in the path',
    '[app/[id]/page.tsx "export default Page"]',
    'app/[id]/page.tsx|export default Page|verified 1-1',
  ],
  [
    'escaped quotation marks',
    '[src/queue.ts "name = \\"a quoted"]',
    'src/queue.ts|name = \\"a quoted|verified 14-14',
  ],
  [
    'backticks in the words',
    '[src/queue.ts "new Error(`job ${id}:"]',
    'src/queue.ts|new Error(`job ${id}:|verified 11-11',
  ],
  [
    'an ellipsis',
    '[src/queue.ts "async fail(id..."]',
    'src/queue.ts|async fail(id...|verified 10-10',
  ],
  [
    'a full stop that is not there',
    '[src/queue.ts "async take()."]',
    'src/queue.ts|async take().|verified 6-6',
  ],
  ['words in several places', '[src/heap.ts "push() {}"]', 'src/heap.ts|push() {}|ambiguous 0-0'],
  [
    'a name that several files have',
    '[index.ts "export const a"]',
    'index.ts|export const a|ambiguous 0-0',
  ],
  ['a path without words', 'It is in [src/queue.ts].', 'src/queue.ts||ambiguous 0-0'],
  ['a path with empty words', '[src/queue.ts ""]', 'src/queue.ts||ambiguous 0-0'],
  [
    'words that are not there',
    '[src/queue.ts "leaseMs = 60_000"]',
    'src/queue.ts|leaseMs = 60_000|invented 0-0',
  ],
  [
    'words of another file',
    '[src/heap.ts "async take()"]',
    'src/heap.ts|async take()|invented 0-0',
  ],
  [
    'a path that is not there',
    '[src/stack.ts "async take()"]',
    'src/stack.ts|async take()|invented 0-0',
  ],
  [
    'a path of another folder',
    '[lib/queue.ts "async take()"]',
    'lib/queue.ts|async take()|invented 0-0',
  ],
  [
    'a path out of the workspace',
    '[../../etc/passwd "root"]',
    '../../etc/passwd|root|invented 0-0',
  ],
  ['a file of which only the path was shown', '[logo.png "PNG"]', 'logo.png|PNG|invented 0-0'],
  ['the example of the rules', '[path "words"]'],
  ['no citation', 'It takes the next job.'],
  ['a mention', 'The class in `src/heap.ts` has a `push`, and src/queue.ts has none.'],
  [
    'no brackets, backticks, no colon',
    '`src/queue.ts` `async take()`',
    'src/queue.ts|async take()|verified 6-6',
  ],
  ['code', 'Use `items["a"]`, x[i] = "b" or ["a", "b"] (see "more") and f(a, "b").'],
  ['a link to the web', '[docs](https://example.org/a.ts "title")'],
  ['a bracket that is never closed', 'See [src/queue.ts "async take()'],
  ['nothing', ''],
];

describe('citations', () => {
  for (const [name, answer, ...expected] of cases) {
    it(`finds: ${name}`, () => {
      const { citations, spans } = checkCitations(answer, files);
      const found = citations.map(
        ({ path, quote, status, startLine, endLine }) =>
          `${path}|${quote}|${status} ${startLine}-${endLine}`,
      );
      assert.deepEqual(found, expected);
      spans.forEach(({ start, end }, index) => {
        assert.ok(start >= (spans[index - 1]?.end ?? 0) && end > start && end <= answer.length);
      });
    });
  }

  for (const path of oddPaths) {
    it(`finds the path as it was shown: ${path}`, () => {
      const forms = [
        `It is so [${showPath(path)} "only zebra"], and [x].`,
        `It is so [${showPath(path)}: 'only zebra'].`,
        `It is so (${showPath(path)} "only zebra").`,
      ];
      for (const answer of forms) {
        const [citation, ...others] = checkCitations(answer, files).citations;
        assert.deepEqual(others, [], answer);
        assert.equal(citation?.path, path, answer);
        assert.equal(`${citation?.status} ${citation?.startLine}`, 'verified 2', answer);
      }
      const alone = checkCitations(`It is in [${path}].`, files).citations;
      assert.deepEqual(
        alone.map((citation) => `${citation.path} ${citation.status}`),
        [`${path} ambiguous`],
      );
    });
  }

  it('knows where a citation stands and where its file is', () => {
    const answer = 'Yes **[src/queue.ts:6 "async take()"]** it does.';
    const { citations, spans } = checkCitations(answer, files);
    assert.equal(answer.slice(spans[0]?.start, spans[0]?.end), '[src/queue.ts:6 "async take()"]');
    assert.equal(citations[0]?.absolutePath, '/work/src/queue.ts');
    const [unknown] = checkCitations('[src/none.ts "x"]', files).citations;
    assert.equal(unknown?.absolutePath, '');
  });

  it('counts lines by any line end', () => {
    const text = 'one\rtwo\r\nthree\n\n\nfour İstanbul five\n';
    const line = (quote: string) =>
      checkCitations(`[a.txt "${quote}"]`, [file('a.txt', text)]).citations[0]?.startLine;
    assert.deepEqual([line('one'), line('two'), line('three'), line('FIVE')], [1, 2, 3, 6]);
  });

  it('never throws, whatever the answer', () => {
    const parts = [
      '[',
      ']',
      '(',
      ')',
      '"',
      '“',
      '”',
      "'",
      '`',
      ' ',
      '\n',
      ':',
      '#L1',
      '\\',
      '**',
      '«',
      'src/queue.ts',
      'queue.ts',
      'async take()',
      '\uD800',
      '...',
      '__',
      ',',
    ];
    let state = 1;
    const random = (below: number) => {
      state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
      return Math.floor((state / 2 ** 31) * below);
    };
    for (let round = 0; round < 20_000; round++) {
      const answer = Array.from({ length: random(14) }, () => parts[random(parts.length)]).join('');
      const { citations, spans } = checkCitations(answer, files);
      assert.equal(citations.length, spans.length);
    }
  });

  it('takes time in proportion to the answer', () => {
    const bad = [
      '["',
      '[a "' + '"'.repeat(500) + ']',
      '[',
      '[[a "',
      '[src/queue.ts "',
      '(a "b ',
      '["',
      '[a "b" "c" ',
      'src/queue.ts "',
      '` ',
      '[' + ' '.repeat(50),
    ];
    for (const piece of bad) {
      const start = performance.now();
      checkCitations(piece.repeat(200_000 / piece.length), files);
      const ms = performance.now() - start;
      assert.ok(ms < 1_500, `${JSON.stringify(piece)}: ${ms.toFixed(0)} ms`);
    }
  });
});
