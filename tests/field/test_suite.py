"""SUITE.yaml: what it may say, and how each mistake is told."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from field.plan import Camera, Variant, Watch, plan_of
from field.suite import Suite, check_pictures, read_suite
from field.suite_file import parse_duration
from rpi_runtime.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("b", "a"):
        (tmp_path / "photos" / f"{name}.jpg").write_text(name)
    data = tmp_path / "panels"
    data.mkdir()
    (data / "x.jpg").write_text("x")
    (data / "y.jpg").write_text("y")
    (data / "questions.jsonl").write_text(
        '{"image": "x.jpg", "question": "X?", "answer": "x", "type": "read", "id": "x-0"}\n'
        '{"image": "y.jpg", "question": "Y?", "answer": "y", "id": "y-0"}\n'
    )
    return tmp_path


def read(folder: Path, text: str) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(text)
    return read_suite(path)


def test_each_question_is_asked_about_each_picture(folder: Path) -> None:
    suite = read(folder, "images: [photos/*.jpg]\nquestions: ['Is it on?', {ask: 'What?', expect: 3.50}]")
    plan = suite.plan
    assert [(c.id, c.image, c.question, c.expected) for c in plan.cases] == [
        ("q1@photos/a.jpg", "photos/a.jpg", "Is it on?", None),
        ("q2@photos/a.jpg", "photos/a.jpg", "What?", "3.50"),
        ("q1@photos/b.jpg", "photos/b.jpg", "Is it on?", None),
        ("q2@photos/b.jpg", "photos/b.jpg", "What?", "3.50"),
    ]
    assert {path.read_text() for path in suite.pictures.values()} == {"a", "b"}
    assert plan.name == "suite"
    assert plan.variants == (Variant("default"),)
    assert plan.answers == 4


def test_a_question_may_have_a_picture_of_its_own(folder: Path) -> None:
    suite = read(folder, "questions: [{ask: 'On?', expect: off, image: photos/a.jpg, type: state, id: lamp}]")
    (case,) = suite.plan.cases
    assert (case.id, case.expected, case.type, case.image) == ("lamp", "off", "state", "photos/a.jpg")
    assert suite.pictures[case.image_file].read_text() == "a"


def test_a_dataset_brings_its_questions(folder: Path) -> None:
    assert [case.id for case in read(folder, "dataset: panels").plan.cases] == ["x-0", "y-0"]
    limited = read(folder, "dataset: {path: panels, limit: 1}").plan.cases
    assert [(case.id, case.expected, case.type, case.image) for case in limited] == [
        ("x-0", "x", "read", "panels/x.jpg")
    ]


def test_a_question_without_any_picture_is_asked_as_text(folder: Path) -> None:
    assert [case.image for case in read(folder, "questions: What is 2 + 2?").plan.cases] == [""]


def test_a_camera_and_a_folder_bring_live_cases(folder: Path) -> None:
    plan = read(
        folder,
        "camera: {command: 'rpicam-still -n -o {output}', every_s: 30}\nquestions: ['Any alarm?']\nsoak: 1h",
    ).plan
    assert plan.camera == Camera("rpicam-still -n -o {output}", 30.0)
    assert [case.id for case in plan.live] == ["q1"]
    assert not plan.cases
    assert plan.soak_s == 3600
    assert read(folder, "watch: /home/pi/inbox\nquestions: [A]").plan.watch == Watch("/home/pi/inbox")
    assert read(folder, "watch: {folder: /in}\nquestions: [A]").plan.watch == Watch("/in")


def test_variants_have_names_of_their_own_or_of_what_they_change(folder: Path) -> None:
    plan = read(
        folder,
        "questions: [A]\n"
        "variants: [{name: full, route: 'fixed:1.0'}, {memory: 256MB, branch: large}, {delegate: gpu}]",
    ).plan
    assert plan.variants == (
        Variant("full", route="fixed:1.0"),
        Variant("256MB large", memory="256MB", branch="large"),
        Variant("gpu", delegate="gpu"),
    )


def test_a_plan_is_the_same_after_json(folder: Path) -> None:
    plan = read(folder, "dataset: panels\nwatch: /in\nquestions: [A]\nvariants: [{threads: 2}]").plan
    assert plan_of(json.loads(json.dumps(asdict(plan)))) == plan


def test_another_picture_or_key_is_another_suite_and_other_writing_is_not(folder: Path) -> None:
    first = read(folder, "images: photos/*.jpg\nquestions: [A]").plan.sha256
    assert read(folder, "# the same\nquestions:\n  - A\nimages:\n  - photos/*.jpg\n").plan.sha256 == first
    assert read(folder, "images: photos/*.jpg\nquestions: [A]\nrepetitions: 2").plan.sha256 != first
    (folder / "photos/a.jpg").write_text("changed")
    assert read(folder, "images: photos/*.jpg\nquestions: [A]").plan.sha256 != first


MISTAKES = {
    "": ("suite.yaml: is empty", "mapping"),
    "[a, b]": ("suite.yaml: is a list", "name, images"),
    "questions: [": ("suite.yaml is no YAML", "docs/field_test.md"),
    "questions: [A]\nquestions: [B]": ("the key 'questions' is there twice", ""),
    "questions: !!python/name:os.system": ("is no YAML", ""),
    "repetitions: 3": ("asks nothing", "questions"),
    "question: [A]": ("suite.yaml: unknown key 'question'", "Did you mean 'questions'?"),
    "questions: [{ask: A, expected: b}]": ("suite.yaml: questions[0] unknown key 'expected'", "'expect'"),
    "questions: [{expect: b}]": ("questions[0] has no 'ask'", "Known: ask"),
    "questions: [{ask: }]": ("questions[0] has no 'ask'", ""),
    "questions: ['']": ("questions[0] is ''", "Write a text."),
    "questions: {ask: A}": ("questions is a mapping", "Write a list."),
    "questions: [{ask: A, image: photos/c.jpg}]": (
        "questions[0].image is 'photos/c.jpg': there is no",
        "suite's file",
    ),
    "images: [photos/*.png]\nquestions: [A]": ("images[0] is 'photos/*.png': there is no such picture", ""),
    "images: photos/a.jpg\nquestions: [{ask: A, image: photos/a.jpg}]": (
        "images no question is asked",
        "Add one",
    ),
    "questions: [{ask: A, id: x}, {ask: B, id: x}]": ("2 questions have the id 'x'", "differ"),
    "dataset: panels\nquestions: [{ask: A, id: x-0}]": ("2 questions have the id 'x-0'", "dataset"),
    "dataset: nowhere": ("nowhere: no such folder", "questions.jsonl"),
    "dataset: {path: panels, limit: 0}": ("dataset.limit is '0'", "from 1 to"),
    "questions: [A]\nrepetitions: three": ("suite.yaml: repetitions is 'three'", "a whole number from 1"),
    "questions: [A]\nrepetitions: 1.5": ("repetitions is '1.5'", "whole number"),
    "questions: [A]\nsoak: soon": ("soak is 'soon'", "30m"),
    "questions: [A]\nsoak: 0s": ("soak is '0s'", "30m"),
    "questions: [A]\ntelemetry_s: 0": ("telemetry_s is '0'", "0.1"),
    "questions: [A]\ntimeout_s: .nan": ("timeout_s is '.nan'", "number"),
    "questions: [A]\nname: ../x": ("name is '../x'", "letters"),
    "questions: [A]\ncamera: {command: fswebcam}": (
        "camera.command is 'fswebcam', without {output}",
        "rpicam-still",
    ),
    "questions: [A]\ncamera: {every_s: 3}": ("camera has no 'command'", ""),
    "questions: [A]\nwatch: inbox": ("watch is 'inbox'", "on the device"),
    "questions: [A]\nwatch: /in\ncamera: {command: 'x {output}'}": ("both camera and watch", "Give one"),
    "questions: [{ask: A, image: photos/a.jpg}]\nwatch: /in": (
        "watch no question is asked about its pictures",
        "",
    ),
    "questions: [A]\nvariants: []": ("variants is empty", "Leave it out"),
    "questions: [A]\nvariants: [{route: tiles}]": ("variants[0].route: unknown routing 'tiles'", "'tile'"),
    "questions: [A]\nvariants: [{branch: huge}]": ("variants[0].branch: unknown branch 'huge'", "large"),
    "questions: [A]\nvariants: [{memory: lots}]": ("variants[0].memory: memory 'lots' is no size", "512MB"),
    "questions: [A]\nvariants: [{delegate: gpuu}]": (
        "variants[0].delegate: unknown delegate 'gpuu'",
        "'gpu'",
    ),
    "questions: [A]\nvariants: [{delegate: gpu, memory: 1GB}]": ("'gpu', with a memory budget", "CPU"),
    "questions: [A]\nvariants: [{threads: 0}]": ("variants[0].threads is '0'", "from 1 to 256"),
    "questions: [A]\nvariants: [{name: x}, {name: x}]": ("variants has 2 variants 'x'", "name of its own"),
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text.replace("\n", "; ") or "empty")
def test_a_mistake_is_told_with_its_place_and_what_to_do(folder: Path, text: str) -> None:
    message, remedy = MISTAKES[text]
    with pytest.raises(UsageError) as raised:
        read(folder, text)
    assert message in raised.value.message
    assert remedy in raised.value.remedy
    assert raised.value.remedy


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such suite"):
        read_suite(tmp_path / "suite.yaml")


_KEYS = st.sampled_from(
    ["name", "images", "questions", "camera", "watch", "variants", "soak", "ask", "expect", "image"]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
_ANY = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(_ANY)
def test_any_yaml_is_a_suite_or_a_told_mistake(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    _read_or_told(path)


@given(st.binary(max_size=60) | st.text(alphabet="-:[]{}!&*<>?'\"|# \nab", max_size=40).map(str.encode))
def test_any_bytes_are_a_suite_or_a_told_mistake(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    _read_or_told(path)


def _read_or_told(path: Path) -> None:
    with suppress(UsageError):
        read_suite(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("45", 45), ("1.5 h", 5400)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "30x", "-3s", "1e9", "0", "401d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        parse_duration(text)


def test_the_suites_of_the_documentation_are_right(folder: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/field_test.md").read_text()
    whole, *parts = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    plan = read(folder, whole).plan
    assert plan.name == "intake-3"
    assert [variant.name for variant in plan.variants] == ["routed", "full", "small", "gpu"]
    for part in parts:
        assert read(folder, f"{part}questions: [A]\n").plan.live


def test_what_is_no_picture_is_told_before_a_device_is_touched(folder: Path, photo: Path) -> None:
    check_pictures(read(folder, f"images: [{photo}]\nquestions: [A]"))
    with pytest.raises(UsageError, match=r"photos/a\.jpg is not an image"):
        check_pictures(read(folder, "images: [photos/a.jpg]\nquestions: [A]"))
