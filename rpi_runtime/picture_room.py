"""Room for a picture: what may be open while it is decoded, where its pixels wait, whether it fits at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rpi_runtime.errors import ImageError, ResourceError
from rpi_runtime.graphs import Graphs
from rpi_runtime.image_header import SCALE_DOWN, PictureTooLarge
from rpi_runtime.images import MAX_DECODED_BYTES, Picture, Source, open_image
from rpi_runtime.manifest import VRC

if TYPE_CHECKING:
    from rpi_runtime.memory_plan import MemoryPlan


class PictureRoom:
    """Opens pictures under `plan`, if there is one. `folder` is where pixels wait in a file."""

    def __init__(self, plan: MemoryPlan | None, graphs: Graphs, folder: Path) -> None:
        self._plan = plan
        self._graphs = graphs
        self._folder = folder

    def open(self, source: Source, is_spooled: bool | None = None) -> Picture:
        """Its header; `is_spooled` if it was decoded before, and how. Closes graphs that may not be open
        beside it: none for a picture that was not spooled. Raises `ImageError`."""
        plan = self._plan
        if plan is None:
            self._graphs.leave(VRC)
            return open_image(source, max_bytes=MAX_DECODED_BYTES)
        # libwebp holds a file twice before it tells the size of the picture.
        if plan.spools(2 * _file_bytes(source)) if is_spooled is None else is_spooled:
            self._graphs.close()
        try:
            return open_image(source, max_bytes=plan.picture_bytes)
        except PictureTooLarge as error:
            raise _refusal(error, plan) from None

    def decode(self, picture: Picture, width: int, height: int) -> None:
        """Decodes as many px of `picture`. Where it does not fit beside the open graphs they are closed, and
        its pixels go into a file. Raises `ImageError` when it does not fit at all."""
        plan, held = self._plan, picture.decoding_bytes(width, height)
        if plan is None or not plan.spools(held):
            picture.decode(width, height)
            return
        self._graphs.close()
        try:
            picture.decode(width, height, spool=self._folder)
        except PictureTooLarge as error:
            raise _refusal(error, plan) from None
        except ResourceError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            # There is no place for the file.
            enough = f" With a memory budget of {plan.budget_to_hold(held)} or more it stays in memory."
            raise ResourceError(error.message, error.remedy + enough) from error


def _refusal(error: PictureTooLarge, plan: MemoryPlan) -> ImageError:
    from rpi_runtime.memory_plan import megabytes

    return ImageError(
        f"{error.what}: decoding it takes {megabytes(error.needed)}, and a memory budget of "
        f"{plan.budget // 10**6:,} MB leaves {max(0, plan.picture_bytes) // 10**6:,} MB",
        f"Give {plan.budget_for(error.needed)} or more. {SCALE_DOWN}",
    )


def _file_bytes(source: Source) -> int:
    if isinstance(source, str | os.PathLike):
        try:
            return Path(source).stat().st_size
        except (OSError, ValueError):  # which opening it will tell
            return 0
    return len(source) if isinstance(source, bytes) else 0
