"""tflite-runtime 2.14, as 32-bit boards have it: the same tokens, or a refusal where it computes nonsense."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converters.quantize import quantize_component
from converters.recipes import RECIPES
from rpi_runtime.backends.select import open_graph
from rpi_runtime.errors import ResourceError
from rpi_runtime.manifest import DECODER
from rpi_runtime.session import Session
from tests.conftest import script

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

ANSWER = """
import json, sys
from rpi_runtime.session import Session
with Session.open(sys.argv[1], weight_cache=False, threads=1) as session:
    answer = session.generate("What is this?", [sys.argv[2]], routing="fixed:0.25", max_new_tokens=16)
    list(answer)
    print(json.dumps([answer.token_ids, answer.report.backend.package, answer.report.backend.reason]))
"""
DECODE = """
import json, sys
from pathlib import Path
import numpy as np
from rpi_runtime.backends.select import open_graph
runner = open_graph(Path(sys.argv[1]), threads=1).runner("decode")
inputs = dict(np.load(sys.argv[2]))
print(json.dumps(runner.run(inputs)["logits"][0].tolist()))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        made: Path = script("tflite_runtime_env").make()
    except ResourceError as error:
        pytest.skip(error.message)
    return made


def run(python: Path | str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_picture_is_answered_with_the_same_tokens(
    python: Path, nano_bundle: Path, photo: Path, cache_home: Path
) -> None:
    with Session.open(nano_bundle, threads=1) as session:
        expected = session.generate("What is this?", [photo], routing="fixed:0.25", max_new_tokens=16)
        assert len(list(expected)) > 0
    done = run(python, ANSWER, nano_bundle, photo)
    assert done.stderr == ""
    tokens, package, reason = json.loads(done.stdout)
    assert tokens == expected.token_ids
    assert package == "tflite-runtime"
    assert "ai-edge-litert is not installed" in reason


@pytest.mark.parametrize("recipe", ["fp16", "int4-channel", "int8", "int4-block32"])
def test_a_recipe_is_either_computed_rightly_or_refused(
    python: Path, nano_bundle: Path, tmp_path: Path, recipe: str
) -> None:
    """Dynamic int8 and block-wise int4 give zeros there, without any error."""
    graph = tmp_path / "decoder.tflite"
    quantize_component(nano_bundle / "decoder.tflite", RECIPES[DECODER][recipe], graph)
    runner = open_graph(graph, threads=1).runner("decode")
    random = np.random.default_rng(0)
    inputs = {t.name: random.random(t.shape).astype(np.float32) - 0.5 for t in runner.signature.inputs}
    np.savez(tmp_path / "inputs.npz", **inputs)
    expected = runner.run(inputs)["logits"][0]
    done = run(python, DECODE, graph, tmp_path / "inputs.npz")
    if recipe in ("int8", "int4-block32"):
        assert done.returncode != 0
        assert "miscomputes its" in done.stderr
    else:
        found = np.array(json.loads(done.stdout))
        assert np.corrcoef(found, expected)[0, 1] > 0.99
        assert np.abs(found).max() > 0.5 * np.abs(expected).max()


def test_beside_numpy_2_it_is_refused_with_the_command_that_helps(python: Path, nano_bundle: Path) -> None:
    packages = next(python.parent.parent.glob("lib/python*/site-packages"))
    code = (
        f"import sys; sys.path.append({str(packages)!r})\n"
        "from rpi_runtime.backends.select import choose\n"
        "choose('tflite-runtime')\n"
    )
    assert int(np.__version__.split(".")[0]) >= 2
    done = run(sys.executable, code)
    assert "was built for NumPy 1" in done.stderr
    assert "pip install 'numpy<2'" in done.stderr
