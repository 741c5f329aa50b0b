"""Pictures as they were routed, with what was answered about them; those with wrong answers come first."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from field.plan import PICTURES
from field.report.runs import Answer, Results, Routing
from field.report.svg import tag
from field.report.words import counted, percent
from rpi_runtime.errors import EdgeError
from rpi_runtime.images import open_image

MOST_PICTURES = 12
MAX_WIDTH_PX, MAX_HEIGHT_PX = 900, 1200
MAX_JPEG_BYTES = 160_000
_QUALITIES = (82, 70, 55, 40, 25)
_MOST_ROUTINGS, _MOST_QUESTIONS, _MOST_ANSWERS = 3, 8, 6
SIDE_COLOURS = 6  # classes `t0` (the largest side) to `t5`


@dataclass(frozen=True)
class Said:
    answer: str
    is_right: bool | None
    who: str
    times: int


@dataclass(frozen=True)
class Asked:
    question: str
    expected: str | None
    said: tuple[Said, ...]
    more: int  # answers that are not shown


@dataclass(frozen=True)
class Routed:
    who: str
    told: str
    svg: Markup


@dataclass(frozen=True)
class Card:
    name: str
    missing: str  # why the picture itself is not shown; "" when it is
    definition: Markup  # its pixels, once for all of `routed`
    routed: tuple[Routed, ...]
    more_routings: int
    asked: tuple[Asked, ...]
    more_questions: int
    wrong: int  # questions with a wrong answer
    questions: int


@dataclass(frozen=True)
class Who:
    device: str
    variant: str


@dataclass(frozen=True)
class _Seen:
    """One answer, by whom, and where the picture may lie."""

    who: Who
    folder: Path
    answer: Answer


def picture_cards(results: Results) -> tuple[list[Card], int]:
    """At most `MOST_PICTURES`, and how many are left out."""
    everybody = [Who(device.name, v.name) for device in results.devices for v in device.variants]
    seen: dict[str, list[_Seen]] = {}
    for device in results.devices:
        for answer in device.answers:
            if answer.image:
                one = _Seen(Who(device.name, answer.variant), results.folder / device.folder, answer)
                seen.setdefault(answer.image_sha256 or answer.image, []).append(one)
    sides = sorted({s for all_ in seen.values() for one in all_ if one.answer.routing
                    for s in one.answer.routing.sides_px}, reverse=True)  # fmt: skip
    colours = {side: min(i, SIDE_COLOURS - 1) for i, side in enumerate(sides)}
    chosen = _chosen(list(seen.values()))
    cards = [_card(i, about, colours, everybody, results.folder) for i, about in enumerate(chosen)]
    return cards, len(seen) - len(cards)


def _chosen(pictures: list[list[_Seen]]) -> list[list[_Seen]]:
    """Those with most wrong answers to different questions; the others spread evenly over the test."""
    wrong = sorted((p for p in pictures if _wrong(p)), key=lambda p: -len(_wrong(p)))[:MOST_PICTURES]
    others = [p for p in pictures if not _wrong(p)]
    room = min(MOST_PICTURES - len(wrong), len(others))
    return wrong + [others[i * len(others) // room] for i in range(room)]


def _wrong(about: Iterable[_Seen]) -> set[str]:
    return {one.answer.case for one in about if one.answer.exact is False}


def _card(
    number: int, about: list[_Seen], colours: Mapping[int, int], everybody: Sequence[Who], root: Path
) -> Card:
    cases: dict[str, list[_Seen]] = {}
    for one in about:
        cases.setdefault(one.answer.case, []).append(one)
    wrong = _wrong(about)
    order = sorted(cases, key=lambda case: case not in wrong)
    shown = [_asked(cases[case], everybody) for case in order[:_MOST_QUESTIONS]]
    name = f"picture-{number}"
    try:
        picture = _jpeg(_file(about, root))
        missing = ""
    except (EdgeError, OSError) as error:
        picture, missing = None, error.message if isinstance(error, EdgeError) else "it cannot be read"
    routed, more = _routed(about, colours, name, picture, everybody) if picture else ((), 0)
    return Card(
        name="/".join(about[0].answer.image.split("/")[-2:]),  # where it is on somebody's disk is theirs
        missing=missing,
        definition=_definition(name, picture) if picture else Markup(""),
        routed=routed,
        more_routings=more,
        asked=tuple(shown),
        more_questions=len(cases) - len(shown),
        wrong=len(wrong),
        questions=len(cases),
    )


def _asked(about: list[_Seen], everybody: Sequence[Who]) -> Asked:
    said: dict[tuple[str, bool | None], list[Who]] = {}
    for one in about:
        said.setdefault((one.answer.answer, one.answer.exact), []).append(one.who)
    order = sorted(said, key=lambda key: (key[1] is not False, -len(said[key])))
    shown = [Said(*key, _told(said[key], everybody), len(said[key])) for key in order[:_MOST_ANSWERS]]
    first = about[0].answer
    return Asked(first.question, first.expected, tuple(shown), len(order) - len(shown))


def _told(found: Iterable[Who], everybody: Sequence[Who]) -> str:
    """As few words as tell it: a variant alone, where all devices that have it are meant."""
    names = dict.fromkeys(found)
    if len(names) == len(everybody):
        return "all" if len(everybody) > 1 else everybody[0].variant
    told = []
    for variant in dict.fromkeys(one.variant for one in names):
        mine = [one.device for one in names if one.variant == variant]
        if len(mine) == sum(one.variant == variant for one in everybody):
            told.append(variant)
        else:
            told.append(f"{variant} ({', '.join(mine)})")
    return " · ".join(told)


def _file(about: Iterable[_Seen], root: Path) -> Path:
    """Raises OSError without one. A record's name is no path: it may be anything."""
    for one in about:
        for folder in (one.folder / PICTURES, root / PICTURES):
            path = folder / Path(one.answer.image_file).name
            if one.answer.image_file and path.is_file() and not path.is_symlink():
                return path
    raise FileNotFoundError


