"""Tokenizers of a few hundred tokens, trained on the spot, of each family that the runtime reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "The picture shows a red house on the left and two trees beside it.",
    "What is written on the sign? It says: open from 8 to 17, closed on Sunday.",
    "im_start im_end think tool_call image assistant user system hello world café",
)
# As in Qwen3: some added tokens are special, some steer the model without being special.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<image>")
PLAIN = ("<think>", "</think>", "<tool_call>")
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(added: Sequence[AddedToken] = ()) -> Tokenizer:
    """GPT-2's, Qwen's and Llama 3's family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer.add_tokens(list(added) or _added())
    return tokenizer


def sentencepiece(scheme: str = "first", prepend: bool = False) -> Tokenizer:
    """Llama 2's family: byte fallback, and a space before the text (Metaspace `scheme`, or a normalizer)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=["<unk>", *(f"<0x{b:02X}>" for b in range(256))],
        ),
    )
    # The trainer made special tokens of the bytes; in a real file they belong to the base vocabulary.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:1]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if prepend:
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens(_added())
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _added() -> list[AddedToken]:
    return [AddedToken(s, special=True, normalized=False) for s in SPECIAL] + [
        AddedToken(s, special=False, normalized=False) for s in PLAIN
    ]
