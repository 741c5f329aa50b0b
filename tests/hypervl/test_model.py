"""A model of any shape can be made from nothing: always the same, in known proportions, with sane numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from hypervl.config import DecoderConfig, VRCConfig, preset
from hypervl.decoder import Decoder, attention_mask, rope_table
from hypervl.model import HyperVL, build, component, initial_tensor, named_tensors
from hypervl.vrc import VRC
from rpi_runtime.errors import UsageError
from rpi_runtime.manifest import COMPONENTS

NANO = preset("nano")


def test_the_same_seed_gives_the_same_tensors_and_another_seed_others() -> None:
    first, again, other = (build(NANO, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    matrices = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert matrices
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


def test_a_tensor_made_alone_equals_the_one_in_a_whole_model() -> None:
    whole = build(NANO).state_dict()
    for name in ("decoder.layers.1.mlp.up_proj.weight", "vrc.blocks.2.depthwise.norm.running_var"):
        like = torch.empty(whole[name].shape, dtype=whole[name].dtype, device="meta")
        assert torch.equal(initial_tensor(name, like), whole[name])


def test_every_tensor_is_finite_and_no_two_matrices_are_alike() -> None:
    tensors = dict(named_tensors(build(NANO)))
    assert all(t.isfinite().all() for t in tensors.values())
    fingerprints = {round(float(t.double().sum()), 9) for t in tensors.values() if t.dim() > 1}
    assert len(fingerprints) == sum(t.dim() > 1 for t in tensors.values())


def test_names_are_those_of_hugging_face_under_the_components() -> None:
    names = set(HyperVL(NANO).state_dict())
    assert {name.split(".")[0] for name in names} == set(COMPONENTS)
    assert names >= {
        "vision_base.embeddings.patch_embedding.weight",
        "vision_base.embeddings.position_embedding.weight",
        "vision_large.encoder.layers.3.self_attn.out_proj.bias",
        "vision_large.post_layernorm.weight",
        "vision_base.projector.norm.weight",
        "vision_base.projector.linear_1.weight",
        "vision_large.projector.linear_2.bias",
        "decoder.embed_tokens.weight",
        "decoder.layers.0.self_attn.q_norm.weight",
        "decoder.layers.3.post_attention_layernorm.weight",
        "decoder.norm.weight",
    }
    assert "decoder.lm_head.weight" not in names


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_on_meta_takes_no_memory(name: str) -> None:
    with torch.device("meta"):
        part = component(preset("1.7b"), name)
    assert all(tensor.is_meta for _, tensor in named_tensors(part))
    # A buffer outside the checkpoint would be lost by loading into a module made on "meta".
    assert {n for n, _ in part.named_buffers()} <= {n for n, _ in named_tensors(part)}


def test_an_unknown_component_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown component 'vision_bas'") as caught:
        component(NANO, "vision_bas")
    assert "'vision_base'" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "branch", "millions"), [("1.7b", "base", 1820), ("1.7b", "large", 2050), ("0.6b", "base", 700)]
)
def test_presets_have_the_sizes_of_the_paper(name: str, branch: str, millions: int) -> None:
    with torch.device("meta"):
        model = HyperVL(preset(name))
    parts = (model.vrc, model.vision(branch), model.decoder)
    total = sum(tensor.numel() for part in parts for _, tensor in named_tensors(part))
    assert total / 1e6 == pytest.approx(millions, rel=0.02)


@torch.no_grad()
def test_an_untrained_decoder_of_28_layers_has_sane_activations() -> None:
    config = DecoderConfig(64, 192, 28, 4, 2, 16, vocab_size=500)
    deep = build(dataclasses.replace(NANO, decoder=config)).decoder
    logits, kv = run(deep, torch.arange(40))
    assert 0.3 < float(logits.std()) < 3
    assert all(0.05 < float(slice_.std()) < 20 for slice_ in kv)


@torch.no_grad()
def test_an_untrained_decoder_does_not_repeat_its_input() -> None:
    """With a tied head the embedding of the last token would win if the layers added little to it."""
    decoder = build(NANO).decoder
    ids = torch.arange(100)
    logits, _ = run(decoder, ids)
    likely = logits[0].argmax(-1)
    assert (likely == ids).float().mean() < 0.2
    assert likely.unique().numel() > 10


@torch.no_grad()
@pytest.mark.parametrize("config", [NANO.vrc, VRCConfig()], ids=["nano", "lite0"])
def test_an_untrained_vrc_neither_dies_nor_saturates(config: VRCConfig) -> None:
    with torch.device("meta"):
        vrc = VRC(config)
    tensors = {name: initial_tensor(f"vrc.{name}", like) for name, like in named_tensors(vrc)}
    vrc.load_state_dict(tensors, assign=True)
    pictures = [
        Image.fromarray(p()).resize((config.image_size,) * 2)
        for p in (skimage.data.coffee, skimage.data.rocket)
    ]
    features = vrc.eval().features(
        torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).float() / 255
    )
    assert float(features.std()) > 0.3
    assert float((features == 6).float().mean()) < 0.02  # ReLU6's ceiling


@torch.no_grad()
@pytest.mark.parametrize("branch", ["base", "large"])
def test_untrained_visual_tokens_depend_on_the_picture_and_are_not_all_alike(branch: str) -> None:
    model = build(NANO)
    pictures = [
        np.asarray(Image.fromarray(p()).resize((192, 192)))
        for p in (skimage.data.coffee, skimage.data.rocket)
    ]
    first, second = model.vision(branch)(torch.from_numpy(np.stack(pictures)).float() / 255)
    assert 0.1 < float(first.std()) < 5
    assert float((first - second).std()) > 0.1
    assert float(first.std(dim=0).mean()) > 0.05


def run(decoder: Decoder, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    count, config = ids.numel(), decoder.config
    rope = rope_table(torch.arange(count), config.head_dim, config.rope_theta)
    embeddings = decoder.embed_tokens(ids.unsqueeze(0))
    logits, kv = decoder(embeddings, *rope, attention_mask(count), decoder.empty_kv())
    assert logits is not None
    return logits, kv
