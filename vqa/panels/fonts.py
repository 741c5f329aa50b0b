"""Free fonts from PyPI packages. Those of the test split are never seen in training."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from rpi_runtime.errors import ResourceError

# package, folder inside it, files
_TRAIN = (
    (
        "matplotlib",
        "mpl-data/fonts/ttf",
        ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf"),
    ),
    ("font_roboto", "files", ("Roboto-Regular.ttf", "Roboto-Medium.ttf", "Roboto-Bold.ttf")),
    ("font_source_sans_pro", "files", ("SourceSansPro-Semibold.ttf", "SourceSansPro-Bold.ttf")),
    ("font_caladea", "files", ("Caladea-Bold.ttf",)),
    ("font_source_serif_pro", "files", ("SourceSerifPro-Semibold.ttf",)),
)
_TEST = (
    ("font_manrope", "files", ("Manrope-SemiBold.ttf", "Manrope-Bold.ttf")),
    ("font_hanken_grotesk", "files", ("HankenGrotesk-Medium.otf", "HankenGrotesk-Bold.otf")),
)


@lru_cache
def font_files(split: str) -> list[str]:
    """Paths of the fonts of "train" (also validation) or "test".

    Raises `ResourceError` when a package is not installed.
    """
    return [
        str(package_folder(package) / folder / file)
        for package, folder, files in (_TEST if split == "test" else _TRAIN)
        for file in files
    ]


@lru_cache
def package_folder(package: str) -> Path:
    """Where `package` is installed, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ResourceError(
            f"the package {package}, whose fonts or photographs the panels are made of, is not installed",
            "pip install 'hypervl-edge[train]'",
        )
    return Path(found.submodule_search_locations[0])


@lru_cache(maxsize=512)
def font(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    # Basic layout: the same with and without libraqm, and twice as fast.
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=64)
def _cap_share(path: str) -> float:
    _, upper, _, lower = font(path, 200).getbbox("H")
    return (lower - upper) / 200


def with_cap_height(path: str, cap_px: float) -> ImageFont.FreeTypeFont:
    """The font at the size at which its capitals and digits are about `cap_px` high."""
    return font(path, max(4, round(cap_px / _cap_share(path))))
