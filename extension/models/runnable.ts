/** Whether the engine runs a model, as far as the first bytes of its file tell. */
import type { GgufFacts } from './ggufHeader';

// The same as in native/model/architecture.cpp and gguf_file.cpp, which have the last word.
const architectures = ['llama', 'qwen2', 'qwen3', 'internlm2', 'chatglm', 'glm4'];
const headSizes = [64, 80, 96, 128, 256];
const ropeScalings = ['none', 'linear', 'yarn', 'longrope'];

/** Null when Longsight can run it; else why not, in words that end a sentence. */
export function whyNotRunnable({ architecture, keys }: GgufFacts): string | null {
  if (!architectures.includes(architecture)) {
    return `architecture ${architecture || 'unknown'}: Longsight runs ${architectures.join(', ')}`;
  }
  const number = (key: string): number => {
    const value = keys.get(key);
    return typeof value === 'number' ? value : 0;
  };
  if (number('expert_count') > 0) {
    return `a mixture of ${number('expert_count')} experts: Longsight runs dense models`;
  }
  if (number('attention.sliding_window') > 0) return 'sliding window attention is not supported';
  if (number('nextn_predict_layers') > 0) {
    return 'layers that predict several tokens at once are not supported';
  }
  if (number('pooling_type') > 0 || keys.get('attention.causal') === false) {
    return 'a model for embeddings or ranking, which writes no text';
  }
  if (number('attn_logit_softcapping') !== 0 || number('final_logit_softcapping') !== 0) {
    return 'capped logits are not supported';
  }
  const heads = number('attention.head_count');
  const headSize = number('attention.key_length') || number('embedding_length') / (heads || NaN);
  if (headSize > 0 && !headSizes.includes(headSize)) {
    return `heads of ${headSize} dimensions: Longsight runs ${headSizes.join(', ')}`;
  }
  const scaling = keys.get('rope.scaling.type');
  if (typeof scaling === 'string' && !ropeScalings.includes(scaling)) {
    return `RoPE scaling ${scaling}: Longsight knows ${ropeScalings.join(', ')}`;
  }
  return null;
}
