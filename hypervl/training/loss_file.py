"""Losses of pictures under any choice of tile sides, each computed once and kept in a file.

A line is one pass of the model: which picture and questions, the side of each tile, the loss of each answer.
The file grows as passes are made, so a run that was stopped goes on where it was, and labels for another eps
need only the passes that none has asked for before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hypervl.training.answer_loss import AnswerLosses, FrozenModel, Losses, Sides
from rpi_runtime.errors import EdgeError, UsageError
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import Grid, plan_grid
from vqa.dataset import Question

FORMAT = 1  # counts up when losses are computed in another way


@dataclass(frozen=True)
class AskedPicture:
    """A picture that has not been decoded, how it will be cut, and what is asked about it."""

    path: Path
    digest: str  # of the picture's file
    size: tuple[int, int]  # px, width and height
    grid: Grid
    questions: tuple[Question, ...]

    @property
    def key(self) -> str:
        """Names picture, questions and answers by their content."""
        asked = json.dumps([self.digest, [(q.text, q.answer) for q in self.questions]])
        return hashlib.sha256(asked.encode()).hexdigest()[:20]


def open_asked(path: Path, questions: Iterable[Question], spec: VisionSpec) -> AskedPicture:
    """Reads the header of the picture at `path`; raises `ImageError` naming it."""
    picture = open_image(path)
    picture.close()
    return AskedPicture(path, picture.digest, picture.size, plan_grid(*picture.size, spec), tuple(questions))


class LossFile:
    """Raises `UsageError` for a file that is another model's."""

    def __init__(self, path: Path, frozen: FrozenModel, fingerprint: str) -> None:
        self._frozen = frozen
        self._known: dict[tuple[str, Sides], Losses] = {}
        self._open: tuple[str, AnswerLosses] | None = None  # encoded tiles of the picture asked for last
        self.passes = 0  # that were computed and not read
        header = json.dumps({"format": FORMAT, "checkpoint": fingerprint, "branch": frozen.branch})
        whole = self._read(path, header) if path.is_file() else 0
        self._file = path.open("ab")
        self._file.truncate(whole)
        if not whole:
            self._write(header)

    def losses(self, picture: AskedPicture, sides: Sides) -> Losses:
        """The loss of each question of `picture` with its tiles at `sides`."""
        name = (picture.key, sides)
        if name not in self._known:
            if self._open is None or self._open[0] != picture.key:
                self._open = (
                    picture.key,
                    AnswerLosses(self._frozen, open_image(picture.path), picture.questions),
                )
            losses = self._open[1].at(sides)
            self._write(json.dumps({"key": picture.key, "sides": sides, "losses": losses}))
            self._known[name] = losses
            self.passes += 1
        return self._known[name]

    def __enter__(self) -> LossFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def _read(self, path: Path, header: str) -> int:
        """Reads every whole line; returns how many bytes they take. A killed run may have cut the last."""
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        first, *lines = whole.splitlines() or [b""]
        if whole and first != header.encode():
            raise UsageError(
                f"{path} was measured with another checkpoint or branch", "Choose another folder with --work."
            )
        try:
            for line in lines:
                entry = json.loads(line)
                self._known[entry["key"], tuple(entry["sides"])] = tuple(entry["losses"])
        except (ValueError, KeyError, TypeError):
            raise EdgeError(
                f"{path} is damaged", "Delete it, or choose another folder with --work."
            ) from None
        return len(whole)
