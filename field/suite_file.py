"""YAML as values that know where they stand, so that a mistake is told with its place.

Every scalar is the text that was written: `expect: off` is "off" and `expect: 3.50` is "3.50", where YAML
itself would make False and 3.5 of them. What is a number, a key's reader says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rpi_runtime.errors import UsageError, nearest

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S = 400 * 86400.0
_MOST_BYTES = 10_000_000
_QUOTES = "A text with ? : # or brackets in it stands in quotes; docs/field_test.md shows a suite."


@dataclass(frozen=True)
class Value:
    content: Any  # text, list, dict, or None for nothing
    place: str = ""  # "suite.yaml: variants[1].route"

    @classmethod
    def of(cls, number: float) -> Value:
        """A default."""
        return cls(str(number))

    def wrong(self, what: str, remedy: str) -> UsageError:
        return UsageError(f"{self.place} {what}", remedy)

    @property
    def is_text(self) -> bool:
        return isinstance(self.content, str)

    def text(self) -> str:
        if not isinstance(self.content, str) or not self.content.strip():
            raise self._expected("a text")
        return self.content.strip()

    def integer(self, least: int, most: int) -> int:
        text = self.content if isinstance(self.content, str) else ""
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or not least <= int(text) <= most:
            raise self._expected(f"a whole number from {least} to {most}")
        return int(text)

    def number(self, least: float, most: float) -> float:
        try:
            found = float(self.content) if isinstance(self.content, str) else math.nan
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise self._expected(f"a number from {least:g} to {most:g}")
        return found

    def duration(self) -> float:
        """Seconds."""
        try:
            return parse_duration(self.content if isinstance(self.content, str) else "")
        except UsageError as error:
            raise self.wrong(f"is {self._shown}", error.remedy) from None

    def sequence(self) -> Iterator[Value]:
        """A single text is a list of one."""
        items = [self.content] if isinstance(self.content, str) else self.content
        if not isinstance(items, list):
            raise self._expected("a list")
        return (Value(one, f"{self.place}[{i}]") for i, one in enumerate(items))

    def mapping(self, known: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Value]:
        if not isinstance(self.content, dict):
            raise self._expected(f"a mapping of {', '.join(known)}")
        dot = "" if self.place.endswith(":") else "."
        space = " " if self.place.endswith(":") else ""
        for key in self.content:
            if key not in known:
                error = nearest(str(key), known, "key")
                raise UsageError(f"{self.place} {error.message}", error.remedy)
        found = {
            key: Value(value, f"{self.place}{dot}{space}{key}")
            for key, value in self.content.items()
            if value is not None
        }
        for key in needed:
            if key not in found:
                raise self.wrong(f"has no {key!r}", f"Known: {', '.join(known)}.")
        return found

    @contextmanager
    def naming(self, key: str, given: Mapping[str, Value]) -> Iterator[None]:
        """Errors in here are about `key`, and say so."""
        try:
            yield
        except UsageError as error:
            place = given[key].place if key in given else self.place
            raise UsageError(f"{place}: {error.message}", error.remedy) from None

    @property
    def _shown(self) -> str:
        match self.content:
            case None:
                return "empty"
            case str():
                return repr(self.content if len(self.content) < 60 else f"{self.content[:57]}...")
            case list():
                return "a list"
            case _:
                return "a mapping"

    def _expected(self, what: str) -> UsageError:
        return self.wrong(f"is {self._shown}", f"Write {what}.")


def parse_duration(text: str) -> float:
    """ "90s", "30m", "1h30m", "2d" or plain seconds, as seconds above 0. Raises `UsageError`."""
    given = text.strip().lower().replace(" ", "")
    found = re.fullmatch(r"(?:\d+(?:\.\d+)?[smhd])+", given)
    if found:
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", given)
        seconds = sum(float(count) * _UNITS_S[unit] for count, unit in parts)
    else:
        seconds = float(given) if re.fullmatch(r"\d+(?:\.\d+)?", given) else 0.0
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"{text!r} is no time", "Write it like 90s, 30m, 1h30m or 2d.")
    return seconds


def read_yaml(path: Path) -> Value:
    """Raises `UsageError`."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such suite", "Write one: docs/field_test.md shows how.")
    if path.stat().st_size > _MOST_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size} bytes", "A suite is a short text.")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        told = " ".join(str(error).split()) or "too deep"
        raise UsageError(f"{path} is no YAML: {told}", _QUOTES) from None
    return Value(content, f"{path}:")


class _Loader(yaml.SafeLoader):
    """Texts, lists, mappings, and nothing; a key only once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", node.value[i][0].start_mark
                )
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
