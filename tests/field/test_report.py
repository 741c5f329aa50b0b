"""The report of a field test: every figure is right, and nothing that a device wrote can harm the page."""

from __future__ import annotations

import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from field.report import write_report
from field.report.clock import TimeAxis
from field.report.comparison import NO_DIFFERENCE, compare
from field.report.figures import Figures, figures_of, spread, typical_side_px
from field.report.pictures import MOST_PICTURES, picture_cards
from field.report.reader import read_device, read_results
from field.report.runs import Results
from field.report.verdict import verdict
from rpi_runtime.errors import ResourceError, UsageError
from tests.field.field_results import VARIANTS, Device, eventful, write_suite
from toolkit.cli import app
from vqa.intervals import wilson

VOID = {"meta", "br", "img", "link", "input", "hr"}
MAX_PAGE_BYTES = 3_000_000


class Page(HTMLParser):
    """A page as a reader gets it; every element that is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.shown: list[str] = []
        self.drawings: list[dict[str, str]] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.shown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.drawings.append({})
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("href", "src", "action", "srcset", "data", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("title", "desc") and "svg" in self.open:
            self.drawings[-1].setdefault(self.open[-1], data)
        elif "style" not in self.open:
            self.shown.append(data)


def page_of(results: Path, earlier: Path | None = None) -> Page:
    target = results / "report.html"
    write_report(results, target, earlier)
    page = Page(target.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def figures(device: Device, folder: Path) -> tuple[Figures, ...]:
    return figures_of(read_device(device.write(folder)))


# Figures.


def test_times_are_quantiles_of_answers_without_opening_graphs(tmp_path: Path) -> None:
    device = Device()
    measured = [310.5, 2200.0, 480.25, 95.0, 640.0, 700.0, 333.0, 1100.0, 90.0, 505.0]
    for i, ms in enumerate(measured):
        device.answer(str(i), total_ms=ms + 40, first_ms=ms / 2 + 40, load_ms=40)
    found = figures(device, tmp_path)[0]
    cuts = statistics.quantiles(measured, n=20, method="inclusive")
    assert found.answer is not None
    assert found.first_token is not None
    assert found.answer.median == pytest.approx(statistics.median(measured))
    assert (found.answer.quarter, found.answer.three_quarters) == pytest.approx((cuts[4], cuts[14]))
    assert found.answer.p95 == pytest.approx(cuts[18])
    assert (found.answer.least, found.answer.most) == pytest.approx((90, 2200))
    assert found.first_token.median == pytest.approx(statistics.median(measured) / 2)


def test_one_answer_is_its_own_median_and_percentile() -> None:
    found = spread([7.0])
    assert found is not None
    assert (found.least, found.median, found.p95, found.most) == (7, 7, 7, 7)
    assert spread([]) is None


def test_accuracy_has_wilsons_interval_where_each_picture_is_asked_about_once(tmp_path: Path) -> None:
    device = Device()
    for i in range(10):
        device.answer(str(i), exact=i < 7, numeric=i < 8)
    found = figures(device, tmp_path)[0]
    assert found.exact is not None
    assert found.numeric is not None
    assert (found.exact.right, found.exact.asked) == (7, 10)
    assert (found.exact.low, found.exact.high) == pytest.approx(wilson(0.7, 10))
    assert found.numeric.right == 8


def test_asking_again_does_not_make_an_interval_narrower(tmp_path: Path) -> None:
    once, again = Device(), Device()
    for i in range(12):
        once.answer(str(i), exact=i < 7)
    for repetition in range(20):
        for i in range(12):
            again.answer(str(i), exact=i < 7, repetition=repetition)
    few, many = figures(once, tmp_path / "1")[0], figures(again, tmp_path / "2")[0]
    assert few.exact is not None
    assert many.exact is not None
    assert many.exact.asked == 240
    assert many.questions == 12
    assert many.exact.high - many.exact.low > 0.9 * (few.exact.high - few.exact.low)


def test_accuracy_is_told_for_each_type_and_for_the_side_of_most_tiles(tmp_path: Path) -> None:
    device = Device()
    photo = device.picture(1)
    device.answer("1", image=photo, type="read", sides=(384, 384, 384, 128, 128))
    device.answer("2", image=photo, type="read", sides=(128, 128, 128, 384, 384), exact=False)
    device.answer("3", image=photo, type="count", sides=(384, 384, 128, 128, 384))
    device.answer("4", type="text")
    found = figures(device, tmp_path)[0]
    assert [(g.name, g.exact.right, g.exact.asked) for g in found.by_type] == [
        ("count", 1, 1), ("read", 1, 2), ("text", 1, 1),
    ]  # fmt: skip
    assert [(g.name, g.exact.right, g.exact.asked) for g in found.by_side] == [
        ("384 px", 2, 2), ("128 px", 0, 1),
    ]  # fmt: skip


def test_the_larger_of_equally_frequent_sides_counts_and_the_thumbnail_does_not(tmp_path: Path) -> None:
    device = Device()
    device.answer(image=device.picture(1), sides=(384, 384, 128, 128, 128))
    (answer,) = read_device(device.write(tmp_path)).answers
    assert answer.routing is not None
    assert typical_side_px(answer.routing) == 384


def test_tokens_speed_and_energy(tmp_path: Path) -> None:
    device = Device()
    photo = device.picture(1)
    device.answer("1", image=photo, sides=(384, 384, 128, 128, 384), total_ms=2000, load_ms=500)
    device.telemetry(watts={"pmic": 5.0, "usb": 1.0})
    device.answer("2", image=photo, sides=(128,) * 5, total_ms=1000)
    device.telemetry(watts={"pmic": 7.0})
    device.telemetry("full", watts={"pmic": 100.0})
    found = figures(device, tmp_path)[0]
    assert found.visual_tokens == pytest.approx((464 + 80) / 2)
    assert found.saved == pytest.approx(1 - 544 / 1440)
    assert found.new_tokens == 4
    assert found.decode_tokens_per_s == 20
    power = {one.sensor: one for one in found.power}
    assert power["pmic"].mean_watts == pytest.approx(6)
    assert power["pmic"].mwh_per_answer == pytest.approx(6 * 1.5 / 3600 * 1000)  # 1.5 s is the mean answer
    assert power["usb"].mean_watts == 1


def test_memory_is_the_highest_of_answers_and_telemetry_against_the_budget(tmp_path: Path) -> None:
    device = Device()
    device.answer(peak_bytes=131_000_000)
    device.telemetry(peak_resident_bytes=257_000_000)
    device.answer(variant="full", peak_bytes=999_000_000)
    tile, full = figures(device, tmp_path)
    assert (tile.peak_resident_bytes, tile.budget_bytes, tile.is_over_budget) == (
        257_000_000,
        256_000_000,
        True,
    )
    assert (full.peak_resident_bytes, full.budget_bytes, full.is_over_budget) == (999_000_000, None, False)
    assert "1.0 MB over its budget" in page_of(tmp_path).text


def test_throttling_counts_while_it_is_so_and_not_what_was_before_the_test(tmp_path: Path) -> None:
    device = Device()
    device.telemetry(throttled=0x50000)  # since the boot: under-voltage, was throttled
    device.telemetry(throttled=0x50000)
    device.telemetry("full", throttled=0x50008)
    device.telemetry("full", throttled=0x70000)  # the clock was capped between two samples
    tile, full = figures(device, tmp_path)
    assert tile.throttled == ()
    assert full.throttled == ("the clock is capped", "at the soft temperature limit")


def test_a_device_that_does_not_tell_of_throttling_is_not_said_to_be_free_of_it(tmp_path: Path) -> None:
    device = Device()
    device.answer()
    device.telemetry(throttled=None, temperature_c={"cpu": 50.0})
    assert figures(device, tmp_path)[0].throttled is None
    assert "throttling" not in page_of(tmp_path).text


def test_heat_and_clock_are_those_while_the_variant_was_asked(tmp_path: Path) -> None:
    device = Device()
    device.telemetry(temperature_c={"cpu": 61.0, "gpu": 64.5}, clock_mhz={"cpu0": 600.0, "cpu4": 2400.0})
    device.telemetry("full", temperature_c={"cpu": 85.0}, clock_mhz={"cpu0": 1500.0})
    tile, full = figures(device, tmp_path)
    assert (tile.hottest_c, tile.hottest_zone) == (64.5, "gpu")
    assert (tile.slowest_mhz, tile.fastest_mhz) == (600, 2400)
    assert (full.hottest_c, full.fastest_mhz) == (85, 1500)


def test_a_restart_belongs_to_the_variant_that_it_names_or_that_was_asked(tmp_path: Path) -> None:
    device = Device()
    device.answer()
    device.event("restart", variant="full")
    device.error("9", variant="full", fatal=False)
    device.event("restart")
    device.error("9", variant="full")
    tile, full = figures(device, tmp_path)
    assert (tile.restarts, full.restarts) == (0, 2)
    assert (full.errors, full.given_up) == (2, 1)


# Reading.


def test_a_torn_last_line_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    device = Device()
    device.answer()
    folder = device.write(tmp_path)
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"kind":"answer","t":176000\xff')
    found = read_device(folder)
    assert (len(found.answers), found.unreadable) == (1, 1)


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b'{"kind": 7}',
        b'{"kind": "answer"}',
        b'{"kind": "answer", "variant": 3, "case": []}',
        b"[" * 100_000,
        b"\x00" * 4096,
    ],
)
def test_what_is_no_record_is_counted(tmp_path: Path, line: bytes) -> None:
    device = Device()
    device.answer()
    folder = device.write(tmp_path)
    with (folder / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert read_device(folder).unreadable == 1
    assert "1 unreadable" in page_of(tmp_path).text


def test_kinds_of_another_version_are_counted_and_left_alone(tmp_path: Path) -> None:
    device = Device()
    device.answer()
    device.add("hologram", depth=3)
    found = read_device(device.write(tmp_path))
    assert (found.unknown, found.unreadable) == (1, 0)
    assert "1 of unknown kinds" in page_of(tmp_path).text


def test_a_record_that_was_fetched_twice_counts_once(tmp_path: Path) -> None:
    device = Device()
    device.answer()
    device.lines.append(device.lines[-1])
    assert len(read_device(device.write(tmp_path)).answers) == 1


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "1e999", "1" + "0" * 400, '"hot"', "null", "[]", "true"]
)
def test_values_that_are_no_numbers_are_as_if_not_measured(tmp_path: Path, value: str) -> None:
    device = Device()
    device.answer()
    device.telemetry()
    device.lines[-1] = device.lines[-1].replace("61.5", value).replace("2400.0", value)
    device.lines[-1] = device.lines[-1].replace("120000000", value)
    found = figures(device, tmp_path)[0]
    assert found.hottest_c is None
    assert found.slowest_mhz is None
    page_of(tmp_path)


def test_a_report_of_an_answer_that_cannot_be_read_leaves_the_answer(tmp_path: Path) -> None:
    device = Device()
    device.answer("1", report={"times": "soon", "images": [{"sides_px": [384], "tokens": [1, 2]}]})
    device.answer("2", report=None, exact=False)
    found = figures(device, tmp_path)[0]
    assert found.exact is not None
    assert (found.exact.right, found.exact.asked) == (1, 2)
    assert found.answer is None
    page_of(tmp_path)


def test_a_clock_that_jumps_does_not_stretch_the_test() -> None:
    axis = TimeAxis()
    told = [axis.place(t, ran_s) for t, ran_s in (
        (100.0, 0.0), (110.0, 10.0),
        (1_760_000_000.0, 20.0),  # it found a time server
        (1_760_000_060.0, 30.0),  # the device was away for 50 s
        (30.0, 35.0),  # it started anew, in 1970
        (40.0, 45.0),
    )]  # fmt: skip
    assert told == [0, 10, 20, 80, 85, 95]


def test_records_without_their_running_time_are_placed_by_the_clock() -> None:
    axis = TimeAxis()
    assert [axis.place(t, None) for t in (100.0, 104.0, 103.0, None, 109.0)] == [0, 4, 4, 4, 10]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=25)
def test_whatever_values_records_have_there_is_a_page(data: st.DataObject) -> None:
    device = eventful()
    device.pictures.clear()  # they take most of the time
    lines = [json.loads(line) for line in device.lines]
    for _ in range(data.draw(st.integers(1, 12))):
        place = data.draw(st.sampled_from(lines))
        while isinstance(inner := place[key := data.draw(st.sampled_from(sorted(place)))], dict) and inner:
            if data.draw(st.booleans()):
                break
            place = inner
        place[key] = data.draw(JSON)
    device.lines = [json.dumps(line) for line in lines]
    with TemporaryDirectory() as folder:
        device.write(Path(folder))
        page_of(Path(folder), Path(folder))


# What is missing.


def test_without_expected_answers_no_accuracy_is_shown(tmp_path: Path) -> None:
    device = Device()
    device.answer(expected=None, exact=None, numeric=None)
    page = page_of(write_and_get(device, tmp_path))
    assert "no expected answers" in page.text
    assert "right, exactly" not in page.text
    assert "How many were right" not in page.text


def test_without_telemetry_there_are_no_drawings_over_time(tmp_path: Path) -> None:
    device = Device()
    device.answer()
    page = page_of(write_and_get(device, tmp_path))
    assert "Over time" not in page.text
    assert "hottest" not in page.text


def test_a_device_with_nothing_but_errors_has_its_errors_told(tmp_path: Path) -> None:
    device = Device()
    device.error(message="no memory for it", remedy="Give 512MB or more.")
    page = page_of(write_and_get(device, tmp_path))
    assert "no memory for it" in page.text
    assert "Give 512MB or more." in page.text
    assert "no answers" in page.text


def test_a_device_that_was_never_reached_is_told(tmp_path: Path) -> None:
    device = Device()
    device.lines.clear()
    device.host("lost", "ssh: connect to host pi5.local port 22: No route to host")
    page = page_of(write_and_get(device, tmp_path))
    assert "No route to host" in page.text
    assert "0 answers from 1 device" in page.text


def test_a_test_that_no_device_has_begun_still_has_a_page(tmp_path: Path) -> None:
    write_suite(tmp_path)
    assert "No device has recorded anything." in page_of(tmp_path).text


def test_a_folder_without_a_field_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no results of a field test"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(UsageError, match="holds no results of a field test"):
        write_report(tmp_path / "none", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"plan": 3}', '{"repetitions": Infinity, "cases": 7}'])
def test_a_suite_that_cannot_be_read_leaves_the_rest(tmp_path: Path, content: str) -> None:
    device = Device()
    device.answer()
    device.write(tmp_path)
    (tmp_path / "suite.json").write_text(content)
    assert "1 answer from 1 device" in page_of(tmp_path).text


# The page.


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_suite(folder)
    eventful().write(folder)
    eventful("adb://0123456789", slow=5, seed=50).write(folder, "adb-0123456789")
    return folder


def write_and_get(device: Device, folder: Path) -> Path:
    device.write(folder)
    return folder


def test_the_page_needs_nothing_else_and_runs_nothing(results: Path) -> None:
    page = page_of(results)
    html = (results / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:https?|ws|ftp|file):", html)
    assert "script" not in page.tags
    assert not [tag for tag in page.tags if tag in ("link", "iframe", "object", "embed", "form", "a")]
    assert page.links
    assert all(link.startswith(("#picture-", "data:image/jpeg;base64,")) for link in page.links)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "@import" not in html
    assert "url(" not in html
    assert len(html.encode()) < MAX_PAGE_BYTES


def test_it_follows_the_theme_the_paper_and_the_width(results: Path) -> None:
    page_of(results)
    html = (results / "report.html").read_text(encoding="utf-8")
    for query in ("prefers-color-scheme: dark", "media print", "max-width: 40rem"):
        assert f"@media ({query})" in html or f"@{query}" in html


def test_it_tells_devices_figures_events_and_where_the_records_are(results: Path) -> None:
    text = page_of(results).text
    for told in (
        "Field test: panels", "48 answers from 2 devices", "Raspberry Pi 5 Model B Rev 1.0",
        "Cortex-A76, 4 cores", "asimd asimddp fphp", "4.1 GB, 209.0 MB swap", "0.1.0 (aaaaaaaaaaaaaaaa)",
        "nano (bbbbbbbbbbbbbbbb)", "2025-10-09 08:53:20", "ssh-pi-pi5.local/records.jsonl",
        "adb-0123456789/records.jsonl", "1 restart of the process", "1 reboot", "1 time out of reach",
        "No route to host", "killed by signal 9", "What does gauge 0 read?", "at the soft temperature limit",
    ):  # fmt: skip
        assert told in text


def test_it_keeps_users_folders_and_groups_to_itself(results: Path) -> None:
    page_of(results)
    html = (results / "report.html").read_text(encoding="utf-8")
    assert "private" not in html
    assert str(results.parent) not in html


def test_nothing_of_ours_is_taken_for_unprintable(results: Path) -> None:
    text = page_of(results, results).text
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert "95 %" in text


def test_of_a_pictures_place_only_its_last_folder_is_told(tmp_path: Path) -> None:
    device = Device()
    device.answer(image=device.picture(1))
    device.lines[-1] = device.lines[-1].replace(
        '"image": "photo.jpg"', '"image": "../../home/me/set/photo.jpg"'
    )
    text = page_of(write_and_get(device, tmp_path)).text
    assert " set/photo.jpg" in text
    assert "home" not in text


def test_every_drawing_has_a_name_and_says_what_it_shows(results: Path) -> None:
    drawings = [one for one in page_of(results).drawings if one]
    titles = [one["title"] for one in drawings]
    for title in (
        "Time to the first token", "Time to the whole answer", "Right answers by question type, adb://0123456789",
        "Right answers by tile side, ssh://pi@pi5.local", "Temperature", "Clock", "Power",
        "Memory of the answering process", "The picture with its tiles",
    ):  # fmt: skip
        assert title in titles
    assert all(one["desc"] for one in drawings)
    assert any(re.match(r"cpu-thermal: 5\d.* to 9\d.* °C", one["desc"]) for one in drawings)


def test_the_same_records_give_the_same_page(results: Path) -> None:
    page_of(results)
    first = (results / "report.html").read_bytes()
    page_of(results)
    assert (results / "report.html").read_bytes() == first


def test_what_a_model_or_a_device_says_is_text(tmp_path: Path) -> None:
    evil = "</svg></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    evil += "{{ 7 * 7 }}\u202egnp.exe\x00\ud800"
    device = Device(
        f"ssh://{evil}", machine={"model": evil, "cpu_names": [evil], "os": evil, "clock_s": evil},
        bundle={"name": evil, "id": evil}, runtime={"version": evil, "id": 3},
        variants=[{**VARIANTS[0], "name": evil, "route": evil, "memory": evil}],
    )  # fmt: skip
    photo = device.picture(1)
    device.answer(
        evil, variant=evil, image=photo, question=evil, expected=evil, answer=evil, type=evil, exact=False
    )
    device.telemetry(evil, temperature_c={evil: 50.0}, clock_mhz={evil: 1.0}, watts={evil: 1.0})
    device.error(evil, variant=evil, message=evil, remedy=evil)
    device.event(evil, evil)
    device.event("restart", evil)
    write_suite(tmp_path, {"name": evil})
    page = page_of(write_and_get(device, tmp_path))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "{{ 7 * 7 }}" in html
    assert not set("\u202e\x00\ud800") & set(html)
    assert "<script>alert(1)</script>" in page.text


def test_long_texts_are_cut(tmp_path: Path) -> None:
    device = Device()
    for i in range(40):
        device.answer(str(i), answer="word " * 50_000, image=device.picture(0), exact=False)
    page_of(write_and_get(device, tmp_path))
    assert (tmp_path / "report.html").stat().st_size < MAX_PAGE_BYTES


def test_a_long_test_has_a_small_page(tmp_path: Path) -> None:
    device = Device()
    for i in range(20_000):
        device.pass_time(2)
        device.telemetry(
            temperature_c={f"zone {n}": 50 + (i * (n + 7)) % 40 / 3 for n in range(12)},
            clock_mhz={f"cpu{n}": 600.0 + (i * (n + 1)) % 1800 for n in range(8)},
            resident_bytes=10**8 + i,
        )
        if i % 20 == 0:
            device.answer(str(i % 50))
        if i % 50 == 0:
            device.event("restart")
    page = page_of(write_and_get(device, tmp_path))
    assert (tmp_path / "report.html").stat().st_size < MAX_PAGE_BYTES
    assert "5 more sensors, none higher, are in the records." in page.text


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/hostname", "..", "", "no\x00pe"])
def test_a_picture_is_only_looked_for_among_the_pictures(tmp_path: Path, name: str) -> None:
    device = Device()
    photo = device.picture(1)
    device.answer(image=(photo[0], name))
    Image.new("RGB", (50, 50)).save(tmp_path / "secret.jpg")
    results = tmp_path / "results"
    page = page_of(write_and_get(device, results))
    assert page.links == []
    assert "The picture cannot be shown" in page.text


def test_pictures_lose_what_cameras_write_beside_the_pixels(tmp_path: Path) -> None:
    device = Device()
    _, name = device.picture(1)
    device.answer(image=("1" * 64, name))
    folder = device.write(tmp_path)
    exif = Image.Exif()
    exif[0x010F] = "private camera"
    Image.new("RGB", (80, 60), "navy").save(folder / "pictures" / name, exif=exif, comment=b"private comment")
    page = page_of(tmp_path)
    assert "private" not in (tmp_path / "report.html").read_text()
    assert len(page.links) == 2  # the picture once, and where it is drawn


def test_pictures_with_wrong_answers_come_first_and_those_left_out_are_counted(tmp_path: Path) -> None:
    device = Device()
    for i in range(MOST_PICTURES + 5):
        photo = device.picture(i, (40 + i, 30))
        for question in range(3):
            is_right = not (i == 9 or (i == 14 and question))
            device.answer(f"{i}-{question}", image=photo, exact=is_right)
    device.write(tmp_path)
    cards, left_out = picture_cards(read_results(tmp_path))
    assert (len(cards), left_out) == (MOST_PICTURES, 5)
    assert [card.wrong for card in cards] == [3, 2] + [0] * (MOST_PICTURES - 2)
    assert "5 more pictures are left out" in page_of(tmp_path).text


def test_a_picture_that_was_routed_in_two_ways_is_drawn_twice_and_stored_once(tmp_path: Path) -> None:
    device = Device()
    photo = device.picture(1)
    device.answer("1", image=photo, sides=(384, 128, 128, 128, 384), exact=False)
    device.answer("1", variant="full", image=photo, sides=(384,) * 5)
    page = page_of(write_and_get(device, tmp_path))
    assert sum(link.startswith("data:") for link in page.links) == 1
    assert page.links.count("#picture-0") == 2
    assert "4 tiles: 1 at 384 px, 3 at 128 px; thumbnail at 384 px; 336 visual tokens of 720" in page.text
    assert "✗ wrong" in page.text
    assert "✓ right" in page.text


# The verdict.


def test_a_test_without_trouble_is_said_to_be_fine(tmp_path: Path) -> None:
    device = Device()
    for i in range(4):
        device.answer(str(i), exact=i > 0)
    device.event("done")
    device.write(tmp_path)
    told = verdict([(one, figures_of(one)) for one in read_results(tmp_path).devices])
    assert told.is_fine
    assert told.sentences[0] == "4 answers from 1 device in 2 s."
    assert (
        told.sentences[1] == "75\N{NO-BREAK SPACE}% (30 to 95\N{NO-BREAK SPACE}%) of the answers are right."
    )
    assert (
        told.sentences[-1] == "No errors, no restarts, no memory budget exceeded."
    )  # of throttling it told nothing


def test_what_must_be_looked_at_is_named(tmp_path: Path) -> None:
    device = Device()
    device.answer(peak_bytes=300_000_000)
    device.telemetry(throttled=1)
    device.error()
    device.write(tmp_path)
    told = verdict([(one, figures_of(one)) for one in read_results(tmp_path).devices])
    assert not told.is_fine
    (sentence,) = (one for one in told.sentences if one.startswith("To look at"))
    for part in ("not done", "1 error (1 given up)", "44.0 MB over its memory budget", "under-voltage"):
        assert part in sentence


# Beside an earlier test.


def compared(now: Device, before: Device, folder: Path) -> tuple[Results, dict[str, tuple[str, ...]]]:
    now.write(folder / "now")
    before.write(folder / "before")
    found, earlier = read_results(folder / "now"), read_results(folder / "before")
    told = compare(
        found,
        [(d, figures_of(d)) for d in found.devices],
        earlier,
        [(d, figures_of(d)) for d in earlier.devices],
    )
    rows = {c.figure: (c.before, c.now, c.change, c.in_percent, c.verdict) for c in told.compared[0].changes}
    return found, rows


def test_each_figure_is_shown_with_its_change(tmp_path: Path) -> None:
    now, before = Device(), Device()
    for device, ms in ((now, 500.0), (before, 400.0)):
        device.answer(total_ms=ms, first_ms=ms / 2)
        device.telemetry(temperature_c={"cpu": ms / 10})
    _, rows = compared(now, before, tmp_path)
    assert rows["answer, median"] == ("400 ms", "500 ms", "+100 ms", "+25\N{NO-BREAK SPACE}%", "")
    assert rows["hottest"] == ("40.0 °C", "50.0 °C", "+10.0 °C", "", "")
    assert rows["peak memory"][2] == "none"
    assert "slowest clock" in rows


@pytest.mark.parametrize(
    ("right_before", "right_now", "verdict_told"),
    [(60, 70, NO_DIFFERENCE), (30, 70, "better"), (70, 30, "worse"), (50, 50, NO_DIFFERENCE)],
)
def test_accuracy_differs_only_where_intervals_do(
    tmp_path: Path, right_before: int, right_now: int, verdict_told: str
) -> None:
    now, before = Device(), Device()
    for device, right in ((now, right_now), (before, right_before)):
        for i in range(100):
            device.answer(str(i), exact=i < right, answer="yes" if i < right else "no")
    _, rows = compared(now, before, tmp_path)
    assert rows["right, exactly"][4] == verdict_told
    assert rows["answered otherwise"][1] == f"{abs(right_now - right_before)} of 100"


def test_what_makes_two_tests_unlike_is_told(tmp_path: Path) -> None:
    now = Device(bundle={"name": "nano", "id": "c" * 16}, suite_sha256="6" * 64)
    before = Device("ssh://pi@other.local")
    for device in (now, before):
        device.answer()
    before.answer(variant="gone")
    now.write(tmp_path / "now")
    before.write(tmp_path / "before")
    write_report(tmp_path / "before", tmp_path / "before/report.html")
    text = page_of(tmp_path / "now", tmp_path / "before/report.html").text  # the page stands for its folder
    assert "ssh://pi@pi5.local is compared with ssh://pi@other.local: another device." in text
    assert "it was another suite" in text
    assert "it was another bundle, bbbbbbbbbbbbbbbb and not cccccccccccccccc." in text
    assert "there is no gone any more" in text


# The command.


def test_the_command_makes_the_page_again(results: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["field-report", str(results)])
    assert done.exit_code == 0, done.output
    target = tmp_path / "other.html"
    done = CliRunner().invoke(
        app, ["field-report", str(results), "-o", str(target), "--compare", str(results)]
    )
    assert done.exit_code == 0, done.output
    assert "Compared with an earlier test of 2025-10-09" in Page(target.read_text(encoding="utf-8")).text
    assert {path.name for path in results.iterdir()} >= {"report.html", "suite.json"}


@pytest.mark.parametrize(
    ("target", "told"), [("report.txt", "is not a .html"), ("none/report.html", "there is no folder")]
)
def test_a_page_that_cannot_be_is_refused(results: Path, tmp_path: Path, target: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        write_report(results, tmp_path / target)


def test_a_page_is_there_whole_or_not_at_all(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    target.write_text("the one before")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ResourceError, match="No space left"):
        write_report(results, target)
    assert target.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_records_are_never_written_to(results: Path) -> None:
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    page_of(results)
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads(before[results / "suite.json"])["plan"]["name"] == "panels"
