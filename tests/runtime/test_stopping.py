"""Text ends exactly before a stop string, and nothing that is shown is ever taken back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_runtime.errors import UsageError
from rpi_runtime.stopping import StopStrings, TextStream
from rpi_runtime.tokenizer import TextCodec
from tests.runtime import tiny_tokenizers

# Few letters, so that stop strings occur, overlap and nearly occur.
texts = st.text("abc", max_size=30)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def _run(stops: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    stream = StopStrings(stops)
    shown = [stream.push(piece) for piece in pieces]
    return "".join(shown) + stream.finish(), stream.found, shown


@given(text=texts, stops=stop_lists, data=st.data())
def test_how_text_is_cut_into_pieces_makes_no_difference(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(borders)]
    whole, found, _ = _run(stops, [text])
    assert _run(stops, pieces)[:2] == (whole, found)


@given(text=texts, stops=stop_lists)
def test_the_text_ends_exactly_before_the_stop_string_that_is_complete_first(
    text: str, stops: list[str]
) -> None:
    shown, found, _ = _run(stops, list(text))
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    if not ends:
        assert (shown, found) == (text, None)
    else:
        longest = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
        assert (shown, found) == (text[: ends[0] - len(longest)], longest)


@given(text=texts, stops=stop_lists)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    _, found, shown = _run(stops, list(text))
    for n in range(1, len(text) + 1 if found is None else text.index(found)):
        held = text[len("".join(shown[:n])) : n]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["", "a"])


class TestTextStream:
    @pytest.fixture
    def codec(self, tmp_path: Path) -> TextCodec:
        return TextCodec(tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path))

    def test_a_stop_string_across_tokens_and_inside_characters_is_found(self, codec: TextCodec) -> None:
        stream = TextStream(codec, ["😀!"])
        shown = ""
        for token_id in codec.encode("It says 😀? no, 😀! and more"):
            shown += stream.push(token_id)
        assert shown + stream.finish() == "It says 😀? no, "
        assert stream.stopped_at == "😀!"

    def test_an_answer_that_ends_otherwise_shows_all_of_it(self, codec: TextCodec) -> None:
        stream = TextStream(codec, ["house!"])
        ids = codec.encode("a red hous")
        shown = "".join(stream.push(i) for i in ids)
        assert shown == "a red "
        assert shown + stream.finish() == "a red hous"
        assert stream.stopped_at is None

    def test_an_answer_cut_inside_a_character_ends_with_a_replacement(self, codec: TextCodec) -> None:
        stream = TextStream(codec)
        shown = "".join(stream.push(i) for i in codec.encode("x😀")[:-1])
        assert shown + stream.finish() == "x�"
