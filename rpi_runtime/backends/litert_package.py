"""ai-edge-litert's GPU library: where it lies, and the package without it, for a CPU on which that library
kills the process.

LiteRT's Environment loads every accelerator library that lies beside it, even when only the CPU is asked for.
So the package is imported from a folder of links to all its files but that one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path

GPU_LIBRARY = "libLiteRtWebGpuAccelerator.so"
_PACKAGE = "ai_edge_litert"


def gpu_library() -> Path:
    """Beside the package, which must have been imported; it need not be there."""
    return Path(sys.modules[_PACKAGE].__path__[0]) / GPU_LIBRARY


@cache
def hide_gpu_library() -> str:
    """Has this process import ai-edge-litert without its GPU library from now on; why it cannot, "" when it
    does."""
    import atexit  # here: most processes need none of these, which take some megabytes
    import shutil
    import tempfile

    if _PACKAGE in sys.modules:
        return f"{_PACKAGE} was imported before, with its GPU library"
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return f"{_PACKAGE} is not installed as files"
    try:
        folder = Path(tempfile.mkdtemp(prefix="litert-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        links = folder / _PACKAGE
        links.mkdir()
        for file in Path(spec.origin).parent.iterdir():
            if file.name != GPU_LIBRARY:
                (links / file.name).symlink_to(file)
    except OSError as error:
        return f"its files cannot be linked to a temporary folder ({error.strerror}: {error.filename})"
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return ""
