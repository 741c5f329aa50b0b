"""The stages of a convert: which there are, what each depends on, and what runs in their processes.

Per variant of a component `export` (float32), `quantize`, `check` (parity); then the token table and the text
files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.options import HEAD, Plan
from converters.stages import Stage
from rpi_runtime.bundle import sha256_of
from rpi_runtime.errors import UsageError
from rpi_runtime.manifest import DECODER, VISION_BASE, VISION_LARGE

if TYPE_CHECKING:
    from converters.export import ExportOptions
    from converters.recipes import Recipe
    from hypervl.checkpoint import Checkpoint

TOOLS = ("hypervl-edge", "torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")
TABLE_FILES = {"int8": "embedding.int8", "fp16": "embedding.float16"}
SCALES_FILE = "embedding.scales"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

Places = dict[str, Path]


def tool_versions() -> dict[str, str]:
    """Package -> version of what decides about the bytes of a graph."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]  # "+cpu" names a build
        except importlib.metadata.PackageNotFoundError:  # this project itself, run from its source
            continue
    return found


def need_convert_extra() -> None:
    """Raises `UsageError` on a light install, which runs bundles but cannot make them."""
    absent = [name for name in ("torch", "litert_torch", "ai_edge_quantizer") if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"not installed: {', '.join(absent)}",
            "Making bundles needs more than running them: in the project's folder, pip install '.[convert]'.",
        )


def read_stage(checkpoint: Path) -> Stage:
    """Reads the whole checkpoint once: is it sound, and which one is it?"""
    return Stage("read checkpoint", f"{__name__}:read", inputs={"checkpoint": str(checkpoint)})


def stages_of(
    plan: Plan, checkpoint: Path, known: dict[str, Any], photos: tuple[str, ...] = ()
) -> list[Stage]:
    """All stages of `plan`, in order. `known` is what `read` returned; `photos` are those to calibrate on, if
    not the shipped ones.

    A stage's options hold exactly what its result depends on: a changed option redoes only what it touches.
    """
    source = {"checkpoint": known["fingerprint"], "tools": tool_versions(), "code": _code_digest()}
    where = {"checkpoint": str(checkpoint)}
    looked_at = {"photos": {path: sha256_of(Path(path)) for path in photos}} if photos else {}
    stages: list[Stage] = []
    exports: dict[str, Stage] = {}  # by what they depend on: variants share them
    for variant in plan.variants:
        component, target = variant.component, variant.target
        compiled = bool(target.soc)  # ahead of time; without a SoC the device's plugin compiles
        graph = f"{'work' if compiled else 'bundle'}/{variant.name}.tflite"
        shapes = shapes_for(component, plan)
        about = {"component": component, "shapes": shapes}
        recipe = {"recipe": asdict(variant.recipe)}
        exported = {
            **source,
            **about,
            "block_offsets": variant.recipe.block_offsets,
            "smoothed": variant.recipe.smoothed,
            "writing": variant.writing,
        }
        export_stage = exports.setdefault(
            json.dumps(exported, sort_keys=True),
            Stage(
                f"export {variant.name}",
                f"{__name__}:export",
                exported,
                where,
                {"graph": f"work/{variant.name}.fp32.tflite"},
            ),
        )
        quantize_stage = Stage(
            f"quantize {variant.name}",
            f"{__name__}:quantize",
            {**about, **recipe, **(looked_at if variant.recipe.needs_calibration else {})},
            {**where, "float_graph": export_stage.outputs["graph"]},
            {"graph": graph},
            (export_stage,),
        )
        if export_stage not in stages:
            stages.append(export_stage)
        sample = f"bundle/{component}.sample.npz" if variant.is_base else ""
        stages += [
            quantize_stage,
            check_stage(variant.name, shapes, recipe, where, graph, quantize_stage, sample=sample),
        ]
        if compiled:
            stages.append(
                Stage(
                    f"compile {variant.name}",
                    f"{__name__}:compile_ahead",
                    {"vendor": target.vendor, "soc": target.soc},
                    {"graph": graph},
                    {"graph": f"bundle/{variant.name}.tflite"},
                    (quantize_stage,),
                )
            )
    if DECODER in plan.components:
        quantize_decoder = next(stage for stage in stages if stage.name == f"quantize {DECODER}")
        stages.append(_embedding_stage(plan, source, where, quantize_decoder))
    text_files = {"tokenizer": f"bundle/{TOKENIZER_FILE}"}
    if known["has_chat_template"]:
        text_files["chat_template"] = f"bundle/{TEMPLATE_FILE}"
    stages.append(Stage("text files", f"{__name__}:text", source, where, text_files))
    return stages


def _embedding_stage(plan: Plan, source: dict[str, Any], where: dict[str, str], quantize: Stage) -> Stage:
    in_head = plan.embedding == HEAD
    dtype = plan.recipes[DECODER].head_dtype if in_head else plan.embedding
    outputs = {} if in_head else {"table": f"bundle/{TABLE_FILES[dtype]}"}
    if dtype == "int8":
        outputs["scales"] = f"bundle/{SCALES_FILE}"
    return Stage(
        "embedding",
        f"{__name__}:embedding",
        {**source, "dtype": dtype},
        {**where, "graph": quantize.outputs["graph"]} if in_head else where,
        outputs,
        (quantize,) if in_head else (),
    )


