"""Deploying and running over a real sshd, with all that may come between. The device is this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rpi_runtime.bundle import Bundle
from rpi_runtime.manifest import to_json
from tests.conftest import script
from tests.field.reached import ROOT, Reached, check_same, question, when

pytestmark = pytest.mark.emulation


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    emulation, openssh = script("emulation"), script("openssh")
    script("qemu")
    work = tmp_path_factory.mktemp("over-ssh")
    try:
        sshd = script("sshd").Sshd()
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    with sshd:
        path = openssh.ssh_wrapper(work / "bin", sshd.config)
        yield Reached(sshd, work, {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"})


@pytest.fixture(scope="module")
def deployed(reached: Reached, nano_bundle: Path) -> Reached:
    reached.toolkit("deploy", nano_bundle, "--device", reached.address)
    return reached


def prefix(reached: Reached) -> Path:
    home: Path = reached.device.home
    return home / ".local/share/hypervl-edge"


def running(reached: Reached) -> bool:
    """Whether a command of the toolkit is at work on the device."""
    work = str(prefix(reached) / "work")
    for process in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if str(process.readlink()).startswith(work):
                return True
    return False


def test_a_key_that_the_users_ssh_does_not_know_is_refused(reached: Reached, nano_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "deploy", str(nano_bundle), "--device", reached.address],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # nobody to ask
    )
    assert done.returncode == 3
    assert "Host key verification failed" in done.stderr
    assert "Connect once by hand" in done.stderr


def test_without_an_installation_it_says_how_to_make_one(
    reached: Reached, nano_bundle: Path, photo: Path
) -> None:
    _, err = reached.toolkit(*question(nano_bundle, photo), "--device", reached.address, code=3)
    assert f"toolkit deploy BUNDLE --device {reached.address}" in err


def test_a_cut_copy_goes_on_where_it_was(reached: Reached, nano_bundle: Path) -> None:
    def arrived() -> int:
        return sum(file.stat().st_size for file in prefix(reached).glob("incoming/*.partial/*"))

    cut = when(lambda: arrived() > 4_000_000, reached.device.cut_connections)
    _, err = reached.toolkit("deploy", nano_bundle, "--device", reached.address, code=3)
    cut.join()
    assert "give the same command again" in err
    assert not (prefix(reached) / "current").exists()
    there = arrived()
    assert there > 4_000_000
    done = reached.json("deploy", nano_bundle, "--device", reached.address)
    assert done["switched"]
    assert done["runtime"]["sent_bytes"] <= done["runtime"]["bytes"] - there


def test_deployed_again_nothing_travels(deployed: Reached, nano_bundle: Path) -> None:
    done = deployed.json("deploy", nano_bundle, "--device", deployed.address)
    assert (done["runtime"]["sent_bytes"], done["bundle"]["sent_bytes"]) == (0, 0)
    assert not done["switched"]


def test_an_answer_there_is_the_one_of_here_with_its_files(
    deployed: Reached, nano_bundle: Path, photo: Path
) -> None:
    drawn = deployed.work / "routing.png"
    words = [*question(nano_bundle, photo), "--routing", str(drawn)]
    there = deployed.json(*words, "--device", deployed.address)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    here = deployed.json(*words)
    check_same(there, here)
    assert set(there) == set(here)


def test_it_prints_the_same(deployed: Reached, nano_bundle: Path) -> None:
    words = ["inspect", str(nano_bundle), "--json"]
    there = json.loads(deployed.toolkit(*words, "--device", deployed.address)[0])
    assert there == json.loads(deployed.toolkit(*words)[0])


def test_errors_and_exit_codes_are_those_of_there(deployed: Reached, nano_bundle: Path) -> None:
    words = question(nano_bundle, Path("no such picture.jpg"))
    _, err = deployed.toolkit(*words, "--device", deployed.address, code=3)
    assert err.startswith("error: no such picture.jpg does not exist")


@pytest.fixture
def many_questions(tmp_path: Path, photo: Path) -> Path:
    """Enough for a minute."""
    folder = tmp_path / "questions"
    folder.mkdir()
    shutil.copy(photo, folder / "photo.png")
    lines = [{"image": "photo.png", "question": f"What is {i}?", "answer": "x"} for i in range(4000)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluation(bundle: Path, questions: Path, results: Path) -> list[str]:
    return ["eval", str(bundle), "--data", str(questions), "-o", str(results), "--max-new-tokens", "4"]


def at_work(reached: Reached) -> bool:
    """Whether it has an answer, and goes on."""
    answered = any(file.stat().st_size for file in prefix(reached).glob("work/**/results.jsonl"))
    return answered and running(reached)


def test_ctrl_c_ends_it_there_and_brings_what_it_has(
    deployed: Reached, nano_bundle: Path, many_questions: Path, tmp_path: Path
) -> None:
    words = evaluation(nano_bundle, many_questions, tmp_path / "results")
    process = deployed.start(*words, "--device", deployed.address)

    when(lambda: at_work(deployed), lambda: process.send_signal(signal.SIGINT)).join()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"answers are in {tmp_path / 'results'}" in err
    assert not running(deployed)
    assert (tmp_path / "results/results.jsonl").stat().st_size > 0


@pytest.mark.parametrize("how", ["the connection is cut", "the program here is killed"])
def test_what_nobody_waits_for_ends(
    deployed: Reached, nano_bundle: Path, many_questions: Path, tmp_path: Path, how: str
) -> None:
    words = evaluation(nano_bundle, many_questions, tmp_path / "results")
    process = deployed.start(*words, "--device", deployed.address)
    cut: Any = deployed.device.cut_connections if "cut" in how else process.kill

    when(lambda: at_work(deployed), cut).join()
    _, err = process.communicate(timeout=120)
    if "cut" in how:
        assert process.returncode == 3
        assert deployed.address in err
        assert "give the same command again" in err
    end = time.monotonic() + 90
    while running(deployed) and time.monotonic() < end:
        time.sleep(0.2)
    assert not running(deployed)


def test_a_bundle_shares_files_with_the_one_before_and_a_rollback_puts_that_back(
    deployed: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(nano_bundle, changed)
    manifest = replace(Bundle.open(nano_bundle).manifest, model="another-name")
    (changed / "manifest.json").write_text(to_json(manifest))
    done = deployed.json("deploy", changed, "--device", deployed.address)
    assert done["switched"]
    assert done["runtime"]["sent_bytes"] == 0
    assert 0 < done["bundle"]["sent_bytes"] < 100_000 < done["bundle"]["bytes"]
    back = deployed.json("deploy", "--rollback", "--device", deployed.address)
    assert back["in_use"]["name"] == nano_bundle.name
    there = deployed.json(*question(nano_bundle.name, photo), "--device", deployed.address)
    assert there["model"] == Bundle.open(nano_bundle).manifest.model


def test_a_bundle_that_changed_since_is_not_taken_for_the_one_there(
    deployed: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(nano_bundle, changed)
    manifest = replace(Bundle.open(nano_bundle).manifest, model="yet-another-name")
    (changed / "manifest.json").write_text(to_json(manifest))
    _, err = deployed.toolkit(*question(changed, photo), "--device", deployed.address, code=3)
    assert f"toolkit deploy {changed} --device {deployed.address}" in err


def test_a_picture_that_lies_in_the_bundle_is_found_and_not_written_there(
    deployed: Reached, nano_bundle: Path, photo: Path
) -> None:
    folder = deployed.work / nano_bundle.name
    shutil.copytree(nano_bundle, folder)
    shutil.copy(photo, folder / "photo.png")
    words = question(nano_bundle.name, Path(nano_bundle.name) / "photo.png")
    there = deployed.json(*words, "--device", deployed.address)
    check_same(there, deployed.json(*words))
    assert not list(prefix(deployed).glob("bundles/*/photo.png"))


def test_what_was_changed_since_it_was_converted_is_not_asked(
    deployed: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    shutil.copytree(nano_bundle, tmp_path / "changed")
    (tmp_path / "changed/chat_template.jinja").write_text("x")
    _, err = deployed.toolkit(*question(tmp_path / "changed", photo), "--device", deployed.address, code=3)
    assert "chat_template.jinja" in err


def test_what_a_deployment_left_goes_with_the_next(deployed: Reached, nano_bundle: Path) -> None:
    (prefix(deployed) / "runtimes/0123456789abcdef").mkdir()
    deployed.toolkit("deploy", nano_bundle, "--device", deployed.address)
    assert not (prefix(deployed) / "runtimes/0123456789abcdef").exists()


def test_an_installation_elsewhere_is_found(deployed: Reached, nano_bundle: Path, photo: Path) -> None:
    place = deployed.device.home / "an ssd/hv"
    words = ["deploy", str(nano_bundle), "--device", deployed.address]
    deployed.toolkit(*words, "--prefix", str(place))
    try:
        told = deployed.json("doctor", "--device", deployed.address)
        assert str(place) in json.dumps(told)
        check_same(
            deployed.json(*question(nano_bundle, photo), "--device", deployed.address),
            deployed.json(*question(nano_bundle, photo)),
        )
    finally:
        deployed.toolkit(*words)
    assert str(place) not in json.dumps(deployed.json("doctor", "--device", deployed.address))


def test_a_device_that_was_deployed_to_is_remembered(deployed: Reached) -> None:
    devices = json.loads(deployed.toolkit("devices", "--json")[0])
    assert deployed.address in json.dumps(devices)
