"""Text is only ever text, and comes back whole. Oracles: `tokenizers` itself, and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from rpi_runtime.errors import BundleError, CheckpointError, UsageError
from rpi_runtime.manifest import File, TextSpec
from rpi_runtime.tokenizer import StreamDecoder, TextCodec
from tests.runtime import tiny_tokenizers

SPELLINGS = tiny_tokenizers.SPECIAL + tiny_tokenizers.PLAIN
# Text that is likely to spell control tokens, or almost.
adversarial = st.lists(
    st.one_of(
        st.sampled_from([*SPELLINGS, "<|im_", "end|>", "<", ">", "think>", " ", "\n"]), st.text(max_size=8)
    )
).map("".join)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextCodec, Tokenizer]:
    return _codec(tiny_tokenizers.byte_level(), tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="module", params=["first", "always", "never", "prepend"])
def sentencepiece(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextCodec, Tokenizer]:
    scheme = request.param
    tokenizer = tiny_tokenizers.sentencepiece("never" if scheme == "prepend" else scheme, scheme == "prepend")
    return _codec(tokenizer, tmp_path_factory.mktemp(scheme))


def _codec(tokenizer: Tokenizer, folder: Path) -> tuple[TextCodec, Tokenizer]:
    return TextCodec(tiny_tokenizers.save(tokenizer, folder)), tokenizer


class TestEncode:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_a_spelled_control_token_stays_text(self, byte_level: Any, spelling: str) -> None:
        codec, tokenizer = byte_level
        text = f"write {spelling} please"
        assert codec.controls[spelling] in tokenizer.encode(text).ids  # what would happen by default
        ids = codec.encode(text)
        assert not set(codec.controls.values()) & set(ids)
        assert codec.decode(ids) == text

    @relaxed
    @given(adversarial)
    def test_no_text_makes_a_control_token_and_all_text_comes_back(self, byte_level: Any, text: str) -> None:
        codec, _ = byte_level
        ids = codec.encode(text)
        assert not set(codec.controls.values()) & set(ids)
        assert codec.decode(ids) == text

    @relaxed
    @given(st.text())
    def test_text_without_control_tokens_is_encoded_as_tokenizers_does(
        self, byte_level: Any, text: str
    ) -> None:
        codec, tokenizer = byte_level
        if not any(s in text for s in SPELLINGS):
            assert codec.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids

    @relaxed
    @given(st.text())
    def test_sentencepiece_text_too(self, sentencepiece: Any, text: str) -> None:
        codec, tokenizer = sentencepiece
        if not any(s in text for s in codec.controls):
            assert codec.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids

    def test_tokens_of_white_space_are_no_control_tokens(self, tmp_path: Path) -> None:
        added = [AddedToken("    ", normalized=False), AddedToken("<think>", normalized=False)]
        codec, tokenizer = _codec(tiny_tokenizers.byte_level(added), tmp_path)
        assert list(codec.controls) == ["<think>"]
        text = "def f():\n    return"
        assert codec.encode(text) == tokenizer.encode(text).ids
        assert codec.token("    ") in codec.encode(text)

    def test_half_a_surrogate_pair_is_refused_with_its_place(self, byte_level: Any) -> None:
        with pytest.raises(UsageError, match="character 3"):
            byte_level[0].encode("abc\udce9")

    def test_truncation_and_padding_of_the_file_are_off(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizers.byte_level()
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=64)
        codec, _ = _codec(tokenizer, tmp_path)
        text = "What is written on the sign?"
        assert codec.decode(codec.encode(text)) == text


class TestSplit:
    """The oracle reads all control tokens, as the template means them."""

    @relaxed
    @given(adversarial)
    def test_a_rendered_template_is_cut_as_tokenizers_cuts_it(self, byte_level: Any, rendered: str) -> None:
        assert _encode_rendered(byte_level[0], rendered) == _reference(byte_level[1], rendered)

    @relaxed
    @given(adversarial)
    def test_only_the_text_that_begins_a_prompt_gets_a_first_space(
        self, sentencepiece: Any, rendered: str
    ) -> None:
        codec, tokenizer = sentencepiece
        assert _encode_rendered(codec, rendered) == _reference(tokenizer, rendered)

    @relaxed
    @given(
        rendered=st.lists(
            st.sampled_from(["<a>", "<ab>", "<|b|>", "<|b|>>", "word", " ", "\n", "é", ">"])
        ).map("".join),
        flags=st.lists(st.booleans(), min_size=12, max_size=12),
    )
    def test_flags_of_added_tokens_hold(
        self, tmp_path_factory: pytest.TempPathFactory, rendered: str, flags: list[bool]
    ) -> None:
        spellings = ("<a>", "<ab>", "<|b|>", "<|b|>>")
        added = [
            AddedToken(s, lstrip=left, rstrip=right, single_word=word, special=True, normalized=False)
            for s, left, right, word in zip(spellings, flags[0::3], flags[1::3], flags[2::3], strict=True)
        ]
        codec, tokenizer = _codec(tiny_tokenizers.byte_level(added), tmp_path_factory.mktemp("flags"))
        assert _encode_rendered(codec, rendered) == _reference(tokenizer, rendered)


def _encode_rendered(codec: TextCodec, rendered: str) -> list[int]:
    ids: list[int] = []
    for piece in codec.split(rendered):
        ids += [piece] if isinstance(piece, int) else codec.encode(*piece)
    return ids


def _reference(tokenizer: Tokenizer, rendered: str) -> list[int]:
    ids: list[int] = tokenizer.encode(rendered, add_special_tokens=False).ids
    return ids


class TestDecode:
    @relaxed
    @given(st.text())
    def test_pieces_are_whole_characters_and_add_up(self, byte_level: Any, text: str) -> None:
        codec, tokenizer = byte_level
        ids = codec.encode(text)
        stream = StreamDecoder(codec)
        shown = [stream.push(i) for i in ids]
        assert "".join(shown) + stream.finish() == tokenizer.decode(ids) == text
        for cut in range(len(ids)):
            assert text.startswith("".join(shown[:cut]))

    def test_a_character_of_several_tokens_appears_with_its_last_one(self, byte_level: Any) -> None:
        codec, _ = byte_level
        ids = codec.encode("😀")
        assert len(ids) == 4
        stream = StreamDecoder(codec)
        assert [stream.push(i) for i in ids] == ["", "", "", "😀"]

    @relaxed
    @given(st.data())
    def test_any_ids_decode_as_tokenizers_decodes_them(self, byte_level: Any, data: st.DataObject) -> None:
        """Also bytes that are no UTF-8, and a character that never ends."""
        codec, tokenizer = byte_level
        ids = data.draw(st.lists(st.integers(0, codec.vocab_size + 5)))
        assert codec.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)

    @relaxed
    @given(st.text())
    def test_sentencepiece_text_comes_back_as_tokenizers_gives_it(
        self, sentencepiece: Any, text: str
    ) -> None:
        codec, tokenizer = sentencepiece
        ids = codec.encode(text)
        assert codec.decode(ids) == tokenizer.decode(ids)

    @pytest.mark.parametrize("scheme", ["first", "never"])
    def test_a_metaspace_decoder_gives_what_tokenizers_gives(self, tmp_path: Path, scheme: str) -> None:
        tokenizer = tiny_tokenizers.sentencepiece(scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        codec, _ = _codec(tokenizer, tmp_path)
        for text in (" hello world", "hello  world", "hello"):
            ids = tokenizer.encode(text).ids
            assert codec.decode(ids) == tokenizer.decode(ids)

    def test_special_tokens_are_skipped_and_other_control_tokens_shown(self, byte_level: Any) -> None:
        codec, _ = byte_level
        ids = [
            codec.token("<think>"),
            *codec.encode("hm"),
            codec.token("</think>"),
            codec.token("<|im_end|>"),
        ]
        assert codec.decode(ids) == "<think>hm</think>"


def test_the_vocabulary_ends_with_the_last_added_token(byte_level: Any) -> None:
    codec, tokenizer = byte_level
    assert codec.vocab_size == tokenizer.get_vocab_size()
    assert tokenizer.id_to_token(codec.vocab_size - 1) == "<tool_call>"


class TestFolders:
    def test_a_checkpoint_folder_names_its_tokens_template_and_ends(self, tmp_path: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
        _write(
            tmp_path / "tokenizer_config.json", {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}
        )
        _write(tmp_path / "generation_config.json", {"eos_token_id": [7, 5]})
        (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}")
        codec = TextCodec.from_checkpoint(tmp_path)
        assert codec.eos_token_ids == (7, 5)
        assert codec.template is not None
        assert codec.template.render([]) == "|<|im_end|>"

    def test_without_a_generation_config_the_end_token_ends(self, tmp_path: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
        _write(tmp_path / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
        codec = TextCodec.from_checkpoint(tmp_path)
        assert codec.eos_token_ids == (codec.token("<|im_end|>"),)
        assert codec.template is None

    @pytest.mark.parametrize(
        "listed", ["T", [{"name": "tools", "template": "U"}, {"name": "default", "template": "T"}]]
    )
    def test_an_older_folder_has_its_template_in_the_config(self, tmp_path: Path, listed: Any) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
        _write(tmp_path / "tokenizer_config.json", {"chat_template": listed})
        template = TextCodec.from_checkpoint(tmp_path).template
        assert template is not None
        assert template.source == "T"

    def test_a_bundle_is_read_by_its_manifest(self, tmp_path: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
        (tmp_path / "chat_template.jinja").write_text(tiny_tokenizers.CHATML)
        files = [File(name, "", 0) for name in ("tokenizer.json", "chat_template.jinja")]
        codec = TextCodec.from_bundle(tmp_path, TextSpec(files[0], files[1], (3,), eos_token="<|im_end|>"))
        assert codec.eos_token_ids == (3,)
        assert codec.template is not None
        assert codec.template.source == tiny_tokenizers.CHATML

    @pytest.mark.parametrize("content", [None, "", "{}", '{"model": {"type": "BPE"'])
    def test_a_missing_or_cut_file_is_named(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            TextCodec(tmp_path / "tokenizer.json")
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            TextCodec.from_checkpoint(tmp_path)

    def test_a_config_that_is_not_json_is_named(self, tmp_path: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON"):
            TextCodec.from_checkpoint(tmp_path)

    def test_an_unknown_token_is_named(self, byte_level: Any) -> None:
        with pytest.raises(BundleError, match="has no token '<nowhere>'"):
            byte_level[0].token("<nowhere>")

    def test_a_decoder_that_cannot_stream_is_refused(self, tmp_path: Path) -> None:
        tokenizer = tiny_tokenizers.byte_level()
        tokenizer.decoder = decoders.WordPiece()
        with pytest.raises(BundleError, match="WordPiece"):
            _codec(tokenizer, tmp_path)

    def test_a_vocabulary_that_makes_control_tokens_from_text_is_refused(self, tmp_path: Path) -> None:
        vocab = {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}
        tokenizer = Tokenizer(models.BPE(vocab, [("<", "s"), ("<s", ">")]))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(["<s>"])
        with pytest.raises(BundleError, match="'<s>' from plain text"):
            _codec(tokenizer, tmp_path)


@pytest.mark.weights
class TestRealTokenizers:
    """transformers, on the tokenizers of Qwen3 and SmolLM2."""

    @pytest.fixture(scope="class", params=["qwen3_tokenizer_folder", "smollm2_folder"])
    def pair(self, request: pytest.FixtureRequest) -> tuple[TextCodec, Any]:
        from transformers import AutoTokenizer

        folder = request.getfixturevalue(request.param)
        return TextCodec.from_checkpoint(folder), AutoTokenizer.from_pretrained(folder)

    @relaxed
    @given(text=st.text())
    def test_text_round_trips_as_in_transformers(self, pair: Any, text: str) -> None:
        codec, theirs = pair
        if any(s in text for s in codec.controls):
            return
        ids = codec.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    @relaxed
    @given(data=st.data())
    def test_any_ids_decode_as_in_transformers(self, pair: Any, data: st.DataObject) -> None:
        codec, theirs = pair
        ids = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=20))
        assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    @relaxed
    @given(data=st.data())
    def test_spelled_control_tokens_stay_text(self, pair: Any, data: st.DataObject) -> None:
        codec, _ = pair
        parts = st.one_of(
            st.sampled_from(sorted(codec.controls)), st.text("<>|/ imageend_think\n", max_size=5)
        )
        text = "".join(data.draw(st.lists(parts)))
        ids = codec.encode(text)
        assert codec.decode(ids) == text
        assert not set(codec.controls.values()) & set(ids)


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))
