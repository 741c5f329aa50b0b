"""Draws a scene: the panel, its elements, and where each came to lie."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vqa.panels.fonts import with_cap_height
from vqa.panels.scene import ON, Box, Element, Scene
from vqa.panels.segments import draw_segments, segments_width

Colour = tuple[int, int, int]
_LAMPS: dict[str, Colour] = {
    "red": (235, 40, 30), "green": (50, 220, 70), "amber": (250, 170, 30), "blue": (60, 120, 250),
}  # fmt: skip


Glyph = tuple[str, float, float, float, float]  # a character, its middle (x, y), width and height, px


@dataclass(frozen=True)
class Drawn:
    """An element on the upright picture."""

    element: Element
    label: Box  # of its name
    body: Box  # of what shows its value
    label_px: float  # height of the name's capitals
    text_px: float  # height of what must be read to know its value
    glyphs: tuple[Glyph, ...]  # every character of name, value and unit


def draw_scene(
    chance: random.Random, scene: Scene, fonts: list[str]
) -> tuple[Image.Image, tuple[Drawn, ...]]:
    """The upright panel, RGB, as large as the picture will be, and its elements."""
    face = _panel_colour(chance)
    image = Image.new("RGB", scene.size_px, face)
    pen = _Pen(
        chance,
        image,
        ImageDraw.Draw(image),
        face,
        scene.cap_px,
        chance.choice(fonts),
        below=chance.random() < 0.25,
        centred=chance.random() < 0.75,
    )
    pen.panel(scene.panel)
    drawn = tuple(pen.element(cell, element, chance.choice(fonts)) for cell, element in scene.cells)
    return image, drawn


def _panel_colour(chance: random.Random) -> Colour:
    if chance.random() < 0.7:
        grey = chance.randint(25, 235)
        return (
            min(255, grey + chance.randint(0, 14)),
            min(255, grey + chance.randint(0, 12)),
            min(255, grey + chance.randint(0, 16)),
        )
    return chance.choice(((40, 60, 90), (200, 190, 160), (70, 90, 70), (120, 40, 40), (225, 200, 60)))


@dataclass
class _Pen:
    chance: random.Random
    image: Image.Image
    draw: ImageDraw.ImageDraw
    face: Colour
    cap: float  # the smallest, px
    font: str  # of the labels
    below: bool  # labels lie below what they name, all over the panel
    centred: bool  # in their cells; else on the left
    middle: float = 0.0  # of the label above or below what is being drawn, px
    glyphs: list[Glyph] = field(default_factory=list)  # of the element being drawn

    def panel(self, box: Box) -> None:
        if self.chance.random() < 0.6:
            self.draw.rectangle(box, outline=_shift(self.face, -45), width=max(1, round(self.cap / 6)))
        if self.chance.random() < 0.4:
            radius = self.cap / 3
            for x in (box[0] + 1.5 * radius, box[2] - 1.5 * radius):
                for y in (box[1] + 1.5 * radius, box[3] - 1.5 * radius):
                    self._circle(x, y, radius, _shift(self.face, -30), _shift(self.face, -70))

    def element(self, cell: Box, element: Element, font: str) -> Drawn:
        """Label above or below, body in what remains of the cell."""
        chance = self.chance
        pad = 0.35 * self.cap
        left, upper, right, lower = cell[0] + pad, cell[1] + pad, cell[2] - pad, cell[3] - pad
        if chance.random() < 0.25:
            self.draw.rectangle((left, upper, right, lower), outline=_shift(self.face, 30))
            left, upper, right, lower = left + pad / 2, upper + pad / 2, right - pad / 2, lower - pad / 2
        highest = min(3.0 * self.cap, (lower - upper) * 0.2)
        label_cap = self._between(self.cap, highest)
        label_font = self._fitted(self.font, element.name, label_cap, right - left)
        box = label_font.getbbox(element.name)
        label_width, label_height = box[2] - box[0], box[3] - box[1]
        middle = (left + right) / 2 if self.centred else left + label_width / 2
        top = lower - label_height if self.below else upper
        self.draw.text(
            (middle - label_width / 2 - box[0], top - box[1]), element.name, _ink(self.face), label_font
        )
        label = (middle - label_width / 2, top, middle + label_width / 2, top + label_height)
        self.middle, gap = middle, 0.5 * self.cap
        room = (
            (left, upper, right, top - gap) if self.below else (left, top + label_height + gap, right, lower)
        )
        self.glyphs = []
        self._read(element.name, label_font, middle - label_width / 2, top + label_height / 2)
        body, text_px = getattr(self, f"_{element.kind}")(room, element, font)
        return Drawn(element, label, body, 0.7 * label_font.size, text_px, tuple(self.glyphs))

    def _read(self, text: str, font: ImageFont.FreeTypeFont, left: float, middle: float) -> None:
        """Notes the characters of a `text` that begins at `left`."""
        high = 0.7 * font.size
        edges = [left + font.getlength(text[:i]) for i in range(len(text) + 1)]
        self.glyphs += [
            (c, (edges[i] + edges[i + 1]) / 2, middle, edges[i + 1] - edges[i], high)
            for i, c in enumerate(text)
            if c != " "
        ]

    def _display(self, room: Box, element: Element, font: str) -> tuple[Box, float]:
        chance = self.chance
        segments = chance.random() < 0.55
        face, ink, ghost = _display_colours(chance, segments)
        width, height = room[2] - room[0], room[3] - room[1]
        pad = 0.35
        cap = self._between(self.cap, min(height / (1 + 2 * pad), 8 * self.cap))
        unit_cap = max(0.9 * self.cap, cap * chance.uniform(0.4, 0.8))
        unit_font = with_cap_height(font, min(unit_cap, cap))
        slant = chance.uniform(0, 0.15)
        for _ in range(20):  # shrink until value and unit fit
            value_font = with_cap_height(font, cap)
            value_width = (
                segments_width(element.value, cap) if segments else value_font.getlength(element.value)
            )
            unit_width = unit_font.getlength(element.unit)
            total = value_width + unit_width + (0.4 + 2 * pad) * cap
            if total <= width or cap <= self.cap * 0.8:
                break
            cap *= max(0.7, min(0.97, width / total))
            unit_font = with_cap_height(font, max(0.75 * self.cap, min(unit_cap, 0.8 * cap)))
        x, y = self._inside(room, total, (1 + 2 * pad) * cap)
        body = (x, y, x + total, y + (1 + 2 * pad) * cap)
        inside = chance.random() < 0.7  # the unit, on the display's glass
        glass = body if inside else (x, y, x + value_width + 2 * pad * cap, body[3])
        self.draw.rectangle(glass, fill=face, outline=_shift(face, -40 if sum(face) > 380 else 40))
        base = y + pad * cap + cap
        if segments:
            draw_segments(self.draw, element.value, x + pad * cap, base - cap, cap, ink, ghost, slant)
            for i, character in enumerate(element.value):
                start, end = (segments_width(element.value[:j], cap) for j in (i, i + 1))
                self.glyphs.append(
                    (character, x + pad * cap + (start + end) / 2, base - cap / 2, end - start, cap)
                )
        else:
            self.draw.text((x + pad * cap, base), element.value, ink, value_font, anchor="ls")
            self._read(element.value, value_font, x + pad * cap, base - cap / 2)
        unit_x = x + value_width + (0.4 + (pad if inside else 2 * pad)) * cap
        self.draw.text(
            (unit_x, base), element.unit, ink if inside else _ink(self.face), unit_font, anchor="ls"
        )
        self._read(element.unit, unit_font, unit_x, base - 0.35 * unit_font.size)
        if not inside:
            body = (x, y, unit_x + unit_width, body[3])
        return body, cap

    def _gauge(self, room: Box, element: Element, font: str) -> tuple[Box, float]:
        scale = element.scale
        assert scale is not None
        chance = self.chance
        width, height = room[2] - room[0], room[3] - room[1]
        radius = self._between(min(3.8 * self.cap, min(width, height) / 2), min(width, height) / 2)
        x0, y0 = self._inside(room, 2 * radius, 2 * radius)
        x, y = x0 + radius, y0 + radius
        light = chance.random() < 0.7
        face = (chance.randint(215, 255),) * 3 if light else (chance.randint(10, 45),) * 3
        ink = (15, 15, 20) if light else (235, 235, 230)
        self._circle(x, y, radius, face, _shift(face, -90 if light else 90), max(1, round(radius / 18)))
        sweep = chance.choice((270, 240))

        def at(step: float, share: float) -> tuple[float, float]:
            angle = math.radians(90 + sweep / 2 - sweep * step / scale.steps)
            return x + share * radius * math.cos(angle), y - share * radius * math.sin(angle)

        tick = max(1, round(radius / 40))
        number_cap = max(0.75 * self.cap, 0.14 * radius)
        number = with_cap_height(font, number_cap)
        for step in range(scale.steps + 1):
            major = step % scale.label_every == 0
            self.draw.line(
                (at(step, 0.94), at(step, 0.80 if major else 0.87)), ink, tick * (2 if major else 1)
            )
            if major:
                value = round(scale.high * step / scale.steps, 2)
                self.draw.text(at(step, 0.63), f"{value:g}", ink, number, anchor="mm")
        self.draw.text((x, y + 0.45 * radius), element.unit, ink, number, anchor="mm")
        needle = chance.choice(((200, 30, 30), ink, (220, 110, 20)))
        tail, tip = at(element.step, -0.18), at(element.step, 0.84)
        self.draw.line((*tail, *tip), needle, max(2, round(radius / 16)))
        self._circle(x, y, max(2, radius / 12), needle, needle)
        return (x0, y0, x0 + 2 * radius, y0 + 2 * radius), number_cap

    def _bar(self, room: Box, element: Element, font: str) -> tuple[Box, float]:
        scale = element.scale
        assert scale is not None
        chance = self.chance
        width, height = room[2] - room[0], room[3] - room[1]
        upright = height > width
        if chance.random() < 0.2 and min(width, height) >= 8 * self.cap:
            upright = not upright
        most = height if upright else width
        long = self._between(min(8 * self.cap, most), most)
        thick = min(max(1.2 * self.cap, 0.16 * long), (width if upright else height) * 0.4)
        spare = (width / 4.6 if upright else height / 3) - self.cap / 2
        number_cap = max(0.8 * self.cap, min(0.07 * long, spare))
        number = with_cap_height(font, number_cap)
        text_width = max(number.getlength(str(scale.high)), number.getlength(element.unit))
        text_height = 1.5 * (number.getbbox("0")[3] - number.getbbox("0")[1])
        across = thick + (1.3 * text_width if upright else 2 * text_height) + 0.4 * self.cap
        x, y = self._inside(room, across if upright else long, long if upright else across)
        fill = chance.choice(tuple(_LAMPS.values()))
        groove = (20, 22, 25) if chance.random() < 0.6 else (240, 240, 240)
        inset = text_height / 2 if upright else text_width / 2
        behind = 0.0 if upright else number.getlength(element.unit) + 0.5 * self.cap  # the bar, for the unit
        start, length = (y if upright else x) + inset, max(3 * self.cap, long - 2 * inset - behind)
        ink = _ink(self.face)

        def place(step: float) -> float:
            share = step / scale.steps
            return start + length * (1 - share) if upright else start + length * share

        end, zero = place(element.step), place(0)
        if upright:
            self.draw.rectangle((x, place(scale.steps), x + thick, zero), fill=groove, outline=ink)
            self.draw.rectangle((x + 1, end, x + thick - 1, zero), fill=fill)
        else:
            self.draw.rectangle((zero, y, place(scale.steps), y + thick), fill=groove, outline=ink)
            self.draw.rectangle((zero, y + 1, end, y + thick - 1), fill=fill)
        for step in range(scale.steps + 1):
            major = step % scale.label_every == 0
            reach = (0.5 if major else 0.25) * self.cap
            p = place(step)
            line = (x + thick, p, x + thick + reach, p) if upright else (p, y + thick, p, y + thick + reach)
            self.draw.line(line, ink, max(1, round(long / 120)))
            if major:
                text = f"{scale.high * step // scale.steps}"
                where = (x + thick + 0.6 * self.cap, p) if upright else (p, y + thick + 0.6 * self.cap)
                self.draw.text(where, text, ink, number, anchor="lm" if upright else "ma")
        if upright:
            self.draw.text(
                (x + thick + 0.6 * self.cap, place(scale.steps * 0.75)), element.unit, ink, number, "lm"
            )
            return (x, y, x + across, y + long), number_cap
        self.draw.text((place(scale.steps) + 0.5 * self.cap, y + thick / 2), element.unit, ink, number, "lm")
        return (x, y, x + long, y + across), number_cap

    def _lamp(self, room: Box, element: Element, font: str) -> tuple[Box, float]:
        chance = self.chance
        most = min(room[2] - room[0], room[3] - room[1]) / 2
        radius = self._between(min(0.7 * self.cap, most), min(most, 4 * self.cap))
        x0, y0 = self._inside(room, 2 * radius, 2 * radius)
        x, y = x0 + radius, y0 + radius
        colour = _LAMPS[element.colour]
        lit = element.value == ON
        shown = _mix(colour, (255, 255, 255), 0.25) if lit else _mix(colour, (0, 0, 0), 0.68)
        if lit:
            self._glow(x, y, 1.7 * radius, colour)
        square = chance.random() < 0.3
        rim = _shift(self.face, -60)
        if square:
            self.draw.rectangle((x0, y0, x + radius, y + radius), shown, rim, max(1, round(radius / 8)))
        else:
            self._circle(x, y, radius, shown, rim, max(1, round(radius / 8)))
        spot = _mix(shown, (255, 255, 255), 0.8 if lit else 0.25)
        self._circle(x - 0.25 * radius, y - 0.3 * radius, 0.3 * radius, spot, spot)
        return (x0, y0, x + radius, y + radius), 2 * radius

    def _switch(self, room: Box, element: Element, font: str) -> tuple[Box, float]:
        """A lever that points at ON or at OFF, or a round knob that does."""
        chance = self.chance
        marks = chance.choice((("ON", "OFF"), ("I", "O"), ("1", "0")))
        number = with_cap_height(font, 0.9 * self.cap)
        text_height = 1.7 * 0.9 * self.cap
        text_width = max(map(number.getlength, marks))
        height = room[3] - room[1]
        length = max(
            2.2 * self.cap, self._between(2.5 * self.cap, max(2.6 * self.cap, height - 2 * text_height))
        )
        length = min(length, max(1.8 * self.cap, height - 2 * text_height))
        thick = 0.55 * length
        on = element.value == ON
        if height >= length + 2 * text_height:  # marks above and below
            wide, high = max(thick, text_width), length + 2 * text_height
            x0, y0 = self._inside(room, wide, high)
            x, y = x0 + wide / 2, y0 + high / 2
            places = ((x, y0 + text_height / 2), (x, y0 + high - text_height / 2))
        else:  # beside the lever's ends
            wide, high = thick + 2 * text_width + self.cap, length
            x0, y0 = self._inside(room, wide, high)
            x, y = x0 + thick / 2, y0 + high / 2
            beside = x0 + thick + 0.5 * self.cap + text_width / 2
            places = ((beside, y - 0.3 * length), (beside, y + 0.3 * length))
        for mark, place in zip(marks, places, strict=True):
            self.draw.text(place, mark, _ink(self.face), number, anchor="mm")
        plate = _shift(self.face, -55 if sum(self.face) > 300 else 45)
        lever = (230, 230, 225) if sum(plate) < 330 else (25, 25, 28)
        tip = y - 0.36 * length if on else y + 0.36 * length
        if chance.random() < 0.5:  # a toggle
            self.draw.rounded_rectangle(
                (x - thick / 2, y - length / 2, x + thick / 2, y + length / 2),
                thick / 4,
                plate,
                _ink(self.face),
            )
            self.draw.line((x, y, x, tip), lever, max(2, round(0.35 * thick)))
            self._circle(x, tip, 0.24 * thick, lever, lever)
        else:  # a knob with a pointer
            self._circle(x, y, length / 2, plate, _ink(self.face))
            self.draw.line((x, y, x, tip), lever, max(2, round(length / 7)))
            self._circle(x, tip, max(2.0, 0.09 * length), lever, lever)
        return (x0, y0, x0 + wide, y0 + high), length / 2

    def _plate(self, room: Box, element: Element, font: str) -> tuple[Box, float]:
        width, height = room[2] - room[0], room[3] - room[1]
        cap = self._between(self.cap, min(height / 1.8, 4 * self.cap))
        fitted = self._fitted(font, element.value, cap, width - 1.2 * self.cap)
        box = fitted.getbbox(element.value)
        pad = 0.4 * self.cap
        wide, high = box[2] - box[0] + 2 * pad, box[3] - box[1] + 2 * pad
        x, y = self._inside(room, wide, high)
        face = self.chance.choice(
            ((225, 225, 220), (190, 195, 200), (30, 30, 32), (240, 220, 120), (30, 60, 120))
        )
        self.draw.rectangle((x, y, x + wide, y + high), face, _shift(face, -60 if sum(face) > 300 else 60))
        self.draw.text((x + pad - box[0], y + pad - box[1]), element.value, _ink(face), fitted)
        self._read(element.value, fitted, x + pad, y + high / 2)
        return (x, y, x + wide, y + high), float(box[3] - box[1])

    def _between(self, low: float, high: float) -> float:
        """Log-uniform; `high` when there is no room for `low`."""
        if high <= low:
            return high
        return math.exp(self.chance.uniform(math.log(low), math.log(high)))

    def _inside(self, room: Box, width: float, height: float) -> tuple[float, float]:
        """Upper left corner of something of this size, close to its label."""
        x = self.middle - width / 2 + self.chance.uniform(-0.15, 0.15) * width
        x = max(room[0], min(x, room[2] - width))
        away = min(max(0.0, room[3] - room[1] - height), self.chance.uniform(0, 1.2) * self.cap)
        return x, room[3] - height - away if self.below else room[1] + away

    def _fitted(self, font: str, text: str, cap: float, width: float) -> ImageFont.FreeTypeFont:
        found = with_cap_height(font, cap)
        length = found.getlength(text)
        return found if length <= width else with_cap_height(font, max(0.75 * self.cap, cap * width / length))

    def _circle(
        self, x: float, y: float, radius: float, fill: Colour, outline: Colour, width: int = 1
    ) -> None:
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill, outline, width)

    def _glow(self, x: float, y: float, radius: float, colour: Colour) -> None:
        box = tuple(int(v) for v in (x - radius, y - radius, x + radius + 1, y + radius + 1))
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(mask).ellipse(
            (0.15 * mask.width, 0.15 * mask.height, 0.85 * mask.width, 0.85 * mask.height), fill=150
        )
        mask = mask.filter(ImageFilter.BoxBlur(max(1.0, radius / 5)))
        self.image.paste(colour, (box[0], box[1]), mask)


def _display_colours(chance: random.Random, segments: bool) -> tuple[Colour, Colour, Colour | None]:
    """Glass, lit and unlit."""
    if segments and chance.random() < 0.55:  # LED
        glass = (chance.randint(5, 30),) * 3
        ink = chance.choice(((255, 50, 40), (60, 250, 90), (255, 180, 40), (90, 160, 255), (240, 240, 240)))
        return glass, ink, _mix(glass, ink, 0.1) if chance.random() < 0.6 else None
    if segments or chance.random() < 0.3:  # LCD
        glass = chance.choice(((165, 180, 150), (190, 195, 185), (120, 170, 200), (180, 200, 90)))
        ink = (chance.randint(10, 50),) * 3
        return glass, ink, _mix(glass, ink, 0.08) if chance.random() < 0.6 else None
    if chance.random() < 0.5:  # e-ink
        return (chance.randint(215, 240),) * 3, (chance.randint(10, 50),) * 3, None
    glass = (chance.randint(0, 25), chance.randint(0, 25), chance.randint(5, 40))  # OLED
    return glass, chance.choice(((240, 240, 245), (90, 220, 250), (250, 230, 90), (120, 255, 140))), None


def _ink(face: Colour) -> Colour:
    """What is printed on a face of this colour: dark on light, light on dark."""
    return (20, 22, 26) if 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] > 125 else (238, 238, 232)


def _shift(colour: Colour, by: int) -> Colour:
    red, green, blue = (max(0, min(255, c + by)) for c in colour)
    return red, green, blue


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
