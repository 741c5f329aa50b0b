"""From a picture to visual tokens: cut, route, encode, one tile after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.clock import Clock
from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.images import Picture, Source
from rpi_runtime.manifest import VISION_BASE, VISION_LARGE, VRC, Manifest, VisionSpec
from rpi_runtime.picture_room import PictureRoom
from rpi_runtime.prompt import ImagePlan
from rpi_runtime.routing import RoutedTiles, Routing, choose_branch, route
from rpi_runtime.tiling import Grid, cut, plan_grid

BRANCHES = {"base": VISION_BASE, "large": VISION_LARGE}


@dataclass(frozen=True)
class RoutedPicture:
    """A picture whose tokens can be counted. `source` is what it can be read from again."""

    source: Source
    name: str
    size_px: tuple[int, int]
    grid: Grid
    routed: RoutedTiles
    plan: ImagePlan
    is_spooled: bool = False  # its pixels do not fit beside the open graphs


class Encoder:
    """The vision side of a bundle. `graph` opens a component's graph, or gives the open one; only `branches`
    may be used."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Callable[[str], Graph],
        room: PictureRoom,
        branches: Sequence[str] = tuple(BRANCHES),
    ) -> None:
        if manifest.vision is None:
            raise UsageError(
                f"the bundle of {manifest.model!r} is for text only, and a picture is given",
                "Leave the picture out, or convert with the components vrc and vision_base.",
            )
        self._spec: VisionSpec = manifest.vision
        self._branches = {b for b in branches if manifest.component(BRANCHES[b])}
        self._graph = graph
        self._room = room

    def route(
        self,
        source: Source,
        routing: Routing,
        policy: str,
        clock: Clock,
        on_tile: Callable[[int, int], None] = lambda done, of: None,
    ) -> tuple[RoutedPicture, Picture]:
        """Opens and cuts the picture and decides how each tile is encoded. `on_tile` hears of each VRC
        run.
        """
        with clock.phase("open_image"):
            picture = self._room.open(source)
            grid = plan_grid(*picture.size, self._spec)
            self._room.decode(picture, *grid.content_px)
        predictions = 0

        def predict(view: Array) -> Array:
            nonlocal predictions
            logits = self._graph(VRC).runner("route").run({"images": view})["scale_logits"]
            predictions += 1
            on_tile(predictions, len(grid.tiles) if routing.mode == "tile" else 1)
            return logits

        with clock.phase("route"):
            routed = route(picture, grid, self._spec, routing, predict)
            branch = choose_branch(policy, routed.grid_sides, self._spec, self._branches)
        plan = ImagePlan(
            digest=picture.digest,
            branch=branch,
            columns=grid.columns,
            rows=grid.rows,
            sides=routed.sides,
            thumbnail=grid.tiles[-1].is_thumbnail,
        )
        known = RoutedPicture(source, picture.name, picture.size, grid, routed, plan, picture.is_spooled)
        return known, picture

    def reopen(self, known: RoutedPicture, clock: Clock) -> Picture:
        """The pixels of a picture that was routed in an earlier turn. Raises `UsageError` if it has
        changed.
        """
        with clock.phase("open_image"):
            picture = self._room.open(known.source, known.is_spooled)
            if picture.digest != known.plan.digest:
                raise UsageError(
                    f"{known.name} has changed since it was first asked about",
                    "Start a new conversation with the picture as it is now.",
                )
            self._room.decode(picture, *known.grid.content_px)
        return picture

    def encode(self, known: RoutedPicture, picture: Picture, tile: int, clock: Clock) -> Array:
        """Visual tokens [tokens, hidden] float16 of one tile. Raises `BundleError` for a wrong count."""
        side = known.plan.sides[tile]
        with clock.phase("encode"):
            pixels = cut(picture, known.grid.tiles[tile], side)
            runner = self._graph(BRANCHES[known.plan.branch]).runner(f"tile_{side}")
            tokens = runner.run({"images": pixels})["visual_tokens"][0]
        if len(tokens) != self._spec.tokens(side):
            raise BundleError(
                f"{known.name}, tile {tile}: the {known.plan.branch} branch gave {len(tokens)} visual tokens "
                f"at {side} px, and {self._spec.tokens(side)} have their places",
                "Convert the checkpoint again.",
            )
        return tokens.astype(np.float16)