@dataclass(frozen=True)
class _Jpeg:
    width: int
    height: int
    content: bytes


def _jpeg(path: Path) -> _Jpeg:
    """Made anew, so that nothing that a camera wrote beside the pixels, as where it was, gets into a page."""
    picture = open_image(path)
    width, height = picture.size
    scale = min(1.0, MAX_WIDTH_PX / width, MAX_HEIGHT_PX / height)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture.decode(*small)
    image = Image.fromarray(picture.crop((0, 0, width, height), *small))
    for quality in _QUALITIES:
        written = io.BytesIO()
        image.save(written, "JPEG", quality=quality, optimize=True)
        if written.tell() <= MAX_JPEG_BYTES:
            break
    return _Jpeg(*small, written.getvalue())


def _definition(name: str, picture: _Jpeg) -> Markup:
    data = f"data:image/jpeg;base64,{base64.b64encode(picture.content).decode()}"
    return tag("image", id=name, href=data, width=picture.width, height=picture.height)


def _routed(
    about: Sequence[_Seen], colours: Mapping[int, int], name: str, picture: _Jpeg, everybody: Sequence[Who]
) -> tuple[tuple[Routed, ...], int]:
    """One for each way in which the picture was routed, and how many are left out."""
    found: dict[Routing, list[Who]] = {}
    for one in about:
        if one.answer.routing is not None:
            found.setdefault(one.answer.routing, []).append(one.who)
    drawn = [
        Routed(_told(who, everybody), routing_told(routing), _drawn(routing, colours, name, picture))
        for routing, who in list(found.items())[:_MOST_ROUTINGS]
    ]
    return tuple(drawn), len(found) - len(drawn)


def routing_told(routing: Routing) -> str:
    grid = Counter(routing.grid_sides_px)
    sides = ", ".join(f"{grid[side]} at {side} px" for side in sorted(grid, reverse=True))
    thumbnail = routing.sides_px[len(routing.grid_sides_px) :]
    used = sum(routing.tokens)
    told = f"{counted(len(routing.grid_sides_px), 'tile')}: {sides}"
    told += f"; thumbnail at {thumbnail[0]} px" if thumbnail else ""
    told += f"; {used:,} visual tokens"
    if routing.tokens_unrouted > used:
        told += f" of {routing.tokens_unrouted:,}, {percent(1 - used / routing.tokens_unrouted)} saved"
    return told


def _drawn(routing: Routing, colours: Mapping[int, int], name: str, picture: _Jpeg) -> Markup:
    width, height = picture.width, picture.height
    border = max(1.0, width / 200)
    across, down = width / routing.columns, height / routing.rows
    size = max(1.0, min(width / 24, across / 5.5, down / 2.5))
    drawn = [tag("use", href=f"#{name}")]
    for i, side in enumerate(routing.grid_sides_px):
        left, top = i % routing.columns * across, i // routing.columns * down
        label, style = f"{side} px", f"t{colours[side]}"
        told = f"{label}, {counted(routing.tokens[i], 'token')}"
        wide = size * (0.6 * len(label) + 0.5)
        drawn += [
            tag("rect", tag("title", told), class_=f"tile {style}", stroke_width=border,
                x=left + border / 2, y=top + border / 2, width=across - border, height=down - border),
            tag("rect", class_=f"chip {style}", x=left, y=top, width=wide, height=1.4 * size),
            tag("text", label, class_=f"on {style}", style=f"font-size:{size:.1f}px",
                x=left + 0.3 * size, y=top + 1.05 * size),
        ]  # fmt: skip
    return tag(
        "svg", tag("title", "The picture with its tiles"), tag("desc", routing_told(routing)), *drawn,
        viewBox=f"0 0 {width} {height}", role="img",
    )  # fmt: skip
