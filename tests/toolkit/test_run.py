"""`toolkit run` and `toolkit chat` as a user types them: answer, table, JSON, picture, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Eighty columns, no colours, one weight cache for all tests here."""
    cache = tmp_path_factory.mktemp("cache")
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
        "XDG_CACHE_HOME": str(cache),
        "TERM": "dumb",
    }


def toolkit(
    environment: dict[str, str], *arguments: str | Path, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, input=typed, capture_output=True, text=True)


def test_an_answer_ends_with_what_it_cost(
    environment: dict[str, str], nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "routing.png"
    done = toolkit(
        environment, "run", nano_bundle, "--image", photo, "--prompt", "What is this?",
        "--max-new-tokens", "5", "--routing", picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in ("tiles", "tile sides chosen", "visual tokens", "prefill", "decode", "resident memory"):
        assert row in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert Image.open(picture).size[0] >= 256


def test_json_holds_the_answer_and_the_report_and_nothing_else_is_on_stdout(
    environment: dict[str, str], nano_bundle: Path, photo: Path
) -> None:
    done = toolkit(
        environment,
        "run",
        nano_bundle,
        "--image",
        photo,
        "--prompt",
        "Hello",
        "--max-new-tokens",
        "4",
        "--json",
    )
    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == answer["new_tokens"] == 4
    assert answer["visual_tokens"] == sum(map(sum, (image["tokens"] for image in answer["images"])))
    assert answer["visual_tokens_unrouted"] >= answer["visual_tokens"]
    assert answer["memory"]["peak_resident_bytes"] > 10_000_000
    assert answer["times"]["decode_ms"] > 0
    assert done.stderr == ""  # the native libraries keep quiet


def test_native_logs_are_shown_when_asked_for(environment: dict[str, str], nano_bundle: Path) -> None:
    done = toolkit(environment, "run", nano_bundle, "--prompt", "Hello", "--max-new-tokens", "1", "--verbose")
    assert "INFO" in done.stderr


def test_the_same_seed_gives_the_same_words(environment: dict[str, str], nano_bundle: Path) -> None:
    asked = ("run", nano_bundle, "--prompt", "Hi", "--max-new-tokens", "12", "--temperature", "1", "--json")
    first, again, other = (
        json.loads(toolkit(environment, *asked, "--seed", seed).stdout)["token_ids"]
        for seed in ("1", "1", "2")
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--prompt", "x", "--image", "missing.jpg"], "missing.jpg", 3),
        (["--prompt", "x", "--route", "fixed:7"], "fixed:7", 2),
        (["--prompt", "x", "--temperature", "-1"], "temperature", 2),
        (["--prompt", "x", "--backend", "compild"], "compiled", 2),
        (["--prompt", "x " * 2000], "context", 2),
        (["--prompt", "x", "--routing", "out.png"], "--image", 2),
        (["--prompt", "x", "--image", "a.jpg", "--routing", "out.jpg"], "'out.jpg' is not a .png", 2),
        (["--prompt", "x", "--image", "a.jpg", "--routing", "no/out.png"], "no folder no", 2),
        (["--prompt", "x", "--threads", "99999"], "threads is 99999", 2),
        (["--prompt", "x", "--backend", "tensorflow"], "tensorflow is not installed", 3),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(
    arguments: list[str], message: str, code: int, environment: dict[str, str], nano_bundle: Path
) -> None:
    done = toolkit(environment, "run", nano_bundle, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(
    environment: dict[str, str], nano_bundle: Path
) -> None:
    done = toolkit(environment, "run", nano_bundle, "--prompt", "x" * 2000)
    assert "context holds 512" in done.stderr


def test_the_drawing_does_not_replace_the_picture(
    environment: dict[str, str], nano_bundle: Path, photo: Path
) -> None:
    before = photo.read_bytes()
    done = toolkit(environment, "run", nano_bundle, "--prompt", "x", "--image", photo, "--routing", photo)
    assert done.returncode == 2
    assert "is the --image itself" in done.stderr
    assert photo.read_bytes() == before


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_reader_that_leaves_is_no_error(
    environment: dict[str, str], nano_bundle: Path, more: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "toolkit.cli", "inspect", str(nano_bundle), *more]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_control_c_keeps_what_was_said(environment: dict[str, str], nano_bundle: Path) -> None:
    # On a busy machine it must not have ended before we can stop it: it gives way to us.
    command = [
        "nice",
        "-n",
        "19",
        sys.executable,
        "-m",
        "toolkit.cli",
        "run",
        str(nano_bundle),
        "--prompt",
        "Hi",
    ]
    sampled = ["--max-new-tokens", "400", "--temperature", "1", "--seed", "3"]
    process = subprocess.Popen(
        [*command, *sampled], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"ended by: Ctrl-C" in out
    assert b"Traceback" not in err


@pytest.fixture(scope="module")
def vast_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 megapixels, which take a second or more to look at on any machine."""
    path = tmp_path_factory.mktemp("photos") / "vast.png"
    Image.fromarray(np.tile(skimage.data.astronaut(), (12, 12, 1))).save(path, compress_level=1)
    return path


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 0.7, 1.0])
def test_ctrl_c_is_told_at_any_moment(
    environment: dict[str, str], nano_bundle: Path, vast_photo: Path, seconds: float
) -> None:
    """While commands are imported, options are read, graphs are opened, a picture is looked at; it must not
    be over by then, on a fast machine either."""
    code = (
        "import signal, sys\nfrom toolkit.entry import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also where a shell has it ignored
        "sys.argv = ['toolkit', 'run', *sys.argv[1:]]\nprint('here', flush=True)\nmain()"
    )
    pictures = [part for _ in range(2) for part in ("--image", vast_photo)]
    ask = [*pictures, "--route", "fixed:0.25", "--prompt", "Hi", "--max-new-tokens", "100"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(nano_bundle), *map(str, ask)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"ended by: Ctrl-C" in out or b"error: stopped by Ctrl-C" in err
    assert b"Traceback" not in err


def test_chat_reuses_the_turns_before(environment: dict[str, str], nano_bundle: Path, photo: Path) -> None:
    typed = "What is this?\nAnd that?\n"
    done = toolkit(
        environment, "chat", nano_bundle, "--image", photo, "--max-new-tokens", "4", "--json", typed=typed
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] > first["visual_tokens"] > 0
    assert second["images"][0]["encoded_tiles"] == 0


def test_chat_takes_pictures_on_the_way_and_starts_over(
    environment: dict[str, str], nano_bundle: Path, photo: Path
) -> None:
    typed = f"Hello\n/image '{photo}'\nAnd this?\n/reset\nHello\n/quit\nnever read\n"
    done = toolkit(environment, "chat", nano_bundle, "--max-new-tokens", "2", "--json", typed=typed)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(answer["images"]) for answer in answers] == [0, 1, 0]
    assert answers[0]["token_ids"] == answers[2]["token_ids"]


def test_chat_looks_at_a_picture_before_it_takes_it(
    environment: dict[str, str], nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    typed = f"/image '{photo}'\n/image '{text}'\n/what\nWhat is this?\n"
    done = toolkit(environment, "chat", nano_bundle, "--max-new-tokens", "2", "--json", typed=typed)
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert [image["name"] for image in answer["images"]] == [str(photo)]
    assert "astronaut.png will go with your next question" in done.stderr
    assert "text.jpg is not an image" in done.stderr
    assert "There is no /what" in done.stderr


def test_piped_questions_go_on_after_one_that_failed(
    environment: dict[str, str], nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    """A picture that is cut off fails where it is asked about, and not again."""
    cut = tmp_path / "cut.jpg"
    Image.open(photo).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:5000])
    typed = f"/image '{cut}'\nWhat is this?\nAnd now?\n"
    done = toolkit(environment, "chat", nano_bundle, "--max-new-tokens", "2", "--json", typed=typed)
    assert done.returncode == 3
    failed, answer = map(json.loads, done.stdout.splitlines())
    assert "cut.jpg cannot be decoded" in failed["error"]
    assert answer["images"] == []
    assert "cut.jpg: left out of the next question" in done.stderr