def check_stage(
    name: str,
    shapes: dict[str, Any],
    recipe: dict[str, Any],
    where: dict[str, str],
    graph: str,
    *after: Stage,
    sample: str = "",
) -> Stage:
    """Compares the graph at `graph` of the variant `name` with PyTorch, and writes the component's sample to
    `sample`, unless that is ""."""
    return Stage(
        f"check {name}",
        f"{__name__}:check",
        {"component": name.partition(".")[0], "shapes": shapes, **recipe},
        {**where, "graph": graph},
        {"sample": sample} if sample else {},
        after,
    )


def shapes_for(component: str, plan: Plan) -> dict[str, Any]:
    """What of the plan's fixed shapes reaches `component`."""
    is_branch, is_decoder = component in (VISION_BASE, VISION_LARGE), component == DECODER
    return {
        "tile_sides": list(plan.tile_sides) if is_branch else [],
        "prefill_tokens": list(plan.prefill_tokens) if is_decoder else [],
        "contexts": list(plan.contexts) if is_decoder else [],
        "kv_dtype": plan.kv_dtype if is_decoder else "",
    }


def _code_digest() -> str:
    """sha256 over all that makes and checks graphs: no unfinished convert survives a change of ours."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in ("converters", "hypervl"):
        for file in sorted(p for p in (root / room).rglob("*") if p.is_file() and p.suffix != ".pyc"):
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


# What runs in the processes: (options, inputs, outputs) -> plain data for JSON.


def read(options: dict[str, Any], inputs: Places, outputs: Places) -> dict[str, Any]:
    from hypervl.checkpoint import Checkpoint
    from rpi_runtime.manifest import COMPONENTS

    checkpoint = Checkpoint.open(inputs["checkpoint"])
    checkpoint.check_finite()
    text, decoder = checkpoint.text_files, checkpoint.config.decoder
    numbers = {name: checkpoint.parameters(f"{name}.") for name in COMPONENTS}
    numbers["embedding"] = decoder.vocab_size * decoder.hidden_size
    if not decoder.tie_word_embeddings:  # then the graph has a head of its own and no table
        numbers[DECODER] -= numbers["embedding"]
    return {
        "fingerprint": checkpoint.fingerprint(),
        "parameters": numbers,  # of each graph, and of the token table
        "has_chat_template": text.chat_template is not None,
        "eos_token_ids": list(text.eos_token_ids),
        "bos_token": text.bos_token,
        "eos_token": text.eos_token,
    }


def export(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    from converters.export import export_component
    from rpi_runtime import tflite_file

    export_component(options["component"], _open(inputs), _export_options(options), outputs["graph"])
    tflite_file.read(outputs["graph"])  # a native writer does not notice a full disk


def quantize(options: dict[str, Any], inputs: Places, outputs: Places) -> dict[str, Any]:
    from converters.calibration import calibration
    from converters.quantize import bits_per_weight, quantize_component
    from rpi_runtime import tflite_file

    recipe, float_graph = _recipe(options), inputs["float_graph"]
    samples = None
    if recipe.needs_calibration:
        photos = tuple(options.get("photos", ()))
        samples = calibration(options["component"], _open(inputs), _export_options(options), photos)
    quantize_component(float_graph, recipe, outputs["graph"], samples)
    held = tflite_file.read(outputs["graph"])
    return {
        "bits_per_weight": round(bits_per_weight(outputs["graph"]), 3),
        "signatures": [asdict(s) for s in held.signatures],
    }


def check(options: dict[str, Any], inputs: Places, outputs: Places) -> list[dict[str, Any]]:
    from converters.parity import check_component
    from converters.stored_sample import write_sample

    found = check_component(
        options["component"], _open(inputs), inputs["graph"], _recipe(options), _export_options(options)
    )
    if "sample" in outputs:
        write_sample(options["component"], _open(inputs), _export_options(options), outputs["sample"])
    return [asdict(parity) for parity in found]


def compile_ahead(options: dict[str, Any], inputs: Places, outputs: Places) -> dict[str, Any]:
    from converters.npu import compile_for

    made = compile_for(inputs["graph"], options["vendor"], options["soc"], outputs["graph"])
    return {"subgraphs": [asdict(share) for share in made.subgraphs]}


def embedding(options: dict[str, Any], inputs: Places, outputs: Places) -> dict[str, Any]:
    from converters.embedding import find_table, write_table

    if "graph" in inputs:
        return asdict(find_table(_open(inputs), inputs["graph"], outputs.get("scales")))
    dtype = TABLE_FILES[options["dtype"]].partition(".")[2]
    return asdict(write_table(_open(inputs), dtype, outputs["table"], outputs.get("scales")))


def text(options: dict[str, Any], inputs: Places, outputs: Places) -> None:
    from hypervl.text_files import TextFiles

    files = TextFiles.read(inputs["checkpoint"]).files
    outputs["tokenizer"].write_bytes(files[TOKENIZER_FILE])
    if "chat_template" in outputs:
        outputs["chat_template"].write_bytes(files[TEMPLATE_FILE])


def _open(inputs: Places) -> Checkpoint:
    from hypervl.checkpoint import Checkpoint

    return Checkpoint.open(inputs["checkpoint"])


def _export_options(options: dict[str, Any]) -> ExportOptions:
    from converters.export import ExportOptions

    shapes = options["shapes"]
    return ExportOptions(
        tuple(shapes["tile_sides"]),
        tuple(shapes["prefill_tokens"]),
        tuple(shapes["contexts"]),
        shapes["kv_dtype"],
        options.get("block_offsets", ""),
        options.get("smoothed", False),
        options.get("writing", ""),
    )


def _recipe(options: dict[str, Any]) -> Recipe:
    from converters.recipes import parse_recipes

    component, name = options["component"], options["recipe"]["name"]
    return parse_recipes(f"{component}={name}")[component]
