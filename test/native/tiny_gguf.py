"""Writes small random models of every architecture that Longsight runs, laid out as llama.cpp's
converters lay out the real ones: keys by gguf.GGUFWriter, tensors by gguf.MODEL_TENSORS.

Usage: tiny_gguf.py FOLDER < SPECS
SPECS: one JSON object a line; `name` gives the file FOLDER/name.gguf. Fields, all others optional:
  arch           llama, qwen2, qwen3, internlm2, chatglm, glm4
  type           F32 (default), F16, Q8_0, Q4_0, Q4_1, Q5_0: of the matrices
  head_dim       64; rotated: head_dim, half of it for chatglm and glm4
  heads, kv_heads, layers, feed_forward, context    4, 2, 2, 512, 4096
  fused_qkv      one attn_qkv tensor; default: chatglm only
  tied           no output.weight
  biases         of query, key and value; default: qwen2 and chatglm
  rope_freqs     Llama 3's frequency factors
  long_factors   LongRoPE's long and short factors
  keys           more metadata, by name without the architecture; strings, floats, ints, lists
  pre            pre-tokenizer of a byte-level vocabulary
  chat_template
"""

import json
import os
import sys

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import pretokenizers

ARCHITECTURES = {gguf.MODEL_ARCH_NAMES[a]: a for a in gguf.MODEL_ARCH}
TENSOR = gguf.MODEL_TENSOR

DEFAULTS = {
    "type": "F32",
    "head_dim": 64,
    "heads": 4,
    "kv_heads": 2,
    "layers": 2,
    "feed_forward": 512,
    "context": 4096,
    "tied": False,
    "rope_freqs": False,
    "long_factors": False,
    "keys": {},
}

GLM = {"fused_qkv": True, "biases": True, "rotary": 0.5, "pre": "chatglm-bpe"}
BY_ARCHITECTURE = {
    "llama": {"pre": "llama-bpe"},
    "qwen2": {"pre": "qwen2", "biases": True},
    "qwen3": {"pre": "qwen2"},
    "internlm2": {"pre": None},
    "chatglm": GLM,
    "glm4": {**GLM, "fused_qkv": False, "biases": False, "pre": "glm4"},
}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

# Special tokens, the one that ends a text, the one that ends an answer, and the chat template.
GLM_SPECIALS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
]  # fmt: skip
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
SPECIALS = {
    "llama": (LLAMA_SPECIALS, "<|end_of_text|>", "<|eot_id|>", LLAMA3),
    "qwen2": (QWEN_SPECIALS, "<|im_end|>", None, CHATML),
    "qwen3": (QWEN_SPECIALS, "<|im_end|>", None, CHATML),
    "internlm2": (["<|im_start|>", "<|im_end|>"], "<|im_end|>", None, CHATML),
    "chatglm": (GLM_SPECIALS, "<|endoftext|>", "<|user|>", GLM_TEMPLATE),
    "glm4": (GLM_SPECIALS, "<|endoftext|>", "<|user|>", GLM_TEMPLATE),
}

MERGES = 512


def corpus():
    """Source code, and prose in several scripts: something to learn merges from."""
    with open(gguf.constants.__file__, encoding="utf-8") as source:
        lines = source.read().splitlines()[:3000]
    prose = [
        "The quick brown fox doesn't jump over 12345 lazy dogs, it's resting. We'll see!",
        "日本語のテキスト、中文文本，한국어 텍스트. Größe, naïve, façade, Ελληνικά, русский текст.",
    ]
    return [line + "\n" for line in lines] + prose * 20


