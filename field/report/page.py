"""The page: everything in one file, without a script, that opens without a network.

What devices and models said is text and nothing else: Jinja and `svg.tag` escape it, and the page's own
policy (CSP) forbids scripts and whatever is not in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from field import records
from field.plan import RECORDS_FILE
from field.report import svg, values
from field.report.comparison import Comparison, compare
from field.report.device_charts import device_charts
from field.report.figures import Figures, figures_of
from field.report.pictures import picture_cards
from field.report.reader import read_results
from field.report.runs import DeviceRun, Failure, Results
from field.report.share_chart import Bar, share_chart
from field.report.spread_chart import Strip, spread_chart
from field.report.svg import Drawing
from field.report.tables import Fact, comparison_tables, device_facts
from field.report.values import printable, text
from field.report.verdict import verdict
from field.report.words import duration, moment
from field.version import own_version
from field.whole_page import check_page, write_whole

_TEMPLATE = "data/report.html.jinja"
_MOST_EVENTS = 60  # of one device
_BAD = (records.RESTART, records.REBOOT, records.LOST)


@dataclass(frozen=True)
class _Happened:
    when: str
    what: str
    text: str
    is_bad: bool


@dataclass(frozen=True)
class _Device:
    name: str
    facts: tuple[Fact, ...]
    charts: tuple[Drawing, ...]
    happened: tuple[_Happened, ...]
    more: int  # of what happened
    raw: str


def write_report(results: Path, target: Path, earlier: Path | None = None) -> None:
    """Writes the page of the folder `results` to `target`, whole or not at all.

    `earlier` is the folder of an earlier field test, or the page in it. Raises `UsageError` for a folder that
    has no field test, and `ResourceError` when `target` cannot be written.
    """
    found = read_results(results)
    check_page(target)
    before = None if earlier is None else read_results(earlier.parent if earlier.is_file() else earlier)
    page = render(found, before)
    write_whole(target, page)


def render(results: Results, earlier: Results | None = None) -> str:
    """The same records give the same page."""
    found = [(device, figures_of(device)) for device in results.devices]
    figures = [one for _, of_device in found for one in of_device]
    colours = svg.colours_of(one.variant.name for one in figures)
    cards, left_out = picture_cards(results)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string((resources.files("field") / _TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        name=text(results.suite, "name") or printable(results.folder.resolve().name),
        when=_when(results.devices),
        suite=_suite(results),
        verdict=verdict(found),
        devices=[_device(device, colours) for device in results.devices],
        tables=comparison_tables(figures),
        charts=_charts(found, colours),
        cards=cards,
        left_out=left_out,
        comparison=_comparison(results, found, earlier),
        earlier_when=_when(earlier.devices) if earlier else "",
        version=own_version(),
    )


def _shown(value: Any) -> Any:
    """A number as it is; every text without what could turn the page."""
    if isinstance(value, Markup):
        return value
    return printable(value) if isinstance(value, str) else value


def _charts(
    found: Sequence[tuple[DeviceRun, Sequence[Figures]]], colours: dict[str, int]
) -> dict[str, list[Drawing]]:
    """Of times: all devices in one drawing. Of what was right: one for each device."""
    many = len(found) > 1

    def name(one: Figures) -> str:
        return f"{one.device}, {one.variant.name}" if many else one.variant.name

    def strips(which: str) -> list[Strip]:
        return [
            Strip(name(one), colours[one.variant.name], spread)
            for _, of_device in found
            for one in of_device
            if (spread := getattr(one, which)) is not None
        ]

    def bars(of_device: Sequence[Figures], which: str) -> list[Bar]:
        names = dict.fromkeys(group.name for one in of_device for group in getattr(one, which))
        order = sorted(names) if which == "by_type" else sorted(names, key=lambda n: -int(n.split()[0]))
        return [
            Bar(group.name, one.variant.name, colours[one.variant.name], group.exact)
            for wanted in order
            for one in of_device
            for group in getattr(one, which)
            if group.name == wanted
        ]

    times = [spread_chart("Time to the first token", strips("first_token"))]
    times.append(spread_chart("Time to the whole answer", strips("answer")))
    shares = [
        share_chart(f"Right answers by {what}" + (f", {device.name}" if many else ""), bars(of_device, which))
        for what, which in (("question type", "by_type"), ("tile side", "by_side"))
        for device, of_device in found
    ]
    return {"times": _there(times), "shares": _there(shares)}


def _there(drawings: Iterable[Drawing | None]) -> list[Drawing]:
    return [one for one in drawings if one is not None]


def _device(device: DeviceRun, colours: dict[str, int]) -> _Device:
    happened = [(f.at_s, "error", _failure(f), f.t, True) for f in device.failures]
    happened += [(e.at_s, e.what or "event", e.text, e.t, e.what in _BAD) for e in device.events]
    happened.sort(key=lambda one: one[0])
    shown = happened if len(happened) <= _MOST_EVENTS else [*happened[: _MOST_EVENTS - 1], happened[-1]]
    return _Device(
        name=device.name,
        facts=device_facts(device),
        charts=tuple(device_charts(device, colours)),
        happened=tuple(_Happened(moment(t), what, told, is_bad) for _, what, told, t, is_bad in shown),
        more=len(happened) - len(shown),
        raw=f"{device.folder}/{RECORDS_FILE}",
    )


def _failure(failure: Failure) -> str:
    of = ", ".join(part for part in (failure.variant, failure.case) if part)
    ending = " It was given up." if failure.is_final else ""
    remedy = f" {failure.remedy}" if failure.remedy else ""
    return f"{of}: {failure.message}.{ending}{remedy}" if of else f"{failure.message}.{ending}{remedy}"


def _when(devices: Sequence[DeviceRun]) -> str:
    """The days, by UTC."""
    times = [t for device in devices for t in (device.began, device.ended) if t is not None]
    if not times:
        return ""
    first, last = moment(min(times))[:10], moment(max(times))[:10]
    return first if first == last else f"{first} to {last}"


def _suite(results: Results) -> list[Fact]:
    """What was asked, of `suite.json`."""
    suite = results.suite
    lists = {key: len(value) for key, value in suite.items() if isinstance(value, list)}
    numbers = {key: value for key in suite if (value := values.number(suite, key)) is not None}
    found = [
        Fact("questions", f"{lists['cases']:,}") if lists.get("cases") else None,
        Fact("questions about new pictures", f"{lists['live']:,}") if lists.get("live") else None,
        Fact("variants", f"{lists['variants']:,}") if lists.get("variants") else None,
        Fact("rounds", f"{numbers['repetitions']:,.0f}") if numbers.get("repetitions") else None,
        Fact("soak", duration(numbers["soak_s"])) if numbers.get("soak_s") else None,
        Fact("new tokens at most", f"{numbers['max_new_tokens']:,.0f}")
        if numbers.get("max_new_tokens")
        else None,
    ]
    return [fact for fact in found if fact is not None]


def _comparison(
    results: Results, found: Sequence[tuple[DeviceRun, Sequence[Figures]]], earlier: Results | None
) -> Comparison | None:
    if earlier is None:
        return None
    return compare(results, found, earlier, [(device, figures_of(device)) for device in earlier.devices])
