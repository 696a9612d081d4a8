import assert from 'node:assert/strict';
import { Engine } from '../../extension/engine/client';
import { sampleWorkspace, testModel, workerPath } from './support/longsight';

describe('integration: sample workspace', function () {
  this.timeout(60_000);
  const engine = new Engine({ workerPath, background: false, log: () => undefined });
  after(() => engine.dispose());

  it('fills most of the demo model, and fits', async () => {
    const { files, totalTokens } = await engine.pack({
      model: {
        path: testModel(),
        backend: 'auto',
        device: -1,
        threads: 0,
        contextTokens: 8_192,
        kvCache: 'bf16',
      },
      workspace: {
        folders: [{ name: 'sample-workspace', path: sampleWorkspace }],
        unsaved: {},
        budgetTokens: 0,
        strict: true,
      },
      withText: false,
    }).result;
    assert.ok(files.every(({ tier }) => tier === 'full'));
    assert.ok(totalTokens >= 5_500 && totalTokens <= 7_000, `${totalTokens} tokens`);
  });
});
