"""Pictures, questions and a checkpoint small enough to ask thousands of times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from hypervl.byte_tokenizer import IMAGE_TOKENS, byte_tokenizer
from hypervl.checkpoint import save
from hypervl.config import DecoderConfig, HyperVLConfig, TilingConfig, VisionConfig, VRCConfig
from hypervl.model import build
from hypervl.training.vrc_training import Samples
from vqa.dataset import Question, write_questions

CONFIG = HyperVLConfig(
    name="tiny",
    vrc=VRCConfig(32, (0.25, 0.5, 0.75, 1.0), 8, ((1, 8, 1, 1, 3), (4, 16, 2, 2, 3)), 32, 32),
    vision_base=VisionConfig(32, 64, 1, 2, image_size=96),
    vision_large=VisionConfig(48, 64, 1, 2, image_size=96),
    decoder=DecoderConfig(48, 64, 2, 4, 2, 12, vocab_size=320, rope_theta=1e4),
    tiling=TilingConfig(tile_side=96, tile_sides=(96, 64, 32), max_tiles=4),
    image_tokens=IMAGE_TOKENS,
)


def write_tiny(folder: Path, dtype: str = "float32", config: HyperVLConfig = CONFIG) -> Path:
    """Random weights, drawn to more than their usual size: the answers then hang on the picture."""
    model = build(config, seed=3)
    with torch.no_grad():
        model.vision_base.projector.linear_2.weight *= 6
    save(model, folder, byte_tokenizer(), dtype=dtype)
    return folder


def write_data(folder: Path, pictures: int, seed: int = 0) -> Path:
    """Noise of different coarseness with a word on it, two questions each, in grids of 1 to 4 tiles."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    questions = []
    for i in range(pictures):
        width, height = ((96, 96), (192, 96), (200, 200))[i % 3]
        coarse = rng.integers(0, 256, (height // (2 + 6 * (i % 2)), width // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height))
        ImageDraw.Draw(picture).text((width // 3, height // 3), f"{i} bar", fill="white")
        path = folder / "images" / f"{i}.png"
        picture.save(path)
        asked = (("What is shown?", f"{i} bar"), ("Which unit?", "bar"))
        questions += [Question(path, text, answer, id=f"{i}-{k}") for k, (text, answer) in enumerate(asked)]
    write_questions(folder, questions)
    return folder


def blank_or_textured(count: int, seed: int) -> Samples:
    """Views that are plain (class 0) or full of stripes (class 2), with soft labels of little doubt."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count) * 2
    views = np.repeat(rng.integers(40, 216, (count, 1, 1, 3)), 32, axis=1).repeat(32, axis=2)
    stripes = rng.integers(-40, 41, (count, 32, 1, 3)) * (labels == 2)[:, None, None, None]
    soft = np.full((count, 4), 0.02, np.float32)
    soft[np.arange(count), labels] = 0.94
    return Samples((views + stripes).astype(np.uint8), labels.astype(np.int64), soft)
