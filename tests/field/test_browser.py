"""What the browser of our tests tells of a page: each fault is found, and a page without one has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from toolkit.cli import app

pytestmark = pytest.mark.emulation

WritePage = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> WritePage:
    def written(body: str) -> Path:
        path = tmp_path / "page with a space.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><title>A page</title>{body}", encoding="utf-8")
        return path

    return written


def test_a_page_without_a_fault_has_none(browser: Any, write: WritePage) -> None:
    page = browser.open(
        write("<h1>Grüße</h1><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"), width=360
    )
    assert (page.errors, page.outgoing, page.overflow()) == ([], [], [])
    assert page.text == "Grüße"
    assert page.evaluate("innerWidth") == 360


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<script>console.error('oh', 3)</script>", "oh 3"),
        ("<script>throw new TypeError('boom')</script>", "TypeError: boom"),
        ("<script>Promise.reject(new Error('later'))</script>", "Error: later"),
        ("<script>const = 1</script>", "SyntaxError"),
        ("<img src=nope.png>", "nope.png"),
    ],
)
def test_what_goes_wrong_in_a_page_is_told(browser: Any, write: WritePage, body: str, told: str) -> None:
    (error,) = browser.open(write(body)).errors
    assert told in error


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ("<link rel=stylesheet href='https://fonts.example/a.css'>", "https://fonts.example/a.css"),
        ("<img src='//cdn.example/a.png'>", "file://cdn.example/a.png"),
        ("<script>fetch('http://127.0.0.1:9/x').catch(() => 0)</script>", "http://127.0.0.1:9/x"),
        ("<script>new WebSocket('ws://127.0.0.1:9/')</script>", "ws://127.0.0.1:9/"),
        ("<style>body { background: url(https://cdn.example/b.png) }</style>", "https://cdn.example/b.png"),
    ],
)
def test_what_a_page_wants_from_a_network_is_told(
    browser: Any, write: WritePage, body: str, url: str
) -> None:
    (asked,) = browser.open(write(body)).outgoing
    assert asked.endswith(url)


def test_what_reaches_beyond_the_window_is_told_and_what_can_be_scrolled_to_is_not(
    browser: Any, write: WritePage
) -> None:
    path = write(
        "<style>div { overflow-x: auto } p { width: 900px }</style>"
        "<div><p>within</p></div><p id=wide class='a b'>out</p>"
    )
    assert browser.open(path, width=360).overflow() == [
        "page: 908 px in 360",
        "p#wide.a.b: 8 to 908 px in 360",
    ]
    assert browser.open(path, width=1000).overflow() == []


def test_colour_scheme_media_and_motion_are_those_that_were_asked_for(browser: Any, write: WritePage) -> None:
    path = write(
        "<style>body { background: white } @media (prefers-color-scheme: dark) { body { background: black } }"
        "@media print { p { display: none } }"
        "@media (prefers-reduced-motion) { h1 { display: none } }</style>"
        "<h1>moves</h1><p>shown</p>"
    )
    background = "getComputedStyle(document.body).backgroundColor"
    assert browser.open(path).evaluate(background) == "rgb(255, 255, 255)"
    assert browser.open(path, dark=True).evaluate(background) == "rgb(0, 0, 0)"
    assert browser.open(path, print_media=True).text == "moves"
    assert browser.open(path, reduced_motion=True).text == "shown"


def test_a_click_a_picture_and_a_print(browser: Any, write: WritePage, tmp_path: Path) -> None:
    page = browser.open(
        write("<button onclick=\"this.textContent = 'done'\">go</button><p style='height: 2000px'>"),
        width=500,
    )
    page.click("button")
    assert page.text == "done"
    page.screenshot(tmp_path / "page.png")
    page.pdf(tmp_path / "page.pdf")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == 500
        assert picture.height > 2000
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_file_that_is_not_there_cannot_be_opened(browser: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ERR_FILE_NOT_FOUND"):
        browser.open(tmp_path / "none.html")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_of_delegates_has_no_fault(
    browser: Any, variants_bundle: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    path = tmp_path / "page.html"
    asked = ["delegates", str(variants_bundle), "--target", "nnapi:29", "--html", str(path)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    page = browser.open(path, width=width, dark=dark)
    assert (page.errors, page.outgoing, page.overflow()) == ([], [], [])
    assert "NNAPI" in page.text
