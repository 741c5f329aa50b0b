"""`toolkit train base`, `decoder` and `dcl`: from nothing to a checkpoint that reads panels.

Everything that is needed to go on lies in the work folder: stages that are done are not done again, one that
was stopped goes on at its last save.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hypervl.checkpoint import Checkpoint, check_output, check_text, save
from hypervl.config import HyperVLConfig, preset
from hypervl.model import HyperVL, build
from hypervl.text_files import TextFiles
from hypervl.training import stages
from hypervl.training.consistency import CONSISTENCIES
from hypervl.training.curves import draw_stage
from hypervl.training.feed import workers
from hypervl.training.loop import Step, Task, train
from hypervl.training.machine import check_work, choose_device, code_versions
from hypervl.training.positions import initialise_positions
from hypervl.training.tokenizer import panel_tokenizer
from rpi_runtime.errors import CheckpointError, UsageError, nearest
from vqa.panels.vocabulary import DATA_VERSION

OnStep = Callable[[str, Step], None]


@dataclass(frozen=True)
class PanelOptions:
    output: Path
    work: Path
    seed: int = 0
    scale: float = 1.0  # of every stage's steps; 1 is what the shipped weights were trained with
    device: str = "auto"
    workers: int = 1
    dtype: str = "float16"
    replace: bool = False


@dataclass(frozen=True)
class StageRecord:
    stage: str
    steps: int
    seconds: float
    metrics: dict[str, float]  # smoothed, at the end


@dataclass(frozen=True)
class TrainingRecord:
    output: Path
    what: str
    stages: tuple[StageRecord, ...]
    seed: int
    scale: float
    device: str
    data_version: int
    versions: dict[str, str]
    curves: tuple[Path, ...]


def train_base(
    name: str, options: PanelOptions, on_step: OnStep = lambda stage, step: None
) -> TrainingRecord:
    """Trains preset `name` from random weights: the large branch densely, then with the decoder. The base
    branch begins as every other layer of it.

    Raises `UsageError` for an unknown preset, an output that exists, and a preset whose branches have no
    stem, or differ in more than their layers.
    """
    _check(options)
    config = preset(name)
    _check_branches(config)
    _claim(options, {"preset": name, "config": config.to_dict()})
    text_files = _tokenizer(options.work / stages.TOKENIZER_FOLDER, config.decoder.vocab_size)
    check_text(config, text_files)
    model = build(config, options.seed)
    initialise_positions(model.vision_large)
    begin_decoder(model)

    shop = _workshop(model, options)
    tasks = (
        stages.primer(shop),
        stages.dense(shop),
        stages.answers(shop),
        stages.joint(shop),
        stages.dense_base(shop),
    )
    return _run(f"base {name}", shop, tasks, text_files, options, on_step)


def train_further(
    checkpoint: Path, options: PanelOptions, on_step: OnStep = lambda stage, step: None
) -> TrainingRecord:
    """Goes on with the large branch and the decoder of `checkpoint`, on panels that only another seed has
    shown them; the base branch begins anew.

    Raises `UsageError` for an output that exists and branches without stems, `CheckpointError` for a broken
    checkpoint.
    """
    _check(options)
    opened = Checkpoint.open(checkpoint)
    _check_branches(opened.config)
    model = opened.load_model()
    _claim(options, {"further": opened.fingerprint()})
    _copy_tokenizer(opened, options)
    shop = _workshop(model, options)
    tasks = (
        stages.fresh_heads(shop),
        stages.dense_again(shop),
        stages.joint(shop),
        stages.dense_base(shop),
    )
    return _run("further", shop, tasks, opened.text_files, options, on_step)


def train_decoder(
    checkpoint: Path, name: str, options: PanelOptions, on_step: OnStep = lambda stage, step: None
) -> TrainingRecord:
    """Trains a new decoder, of preset `name`'s shape, behind the large branch of `checkpoint`; the rest stays
    as it is.

    Raises `UsageError` for an unknown preset, an output that exists, and a preset whose decoder takes other
    visual tokens or another vocabulary, `CheckpointError` for a broken checkpoint.
    """
    _check(options)
    shape = preset(name).decoder
    opened = Checkpoint.open(checkpoint)
    ours = opened.config.decoder
    for field in ("hidden_size", "vocab_size"):
        theirs, its = getattr(shape, field), getattr(ours, field)
        if theirs != its:
            raise UsageError(
                f"The decoder of preset {name} has {field} {theirs}, {checkpoint} has {its}",
                "Its branches and tokenizer stay: name a preset that fits them.",
            )
    config = dataclasses.replace(opened.config, decoder=shape)
    _claim(options, {"decoder behind": opened.fingerprint(), "config": config.to_dict()})
    _copy_tokenizer(opened, options)
    model = build(config, options.seed)
    own = {k: v for k, v in opened.load_model().state_dict().items() if not k.startswith("decoder.")}
    model.load_state_dict(own, strict=False)
    begin_decoder(model)
    shop = _workshop(model, options)
    return _run("decoder", shop, (stages.answers(shop),), opened.text_files, options, on_step)


def begin_decoder(model: HyperVL) -> None:
    """Lets a head look at one token among hundreds from the start: normalised queries and keys of weight 1
    give scores below `head_dim ** 0.5`, and these weights grow slowly."""
    for name, weight in model.decoder.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(weight, _QK_NORM)


_QK_NORM = 2.0


def _check_branches(config: HyperVLConfig) -> None:
    base, large = config.vision_base, config.vision_large
    if not large.stem_channels:
        raise UsageError(
            f"{config.name} has branches without a convolutional stem",
            "Dense pretraining reads the stem: use nano.",
        )
    layers = base.num_hidden_layers
    if layers > large.num_hidden_layers or dataclasses.replace(large, num_hidden_layers=layers) != base:
        raise UsageError(
            f"{config.name}: the base branch is no shorter copy of the large one",
            "It begins as one; let the two differ in num_hidden_layers alone, as nano's do.",
        )


def train_dcl(
    checkpoint: Path, consistency: str, options: PanelOptions, on_step: OnStep = lambda stage, step: None
) -> TrainingRecord:
    """Trains the base branch of `checkpoint` under its decoder, with the terms that `consistency` names.

    Raises `UsageError` for an unknown one and an output that exists, `CheckpointError` for a broken
    checkpoint.
    """
    _check(options)
    if consistency not in CONSISTENCIES:
        raise nearest(consistency, CONSISTENCIES, "consistency")
    opened = Checkpoint.open(checkpoint)
    model = opened.load_model()
    _claim(options, {"checkpoint": opened.fingerprint()})
    _copy_tokenizer(opened, options)
    name = "dcl" if consistency == "both" else f"dcl_{consistency}"

    shop = _workshop(model, options)
    task = stages.dcl(shop, CONSISTENCIES[consistency], name)
    return _run(name, shop, (task,), opened.text_files, options, on_step)


def _show_pictures(on_step: OnStep, stage: str, done: int, of: int) -> None:
    on_step(f"{stage}: pictures", Step(done, of, 0, {}, 0.0))


def _copy_tokenizer(opened: Checkpoint, options: PanelOptions) -> None:
    folder = options.work / stages.TOKENIZER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    opened.text_files.write(folder)


def _workshop(model: HyperVL, options: PanelOptions) -> stages.Workshop:
    device = choose_device(options.device)
    return stages.Workshop(model.to(device), options.work, device, options.seed, options.scale)


def _run(
    what: str,
    shop: stages.Workshop,
    tasks: Sequence[Task],
    text_files: TextFiles,
    options: PanelOptions,
    on_step: OnStep,
) -> TrainingRecord:
    device = shop.device
    records, curves = [], []
    with workers(options.workers) as pool:
        for task in tasks:
            if task.prepare is not None:
                task.prepare(pool, partial(_show_pictures, on_step, task.name))
            result = train(task, options.work, pool, device, partial(on_step, task.name))
            final = {k: v for k, v in result.history[-1].items() if k not in ("step", "level")}
            records.append(StageRecord(task.name, task.schedule.steps, result.seconds, final))
            curves.append(draw_stage(task.name, result.history, options.work / f"{task.name}.png"))
    save(shop.model.cpu().eval(), options.output, text_files, dtype=options.dtype, replace=options.replace)
    record = TrainingRecord(
        output=options.output,
        what=what,
        stages=tuple(records),
        seed=options.seed,
        scale=options.scale,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        data_version=DATA_VERSION,
        versions=code_versions(),
        curves=tuple(curves),
    )
    content = json.dumps(dataclasses.asdict(record), indent=2, default=str)
    (options.work / f"{what.split()[0]}.json").write_text(content + "\n")
    return record


def _tokenizer(folder: Path, vocab_size: int) -> TextFiles:
    """Learned once per work folder."""
    try:
        return TextFiles.read(folder)
    except CheckpointError:
        folder.mkdir(parents=True, exist_ok=True)
        text_files = panel_tokenizer(vocab_size)
        text_files.write(folder)
        return text_files


_CLAIM_FILE = "training.json"


def _claim(options: PanelOptions, what: dict[str, Any]) -> None:
    """Notes in the work folder what is trained there; refuses to go on with the work of another training."""
    file = options.work / _CLAIM_FILE
    ours = {**what, "seed": options.seed, "scale": options.scale, "data_version": DATA_VERSION}
    ours = json.loads(json.dumps(ours))
    if file.is_file():
        theirs = json.loads(file.read_text())
        different = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        if different:
            raise UsageError(
                f"{options.work} holds the work of another training: {', '.join(different)} differ",
                "Give another --work, or the options that it was begun with.",
            )
    options.work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ours, indent=2) + "\n")


def _check(options: PanelOptions) -> None:
    check_output(options.output, replace=options.replace)
    check_work(options.work, _CLAIM_FILE)
    if not 0 < options.scale < math.inf:  # which NaN is not, either
        raise UsageError(
            f"--scale {options.scale:g} must be above 0", "1 trains as the shipped weights were."
        )
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers} is below 0", "0 makes the data in the main process.")
