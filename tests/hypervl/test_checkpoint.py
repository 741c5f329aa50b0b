"""A checkpoint folder is read lazily and completely, and is never written by halves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.checkpoint import Checkpoint, expected_tensors, save
from hypervl.config import preset
from hypervl.model import HyperVL, build
from hypervl.new_folder import new_folder
from hypervl.safetensors_files import TensorFiles
from rpi_runtime.errors import CheckpointError, ExitCode, ResourceError, UsageError

NORM = "decoder.norm.weight"
QUERY = "decoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def model() -> HyperVL:
    return build(preset("nano"), seed=3)


@pytest.fixture
def copy(nano_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(nano_checkpoint, tmp_path / "copy"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# What is written is what is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_saved_model_comes_back(model: HyperVL, tmp_path: Path, dtype: torch.dtype) -> None:
    save(model, tmp_path / "c", byte_tokenizer(), dtype=str(dtype).removeprefix("torch."))
    checkpoint = Checkpoint.open(tmp_path / "c")
    checkpoint.check_finite()
    assert checkpoint.config == model.config
    assert checkpoint.text_files == byte_tokenizer()
    loaded = checkpoint.load_model().state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        stored = tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(loaded[name], stored), name
    assert not checkpoint.load_component("decoder").training


@pytest.mark.parametrize("shard_bytes", [2_000_000_000, 3_000_000], ids=["one file", "shards"])
def test_the_safetensors_library_reads_what_was_written(
    model: HyperVL, tmp_path: Path, shard_bytes: int
) -> None:
    save(model, tmp_path / "c", byte_tokenizer(), shard_bytes=shard_bytes)
    files = sorted((tmp_path / "c").glob("*.safetensors"))
    theirs: dict[str, Tensor] = {}
    for file in files:
        theirs |= load_file(file)
        with safetensors.safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}  # transformers refuses a file that does not say so
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(theirs[n], t) for n, t in model.state_dict().items())
    if len(files) > 1:
        index = json.loads((tmp_path / "c/model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == [f.name for f in files]
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in theirs.values())
    opened_again = Checkpoint.open(tmp_path / "c")
    assert torch.equal(opened_again.tensor(QUERY), theirs[QUERY])


def test_float32_weights_are_mapped_and_not_copied(nano_checkpoint: Path) -> None:
    decoder = Checkpoint.open(nano_checkpoint).load_component("decoder")
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("model.safetensors"):
            begin, end = (int(x, 16) for x in line.split()[0].split("-"))
            mapped.append(range(begin, end))
    for name, parameter in decoder.named_parameters():
        assert any(parameter.data_ptr() in area for area in mapped), name


def test_the_same_model_gives_the_same_bytes(model: HyperVL, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(model, tmp_path / name, byte_tokenizer())
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert Checkpoint.open(tmp_path / "one").fingerprint() == Checkpoint.open(tmp_path / "two").fingerprint()


@pytest.mark.parametrize(
    "file",
    ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"],
)
def test_the_fingerprint_changes_with_every_file(nano_checkpoint: Path, copy: Path, file: str) -> None:
    content = bytearray((copy / file).read_bytes())
    if file == "model.safetensors":
        content[-1] ^= 1
    else:
        content += b"\n"
    (copy / file).write_bytes(content)
    assert Checkpoint.open(copy).fingerprint() != Checkpoint.open(nano_checkpoint).fingerprint()


def test_checkpoints_list_their_tensors_without_reading_them(nano_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(nano_checkpoint)
    expected = expected_tensors(checkpoint.config)
    assert {n: s.shape for n, s in checkpoint.tensors.items()} == {
        n: tuple(t.shape) for n, t in expected.items()
    }
    assert checkpoint.parameters("decoder.") == sum(
        t.numel() for t in build(checkpoint.config).decoder.state_dict().values()
    )


def test_the_documented_config_is_that_of_nano() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoint.md").read_text()
    shown = page.partition("```json\n")[2].partition("```")[0]
    assert json.loads(shown) == json.loads(json.dumps(preset("nano").to_dict()))


# What is wrong is named


def refusal(folder: Path, exit_code: ExitCode = ExitCode.COULD_NOT_CHECK) -> str:
    """The message that opening and checking `folder` ends with."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder).check_finite()
    assert caught.value.exit_code == exit_code
    assert caught.value.remedy
    return caught.value.message


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> list[Path]:
    """Splits the weights of `folder` into shards with an index."""
    checkpoint = Checkpoint.open(folder)
    save(checkpoint.load_model(), folder, checkpoint.text_files, shard_bytes=3_000_000, replace=True)
    return sorted(folder.glob("model-*.safetensors"))


