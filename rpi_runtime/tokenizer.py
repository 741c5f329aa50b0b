"""Text to token ids and back, such that text is only ever text.

A `tokenizer.json` has a base vocabulary and "added tokens", most of which steer the model (`<|im_end|>`,
`<think>`). By default `tokenizers` reads such a token wherever a text spells it. Here `encode` never does:
every added token is marked special and `encode_special_tokens` is set, so that a spelled one is cut up like
any other word, and control tokens are placed by id alone. Added tokens that are nothing but white space (some
tokenizers have them for runs of spaces) steer nothing and are left as they are.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from rpi_runtime.chat_template import ChatTemplate
from rpi_runtime.errors import BundleError, CheckpointError, EdgeError, UsageError
from rpi_runtime.manifest import TextSpec
from rpi_runtime.token_bytes import TokenBytes


class TextCodec:
    """One model's tokenizer and chat template.

    `controls`: spelling -> id of every added token that text must not produce.
    `vocab_size`: ids from here on are padding of the logits and are never sampled.
    `eos_token_ids`: ids that end an answer.

    Raises `error` for a file that is missing or that no tokenizer can be read from.
    """

    def __init__(
        self,
        tokenizer: Path,
        chat_template: str | None = None,
        bos_token: str = "",
        eos_token: str = "",
        eos_token_ids: Iterable[int] = (),
        error: type[EdgeError] = BundleError,
    ) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as reason:  # tokenizers raises plain Exception
            raise error(f"{tokenizer} is not a tokenizer: {reason}", "Copy the file again.") from None
        self._error = error
        self._name = tokenizer.name
        added: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        self._added = {token.content: token for token in added.values()}
        self.controls = {token.content: i for i, token in added.items() if token.content.strip()}
        self._control_ids = frozenset(self.controls.values())
        self._skipped = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max(
            self._tokenizer.get_vocab_size(with_added_tokens=False), 1 + max(added, default=-1)
        )
        self.eos_token_ids = tuple(eos_token_ids)
        self.template = (
            ChatTemplate(chat_template, bos_token, eos_token) if chat_template is not None else None
        )
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._bytes = TokenBytes(self._tokenizer, self._fail)
        self._make_controls_text(self._tokenizer)
        self._later = self._tokenizer_of_later_text()
        for spelling in self.controls:
            self.encode(spelling)  # refuses a tokenizer whose vocabulary makes control tokens from text

    @classmethod
    def from_bundle(cls, folder: Path, spec: TextSpec) -> TextCodec:
        """The codec that a manifest describes; `folder` is the bundle. Raises `BundleError`."""
        file = spec.chat_template
        template = _read_text(folder / file.path, BundleError) if file else None
        return cls(folder / spec.tokenizer.path, template, spec.bos_token, spec.eos_token, spec.eos_token_ids)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> TextCodec:
        """The codec of a Hugging Face folder. Raises `CheckpointError`.

        Reads tokenizer.json and, where they exist, tokenizer_config.json (spellings; the chat template too in
        older folders), chat_template.jinja and generation_config.json (`eos_token_id`).
        """
        config = _read_json(folder / "tokenizer_config.json")
        template: str | None = None
        if (folder / "chat_template.jinja").is_file():
            template = _read_text(folder / "chat_template.jinja", CheckpointError)
        elif isinstance(listed := config.get("chat_template"), list):  # [{"name": ..., "template": ...}, ...]
            template = next((t["template"] for t in listed if t.get("name") == "default"), None)
        else:
            template = listed
        eos = _read_json(folder / "generation_config.json").get("eos_token_id")
        codec = cls(
            folder / "tokenizer.json",
            template,
            _spelling(config.get("bos_token")),
            _spelling(config.get("eos_token")),
            eos if isinstance(eos, list) else [] if eos is None else [eos],
            CheckpointError,
        )
        if eos is None and (spelling := _spelling(config.get("eos_token"))):
            codec.eos_token_ids = (codec.token(spelling),)
        return codec

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Ids of `text` as plain text, without begin or end tokens; a spelled control token is only text.

        `continues`: something stands before the text, so a tokenizer that begins a prompt with a space does
        not do so here. Raises `UsageError` for text with half a surrogate pair, which is no Unicode text.
        """
        try:
            encoding = (self._later if continues else self._tokenizer).encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), 0)
            raise UsageError(
                f"the text is not Unicode: character {at} is half a surrogate pair ({text[at]!r})",
                "Was it read with another encoding than it was written in? UTF-8 is expected.",
            ) from None
        ids: list[int] = encoding.ids
        if not self._control_ids.isdisjoint(ids):
            token = next(i for i in ids if i in self._control_ids)
            raise self._fail(
                f"makes the control token {self._tokenizer.id_to_token(token)!r} from plain text"
            )
        return ids

    def token(self, spelling: str) -> int:
        """The id of the token spelled exactly so."""
        token_id: int | None = self._tokenizer.token_to_id(spelling)
        if token_id is None:
            raise self._fail(f"has no token {spelling!r}")
        return token_id

    def control(self, token_id: int) -> str | None:
        """The spelling of a control token that `decode` shows (Qwen3's `<think>`); None for other ids."""
        if token_id in self._control_ids and token_id not in self._skipped:
            return str(self._tokenizer.id_to_token(token_id))
        return None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        stream = StreamDecoder(self)
        return "".join([stream.push(i) for i in ids]) + stream.finish()

    def split(self, rendered: str) -> Iterator[tuple[str, bool] | int]:
        """Cuts a rendered template at its control tokens: ids, and (text, continues) between them.

        The longest spelling wins, and a token's own flags (`lstrip`, `rstrip`: it swallows white space beside
        it; `single_word`: it does not count inside a word) hold, as in `tokenizers`.
        """
        at = 0
        for match in self._spelled.finditer(rendered):
            token, start, end = self._added[match.group()], match.start(), match.end()
            if token.single_word and (
                _is_word(rendered[start - 1 : start]) or _is_word(rendered[end : end + 1])
            ):
                continue
            if token.lstrip:
                start = max(at, len(rendered[:start].rstrip()))
            if start > at:
                yield rendered[at:start], at > 0
            yield self.controls[match.group()]
            if token.rstrip:
                end = len(rendered) - len(rendered[end:].lstrip())
            at = end
        if at < len(rendered):
            yield rendered[at:], at > 0

    def _piece(self, token_id: int) -> bytes:
        """UTF-8 bytes, perhaps cut inside a character, that a token adds to a text; none for special ones."""
        if token_id in self._skipped:
            return b""
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._bytes.of(token)

    def _make_controls_text(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens(
            [
                AddedToken(
                    t.content,
                    single_word=t.single_word,
                    lstrip=t.lstrip,
                    rstrip=t.rstrip,
                    normalized=t.normalized,
                    special=True,
                )
                for t in map(self._added.__getitem__, self.controls)
            ]
        )
        tokenizer.encode_special_tokens = True

    def _tokenizer_of_later_text(self) -> Tokenizer:
        """The tokenizer for text that does not begin the prompt.

        Only Metaspace's scheme "first" tells the two apart: it puts a space before the text at offset 0.
        """
        before = self._tokenizer.pre_tokenizer
        state = before.__getstate__() if before is not None else b""
        later = re.sub(rb'("prepend_scheme":\s*)"first"', rb'\1"never"', state)
        if later == state:
            return self._tokenizer
        changed = type(before)([]) if isinstance(before, pre_tokenizers.Sequence) else type(before)()
        changed.__setstate__(later)
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        tokenizer.pre_tokenizer = changed
        self._make_controls_text(tokenizer)
        return tokenizer

    def _fail(self, what: str) -> EdgeError:
        return self._error(f"{self._name} {what}", "The runtime cannot use this tokenizer with this model.")


class StreamDecoder:
    """Decodes id by id and hands out whole characters only: a token may end inside one."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes, perhaps none."""
        piece = self._codec._piece(token_id)
        if piece and not self._begun:
            piece = self._codec._bytes.begin(piece)
            self._begun = True
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """U+FFFD where the ids ended inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _is_word(character: str) -> bool:
    return bool(re.match(r"\w", character))


def _read_text(path: Path, error: type[EdgeError]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path} cannot be read: {reason}", "Copy the file again.") from None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(_read_text(path, CheckpointError))
    except ValueError as reason:
        raise CheckpointError(f"{path} is not JSON: {reason}", "Copy the file again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no object", "Copy the file again.")
    return data


def _spelling(token: Any) -> str:
    """A token as Hugging Face writes it: a string, an object with `content`, or null."""
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""
