"""Names that a careless script would take for something else."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import strategies as st

from field.device import quote

HOSTILE = [
    *(
        "a b",
        "  ",
        "\n",
        "a\nb\n",
        "\t",
        "'",
        "''",
        '"',
        "\\",
        "\\\\",
        "\\'",
        "a\\\nb",
        "$HOME",
        "$(id)",
        "`id`",
        "${X}",
    ),
    *(
        "-rf",
        "--",
        "-",
        "*",
        "?",
        "[a-z]",
        "{a,b}",
        "~",
        "~root",
        "!",
        "!!",
        "#",
        "a#b",
        "&",
        "a&&b",
        ";",
        "|",
        "<",
        ">",
    ),
    *(
        "(",
        ")",
        "%s",
        "%n",
        "\\n",
        "\\0",
        "é",
        "日本語",
        "🍓",
        "‮",
        "\x01",
        "\x1b[0m",
        "\x7f",
        "\r",
        "\udcff",
        "=",
        "a=b",
        "",
    ),
]
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(CHARACTERS, max_size=20),
    st.lists(st.sampled_from(HOSTILE), max_size=5).map("".join),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),  # file names are bytes
)


def handed_on(names: Sequence[str]) -> str:
    """A script that prints each name, with a NUL behind it."""
    return "".join(f"printf '%s\\0' {quote(name)}\n" for name in names)


def as_they_are(names: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)
