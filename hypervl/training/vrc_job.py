"""From a checkpoint and questions about pictures to a checkpoint with a trained VRC.

1. The frozen model answers every question with its picture's tiles at varied sides (`loss_file`).
2. The loss-ratio rule turns losses into labels (`vrc_labels`), 3. the VRC learns them (`vrc_training`),
4. and is measured on validation pictures as the device would route them (`vrc_evaluation`). With several eps,
2 to 4 happen for each; the one that keeps fewest tokens with the loss within the tolerance is taken.
5. The new checkpoint has the VRC's new tensors and all others as they were.

A VRC is trained for one routing, "tile" or "image", because it cannot serve both: the thumbnail of a picture
and the whole picture of `image` routing are the same pixels, and deserve different answers. A thumbnail may
be small when the tiles beside it show the details; the one scale for all tiles may not.

Everything expensive lies in the work folder, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from hypervl.checkpoint import DTYPES, Checkpoint, check_output, write
from hypervl.config import BRANCHES
from hypervl.training.answer_loss import FrozenModel
from hypervl.training.loss_file import AskedPicture, LossFile, open_asked
from hypervl.training.machine import check_work, choose_device, code_versions
from hypervl.training.question_vrc import try_question_vrc
from hypervl.training.vrc_labels import Rule, routed_sides
from hypervl.training.vrc_report import Trial, VRCReport
from hypervl.training.vrc_training import TrainSettings, check_views
from hypervl.training.vrc_trial import OnProgress, Trials, data_digest, stored_dtype
from hypervl.training.vrc_views import split, viewed
from hypervl.vrc import VRC
from rpi_runtime.errors import CheckpointError, UsageError, nearest
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tokenizer import TextCodec
from vqa.dataset import Dataset

ROUTINGS = ("tile", "image")
_LOSSES_FILE = "losses.jsonl"


@dataclass(frozen=True)
class VRCOptions:
    checkpoint: Path
    data: Path
    output: Path
    work: Path
    data_validation: Path | None = None  # None keeps a tenth of the pictures of `data`
    eps: tuple[float, ...] = (0.05,)  # of several, the best on validation is taken
    floor: float = 0.5  # nats per answer token, see `vrc_labels`
    tolerance: float = (
        0.02  # of several eps: how much the validation loss may grow, as a ratio with the floor
    )
    routing: str = "tile"
    branch: str = "base"
    device: str = "auto"
    with_question: bool = False  # also try a router that sees the question, see `question_vrc`
    training: TrainSettings = field(default_factory=TrainSettings)
    replace: bool = False


def train_vrc(options: VRCOptions, on_progress: OnProgress = lambda what, done, total: None) -> VRCReport:
    """Writes the checkpoint `options.output`, and the report that it returns as JSON into the work folder.

    Raises `UsageError` for options, data or an output that cannot be, `CheckpointError` for a checkpoint that
    cannot be trained, `ImageError` naming a picture that cannot be read.
    """
    _check(options)
    device = choose_device(options.device)
    checkpoint = Checkpoint.open(options.checkpoint)
    codec = TextCodec.from_checkpoint(options.checkpoint)
    model = checkpoint.load_model().requires_grad_(False).to(device)
    frozen = FrozenModel(model, codec, options.branch, device)
    spec = frozen.spec
    if len(routed_sides(spec)) < 2:
        raise CheckpointError(
            f"{options.checkpoint}: all scales of its VRC lead to tiles of {spec.tile_side} px",
            "There is nothing to choose. Give its config.json smaller tiling.tile_sides or vrc.scales.",
        )
    training, validation = _pictures(options, spec, on_progress)
    check_views(
        *(sum(len(viewed(p, options.routing)) for p in pictures) for pictures in (training, validation))
    )
    fingerprint = checkpoint.fingerprint()
    options.work.mkdir(parents=True, exist_ok=True)
    with LossFile(options.work / _LOSSES_FILE, frozen, fingerprint) as losses:
        trials = Trials(
            checkpoint=checkpoint,
            fingerprint=fingerprint,
            losses=losses,
            spec=spec,
            routing=options.routing,
            training=training,
            validation=validation,
            settings=options.training,
            device=device,
            work=options.work,
            on_progress=on_progress,
        )
        rules = [Rule(eps, options.floor) for eps in options.eps]
        labels = trials.label(rules)
        tried = [trials.run(rule, found) for rule, found in zip(rules, labels, strict=True)]
        before = trials.measure_old()
        index = choose([trial for trial, _ in tried], options.tolerance, options.floor)
        chosen, vrc = tried[index]
        question = try_question_vrc(trials, frozen, vrc, rules[index]) if options.with_question else None
    _write(checkpoint, vrc, options)
    report = VRCReport(
        output=options.output,
        work=options.work,
        checkpoint_sha256=fingerprint,
        data_sha256=data_digest(training, validation),
        pictures=len(training),
        pictures_validation=len(validation),
        routing=options.routing,
        branch=options.branch,
        floor=options.floor,
        tolerance=options.tolerance,
        settings=dataclasses.asdict(options.training),
        device=str(device),
        versions=code_versions(),
        scales=spec.scales,
        before=before,
        chosen=chosen,
        tried=tuple(trial for trial, _ in tried),
        question=question,
    )
    report.write(options.work / "report.json")
    return report


def choose(trials: Sequence[Trial], tolerance: float, floor: float) -> int:
    """Of the trials whose validation loss grew by at most `tolerance`, the one with fewest tokens.

    If there is none, the one with the smallest loss.
    """
    ratios = [trial.after.ratio(floor) for trial in trials]
    good = [i for i, ratio in enumerate(ratios) if ratio <= 1 + tolerance]
    if good:
        return min(good, key=lambda i: trials[i].after.tokens_kept)
    return min(range(len(trials)), key=ratios.__getitem__)


def _check(options: VRCOptions) -> None:
    """Refuses at once what would fail after hours."""
    for value, known, what in (
        (options.branch, BRANCHES, "branch"),
        (options.routing, ROUTINGS, "routing"),
    ):
        if value not in known:
            raise nearest(value, known, what)
    for number in options.eps:
        if not 0 <= number < math.inf:  # which NaN is not, either
            raise UsageError(f"eps is {number:g}", "Give numbers of 0 and above.")
    if not 0 <= options.tolerance < math.inf:
        raise UsageError(f"tolerance is {options.tolerance:g}", "It must be 0 or above.")
    for number, what in ((options.floor, "floor"), (options.training.caution, "caution")):
        if not 0 < number < math.inf:
            raise UsageError(f"{what} is {number:g}", "It must be above 0.")
    if options.with_question and options.routing != "tile":
        raise UsageError("the router with the question is one for tiles", "Leave out --for image.")
    check_output(options.output, replace=options.replace)
    check_work(options.work, _LOSSES_FILE)


def _pictures(
    options: VRCOptions, spec: VisionSpec, on_progress: OnProgress
) -> tuple[list[AskedPicture], list[AskedPicture]]:
    """Training and validation pictures, opened and not decoded."""

    def opened(folder: Path) -> list[AskedPicture]:
        asked = Dataset.read(folder).by_image()
        found = []
        for path, questions in asked.items():
            found.append(open_asked(path, questions, spec))
            on_progress("opening pictures", len(found), len(asked))
        return found

    pictures = opened(options.data)
    if options.data_validation is None:
        return split(pictures, options.training.seed)
    return pictures, opened(options.data_validation)


def _write(checkpoint: Checkpoint, vrc: VRC, options: VRCOptions) -> None:
    dtype = stored_dtype(checkpoint)
    learned = {f"vrc.{name}": tensor for name, tensor in vrc.state_dict().items()}

    def produce(name: str) -> Tensor:
        return learned[name] if name in learned else checkpoint.tensor_files.tensor(name)

    write(
        options.output,
        checkpoint.config,
        checkpoint.text_files,
        produce,
        dtype=next(name for name, kind in DTYPES.items() if kind == dtype),
        replace=options.replace,
    )
