"""Is an answer right? Two rules, both told in docs/evaluation.md.

**Exact match**: the same text after `normalise`. Where a JSON object or list is expected, the answer is
parsed and compared as JSON: white space and the order of keys do not count, 3.50 is 3.5, texts are
normalised.

**Numeric match**: an exact match, or the same number (by value, "3.50" is "3.5") with the same unit (white
space inside it does not count, "3.5bar" is "3.5 bar").
"""

from __future__ import annotations

import json
import re
import unicodedata
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn


def exact_match(answer: str, expected: str) -> bool:
    """Whether `answer` says what is `expected`, in the same words."""
    wanted = _json(expected)
    if wanted is not None:
        given = _json(answer)
        return given is not None and _comparable(given) == _comparable(wanted)
    return normalise(answer) == normalise(expected)


def numeric_match(answer: str, expected: str) -> bool:
    """Whether `answer` is an exact match or the same number with the same unit."""
    if exact_match(answer, expected):
        return True
    given, wanted = _quantity(answer), _quantity(expected)
    return given is not None and given == wanted


def normalise(text: str) -> str:
    """One spelling for texts that read the same.

    Unicode's compatibility forms become plain ones (NFKC: "m³" is "m3", "℃" is "°C"), the minus sign a
    hyphen; white space at the ends goes, other runs of it become one space; upper case becomes lower case,
    but for the M of a mega unit: MW is not mW.
    """
    plain = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    plain = _MEGA.sub("mega", plain)
    # Folding may decompose a letter, so that a second normalisation would change it.
    folded = unicodedata.normalize("NFKC", plain.casefold())
    return " ".join(folded.split())


_MEGA = re.compile(r"(?<![^\W\d_])M(?=(?:Wh?|Pa|VA?r?|Hz|J|N|Ω|[Oo]hm)(?![^\W\d_]))")
# A unit begins with a letter or a sign of its own: in "3-4", "12:30", "1,250" and "4.5.1" no number is read.
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)) ?((?:[^\W\d_]|[%°'\"]).*)?", re.DOTALL)


def _quantity(text: str) -> tuple[Decimal, str] | None:
    """Number and unit, or None for a text that is not one number with at most a unit behind it."""
    found = _QUANTITY.fullmatch(normalise(text))
    return (Decimal(found[1]), "".join((found[2] or "").split())) if found else None


def _json(text: str) -> Any:
    """The JSON object or list that `text` is, or None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, RecursionError, InvalidOperation):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _comparable(value: Any) -> Any:
    """`value` so that == means the same JSON: for Python alone, True is 1."""
    match value:
        case dict():
            return {normalise(key): _comparable(v) for key, v in value.items()}
        case list():
            return [_comparable(v) for v in value]
        case str():
            return normalise(value)
        case bool() | None:
            return (value,)
        case _:
            return Decimal(value)
