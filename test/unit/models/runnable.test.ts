import assert from 'node:assert/strict';
import type { GgufValue } from '../../../extension/models/ggufHeader';
import { whyNotRunnable } from '../../../extension/models/runnable';

/** What is said about a model of an architecture with these keys. */
function said(architecture: string, keys: Record<string, GgufValue> = {}): string | null {
  const entries = new Map(Object.entries(keys));
  return whyNotRunnable({ architecture, name: '', quantization: '', keys: entries });
}

const shape = { 'attention.head_count': 32, embedding_length: 4096 };

describe('models that run', () => {
  it('are of the known architectures, whatever else the head leaves open', () => {
    for (const name of ['llama', 'qwen2', 'qwen3', 'internlm2', 'chatglm', 'glm4']) {
      assert.equal(said(name), null);
      assert.equal(said(name, { ...shape, expert_count: 0, 'rope.scaling.type': 'yarn' }), null);
    }
    assert.match(said('gemma3') ?? '', /^architecture gemma3: Longsight runs llama, .*glm4$/);
    assert.match(said('') ?? '', /^architecture unknown/);
  });

  it('are not those that compute something else', () => {
    assert.match(said('llama', { ...shape, expert_count: 8 }) ?? '', /mixture of 8 experts/);
    assert.match(said('qwen2', { 'attention.sliding_window': 4096 }) ?? '', /sliding window/);
    assert.match(said('glm4', { nextn_predict_layers: 1 }) ?? '', /several tokens at once/);
    assert.match(said('qwen3', { pooling_type: 3 }) ?? '', /embeddings/);
    assert.match(said('llama', { 'attention.causal': false }) ?? '', /embeddings/);
    assert.match(said('llama', { final_logit_softcapping: 30 }) ?? '', /capped/);
    assert.match(said('llama', { 'rope.scaling.type': 'spiral' }) ?? '', /RoPE scaling spiral/);
  });

  it('have heads that the kernels know', () => {
    assert.equal(said('qwen3', { ...shape, 'attention.key_length': 80 }), null);
    assert.match(said('llama', { ...shape, embedding_length: 1024 }) ?? '', /heads of 32 dim/);
    assert.match(said('qwen3', { ...shape, 'attention.key_length': 72 }) ?? '', /heads of 72 dim/);
  });
});
