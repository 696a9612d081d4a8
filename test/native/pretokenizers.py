"""How the models cut text before merging bytes, as their tokenizer.json files say, by the name that
GGUF files have for it."""

from tokenizers import Regex, pre_tokenizers

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS = CONTRACTIONS + WORDS + r"|\p{N}{1,3}" + REST
ONE_DIGIT = CONTRACTIONS + WORDS + r"|\p{N}" + REST

PATTERNS = {
    "llama-bpe": THREE_DIGITS,
    "chatglm-bpe": THREE_DIGITS,
    "glm4": THREE_DIGITS,
    "qwen2": ONE_DIGIT,
    "deepseek-r1-qwen": ONE_DIGIT,
}


def byte_level(pre):
    """The pre-tokenizer of that name."""
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
