"""Keeps what users wrote apart from what the chat template writes, while the template runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from rpi_runtime.errors import UsageError

if TYPE_CHECKING:
    from rpi_runtime.tokenizer import TextCodec

_PRIVATE_PLANES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Disguise:
    """Stand-ins for what a template must not take for its own.

    A control token's spelling begins and ends with certain characters (`<` and `>`). In the users' texts
    each of these becomes a stand-in, a private-use character that nothing else contains. Whatever the
    template then joins or cuts, a spelling in its output with both ends undisguised is the template's own.
    A stand-in is one character and no white space, as the original is, so templates measure and trim alike.
    Each picture's place is a stand-in too.

    `texts` are all that will be hidden. Raises `UsageError` where they leave no private character free.
    """

    def __init__(self, codec: TextCodec, texts: Sequence[str], pictures: int) -> None:
        taken = set(codec.template.source if codec.template else "").union(*texts)
        ends = sorted({end for spelling in codec.controls for end in _ends(spelling)})
        free = (chr(c) for c in chain(*_PRIVATE_PLANES) if chr(c) not in taken)
        stand_ins = list(islice(free, len(ends) + pictures))
        if len(stand_ins) < len(ends) + pictures:
            raise UsageError("the messages use up Unicode's private characters", "Leave some of them out.")
        self.places = tuple(stand_ins[len(ends) :])  # one per picture
        self._codec = codec
        self._hide = {ord(end): stand_in for end, stand_in in zip(ends, stand_ins, strict=False)}
        self._show = {ord(stand_in): end for end, stand_in in zip(ends, stand_ins, strict=False)}

    def hide(self, text: str) -> str:
        return text.translate(self._hide)

    def encode(self, rendered: str) -> Iterator[int | str]:
        """Token ids of a template's output, and the picture's place where one is."""
        place = re.compile(f"([{''.join(self.places)}])" if self.places else "(?!)()")
        for piece in self._codec.split(rendered):
            if isinstance(piece, int):
                yield piece
                continue
            text, continues = piece
            for part in place.split(text):
                if part in self.places:
                    yield part
                elif part:
                    yield from self._codec.encode(part.translate(self._show), continues)
                continues = True


def _ends(spelling: str) -> tuple[str, str]:
    # White space at a spelling's ends stays visible: templates trim it.
    inner = spelling.strip()
    return inner[0], inner[-1]
