"""A checkpoint assembled from public parts computes what the parts compute."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hypervl.assemble import Sources, assemble
from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.checkpoint import Checkpoint
from hypervl.config import PRESETS, ImageTokensConfig, preset
from hypervl.decoder import Decoder, attention_mask, rope_table
from hypervl.model import build
from hypervl.vision import VisionBranch
from rpi_runtime.errors import CheckpointError, EdgeError, ExitCode, UsageError
from toolkit.commands import assemble as command

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
TOWER = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 16,
}
DECODER = {
    "hidden_size": 72,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": None,
}
TEXT_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


def saved(model: PreTrainedModel, folder: Path, **how: object) -> Path:
    """`model` with lively random weights, as `save_pretrained` writes it, beside the byte tokenizer."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder, **how)
    for name, content in byte_tokenizer().files.items():
        if name != "generation_config.json":
            (folder / name).write_bytes(content)
    return folder


def siglip(folder: Path, **shape: int) -> tuple[Path, SiglipVisionModel]:
    model = SiglipVisionModel(SiglipVisionConfig(**{**TOWER, "image_size": 96, **shape}))
    return saved(model, folder), model


def siglip2(folder: Path, **shape: int) -> tuple[Path, Siglip2VisionModel]:
    model = Siglip2VisionModel(Siglip2VisionConfig(**{**TOWER, "num_patches": 36, **shape}))
    return saved(model, folder), model


def qwen3(folder: Path, **config: object) -> tuple[Path, Qwen3ForCausalLM]:
    model = Qwen3ForCausalLM(Qwen3Config(**{**DECODER, **config}))
    return saved(model, folder), model


def branch(checkpoint: Path, name: str) -> VisionBranch:
    module = Checkpoint.open(checkpoint).load_component(f"vision_{name}")
    assert isinstance(module, VisionBranch)
    return module


def decoder(checkpoint: Path) -> Decoder:
    module = Checkpoint.open(checkpoint).load_component("decoder")
    assert isinstance(module, Decoder)
    return module


@torch.inference_mode()
def logits(model: Decoder, ids: Tensor) -> Tensor:
    c, tokens = model.config, ids.shape[1]
    rope = rope_table(torch.arange(tokens), c.head_dim, c.rope_theta)
    found, _ = model(model.embed_tokens(ids), *rope, attention_mask(tokens), model.empty_kv())
    assert found is not None
    return found


def pictures(side: int) -> Tensor:
    return torch.rand(2, side, side, 3, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def siglip_features(model: nn.Module, images: Tensor) -> Tensor:
    """transformers' features of NHWC pictures in [0, 1]."""
    pixels = (images.permute(0, 3, 1, 2) - 0.5) / 0.5
    found: Tensor = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    return found


@torch.inference_mode()
def siglip2_features(model: nn.Module, images: Tensor) -> Tensor:
    """The same of a NaFlex tower, which reads flattened patches."""
    count, side, patch = images.shape[0], images.shape[1], TOWER["patch_size"]
    grid = side // patch
    x = ((images - 0.5) / 0.5).reshape(count, grid, patch, grid, patch, 3)
    patches = x.permute(0, 1, 3, 2, 4, 5).reshape(count, grid * grid, patch * patch * 3)
    found: Tensor = model(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(count, grid * grid, dtype=torch.long),
        spatial_shapes=torch.tensor([[grid, grid]] * count),
    ).last_hidden_state
    return found


# Whole from a preset


def test_a_preset_alone_is_initialised_whole(nano_checkpoint: Path, tmp_path: Path) -> None:
    report = assemble(tmp_path / "c", Sources(preset="nano"), seed=7)
    assert report.initialised == report.parts
    assert sum(p.parameters for p in report.parts) == Checkpoint.open(tmp_path / "c").parameters()
    loaded = Checkpoint.open(tmp_path / "c").load_model().state_dict()
    built = build(preset("nano"), seed=7).state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in built.items())
    assert Checkpoint.open(tmp_path / "c").fingerprint() != Checkpoint.open(nano_checkpoint).fingerprint()


def test_the_same_parts_and_seed_give_the_same_bytes(nano_checkpoint: Path, tmp_path: Path) -> None:
    assemble(tmp_path / "c", Sources(preset="nano"))
    for file in nano_checkpoint.iterdir():
        assert file.read_bytes() == (tmp_path / "c" / file.name).read_bytes(), file.name


