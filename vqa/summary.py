"""From answers to the figures of a report: one `ArmSummary` per arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vqa.intervals import Share, share
from vqa.results import Answer

# Bins of the height of what must be read, px of the picture as the file has it: below 16, 16 to below 24, ...
TEXT_SIZE_EDGES_PX = (16, 24, 40, 80)


@dataclass(frozen=True)
class Scores:
    """The answers of one group."""

    group: str  # a type, a bin of text sizes, or "all"
    exact: Share
    numeric: Share


@dataclass(frozen=True)
class Spread:
    """Milliseconds; 0 when nothing was measured."""

    median_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Cost:
    pictures: int
    visual_tokens: int  # of all pictures, each once
    visual_tokens_unrouted: int
    visual_tokens_per_picture: float
    saved: float  # share of the visual tokens that routing saved
    first_token: Spread  # questions about a new picture
    answer: Spread
    first_token_again: Spread  # further questions about the same picture
    answer_again: Spread
    peak_resident_bytes: int


@dataclass(frozen=True)
class ArmSummary:
    """One arm beside the first one of the same report."""

    label: str
    model: str
    routing: str
    branch: str
    scores: Scores
    kept: float | None  # exact match by the first arm's; None where that has none
    agreement: float  # share of questions with, character by character, the first arm's answer
    cost: Cost
    by_type: tuple[Scores, ...]  # alphabetically
    by_text_px: tuple[Scores, ...]  # ascending; questions without a size are in none


def summarise(
    label: str, model: str, routing: str, branch: str, answers: Sequence[Answer], first: Sequence[Answer]
) -> ArmSummary:
    """`answers` are of one arm, `first` those of the report's first arm to the same questions."""
    scores = _scores("all", answers)
    base = _scores("all", first).exact.value
    said = {answer.id: answer.answer for answer in first}
    same = sum(said[answer.id] == answer.answer for answer in answers)
    return ArmSummary(
        label=label,
        model=model,
        routing=routing,
        branch=branch,
        scores=scores,
        kept=scores.exact.value / base if base else None,
        agreement=same / len(answers) if answers else 0.0,
        cost=_cost(answers),
        by_type=_grouped(answers, sorted({a.type for a in answers}), lambda a: a.type),
        by_text_px=_grouped(answers, TEXT_SIZE_BINS, lambda a: text_size_bin(a.text_px)),
    )


def text_size_bin(text_px: float | None) -> str | None:
    """The bin of `TEXT_SIZE_BINS` that a height in px belongs to."""
    if text_px is None:
        return None
    return TEXT_SIZE_BINS[sum(text_px >= edge for edge in TEXT_SIZE_EDGES_PX)]


def _bins(edges: Sequence[int]) -> tuple[str, ...]:
    between = (f"{low}-{high}" for low, high in pairwise(edges))
    return (f"<{edges[0]}", *between, f">={edges[-1]}")


TEXT_SIZE_BINS = _bins(TEXT_SIZE_EDGES_PX)


def _grouped(
    answers: Sequence[Answer], groups: Iterable[str], group_of: Callable[[Answer], str | None]
) -> tuple[Scores, ...]:
    """Scores of each of `groups` that has answers."""
    counts = Counter(map(group_of, answers))
    return tuple(_scores(g, [a for a in answers if group_of(a) == g]) for g in groups if counts[g])


def _scores(group: str, answers: Sequence[Answer]) -> Scores:
    return Scores(
        group, share((a.image, a.exact) for a in answers), share((a.image, a.numeric) for a in answers)
    )


def _cost(answers: Sequence[Answer]) -> Cost:
    new = [answer for answer in answers if answer.new_picture]
    again = [answer for answer in answers if not answer.new_picture]
    tokens, unrouted = sum(a.visual_tokens for a in new), sum(a.visual_tokens_unrouted for a in new)
    return Cost(
        pictures=len(new),
        visual_tokens=tokens,
        visual_tokens_unrouted=unrouted,
        visual_tokens_per_picture=tokens / len(new) if new else 0.0,
        saved=1 - tokens / unrouted if unrouted else 0.0,
        first_token=_spread([a.first_token_ms for a in new]),
        answer=_spread([a.answer_ms for a in new]),
        first_token_again=_spread([a.first_token_ms for a in again]),
        answer_again=_spread([a.answer_ms for a in again]),
        peak_resident_bytes=max((a.peak_resident_bytes for a in answers), default=0),
    )


def _spread(ms: Sequence[float]) -> Spread:
    if not ms:
        return Spread(0.0, 0.0)
    return Spread(*(round(float(np.percentile(ms, q)), 3) for q in (50, 90)))
