"""The rooms import one way, and the light ones stay light (docs/architecture.md draws it)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each room may import the rooms to its right.
ORDER = ("toolkit", "field", "converters", "hypervl", "vqa", "rpi_runtime", "delegates")
LIGHT = {"numpy", "PIL", "tokenizers", "jinja2"}
RUNTIMES = {"ai_edge_litert", "tflite_runtime", "tensorflow"}
HEAVY = (
    "torch",
    "transformers",
    "litert_torch",
    "ai_edge_quantizer",
    "ai_edge_litert",
    "tensorflow",
    "tflite_runtime",
    "jax",
)


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_the_rooms_after_it(room: str) -> None:
    before = set(ORDER[: ORDER.index(room)])
    wrong = {
        str(f.relative_to(ROOT)): sorted(imports(f) & before) for f in files(room) if imports(f) & before
    }
    assert not wrong


@pytest.mark.parametrize("room", ["rpi_runtime", "delegates"])
def test_the_device_side_imports_only_light_libraries(room: str) -> None:
    allowed = LIGHT | set(sys.stdlib_module_names) | {"rpi_runtime", "delegates"}
    for file in files(room):
        runtimes = RUNTIMES if file.parent.name == "backends" else set()
        assert imports(file) <= allowed | runtimes, file
        assert not imports(file, top_level_only=True) & RUNTIMES, (
            f"{file} loads the TFLite runtime when imported"
        )


def test_asking_questions_needs_only_light_libraries() -> None:
    """A board evaluates a bundle; plots are drawn where Matplotlib is."""
    for file in files("vqa"):
        allowed = LIGHT | set(sys.stdlib_module_names) | {"vqa", "rpi_runtime"}
        assert imports(file, top_level_only=True) <= allowed, file
        assert imports(file) <= allowed | {"matplotlib"}, file


@pytest.mark.parametrize("module", ["toolkit.cli", "rpi_runtime.session", "vqa.evaluate"])
def test_importing_it_loads_neither_torch_nor_a_tflite_runtime(module: str) -> None:
    code = f"import sys, {module}; print('\\n'.join(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(loaded.stdout.split()) & set(HEAVY)


def test_help_loads_no_numpy_either() -> None:
    code = (
        "import sys; sys.argv = ['toolkit', '--help']\n"
        "from toolkit.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('loaded:', *sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert not loaded & {*HEAVY, "numpy", "PIL", "tokenizers", "jinja2"}
    for command in (
        *("assemble", "convert", "verify", "inspect", "run", "chat", "eval", "train", "data"),
        *("doctor", "devices"),
    ):
        assert command in done.stdout
