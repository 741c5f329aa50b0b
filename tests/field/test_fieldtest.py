"""A field test from the host: to the end with a real bundle, and through whatever happens to a device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from field import fieldtest
from field.address import Address, parse_address
from field.connect import LocalDevice
from field.device import Device, DeviceLost, quote
from field.fieldtest import FieldTest
from field.machine import Machine, probe
from field.place import Place
from field.plan import RECORDS_FILE, Camera, Case, Plan
from field.records import Record, read_records
from field.store import DeviceResults, Results
from field.suite import Suite, read_suite
from rpi_runtime.errors import ResourceError, UsageError
from tests.field.runs import PLAN, ROOT, processes_with, wait_for

LOCAL = parse_address("local")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is put on this machine, as on a device, goes away with the test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


class Fake:
    """A device whose runner has a scripted worker, a boot id of its own, and a connection that may be cut."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.bundle, self.root = base, base / "bundle", base / "root"
        self.bundle.mkdir()
        (self.bundle / "manifest.json").write_text('{"model": "none"}')
        self.boot("one")
        self.cuts: list[int] = []  # bytes after its first line at which each connection of a runner is cut
        self.unreachable = 0  # times
        self.connections = 0
        fake = self

        def runner(self: Place, sent_bytes: int) -> str:
            script = Path(__file__).with_name("scripted_runner.py")
            words = [sys.executable, script, self.folder, self.bundle, fake.root, sent_bytes]
            environment = f"HYPERVL_HELD=1 PYTHONPATH={quote(str(ROOT))}"
            return f"{environment} {' '.join(quote(str(word)) for word in words)}"

        monkeypatch.setattr(Place, "runner", runner)
        monkeypatch.setattr(fieldtest, "find_place", self._place)
        monkeypatch.setattr(fieldtest, "FIRST_DELAY_S", 0.05)

    def _place(self, device: Device, run: str, bundle: Path | None) -> Place:
        device.run("true")  # or it is lost
        folder = str(self.base / "home/field" / run)
        return Place(folder, "", str(self.bundle), "none", {}, this_machine())

    def boot(self, name: str) -> None:
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    def connect(self, address: Address) -> Device:
        fake = self

        class Cut(LocalDevice):
            def command(self, script: str) -> list[str]:
                if fake.unreachable:
                    fake.unreachable -= 1
                    raise DeviceLost(f"{self.address}: no route to it", "Is it on?")
                if "scripted_runner.py" in script:
                    fake.connections += 1
                    if fake.cuts:
                        relay = str(Path(__file__).with_name("cut_connection.py"))
                        return [sys.executable, relay, str(fake.cuts.pop(0)), script]
                return super().command(script)

        return Cut(address)

    @property
    def device_records(self) -> Path:
        (found,) = (self.base / "home").rglob(RECORDS_FILE)
        return found


@cache
def this_machine() -> Machine:
    return probe(LocalDevice(LOCAL))


