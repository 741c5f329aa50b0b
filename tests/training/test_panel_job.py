"""`toolkit train base`, `decoder` and `dcl`, whole: every stage for a step or a few, on the real preset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.checkpoint import Checkpoint, save
from hypervl.model import build
from hypervl.training.panel_job import (
    PanelOptions,
    TrainingRecord,
    train_base,
    train_dcl,
    train_decoder,
    train_further,
)
from hypervl.training.stages import begin_base_branch
from rpi_runtime.errors import UsageError
from tests.conftest import MakeOnce
from tests.converters.tiny import CONFIG

SCALE = 0.0004  # of the shipped steps: one to three a stage


def options(folder: Path, name: str) -> PanelOptions:
    return PanelOptions(folder / name, folder / f"{name}.work", scale=SCALE, workers=0, device="cpu")


@pytest.fixture(scope="module")
def trained(make_once: MakeOnce) -> Path:
    """A folder with the checkpoint `base`, its work folder, and what `train_base` returned."""

    def make(folder: Path) -> None:
        record = train_base("nano", options(folder, "base"))
        (folder / "record.json").write_text(json.dumps(dataclasses.asdict(record), default=str))

    return make_once("panel-training", make)


def test_all_stages_run_and_leave_a_record_and_curves(trained: Path) -> None:
    record = json.loads((trained / "base.work" / "base.json").read_text())
    stages = [stage["stage"] for stage in record["stages"]]
    assert stages == ["primer_large", "dense_large", "answers", "joint", "dense_base"]
    assert all(stage["steps"] >= 1 and stage["metrics"]["loss"] > 0 for stage in record["stages"])
    assert {"torch", "numpy", "hypervl-edge"} <= record["versions"].keys()
    assert record["seed"] == 0
    assert record["data_version"] >= 1
    for curve in record["curves"]:
        assert Path(curve).read_bytes().startswith(b"\x89PNG")
    assert json.loads((trained / "record.json").read_text()) == record


def test_the_checkpoint_is_whole_and_in_half_precision(trained: Path) -> None:
    checkpoint = Checkpoint.open(trained / "base")
    checkpoint.check_finite()
    stored = {t.dtype for t in checkpoint.tensors.values() if t.dtype.is_floating_point}
    assert stored == {torch.float16}
    assert "<image>" in checkpoint.text_files.special_tokens


def test_a_training_that_is_done_is_not_done_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    again = dataclasses.replace(options(trained, "base"), output=tmp_path / "again")
    train_base("nano", again, lambda stage, step: steps.append(stage))
    assert not steps
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (trained / "base" / name).read_bytes()


def test_the_base_branch_alone_changes_under_consistency(trained: Path, tmp_path: Path) -> None:
    record = train_dcl(trained / "base", "both", options(tmp_path, "dcl"))
    assert isinstance(record, TrainingRecord)
    (stage,) = record.stages
    assert {"answers", "kl", "features", "exact", "exact_large"} <= stage.metrics.keys()
    before, after = Checkpoint.open(trained / "base"), Checkpoint.open(tmp_path / "dcl")
    changed = {n.split(".")[0] for n in before.tensors if not torch.equal(before.tensor(n), after.tensor(n))}
    assert changed == {"vision_base"}


def test_terms_that_are_left_out_are_not_in_the_loss(trained: Path, tmp_path: Path) -> None:
    (stage,) = train_dcl(trained / "base", "none", options(tmp_path, "dcl")).stages
    assert not {"kl", "features"} & stage.metrics.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, "holds the work of another training: seed differ"),
        ({"output": Path("base")}, "exists"),
        ({"scale": 0.0}, "--scale 0"),
        ({"scale": float("nan")}, "--scale nan"),
        ({"workers": -1}, "--workers -1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    trained: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    output = change.pop("output", None)
    asked = dataclasses.replace(
        options(trained, "base"), output=trained / "base" if output else tmp_path / "new", **change
    )
    with pytest.raises(UsageError, match=words):
        train_base("nano", asked)


def test_a_folder_of_somebody_else_is_refused_at_once(tmp_path: Path) -> None:
    """As the checkpoint to replace, and as the folder to work in."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    asked = options(tmp_path, "new")
    with pytest.raises(UsageError, match=r"mine holds 'notes\.txt', and is not replaced"):
        train_base("nano", dataclasses.replace(asked, output=mine, replace=True))
    with pytest.raises(UsageError, match=r"mine holds other files, and no training\.json"):
        train_base("nano", dataclasses.replace(asked, work=mine))
    assert [file.name for file in mine.iterdir()] == ["notes.txt"]
    assert list(tmp_path.iterdir()) == [mine]