def test_nothing_is_not_assembled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to assemble") as caught:
        assemble(tmp_path / "c", Sources())
    assert caught.value.exit_code == ExitCode.WRONG_USAGE


def test_an_unknown_preset_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        assemble(tmp_path / "c", Sources(preset="0.6"))
    assert "'0.6b'" in caught.value.remedy


# Vision towers


@pytest.mark.parametrize("side", [96, 64, 160])
def test_a_siglip_tower_sees_what_transformers_sees(tmp_path: Path, side: int) -> None:
    folder, theirs = siglip(tmp_path / "tower")
    assemble(tmp_path / "c", Sources(vision_base=folder))
    ours = branch(tmp_path / "c", "base")
    torch.testing.assert_close(ours.encode(pictures(side)), siglip_features(theirs, pictures(side)), **CLOSE)


@pytest.mark.parametrize("side", [96, 64, 160])
def test_a_siglip2_tower_sees_what_transformers_sees(tmp_path: Path, side: int) -> None:
    folder, theirs = siglip2(tmp_path / "tower")
    assemble(tmp_path / "c", Sources(vision_large=folder))
    ours = branch(tmp_path / "c", "large")
    torch.testing.assert_close(ours.encode(pictures(side)), siglip2_features(theirs, pictures(side)), **CLOSE)


@pytest.mark.parametrize("generation", [1, 2])
def test_the_vision_tower_of_a_whole_model_is_found(tmp_path: Path, generation: int) -> None:
    if generation == 1:
        whole = SiglipModel(SiglipConfig(vision_config={**TOWER, "image_size": 96}, text_config=TEXT_TOWER))
    else:
        whole = Siglip2Model(
            Siglip2Config(vision_config={**TOWER, "num_patches": 36}, text_config=TEXT_TOWER)
        )
    folder = saved(whole, tmp_path / "model")
    assert any(n.startswith("text_model.") for n in load_file(folder / "model.safetensors"))
    assemble(tmp_path / "c", Sources(vision_base=folder))
    features = siglip_features if generation == 1 else siglip2_features
    ours = branch(tmp_path / "c", "base").encode(pictures(96))
    torch.testing.assert_close(ours, features(whole.vision_model, pictures(96)), **CLOSE)


def test_a_tower_with_prefixed_names_is_the_same_tower(tmp_path: Path) -> None:
    """transformers 4 wrote `vision_model.*`, transformers 5 writes bare names."""
    folder, _ = siglip(tmp_path / "tower")
    assemble(tmp_path / "bare", Sources(vision_base=folder))
    tensors = load_file(folder / "model.safetensors")
    assert not any(n.startswith("vision_model.") for n in tensors)
    save_file({f"vision_model.{n}": t for n, t in tensors.items()}, folder / "model.safetensors")
    assemble(tmp_path / "prefixed", Sources(vision_base=folder))
    assert (
        Checkpoint.open(tmp_path / "bare").fingerprint()
        == Checkpoint.open(tmp_path / "prefixed").fingerprint()
    )


def test_a_config_may_leave_out_what_transformers_knows(tmp_path: Path) -> None:
    """Published configs name only what differs from SigLIP-Base."""
    folder = tmp_path / "tower"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "siglip", "vision_config": {"image_size": 512}}')
    save_file({}, folder / "model.safetensors")
    with torch.device("meta"):
        theirs = SiglipVisionModel(SiglipVisionConfig(image_size=512))
    wanted = [n for n in theirs.state_dict() if not n.startswith("head.")]
    with pytest.raises(CheckpointError, match=f"{len(wanted)} tensors missing"):
        assemble(tmp_path / "c", Sources(vision_base=folder))


def test_tiles_are_as_large_as_the_tower_was_trained_on(tmp_path: Path) -> None:
    folder, _ = siglip(tmp_path / "tower", image_size=160)
    config = assemble(tmp_path / "c", Sources(vision_base=folder)).config
    assert config.tiling.tile_side == 160
    assert config.tiling.tile_sides == (160, 96, 64)  # nano's thirds, in steps of 32 px
    assert (config.vision_large.image_size, config.vision_large.patch_size) == (160, 16)


