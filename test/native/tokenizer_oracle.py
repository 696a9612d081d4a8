"""Tokenizes texts with PyPI `tokenizers`, built from the vocabulary and merges of a GGUF.

Usage: tokenizer_oracle.py MODEL.gguf < TEXTS > TOKENS
TEXTS: records of a little-endian u32 length and that many bytes of UTF-8.
TOKENS: one line a text, token numbers with spaces between.
Knows the pre-tokenizer `smollm`: digits one by one, then GPT-2's byte-level pattern.
"""

import struct
import sys

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers


def strings(field):
    return [bytes(field.parts[index]).decode("utf-8") for index in field.data]


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    pre = bytes(reader.fields["tokenizer.ggml.pre"].parts[-1]).decode()
    if pre != "smollm":
        sys.exit(f"this oracle knows the pre-tokenizer smollm, not {pre}")
    vocabulary = {text: index for index, text in enumerate(strings(reader.fields["tokenizer.ggml.tokens"]))}
    merges = [tuple(merge.split(" ", 1)) for merge in strings(reader.fields["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    data = sys.stdin.buffer.read()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        text = data[at + 4 : at + 4 + length].decode("utf-8")
        at += 4 + length
        print(*tokenizer.encode(text).ids)


if __name__ == "__main__":
    main()