def byte_level(pre):
    """Tokens and merges of a BPE vocabulary over bytes, learnt with the given pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pretokenizers.byte_level(pre)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + MERGES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def sentence_piece():
    """Tokens, scores and types of a vocabulary of SentencePiece's BPE kind with byte tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=MERGES, limit_alphabet=200, show_progress=False)
    )
    model = json.loads(tokenizer.to_str())["model"]
    merged = ["".join(merge) for merge in model["merges"]]
    single = [text for text in model["vocab"] if len(text) == 1]
    rows = [("<unk>", 0.0, gguf.TokenType.UNKNOWN), ("<s>", 0.0, gguf.TokenType.CONTROL)]
    rows += [("</s>", 0.0, gguf.TokenType.CONTROL)]
    rows += [(f"<0x{byte:02X}>", 0.0, gguf.TokenType.BYTE) for byte in range(256)]
    seen = set()
    for text in merged + single:
        if text not in seen:
            rows.append((text, -float(len(seen)), gguf.TokenType.NORMAL))
            seen.add(text)
    return rows


def add_tokenizer(writer, spec):
    """Writes the vocabulary; returns its size."""
    specials, end_of_text, end_of_turn, template = SPECIALS[spec["arch"]]
    if spec["pre"]:
        tokens, merges = byte_level(spec["pre"])
        types = [gguf.TokenType.NORMAL] * len(tokens)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(spec["pre"])
        writer.add_token_merges(merges)
    else:
        rows = sentence_piece()
        tokens = [row[0] for row in rows]
        types = [row[2] for row in rows]
        scores = [row[1] for row in rows] + [-1000.0] * len(specials)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(False)
        writer.add_bos_token_id(1)
    first = len(tokens)
    tokens = tokens + specials
    types += [gguf.TokenType.CONTROL] * len(specials)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(first + specials.index(end_of_text))
    if end_of_turn:
        writer.add_eot_token_id(first + specials.index(end_of_turn))
    if spec["arch"] == "llama":
        writer.add_bos_token_id(first)
        writer.add_add_bos_token(True)
    if spec["arch"] == "chatglm":
        writer.add_add_bos_token(False)
    writer.add_chat_template(spec.get("chat_template", template))
    return len(tokens)