def test_tile_sides_suit_the_patches_of_both_branches(tmp_path: Path) -> None:
    base, _ = siglip(tmp_path / "base", patch_size=14, image_size=224)
    large, _ = siglip(tmp_path / "large", patch_size=8, image_size=224)
    config = assemble(tmp_path / "c", Sources(vision_base=base, vision_large=large)).config
    assert config.tiling.tile_sides == (224, 112)
    assert all(side % (2 * 14) == 0 and side % (2 * 8) == 0 for side in config.tiling.tile_sides)


def test_pictures_are_normalised_as_the_tower_was_trained(tmp_path: Path) -> None:
    folder, theirs = siglip(tmp_path / "tower")
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    assemble(tmp_path / "c", Sources(vision_base=folder))
    as_trained = (pictures(96) - torch.tensor(mean)) / torch.tensor(std) * 0.5 + 0.5
    ours = branch(tmp_path / "c", "base").encode(pictures(96))
    torch.testing.assert_close(ours, siglip_features(theirs, as_trained), **CLOSE)
    other, _ = siglip(tmp_path / "other")
    (other / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    with pytest.raises(CheckpointError, match="normalise pictures differently"):
        assemble(tmp_path / "d", Sources(vision_base=folder, vision_large=other))


# Decoders


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_decoder_says_what_transformers_says(tmp_path: Path, kind: str, tied: bool) -> None:
    config = {
        **DECODER,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
        "rms_norm_eps": 1e-5,
    }
    theirs = (
        Qwen3ForCausalLM(Qwen3Config(**config))
        if kind == "qwen3"
        else LlamaForCausalLM(LlamaConfig(**config))
    )
    folder = saved(theirs, tmp_path / "decoder", max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    report = assemble(tmp_path / "c", Sources(decoder=folder))
    assert [p.name for p in report.parts if p.source] == ["decoder"]
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(ids).logits
    torch.testing.assert_close(logits(decoder(tmp_path / "c"), ids), expected, **CLOSE)


@pytest.mark.parametrize("same", [True, False], ids=["repeated", "another"])
def test_a_head_beside_a_tied_embedding_is_read_as_transformers_reads_it(tmp_path: Path, same: bool) -> None:
    """Published Qwen3 files repeat the tied head; transformers unties one that differs."""
    folder, _ = qwen3(tmp_path / "decoder", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * (1.0 if same else 0.5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert assemble(tmp_path / "c", Sources(decoder=folder)).config.decoder.tie_word_embeddings == same
    ids = torch.arange(20).reshape(1, -1)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(logits(decoder(tmp_path / "c"), ids), expected, **CLOSE)


def test_a_decoder_in_bfloat16_is_copied_without_loss(tmp_path: Path) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**DECODER)).to(torch.bfloat16)
    folder = saved(model, tmp_path / "decoder")
    for dtype in ("bfloat16", "float32"):
        assemble(tmp_path / dtype, Sources(decoder=folder), dtype=dtype)
        found = Checkpoint.open(tmp_path / dtype).tensor("decoder.layers.1.mlp.up_proj.weight")
        assert torch.equal(found, model.model.layers[1].mlp.up_proj.weight.float())


def test_configs_of_transformers_4_are_read(tmp_path: Path) -> None:
    """There `rope_theta` stood alone and `rope_scaling` beside it."""
    folder, _ = qwen3(tmp_path / "decoder")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 1e6, "rope_scaling": None}))
    assert assemble(tmp_path / "c", Sources(decoder=folder)).config.decoder.rope_theta == 1e6


def test_the_end_of_an_answer_is_the_decoder_s(tmp_path: Path) -> None:
    folder, _ = qwen3(tmp_path / "decoder")
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 256], "temperature": 0.6}')
    assemble(tmp_path / "c", Sources(decoder=folder))
    assert Checkpoint.open(tmp_path / "c").text_files.eos_token_ids == (258, 256)
    (folder / "generation_config.json").unlink()
    assemble(tmp_path / "d", Sources(decoder=folder))
    assert Checkpoint.open(tmp_path / "d").text_files.eos_token_ids == (258,)


# Projector and VRC


