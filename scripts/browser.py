"""A headless Chromium, driven by tests: how does a page look, what does it complain of, what does it fetch?

    with Browser() as browser:
        page = browser.open(Path("report.html"), width=360, dark=True)
        assert page.errors == [] and page.outgoing == [] and page.overflow() == []

It is Debian's, unpacked into `.cache/emulation`, and talks the DevTools protocol over a pipe, so that nothing
listens (https://chromedevtools.github.io/devtools-protocol). What a page wants from a network is refused.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from emulation import ROOT_SUITE, Unavailable, debian, unpacked

_SECONDS = 60
_OPTIONS = (
    "--remote-debugging-pipe",
    "--no-sandbox",  # it needs a namespace that a container may not give; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--lang=en-US",
)
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""
# Those of this machine are used, together with its loader.
_C_LIBRARY = re.compile(r"(ld-linux|lib(c|m|mvec|dl|pthread|rt|resolv|util))[-.].*|libnss_.*")
_AT_HOME = ("file:///", "data:", "blob:", "about:")
_SETTLED = """document.fonts.ready.then(() => new Promise(done =>
    requestAnimationFrame(() => requestAnimationFrame(() => done(true)))))"""
# Elements that reach beyond the sides of the window, unless they lie in something that scrolls.
_OVERFLOW = """(() => {
    const found = [], page = document.scrollingElement;
    if (page.scrollWidth > innerWidth) found.push(`page: ${page.scrollWidth} px in ${innerWidth}`);
    for (const element of document.body.querySelectorAll("*")) {
        if (element.parentElement.closest("svg")) continue;
        const box = element.getBoundingClientRect();
        if (!box.width || !box.height || (box.right <= innerWidth + 0.5 && box.left >= -0.5)) continue;
        let above = element.parentElement;
        while (above && !/auto|scroll/.test(getComputedStyle(above).overflowX)) above = above.parentElement;
        if (above && above !== page && above !== document.body) continue;
        const name = element.tagName.toLowerCase() + (element.id ? "#" + element.id : "")
            + [...element.classList].map(one => "." + one).join("");
        found.push(`${name}: ${Math.round(box.left)} to ${Math.round(box.right)} px in ${innerWidth}`);
    }
    return found;
})()"""


class Browser:
    """It runs until `close`, or the end of its `with`."""

    def __init__(self) -> None:
        """Raises `Unavailable` when it cannot be had, or does not start."""
        root = _unpacked()
        self._work = Path(tempfile.mkdtemp(prefix="browser-"))
        (self._work / "fonts.conf").write_text(
            _FONTS.format(fonts=root / "usr/share/fonts", cache=self._work / "fonts")
        )
        environment = {
            **os.environ,
            "HOME": str(self._work),
            "LD_LIBRARY_PATH": str(_libraries(root, self._work / "libraries")),
            "FONTCONFIG_FILE": str(self._work / "fonts.conf"),
        }
        there, to_it = os.pipe()
        from_it, here = os.pipe()
        program = root / "usr/lib/chromium/chromium-headless-shell"
        command = [str(program), *_OPTIONS, f"--user-data-dir={self._work / 'profile'}", "about:blank"]
        with (self._work / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{there} 4>&{here}', "bash", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(there, here),
            )
        os.close(there)
        os.close(here)
        self._into = os.fdopen(to_it, "wb", buffering=0)
        self._number = 0
        self._heard = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self._gone = False
        threading.Thread(target=self._listen, args=(os.fdopen(from_it, "rb"),), daemon=True).start()
        atexit.register(self.close)
        try:
            self.version: str = self.ask("Browser.getVersion")["product"]
        except BaseException:
            self.close()
            raise

    def open(
        self,
        what: Path | str,
        *,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        print_media: bool = False,
        reduced_motion: bool = False,
    ) -> Page:
        """The page of a file, or at a URL, when it has loaded; `width` and `height` of the window in px."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        page.ask("Network.setBlockedURLs", urls=["http://*", "https://*", "ws://*", "wss://*", "ftp://*"])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.ask("Emulation.setDeviceMetricsOverride", **size)
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if reduced_motion else "no-preference",
        }
        page.ask(
            "Emulation.setEmulatedMedia",
            media="print" if print_media else "",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        gone = page.ask("Page.navigate", url=what.resolve().as_uri() if isinstance(what, Path) else what)
        if gone.get("errorText"):
            raise ValueError(f"{what} cannot be opened: {gone['errorText']}")
        self._until(lambda: page.loaded)
        page.evaluate(_SETTLED)
        return page

    def ask(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        """The answer to a message of the DevTools protocol. Raises `ValueError` when it is an error."""
        with self._heard:
            self._number += 1
            number = self._number
        asked = {
            "id": number,
            "method": method,
            "params": parameters,
            **({"sessionId": session} if session else {}),
        }
        try:
            self._into.write(json.dumps(asked).encode() + b"\0")
        except OSError:
            raise self._died() from None
        self._until(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise ValueError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()
        self._into.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + _SECONDS
        with self._heard:
            while not holds():
                if self._gone or time.monotonic() > end:
                    raise self._died()
                self._heard.wait(timeout=1)

    def _died(self) -> Unavailable:
        told = (self._work / "log").read_text(errors="replace").strip().splitlines()[-2:]
        return Unavailable(f"Chromium does not answer: {' / '.join(told) or 'it says nothing'}")

    def _listen(self, stream: Any) -> None:
        held = b""
        while piece := stream.read1(1 << 16):
            *whole, held = (held + piece).split(b"\0")
            with self._heard:
                for text in whole:
                    message = json.loads(text)
                    if "id" in message:
                        self._answers[message["id"]] = message
                    elif message.get("sessionId") in self._pages:
                        self._pages[message["sessionId"]].hear(message["method"], message["params"])
                self._heard.notify_all()
        stream.close()
        with self._heard:
            self._gone = True
            self._heard.notify_all()


@dataclass
class Page:
    """An open page."""

    browser: Browser
    session: str
    target: str
    errors: list[str] = field(default_factory=list)  # exceptions, console.error, what could not be loaded
    outgoing: list[str] = field(default_factory=list)  # URLs that it wanted from a network
    loaded: bool = False

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        return self.browser.ask(method, self.session, **parameters)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, or of its promise. Raises `ValueError` when it throws."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(_thrown(found["exceptionDetails"]))
        return found["result"].get("value")

    def overflow(self) -> list[str]:
        """Whether it is wider than the window, and what reaches beyond its sides."""
        found: list[str] = self.evaluate(_OVERFLOW)
        return found

    @property
    def text(self) -> str:
        """As it is shown."""
        shown: str = self.evaluate("document.body.innerText")
        return shown

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self.evaluate(_SETTLED)

    def screenshot(self, target: Path, *, whole: bool = True) -> None:
        """A PNG; of the whole page, or of what the window shows."""
        found = self.ask(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole)
        )
        target.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, target: Path) -> None:
        """As it is printed on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
        target.write_bytes(base64.b64decode(self.ask("Page.printToPDF", **paper)["data"]))

    def close(self) -> None:
        self.browser.ask("Target.closeTarget", targetId=self.target)

    def hear(self, event: str, told: dict[str, Any]) -> None:
        """What the browser says about it."""
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Runtime.exceptionThrown":
            self.errors.append(_thrown(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            said = (str(one.get("value", one.get("description", ""))) for one in told["args"])
            self.errors.append(" ".join(said))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            entry = told["entry"]
            if entry.get("url") not in self.outgoing:  # known already
                self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())
        elif event == "Network.requestWillBeSent" and not told["request"]["url"].startswith(_AT_HOME):
            self.outgoing.append(told["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.outgoing.append(told["url"])

    def _clip(self, whole: bool) -> dict[str, object]:
        if not whole:
            return {}
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}


def _thrown(details: dict[str, Any]) -> str:
    text: str = details.get("exception", {}).get("description") or details["text"]
    return text.splitlines()[0]


def _libraries(root: Path, folder: Path) -> Path:
    """`folder` with links to all that is not of the C library."""
    folder.mkdir()
    base = root / "usr/lib/x86_64-linux-gnu"
    for place in (base, base / "pulseaudio", base / "nss", root / "lib/x86_64-linux-gnu"):
        for library in place.glob("*.so*"):
            link = folder / library.name
            if not _C_LIBRARY.fullmatch(library.name) and not link.is_symlink():
                link.symlink_to(library)
    return folder


def _unpacked() -> Path:
    mirror, host = debian("apt-get", "dpkg-deb")
    if host != "amd64":
        raise Unavailable(f"the browser is made for amd64, and this machine is {host}")
    packages = ("chromium-headless-shell", "fonts-dejavu-core")
    return unpacked("browser", mirror, ROOT_SUITE, host, packages, dependencies=True)
