"""Every question is asked of every arm, on the device runtime and in PyTorch; what was stopped goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hypervl.answering import ReferenceAnswerer
from hypervl.generate import generate
from hypervl.model import HyperVL
from hypervl.specs import vision_spec
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import ImageError, UsageError
from rpi_runtime.routing import Routing
from rpi_runtime.session import Session
from rpi_runtime.tokenizer import TextCodec
from tests.conftest import TILE_SIDES
from tests.vqa import photo_questions
from vqa.dataset import QUESTIONS_FILE, Dataset
from vqa.evaluate import Answerer, Arm, BundleAnswerer, Reply, check_bundle, evaluate, first_questions
from vqa.results import RESULTS_FILE, Answer, Ledger, Run, questions_digest
from vqa.summary import TEXT_SIZE_BINS, ArmSummary, summarise, text_size_bin

TOKENS = 4
TILE, FULL, SMALL = (Arm("nano", Routing.parse(text), "base") for text in ("tile", "fixed:1", "fixed:0.3"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.read(photo_questions.write(tmp_path_factory.mktemp("photos") / "data"))


@pytest.fixture(scope="module")
def open_bundle(
    nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Arm], BundleAnswerer]:
    cache = tmp_path_factory.mktemp("cache")

    def opened(arm: Arm) -> BundleAnswerer:
        session = Session.open(nano_bundle, threads=1, weight_cache=cache)
        return BundleAnswerer(session, arm.routing, arm.branch, TOKENS)

    return opened


@pytest.fixture(scope="module")
def open_reference(routing_model: HyperVL, routing_checkpoint: Path) -> Callable[[Arm], ReferenceAnswerer]:
    codec = TextCodec.from_checkpoint(routing_checkpoint)
    spec = vision_spec(routing_model.config, TILE_SIDES)
    return lambda arm: ReferenceAnswerer(routing_model, codec, spec, arm.routing, arm.branch, TOKENS)


def ask(
    dataset: Dataset, open_answerer: Callable[[Arm], Answerer], *arms: Arm, ledger: Ledger | None = None
) -> list[Answer]:
    ledger = ledger or Ledger()
    evaluate(dataset, [(arm, partial(open_answerer, arm)) for arm in arms], ledger)
    return ledger.answers


def a_run(dataset: Dataset, **changed: object) -> Run:
    return dataclasses.replace(Run(questions_digest(dataset), TOKENS, 1, {"nano": "1"}), **changed)  # type: ignore[arg-type]


def without_costs(answers: list[Answer]) -> list[Answer]:
    costs = {"first_token_ms": 0.0, "answer_ms": 0.0, "peak_resident_bytes": 0}
    return [dataclasses.replace(answer, **costs) for answer in answers]  # type: ignore[arg-type]


# What is asked, and what it cost.


def test_every_question_is_answered_and_judged(
    dataset: Dataset, open_bundle: Callable[[Arm], Answerer]
) -> None:
    answers = ask(dataset, open_bundle, TILE)
    assert [answer.id for answer in answers] == [question.id for question in dataset.questions]
    assert [answer.new_picture for answer in answers] == [True, False, False, True, False, True, False]
    for answer, question in zip(answers, dataset.questions, strict=True):
        assert (answer.question, answer.expected) == (question.text, question.answer)
        assert 0 < answer.visual_tokens <= answer.visual_tokens_unrouted
        assert 0 < answer.new_tokens <= TOKENS
        assert 0 < answer.first_token_ms <= answer.answer_ms
        assert answer.peak_resident_bytes > 10_000_000


def test_further_questions_find_the_picture_in_the_cache(
    dataset: Dataset, open_bundle: Callable[[Arm], BundleAnswerer], nano_bundle: Path
) -> None:
    answers = ask(dataset, open_bundle, FULL)
    assert all(a.visual_tokens == a.visual_tokens_unrouted for a in answers)
    new, again = ([a.first_token_ms for a in answers if a.new_picture is wanted] for wanted in (True, False))
    assert max(again) < min(new)
    # Each is answered as if it had been asked alone.
    with Session.open(nano_bundle, threads=1) as session:
        for question, answer in zip(dataset.questions, answers, strict=True):
            alone = session.generate(
                question.text, [question.image], routing="fixed:1", max_new_tokens=TOKENS
            )
            assert "".join(alone) == answer.answer


@pytest.mark.parametrize(
    "arm", [TILE, SMALL, dataclasses.replace(FULL, branch="auto")], ids=lambda a: a.label
)
def test_the_reference_answers_what_generate_does(
    arm: Arm,
    dataset: Dataset,
    open_reference: Callable[[Arm], Answerer],
    routing_model: HyperVL,
    routing_checkpoint: Path,
) -> None:
    codec = TextCodec.from_checkpoint(routing_checkpoint)
    answers = ask(dataset, open_reference, arm)
    for question, answer in zip(dataset.questions, answers, strict=True):
        expected = generate(
            routing_model, codec, [question.image], question.text,
            routing=str(arm.routing), branch=arm.branch, max_new_tokens=TOKENS, tile_sides=TILE_SIDES,
        )  # fmt: skip
        assert answer.answer == expected.text
        assert answer.new_tokens == len(expected.token_ids)
        assert answer.visual_tokens == expected.prompt.visual_tokens


def test_bundle_and_reference_give_the_same_answers(
    dataset: Dataset, open_bundle: Callable[[Arm], Answerer], open_reference: Callable[[Arm], Answerer]
) -> None:
    device, reference = (without_costs(ask(dataset, each, TILE)) for each in (open_bundle, open_reference))
    assert device == reference


def test_a_limit_takes_whole_pictures_from_the_front(dataset: Dataset) -> None:
    counts = {count: len(first_questions(dataset, count).questions) for count in (1, 3, 4, 5, 6, 7, 99)}
    assert counts == {1: 3, 3: 3, 4: 5, 5: 5, 6: 7, 7: 7, 99: 7}
    assert first_questions(dataset, 4).questions == dataset.questions[:5]


def test_an_error_names_the_picture(
    dataset: Dataset, open_bundle: Callable[[Arm], Answerer], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    (folder / "images" / "coffee.jpg").write_bytes(b"no picture")
    ledger = Ledger()
    with pytest.raises(ImageError, match=r"images/coffee\.jpg"):
        ask(Dataset.read(folder), open_bundle, TILE, ledger=ledger)
    assert len(ledger.answers) == 3  # the picture before it


def test_a_bundle_is_asked_only_what_it_can_answer(nano_bundle: Path) -> None:
    manifest = Bundle.open(nano_bundle).manifest
    check_bundle(manifest, [TILE, FULL])
    without_vrc = tuple(c for c in manifest.components if c.name not in ("vrc", "vision_large"))
    less = dataclasses.replace(manifest, components=without_vrc)
    check_bundle(less, [FULL])
    with pytest.raises(UsageError, match="has no VRC, which routing tile asks"):
        check_bundle(less, [TILE])
    with pytest.raises(UsageError, match="no large vision branch"):
        check_bundle(less, [dataclasses.replace(FULL, branch="large")])
    with pytest.raises(UsageError, match="no vision branch"):
        check_bundle(dataclasses.replace(manifest, vision=None), [FULL])


# Going on.


class Stopping:
    """An answerer that stops before its `after` + 1st answer, as by Ctrl-C."""

    def __init__(self, inner: Answerer, after: int) -> None:
        self._inner, self._left = inner, after
        self.look_at, self.close = inner.look_at, inner.close

    def ask(self, question: str) -> Reply:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return self._inner.ask(question)


@pytest.mark.parametrize(("after", "kept"), [(0, 0), (1, 0), (3, 3), (4, 3)])  # the first picture has 3
@pytest.mark.parametrize("cut", [b"", b'{"arm": "nano ti'])
def test_a_stopped_run_goes_on_to_the_same_answers(
    after: int,
    kept: int,
    cut: bytes,
    dataset: Dataset,
    open_bundle: Callable[[Arm], Answerer],
    tmp_path: Path,
) -> None:
    out, run = tmp_path / "out", a_run(dataset)
    ledger = Ledger.open(out, run, dataset)
    with pytest.raises(KeyboardInterrupt):
        ask(dataset, lambda arm: Stopping(open_bundle(arm), after), TILE, ledger=ledger)
    with (out / RESULTS_FILE).open("ab") as file:
        file.write(cut)  # a line that a killed run left behind
    resumed = Ledger.open(out, run, dataset)
    assert len(resumed.answers) == kept
    ask(dataset, open_bundle, TILE, SMALL, ledger=resumed)
    whole = ask(dataset, open_bundle, TILE, SMALL)
    assert without_costs(resumed.answers) == without_costs(whole)
    assert Ledger.open(out, run, dataset).answers == resumed.answers


def test_what_is_there_is_not_asked_again(
    dataset: Dataset, open_bundle: Callable[[Arm], Answerer], tmp_path: Path
) -> None:
    run = a_run(dataset)
    ask(first_questions(dataset, 1), open_bundle, TILE, ledger=Ledger.open(tmp_path / "out", run, dataset))
    opened: list[Arm] = []

    def counted(arm: Arm) -> Answerer:
        opened.append(arm)
        return open_bundle(arm)

    more = a_run(dataset, models={"other": "2"})  # a further model may be asked
    for expected in ([TILE], [TILE]):
        ledger = Ledger.open(tmp_path / "out", more, dataset)
        ask(dataset, counted, TILE, ledger=ledger)
        assert opened == expected
    assert json.loads((tmp_path / "out" / "run.json").read_text())["models"] == {"nano": "1", "other": "2"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": {"nano": "2"}}, "model nano has changed"),
        ({"questions": "x"}, "the questions or their pictures have changed"),
        ({"max_new_tokens": 9}, "max_new_tokens was 4, now 9"),
        ({"threads": 2}, "threads was 1, now 2"),
    ],
)
def test_answers_of_another_run_are_refused(
    changed: dict[str, object], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    Ledger.open(tmp_path / "out", a_run(dataset), dataset)
    with pytest.raises(UsageError, match=message):
        Ledger.open(tmp_path / "out", a_run(dataset, **changed), dataset)


def test_folders_of_others_are_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="holds other files"):
        Ledger.open(tmp_path, a_run(dataset), dataset)
    with pytest.raises(UsageError, match="is a file"):
        Ledger.open(tmp_path / "holiday.jpg", a_run(dataset), dataset)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        Ledger.open(tmp_path, a_run(dataset), dataset)


def test_the_digest_follows_questions_and_pictures(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset.folder, folder)
    before = questions_digest(Dataset.read(folder))
    assert before == questions_digest(dataset)
    with (folder / "images" / "coffee.jpg").open("ab") as file:
        file.write(b"more")
    assert questions_digest(Dataset.read(folder)) != before
    lines = (folder / QUESTIONS_FILE).read_text().replace("astronaut?", "pilot?")
    (folder / QUESTIONS_FILE).write_text(lines)
    assert questions_digest(Dataset.read(folder)) != before


# Figures.


def answer(number: int, said: str, expected: str = "3.5 bar", **fields: object) -> Answer:
    base = Answer(
        "nano tile base", str(number), f"{number // 2}.jpg", "read", 20.0, "?", expected, said,
        said == expected, said.startswith("3.5"), number % 2 == 0, 30, 40, 3, 10.0 * (number + 1), 100.0, 5,
    )  # fmt: skip
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def summary(answers: list[Answer], first: list[Answer]) -> ArmSummary:
    return summarise("nano tile base", "nano", "tile", "base", answers, first)


def test_figures_of_an_arm_are_counted_from_its_answers() -> None:
    first = [answer(number, "3.5 bar") for number in range(4)]
    answers = [
        answer(0, "3.5 bar", text_px=12.0),
        answer(1, "3.50 bar", text_px=None),
        answer(2, "on", visual_tokens=10, peak_resident_bytes=9),
        answer(3, "3.5 bar", type="count"),
    ]
    found = summary(answers, first)
    assert (found.scores.exact.value, found.scores.numeric.value) == (0.5, 0.75)
    assert (found.kept, found.agreement) == (0.5, 0.5)
    cost = found.cost
    assert (cost.pictures, cost.visual_tokens, cost.visual_tokens_unrouted) == (2, 40, 80)
    assert (cost.visual_tokens_per_picture, cost.saved, cost.peak_resident_bytes) == (20.0, 0.5, 9)
    assert (cost.first_token.median_ms, cost.first_token.p90_ms) == (20.0, 28.0)  # of 10 and 30 ms
    assert cost.first_token_again.median_ms == 30.0  # of 20 and 40 ms
    assert [(s.group, s.exact.right, s.exact.asked) for s in found.by_type] == [
        ("count", 1, 1),
        ("read", 1, 3),
    ]
    assert [(s.group, s.exact.asked) for s in found.by_text_px] == [("<16", 1), ("16-24", 2)]


def test_nothing_is_kept_of_nothing() -> None:
    wrong = [answer(0, "on")]
    assert summary(wrong, wrong).kept is None


def test_text_sizes_fall_into_bins_by_their_lower_edge() -> None:
    assert TEXT_SIZE_BINS == ("<16", "16-24", "24-40", "40-80", ">=80")
    sizes = {1.0: "<16", 15.9: "<16", 16.0: "16-24", 39.9: "24-40", 80.0: ">=80", 900.0: ">=80"}
    assert {px: text_size_bin(px) for px in sizes} == sizes
    assert text_size_bin(None) is None


def test_plots_name_every_arm_and_join_the_fixed_scales(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    from vqa.plots import draw, draw_accuracy, draw_text_size

    answers = [answer(number, "3.5 bar", text_px=10.0 * (number + 1)) for number in range(4)]
    arms = [
        summarise(f"nano {routing} {branch}", "nano", routing, branch, answers, answers)
        for branch in ("base", "large")
        for routing in ("fixed:1", "fixed:0.5", "tile")
    ]
    axes = figure.Figure().add_subplot()
    draw_accuracy(axes, arms)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [f"{r} {b}" for b in ("base", "large") for r in ("fixed:1", "fixed:0.5", "tile")]
    joins = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [len(line.get_xdata()) for line in joins] == [2, 2]
    assert joins[0].get_color() != joins[1].get_color()
    points = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() in "osD"]
    assert len({float(line.get_xdata()[0]) for line in points}) == len(arms), "equal arms hide each other"
    assert len({(line.get_color(), line.get_marker()) for line in points}) == len(arms)
    _, right = axes.get_xlim()
    assert max(float(line.get_xdata()[0]) for line in points) < 0.99 * right
    axes = figure.Figure().add_subplot()
    draw_text_size(axes, arms)
    assert [label.get_text().split(" ")[0] for label in axes.get_xticklabels()] == [
        "<16",
        "16-24",
        "24-40",
        "40-80",
    ]
    assert [path.name for path in draw(arms, tmp_path)] == ["accuracy.png", "text_size.png"]
    without = [dataclasses.replace(arm, by_text_px=()) for arm in arms]
    assert [path.name for path in draw(without, tmp_path)] == ["accuracy.png"]