def test_a_checkpoint_s_own_projector_and_vrc_are_parts_too(nano_checkpoint: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(nano_checkpoint)
    save_file(source.load("vision_base.projector."), tmp_path / "projector.safetensors")
    prefixed = {f"projector.{n}": t.clone() for n, t in source.load("vision_large.projector.").items()}
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    save_file({f"vrc.{n}": t.clone() for n, t in source.load("vrc.").items()}, tmp_path / "vrc.safetensors")
    report = assemble(
        tmp_path / "c",
        Sources(
            preset="nano",
            projector_base=tmp_path / "projector.safetensors",
            projector_large=tmp_path / "prefixed.safetensors",
            vrc=tmp_path / "vrc.safetensors",
        ),
        seed=9,
    )
    assert [p.name for p in report.initialised] == ["vision_base tower", "vision_large tower", "decoder"]
    made = Checkpoint.open(tmp_path / "c")
    for prefix in ("vision_base.projector.", "vision_large.projector.", "vrc."):
        expected = source.load(prefix)
        assert all(torch.equal(t, expected[n]) for n, t in made.load(prefix).items())
    assert not torch.equal(
        made.tensor("decoder.embed_tokens.weight"), source.tensor("decoder.embed_tokens.weight")
    )


def test_a_projector_for_another_width_is_refused(tmp_path: Path, nano_checkpoint: Path) -> None:
    projector = tmp_path / "projector.safetensors"
    save_file(Checkpoint.open(nano_checkpoint).load("vision_base.projector."), projector)
    folder, _ = qwen3(tmp_path / "decoder")
    with pytest.raises(CheckpointError, match=r"linear_1\.weight is \[192, 768\], not \[72, 768\]"):
        assemble(tmp_path / "c", Sources(decoder=folder, projector_base=projector))


# The tokenizer and the model fit each other


def test_image_tokens_are_those_that_the_tokenizer_has(tmp_path: Path) -> None:
    folder, _ = qwen3(tmp_path / "decoder")
    assert (
        assemble(tmp_path / "bytes", Sources(decoder=folder)).config.image_tokens
        == PRESETS["nano"].image_tokens
    )
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"].startswith("<|")]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert assemble(tmp_path / "none", Sources(decoder=folder)).config.image_tokens == ImageTokensConfig()


def test_a_decoder_with_fewer_rows_than_its_tokenizer_has_tokens_is_refused(tmp_path: Path) -> None:
    folder, _ = qwen3(tmp_path / "decoder", vocab_size=260, eos_token_id=None)
    with pytest.raises(CheckpointError, match=r"the tokenizer has token id 263, .* ends at 259"):
        assemble(tmp_path / "c", Sources(decoder=folder))


def test_a_decoder_without_a_tokenizer_needs_one(tmp_path: Path, nano_checkpoint: Path) -> None:
    folder, _ = qwen3(tmp_path / "decoder")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        assemble(tmp_path / "c", Sources(decoder=folder))
    assemble(tmp_path / "c", Sources(decoder=folder, tokenizer=nano_checkpoint))


@pytest.mark.weights
def test_an_initialised_decoder_grows_to_its_tokenizer(tmp_path: Path, qwen3_tokenizer_folder: Path) -> None:
    config = assemble(tmp_path / "c", Sources(preset="nano", tokenizer=qwen3_tokenizer_folder)).config
    assert config.decoder.vocab_size == 151680  # 151,669 tokens, to a multiple of 64
    assert (config.image_tokens.image_start, config.image_tokens.image_end) == (
        "<|vision_start|>",
        "<|vision_end|>",
    )
    copied = (tmp_path / "c/tokenizer.json").read_bytes()
    assert copied == (qwen3_tokenizer_folder / "tokenizer.json").read_bytes()


# What our modules do not compute is refused by name


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"use_sliding_window": True}, "use_sliding_window True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types ['full_attention', 'sliding"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": None}, "rope type 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope type 'llama3'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"model_type": None}, "model_type None"),
    ],
)
def test_a_decoder_with_a_feature_that_ours_has_not(tmp_path: Path, change: dict, feature: str) -> None:
    folder, _ = qwen3(tmp_path / "decoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError) as caught:
        assemble(tmp_path / "c", Sources(decoder=folder))
    assert f"config.json: {feature}" in caught.value.message
    assert caught.value.message.endswith("is not supported")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"model_type": "clip_vision_model"}, "model_type 'clip_vision_model'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', expected a whole number"),
    ],
)
def test_a_tower_with_a_feature_that_ours_has_not(tmp_path: Path, change: dict, feature: str) -> None:
    folder, _ = siglip(tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError) as caught:
        assemble(tmp_path / "c", Sources(vision_base=folder))
    assert f"config.json: {feature}" in caught.value.message


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.norm.weight"), "1 tensor missing: norm.weight"),
        (drop("lm_head.weight"), "1 tensor missing: lm_head.weight"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(96)}),
            "1 tensor unexpected: layers.0.self_attn.q_proj.bias",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
            "1 tensor of another shape: norm.weight is [3], not [72]",
        ),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), "tensor 'decoder.norm.weight' holds NaN"),
    ],
)
def test_a_part_with_wrong_tensors(tmp_path: Path, change: Callable, message: str) -> None:
    folder, _ = qwen3(tmp_path / "decoder", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        assemble(tmp_path / "c", Sources(decoder=folder))
    assert message in caught.value.message
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "part", ["vision_base", "vision_large", "decoder", "tokenizer", "vrc", "projector_base"]
)
def test_a_part_that_is_not_there(tmp_path: Path, part: str) -> None:
    with pytest.raises(EdgeError, match="absent") as caught:
        assemble(tmp_path / "c", replace(Sources(), **{part: tmp_path / "absent"}))
    assert caught.value.exit_code == ExitCode.COULD_NOT_CHECK


