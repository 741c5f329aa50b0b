"""The reference answers as transformers would, with the same weights and the same pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel, pipeline
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.checkpoint import Checkpoint
from hypervl.config import TilingConfig, VisionConfig, preset
from hypervl.generate import generate
from hypervl.model import HyperVL, build
from rpi_runtime.errors import UsageError
from rpi_runtime.prompt import IMAGE, Message, VisualRun
from rpi_runtime.tokenizer import TextCodec

_TRAINED_SHAPE = preset("nano")


def _without_stem(config: VisionConfig) -> VisionConfig:
    return dataclasses.replace(config, image_size=192, stem_channels=(), stem_dilations=(), rotary=False)


# transformers' SigLIP, which is compared with here, has neither stem nor rotary positions; small tiles are
# quickly encoded.
NANO = dataclasses.replace(
    _TRAINED_SHAPE,
    vrc=dataclasses.replace(_TRAINED_SHAPE.vrc, scales=(0.25, 0.5, 0.75, 1.0)),
    vision_base=_without_stem(_TRAINED_SHAPE.vision_base),
    vision_large=_without_stem(_TRAINED_SHAPE.vision_large),
    tiling=TilingConfig(tile_side=192, tile_sides=(192, 128, 64), max_tiles=12),
)
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def model() -> HyperVL:
    return build(NANO)


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    byte_tokenizer().write(tmp_path)
    return TextCodec.from_checkpoint(tmp_path)


def photo(side: int = 192) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize((side, side), Image.Resampling.BICUBIC)


def qwen3(model: HyperVL) -> Qwen3ForCausalLM:
    """transformers' decoder with the weights of `model`."""
    shape = {k: v for k, v in dataclasses.asdict(NANO.decoder).items() if k not in ("qk_norm", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": NANO.decoder.rope_theta}
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=rope)).eval()
    state = {f"model.{name}": tensor for name, tensor in model.decoder.state_dict().items()}
    theirs.load_state_dict({**state, "lm_head.weight": model.decoder.embed_tokens.weight})
    return theirs


def siglip_tokens(model: HyperVL, picture: Image.Image) -> Tensor:
    """Visual tokens of one 192 px tile: transformers' SigLIP, SmolVLM's pixel shuffle, a plain MLP."""
    config = NANO.vision_base
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            vision_use_head=False,
        )
    ).eval()
    tower.load_state_dict({k: v for k, v in model.vision_base.state_dict().items() if "projector" not in k})
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1).unsqueeze(0)
    patches = tower(pixels).last_hidden_state
    shuffled = Idefics3Connector.pixel_shuffle(None, patches, scale_factor=config.pixel_shuffle)
    projector = model.vision_base.projector
    hidden = nn.functional.layer_norm(
        shuffled, shuffled.shape[-1:], projector.norm.weight, projector.norm.bias, config.layer_norm_eps
    )
    return projector.linear_2(nn.functional.gelu(projector.linear_1(hidden), approximate="tanh"))


def continued(theirs: Qwen3ForCausalLM, codec: TextCodec, embeddings: Tensor, count: int) -> list[int]:
    """transformers' greedy answer; logits behind the tokenizer's last id are padding, as everywhere."""
    padding = list(range(codec.vocab_size, NANO.decoder.vocab_size))
    out = theirs.generate(
        inputs_embeds=embeddings,
        max_new_tokens=count,
        do_sample=False,
        suppress_tokens=padding,
        eos_token_id=list(codec.eos_token_ids),
        pad_token_id=0,
    )
    ids = out[0].tolist()
    return ids[: next((i for i, token in enumerate(ids) if token in codec.eos_token_ids), len(ids))]


@torch.no_grad()
def test_a_text_is_continued_as_transformers_continues_it(model: HyperVL, codec: TextCodec) -> None:
    answer = generate(model, codec, [], QUESTION, max_new_tokens=24)
    one = codec.token
    asked = [one("<|im_start|>"), *b"user\n", *QUESTION.encode(), one("<|im_end|>"), *b"\n"]
    ids = [*asked, one("<|im_start|>"), *b"assistant\n"]
    embeddings = model.decoder.embed_tokens(torch.tensor([ids]))
    assert list(answer.token_ids) == continued(qwen3(model), codec, embeddings, 24)
    assert len(set(answer.token_ids)) > 3


@torch.no_grad()
def test_visual_tokens_equal_those_of_transformers_parts(model: HyperVL) -> None:
    pixels = torch.from_numpy(np.asarray(photo(), np.float32) / 255).unsqueeze(0)
    assert (model.vision_base(pixels) - siglip_tokens(model, photo())).abs().max() < 1e-4


@torch.no_grad()
def test_a_picture_is_answered_as_transformers_parts_answer_it(model: HyperVL, codec: TextCodec) -> None:
    answer = generate(model, codec, [photo()], QUESTION, routing="fixed:1", max_new_tokens=24)
    embed, one = model.decoder.embed_tokens, codec.token

    def text(ids: list[int]) -> Tensor:
        return embed(torch.tensor([ids]))

    embeddings = torch.cat(
        [
            text([one("<|im_start|>"), *b"user\n", one("<image>"), one("<tile>")]),
            siglip_tokens(model, photo()),
            text([one("<row>"), one("</image>"), *QUESTION.encode(), one("<|im_end|>"), *b"\n"]),
            text([one("<|im_start|>"), *b"assistant\n"]),
        ],
        dim=1,
    )
    assert answer.prompt.tokens == embeddings.shape[1]
    assert list(answer.token_ids) == continued(qwen3(model), codec, embeddings, 24)


