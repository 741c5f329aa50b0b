"""What a router costs and saves: loss of the right answers, and visual tokens.

Pictures are opened, cut and routed by the runtime's own code, and the losses are those of whole pictures at
the sides that were chosen, not sums over tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hypervl.training.answer_loss import Sides
from hypervl.training.loss_file import AskedPicture, LossFile
from hypervl.vrc import VRC
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.routing import Routing, route
from rpi_runtime.tiling import tile_picture

Choose = Callable[[AskedPicture], Sides]


@dataclass(frozen=True)
class Measured:
    loss: float  # mean nats per answer token, over questions
    loss_full: float  # the same with every tile at the full side
    tokens_kept: float  # visual tokens, as a share of those at the full side
    questions: int

    def ratio(self, floor: float) -> float:
        """Loss against the full loss, `floor` added to both."""
        return (self.loss + floor) / (self.loss_full + floor)


def evaluate(
    losses: LossFile,
    pictures: Sequence[AskedPicture],
    spec: VisionSpec,
    choose: Choose,
    on_progress: Callable[[int, int], None],
) -> Measured:
    """Measures the sides that `choose` gives each picture."""
    found: list[float] = []
    full: list[float] = []
    tokens = tokens_full = 0
    for done, picture in enumerate(pictures, 1):
        sides = choose(picture)
        whole = (spec.tile_sides[0],) * len(sides)
        found += losses.losses(picture, sides)
        full += losses.losses(picture, whole)
        tokens += sum(map(spec.tokens, sides))
        tokens_full += sum(map(spec.tokens, whole))
        on_progress(done, len(pictures))
    return Measured(sum(found) / len(found), sum(full) / len(full), tokens / tokens_full, len(found))


def routed_by(vrc: VRC, spec: VisionSpec, routing: str) -> Choose:
    """The sides that the device would choose with `vrc`; `routing` is "tile" or "image"."""

    def predict(view: np.ndarray) -> np.ndarray:
        logits: np.ndarray = vrc(torch.from_numpy(view)).numpy()
        return logits

    @torch.no_grad()
    def choose(asked: AskedPicture) -> Sides:
        picture = open_image(asked.path)
        return route(picture, tile_picture(picture, spec), spec, Routing(routing), predict).sides

    return choose