# The command


def test_the_command_names_every_initialised_part_loudly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = qwen3(tmp_path / "decoder")
    capfd.readouterr()  # transformers' progress
    command.assemble(tmp_path / "c", decoder=folder)
    shown = capfd.readouterr()
    warned = " ".join(shown.err.split())
    assert warned.startswith(
        "warning: initialised and not trained: vrc, vision_base projector, vision_base tower,"
    )
    assert "decoder" not in warned
    assert shown.out.count("INITIALISED, seed 0") == 5


def test_the_command_as_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command.assemble(tmp_path / "c", preset="nano", seed=4, as_json=True)
    shown = json.loads(capfd.readouterr().out)
    assert shown["seed"] == 4
    assert {p["name"]: p["source"] for p in shown["parts"]}["decoder"] == ""


def test_mistakes_end_in_one_message_and_their_exit_code(nano_checkpoint: Path, tmp_path: Path) -> None:
    folder, _ = qwen3(tmp_path / "decoder")
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(5000)
    for arguments, exit_code, message in (
        ((nano_checkpoint, "--preset", "nano"), 2, f"error: {nano_checkpoint} exists already"),
        ((tmp_path / "c", "--preset", "nanno"), 2, "error: unknown preset 'nanno'"),
        ((tmp_path / "c", "--decoder", folder), 3, f"error: {folder}/model.safetensors is cut"),
    ):
        command_line = [sys.executable, "-m", "toolkit.cli", "assemble", *map(str, arguments)]
        done = subprocess.run(command_line, capture_output=True, text=True)
        assert done.returncode == exit_code
        assert done.stderr.startswith(message)
        assert len(done.stderr.splitlines()) == 2
        assert done.stdout == ""


# Real weights


@pytest.mark.weights
def test_smollm2_says_what_transformers_says(smollm2_folder: Path, smollm2_checkpoint: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    ours = decoder(smollm2_checkpoint)
    text = "Raspberry Pi is a series of small single-board computers developed in the United Kingdom."
    ids = AutoTokenizer.from_pretrained(smollm2_folder)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = theirs(ids).logits
    torch.testing.assert_close(logits(ours, ids), expected, **CLOSE)


@pytest.mark.weights
def test_smollm2_knows_the_capital_of_france(smollm2_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(smollm2_checkpoint)
    assert checkpoint.text_files.eos_token_ids == (2,)
    model, tokenizer = decoder(smollm2_checkpoint), AutoTokenizer.from_pretrained(smollm2_checkpoint)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    for _ in range(3):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert tokenizer.decode(ids[0]).startswith("The capital of France is Paris")