def add_shape(writer, spec, width):
    writer.add_name("Tiny " + spec["arch"])
    writer.add_block_count(spec["layers"])
    writer.add_context_length(spec["context"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(spec["feed_forward"])
    writer.add_head_count(spec["heads"])
    writer.add_head_count_kv(spec["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if spec["arch"] == "qwen3":
        writer.add_key_length(spec["head_dim"])
        writer.add_value_length(spec["head_dim"])
    # The converters of Qwen and InternLM2 write none.
    if spec["arch"] in ("llama", "chatglm", "glm4"):
        writer.add_rope_dimension_count(spec["rotated"])
    for key, value in spec["keys"].items():
        key = f"{spec['arch']}.{key}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)


class Tensors:
    """Adds random tensors to a file, refusing any that the architecture does not have."""

    def __init__(self, writer, spec):
        self.writer = writer
        self.known = gguf.MODEL_TENSORS[ARCHITECTURES[spec["arch"]]]
        self.type = gguf.GGMLQuantizationType[spec["type"]]
        self.random = np.random.default_rng(7)

    def name(self, tensor, layer, kind):
        if tensor not in self.known:
            raise ValueError(f"{tensor} is not a tensor of this architecture")
        return f"{gguf.TENSOR_NAMES[tensor].format(bid=layer)}.{kind}"

    def matrix(self, tensor, rows, columns, layer=None, deviation=None, bias=False):
        deviation = deviation or 1.5 / np.sqrt(columns)
        values = self.random.normal(0, deviation, (rows, columns)).astype(np.float32)
        if self.type == gguf.GGMLQuantizationType.F32:
            self.writer.add_tensor(self.name(tensor, layer, "weight"), values)
        else:
            data = gguf.quants.quantize(values, self.type)
            self.writer.add_tensor(self.name(tensor, layer, "weight"), data, raw_dtype=self.type)
        if bias:
            self.vector(self.name(tensor, layer, "bias"), rows, 0, 0.3)

    def norm(self, tensor, length, layer=None):
        self.vector(self.name(tensor, layer, "weight"), length, 1, 0.2)

    def vector(self, name, length, mean, deviation):
        values = self.random.normal(mean, deviation, length).astype(np.float32)
        self.writer.add_tensor(name, values)

    def factors(self, tensor, values):
        self.writer.add_tensor(gguf.TENSOR_NAMES[tensor] + ".weight", np.array(values, np.float32))


def add_tensors(writer, spec, width, vocabulary):
    tensors = Tensors(writer, spec)
    arch = spec["arch"]
    query = spec["heads"] * spec["head_dim"]
    key = spec["kv_heads"] * spec["head_dim"]
    inner = spec["feed_forward"]
    tensors.matrix(TENSOR.TOKEN_EMBD, vocabulary, width, deviation=1)
    tensors.norm(TENSOR.OUTPUT_NORM, width)
    if not spec["tied"]:
        tensors.matrix(TENSOR.OUTPUT, vocabulary, width)
    pairs = spec["rotated"] // 2
    if spec["rope_freqs"]:
        tensors.factors(TENSOR.ROPE_FREQS, [1.0 if i < pairs // 2 else 8.0 for i in range(pairs)])
    if spec["long_factors"]:
        tensors.factors(TENSOR.ROPE_FACTORS_LONG, [1 + 0.5 * i for i in range(pairs)])
        tensors.factors(TENSOR.ROPE_FACTORS_SHORT, [1 + 0.05 * i for i in range(pairs)])
    for layer in range(spec["layers"]):
        tensors.norm(TENSOR.ATTN_NORM, width, layer)
        biases = spec["biases"]
        if spec["fused_qkv"]:
            tensors.matrix(TENSOR.ATTN_QKV, query + 2 * key, width, layer, bias=biases)
        else:
            tensors.matrix(TENSOR.ATTN_Q, query, width, layer, bias=biases)
            tensors.matrix(TENSOR.ATTN_K, key, width, layer, bias=biases)
            tensors.matrix(TENSOR.ATTN_V, key, width, layer, bias=biases)
        if arch == "qwen3":
            tensors.norm(TENSOR.ATTN_Q_NORM, spec["head_dim"], layer)
            tensors.norm(TENSOR.ATTN_K_NORM, spec["head_dim"], layer)
        tensors.matrix(TENSOR.ATTN_OUT, width, query, layer)
        tensors.norm(TENSOR.FFN_NORM, width, layer)
        if arch in ("chatglm", "glm4"):
            tensors.matrix(TENSOR.FFN_UP, 2 * inner, width, layer)
        else:
            tensors.matrix(TENSOR.FFN_GATE, inner, width, layer)
            tensors.matrix(TENSOR.FFN_UP, inner, width, layer)
        tensors.matrix(TENSOR.FFN_DOWN, width, inner, layer)
        if arch == "glm4":
            tensors.norm(TENSOR.ATTN_POST_NORM, width, layer)
            tensors.norm(TENSOR.FFN_POST_NORM, width, layer)


def write(folder, line):
    own = json.loads(line)
    by_architecture = BY_ARCHITECTURE[own["arch"]]
    spec = {**DEFAULTS, "fused_qkv": False, "biases": False, **by_architecture, **own}
    spec.setdefault("rotated", int(spec["head_dim"] * spec.get("rotary", 1)))
    # Qwen3's heads are wider than their share of the embedding.
    width = spec.get("width", spec["heads"] * spec["head_dim"] // (2 if spec["arch"] == "qwen3" else 1))
    writer = gguf.GGUFWriter(os.path.join(folder, spec["name"] + ".gguf"), spec["arch"])
    add_shape(writer, spec, width)
    vocabulary = add_tokenizer(writer, spec)
    add_tensors(writer, spec, width, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for spec_line in sys.stdin:
        write(sys.argv[1], spec_line)
