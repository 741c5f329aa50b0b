"""Results of field tests, as a device and its host would have written them. All values are made up."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Record = dict[str, Any]

BEGAN = 1_760_000_000.0  # 2025-10-09 08:53:20 UTC
VARIANTS = (
    {"name": "tile", "route": "tile", "branch": "base", "memory": "256MB", "delegate": "auto", "threads": 4},
    {
        "name": "full",
        "route": "fixed:1.0",
        "branch": "base",
        "memory": None,
        "delegate": "auto",
        "threads": 4,
    },
)
MACHINE = {
    "model": "Raspberry Pi 5 Model B Rev 1.0",
    "kernel": "6.12.25+rpt-rpi-2712",
    "machine": "aarch64",
    "os": "Debian GNU/Linux 12 (bookworm)",
    "libc": "glibc",
    "libc_version": "2.36",
    "cores": 4,
    "cpu_names": ["asimd", "asimddp", "fphp", "sha2"],
    "cpu_model": "Cortex-A76",
    "memory_bytes": 4_147_000_000,
    "swap_bytes": 209_000_000,
    "user": "someone-private",
    "home": "/home/someone-private",
    "groups": ["video", "private-group"],
    "clock_s": 0.2,
}


class Device:
    """Records of one device, in the order in which they are added."""

    def __init__(self, address: str = "ssh://pi@pi5.local", **start: Any) -> None:
        self.lines: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.t, self.ran_s, self.boot, self._seq = BEGAN, 0.0, "boot-1", 0
        content = {
            "suite_sha256": "5" * 64,
            "device": address,
            "machine": MACHINE,
            "bundle": {"name": "nano", "id": "b" * 16, "model": "hypervl-nano"},
            "runtime": {"id": "a" * 16, "version": "0.1.0"},
            "variants": list(VARIANTS),
            "telemetry_s": 2.0,
        }
        self.add("start", **{**content, **start})

    def add(self, kind: str, **content: Any) -> None:
        self._seq += 1
        told = {"kind": kind, "t": round(self.t, 3), "boot": self.boot, "seq": self._seq}
        self.lines.append(json.dumps({**told, "ran_s": round(self.ran_s, 3), **content}))

    def host(self, what: str, text: str) -> None:
        told = {"kind": "event", "t": self.t, "boot": "", "seq": 0, "host": True, "what": what, "text": text}
        self.lines.append(json.dumps(told))

    def pass_time(self, seconds: float, *, away: bool = False) -> None:
        self.t += seconds
        self.ran_s += 0 if away else seconds

    def picture(self, seed: int, size: tuple[int, int] = (640, 480)) -> tuple[str, str]:
        """Its sha256 and its name in `pictures`."""
        image = Image.effect_noise(size, 60).convert("RGB")
        ImageDraw.Draw(image).text((20, 20), f"picture {seed}", fill="red", font_size=60)
        written = io.BytesIO()
        image.save(written, "JPEG")
        sha256 = hashlib.sha256(written.getvalue()).hexdigest()
        self.pictures[f"{sha256}.jpg"] = written.getvalue()
        return sha256, f"{sha256}.jpg"

    def answer(
        self,
        case: str = "1",
        *,
        variant: str = "tile",
        image: tuple[str, str] = ("", ""),
        total_ms: float = 600.0,
        first_ms: float = 500.0,
        load_ms: float = 0.0,
        sides: tuple[int, ...] = (384, 384, 128, 128, 384),
        peak_bytes: int = 131_000_000,
        **content: Any,
    ) -> None:
        """Of two by two tiles and a thumbnail, if there is an image."""
        self.pass_time(total_ms / 1000)
        tokens = tuple({384: 144, 256: 64, 128: 16}[side] for side in sides)
        routed = {
            "name": "photo.jpg", "width_px": 640, "height_px": 480, "columns": 2, "rows": 2,
            "thumbnail": True, "sides_px": sides, "tokens": tokens, "tokens_unrouted": 720, "branch": "base",
        }  # fmt: skip
        report = {
            "images": [routed] if image[0] else [],
            "visual_tokens": sum(tokens) if image[0] else 0,
            "visual_tokens_unrouted": 720 if image[0] else 0,
            "new_tokens": 4,
            "decode_tokens_per_s": 20.0,
            "times": {"load_ms": load_ms, "first_token_ms": first_ms, "total_ms": total_ms},
            "memory": {"peak_resident_bytes": peak_bytes},
        }
        given = {
            "variant": variant, "case": case, "repetition": 0, "image": "photo.jpg" if image[0] else "",
            "image_sha256": image[0], "image_file": image[1], "question": f"Question {case}?",
            "expected": "yes", "type": "state", "answer": "yes", "exact": True, "numeric": True,
            "report": report, "routing": None,
        }  # fmt: skip
        self.add("answer", **{**given, **content})

    def telemetry(self, variant: str = "tile", **content: Any) -> None:
        given = {
            "temperature_c": {"cpu-thermal": 61.5}, "clock_mhz": {f"cpu{i}": 2400.0 for i in range(4)},
            "throttled": 0, "watts": {}, "memory_available_bytes": 3_000_000_000,
            "resident_bytes": 120_000_000, "peak_resident_bytes": 125_000_000, "load": 3.9,
        }  # fmt: skip
        self.add("telemetry", variant=variant, **{**given, **content})

    def error(self, case: str = "1", *, variant: str = "tile", fatal: bool = True, **content: Any) -> None:
        given = {"message": "the process was killed by signal 9 (out of memory?)", "remedy": "Try it alone."}
        self.add("error", variant=variant, case=case, repetition=0, fatal=fatal, **{**given, **content})

    def event(self, what: str, text: str = "it happened", **content: Any) -> None:
        self.add("event", what=what, text=text, **content)

    def write(self, results: Path, folder: str = "ssh-pi-pi5.local") -> Path:
        """Its folder in `results`."""
        (results / folder / "pictures").mkdir(parents=True, exist_ok=True)
        for name, content in self.pictures.items():
            (results / folder / "pictures" / name).write_bytes(content)
        text = "".join(f"{line}\n" for line in self.lines)
        (results / folder / "records.jsonl").write_text(text, encoding="utf-8")
        return results / folder


def write_suite(results: Path, plan: Mapping[str, Any] | None = None) -> None:
    given = {"name": "panels", "variants": list(VARIANTS), "cases": [{}] * 6, "live": [], "repetitions": 2,
             "soak_s": 0, "max_new_tokens": 64}  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "run": "0" * 16, "plan": dict(plan or given)}
    (results / "suite.json").write_text(json.dumps(content), encoding="utf-8")


def eventful(address: str = "ssh://pi@pi5.local", slow: float = 1.0, seed: int = 1) -> Device:
    """A device on which about everything happened that can: heat, throttling, a restart, a reboot."""
    chance = random.Random(seed)
    device = Device(address)
    pictures = [device.picture(seed + i, ((640, 480), (300, 800), (1600, 900))[i % 3]) for i in range(3)]
    heat = 50.0
    for repetition in range(2):
        for variant in ("tile", "full"):
            for case in range(6):
                total_ms = slow * chance.uniform(900, 1800)
                is_right = (case + (variant == "full")) % 3 > 0
                device.answer(
                    str(case), variant=variant, image=pictures[case % 3], total_ms=total_ms,
                    first_ms=0.8 * total_ms, load_ms=90.0 if case == 0 else 0.0, repetition=repetition,
                    question=f"What does gauge {case} read?", expected="4.5 bar", type=f"type {case % 2}",
                    answer="4.5 bar" if is_right else "4.6 bar", exact=is_right, numeric=is_right,
                    sides=(384, 384, 128, 128, 384) if variant == "tile" else (384,) * 5,
                )  # fmt: skip
                heat += chance.uniform(0, 4)
                throttled = heat > 84
                device.telemetry(
                    variant, temperature_c={"cpu-thermal": round(heat, 1), "rp1_adc": round(heat - 8, 1)},
                    clock_mhz={f"cpu{i}": 1500.0 if throttled else 2400.0 for i in range(4)},
                    throttled=0x80008 if throttled else 0, watts={"pmic": chance.uniform(4, 6)},
                    resident_bytes=int(chance.uniform(110e6, 130e6)),
                )  # fmt: skip
        if repetition == 0:
            device.error("5", variant="full", fatal=False)
            device.event(
                "restart", "full: the process was killed by signal 9 (out of memory?)", variant="full"
            )
            device.host("lost", "ssh: connect to host pi5.local port 22: No route to host")
            device.pass_time(40, away=True)
            device.boot = "boot-2"
            device.host("back", "it is back after 40 s")
            device.event("reboot", "the device has started anew; 12 answers are kept")
    device.event("done", "24 answers in all")
    return device