def test_pictures_change_the_answer(model: HyperVL, codec: TextCodec) -> None:
    coffee = Image.fromarray(skimage.data.coffee())
    answers = {generate(model, codec, [p], QUESTION, max_new_tokens=12).token_ids for p in (photo(), coffee)}
    assert len(answers) == 2


@pytest.mark.parametrize(("routing", "side"), [("fixed:1", 192), ("fixed:0.5", 128), ("fixed:0.1", 64)])
def test_a_fixed_scale_is_rounded_up_to_a_side(
    model: HyperVL, codec: TextCodec, routing: str, side: int
) -> None:
    answer = generate(model, codec, [photo(384)], QUESTION, routing=routing, max_new_tokens=1)
    (plan,) = answer.plans
    assert (plan.columns, plan.rows, plan.thumbnail) == (2, 2, True)
    assert plan.sides == (side,) * 5
    assert answer.prompt.visual_tokens == 5 * (side // 32) ** 2


@pytest.mark.parametrize("routing", ["tile", "image"])
def test_the_vrc_chooses_the_side_of_its_most_likely_scale(
    model: HyperVL, codec: TextCodec, routing: str
) -> None:
    wanted = build(NANO)
    nn.init.zeros_(wanted.vrc.linear_2.weight)
    for scale, side in enumerate((64, 128, 192, 192)):  # 0.25, 0.5, 0.75, 1.0 of 192 px, rounded up
        wanted.vrc.linear_2.bias.data = torch.eye(4)[scale]
        answer = generate(wanted, codec, [photo(384)], QUESTION, routing=routing, max_new_tokens=1)
        assert set(answer.plans[0].sides) == {side}


def test_sides_that_a_bundle_lacks_are_not_used(model: HyperVL, codec: TextCodec) -> None:
    answer = generate(
        model, codec, [photo()], QUESTION, routing="fixed:0.5", max_new_tokens=1, tile_sides=(192, 64)
    )
    assert answer.plans[0].sides == (192,)


@pytest.mark.parametrize(("scale", "branch"), [("1", "large"), ("0.5", "base")])
def test_the_automatic_branch_follows_the_sides(
    model: HyperVL, codec: TextCodec, scale: str, branch: str
) -> None:
    def ask(policy: str) -> tuple[str, tuple[int, ...]]:
        routing = f"fixed:{scale}"
        answer = generate(
            model, codec, [photo()], QUESTION, routing=routing, branch=policy, max_new_tokens=12
        )
        return answer.plans[0].branch, answer.token_ids

    assert ask("auto") == ask(branch)
    assert ask("base")[1] != ask("large")[1]


def test_several_pictures_stand_where_the_messages_have_them(model: HyperVL, codec: TextCodec) -> None:
    messages = [Message("user", ("Left: ", IMAGE, " Right: ", IMAGE, " Which?"))]
    coffee = Image.fromarray(skimage.data.coffee()).resize((192, 192))
    answer = generate(model, codec, [photo(), coffee], messages, max_new_tokens=12)
    runs = [run for run in answer.prompt.runs if isinstance(run, VisualRun)]
    assert [run.image for run in runs] == [0, 1]
    assert [plan.digest for plan in answer.plans] == [run.key.digest for run in runs]
    twice_the_same = generate(model, codec, [photo(), photo()], messages, max_new_tokens=12)
    assert answer.token_ids != twice_the_same.token_ids
    with pytest.raises(UsageError, match="place for 2 pictures, and 1 are given"):
        generate(model, codec, [photo()], messages)


def test_an_id_that_only_pads_the_head_is_never_taken(codec: TextCodec) -> None:
    padded = build(NANO)
    rows = padded.decoder.embed_tokens.weight.data
    rows[codec.vocab_size :] *= 100  # one of them would win every time
    answer = generate(padded, codec, [], QUESTION, max_new_tokens=8)
    assert max(answer.token_ids) < codec.vocab_size


def test_it_ends_where_the_model_ends(model: HyperVL, codec: TextCodec) -> None:
    unended = generate(model, codec, [], QUESTION, max_new_tokens=8)
    assert not unended.ended
    assert len(unended.token_ids) == 8
    codec.eos_token_ids = (unended.token_ids[5],)
    ended = generate(model, codec, [], QUESTION, max_new_tokens=8)
    assert ended.ended
    assert ended.token_ids == unended.token_ids[: unended.token_ids.index(unended.token_ids[5])]


@pytest.mark.weights
@torch.no_grad()
def test_a_real_language_model_answers_as_in_transformers(
    smollm2_folder: Path, smollm2_checkpoint: Path
) -> None:
    """SmolLM2-135M-Instruct: its decoder, its tokenizer, its chat template."""
    model, codec = (
        Checkpoint.open(smollm2_checkpoint).load_model(),
        TextCodec.from_checkpoint(smollm2_checkpoint),
    )
    question = "What is the capital of France?"
    answer = generate(model, codec, [], question, max_new_tokens=24)
    theirs = pipeline("text-generation", model=str(smollm2_folder), device="cpu", dtype=torch.float32)
    chat = theirs([{"role": "user", "content": question}], max_new_tokens=24, do_sample=False)
    assert answer.text == chat[0]["generated_text"][-1]["content"]
    assert "Paris" in answer.text
