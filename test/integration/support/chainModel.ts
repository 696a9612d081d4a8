/**
 * A real model that says what a test wants: one layer that adds nothing, so that the last token alone
 * decides the next one, and an output matrix that makes that the token's successor in a chain.
 */
import { GgufHeader } from './gguf';

const width = 64;
const controlType = 3;
const normalType = 1;

/** Byte-level BPE shows each byte as a letter; the space, controls and others as letters from 256 on. */
const byteLetters = (() => {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(printable ? byte : next++);
  });
})();

/** As the vocabulary shows a text. */
const shown = (text: string) => [...Buffer.from(text)].map((byte) => byteLetters[byte]).join('');

/** Ends each chain. */
const end = '<|end|>';

export interface Chain {
  /** Last token of the prompt: one byte as text, or one of `marks`. */
  after: string;
  /** Tokens that are generated then; none may stand in two places of any chain. */
  says: string[];
}

/** Writes the model; `marks` are special tokens that the template may use. */
export function writeChainModel(
  file: string,
  { chatTemplate, marks, chains }: { chatTemplate: string; marks: string[]; chains: Chain[] },
): void {
  // No merge makes them, so no text is tokenized to them; single bytes are there already.
  const said = chains.flatMap(({ says }) => says).filter((text) => Buffer.byteLength(text) > 1);
  const special = [...marks, end];
  const tokens = [...byteLetters, ...said.map(shown), ...special];
  while (tokens.length % 32 !== 0) tokens.push(`<|unused${tokens.length}|>`);
  const specialFrom = byteLetters.length + said.length;
  const types = Int32Array.from(tokens, (_, token) =>
    token < specialFrom ? normalType : controlType,
  );
  const idOf = (text: string) => {
    const token = tokens.indexOf(special.includes(text) ? text : shown(text));
    if (token < 0) throw new Error(`no token ${JSON.stringify(text)}`);
    return token;
  };

  const embeddings = signs(tokens.length * width);
  const output = new Float32Array(tokens.length * width);
  for (const { after, says } of chains) {
    [after, ...says].forEach((text, place) => {
      const next = idOf(says[place] ?? end) * width;
      const from = idOf(text) * width;
      // Added, because several chains end in the same token.
      for (let i = 0; i < width; i++) output[next + i]! += embeddings[from + i]!;
    });
  }
  const square = [width, width];
  GgufHeader.of(
    {
      'general.architecture': 'llama',
      'general.name': 'Chain',
      'llama.block_count': 1,
      'llama.context_length': 8192,
      'llama.embedding_length': width,
      'llama.feed_forward_length': width,
      'llama.attention.head_count': 1,
      'llama.attention.head_count_kv': 1,
      'llama.attention.layer_norm_rms_epsilon': { float: 1e-5 },
      'llama.rope.dimension_count': width,
      'llama.rope.freq_base': { float: 10_000 },
      'llama.vocab_size': tokens.length,
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.pre': 'smollm',
      'tokenizer.ggml.tokens': tokens,
      'tokenizer.ggml.token_type': types,
      'tokenizer.ggml.merges': ['t h'],
      'tokenizer.ggml.bos_token_id': idOf(end),
      'tokenizer.ggml.eos_token_id': idOf(end),
      'tokenizer.chat_template': chatTemplate,
    },
    {
      'token_embd.weight': [width, tokens.length],
      'output.weight': [width, tokens.length],
      'output_norm.weight': [width],
      'blk.0.attn_norm.weight': [width],
      'blk.0.ffn_norm.weight': [width],
      'blk.0.attn_q.weight': square,
      'blk.0.attn_k.weight': square,
      'blk.0.attn_v.weight': square,
      'blk.0.attn_output.weight': square,
      'blk.0.ffn_gate.weight': square,
      'blk.0.ffn_up.weight': square,
      'blk.0.ffn_down.weight': square,
    },
  ).write(file, {
    'token_embd.weight': embeddings,
    'output.weight': output,
    ...Object.fromEntries(
      ['output_norm', 'blk.0.attn_norm', 'blk.0.ffn_norm'].map((name) => [
        `${name}.weight`,
        new Float32Array(width).fill(1),
      ]),
    ),
  });
}

/** Random signs, the same each time: vectors of them are nearly at right angles to each other. */
function signs(count: number): Float32Array {
  // A linear congruential generator would not do: rows a power of two apart resemble each other.
  let state = 1;
  return Float32Array.from({ length: count }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state < 0 ? 1 : -1;
  });
}