def test_unknown_names_are_answered_with_the_nearest(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown consistency 'bth'"):
        train_dcl(trained / "base", "bth", options(tmp_path, "dcl"))
    with pytest.raises(UsageError, match="without a convolutional stem"):
        train_base("0.6b", options(tmp_path, "base"))


def test_the_base_branch_begins_as_every_other_layer_of_the_large_one(trained: Path) -> None:
    model = Checkpoint.open(trained / "base").load_model()
    begin_base_branch(model)
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("vision_base."):
            other = name.replace("vision_base", "vision_large").replace(".layers.1.", ".layers.2.")
            assert torch.equal(tensor, tensors[other]), name


def test_and_then_learns_to_read_with_them(trained: Path) -> None:
    opened = Checkpoint.open(trained / "base")
    begun = opened.load_model()
    begin_base_branch(begun)
    learned = opened.load_model().vision_base.state_dict()
    start = begun.vision_base.state_dict()
    floats = [name for name in start if start[name].is_floating_point()]
    moved = {name: float((learned[name] - start[name]).abs().max()) for name in floats}
    assert max(moved.values()) < 0.1, "it begins there and nowhere else"
    assert sum(change > 0 for change in moved.values()) > 0.5 * len(moved)


def test_a_checkpoint_is_trained_further(trained: Path, tmp_path: Path) -> None:
    record = train_further(trained / "base", dataclasses.replace(options(tmp_path, "more"), seed=1))
    assert [stage.stage for stage in record.stages] == [
        "heads",
        "dense_large",
        "joint",
        "dense_base",
    ]
    before, after = Checkpoint.open(trained / "base"), Checkpoint.open(tmp_path / "more")
    assert before.config == after.config
    changed = {n.split(".")[0] for n in before.tensors if not torch.equal(before.tensor(n), after.tensor(n))}
    assert changed == {"vision_base", "vision_large", "decoder"}
    assert (tmp_path / "more" / "tokenizer.json").read_bytes() == (
        trained / "base" / "tokenizer.json"
    ).read_bytes()


def test_a_new_decoder_learns_behind_the_branches_of_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    asked = dataclasses.replace(options(tmp_path, "new"), seed=1)
    shown: list[tuple[str, int, int]] = []
    record = train_decoder(
        trained / "base", "nano", asked, lambda stage, step: shown.append((stage, step.step, step.steps))
    )
    assert [stage.stage for stage in record.stages] == ["answers"]
    assert {"answers", "pointing", "facts", "exact"} <= record.stages[0].metrics.keys()
    assert shown[0] == ("answers: pictures", 1, 1)
    before, after = Checkpoint.open(trained / "base"), Checkpoint.open(tmp_path / "new")
    changed = {n.split(".")[0] for n in before.tensors if not torch.equal(before.tensor(n), after.tensor(n))}
    assert changed == {"decoder"}
    norms = [after.tensor(n) for n in after.tensors if n.endswith(("q_norm.weight", "k_norm.weight"))]
    assert all(1.5 < float(norm.mean()) < 2.5 for norm in norms)


def test_a_decoder_of_another_width_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"preset 0\.6b has hidden_size 1024, .*base has 192"):
        train_decoder(trained / "base", "0.6b", options(tmp_path, "new"))
    assert not (tmp_path / "new.work").exists()


def test_branches_that_differ_in_more_than_their_layers_are_refused(tmp_path: Path) -> None:
    model = build(CONFIG)
    save(model, tmp_path / "tiny", byte_tokenizer())
    with pytest.raises(UsageError, match="no shorter copy of the large one"):
        train_further(tmp_path / "tiny", options(tmp_path, "more"))
