"""Does a field test on the device, and goes on where it was ended.

    python -m field.runner RUN_FOLDER [--bundle BUNDLE] [--sent BYTES]

RUN_FOLDER has `suite.json` (`plan.Order`) and `pictures/`; what happens is appended to `records.jsonl`. That
from byte `--sent` on is written to stdout, too, as it comes. Whatever ends this process, the next one asks
what has no answer yet: it is held by the host (`held`), killed, or out of power. Standard library only, so
that it leaves the memory to what is tested.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from field import records, workers
from field.alone import Alone
from field.held import hold
from field.history import History
from field.interrupts import Interrupts
from field.plan import INTERRUPTED, PICTURES, RECORDS_FILE, SUITE_FILE, Case, Order, Variant, read_order
from field.records import Log, Sender
from field.sources import POLL_S, CameraSource, FolderSource, LivePicture, NoShot, Source
from field.telemetry import Sensors
from field.workers import Refused, Worker, WorkerDied
from rpi_runtime.errors import EdgeError, ExitCode, ResourceError
from vqa.scoring import exact_match, numeric_match

TRIES = 3  # of a case that kills the process, or takes the device down; of a camera
_MANIFEST_FILE = "manifest.json"
_OPEN_TIMEOUT_S = 1800.0  # a phone's driver compiles for minutes, and a card reads slowly


def main(arguments: Sequence[str] | None = None) -> int:
    hold()
    parser = argparse.ArgumentParser(prog="field.runner", allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default=os.environ.get("HYPERVL_BUNDLE", ""))
    parser.add_argument("--sent", type=int, default=0)
    given = parser.parse_args(arguments)
    return run(given.folder, given.bundle, given.sent, sys.stdout.buffer)


def run(
    folder: Path,
    bundle: str,
    sent: int,
    out: IO[bytes],
    sensors: Sensors | None = None,
    worker: Sequence[str] | None = None,
) -> int:
    """The exit code. `worker` is another command than `field.worker`. SIGINT and SIGTERM end it in order."""
    interrupts = Interrupts()
    sender = Sender(out)
    try:
        with Alone(folder):
            order = read_order(folder / SUITE_FILE)
            runner = _Runner(folder, bundle, order, sender, sent, sensors or Sensors(), worker, interrupts)
            return runner.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (EdgeError, OSError) as error:
        told = {"kind": "refused", "message": str(error), "remedy": "Free some space, or check the storage."}
        if isinstance(error, EdgeError):
            told |= {"message": error.message, "remedy": error.remedy}
        sender.send(records.line_of(told))
        return int(ExitCode.COULD_NOT_CHECK)
    finally:
        sender.close()


class _Runner:
    def __init__(
        self,
        folder: Path,
        bundle: str,
        order: Order,
        sender: Sender,
        sent: int,
        sensors: Sensors,
        worker: Sequence[str] | None,
        interrupts: Interrupts,
    ) -> None:
        self._interrupts = interrupts
        self._pictures = folder / PICTURES
        self._pictures.mkdir(exist_ok=True)
        self._order, self._plan = order, order.plan
        self._bundle = _bundle_facts(bundle, order.bundle_name)
        self._worker_command = worker or workers.command(bundle)
        self._worker: Worker | None = None
        self._variant = ""  # that is asked now
        self._sensors = sensors
        path = folder / RECORDS_FILE
        records.cut_torn(path)
        self._history = History.of(self._plan, records.read_records(path))
        for line in records.lines_of(path, sent):
            sender.send(line)
        self._log = Log(path, sensors.boot(), self._history.seq, self._history.ran_s, sender.send)

    def run(self) -> int:
        if self._history.is_done:
            return 0
        self._begin()
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        try:
            try:
                self._ask_all()
            finally:  # what is told last is the last record
                self._close_worker()
                over.set()
                watcher.join(timeout=10)
            self._event(records.DONE, f"{self._history.answers} answers in all")
            return 0
        except KeyboardInterrupt:
            self._event(records.STOPPED, f"stopped after {self._history.answers} answers in all")
            return INTERRUPTED
        finally:
            self._log.close()

    def _begin(self) -> None:
        """Raises `ResourceError` when the answers so far are of something else."""
        history, boot = self._history, self._sensors.boot()
        if history.start is None:
            self._add(
                records.START,
                suite_sha256=self._plan.sha256,
                device=self._order.device,
                machine=self._order.machine,
                bundle=self._bundle,
                runtime=self._order.runtime,
                variants=[vars(variant) for variant in self._plan.variants],
                telemetry_s=self._plan.telemetry_s,
            )
            return
        before = history.start["bundle"]
        if before["id"] != self._bundle["id"]:
            raise ResourceError(
                f"the answers so far are of the bundle {before['name']} ({before['id']}), and "
                f"{self._bundle['name']} ({self._bundle['id']}) is in use now",
                "Put the other one back (toolkit deploy), or begin anew with another -o.",
            )
        what = records.REBOOT if boot and history.boot and boot != history.boot else records.RESUMED
        text = "the device has started anew" if what == records.REBOOT else "the test goes on"
        self._event(what, f"{text}; {history.answers} answers are kept")

    def _watch(self, over: threading.Event) -> None:
        """Telemetry, until it is over."""
        while True:
            worker = self._worker
            with suppress(OSError, ValueError):  # a full disk is told by the thread that asks
                self._log.add(
                    records.TELEMETRY,
                    variant=self._variant,
                    **self._sensors.sample(worker.pid if worker else None),
                )
            if over.wait(self._plan.telemetry_s):
                return

    # Rounds.

    def _ask_all(self) -> None:
        source, number = self._source(), 0
        while number < self._plan.repetitions or self._has_time:
            for variant, case, picture in self._round(number, source):
                if number >= self._plan.repetitions and not self._has_time:
                    return
                self._ask(variant, case, number, picture)
            if not source and not self._can_go_on():
                return
            number += 1

    @property
    def _has_time(self) -> bool:
        return self._log.ran_s < self._plan.soak_s

    def _can_go_on(self) -> bool:
        """Whether another round would ask anything."""
        return any(
            not self._history.is_finished(variant.name, case.id, -1)
            for variant in self._plan.variants
            for case in self._plan.cases
        )

    def _round(
        self, number: int, source: Source | None
    ) -> Iterator[tuple[Variant, Case, LivePicture | None]]:
        """What is left to be asked in it; one variant after another, since each is a process of its own."""

        def left(variant: Variant, cases: Sequence[Case]) -> list[Case]:
            return [c for c in cases if not self._history.is_finished(variant.name, c.id, number)]

        picture = None
        if source and any(left(variant, self._plan.live) for variant in self._plan.variants):
            picture = self._picture(number, source)
        for variant in self._plan.variants:
            live = left(variant, self._plan.live) if picture else []
            for case in (*left(variant, self._plan.cases), *live):
                if not self._history.is_finished(variant.name, case.id, number):
                    yield variant, case, picture if case in self._plan.live else None

    def _source(self) -> Source | None:
        if self._plan.camera:
            return CameraSource(self._plan.camera, self._pictures)
        if self._plan.watch:
            known = {(one["image"], one["image_sha256"]) for one in self._history.pictures.values()}
            return FolderSource(self._plan.watch, self._pictures, known)
        return None

    def _picture(self, number: int, source: Source) -> LivePicture | None:
        """Of this round; the one from before, if the round had begun. None when there is none."""
        if number in self._history.rounds_without_picture:
            return None
        if (before := self._history.pictures.get(number)) is not None:
            path = self._pictures / before["image_file"]
            return LivePicture(before["image"], before["image_sha256"], path) if path.exists() else None
        is_soak = self._plan.soak_s > 0
        for again in range(1, TRIES + 1):
            try:
                return source.next(number, lambda: is_soak and not self._has_time)
            except NoShot as error:
                remedy = "Try the command by hand, on the device."
                self._error("", "", number, str(error), remedy, fatal=again == TRIES)
                time.sleep(POLL_S)
        return None

    # One answer.

    def _ask(self, variant: Variant, case: Case, number: int, picture: LivePicture | None) -> None:
        named: dict[str, Any] = {
            "image": picture.name if picture else case.image,
            "image_sha256": picture.sha256 if picture else case.image_sha256,
            "image_file": picture.file.name if picture else case.image_file,
        }
        if self._history.lives > TRIES:
            message = f"the test went down {self._history.lives - 1} times while this was asked"
            self._error(variant.name, case.id, number, message, _GIVEN_UP, fatal=True, **named)
            return
        image = str(self._pictures / named["image_file"]) if named["image_file"] else None
        for again in range(1, TRIES + 1):
            is_open = False
            try:
                worker = self._open(variant)
                is_open = True
                reply = worker.ask(case.question, image, self._plan.max_new_tokens, self._plan.timeout_s)
            except WorkerDied as died:
                self._close_worker()
                # One that cannot even be opened is given up with all of its cases.
                of = (variant.name, case.id if is_open else "")
                self._error(*of, number, str(died), _GIVEN_UP, fatal=again == TRIES, **named)
                self._add(records.EVENT, what=records.RESTART, text=str(died), variant=variant.name)
            except Refused as error:
                of = (variant.name, case.id if is_open else "")
                self._error(*of, number, error.message, error.remedy, fatal=True, **named)
                return
            else:
                self._answer(variant, case, number, named, reply)
                return

    def _answer(
        self, variant: Variant, case: Case, number: int, named: dict[str, Any], reply: dict[str, Any]
    ) -> None:
        answer, expected = reply["answer"], case.expected
        self._add(
            records.ANSWER,
            variant=variant.name,
            case=case.id,
            repetition=number,
            **named,
            question=case.question,
            expected=expected,
            type=case.type,
            answer=answer,
            exact=None if expected is None else exact_match(answer, expected),
            numeric=None if expected is None else numeric_match(answer, expected),
            report=_without_path(reply["report"], named["image"]),
            routing=None,
        )

    def _error(
        self, variant: str, case: str, number: int, message: str, remedy: str, *, fatal: bool, **named: Any
    ) -> None:
        self._add(
            records.ERROR,
            variant=variant,
            case=case,
            repetition=number,
            **named,
            message=message,
            remedy=remedy,
            fatal=fatal,
        )

    def _event(self, what: str, text: str) -> None:
        self._add(records.EVENT, what=what, text=text)

    def _add(self, kind: str, **content: Any) -> None:
        with self._interrupts.deferred():
            self._log.add(kind, **content)
            self._history.add({"kind": kind, **content})

    def _open(self, variant: Variant) -> Worker:
        if self._worker is None or self._worker.variant != variant:
            self._close_worker()
            self._variant = variant.name
            self._worker = Worker(self._worker_command, variant, _OPEN_TIMEOUT_S)
        return self._worker

    def _close_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


_GIVEN_UP = f"It is given up after {TRIES} times, and the rest goes on; try it alone, with toolkit run."


def _bundle_facts(bundle: str, name: str) -> dict[str, str]:
    """Raises `ResourceError`."""
    try:
        content = (Path(bundle) / _MANIFEST_FILE).read_bytes()
        model = str(json.loads(content)["model"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ResourceError(
            f"there is no bundle at {bundle or 'HYPERVL_BUNDLE, which is not set'}",
            "Deploy one (toolkit deploy); for this machine itself, name it with --bundle.",
        ) from None
    return {"name": name or Path(bundle).name, "id": hashlib.sha256(content).hexdigest()[:16], "model": model}


def _without_path(report: dict[str, Any], name: str) -> dict[str, Any]:
    """With the picture's name, where the report has its file on the device."""
    return {**report, "images": [{**image, "name": name} for image in report.get("images", ())]}


if __name__ == "__main__":
    sys.exit(main())
