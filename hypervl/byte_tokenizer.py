"""The tokenizer of models that bring none: every UTF-8 byte is a token.

Token ids 0 to 255 are the bytes themselves; the special tokens follow.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hypervl.config import ImageTokensConfig
from hypervl.text_files import (
    CHAT_TEMPLATE_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TextFiles,
    as_json,
)

IMAGE_TOKENS = ImageTokensConfig("<image>", "</image>", "<tile>", "<row>", "<thumbnail>")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    IMAGE_TOKENS.image_start,
    IMAGE_TOKENS.image_end,
    IMAGE_TOKENS.tile_start,
    IMAGE_TOKENS.row_end,
    IMAGE_TOKENS.thumbnail_start,
)
# ChatML. `content` is a text; pictures are slots inside it, which the runtime puts there.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer() -> TextFiles:
    """All text files of a checkpoint with the byte tokenizer."""
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(_byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return text_files(tokenizer)


def text_files(tokenizer: Tokenizer) -> TextFiles:
    """The files of `tokenizer` with `SPECIAL_TOKENS` behind its own, and `CHAT_TEMPLATE`."""
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    ends = [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]
    files = {
        TOKENIZER_FILE: tokenizer.to_str(pretty=True).encode(),
        TOKENIZER_CONFIG_FILE: as_json(
            {
                "bos_token": None,
                "clean_up_tokenization_spaces": False,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        ),
        GENERATION_CONFIG_FILE: as_json({"eos_token_id": ends}),
        CHAT_TEMPLATE_FILE: CHAT_TEMPLATE.encode(),
    }
    return TextFiles.parse(files, Path("tokenizer"))


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a tokenizer (GPT-2's `bytes_to_unicode`)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
