"""Which resolution each tile of a picture needs: labels for the Visual Resolution Compressor.

The rule, after the paper: with the model frozen, D(a) is the loss of the right answer with the picture at
scale a, over its loss at the full resolution; the label is the smallest a with D(a) <= 1 + eps. Several
questions about one picture must all pass. Scales that are encoded at the same tile side are one measurement.

A loss near zero makes a ratio of two tiny numbers, in which noise decides. So both get a floor added,
D = (CE(a) + floor) / (CE(1) + floor): far above the floor it is the paper's ratio, far below it bounds the
increase, to eps * floor nats per answer token.

Tiles are judged one at a time, the others at the full side: a tile that matters to no question gets the
smallest. But what each tile alone can spare, all together may not, because tiles and thumbnail say things
twice. When all single labels together break the rule, tiles are lowered one after another, those before
staying low, and a tile goes no lower than the rule still holds: the result obeys it by construction. Tiles
that matter least go first, so that what one of two tellers must keep stays with the better one; the thumbnail
goes last, because while it is whole it spares more tiles than it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hypervl.training.answer_loss import Losses, Sides
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.routing import side_for
from rpi_runtime.tiling import Grid

Measure = Callable[[Sides], Losses]  # the loss of each question's answer with the tiles at these sides

_SOFTNESS = 0.1  # of excess ratio, or of a full tile's tokens, that make a scale e times less likely
_MOST_EXCESS = 1.0  # worse than twice the loss is not worse still


@dataclass(frozen=True)
class Rule:
    eps: float  # how much the loss ratio may exceed 1
    floor: float = 0.5  # nats per answer token, added to both losses

    def ratio(self, loss: float, full: float) -> float:
        return (loss + self.floor) / (full + self.floor)

    def worst(self, losses: Losses, full: Losses) -> float:
        """The largest ratio of any question."""
        return max(self.ratio(loss, base) for loss, base in zip(losses, full, strict=True))

    def holds(self, losses: Losses, full: Losses) -> bool:
        return self.worst(losses, full) <= 1 + self.eps


@dataclass(frozen=True)
class Labelled:
    """What the rule says about the views of one picture that a VRC sees."""

    sides: Sides  # px, one per view
    # Per view, the worst ratio of any question at each of `routed_sides`, up to the first that will do.
    ratios: tuple[tuple[float, ...], ...]


def routed_sides(spec: VisionSpec) -> Sides:
    """The sides (px, ascending) that the scales lead to; the last one is the full side."""
    return tuple(sorted({side_for(scale, spec) for scale in spec.scales}))


def label_tiles(measure: Measure, grid: Grid, sides: Sides, rule: Rule) -> Labelled:
    """A side for every tile of `grid`, such that all of them together obey `rule`."""
    count = len(grid.tiles)
    full = (sides[-1],) * count
    base = measure(full)

    def lowered(tile: int) -> Iterator[Losses]:
        return (measure(_changed(full, tile, side)) for side in sides)

    ratios = tuple(_ratios(lowered(tile), base, rule) for tile in range(count))
    alone = tuple(sides[len(row) - 1] for row in ratios)
    if rule.holds(measure(alone), base):
        return Labelled(alone, ratios)
    together = full
    for tile in sorted(range(count), key=lambda i: (grid.tiles[i].is_thumbnail, ratios[i][0], i)):
        for side in sides[sides.index(alone[tile]) : -1]:
            attempt = _changed(together, tile, side)
            if rule.holds(measure(attempt), base):
                together = attempt
                break
    return Labelled(together, ratios)


def label_picture(measure: Measure, grid: Grid, sides: Sides, rule: Rule) -> Labelled:
    """One side for the whole picture: all tiles at it."""
    count = len(grid.tiles)
    base = measure((sides[-1],) * count)
    ratios = _ratios((measure((side,) * count) for side in sides), base, rule)
    return Labelled((sides[len(ratios) - 1],), (ratios,))


def classes(sides: Sequence[int], spec: VisionSpec) -> list[int]:
    """The VRC's class for each side: the smallest scale that leads to it."""
    first = {side_for(scale, spec): i for i, scale in reversed(list(enumerate(spec.scales)))}
    return [first[side] for side in sides]


def soft_targets(labelled: Labelled, spec: VisionSpec, rule: Rule) -> np.ndarray:
    """A distribution over the scales for every view: [views, scales] float32.

    A scale's cost is what it breaks the rule by, plus the tokens that it takes above the label's, as a share
    of a full tile's; its probability is exp(-cost / 0.1), normalised. A scale below the label costs at least
    eps: together with the other tiles it broke the rule. Of scales with one side the smallest has all.
    """
    sides = routed_sides(spec)
    tokens = np.array([spec.tokens(side) for side in sides], np.float64)
    where = classes(sides, spec)
    targets = np.zeros((len(labelled.sides), len(spec.scales)), np.float32)
    for row, (label, ratios) in enumerate(zip(labelled.sides, labelled.ratios, strict=True)):
        chosen = sides.index(label)
        excess = np.zeros(len(sides))
        excess[: len(ratios)] = np.clip(np.array(ratios) / (1 + rule.eps) - 1, 0.0, _MOST_EXCESS)
        excess[:chosen] = np.maximum(excess[:chosen], rule.eps)
        above = np.maximum(tokens - tokens[chosen], 0.0) / tokens[-1]
        weights = np.exp(-(excess + above) / _SOFTNESS)
        targets[row, where] = weights / weights.sum()
    return targets


def _ratios(measured: Iterable[Losses], base: Losses, rule: Rule) -> tuple[float, ...]:
    """Worst ratios at ascending sides, up to the first that obeys the rule; at the full side it is 1.

    Larger sides are not measured: they decide nothing, and most tiles can do with the smallest.
    """
    ratios: list[float] = []
    for losses in measured:
        ratios.append(rule.worst(losses, base))
        if ratios[-1] <= 1 + rule.eps:
            break
    return tuple(ratios)


def _changed(sides: Sides, tile: int, side: int) -> Sides:
    return (*sides[:tile], side, *sides[tile + 1 :])
