"""`toolkit delegates` as a user types it: tables, JSON, page, demands, mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from delegates.nnapi import verdicts
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import UsageError
from rpi_runtime.tflite_file import read
from toolkit.placements import parse_demands


def toolkit(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from toolkit.entry import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=_environment())


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())


# What it shows


def test_a_bundle_is_shown_graph_by_graph(variants_bundle: Path) -> None:
    done = toolkit("delegates", variants_bundle, "--target", "nnapi:31")
    assert done.returncode == 0, done.stderr
    text = said(done)
    assert "vrc for nnapi:30 on NNAPI, feature level 31 (Android 12, NNAPI feature level 5)" in text
    assert re.search(r"route +(\d+) of \1 +1 +100\.0 % +0\.0 MB", done.stdout)
    assert "Nothing falls back to the CPU." in text
    assert re.search(r"\d+ x BATCH_MATMUL, [\d.]+ % of the multiply-adds it is known from feature", text)
    assert "-> Convert with --delegate nnapi, which writes a vision branch without it." in text
    assert "warning: NNAPI is the legacy path: Android 15 deprecates it." in text
    assert "Rules: tensorflow/lite/delegates/nnapi/nnapi_delegate.cc, 2.14.1" in text
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_json_has_every_operator_with_its_partition_and_its_reasons(variants_bundle: Path) -> None:
    path = Bundle.open(variants_bundle).path("decoder")
    done = toolkit("delegates", path, "--target", "nnapi", "--nnapi-level", "29", "--json")
    data = json.loads(done.stdout)
    assert (data["target"], data["path"]) == ("nnapi:29", str(path))
    graph = read(path, details=True)
    assert [placed["subgraph"] for placed in data["placements"]] == [s.name for s in graph.signatures]
    for placed, number in zip(data["placements"], graph.signature_subgraphs, strict=True):
        subgraph = graph.subgraphs[number]
        judged = verdicts(subgraph, 29)
        assert [operator["name"] for operator in placed["operators"]] == [o.name for o in subgraph.operators]
        for operator in placed["operators"]:
            reasons = [refusal["reason"] for refusal in operator["refusals"]]
            assert reasons == [refusal.reason for refusal in judged[operator["number"]]]
            part = placed["partitions"][operator["partition"]]
            assert operator["number"] in part["operators"]
            assert operator["is_delegated"] == part["is_delegated"]
        assert placed["delegated_partitions"] <= 3, "what NNAPI's delegate keeps unless it is told otherwise"
        delegated = [part for part in placed["partitions"] if part["is_delegated"]]
        assert placed["boundary_bytes"] == sum(p["bytes_in"] + p["bytes_out"] for p in delegated)


def test_more_partitions_may_be_kept(variants_bundle: Path) -> None:
    def delegated(*options: str) -> int:
        path = Bundle.open(variants_bundle).path("decoder")
        done = toolkit("delegates", path, "--target", "nnapi:31", "--json", *options)
        counts = [placed["delegated_operators"] for placed in json.loads(done.stdout)["placements"]]
        return sum(counts)

    assert delegated("--max-partitions", "1") < delegated() < delegated("--max-partitions", "99")


class _Page(HTMLParser):
    """The data of the page's script."""

    def __init__(self) -> None:
        super().__init__()
        self.data = ""
        self._inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = ("id", "data") in attributes

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_the_page_draws_every_operator_below_what_it_reads(variants_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = toolkit("delegates", variants_bundle, "--target", "nnapi:29", "--html", page)
    assert f"Graphs drawn in {page}." in " ".join(done.stderr.split())
    parser = _Page()
    parser.feed(page.read_text())
    placements = json.loads(parser.data)
    assert {(p["graph"], p["subgraph"]) for p in placements} >= {
        ("decoder", "decode"),
        ("decoder", "prefill_8"),
    }
    for placed in placements:
        drawn: list[dict[str, Any]] = placed["drawn"]
        assert len({(operator["row"], operator["column"]) for operator in drawn}) == len(drawn)
        for operator in drawn:
            assert all(drawn[number]["row"] < operator["row"] for number in operator["reads"])
    assert "http" not in page.read_text().replace("http://www.w3.org/2000/svg", ""), "it needs nothing else"


# Demands


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--fail-on", "fallback"), 1, r"decoder decode: \d+ of \d+ operators fall back"),
        (("--fail-on", "partitions:2"), 1, r"decoder decode: 3 partition\(s\), allowed are 2"),
        (
            ("--max-fallback-macs", "5%"),
            1,
            r"decode: [\d.]+ % of the multiply-adds fall back, allowed",
        ),
        (("--fail-on", "partitions:3"), 0, "decoder on NNAPI"),
        (("--max-fallback-macs", "100%"), 0, "decoder on NNAPI"),
    ],
)
def test_what_is_demanded_decides_about_the_exit_code(
    variants_bundle: Path, options: tuple[str, ...], code: int, says: str
) -> None:
    done = toolkit("delegates", variants_bundle, "--target", "nnapi", "--component", "decoder", *options)
    assert done.returncode == code
    assert re.search(says, said(done))


def test_what_was_converted_for_nnapi_stands_every_demand(variants_bundle: Path) -> None:
    demands = ("--fail-on", "fallback", "--fail-on", "partitions:1", "--max-fallback-macs", "0")
    for component in ("vrc", "vision_base"):
        done = toolkit("delegates", variants_bundle, "--target", "nnapi", "--component", component, *demands)
        assert done.returncode == 0, done.stderr


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{bundle}", "--target", "gpuu"), "unknown delegate 'gpuu' Did you mean 'gpu'?"),
        (("{bundle}", "--target", "nnapi:26"), "NNAPI has no feature level 26"),
        (("{bundle}", "--target", "nnapi:x"), "'x' is not a feature level"),
        (("{bundle}", "--target", "nnapi:29", "--nnapi-level", "30"), "names more than one feature level"),
        (("{bundle}", "--target", "gpu", "--nnapi-level", "30"), "and the delegate is gpu"),
        (("{bundle}", "--target", "gpu", "--component", "decodr"), "Did you mean 'decoder'?"),
        (("{bundle}", "--target", "gpu", "--fail-on", "falback"), "Did you mean 'fallback'?"),
        (("{bundle}", "--target", "gpu", "--html", "/nowhere/page.html"), "there is no folder /nowhere"),
        (("{bundle}", "--target", "gpu", "--html", "page.png"), "is not a .html"),
        (("/nowhere", "--target", "gpu"), "/nowhere does not exist"),
        (("{empty}", "--target", "gpu"), "is no bundle: it has no manifest.json"),
    ],
)
def test_a_mistake_ends_in_one_message(
    arguments: tuple[str, ...], says: str, variants_bundle: Path, tmp_path: Path
) -> None:
    done = toolkit("delegates", *(a.format(bundle=variants_bundle, empty=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert says in said(done)
    assert "Traceback" not in done.stderr


def test_a_damaged_graph_is_told(variants_bundle: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(Bundle.open(variants_bundle).path("vrc").read_bytes()[:2000])
    done = toolkit("delegates", cut, "--target", "nnapi")
    assert done.returncode == 3
    assert "cut.tflite is damaged" in said(done)


@pytest.mark.parametrize("text", ["105%", "-1", "x", "1.5"])
def test_a_share_is_from_0_to_1(text: str) -> None:
    with pytest.raises(UsageError, match="is not a share from 0 to 1"):
        parse_demands([], text)
