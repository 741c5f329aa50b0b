"""A vision branch computes what transformers' SigLIP and SigLIP2 towers compute, with their own weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from hypervl.attention import products, rotate
from hypervl.config import VisionConfig
from hypervl.projector import pixel_shuffle
from hypervl.vision import TileConstants, VisionBranch, patch_convolution_weight

PATCH, LEARNED_SIDE = 16, 128
CONFIG = VisionConfig(96, 160, 3, 4, image_size=LEARNED_SIDE, patch_size=PATCH)
SHAPE = {
    "hidden_size": CONFIG.hidden_size,
    "intermediate_size": CONFIG.intermediate_size,
    "num_hidden_layers": CONFIG.num_hidden_layers,
    "num_attention_heads": CONFIG.num_attention_heads,
    "patch_size": PATCH,
    "vision_use_head": False,
}
SIDES = [LEARNED_SIDE, 192, 64]  # the learned grid, a finer one, a coarser one
# Uneven on purpose: a channel mixed up or a mean forgotten must show.
MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)


def photos(side: int) -> Tensor:
    """Two real photographs, [2, side, side, 3] float32 in [0, 1]."""
    pictures = [
        Image.fromarray(p).resize((side, side)) for p in (skimage.data.astronaut(), skimage.data.coffee())
    ]
    return torch.from_numpy(np.stack([np.asarray(p, np.float32) / 255 for p in pictures]))


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN)) / torch.tensor(STD)


def randomised(tower: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, parameter in tower.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_scale), std=0.15)
    return tower.eval()


def siglip() -> nn.Module:
    return randomised(SiglipVisionModel(SiglipVisionConfig(**SHAPE, image_size=LEARNED_SIDE)))


def branch_with(state: dict[str, Tensor], **changes: object) -> VisionBranch:
    branch = VisionBranch(dataclasses.replace(CONFIG, **changes), 48, MEAN, STD).eval()
    missing, unexpected = branch.load_state_dict(state, strict=False)
    assert all(name.startswith("projector.") for name in missing)
    assert not unexpected
    return branch


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_features_equal_siglips(side: int) -> None:
    tower, images = siglip(), photos(side)
    ours = branch_with(tower.state_dict(), position_interpolation="bicubic").encode(images)
    pixels = normalised(images).permute(0, 3, 1, 2)
    theirs = tower(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert theirs.std() > 0.05  # alive: a comparison of zeros would prove nothing
    assert (ours - theirs).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_features_equal_naflex_siglip2s(side: int) -> None:
    grid = side // PATCH
    tower = randomised(
        Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, num_patches=(LEARNED_SIDE // PATCH) ** 2))
    )
    state = tower.state_dict()
    name = "embeddings.patch_embedding.weight"
    state[name] = patch_convolution_weight(state[name], PATCH)
    images = photos(side)
    ours = branch_with(state, position_interpolation="bilinear").encode(images)

    chw = normalised(images).permute(0, 3, 1, 2).numpy()
    patches = torch.from_numpy(np.stack([convert_image_to_patches(image, PATCH) for image in chw]))
    seen, shapes = torch.ones(2, grid * grid), torch.tensor([[grid, grid]] * 2)
    theirs = tower(patches, pixel_attention_mask=seen, spatial_shapes=shapes).last_hidden_state
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() < 1e-4


@torch.no_grad()
def test_the_two_interpolations_differ() -> None:
    """Or the two tests above could not tell them apart."""
    tables = [
        branch_with(siglip().state_dict(), position_interpolation=i).positions(64)
        for i in ("bilinear", "bicubic")
    ]
    assert (tables[0] - tables[1]).abs().max() > 0.01


@torch.no_grad()
def test_constants_kept_from_before_change_nothing() -> None:
    """An export computes them once; the graph must not differ by one bit from the reference."""
    for rotary in (False, True):
        branch = branch_with(siglip().state_dict(), rotary=rotary)
        images = photos(64)
        kept = TileConstants(*(None if t is None else t.clone() for t in branch.constants(64)))
        assert torch.equal(branch(images, kept), branch(images))


def test_rotary_scores_depend_on_how_far_patches_lie_apart_and_on_nothing_else() -> None:
    branch = VisionBranch(dataclasses.replace(CONFIG, rotary=True), 32)
    cos, sin = branch.rotary_table(128)
    assert cos is not None
    assert sin is not None
    one, other = torch.randn(2, 1, 1, 1, CONFIG.hidden_size // CONFIG.num_attention_heads).unbind()
    queries, keys = (rotate(x.expand(1, 1, 64, -1), cos, sin) for x in (one, other))
    scores = products(queries, keys).reshape(8, 8, 8, 8)  # row, column of the query; of the key
    torch.testing.assert_close(scores[2, 3, 4, 4], scores[3, 6, 5, 7])  # 2 down, 1 to the right
    assert abs(scores[2, 3, 4, 4] - scores[2, 3, 3, 5]) > 1e-3  # 1 down, 2 to the right
    small = branch.rotary_table(64)
    assert small[0] is not None
    torch.testing.assert_close(small[0][0, 0, 1], cos[0, 0, 1])  # neighbours are one apart at every side


@torch.no_grad()
def test_attention_while_training_is_the_attention_that_is_exported() -> None:
    branch = branch_with(siglip().state_dict(), rotary=True)
    images = photos(64)
    torch.testing.assert_close(branch.train()(images), branch.eval()(images), rtol=1e-4, atol=1e-5)


def test_pixel_shuffle_orders_channels_as_smolvlm() -> None:
    grid, channels = 6, 5
    patches = torch.randn(2, grid, grid, channels)
    theirs = Idefics3Connector.pixel_shuffle(None, patches.reshape(2, grid * grid, channels), scale_factor=2)
    assert torch.equal(pixel_shuffle(patches), theirs)


def test_visual_tokens_come_row_by_row() -> None:
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    squares = pixel_shuffle(torch.stack([row, column], -1).unsqueeze(0))
    first_patch = squares[0, :, :2].tolist()
    assert first_patch == [[r, c] for r in (0, 2, 4) for c in (0, 2, 4)]


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
def test_a_tile_becomes_a_quarter_as_many_tokens_as_patches(side: int) -> None:
    branch = branch_with(siglip().state_dict())
    assert branch(photos(side)).shape == (2, (side // PATCH // 2) ** 2, 48)


def test_nothing_in_the_graph_exceeds_rank_4() -> None:
    graph = torch.export.export(branch_with(siglip().state_dict()), (photos(64)[:1],)).graph
    ranks = [node.meta["val"].dim() for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert max(ranks) == 4


@torch.no_grad()
def test_large_activations_stay_finite_in_fp16() -> None:
    state = siglip().state_dict()
    state["embeddings.position_embedding.weight"] *= (
        2e4  # a few thousand, as in a tower with outlier channels
    )
    branch = branch_with(state)
    exact = branch.encode(photos(64))
    halved = branch.half().encode(photos(64).half())
    assert halved.isfinite().all()
    torch.testing.assert_close(halved.float(), exact, rtol=0.05, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("side", [192, 64])
def test_a_stem_is_plain_convolutions_in_front_of_the_patches(side: int) -> None:
    config = dataclasses.replace(CONFIG, stem_channels=(8, 12, 16), stem_dilations=(1, 3))
    branch = randomised(VisionBranch(config, 48, MEAN, STD))
    assert isinstance(branch, VisionBranch)
    x = normalised(photos(side)).permute(0, 3, 1, 2)
    for i in range(5):
        state = {n.split(".", 2)[2]: t for n, t in branch.state_dict().items() if n.startswith(f"stem.{i}.")}
        state = {n.removeprefix("inner."): t for n, t in state.items()}
        stride, dilation = (2, 1) if i < 3 else (1, (1, 3)[i - 3])
        before = 0 if stride == 2 else dilation  # TensorFlow's SAME of an even side
        padded = F.pad(x, (before, dilation, before, dilation))
        y = F.conv2d(padded, state["conv.weight"], stride=stride, dilation=dilation)
        norm = [state[f"norm.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        y = F.batch_norm(y, *norm, eps=1e-3).clamp(0, 6)
        x = y if stride == 2 else x + y
    assert x.shape == (2, 16, side // 8, side // 8)
    assert torch.allclose(branch.look(photos(side)), x, atol=1e-5)
    patches = branch.embeddings.patch_embedding(x).flatten(2).transpose(1, 2) + branch.positions(side)
    features = branch.post_layernorm(branch.encoder(patches))
    assert torch.allclose(branch.encode(photos(side)), features, atol=1e-5)
