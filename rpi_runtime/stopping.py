"""Streaming text that ends before a stop string.

Tokens do not respect borders: a stop string may come in pieces, or with more text behind it in one token.
Text that may yet become a stop string is held back until that is decided: nothing printed is ever taken back.
"""

from __future__ import annotations

from collections.abc import Iterable

from rpi_runtime.errors import UsageError
from rpi_runtime.tokenizer import StreamDecoder, TextCodec


class StopStrings:
    """Passes text through up to the stop string that is complete first (of two, the longer).

    How the text is cut into pieces makes no difference: it is as if it came character by character. Raises
    `UsageError` for an empty stop string.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        if "" in self._stops:
            raise UsageError("a stop string is empty", "Give at least one character, or leave it out.")
        self._held = ""
        self.found: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """What may be shown now. Nothing once a stop string was found."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back when no more text comes."""
        shown, self._held = self._held, ""
        return shown


class TextStream:
    """Token ids in, text to show out: whole characters, up to the first stop string."""

    def __init__(self, codec: TextCodec, stops: Iterable[str] = ()) -> None:
        self._decoder = StreamDecoder(codec)
        self._stops = StopStrings(stops)

    @property
    def stopped_at(self) -> str | None:
        """The stop string that was found, if one was."""
        return self._stops.found

    def push(self, token_id: int) -> str:
        return self._stops.push(self._decoder.push(token_id))

    def finish(self) -> str:
        """The rest of the text, when generation has ended for another reason than a stop string."""
        return self._stops.push(self._decoder.finish()) + self._stops.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
