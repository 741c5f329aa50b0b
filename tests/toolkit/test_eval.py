"""`toolkit eval` as a user types it: tables, JSON, a folder that goes on, mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rpi_runtime.errors import UsageError
from rpi_runtime.manifest import MANIFEST_FILE, from_json, to_json
from tests.vqa import photo_questions
from toolkit.eval_models import open_models
from vqa.dataset import QUESTIONS_FILE

ROOT = Path(__file__).resolve().parents[2]
Toolkit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_questions.write(tmp_path_factory.mktemp("photos") / "data")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "XDG_CACHE_HOME": cache, "TERM": "dumb"}


@pytest.fixture(scope="module")
def evaluate(environment: dict[str, str], data: Path) -> Toolkit:
    """Runs `toolkit eval` on the small dataset, with short answers on one thread."""

    def run(*arguments: str | Path, data: Path = data) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(data, *arguments), env=environment, capture_output=True, text=True, cwd=data.parent
        )

    return run


def command(data: Path, *arguments: str | Path) -> list[str]:
    fixed = ["--data", data, "--max-new-tokens", "3", "--threads", "1"]
    return [sys.executable, "-m", "toolkit.cli", "eval", *map(str, [*fixed, *arguments])]


def test_every_combination_is_a_row(evaluate: Toolkit, nano_bundle: Path) -> None:
    ways = ["--route", "fixed:1", "--route", "tile", "--branch", "base", "--branch", "large"]
    done = evaluate(nano_bundle, *ways, "--by-type")
    assert done.returncode == 0, done.stderr
    for arm in ("fixed:1 base", "tile base", "fixed:1 large", "tile large"):
        assert done.stdout.count(f" {arm} ") == 2  # answers, costs
        assert f"{arm}: % per question type" in done.stdout
        assert f"{arm}: % per height" in done.stdout
    assert "questions: 7, pictures: 3" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json_holds_every_answer_and_the_ratios(evaluate: Toolkit, nano_bundle: Path) -> None:
    done = evaluate(
        nano_bundle, "--route", "fixed:1.0", "--route", "fixed:1", "--route", "fixed:0.3", "--json"
    )
    result = json.loads(done.stdout)
    full, small = result["arms"]  # 1.0 and 1 are one arm
    assert (full["label"], small["label"]) == ("nano fixed:1 base", "nano fixed:0.3 base")
    assert len(result["answers"]) == 2 * result["questions"] == 14
    assert full["agreement"] == 1.0
    assert full["cost"]["saved"] == 0.0
    assert small["cost"]["saved"] > 0.8
    assert full["scores"]["exact"]["asked"] == 7


def test_bundle_and_checkpoint_stand_side_by_side(
    evaluate: Toolkit, nano_bundle: Path, routing_checkpoint: Path
) -> None:
    done = evaluate(nano_bundle, routing_checkpoint, "--limit", "3", "--json")
    assert done.returncode == 0, done.stderr
    device, reference = json.loads(done.stdout)["arms"]
    assert (device["model"], reference["model"]) == ("nano", "routing")
    assert reference["agreement"] == 1.0
    assert reference["cost"]["visual_tokens"] == device["cost"]["visual_tokens"]
    assert "routing cuts pictures as its bundle does: tiles of 192, 64 px" in done.stderr


def test_a_folder_keeps_answers_report_and_plots_and_goes_on(
    evaluate: Toolkit, nano_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    assert evaluate(nano_bundle, "-o", out, "--limit", "1").returncode == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 3
    done = evaluate(nano_bundle, "-o", out, "--json")
    assert f"{out} holds 3 answers of an earlier run" in done.stderr.replace("\n", "")
    result = json.loads(done.stdout)
    del result["answers"]
    assert json.loads((out / "report.json").read_text()) == result
    assert len((out / "results.jsonl").read_text().splitlines()) == 7
    for plot in ("accuracy.png", "text_size.png"):
        assert Image.open(out / plot).size == (960, 600)


def test_answers_to_other_questions_are_not_mixed(
    evaluate: Toolkit, nano_bundle: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(nano_bundle, "-o", out, "--limit", "1")
    before = (out / "results.jsonl").read_bytes()
    shutil.copytree(data, tmp_path / "other")
    lines = (data / QUESTIONS_FILE).read_text().replace("an astronaut", "a pilot")
    (tmp_path / "other" / QUESTIONS_FILE).write_text(lines)
    done = evaluate(nano_bundle, "-o", out, data=tmp_path / "other")
    assert done.returncode == 2
    assert "the questions or their pictures have changed" in done.stderr
    assert (out / "results.jsonl").read_bytes() == before


def test_control_c_keeps_the_answers_and_says_how_to_go_on(
    environment: dict[str, str], data: Path, nano_bundle: Path, tmp_path: Path
) -> None:
    many = _repeated(data, tmp_path / "many", 60)
    out = tmp_path / "out"
    process = subprocess.Popen(
        ["nice", "-n", "19", *command(many, nano_bundle, "-o", out)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    results = out / "results.jsonl"
    deadline = time.monotonic() + 120
    while not (results.exists() and results.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    answered = len(results.read_text().splitlines())
    assert 0 < answered < 420
    assert f"{answered} answers are in {out}; the same command goes on from there." in stderr
    assert "Traceback" not in stderr


def _repeated(data: Path, folder: Path, times: int) -> Path:
    """The same pictures under many names."""
    lines = []
    for number in range(times):
        shutil.copytree(data / "images", folder / "images" / str(number))
        for line in (data / QUESTIONS_FILE).read_text().splitlines():
            record = json.loads(line)
            record |= {"id": f"{number}-{record['id']}", "image": record["image"].replace("/", f"/{number}/")}
            lines.append(json.dumps(record))
    (folder / QUESTIONS_FILE).write_text("\n".join(lines))
    return folder


def test_a_budget_is_kept_by_every_arm_or_refused(evaluate: Toolkit, nano_bundle: Path) -> None:
    ways = [nano_bundle, "--route", "fixed:0.25", "--limit", "2", "--json"]
    free = json.loads(evaluate(*ways).stdout)
    refused = evaluate(*ways, "--memory", "50MB")
    assert refused.returncode == 3
    assert "a memory budget of 50 MB is too small" in refused.stderr
    least = int(refused.stderr.split("Give ")[1].split()[0]) + 4
    kept = json.loads(evaluate(*ways, "--memory", f"{least}MB").stdout)
    assert kept["arms"][0]["cost"]["peak_resident_bytes"] <= least * 1_000_000
    assert kept["arms"][0]["scores"] == free["arms"][0]["scores"]


def test_a_required_accuracy_is_a_check(evaluate: Toolkit, nano_bundle: Path) -> None:
    assert evaluate(nano_bundle, "--limit", "1", "--min-accuracy", "0").returncode == 0
    done = evaluate(nano_bundle, "--limit", "1", "--min-accuracy", "0.92")
    assert done.returncode == 1
    assert "exact match is 0.0%, below 92.0%" in done.stderr
    assert "questions: 3, pictures: 1" in done.stdout
    assert evaluate(nano_bundle, "--min-accuracy", "92").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nano"], "nano: no such folder", 3),
        (["data"], "is not a bundle", 3),
        (["BUNDLE", "--route", "fixed:7"], "fixed:7", 2),
        (["BUNDLE", "--branch", "huge"], "unknown branch 'huge'", 2),
        (["BUNDLE", "--threads", "99999"], "threads is 99999", 2),
        (["BUNDLE", "--threads", "0"], "threads is 0", 2),
        (["BUNDLE", "-o", "data"], "data holds other files", 2),
        (["BUNDLE", "-o", f"data/{QUESTIONS_FILE}"], "is a file", 2),
        (["BUNDLE", "-o", "/proc/out"], "/proc/out", 3),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(
    arguments: list[str], message: str, code: int, evaluate: Toolkit, nano_bundle: Path
) -> None:
    done = evaluate(*(nano_bundle if a == "BUNDLE" else a for a in arguments))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_datasets_are_refused_before_anything_is_asked(
    evaluate: Toolkit, nano_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = evaluate(nano_bundle, "-o", out, data=tmp_path)
    assert (done.returncode, f"has no {QUESTIONS_FILE}" in done.stderr) == (2, True)
    (tmp_path / QUESTIONS_FILE).write_text('{"image": "a.jpg", "question": "?", "answer": "1"}\n{')
    (tmp_path / "a.jpg").touch()
    done = evaluate(nano_bundle, "-o", out, data=tmp_path)
    assert (done.returncode, f"{QUESTIONS_FILE}:2: not JSON" in done.stderr) == (2, True)
    assert not out.exists()


def test_a_bundle_for_text_only_cannot_be_asked(evaluate: Toolkit, nano_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(nano_bundle, folder)
    manifest = from_json((folder / MANIFEST_FILE).read_text())
    decoder = tuple(c for c in manifest.components if c.name == "decoder")
    less = dataclasses.replace(manifest, components=decoder, vision=None)
    (folder / MANIFEST_FILE).write_text(to_json(less))
    done = evaluate(folder)
    assert done.returncode == 2
    assert "has no vision branch, so it cannot be asked about pictures" in done.stderr


def test_a_checkpoint_needs_pytorch(nano_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.eval_models.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="is a checkpoint, and torch is not installed") as raised:
        open_models([nano_checkpoint], threads=1, max_new_tokens=3)
    assert "pip install '.[convert]'" in raised.value.remedy


def test_models_of_one_folder_name_are_told_apart(nano_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_checkpoint, tmp_path / "nano")
    paths = [nano_checkpoint, tmp_path / "nano", nano_checkpoint]
    assert [m.name for m in open_models(paths, threads=1, max_new_tokens=3)] == [*map(str, paths[:2])]


def test_without_matplotlib_everything_but_the_plots_is_there(
    environment: dict[str, str], data: Path, nano_bundle: Path, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "matplotlib.py").write_text("raise ImportError('hidden')")
    done = subprocess.run(
        command(data, nano_bundle, "--limit", "1", "-o", tmp_path / "out"),
        env={**environment, "PYTHONPATH": f"{hidden}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert "no plots: not installed: matplotlib" in done.stderr
    assert "pip install '.[train]'" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.json",
        "results.jsonl",
        "run.json",
    ]
