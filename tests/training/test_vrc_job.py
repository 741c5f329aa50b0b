"""`toolkit train vrc` as a whole: what is written, resumed, reported and refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hypervl.checkpoint import Checkpoint
from hypervl.training.vrc_evaluation import Measured
from hypervl.training.vrc_job import VRCOptions, choose, train_vrc
from hypervl.training.vrc_report import Trial, VRCReport
from hypervl.training.vrc_training import TrainSettings
from rpi_runtime.errors import CheckpointError, ImageError, UsageError
from tests.training.vrc_samples import CONFIG, write_data, write_tiny

ROOT = Path(__file__).resolve().parents[2]
SHORT = TrainSettings(epochs=2, batch_views=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model", dtype="float16")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "panels", pictures=9)


def options(tiny: Path, data: Path, folder: Path, **changed: object) -> VRCOptions:
    plain = VRCOptions(tiny, data, folder / "new", folder / "work", eps=(0.02,), training=SHORT)
    return dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> VRCReport:
    return train_vrc(options(tiny, data, tmp_path_factory.mktemp("done"), eps=(0.01, 0.05)))


def test_only_the_vrc_changes(tiny: Path, done: VRCReport) -> None:
    old, new = Checkpoint.open(tiny), Checkpoint.open(done.output)
    assert new.config == old.config
    assert new.text_files.files == old.text_files.files
    changed = set()
    for name, stored in old.tensors.items():
        before, after = old.tensor_files.tensor(name), new.tensor_files.tensor(name)
        assert new.tensors[name].dtype == stored.dtype
        if before.reshape(-1).view(torch.uint8).tolist() != after.reshape(-1).view(torch.uint8).tolist():
            changed.add(name.partition(".")[0])
    assert changed == {"vrc"}


def test_the_report_says_what_was_done(done: VRCReport) -> None:
    told = json.loads((done.work / "report.json").read_text())
    assert told["settings"]["seed"] == 0
    assert {"torch", "numpy", "hypervl-edge"} <= told["versions"].keys()
    assert len(told["data_sha256"]) == len(told["checkpoint_sha256"]) == 64
    assert [trial["eps"] for trial in told["tried"]] == [0.01, 0.05]
    trial = told["chosen"]
    assert trial["steps"] > 0
    assert sum(map(sum, trial["confusion"])) > 0
    assert trial["ideal"]["loss_full"] == trial["after"]["loss_full"] == told["before"]["loss_full"]
    assert 0 < trial["after"]["tokens_kept"] <= 1
    assert Path(trial["curve"]).read_bytes().startswith(b"\x89PNG")


def test_labels_and_pictures_are_listed(done: VRCReport) -> None:
    lines = [json.loads(line) for line in (done.work / "labels.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 9
    trial = next(t for t in done.tried if t.eps == 0.01)
    held_out = sum(map(sum, trial.confusion))
    tiles = sum(len(line["sides"]) for line in lines if line["eps"] == 0.01)
    assert sum(trial.labels) + held_out == tiles


def test_a_second_run_computes_nothing_again_and_writes_the_same(
    tiny: Path, data: Path, done: VRCReport, tmp_path: Path
) -> None:
    losses = (done.work / "losses.jsonl").read_bytes()
    trained = sorted(p.stat().st_mtime_ns for p in done.work.glob("state-*.pt"))
    again = train_vrc(
        options(tiny, data, tmp_path, eps=(0.01, 0.05), work=done.work, output=tmp_path / "again")
    )
    assert (done.work / "losses.jsonl").read_bytes() == losses
    assert sorted(p.stat().st_mtime_ns for p in done.work.glob("state-*.pt")) == trained
    assert dataclasses.replace(again, output=done.output) == done
    assert (again.output / "model.safetensors").read_bytes() == (
        done.output / "model.safetensors"
    ).read_bytes()


def test_the_routed_loss_is_that_of_the_written_checkpoint(
    data: Path, done: VRCReport, tmp_path: Path
) -> None:
    """Its VRC as the old one of another training routes as was reported: nothing is lost in writing."""
    again = train_vrc(options(done.output, data, tmp_path, training=TrainSettings(epochs=1, batch_views=8)))
    assert again.before == done.chosen.after


def test_for_image_routing_the_whole_picture_has_one_label(tiny: Path, data: Path, tmp_path: Path) -> None:
    plenty = write_data(tmp_path / "plenty", pictures=12)
    report = train_vrc(options(tiny, plenty, tmp_path, routing="image"))
    assert sum(report.chosen.labels) == report.pictures == 11


def test_validation_pictures_may_come_from_elsewhere(tiny: Path, data: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", pictures=2, seed=5)
    report = train_vrc(options(tiny, data, tmp_path, data_validation=other))
    assert (report.pictures, report.pictures_validation) == (9, 2)
    assert report.before.questions == 4


def test_a_router_that_sees_the_question_is_measured_beside_the_plain_one(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    report = train_vrc(options(tiny, data, tmp_path, with_question=True))
    tried = report.question
    assert tried is not None
    assert tried.plain == report.chosen.after
    assert tried.ideal.tokens_kept <= report.chosen.ideal.tokens_kept + 1e-9
    assert 0 <= tried.accuracy <= 1
    assert {p.name for p in report.output.iterdir()} == {p.name for p in tiny.iterdir()}


def measured(tokens_kept: float, loss: float) -> Trial:
    after = Measured(loss, 1.0, tokens_kept, 10)
    return Trial(0.1, (), (), 1, 1, 1, after, after, Path())


def test_of_several_eps_the_fewest_tokens_within_the_tolerance_are_taken() -> None:
    trials = [measured(0.8, 1.0), measured(0.5, 1.02), measured(0.3, 1.2)]
    assert choose(trials, 0.02, 0.5) == 1
    assert choose(trials, 0.5, 0.5) == 2
    assert choose(trials[2:] + trials[1:2], 0.0, 0.5) == 1


# What is refused.


def test_too_few_pictures_to_split_are_refused(tiny: Path, tmp_path: Path) -> None:
    few = write_data(tmp_path / "few", pictures=3)
    with pytest.raises(UsageError, match="3 different pictures are too few"):
        train_vrc(options(tiny, few, tmp_path))


def test_too_few_views_are_refused_before_the_model_answers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypervl.training.vrc_job.Trials", None)
    few = write_data(tmp_path / "few", pictures=5)
    with pytest.raises(UsageError, match="4 views to train on and 1 to validate with are too few"):
        train_vrc(options(tiny, few, tmp_path, routing="image"))


def test_a_folder_of_somebody_else_is_refused_at_once(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds 'images', and is not replaced"):
        train_vrc(options(tiny, data, tmp_path, output=data, replace=True))
    with pytest.raises(UsageError, match=r"holds other files, and no losses\.jsonl"):
        train_vrc(options(tiny, data, tmp_path, work=data))


def test_a_bundle_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle, not a checkpoint"):
        train_vrc(options(tmp_path / "bundle", data, tmp_path))


def test_an_existing_checkpoint_is_replaced_only_by_force(tiny: Path, data: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "new")
    with pytest.raises(UsageError, match="exists already"):
        train_vrc(options(tiny, data, tmp_path))
    train_vrc(options(tiny, data, tmp_path, replace=True))


def test_a_checkpoint_with_one_side_has_nothing_to_choose(data: Path, tmp_path: Path) -> None:
    tiling = dataclasses.replace(CONFIG.tiling, tile_sides=(96,))
    single = write_tiny(tmp_path / "single", config=dataclasses.replace(CONFIG, tiling=tiling))
    with pytest.raises(CheckpointError, match="lead to tiles of 96 px"):
        train_vrc(options(single, data, tmp_path))


def test_a_checkpoint_without_a_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    (write_tiny(tmp_path / "mute") / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        train_vrc(options(tmp_path / "mute", data, tmp_path))


def test_a_file_that_is_no_picture_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "panels", pictures=5)
    (folder / "images" / "3.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"3\.png"):
        train_vrc(options(tiny, folder, tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"branch": "bse"}, "unknown branch"),
        ({"routing": "fixed"}, "unknown routing"),
        ({"device": "tpu"}, "unknown device"),
        ({"eps": (-0.1,)}, "eps is -0.1"),
        ({"eps": (0.1, float("nan"))}, "eps is nan"),
        ({"floor": float("inf")}, "floor is inf"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"training": TrainSettings(caution=float("nan"))}, "caution is nan"),
        ({"floor": 0.0}, "floor is 0"),
        ({"data_validation": Path("nowhere")}, "no such folder"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    tiny: Path, data: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_vrc(options(tiny, data, tmp_path, **changed))
    assert not any(tmp_path.iterdir())


# As a user types it.


def toolkit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_command_shows_labels_and_what_routing_costs(tiny: Path, data: Path, done: VRCReport) -> None:
    shown = toolkit(
        "train", "vrc", tiny, "--data", data, "-o", done.output, "--work", done.work, "--epochs", 1,
        "--eps", "0.01,0.05", "--force",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    for row in ("tried on validation", "every tile at the full side", "after", "the labels themselves"):
        assert row in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_the_command_prints_json_alone(tiny: Path, data: Path, done: VRCReport, tmp_path: Path) -> None:
    shown = toolkit(
        "train", "vrc", tiny, "--data", data, "-o", tmp_path / "new", "--work", done.work, "--epochs", 1,
        "--json",
    )  # fmt: skip
    assert json.loads(shown.stdout)["chosen"]["eps"] == 0.05
    assert shown.stderr == ""


def test_a_wrong_eps_is_wrong_usage(tiny: Path, data: Path, tmp_path: Path) -> None:
    shown = toolkit("train", "vrc", tiny, "--data", data, "-o", tmp_path / "new", "--eps", "small")
    assert shown.returncode == 2
    assert "--eps 'small' is not a number" in shown.stderr
