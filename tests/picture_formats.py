"""One photo in every format, mode and way of compression that is read, for tests of what decoding takes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin
from skimage import data

# What Pillow's `save` is told beside the mode.
KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg-cmyk": ("JPEG", "CMYK", {}),
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg-progressive-444": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "png-alpha": ("PNG", "RGBA", {"compress_level": 1}),
    "png-palette": ("PNG", "P", {"compress_level": 1}),
    "png-16-bit": ("PNG", "I;16", {"compress_level": 1}),
    "webp": ("WEBP", "RGB", {"quality": 80}),
    "webp-lossless-alpha": ("WEBP", "RGBA", {"lossless": True, "method": 0}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "ppm": ("PPM", "RGB", {}),
    "pgm-16-bit": ("PPM", "I;16", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff-lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff-lzw-one-strip": ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    "tiff-deflate-one-strip": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "tiff-jpeg-one-strip": ("TIFF", "RGB", {"compression": "jpeg"}),
    "tiff-turned": ("TIFF", "RGB", {"tiffinfo": {274: 6}}),
    "tiff-turned-lzw-one-strip": ("TIFF", "RGB", {"compression": "tiff_lzw", "tiffinfo": {274: 6}}),
    "tiff-planes": ("TIFF-PLANES", "RGB", {}),
    "tiff-planes-alpha": ("TIFF-PLANES", "RGBA", {}),
    "tiff-fax": ("TIFF", "1", {"compression": "group4"}),
    "bmp-run-length": ("BMP-RLE", "P", {}),
}


def save_picture(kind: str, folder: Path, width: int, height: int) -> Path:
    """`folder`/`kind`-WxH, a photo."""
    path = folder / f"{kind}-{width}x{height}"
    format_name, mode, options = KINDS[kind]
    photo = Image.fromarray(data.coffee()).resize((width, height))
    if format_name == "BMP-RLE":
        path.write_bytes(run_length_bmp(width, height))
        return path
    if format_name == "TIFF-PLANES":  # one strip for each; Pillow cannot write it
        planes = np.ascontiguousarray(np.moveaxis(np.asarray(_in_mode(photo, mode)), -1, 0))
        extra = {"extrasamples": ["unassalpha"]} if mode == "RGBA" else {}
        tifffile.imwrite(
            path, planes, photometric="rgb", planarconfig="separate", rowsperstrip=height, **extra
        )
        return path
    with pytest.MonkeyPatch.context() as patch:
        if kind.endswith("one-strip"):
            patch.setattr(TiffImagePlugin, "STRIP_SIZE", 1 << 30)
            tags = options.get("tiffinfo", {})
            assert isinstance(tags, dict)
            options = {**options, "tiffinfo": {**tags, 278: height}}
        _in_mode(photo, mode).save(path, format_name, **options)
    return path


def run_length_bmp(width: int, height: int) -> bytes:
    """Lines of one colour each, as runs of up to 255 pixels; Pillow cannot write it."""
    lines = []
    for row in range(height):
        runs = [bytes([min(255, width - at), row % 256]) for at in range(0, width, 255)]
        lines.append(b"".join(runs) + b"\0\0")
    pixels = b"".join(lines) + b"\0\1"
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 2835, 2835, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def _in_mode(photo: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        photo.putalpha(photo.getchannel("R"))
        return photo
    return photo.convert(mode)
