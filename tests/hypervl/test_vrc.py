"""The VRC's backbone is EfficientNet-Lite: with the published weights it computes the published features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hypervl.config import VRCConfig, preset
from hypervl.conv_norm import same_padding
from hypervl.vrc import VRC, load_efficientnet_lite0
from rpi_runtime.errors import CheckpointError, ResourceError

LITE0 = VRCConfig()


def photo(side: int) -> Tensor:
    """A real photograph, [1, side, side, 3] float32, 0 to 255."""
    picture = Image.fromarray(skimage.data.chelsea()).resize((side, side))
    return torch.from_numpy(np.asarray(picture, np.float32)).unsqueeze(0)


@pytest.fixture(scope="module")
def fetched(fetch_weights: ModuleType) -> Callable[[str], Path]:
    """The folder of an asset of `scripts/fetch_weights.py`."""

    def folder(asset: str) -> Path:
        try:
            return Path(fetch_weights.fetch(asset))
        except ResourceError as error:
            pytest.skip(f"{asset} cannot be fetched here: {error.message}")

    return folder


@pytest.fixture
def published(fetched: Callable[[str], Path]) -> dict[str, Tensor]:
    """The weights of EfficientNet-Lite0, as they were published."""
    state: dict[str, Tensor] = torch.load(fetched("efficientnet-lite0") / "weights.pth", weights_only=True)
    return state


@pytest.mark.weights
@torch.no_grad()
def test_the_backbone_equals_efficientnet_lite0_with_its_real_weights(
    fetched: Callable[[str], Path], published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(fetched("efficientnet-lite-pytorch"))
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(published)
    ours = VRC(LITE0).eval()
    load_efficientnet_lite0(ours, published)

    pixels = photo(224)
    expected = theirs.extract_features(((pixels - 127) / 128).permute(0, 3, 1, 2))
    assert expected.std() > 0.1
    assert (ours.features(pixels / 255) - expected).abs().max() < 1e-4


@pytest.mark.weights
def test_the_mlp_keeps_its_weights_when_the_backbone_is_loaded(published: dict[str, Tensor]) -> None:
    vrc = VRC(LITE0)
    before = vrc.linear_2.weight.clone()
    load_efficientnet_lite0(vrc, published)
    assert torch.equal(vrc.linear_2.weight, before)


@pytest.mark.weights
@pytest.mark.parametrize("damage", ["missing", "unknown", "wrong shape"])
def test_weights_that_do_not_fit_are_named(damage: str, published: dict[str, Tensor]) -> None:
    state = dict(published)
    if damage == "missing":
        del state["_blocks.3._project_conv.weight"]
        expected = "lack tensor 'blocks.3.project.conv.weight'"
    elif damage == "unknown":
        state["_blocks.3._se_reduce.weight"] = torch.zeros(1)
        expected = "unknown tensor '_blocks.3._se_reduce.weight'"
    else:
        state["_conv_stem.weight"] = torch.zeros(40, 3, 3, 3)
        expected = r"'stem.conv.weight' is \[40, 3, 3, 3\], not \[32, 3, 3, 3\]"
    with pytest.raises(CheckpointError, match=expected):
        load_efficientnet_lite0(VRC(LITE0), state)


@torch.no_grad()
@pytest.mark.parametrize("config", [preset("nano").vrc, LITE0], ids=["nano", "lite0"])
def test_one_logit_per_scale_and_picture(config: VRCConfig) -> None:
    images = (photo(config.image_size) / 255).expand(2, -1, -1, -1)
    assert VRC(config).eval()(images).shape == (2, len(config.scales))


@given(size=st.integers(1, 300), kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
def test_same_padding_gives_the_ceiling_and_no_row_too_many(size: int, kernel: int, stride: int) -> None:
    before, behind = same_padding(size, kernel, stride)
    row = F.pad(torch.zeros(1, 1, size), (before, behind))
    outputs = F.max_pool1d(row, kernel, stride).shape[-1]
    assert outputs == -(-size // stride)
    assert behind - before in (0, 1)
    if before + behind:  # one zero less would not do
        assert (size + before + behind - 1 - kernel) // stride + 1 < outputs
