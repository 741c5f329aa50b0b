"""Pictures out of an archive that a device made: only those that were asked for, whatever else is in it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import IO


def unpack_pictures(archive: IO[bytes], names: Collection[str], folder: Path) -> None:
    """Each of `names` that is in it becomes a file of `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            if name not in names or not member.isfile():
                continue
            content = tar.extractfile(member)
            assert content is not None
            partial = folder / f"{name}.partial"
            with content, partial.open("wb") as file:
                shutil.copyfileobj(content, file)
            partial.replace(folder / name)
