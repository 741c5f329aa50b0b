"""From a checkpoint to a bundle, with everything that may happen on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.convert import ConvertReport, NeedsStated, convert
from converters.options import ConvertOptions, plan
from converters.pipeline import stages_of
from converters.stages import StageFinished
from hypervl.config import preset
from rpi_runtime import footprint
from rpi_runtime.backends.select import choose, default_threads
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import CheckpointError, ResourceError
from rpi_runtime.manifest import COMPONENTS, FOOTPRINT_FILE, MANIFEST_FILE, from_json
from tests.converters import small_hosts
from tests.converters.conftest import Converted

ROOT = Path(__file__).resolve().parents[2]
VRC_ONLY = ("--components", "vrc", "--recipe", "int8")


def digest(folder: Path) -> str:
    """sha256 over names and bytes of everything in `folder`."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]


def toolkit(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split())


@pytest.fixture
def bundle(converted: Converted, tmp_path: Path) -> Path:
    """A bundle that was there before."""
    return shutil.copytree(converted.bundle, tmp_path / "bundle")


# What comes out.


def test_the_bundle_is_whole_and_alone(converted: Converted) -> None:
    manifest = Bundle.open(converted.bundle).manifest
    assert tuple(c.name for c in manifest.components) == COMPONENTS
    assert sorted(p.name for p in converted.bundle.iterdir()) == sorted(
        [MANIFEST_FILE, FOOTPRINT_FILE, *(f.path for f in manifest.files())]
    )
    assert list(converted.bundle.parent.iterdir()) == [converted.bundle]


def test_signatures_follow_the_options(converted: Converted) -> None:
    manifest = Bundle.open(converted.bundle).manifest
    names = {c.name: sorted(s.name for s in c.signatures) for c in manifest.components}
    assert names == {
        "vrc": ["route"],
        "vision_base": ["tile_128", "tile_384"],
        "vision_large": ["tile_128", "tile_384"],
        "decoder": ["decode", "decode_in_64", "prefill_16", "prefill_16_in_64"],
    }
    assert manifest.decoder is not None
    assert manifest.vision is not None
    assert (manifest.decoder.context_tokens, manifest.vision.tile_sides) == (128, (384, 128))


def test_the_manifest_holds_what_was_asked_and_measured(converted: Converted) -> None:
    manifest = Bundle.open(converted.bundle).manifest
    assert {c.name: c.recipe for c in manifest.components} == {
        "vrc": "fp16",
        "vision_base": "int8",
        "vision_large": "int8",
        "decoder": "int8",
    }
    for component in manifest.components:
        assert sorted(p.signature for p in component.parity) == sorted(s.name for s in component.signatures)
        assert all(p.passed and p.cosine > 0.9 and p.samples > 0 for p in component.parity)
    assert manifest.tools["torch"] == torch.__version__.partition("+")[0]
    assert manifest.text.eos_token_ids


def test_the_manifest_tells_nothing_of_host_and_time(converted: Converted) -> None:
    text = (converted.bundle / MANIFEST_FILE).read_text()
    for secret in (str(converted.options.checkpoint), str(converted.bundle), os.uname().nodename, str(ROOT)):
        assert secret not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_the_report_has_seconds_and_memory_per_component(converted: Converted) -> None:
    report = converted.report
    assert [c.component for c in report.components] == list(COMPONENTS)
    for component in report.components:
        assert component.seconds > 0
        assert component.peak_bytes > 50_000_000
        assert component.worst_cosine == min(p.cosine for p in component.parity)
    whole = [path for path in report.bundle.iterdir() if path.name != FOOTPRINT_FILE]
    assert report.bundle_bytes == sum(path.stat().st_size for path in whole)
    assert report.passed


