"""A folder of questions is read whole, or refused with the line that is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_runtime.errors import UsageError
from vqa.dataset import QUESTIONS_FILE, UNTYPED, Dataset, Question, write_questions

GOOD = {"image": "a.jpg", "question": "What?", "answer": "3 bar"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"")
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Callable[[str], Dataset]:
    def written(text: str) -> Dataset:
        (folder / QUESTIONS_FILE).write_text(text, encoding="utf-8")
        return Dataset.read(folder)

    return written


def test_fields_may_be_left_out(read: Callable[[str], Dataset], folder: Path) -> None:
    (question,) = read("\n" + json.dumps(GOOD) + "\n").questions
    assert question == Question(folder / "a.jpg", "What?", "3 bar", UNTYPED, None, id="2")  # its line


def test_what_is_written_is_read(folder: Path) -> None:
    questions = (
        Question(folder / "a.jpg", "Was?", "3,5 °C", "read", 17.5, "1"),
        Question(folder / "b.jpg", "And?", "not shown", "other", None, "2"),
    )
    write_questions(folder, questions)
    assert Dataset.read(folder).questions == questions


def test_questions_are_found_by_picture_in_order(read: Callable[[str], Dataset], folder: Path) -> None:
    names = ["b.jpg", "a.jpg", "b.jpg"]
    dataset = read("\n".join(json.dumps({**GOOD, "image": name}) for name in names))
    ids = {image.name: [q.id for q in questions] for image, questions in dataset.by_image().items()}
    assert ids == {"b.jpg": ["1", "3"], "a.jpg": ["2"]}
    assert list(ids) == ["b.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "questions.jsonl:2: not JSON"),
        ("[" * 100_000, "questions.jsonl:2: not JSON"),
        ("[1]", "questions.jsonl:2: not a JSON object"),
        ({"answer": None}, "'answer' is missing"),
        ({"question": " "}, "'question' is ' '"),
        ({"type": 3}, "'type' is 3"),
        ({"image": "../a.jpg"}, "lies outside"),
        ({"image": "/etc/hostname"}, "lies outside"),
        ({"image": "c.jpg"}, "no picture"),
        ({"text_px": 0}, "'text_px' is 0"),
        ({"text_px": True}, "'text_px' is True"),
        ({"text_px": "12"}, "'text_px' is '12'"),
    ],
)
def test_a_wrong_line_is_named(
    line: str | dict[str, object], message: str, read: Callable[[str], Dataset]
) -> None:
    text = line if isinstance(line, str) else json.dumps({**GOOD, **line})
    with pytest.raises(UsageError) as raised:
        read(json.dumps(GOOD) + "\n" + text)
    assert message in raised.value.message
    assert raised.value.remedy


def test_two_questions_of_one_id_are_refused(read: Callable[[str], Dataset]) -> None:
    line = json.dumps({**GOOD, "id": "same"})
    with pytest.raises(UsageError, match=r"questions\.jsonl:2: the id 'same' is that of line 1, too"):
        read(f"{line}\n{line}")
    with pytest.raises(UsageError, match=r"questions\.jsonl:3: the id '1' is that of line 1, too"):
        read(f"{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, 'id': '1'})}")


def test_a_mark_of_byte_order_is_no_part_of_the_text(read: Callable[[str], Dataset]) -> None:
    assert read("\ufeff" + json.dumps(GOOD)).questions[0].text == GOOD["question"]


def test_folders_without_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        Dataset.read(tmp_path / "missing")
    with pytest.raises(UsageError, match=f"has no {QUESTIONS_FILE}"):
        Dataset.read(tmp_path)
    (tmp_path / QUESTIONS_FILE).write_bytes(b"\n\n")
    with pytest.raises(UsageError, match="holds no question"):
        Dataset.read(tmp_path)
    (tmp_path / QUESTIONS_FILE).write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        Dataset.read(tmp_path)


_JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner))


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from([*GOOD, "type", "text_px", "id", "more"]), _JSON))
def test_no_line_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.jpg").write_bytes(b"")
    (folder / QUESTIONS_FILE).write_text(json.dumps({**GOOD, **record}), encoding="utf-8")
    with contextlib.suppress(UsageError):
        assert len(Dataset.read(folder).questions) == 1
