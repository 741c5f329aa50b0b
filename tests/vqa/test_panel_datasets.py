"""Folders and contact sheets of panels, also as `toolkit data` makes them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from rpi_runtime.errors import UsageError
from toolkit.commands.data import make, sample
from vqa.dataset import QUESTIONS_FILE, Dataset
from vqa.panels.contact_sheet import contact_sheet
from vqa.panels.dataset import Made, make_dataset
from vqa.panels.panel import make_panel
from vqa.panels.questions import TYPES, ask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_dataset(tmp_path_factory.mktemp("panels") / "test", "test", questions=8, per_picture=4)


def test_a_folder_is_read_as_any_dataset(made: Made) -> None:
    dataset = Dataset.read(made.folder)
    assert len(dataset.questions) == made.questions >= 8
    assert len(dataset.by_image()) == made.pictures
    assert sum(made.types.values()) == made.questions
    assert set(made.types) <= set(TYPES)
    for image, questions in dataset.by_image().items():
        panel = make_panel("test", int(image.stem))
        asked = ask(panel, 4)
        assert Image.open(image).size == panel.image.size
        assert [(q.text, q.answer, q.type) for q in questions] == [(a.text, a.answer, a.type) for a in asked]
        for question, one in zip(questions, asked, strict=True):
            assert question.text_px == pytest.approx(one.text_px, abs=0.051)


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(made: Made, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    again = make_dataset(
        tmp_path / "again", "test", 8, 4, on_question=lambda done, of: heard.append((done, of))
    )
    assert _bytes(again.folder) == _bytes(made.folder)
    assert heard[-1] == (8, 8)
    assert heard == sorted(heard)
    other = make_dataset(tmp_path / "other", "test", 2, 2, seed=1)
    assert (other.folder / QUESTIONS_FILE).read_bytes() != (made.folder / QUESTIONS_FILE).read_bytes()


def test_a_folder_that_exists_is_left_alone(made: Made) -> None:
    before = _bytes(made.folder)
    with pytest.raises(UsageError, match="exists"):
        make_dataset(made.folder, "test", 1)
    assert _bytes(made.folder) == before


def test_an_unknown_split_writes_nothing(tmp_path: Path) -> None:
    for attempt in (
        lambda: make_dataset(tmp_path / "data", "tests", 1),
        lambda: contact_sheet(tmp_path / "sheet.png", "tests", 1),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert "test" in f"{caught.value.message} {caught.value.remedy}"
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing_and_touches_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "data.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "data", "train", 9, 1, on_question=interrupt)
    assert list(tmp_path.iterdir()) == [mine]
    folder = make_dataset(tmp_path / "data", "train", 1, 1).folder
    assert [file.name for file in (folder / "images").iterdir()] == ["000000.jpg"]
    assert folder.stat().st_mode & 0o777 == (folder / "images").stat().st_mode & 0o777
    assert (mine / "notes.txt").read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == [folder, mine]


def test_a_contact_sheet_shows_panels_four_in_a_row(tmp_path: Path) -> None:
    sample(tmp_path / "sheet.png", "train", count=5, seed=0)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.format == "PNG"
    assert sheet.size == (4 * 320, 2 * (320 + 46))
    for number in range(5):
        column, row = number % 4, number // 4
        cell = sheet.crop((column * 320, row * 366, column * 320 + 320, row * 366 + 320))
        assert len(cell.getcolors(320 * 320) or ()) > 100
    empty = sheet.crop((320, 366, 1280, 732))
    assert empty.getcolors() == [(960 * 366, (255, 255, 255))]


def test_a_sheet_that_is_no_png_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        contact_sheet(tmp_path / "sheet.jpg", "train", 1)
    assert not list(tmp_path.iterdir())


def test_data_make_tells_what_it_wrote_as_json(tmp_path: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        make(tmp_path / "data", "validation", questions=2, per_picture=2, seed=0, as_json=True)
    told = json.loads(printed.getvalue())
    assert told["questions"] == len(Dataset.read(tmp_path / "data").questions)
    assert told["pictures"] == len(list((tmp_path / "data" / "images").iterdir()))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