@pytest.fixture
def fake(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


def plan_of(*questions: str, **changes: Any) -> Plan:
    cases = tuple(Case(f"c{i}", question) for i, question in enumerate(questions))
    return replace(PLAN, **{"cases": cases, **changes})


def run(
    folder: Path,
    plan: Plan,
    fake: Fake,
    *,
    patience_s: float = 60.0,
    on_record: Callable[[Address, Record], None] = lambda address, record: None,
) -> FieldTest:
    test = FieldTest(
        Results.open(folder, Suite(plan, {})), [LOCAL], patience_s=patience_s, connect=fake.connect
    )
    test.start(on_record)
    test.wait()
    return test


def records_in(folder: Path) -> list[Record]:
    return list(read_records(folder / "local" / RECORDS_FILE))


def answers_in(folder: Path) -> list[str]:
    return [record["answer"] for record in records_in(folder) if record["kind"] == "answer"]


def events_in(folder: Path) -> list[str]:
    return [record["what"] for record in records_in(folder) if record["kind"] == "event"]


def check_nothing_is_lost(folder: Path) -> None:
    told = [record["seq"] for record in records_in(folder) if not record.get("host")]
    assert told == list(range(1, len(told) + 1))


def test_a_suite_is_asked_of_a_real_bundle(
    nano_bundle: Path, photo: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"images: [{photo}]\n"
        "questions: [{ask: 'What is this?', expect: nothing}, 'What?']\n"
        "variants:\n"
        "  - {name: routed, threads: 1}\n"
        "  - {name: full, route: 'fixed:1.0'}\n"
        "  - {name: none, delegate: npu}\n"
        "max_new_tokens: 3\n"
    )
    found = read_suite(suite)
    results = Results.open(tmp_path / "results", found)
    test = FieldTest(results, [LOCAL], bundle=nano_bundle)
    test.start()
    test.wait()
    (device,) = test.devices
    assert device.error is None
    assert device.is_done
    told = records_in(tmp_path / "results")
    check_nothing_is_lost(tmp_path / "results")
    start = told[0]
    assert start["kind"] == "start"
    assert start["machine"]["memory_bytes"] > 0
    assert (start["bundle"]["name"], start["device"]) == (nano_bundle.name, "local")
    answers = [record for record in told if record["kind"] == "answer"]
    assert [(r["variant"], r["question"]) for r in answers] == [
        (variant, question) for variant in ("routed", "full") for question in ("What is this?", "What?")
    ]
    for answer in answers:
        assert answer["exact"] is (False if answer["expected"] else None)
        (image,) = answer["report"]["images"]
        assert image["name"] == answer["image"]
        assert image["encoded_tiles"] == len(image["sides_px"])
        assert answer["report"]["reused_tokens"] == 0
        assert (tmp_path / "results/pictures" / answer["image_file"]).read_bytes() == photo.read_bytes()
    (error,) = [record for record in told if record["kind"] == "error"]
    assert (error["variant"], error["case"], error["fatal"]) == ("none", "", True)
    routed, full, _ = device.outcome().variants
    assert (routed.answers, routed.judged, routed.exact, routed.errors) == (2, 1, 0, 0)
    assert routed.median_ms
    assert full.peak_resident_bytes > 10_000_000
    assert not list(home.rglob(RECORDS_FILE))  # nothing is left there


def test_when_all_is_done_the_same_command_asks_nothing(fake: Fake, tmp_path: Path) -> None:
    plan = plan_of("echo a")
    run(tmp_path / "r", plan, fake)
    before = records_in(tmp_path / "r")
    fake.unreachable = 1000
    test = run(tmp_path / "r", plan, fake)
    assert test.devices[0].is_done
    assert records_in(tmp_path / "r") == before


@pytest.mark.parametrize("after_bytes", [-1, 0, 900, 1500, 2222])
def test_a_connection_that_is_cut_is_made_again_and_nothing_is_lost(
    fake: Fake, tmp_path: Path, after_bytes: int
) -> None:
    fake.cuts = [after_bytes]
    test = run(tmp_path / "r", plan_of(*(f"slow 0.0{i}" for i in range(1, 9))), fake)
    assert test.devices[0].is_done
    assert answers_in(tmp_path / "r") == [f"0.0{i}" for i in range(1, 9)]
    check_nothing_is_lost(tmp_path / "r")
    assert fake.connections == 2
    told = [what for what in events_in(tmp_path / "r") if what in ("lost", "back", "done")]
    assert told == ["lost", "back", "done"]


def test_a_device_that_stays_away_is_waited_for(fake: Fake, tmp_path: Path) -> None:
    fake.cuts = [600]

    def vanish(address: Address, record: Record) -> None:
        if record.get("what") == "lost":
            fake.unreachable = 2

    run(tmp_path / "r", plan_of("echo a", "slow 0.2", "slow 0.3", "echo d"), fake, on_record=vanish)
    assert answers_in(tmp_path / "r") == ["a", "0.2", "0.3", "d"]
    lost = [record for record in records_in(tmp_path / "r") if record.get("what") == "lost"]
    assert len(lost) == 1
    assert lost[0]["host"]
    assert "local" in lost[0]["text"]


def test_patience_ends_and_the_same_command_goes_on(fake: Fake, tmp_path: Path) -> None:
    plan = plan_of("echo a", "slow 0.3", "echo c")
    fake.cuts = [600]

    def vanish(address: Address, record: Record) -> None:
        if record.get("what") == "lost":
            fake.unreachable = 1000

    test = run(tmp_path / "r", plan, fake, patience_s=0.5, on_record=vanish)
    error = test.devices[0].error
    assert isinstance(error, DeviceLost)
    assert "The same command goes on from there." in error.remedy
    assert not test.devices[0].is_done
    fake.unreachable = 0
    run(tmp_path / "r", plan, fake)
    assert answers_in(tmp_path / "r") == ["a", "0.3", "c"]
    check_nothing_is_lost(tmp_path / "r")


def test_a_device_that_was_never_reached_is_told_at_once(fake: Fake, tmp_path: Path) -> None:
    fake.unreachable = 1000
    test = run(tmp_path / "r", plan_of("echo a"), fake)
    assert test.devices[0].error is not None
    assert test.devices[0].error.message == "local: no route to it"
    assert not test.devices[0].was_reached


def test_one_device_that_is_not_there_does_not_keep_others_from_being_tested(
    fake: Fake, tmp_path: Path
) -> None:
    def connect(address: Address) -> Device:
        if address.host == "gone":
            raise DeviceLost(f"{address}: no route to it", "Is it on?")
        return fake.connect(address)

    addresses = [parse_address("ssh://gone"), parse_address("ssh://here")]
    results = Results.open(tmp_path / "r", Suite(plan_of("echo a"), {}))
    test = FieldTest(results, addresses, connect=connect)
    test.start()
    test.wait()
    assert [device.is_done for device in test.devices] == [False, True]
    assert [device.was_reached for device in test.devices] == [False, True]
    assert (tmp_path / "r/ssh-here" / RECORDS_FILE).exists()


def test_a_runner_that_is_killed_goes_on(fake: Fake, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(address: Address, record: Record) -> None:
        if record["kind"] == "answer" and not killed:
            killed.extend(processes_with(str(tmp_path / "home")))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    run(tmp_path / "r", plan_of("echo a", "slow 0.3", "echo c"), fake, on_record=kill)
    assert killed
    assert answers_in(tmp_path / "r") == ["a", "0.3", "c"]
    assert events_in(tmp_path / "r") == ["lost", "back", "resumed", "done"]


def test_a_reboot_in_a_soak_is_told_and_the_soak_goes_on(fake: Fake, tmp_path: Path) -> None:
    done: list[bool] = []

    def reboot(address: Address, record: Record) -> None:
        if record["kind"] == "answer" and record["repetition"] == 5 and not done:
            done.append(True)
            fake.boot("two")
            for process in processes_with(str(tmp_path / "home")):
                os.kill(process, signal.SIGKILL)

    run(tmp_path / "r", plan_of("slow 0.05", soak_s=1.5), fake, on_record=reboot)
    assert events_in(tmp_path / "r") == ["lost", "back", "reboot", "done"]
    repetitions = [r["repetition"] for r in records_in(tmp_path / "r") if r["kind"] == "answer"]
    assert repetitions == list(range(len(repetitions)))
    check_nothing_is_lost(tmp_path / "r")


def test_what_a_device_s_storage_lost_with_its_power_is_given_back(fake: Fake, tmp_path: Path) -> None:
    fake.cuts = [2000]

    def lose(address: Address, record: Record) -> None:
        if record.get("what") == "lost":
            path = fake.device_records
            wait_for(lambda: b"stopped" in path.read_bytes())
            os.truncate(path, 700)

    run(tmp_path / "r", plan_of(*["echo a"] * 6, "slow 0.5", "echo c"), fake, on_record=lose)
    assert answers_in(tmp_path / "r") == ["a"] * 6 + ["0.5", "c"]
    check_nothing_is_lost(tmp_path / "r")


def test_a_line_that_a_killed_host_tore_is_fetched_again(fake: Fake, tmp_path: Path) -> None:
    plan = plan_of("echo a", "slow 0.3", "echo c")
    fake.cuts = [600]
    run(tmp_path / "r", plan, fake, patience_s=0.0, on_record=_unreachable_when_lost(fake))
    path = tmp_path / "r/local" / RECORDS_FILE
    os.truncate(path, path.stat().st_size - 5)
    fake.unreachable = 0
    run(tmp_path / "r", plan, fake)
    assert answers_in(tmp_path / "r") == ["a", "0.3", "c"]
    check_nothing_is_lost(tmp_path / "r")


def _unreachable_when_lost(fake: Fake) -> Callable[[Address, Record], None]:
    def vanish(address: Address, record: Record) -> None:
        if record.get("what") == "lost":
            fake.unreachable = 1000

    return vanish


def test_a_stop_ends_the_runner_and_the_same_command_goes_on(fake: Fake, tmp_path: Path) -> None:
    plan = plan_of("echo a", "slow 0.5", "echo c")
    test = FieldTest(Results.open(tmp_path / "r", Suite(plan, {})), [LOCAL], connect=fake.connect)
    test.start()
    wait_for(lambda: answers_in(tmp_path / "r"))
    test.stop()
    test.wait()
    assert events_in(tmp_path / "r") == ["stopped"]
    assert not processes_with(str(tmp_path / "home"))
    run(tmp_path / "r", plan, fake)
    assert answers_in(tmp_path / "r") == ["a", "0.5", "c"]
    assert events_in(tmp_path / "r") == ["stopped", "resumed", "done"]


def test_shots_of_a_camera_are_fetched(fake: Fake, tmp_path: Path) -> None:
    camera = Camera(f"echo shot >>{tmp_path}/count; cp {tmp_path}/count {{output}}")
    run(tmp_path / "r", plan_of(camera=camera, live=(Case("q", "picture"),), repetitions=2), fake)
    files = [r["image_file"] for r in records_in(tmp_path / "r") if r["kind"] == "answer"]
    shots = [(tmp_path / "r/local/pictures" / name).read_text() for name in files]
    assert shots == answers_in(tmp_path / "r") == ["shot\n", "shot\nshot\n"]


def test_answers_of_two_bundles_are_not_mixed(fake: Fake, tmp_path: Path) -> None:
    plan = plan_of("echo a", "slow 0.5", "echo c")
    fake.cuts = [600]
    run(tmp_path / "r", plan, fake, patience_s=0.0, on_record=_unreachable_when_lost(fake))
    fake.unreachable = 0
    (fake.bundle / "manifest.json").write_text('{"model": "other"}')
    test = run(tmp_path / "r", plan, fake)
    assert test.devices[0].error is not None
    assert "is in use now" in test.devices[0].error.message


def test_another_suite_wants_another_folder(tmp_path: Path) -> None:
    Results.open(tmp_path / "r", Suite(plan_of("echo a"), {}))
    with pytest.raises(UsageError, match="another suite"):
        Results.open(tmp_path / "r", Suite(plan_of("echo b"), {}))
    with pytest.raises(UsageError, match="holds no field test"):
        Results.open(tmp_path, Suite(plan_of("echo b"), {}))


def test_a_device_is_named_once(tmp_path: Path) -> None:
    results = Results.open(tmp_path / "r", Suite(plan_of("echo a"), {}))
    with pytest.raises(UsageError, match="named twice"):
        FieldTest(results, [LOCAL, LOCAL])


# As a user types it.


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "toolkit.entry", "field-test", *map(str, arguments)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_ctrl_c_stops_the_device_and_the_same_command_finishes(
    nano_bundle: Path, photo: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "suite.yaml").write_text(
        f"images: [{photo}]\nquestions: [{{ask: 'What?', expect: x}}]\nrepetitions: 25\nmax_new_tokens: 2\n"
        "variants: [{threads: 1}]\n"
    )
    words = (
        tmp_path / "suite.yaml", "--device", "local", "--bundle", nano_bundle, "-o", tmp_path / "r",
        "--min-accuracy", "0.5",
    )  # fmt: skip
    process = subprocess.Popen(
        command(*words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(answers_in(tmp_path / "r")) >= 2, seconds=60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told.decode()
    assert "The same command goes on from there." in told.decode()
    assert not processes_with(str(tmp_path / "home"))
    assert events_in(tmp_path / "r") == ["stopped"]
    assert len(answers_in(tmp_path / "r")) < 25
    done = subprocess.run(command(*words, "--json"), env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "exact match is 0.0%, below 50.0%" in done.stderr
    assert len(answers_in(tmp_path / "r")) == 25
    check_nothing_is_lost(tmp_path / "r")
    summary = json.loads(done.stdout)
    (device,) = summary["devices"]
    assert device["done"]
    assert device["variants"][0]["answers"] == 25
    assert photo.stem in (tmp_path / "r/report.html").read_text()


def test_a_device_that_cannot_be_reached_is_exit_code_3(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "suite.yaml").write_text("questions: ['What?']")
    done = subprocess.run(
        command(tmp_path / "suite.yaml", "--device", "ssh://nobody@127.0.0.1:1", "-o", tmp_path / "r"),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "ssh://nobody@127.0.0.1:1" in done.stderr


def test_without_a_bundle_local_says_what_to_name(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "suite.yaml").write_text("questions: ['What?']")
    done = subprocess.run(
        command(tmp_path / "suite.yaml", "--device", "local", "-o", tmp_path / "r"),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--bundle" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("damage", [b'{"kind":"answer"}\n', b'{"kind":"error","variant":[]}\n', b"torn\n"])
def test_records_that_were_damaged_here_are_told(damage: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "local"
    folder.mkdir(parents=True)
    lines = [b'{"kind":"event","what":"resumed","seq":%d}\n' % seq for seq in (1, 2, 3)]
    (folder / "records.jsonl").write_bytes(lines[0] + damage + lines[2])
    with pytest.raises(ResourceError, match="record 2 is missing or damaged"):
        DeviceResults(folder, PLAN)
