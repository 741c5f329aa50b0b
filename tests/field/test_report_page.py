"""The report of a field test in a browser: it complains of nothing, fetches nothing, and fits every width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from field.report import write_report
from tests.field.field_results import VARIANTS, Device, eventful, write_suite

pytestmark = pytest.mark.emulation

BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 22, 29)"
# Texts of drawings, but for those on a picture, that lie upon each other, or outside of their drawing.
COLLISIONS = """[...document.querySelectorAll("figure > svg")].flatMap(drawing => {
    const area = drawing.getBoundingClientRect();
    const texts = [...drawing.querySelectorAll("text:not(.on)")]
        .map(one => [one.firstChild.nodeValue, one.getBoundingClientRect()]);
    const found = texts.filter(([, box]) => box.left < area.left - 12 || box.right > area.right + 12)
        .map(([text]) => `outside: ${text}`);
    texts.forEach(([text, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && high > 3) found.push(`${text} / ${other}`);
    }));
    return found;
})"""
SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll("figure > svg text:not(.on)")].map(one =>
    parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getScreenCTM().a))"""
# WCAG 2's contrast of each text in the page with what is behind it.
PALE = """(() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = color => { const [r, g, b] = rgb(color).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const found = new Set();
    for (const element of document.querySelectorAll("body *:not(svg, svg *)")) {
        if (![...element.childNodes].some(one => one.nodeType === 3 && one.nodeValue.trim())) continue;
        let behind = element;
        while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
        const colors = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        const [a, b] = colors.map(light).sort((a, b) => b - a);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.add(element.tagName + "." + element.className);
    }
    return [...found];
})()"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_suite(folder)
    eventful().write(folder)
    eventful("adb://0123456789", slow=30, seed=50).write(folder, "adb-0123456789")
    return folder


@pytest.fixture(scope="module")
def page_file(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    earlier = tmp_path_factory.mktemp("earlier")
    eventful(seed=9, slow=1.2).write(earlier)
    target = results / "report.html"
    write_report(results, target, earlier)
    return target


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_a_complaint_or_a_request_and_nothing_sticks_out(
    browser: Any, page_file: Path, width: int, dark: bool
) -> None:
    page = browser.open(page_file, width=width, dark=dark)
    assert (page.errors, page.outgoing, page.overflow()) == ([], [], [])
    assert page.evaluate(BACKGROUND) == (DARK if dark else LIGHT)
    assert page.evaluate(COLLISIONS) == []
    assert page.evaluate("[...document.images].length") == 0
    page.close()


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(browser: Any, page_file: Path, dark: bool) -> None:
    page = browser.open(page_file, dark=dark)
    assert page.evaluate(PALE) == []
    page.close()


def test_drawings_can_be_read_on_a_phone(browser: Any, page_file: Path) -> None:
    page = browser.open(page_file, width=360)
    assert page.evaluate(SMALLEST_TEXT) >= 9.5
    page.close()


def test_pictures_are_drawn_where_they_are_routed(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page = browser.open(page_file, width=800)
    page.evaluate("document.querySelector('.routed svg').scrollIntoView()")
    box = page.evaluate(
        "(({x, y, width, height}) => [x, y + scrollY, width, height])"
        "(document.querySelector('.routed svg').getBoundingClientRect())"
    )
    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as shot:
        picture = shot.convert("RGB").crop(
            (round(box[0]), round(box[1]), round(box[0] + box[2]), round(box[1] + box[3]))
        )
    colours = picture.getcolors(maxcolors=1 << 20)
    assert colours is not None
    assert len(colours) > 100  # noise, not an empty frame
    page.close()


def test_it_prints_in_light_colours_whatever_the_theme(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page = browser.open(page_file, width=700, dark=True, print_media=True)
    assert page.evaluate(BACKGROUND) == LIGHT
    assert page.overflow() == []
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(one => one.scrollWidth <= one.clientWidth)"
    )
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.close()


def test_hostile_texts_neither_run_nor_stick_out(browser: Any, tmp_path: Path) -> None:
    evil = "</svg><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    long = "M" * 300
    device = Device(
        f"ssh://{long}", machine={"model": long, "os": evil}, bundle={"name": long, "id": long},
        variants=[{**VARIANTS[0], "name": long, "route": long}],
    )  # fmt: skip
    photo = device.picture(1)
    for i, text in enumerate((evil, long)):
        device.answer(
            text, variant=long, image=photo, question=text, expected=text, answer=text, type=text, exact=i > 0
        )
    device.telemetry(long, temperature_c={long: 50.0}, watts={evil: 1.0})
    device.telemetry(long, temperature_c={long: 51.0}, watts={evil: 1.5})
    device.error(long, variant=long, message=long, remedy=evil)
    device.event(long, long)
    device.write(tmp_path)
    write_report(tmp_path, tmp_path / "report.html")
    for width in (360, 1280):
        page = browser.open(tmp_path / "report.html", width=width)
        assert (page.errors, page.outgoing, page.overflow()) == ([], [], [])
        assert page.evaluate("document.title").startswith("Field test")
        assert "<script>" in page.text
        page.close()
