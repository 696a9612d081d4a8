import assert from 'node:assert/strict';
import { inPromptOrder, kindOf } from '../../../extension/workspace/order';

describe('order', () => {
  const ordered = [
    'README.md',
    'readme.txt',
    'Makefile',
    'package.json',
    'lib/README.md',
    'lib/package.json',
    'lib/deep/README',
    'lib/deep/Cargo.toml',
    '.eslintrc',
    'Z.ts',
    'a-b/x.ts',
    'a.ts',
    'a/b.ts',
    'lib/a.ts',
    'readme-tools.ts',
    'ä.ts',
  ];

  it('puts READMEs and manifests first, then goes by path, from any order', () => {
    for (let shift = 0; shift < ordered.length; shift++) {
      const files = [...ordered.slice(shift), ...ordered.slice(0, shift)].reverse();
      const sorted = inPromptOrder(files.map((path) => ({ path })));
      assert.deepEqual(
        sorted.map(({ path }) => path),
        ordered,
      );
    }
  });

  it('says what a file is', () => {
    assert.equal(kindOf('docs/ReadMe.rst'), 'readme');
    assert.equal(kindOf('src/App.csproj'), 'manifest');
    assert.equal(kindOf('src/main.rs'), 'source');
  });
});
