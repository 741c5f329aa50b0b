"""SUITE.yaml, checked to the last key, as the plan of a field test and the pictures that it needs.

docs/field_test.md describes the file. Every mistake is a `UsageError` that names file and key, the value, and
what to write instead.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from delegates import AUTO, CPU, EXTERNAL
from delegates.targets import DELEGATES
from field.plan import Camera, Case, Plan, Variant, Watch
from field.sources import file_name
from field.suite_file import Value, read_yaml
from rpi_runtime.bundle import sha256_of
from rpi_runtime.errors import ImageError, UsageError, nearest
from rpi_runtime.image_header import open_file, read_header
from rpi_runtime.memory_plan import parse_budget
from rpi_runtime.routing import POLICIES, Routing
from vqa.dataset import UNTYPED, Dataset
from vqa.evaluate import first_questions

_KEYS = (
    "name", "images", "dataset", "camera", "watch", "questions", "repetitions", "soak", "variants",
    "max_new_tokens", "telemetry_s", "timeout_s",
)  # fmt: skip
_QUESTION_KEYS = ("ask", "expect", "type", "image", "id")
_VARIANT_KEYS = ("name", "route", "branch", "memory", "delegate", "threads")
_MOST = 1_000_000  # of anything that is counted


@dataclass(frozen=True)
class Suite:
    plan: Plan
    pictures: Mapping[str, Path]  # name in the folder `pictures` -> its file


def check_pictures(suite: Suite) -> None:
    """Raises `UsageError` for one that no device could open."""
    for source in suite.pictures.values():
        try:
            with open_file(str(source)) as stream:
                read_header(stream, str(source), sys.maxsize)
        except ImageError as error:
            raise UsageError(error.message, error.remedy) from None


@dataclass(frozen=True)
class _Question:
    id: str
    ask: str
    expect: str | None
    type: str
    image: Path | None


def read_suite(path: Path) -> Suite:
    """Raises `UsageError`."""
    suite = read_yaml(path).mapping(_KEYS)
    questions = _questions(suite.get("questions"), path.parent)
    dataset = _dataset(suite.get("dataset"), path.parent)
    if not questions and dataset is None:
        raise UsageError(
            f"{path} asks nothing", "Give it questions: a list of texts, or a dataset with questions.jsonl."
        )
    camera, watch = _camera(suite.get("camera")), _watch(suite.get("watch"))
    if camera and watch:
        raise UsageError(
            f"{path}: both camera and watch are given", "Give one: each round takes one picture."
        )
    images = _images(suite.get("images"), path.parent)
    free = [question for question in questions if question.image is None]
    is_live = camera is not None or watch is not None
    if images and not free:
        raise suite["images"].wrong("no question is asked about them", "Add one without an image of its own.")
    if is_live and not free:
        key = "camera" if camera else "watch"
        raise suite[key].wrong("no question is asked about its pictures", "Add one without an image.")
    named = _Names(path.parent)
    asked = list(_cases(dataset, questions, images, named, is_live))
    live = [Case(q.id, q.ask, expected=q.expect, type=q.type) for q in free] if is_live else []
    _check_ids(path, [*asked, *live])
    soak_s = suite["soak"].duration() if "soak" in suite else 0.0
    plan = Plan(
        name=_name(suite.get("name"), path),
        variants=_variants(suite.get("variants")),
        cases=tuple(asked),
        live=tuple(live),
        camera=camera,
        watch=watch,
        repetitions=suite.get("repetitions", Value.of(1)).integer(1, _MOST),
        soak_s=soak_s,
        max_new_tokens=suite.get("max_new_tokens", Value.of(32)).integer(1, _MOST),
        telemetry_s=suite.get("telemetry_s", Value.of(2)).number(0.1, 3600),
        timeout_s=suite.get("timeout_s", Value.of(600)).number(1, 86400),
    )
    return Suite(plan, named.files)


class _Names:
    """Pictures by the name that people read, hashed once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sha256: dict[Path, str] = {}
        self.files: dict[str, Path] = {}

    def case(self, case: Case, image: Path) -> Case:
        if image not in self._sha256:
            self._sha256[image] = sha256_of(image)
        sha256 = self._sha256[image]
        file = file_name(sha256, image.name)
        self.files[file] = image
        return replace(case, image=self.of(image), image_sha256=sha256, image_file=file)

    def of(self, image: Path) -> str:
        return Path(os.path.relpath(image, self._folder)).as_posix()


def _cases(
    dataset: Dataset | None,
    questions: Sequence[_Question],
    images: Sequence[Path],
    named: _Names,
    is_live: bool,
) -> Iterator[Case]:
    """A picture's questions stand together."""
    for one in dataset.questions if dataset else ():
        yield named.case(Case(one.id, one.text, expected=one.answer, type=one.type), one.image)
    for image in images:
        for q in questions:
            if q.image is None:
                case = Case(f"{q.id}@{named.of(image)}", q.ask, expected=q.expect, type=q.type)
                yield named.case(case, image)
    for q in questions:
        case = Case(q.id, q.ask, expected=q.expect, type=q.type)
        if q.image is not None:
            yield named.case(case, q.image)
        elif not images and not is_live:
            yield case


