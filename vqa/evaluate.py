"""Asks every question of a dataset of every arm, and writes down what was answered and what it cost.

An arm is one way to answer: a model with a routing and a vision branch. Who answers is an `Answerer`: a
bundle on the device runtime (`BundleAnswerer`), or the PyTorch reference (`hypervl.answering`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rpi_runtime.encoder import BRANCHES, RoutedPicture
from rpi_runtime.errors import EdgeError, UsageError
from rpi_runtime.generation import Generation, Options, Turn
from rpi_runtime.kernel import memory, reset_peak
from rpi_runtime.manifest import VRC, Manifest
from rpi_runtime.prompt import Message, tokenise
from rpi_runtime.routing import Routing, choose_branch
from rpi_runtime.session import Session
from vqa.dataset import Dataset, Question
from vqa.results import Answer, Ledger
from vqa.scoring import exact_match, numeric_match


@dataclass(frozen=True)
class Arm:
    model: str  # name, unique in a run
    routing: Routing
    branch: str  # "base", "large" or "auto"

    @property
    def label(self) -> str:
        return f"{self.model} {self.routing} {self.branch}"


@dataclass(frozen=True)
class Reply:
    """What an `Answerer` says, and what that took; fields as in `Answer`."""

    text: str
    visual_tokens: int
    visual_tokens_unrouted: int
    new_tokens: int
    first_token_ms: float
    answer_ms: float


class Answerer(Protocol):
    def look_at(self, image: Path) -> None:
        """The questions that follow are about `image`; everything from before is forgotten."""

    def ask(self, question: str) -> Reply: ...

    def close(self) -> None: ...


def evaluate(
    dataset: Dataset,
    arms: Sequence[tuple[Arm, Callable[[], Answerer]]],
    ledger: Ledger,
    on_answer: Callable[[Arm, int, int], None] = lambda arm, done, of: None,
) -> None:
    """Adds to `ledger` every answer that it lacks; `on_answer` hears of each, and of how many there will be.

    Arms are asked one after another, in their order, and only one is open at a time. Raises what the
    answerers raise, with the picture's name before it; what was answered until then is in the ledger.
    """
    answered = {(answer.arm, answer.id) for answer in ledger.answers}
    left = {
        arm: [
            (image, questions)
            for image, questions in dataset.by_image().items()
            if any((arm.label, question.id) not in answered for question in questions)
        ]
        for arm, _ in arms
    }
    total, done = sum(len(questions) for pictures in left.values() for _, questions in pictures), 0
    for arm, open_answerer in arms:
        if not left[arm]:
            continue
        reset_peak()
        with closing(open_answerer()) as answerer:
            for image, questions in left[arm]:
                for answer in _about(dataset, image, questions, arm, answerer):
                    ledger.add(answer)
                    done += 1
                    on_answer(arm, done, total)


class BundleAnswerer:
    """Asks a bundle on the device runtime, whose KV cache keeps a picture from question to question."""

    def __init__(self, session: Session, routing: Routing, branch: str, max_new_tokens: int) -> None:
        self._session = session
        self._options = Options(routing, branch, max_new_tokens=max_new_tokens)
        self._image = Path()
        self._known: tuple[RoutedPicture, ...] = ()

    def look_at(self, image: Path) -> None:
        self._session.need_vision([image])
        self._session.decoder.kv.keep(0)
        self._image, self._known = image, ()

    def ask(self, question: str) -> Reply:
        items = tokenise(self._session.codec, [Message("user", question, images=1)])
        # A picture that is known is neither opened nor routed again.
        turn = Turn(items, self._known, () if self._known else (self._image,))
        generation = Generation(self._session, turn, self._options)
        for _ in generation:
            pass
        self._known = generation.pictures
        report = generation.report
        return Reply(
            text=generation.text,
            visual_tokens=report.visual_tokens,
            visual_tokens_unrouted=report.visual_tokens_unrouted,
            new_tokens=report.new_tokens,
            first_token_ms=report.times.first_token_ms - report.times.load_ms,
            answer_ms=report.times.total_ms - report.times.load_ms,
        )

    def close(self) -> None:
        self._session.close()


def first_questions(dataset: Dataset, count: int) -> Dataset:
    """The first pictures of `dataset` that have `count` questions or more, with all of theirs."""
    kept: set[Path] = set()
    questions = 0
    for image, about in dataset.by_image().items():
        if questions >= count:
            break
        kept.add(image)
        questions += len(about)
    return Dataset(dataset.folder, tuple(q for q in dataset.questions if q.image in kept))


def check_bundle(manifest: Manifest, arms: Iterable[Arm]) -> None:
    """Raises `UsageError` for an arm that the bundle cannot answer, before hours of work begin."""
    if manifest.vision is None or manifest.decoder is None:
        missing = "vision branch" if manifest.vision is None else "decoder"
        raise UsageError(
            f"the bundle of {manifest.model!r} has no {missing}, so it cannot be asked about pictures",
            "Convert with the components vrc, vision_base and decoder.",
        )
    branches = {branch for branch, component in BRANCHES.items() if manifest.component(component)}
    for arm in arms:
        choose_branch(arm.branch, (), manifest.vision, branches)
        if arm.routing.mode != "fixed" and manifest.component(VRC) is None:
            raise UsageError(
                f"the bundle of {manifest.model!r} has no VRC, which routing {arm.routing} asks",
                "Use fixed:<scale>, or convert with the component vrc.",
            )


def _about(
    dataset: Dataset, image: Path, questions: Sequence[Question], arm: Arm, answerer: Answerer
) -> Iterator[Answer]:
    name = image.relative_to(dataset.folder).as_posix()
    answerer.look_at(image)
    for number, question in enumerate(questions):
        try:
            reply = answerer.ask(question.text)
        except EdgeError as error:
            if name not in error.message:
                error.message = f"{name}, question {question.id}: {error.message}"
            raise
        yield Answer(
            arm=arm.label,
            id=question.id,
            image=name,
            type=question.type,
            text_px=question.text_px,
            question=question.text,
            expected=question.answer,
            answer=reply.text,
            exact=exact_match(reply.text, question.answer),
            numeric=numeric_match(reply.text, question.answer),
            new_picture=number == 0,
            visual_tokens=reply.visual_tokens,
            visual_tokens_unrouted=reply.visual_tokens_unrouted,
            new_tokens=reply.new_tokens,
            first_token_ms=round(reply.first_token_ms, 3),
            answer_ms=round(reply.answer_ms, 3),
            peak_resident_bytes=memory().peak_resident_bytes,
        )
