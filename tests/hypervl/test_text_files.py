"""The text side of a checkpoint: what its files say, wherever they say it; and the tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from hypervl.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer
from hypervl.text_files import TextFiles
from rpi_runtime.errors import CheckpointError

BYTES = Tokenizer.from_buffer(byte_tokenizer().files["tokenizer.json"])
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is this?\n"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "And that?"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_tokenizer().write(tmp_path)
    return tmp_path


@given(st.text())
def test_every_byte_of_a_text_is_a_token_and_comes_back(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False).ids
    if not any(special in text for special in SPECIAL_TOKENS):
        assert ids == list(text.encode())
    assert BYTES.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_follow_the_bytes() -> None:
    assert dict(byte_tokenizer().special_tokens) == {s: 256 + i for i, s in enumerate(SPECIAL_TOKENS)}
    assert byte_tokenizer().largest_token_id == 255 + len(SPECIAL_TOKENS)
    assert [SPECIAL_TOKENS[i - 256] for i in byte_tokenizer().eos_token_ids] == [
        "<|im_end|>",
        "<|endoftext|>",
    ]


def test_transformers_reads_the_byte_tokenizer(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("naïve\n")["input_ids"] == list("naïve\n".encode())
    assert theirs.eos_token == "<|im_end|>"
    rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is this?\n<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nAnd that?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    assert TextFiles.read(folder) == byte_tokenizer()


def test_a_chat_template_inside_the_tokenizer_config_becomes_a_file(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ 'ä' }}"}]
    for value in ("{{ 'ä' }}", named):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": value}))
        found = TextFiles.read(folder)
        assert found.chat_template == "{{ 'ä' }}"
        assert found.files["chat_template.jinja"] == "{{ 'ä' }}".encode()


def test_the_end_of_generation_is_found_wherever_it_is_said(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert TextFiles.read(folder).eos_token_ids == (7,)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": [5, 6]}')
    assert TextFiles.read(folder).eos_token_ids == (5, 6)
    (folder / "config.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for eos in ("<|endoftext|>", {"content": "<|endoftext|>", "lstrip": False}):  # as older files spell it
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": eos}))
        assert TextFiles.read(folder).eos_token_ids == (256,)
    (folder / "tokenizer_config.json").unlink()
    found = TextFiles.read(folder)
    assert (found.eos_token_ids, found.bos_token, found.eos_token) == ((), "", "")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(CheckpointError, match=file):
        TextFiles.read(folder)


def test_a_template_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8"):
        TextFiles.read(folder)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m.content", "does not compile"),
        ("{{ messages[0].content / 2 }}", "failed"),
    ],
)
def test_a_broken_template_is_refused_before_any_work(folder: Path, template: str, why: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=rf"chat_template\.jinja: the chat template {why}"):
        TextFiles.read(folder)


def test_a_template_may_want_another_conversation(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('a system message is needed') }}")
    assert TextFiles.read(folder).chat_template


def test_qwen3_s_own_files(qwen3_tokenizer_folder: Path) -> None:
    found = TextFiles.read(qwen3_tokenizer_folder)
    theirs = AutoTokenizer.from_pretrained(qwen3_tokenizer_folder)
    assert (found.bos_token, found.eos_token) == ("", "<|im_end|>")
    assert found.eos_token_ids == tuple(theirs.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    assert found.special_tokens["<|vision_start|>"] == theirs.convert_tokens_to_ids("<|vision_start|>")
    assert found.chat_template == theirs.chat_template
    assert found.largest_token_id == len(theirs) - 1
