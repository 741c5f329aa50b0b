"""The toolkit's own version."""

from __future__ import annotations

import importlib.metadata


def own_version() -> str:
    """ "" where it runs from its source, without an installation."""
    try:
        return importlib.metadata.version("hypervl-edge")
    except importlib.metadata.PackageNotFoundError:
        return ""