def test_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"{tmp_path}/absent: no such folder"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(copy: Path, file: str) -> None:
    (copy / file).unlink()
    assert f"{copy} has n" in refusal(copy)
    assert file in refusal(copy)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(copy)
    assert "pytorch_model.bin is a pickle" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json is not JSON"),
        (b"\xff\xfe", "config.json is not JSON"),
        (b"[]", "config.json is JSON, but not an object"),
        (b'{"model_type": "llama"}', "model_type is 'llama', not 'hypervl'"),
        (b'{"model_type": "hypervl"}', "field 'vrc' is missing"),
    ],
)
def test_a_config_that_is_none(copy: Path, content: bytes, message: str) -> None:
    (copy / "config.json").write_bytes(content)
    assert message in refusal(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["decoder"].update(hiden_size=1), "unknown field 'decoder.hiden_size'"),
        (lambda c: c["decoder"].pop("hidden_size"), "field 'decoder.hidden_size' is missing"),
        (lambda c: c["decoder"].update(hidden_size="192"), "'decoder.hidden_size' is '192', expected int"),
        (lambda c: c["decoder"].update(hidden_size=-1), "decoder.hidden_size is -1, and must be above 0"),
        (lambda c: c["decoder"].update(num_key_value_heads=0), "num_key_value_heads is 0"),
        (lambda c: c["decoder"].update(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000"),
        (lambda c: c["decoder"].update(num_key_value_heads=3), "4 heads cannot share 3 key/value heads"),
        (lambda c: c["tiling"].update(tile_sides=[192, "a"]), "'tiling.tile_sides[1]' is 'a', expected int"),
        (lambda c: c["tiling"].update(tile_sides=[384, 100]), "tile side 100 px is not a multiple of 32 px"),
        (lambda c: c["tiling"].update(image_std=[0.5, 0, 0.5]), "no deviation may be 0"),
        (lambda c: c["vrc"].update(stages=[[1, 2]]), "vrc.stages: a row is not 5 numbers"),
        (lambda c: c["vrc"].update(scales=[1.0, 0.5]), "not an ascending list"),
    ],
)
def test_a_config_that_no_model_could_have(
    copy: Path, change: Callable[[dict], object], message: str
) -> None:
    edit_json(copy / "config.json", change)
    assert message in refusal(copy)


def test_a_cut_file(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole - 1000)
    assert f"is cut: its header promises {whole:,} bytes, it has {whole - 1000:,}" in refusal(copy)


@pytest.mark.parametrize("kept", [0, 5, 8, 500])
def test_a_file_cut_inside_its_header(copy: Path, kept: int) -> None:
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.truncate(kept)
    assert f"model.safetensors is cut inside its header, at {kept} bytes" in refusal(copy)


def test_a_file_that_is_something_else(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" * 9
    )
    assert "its header is not that of a safetensors file" in refusal(copy)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_either_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        files = TensorFiles.open(file)
        for name, stored in files.tensors.items():
            assert tuple(files.tensor(name).shape) == stored.shape
    except CheckpointError:
        pass


