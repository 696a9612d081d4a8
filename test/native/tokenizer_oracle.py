"""Tokenizes texts with PyPI `tokenizers`, built from the vocabulary of a GGUF: byte-level BPE from its
merges, SentencePiece's BPE from its scores.

Usage: tokenizer_oracle.py MODEL.gguf < TEXTS > TOKENS
TEXTS: records of a little-endian u32 length and that many bytes of UTF-8.
TOKENS: one line a text, token numbers with spaces between.

Qwen's own tokenizer also normalizes to NFC. Libllama does not, and neither does this oracle: what is
read must come back byte by byte.
"""

import struct
import sys

import gguf
from tokenizers import Tokenizer, models, normalizers

import pretokenizers


def strings(field):
    return [bytes(field.parts[index]).decode("utf-8") for index in field.data]


def numbers(field):
    return [field.parts[index][0] for index in field.data]


def byte_level(reader, vocabulary):
    pre = strings(reader.fields["tokenizer.ggml.pre"])[0]
    merges = [tuple(merge.split(" ", 1)) for merge in strings(reader.fields["tokenizer.ggml.merges"])]
    # Llama 3's tokenizer.json: a word that is a token as a whole is not merged step by step.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pretokenizers.byte_level(pre)
    return tokenizer


def sentence_piece(reader, vocabulary):
    scores = numbers(reader.fields["tokenizer.ggml.scores"])
    types = numbers(reader.fields["tokenizer.ggml.token_type"])
    pairs = []
    for text, index in vocabulary.items():
        if types[index] != gguf.TokenType.NORMAL:
            continue
        for cut in range(1, len(text)):
            if text[:cut] in vocabulary and text[cut:] in vocabulary:
                pairs.append((-scores[index], text[:cut], text[cut:]))
    merges = [(left, right) for _, left, right in sorted(pairs)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    vocabulary = {text: index for index, text in enumerate(strings(reader.fields["tokenizer.ggml.tokens"]))}
    kind = strings(reader.fields["tokenizer.ggml.model"])[0]
    tokenizer = (byte_level if kind == "gpt2" else sentence_piece)(reader, vocabulary)
    data = sys.stdin.buffer.read()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        text = data[at + 4 : at + 4 + length].decode("utf-8")
        at += 4 + length
        print(*tokenizer.encode(text).ids)


if __name__ == "__main__":
    main()
