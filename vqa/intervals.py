"""How far a measured share can be trusted.

Questions about one picture are not independent: a blurred picture fails all of its questions together, so
2,000 questions about 250 pictures tell less than 2,000 about as many. The plain Wilson interval would be
too narrow for them. A bootstrap over pictures is right in the middle of the range, but has no width at all
where every answer is right, which is where good models live, and changes with its seed. So: Wilson's
interval, which behaves at the ends, with the number of questions divided by the design effect, which is how
many times larger the variance between pictures makes the variance of the share (Kish 1965; Dean and Pagano
2015 compare such intervals). With one question per picture this is Wilson's interval exactly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

Z = 1.959963984540054  # 95 %, two-sided


@dataclass(frozen=True)
class Share:
    """How many of `asked` questions were answered right."""

    right: int
    asked: int
    value: float  # right of asked, 0 to 1; 0 when nothing was asked
    low: float  # its 95 % interval
    high: float


def share(outcomes: Iterable[tuple[Hashable, bool]]) -> Share:
    """The share of right answers among `outcomes`: (picture, was it right) of each question."""
    by_picture: dict[Hashable, list[bool]] = defaultdict(list)
    for picture, was_right in outcomes:
        by_picture[picture].append(was_right)
    asked = sum(map(len, by_picture.values()))
    right = sum(sum(picture) for picture in by_picture.values())
    if not asked:
        return Share(0, 0, 0.0, 0.0, 1.0)
    value = right / asked
    return Share(right, asked, value, *wilson(value, asked / _design_effect(list(by_picture.values()))))


def wilson(proportion: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a `proportion` (0 to 1) seen in `count` independent trials."""
    square = Z * Z / count
    middle = proportion + square / 2
    reach = Z * math.sqrt((proportion * (1 - proportion) + square / 4) / count)
    low, high = (middle - reach) / (1 + square), (middle + reach) / (1 + square)
    # Rounding must not put the proportion itself outside.
    return min(max(low, 0.0), proportion), max(min(high, 1.0), proportion)


def _design_effect(pictures: list[list[bool]]) -> float:
    """Variance of the share with whole pictures as the sample, by that of as many independent questions.

    At least 1: that pictures vary less than chance would have them is nothing to build on. Where all
    answers are right, or none is, there is no variance to compare; then each picture counts once.
    """
    asked, right = sum(map(len, pictures)), sum(sum(picture) for picture in pictures)
    most = asked / len(pictures)
    if right in (0, asked):
        return most
    if len(pictures) == 1:
        return float(asked)
    proportion = right / asked
    between = sum((sum(p) - proportion * len(p)) ** 2 for p in pictures) / asked**2
    between *= len(pictures) / (len(pictures) - 1)
    independent = proportion * (1 - proportion) / (asked - 1)
    return min(max(1.0, between / independent), float(asked))
