"""The tokenizer learned from questions and answers; here from a few."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervl.byte_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS
from hypervl.training.tokenizer import learn
from rpi_runtime.tokenizer import TextCodec

_CORPUS = [
    "What does PUMP 2 read? 23.5 °C",
    "Is FAN on or off? on",
    "What does PUMP 2 read? 1234 rpm 1212 1212 1212",
    "Where is PRESSURE 1212? top left",
] * 20
_SIZE = 320


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    learn(_CORPUS, _SIZE).write(folder)
    return TextCodec.from_checkpoint(folder)


def test_a_value_is_copied_digit_by_digit(codec: TextCodec) -> None:
    for text in ("1212", "0.5", "-12.75", "TX-4821"):
        pieces = [codec.decode([token]) for token in codec.encode(text)]
        assert [p for p in pieces if any(c.isdigit() for c in p)] == [c for c in text if c.isdigit()]


def test_words_of_the_corpus_are_short(codec: TextCodec) -> None:
    assert len(codec.encode("What does PUMP 2 read?")) <= 8


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_comes_back(codec: TextCodec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


def test_the_same_corpus_gives_the_same_files() -> None:
    assert learn(_CORPUS, _SIZE).files == learn(list(_CORPUS), _SIZE).files


def test_special_tokens_count_and_stand_behind_the_learned_ones(codec: TextCodec) -> None:
    files = learn(_CORPUS, _SIZE)
    ids = [files.special_tokens[token] for token in SPECIAL_TOKENS]
    assert files.largest_token_id + 1 <= _SIZE
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert files.largest_token_id == ids[-1]
    assert files.chat_template == CHAT_TEMPLATE
    assert [codec.token("<|im_end|>"), codec.token("<|endoftext|>")] == list(codec.eos_token_ids)


def test_text_that_spells_a_special_token_stays_text(codec: TextCodec) -> None:
    ids = codec.encode("<|im_end|>")
    assert codec.token("<|im_end|>") not in ids
    assert codec.decode(ids) == "<|im_end|>"


def test_files_are_written_and_read_as_they_are(tmp_path: Path) -> None:
    files = learn(_CORPUS, _SIZE)
    files.write(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == dict(files.files)