def test_the_bundle_says_what_its_graphs_take_in_memory(
    converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan on a machine of the same kind need not measure again."""
    bundle = Bundle.open(converted.bundle)
    found = footprint.stored_in(converted.bundle)
    assert found == converted.report.footprint
    assert found is not None
    assert set(found.graphs()) == set(COMPONENTS)
    for name, needed in found.graphs().items():
        assert 0 < found.weights()[name] < needed
    monkeypatch.setattr(footprint, "measure", None)
    assert footprint.known(bundle, choose(), default_threads(), None) == found


def test_needs_are_stated_first_and_cover_what_was_then_used(converted: Converted) -> None:
    stated = [e for e in converted.events if isinstance(e, NeedsStated)]
    assert len(stated) == 1
    needs = {s.stage: s for s in stated[0].needs.stages}
    results = {e.result.name: e.result for e in converted.events if isinstance(e, StageFinished)}
    assert set(needs) == set(results) - {"read checkpoint", "measure memory"}
    for name, need in needs.items():
        assert results[name].peak_bytes <= need.memory_bytes, name
        assert results[name].output_bytes <= need.disk_bytes, name
    # Large enough, and not absurd: a third of what is asked for is really used.
    assert converted.report.peak_bytes > stated[0].needs.memory_bytes / 3


@pytest.mark.slow
def test_the_same_checkpoint_and_options_give_the_same_bytes(converted: Converted, tmp_path: Path) -> None:
    again = convert(replace(converted.options, bundle=tmp_path / "other-name", measure=False))
    first = shutil.copytree(converted.bundle, tmp_path / "first")
    (first / FOOTPRINT_FILE).unlink()  # its figures are those of one run on one machine
    assert digest(again.bundle) == digest(first)


def test_the_decoder_alone_makes_a_text_bundle(nano_options: ConvertOptions, tmp_path: Path) -> None:
    options = replace(
        nano_options,
        bundle=tmp_path / "text",
        components=("decoder",),
        tile_sides=None,
        recipe="int8",
        prefill_tokens=(8,),
        contexts=(64,),
        embedding="fp16",
    )
    manifest = Bundle.open(convert(options).bundle).manifest
    assert manifest.vision is None
    assert [c.name for c in manifest.components] == ["decoder"]
    assert manifest.embedding is not None
    assert manifest.embedding.dtype == "float16"
    assert manifest.embedding.file.bytes == manifest.embedding.rows * manifest.embedding.columns * 2


# Interrupted.


def convert_until(
    line: str, *arguments: object, send: signal.Signals = signal.SIGINT
) -> tuple[int, str, subprocess.Popen[str]]:
    """Runs the command line until it has printed `line` on stderr, then sends a signal."""
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    text = _read_until(process.stderr, line)
    process.send_signal(send)
    _, rest = process.communicate(timeout=60)
    return process.returncode, text + rest, process


def _read_until(stream: IO[str], line: str) -> str:
    text = ""
    while line not in text:
        new = stream.readline()
        assert new, text
        text += new
    return text


def test_ctrl_c_leaves_the_old_bundle_and_the_next_run_goes_on(nano_checkpoint: Path, bundle: Path) -> None:
    before = digest(bundle)
    arguments = ("convert", nano_checkpoint, "-o", bundle, *VRC_ONLY, "--recipe", "fp16")
    code, text, _ = convert_until("1/5 export vrc", *arguments)
    assert code == 130
    assert re.search(r"stopped by Ctrl-C( in stage 'quantize vrc')?; ", " ".join(text.split()))
    assert "The same command goes on after the last finished stage." in text
    assert "Traceback" not in text
    assert digest(bundle) == before
    again = toolkit(*arguments)
    assert again.returncode == 0, again.stderr
    assert re.search(r"export vrc +kept from an earlier run", again.stderr)
    assert re.search(r"quantize vrc +[\d.]+ s +[\d.]+ MB peak +[\d.]+ MB written", again.stderr)
    assert re.search(
        r"needs about [\d.]+ MB of memory \(stage '\w+ vrc'\) and [\d.]+ MB of disk", said(again)
    )
    assert re.search(r"vrc +fp16 +[\d.]+ +[\d.]+ +0\.9\d+ +[\d.]+ +\d+", again.stdout)
    assert from_json((bundle / MANIFEST_FILE).read_text()).components[0].recipe == "fp16"
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_kill_leaves_the_old_bundle_and_another_recipe_keeps_the_export(
    nano_checkpoint: Path, bundle: Path
) -> None:
    before = digest(bundle)
    arguments = ("convert", nano_checkpoint, "-o", bundle, "--components", "vrc")
    code, _, _ = convert_until("2/5 quantize vrc", *arguments, "--recipe", "fp16", send=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert digest(bundle) == before
    done = toolkit(*arguments, "--recipe", "fp32")
    assert done.returncode == 0, done.stderr
    kept = re.findall(r"(\w+ \w+) +kept from an earlier run", done.stderr)
    assert kept == ["export vrc"]


def changed_stages(checkpoint: str = "0", **values: Any) -> set[str]:
    """Which stages run again when `values` replace the options of an earlier run."""

    def keys(fingerprint: str, options: ConvertOptions) -> dict[str, str]:
        known = {"fingerprint": fingerprint, "has_chat_template": True}
        stages = stages_of(plan(options, preset("nano")), Path("c"), known)
        return {stage.name: stage.key for stage in stages}

    options = ConvertOptions(Path("c"), Path("b"))
    before, after = keys("0", options), keys(checkpoint, replace(options, **values))
    return {name for name in after if after[name] != before.get(name)}


def test_a_changed_option_touches_only_its_stages() -> None:
    # The token table lies in the decoder's head.
    decoder = {"export decoder", "quantize decoder", "check decoder", "embedding"}
    branches = {f"{kind} vision_{b}" for kind in ("export", "quantize", "check") for b in ("base", "large")}
    assert changed_stages() == set()
    assert changed_stages(bundle=Path("elsewhere")) == set()
    assert changed_stages(recipe="vision=fp16") == {n for n in branches if not n.startswith("export")}
    assert changed_stages(recipe="decoder=fp16") == decoder, "int8 is smoothed before the export"
    assert changed_stages(contexts=(512,)) == decoder
    assert changed_stages(kv="float16") == decoder
    assert changed_stages(prefill_tokens=(64,)) == decoder
    assert changed_stages(tile_sides=(384,)) == branches
    assert changed_stages(embedding="fp16") == {"embedding"}
    assert changed_stages(components=("decoder",)) == set()


def test_a_changed_checkpoint_touches_everything() -> None:
    assert len(changed_stages(checkpoint="1")) == 14


# Refused.


def test_a_parity_miss_is_written_told_and_leaves_with_1(nano_checkpoint: Path, tmp_path: Path) -> None:
    """Int8 has one scale per channel: an outlier in each makes it lose all other weights of the channel."""
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    ruin_for_int8(tensors)
    save_file(tensors, checkpoint / "model.safetensors")
    done = toolkit("convert", checkpoint, "-o", tmp_path / "bundle", *VRC_ONLY, "--json")
    assert done.returncode == 1, done.stderr
    assert re.search(r"vrc route: cosine 0\.\d+, .*asked was cosine >= ", said(done))
    data = json.loads(done.stdout)
    assert data["passed"] is False
    assert data["components"][0]["passed"] is False
    manifest = from_json((tmp_path / "bundle" / MANIFEST_FILE).read_text())
    assert [p.passed for p in manifest.components[0].parity] == [False]
    assert toolkit("verify", tmp_path / "bundle").returncode == 1


def ruin_for_int8(tensors: dict[str, torch.Tensor]) -> None:
    """Outliers in the two linear layers of the VRC, each on an input that is always 0."""
    for silent in ("head.norm.weight", "head.norm.bias", "linear_1.weight", "linear_1.bias"):
        tensors[f"vrc.{silent}"][0] = 0
    for layer in ("linear_1", "linear_2"):
        weight = tensors[f"vrc.{layer}.weight"]
        weight[:, 0] = 60 * weight.abs().amax(dim=1)


def test_nan_weights_are_named_and_nothing_is_left_behind(nano_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["decoder.norm.weight"][3] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity: decoder\.norm\.weight"):
        convert(ConvertOptions(checkpoint, tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_what_is_no_checkpoint_is_told_apart(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        convert(ConvertOptions(tmp_path / "nothing", tmp_path / "out"))
    with pytest.raises(CheckpointError, match="is a bundle, not a checkpoint"):
        convert(ConvertOptions(bundle, tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        convert(ConvertOptions(tmp_path / "empty", tmp_path / "out"))


def test_a_cut_checkpoint_is_named(nano_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    weights = checkpoint / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut"):
        convert(ConvertOptions(checkpoint, tmp_path / "bundle"))


def test_the_command_line_answers_a_wrong_option_in_two_lines(nano_checkpoint: Path, tmp_path: Path) -> None:
    done = toolkit("convert", nano_checkpoint, "-o", tmp_path / "b", "--components", "vrc,decodr")
    assert done.returncode == 2
    assert said(done).startswith("error: unknown component 'decodr' Did you mean 'decoder'?")
    assert len(done.stderr.strip().splitlines()) == 2
    done = toolkit("convert", nano_checkpoint, "-o", tmp_path / "b", "--prefill", "8;32")
    assert done.returncode == 2
    assert "--prefill '8;32' is not a list of whole numbers" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_hosts.disk(tmp_path, megabytes=1) as disk:
        yield disk


def test_too_small_a_disk_is_refused_before_anything_is_made(nano_checkpoint: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match=r"not enough disk: converting needs about .* are free"):
        convert(ConvertOptions(nano_checkpoint, small_disk / "bundle", components=("vrc",)))
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def memory_group() -> Iterator[Path]:
    with small_hosts.memory_group(megabytes=512) as group:
        yield group


def test_too_little_memory_is_refused_before_anything_is_made(
    nano_checkpoint: Path, memory_group: Path, tmp_path: Path
) -> None:
    script = f"""
        import os, pathlib, sys
        pathlib.Path({str(memory_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
        sys.argv = ["toolkit", "convert", {str(nano_checkpoint)!r}, "-o", {str(tmp_path / "b")!r}]
        from toolkit.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert re.search(r"error: not enough memory: stage '\w+ \w+' needs about [\d,]+ MB", said(done))
    assert f"limit of the control group {memory_group}" in said(done)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_plain_data(converted: Converted) -> None:
    from toolkit.report import plain

    assert isinstance(converted.report, ConvertReport)
    assert json.loads(json.dumps(plain(converted.report)))["model"] == "hypervl-nano"