def _check_ids(path: Path, cases: Sequence[Case]) -> None:
    name, count = Counter(case.id for case in cases).most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{path}: {count} questions have the id {name!r}",
            "Ids must differ; those of a dataset count, too.",
        )


def _name(value: Value | None, path: Path) -> str:
    if value is None:
        return path.stem
    text = value.text()
    if not text[0].isalnum() or not all(c.isalnum() or c in "._-" for c in text) or len(text) > 60:
        raise value.wrong(
            f"is {text!r}", "Use letters, digits, dots and dashes, at most 60: it names a folder."
        )
    return text


def _images(value: Value | None, folder: Path) -> list[Path]:
    """Each once, in the order of the patterns, those of one by name."""
    found: dict[Path, None] = {}
    for one in value.sequence() if value else ():
        pattern = one.text()
        if Path(pattern).is_absolute():
            root, rest = Path(Path(pattern).anchor), str(Path(pattern).relative_to(Path(pattern).anchor))
        else:
            root, rest = folder, pattern
        try:
            files = sorted(path for path in root.glob(rest) if path.is_file())
        except (ValueError, NotImplementedError, OSError) as error:
            raise one.wrong(
                f"is {pattern!r}: {error}", "Give a file, or a pattern like photos/*.jpg."
            ) from None
        if not files:
            raise one.wrong(
                f"is {pattern!r}: there is no such picture in {folder}",
                "Paths begin where the suite's file is.",
            )
        found |= dict.fromkeys(files)
    return list(found)


def _dataset(value: Value | None, folder: Path) -> Dataset | None:
    if value is None:
        return None
    if value.is_text:
        return Dataset.read(folder / value.text())
    given = value.mapping(("path", "limit"), needed=("path",))
    found = Dataset.read(folder / given["path"].text())
    return first_questions(found, given["limit"].integer(1, _MOST)) if "limit" in given else found


def _questions(value: Value | None, folder: Path) -> list[_Question]:
    return [_question(one, number, folder) for number, one in enumerate(value.sequence() if value else (), 1)]


def _question(value: Value, number: int, folder: Path) -> _Question:
    if value.is_text:
        return _Question(f"q{number}", value.text(), None, UNTYPED, None)
    given = value.mapping(_QUESTION_KEYS, needed=("ask",))
    image = None
    if "image" in given:
        image = folder / given["image"].text()
        if not image.is_file():
            raise given["image"].wrong(
                f"is {given['image'].text()!r}: there is no picture {image}",
                "Paths begin where the suite's file is.",
            )
    return _Question(
        id=given["id"].text() if "id" in given else f"q{number}",
        ask=given["ask"].text(),
        expect=given["expect"].text() if "expect" in given else None,
        type=given["type"].text() if "type" in given else UNTYPED,
        image=image,
    )


def _camera(value: Value | None) -> Camera | None:
    if value is None:
        return None
    given = value.mapping(("command", "every_s"), needed=("command",))
    command = given["command"].text()
    if "{output}" not in command:
        raise given["command"].wrong(
            f"is {command!r}, without {{output}}",
            'It says where the picture goes: "rpicam-still -n -o {output}".',
        )
    return Camera(command, given["every_s"].number(0, 86400) if "every_s" in given else 0.0)


def _watch(value: Value | None) -> Watch | None:
    if value is None:
        return None
    folder = value if value.is_text else value.mapping(("folder",), needed=("folder",))["folder"]
    if not folder.text().startswith("/"):
        raise folder.wrong(f"is {folder.text()!r}", "It is a folder on the device: give its whole path.")
    return Watch(folder.text())


def _variants(value: Value | None) -> tuple[Variant, ...]:
    if value is None:
        return (Variant("default"),)
    found = tuple(_variant(one) for one in value.sequence())
    if not found:
        raise value.wrong("is empty", "Leave it out, or name a variant.")
    name, count = Counter(variant.name for variant in found).most_common(1)[0]
    if count > 1:
        raise value.wrong(f"has {count} variants {name!r}", "Give each a name of its own.")
    return found


def _variant(value: Value) -> Variant:
    given = value.mapping(_VARIANT_KEYS)
    words = {key: one.text() for key, one in given.items()}
    with value.naming("route", given):
        Routing.parse(words.get("route", "tile"))
    with value.naming("branch", given):
        if words.get("branch", "base") not in POLICIES:
            raise nearest(words["branch"], POLICIES, "branch")
    with value.naming("memory", given):
        parse_budget(words.get("memory", "auto"))
    delegate = words.get("delegate", AUTO)
    with value.naming("delegate", given):
        if delegate.partition(":")[0] not in (AUTO, CPU, EXTERNAL[:-1], *DELEGATES):
            raise nearest(delegate, (AUTO, CPU, *DELEGATES, f"{EXTERNAL}PATH"), "delegate")
    if "memory" in words and delegate not in (AUTO, CPU):
        raise given["delegate"].wrong(
            f"is {delegate!r}, with a memory budget", "A budget is kept on the CPU alone: leave one out."
        )
    named = [word for key, word in words.items() if key != "name"]
    return Variant(
        name=words.get("name") or " ".join(named) or "default",
        route=words.get("route", "tile"),
        branch=words.get("branch", "base"),
        memory=words.get("memory"),
        delegate=delegate,
        threads=given["threads"].integer(1, 256) if "threads" in given else None,
    )
