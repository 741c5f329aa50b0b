"""The text side of a checkpoint: tokenizer, its spellings, where generation stops, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rpi_runtime.chat_template import ChatTemplate
from rpi_runtime.errors import BundleError, CheckpointError, UsageError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TEXT_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, GENERATION_CONFIG_FILE, CHAT_TEMPLATE_FILE)


@dataclass(frozen=True)
class TextFiles:
    """What the files say, and the files themselves, so that they can be written elsewhere as they are."""

    files: Mapping[str, bytes]  # name -> content; `tokenizer.json` is always there
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    bos_token: str  # spellings, "" where the tokenizer has none
    eos_token: str
    special_tokens: Mapping[str, int]  # spelling -> id
    largest_token_id: int

    @classmethod
    def read(cls, folder: Path) -> TextFiles:
        """The text files of a Hugging Face folder.

        A chat template inside `tokenizer_config.json` becomes a file of its own. Without
        `generation_config.json`, generation stops where `config.json` says, or at the tokenizer's own end.

        Raises `CheckpointError` for a missing tokenizer and for files that cannot be read.
        """
        if not (folder / TOKENIZER_FILE).is_file():
            raise CheckpointError(
                f"{folder} has no {TOKENIZER_FILE}",
                "Save the tokenizer there with transformers (`tokenizer.save_pretrained`).",
            )
        files = {name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()}
        if GENERATION_CONFIG_FILE not in files and (folder / "config.json").is_file():
            eos = read_json(folder / "config.json").get("eos_token_id")
            if eos is not None:
                files[GENERATION_CONFIG_FILE] = as_json({"eos_token_id": eos})
        return cls.parse(files, folder)

    @classmethod
    def parse(cls, files: Mapping[str, bytes], folder: Path) -> TextFiles:
        """Reads `files`; `folder` is where messages say that they come from."""
        files = dict(files)
        config = parse_json(files.get(TOKENIZER_CONFIG_FILE, b"{}"), folder / TOKENIZER_CONFIG_FILE)
        try:
            tokenizer = Tokenizer.from_buffer(files[TOKENIZER_FILE])
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(
                f"{folder / TOKENIZER_FILE} is not a tokenizer: {error}", "Copy or download the file again."
            ) from None
        bos, eos = _spelling(config.get("bos_token")), _spelling(config.get("eos_token"))
        if GENERATION_CONFIG_FILE not in files:
            eos_id = tokenizer.token_to_id(eos) if eos else None
            files[GENERATION_CONFIG_FILE] = as_json({"eos_token_id": [] if eos_id is None else eos_id})
        if CHAT_TEMPLATE_FILE not in files:
            template = _template(config.get("chat_template"))
            if template is not None:
                files[CHAT_TEMPLATE_FILE] = template.encode()
        chat_template = _decoded(files.get(CHAT_TEMPLATE_FILE), folder / CHAT_TEMPLATE_FILE)
        _try_template(chat_template, bos, eos, folder / CHAT_TEMPLATE_FILE)
        added = tokenizer.get_added_tokens_decoder()
        return cls(
            files=files,
            chat_template=chat_template,
            eos_token_ids=_eos_token_ids(files[GENERATION_CONFIG_FILE], folder / GENERATION_CONFIG_FILE),
            bos_token=bos,
            eos_token=eos,
            special_tokens={token.content: i for i, token in sorted(added.items()) if token.special},
            largest_token_id=max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1),
        )

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises `CheckpointError` when there is none."""
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent}: no such folder", "Check the path.")
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "Is this the folder? Copy or download the file."
        )
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", "Correct the file, or copy it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is JSON, but not an object", "Correct the file, or copy it again.")
    return data


def as_json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _spelling(token: Any) -> str:
    """Older files spell a token as an object with its flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _template(value: Any) -> str | None:
    """`chat_template`: a text, or a list of named ones of which "default" is the plain chat."""
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _decoded(content: bytes | None, path: Path) -> str | None:
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text", "Copy or download the file again.") from None


def _try_template(source: str | None, bos: str, eos: str, path: Path) -> None:
    """Raises `CheckpointError` for a chat template that no device could render."""
    if source is None:
        return
    try:
        ChatTemplate(source, bos, eos).render([{"role": "user", "content": "Hello"}])
    except BundleError as error:
        raise CheckpointError(
            f"{path}: {error.message}", "Correct the template, or copy it again from the model's folder."
        ) from None
    except UsageError:
        pass  # it is sound, and wants another conversation


def _eos_token_ids(content: bytes, path: Path) -> tuple[int, ...]:
    value = parse_json(content, path).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(
            f"{path}: eos_token_id is {value!r}", "It must be a token id or a list of them."
        )
    return tuple(ids)
