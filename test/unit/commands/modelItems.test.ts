import assert from 'node:assert/strict';
import { modelItems, modelName } from '../../../extension/commands/modelItems';
import type { Model } from '../../../extension/models/catalog';

function model(path: string, some: Partial<Model> = {}): Model {
  return {
    path,
    name: modelName(path),
    source: 'Models folder',
    sizeBytes: 2048,
    quantization: 'Q4_1',
    architecture: 'llama',
    problem: null,
    ...some,
  };
}

describe('commands/modelItems', () => {
  const found = [
    model('/m/a.gguf'),
    model('/l/b.gguf', { source: 'LM Studio', problem: 'architecture qwen3 is not supported' }),
    model('/m/c.gguf'),
  ];

  it('groups by source and marks the chosen model', () => {
    const lines = modelItems(found, '/l/b.gguf').map((item) =>
      item.kind === 'source' ? `-- ${item.label}` : `${item.label}${item.current ? ' *' : ''}`,
    );
    assert.deepEqual(lines, ['-- Models folder', 'a', 'c', '-- LM Studio', 'b *']);
  });

  it('says what a model is, and why it cannot be run', () => {
    const descriptions = modelItems(found, '').flatMap((item) =>
      item.kind === 'model' ? [[item.description, item.usable]] : [],
    );
    assert.deepEqual(descriptions, [
      ['2.0 KiB · Q4_1', true],
      ['2.0 KiB · Q4_1', true],
      ['2.0 KiB · Q4_1 · architecture qwen3 is not supported', false],
    ]);
  });

  it('keeps a chosen model in the list that was not found', () => {
    const [source, chosen] = modelItems(found, '/else/d.gguf');
    assert.deepEqual(source, { kind: 'source', label: 'Chosen' });
    assert.equal(chosen?.label, 'd');
  });

  it('names a model by its file, and a blob by the start of its hash', () => {
    assert.equal(modelName('/m/SmolLM2-135M.Q4_1.gguf'), 'SmolLM2-135M.Q4_1');
    assert.equal(modelName(`/o/blobs/sha256-${'ab'.repeat(32)}`), 'sha256-abababab…');
    assert.equal(modelName(''), '');
  });
});
