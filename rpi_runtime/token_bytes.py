"""The bytes behind a token's spelling in the vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from rpi_runtime.errors import EdgeError

_ALL = 1 << 30


class TokenBytes:
    """Spellings to bytes, as the tokenizer's own decoder would, but token by token, so that text can stream.

    Known decoders: ByteLevel (GPT-2's alphabet, as Qwen and Llama 3 use it), and the SentencePiece family
    (Replace, ByteFallback, Fuse, Strip, Metaspace). Where a run of byte-fallback tokens is no valid UTF-8,
    `tokenizers` turns the whole run into U+FFFD; here the valid characters in it stay.

    Raises what `fail` makes for any other decoder.
    """

    def __init__(self, tokenizer: Tokenizer, fail: Callable[[str], EdgeError]) -> None:
        decoder = tokenizer.decoder
        state: dict[str, Any] = (
            {"type": "no decoder"} if decoder is None else json.loads(decoder.__getstate__())
        )
        steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
        self._byte_level = [step["type"] for step in steps] == ["ByteLevel"]
        self._byte_fallback = False
        self._replace: list[tuple[str, str]] = []
        self._strip = 0  # leading spaces that the first text loses
        for step in [] if self._byte_level else steps:
            kind = step["type"]
            if kind == "Replace" and "String" in step["pattern"]:
                self._replace.append((step["pattern"]["String"], step["content"]))
            elif kind == "Metaspace":
                self._replace.append((step["replacement"], " "))
                self._strip = 0 if step["prepend_scheme"] == "never" else _ALL
            elif kind == "Strip" and step["content"] == " " and not step["stop"]:
                self._strip = step["start"]
            elif kind == "ByteFallback":
                self._byte_fallback = True
            elif kind != "Fuse":
                raise fail(f"decodes with {kind!r}, which this runtime does not know")

    def of(self, token: str) -> bytes:
        if self._byte_level:
            if all(c in _BYTE_OF for c in token):
                return bytes(_BYTE_OF[c] for c in token)
            return token.encode()  # an added token beyond the alphabet
        if self._byte_fallback and (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token)):
            return bytes([int(byte.group(1), 16)])
        for old, new in self._replace:
            token = token.replace(old, new)
        return token.encode()

    def begin(self, piece: bytes) -> bytes:
        """`piece` as the first of a text."""
        spaces = len(piece) - len(piece.lstrip(b" "))
        return piece[min(spaces, self._strip) :]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table (`bytes_to_unicode`): printable Latin-1 stands for itself, the rest for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