def test_a_missing_shard(copy: Path) -> None:
    shards = shard(copy)
    shards[1].unlink()
    assert refusal(copy) == f"{copy}: 1 of {len(shards)} shards missing: {shards[1].name}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a safetensors index"),
        ('{"weight_map": {"a": 3}}', "is not a safetensors index"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "shards outside its folder"),
    ],
)
def test_a_broken_index(copy: Path, content: str, message: str) -> None:
    shard(copy)
    (copy / "model.safetensors.index.json").write_text(content)
    assert message in refusal(copy)


def test_a_tensor_in_two_shards(copy: Path) -> None:
    first, second, *_ = shard(copy)
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    assert f"tensor {name!r} is in {first.name} and in {second.name}" in refusal(copy)


def test_missing_unexpected_and_misshaped_tensors_are_named(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for layer in range(4):
            del tensors[f"decoder.layers.{layer}.input_layernorm.weight"]
        tensors["decoder.rope"] = torch.zeros(2)
        tensors[QUERY] = torch.zeros(3, 4)

    edit_tensors(copy, change)
    assert refusal(copy) == (
        f"{copy} does not fit its config.json: "
        "4 tensors missing: decoder.layers.0.input_layernorm.weight, "
        "decoder.layers.1.input_layernorm.weight, decoder.layers.2.input_layernorm.weight and 1 more; "
        "1 tensor unexpected: decoder.rope; "
        f"1 tensor of another shape: {QUERY} is [3, 4], not [256, 192]"
    )


def test_weights_of_another_kind(copy: Path) -> None:
    edit_tensors(copy, lambda t: t.update({NORM: t[NORM].to(torch.int64)}))
    assert f"1 tensor of another kind: {NORM} is torch.int64" in refusal(copy)
    edit_tensors(copy, lambda t: t.update({NORM: t[NORM].to(torch.float64)}))
    assert f"tensor {NORM!r} is stored as F64" in refusal(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_that_are_not_finite(copy: Path, value: float, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in (NORM, QUERY):
            tensors[name] = tensors[name].to(dtype)
            tensors[name].view(-1)[5] = value

    edit_tensors(copy, change)
    message = refusal(copy)
    assert message.startswith(f"{copy}: 2 tensors with NaN or infinity: ")
    assert NORM in message
    assert QUERY in message


def test_the_finite_check_reads_one_component_and_reports_each_tensor(copy: Path) -> None:
    edit_tensors(copy, lambda t: t[NORM].fill_(float("nan")))
    checkpoint = Checkpoint.open(copy)
    seen: list[str] = []
    checkpoint.check_finite("vrc.", seen.append)
    assert sorted(seen) == sorted(n for n in checkpoint.tensors if n.startswith("vrc."))
    with pytest.raises(CheckpointError, match=NORM):
        checkpoint.check_finite("decoder.")


def test_a_tokenizer_that_is_none(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0"}')
    assert f"{copy}/tokenizer.json is not a tokenizer" in refusal(copy)


def test_a_tokenizer_with_more_tokens_than_the_decoder_has_rows(copy: Path) -> None:
    edit_json(copy / "config.json", lambda c: c["decoder"].update(vocab_size=260))
    assert refusal(copy) == "the tokenizer has token id 263, the decoder's vocabulary ends at 259"


def test_an_end_token_outside_the_vocabulary(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"eos_token_id": [258, 999]}')
    assert refusal(copy) == "the tokenizer has token id 999, the decoder's vocabulary ends at 767"
    (copy / "generation_config.json").write_text('{"eos_token_id": "two"}')
    assert "eos_token_id is 'two'" in refusal(copy)


def test_an_image_token_that_the_tokenizer_has_not(copy: Path) -> None:
    edit_json(copy / "config.json", lambda c: c["image_tokens"].update(row_end="<|row|>"))
    assert "image_tokens.row_end '<|row|>' is no special token" in refusal(copy)


def test_a_preprocessor_config_that_was_changed_alone(copy: Path) -> None:
    edit_json(copy / "preprocessor_config.json", lambda c: c.update(image_mean=[0.4, 0.4, 0.4]))
    assert "image_mean is [0.4, 0.4, 0.4], config.json has [0.5, 0.5, 0.5]" in refusal(copy)
    (copy / "preprocessor_config.json").unlink()
    Checkpoint.open(copy)


def test_an_unknown_tensor_name_is_answered_with_the_nearest(nano_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="decoder\\.norm\\.weight"):
        Checkpoint.open(nano_checkpoint).tensor("decoder.norm.weigth")


# Writing


def test_a_folder_that_exists_is_not_overwritten(model: HyperVL, copy: Path) -> None:
    before = files_of(copy)
    with pytest.raises(UsageError, match="exists already") as caught:
        save(model, copy, byte_tokenizer())
    assert caught.value.exit_code == ExitCode.WRONG_USAGE
    assert files_of(copy) == before


def test_replacing_swaps_the_whole_folder(model: HyperVL, copy: Path) -> None:
    (copy / "model-00001-of-00001.safetensors").write_bytes(b"of an earlier version")
    save(model, copy, byte_tokenizer(), replace=True)
    assert torch.equal(Checkpoint.open(copy).tensor(QUERY), model.state_dict()[QUERY])
    assert not (copy / "model-00001-of-00001.safetensors").exists()
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("foreign", ["thesis.tex", "photos/"])
def test_a_folder_with_anything_else_in_it_is_never_replaced(
    model: HyperVL, copy: Path, foreign: str
) -> None:
    if foreign.endswith("/"):
        (copy / foreign).mkdir()
    else:
        (copy / foreign).touch()
    before = sorted(copy.iterdir())
    with pytest.raises(UsageError, match="is not replaced"):
        save(model, copy, byte_tokenizer(), replace=True)
    assert sorted(copy.iterdir()) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError], ids=["Ctrl-C", "full disk"])
def test_an_interrupted_write_leaves_what_was_there(copy: Path, stop: type[BaseException]) -> None:
    before = files_of(copy)

    def write_half() -> None:
        with new_folder(copy, replace=True, ours=lambda _: True, needed_bytes=0) as scratch:
            (scratch / "config.json").write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert files_of(copy) == before
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_what_a_killed_run_left_behind_is_cleared(model: HyperVL, tmp_path: Path) -> None:
    left = tmp_path / ".c.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    save(model, tmp_path / "c", byte_tokenizer())
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_disk_that_is_too_small_is_found_before_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(
            ResourceError, match=r"needs 1,000,000,000,000 MB, its disk has [\d,]+ MB free"
        ) as caught,
        new_folder(tmp_path / "c", replace=False, ours=lambda _: True, needed_bytes=10**18),
    ):
        pass
    assert caught.value.exit_code == ExitCode.COULD_NOT_CHECK
    assert not list(tmp_path.iterdir())


def test_values_that_do_not_survive_the_dtype_are_not_saved(tmp_path: Path) -> None:
    model = build(preset("nano"))
    with torch.no_grad():
        model.decoder.norm.weight[0] = 1e5
    with pytest.raises(CheckpointError, match=f"tensor '{NORM}' is too large for float16"):
        save(model, tmp_path / "c", byte_tokenizer(), dtype="float16")
    with torch.no_grad():
        model.decoder.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match=f"tensor '{NORM}' holds NaN"):
        save(model, tmp_path / "c", byte_tokenizer())
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_answered_with_the_nearest(model: HyperVL, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        save(model, tmp_path / "c", byte_tokenizer(), dtype="bfloat")
    assert "'bfloat16'" in caught.value.remedy


def test_an_untied_head_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    config = preset("nano")
    config = replace(config, decoder=replace(config.decoder, tie_word_embeddings=False))
    save(build(config), tmp_path / "c", byte_tokenizer())
    assert Checkpoint.open(tmp_path / "c").tensors["decoder.lm_head.weight"].shape == (768, 192)
    edit_tensors(tmp_path / "c", lambda t: t.pop("decoder.lm_head.weight"))
    assert "1 tensor missing: decoder.lm_head.weight" in refusal(tmp_path / "c")
