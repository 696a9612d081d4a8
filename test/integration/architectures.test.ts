/** A whole question through every architecture, with small random models. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { cli, temporaryFolder, writeFiles } from './support/longsight';

const architectures = ['llama', 'qwen2', 'qwen3', 'internlm2', 'chatglm', 'glm4'];
const sparse =
  '--policy peak --dense-below-tokens 0 --window-tokens 128 --segment-rows 512 --epsilon 0.02';

describe('integration: every architecture answers', function () {
  this.timeout(120_000);
  const folder = temporaryFolder();
  let workspace: string;

  before(() => {
    const specs = architectures.map((arch) =>
      JSON.stringify({ name: arch, arch, type: 'Q8_0', context: 16_384 }),
    );
    execFileSync('python3', [path.resolve('test/native/tiny_gguf.py'), folder()], {
      input: specs.join('\n'),
      env: {
        ...process.env,
        PYTHONPATH: path.resolve('.deps/python'),
        PYTHONDONTWRITEBYTECODE: '1',
      },
    });
    const lines = Array.from({ length: 60 }, (_, i) => `export const value${i} = ${i * i};`);
    workspace = writeFiles(path.join(folder(), 'project'), { 'squares.ts': lines.join('\n') });
  });

  for (const arch of architectures) {
    it(arch, async () => {
      const { status, stdout, stderr } = await cli([
        ...['ask', '--workspace', workspace, '--question', 'What is value7?'],
        ...['--model', path.join(folder(), `${arch}.gguf`), '--json', '--max-tokens', '6'],
        ...sparse.split(' '),
      ]);
      assert.equal(status, 0, stderr);
      const { answer, files, stats } = JSON.parse(stdout);
      assert.equal(typeof answer, 'string');
      assert.deepEqual(files, { full: 1, path: 0, out: 0 });
      assert.equal(stats.model, `Tiny ${arch}`);
      assert.ok(stats.promptTokens > 1000);
      assert.equal(stats.computedTokens, stats.promptTokens);
      const { sparseDensity } = stats.attention;
      assert.ok(sparseDensity > 0 && sparseDensity < 1, `sparseDensity ${sparseDensity}`);
    });
  }
});
