"""The training run, from top to bottom: options, data, network, epochs, model folder."""

from __future__ import annotations

import csv
import ctypes
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from KidneySegLib.errors import Cancelled, InputError, KidneySegError
from KidneySegLib.measure import dice, slice_score
from KidneySegLib.model import RESEARCH_USE, Model, load_model, save_model
from KidneySegLib.network import NetworkParameters, build, count_parameters
from KidneySegLib.predict import TorchBackend, choose_device, choose_precision, predict
from KidneySegLib.preprocess import Preprocessing, scale
from KidneySegLib.writing import atomic, write_json
from UNetTrainerLib.cache import CachedCase, build_cache
from UNetTrainerLib.cases import Case, find_cases, folds_by_patient
from UNetTrainerLib.checkpoint import CHECKPOINT_FILE, Run
from UNetTrainerLib.losses import LOSSES
from UNetTrainerLib.report import draw_curves
from UNetTrainerLib.sampling import AUGMENTATIONS, Sampler

HISTORY = (
    "epoch",
    "lr",
    "train_loss",
    "valid_loss",
    "valid_dice_case",
    "valid_dice_slice",
    "seconds",
)


@dataclass(frozen=True)
class Options:
    """Every choice of a training run, with its default; see ``kidneyseg train --help``."""

    data: tuple[str, ...]
    output: str
    cache: str = ""
    extra: tuple[str, ...] = ()
    extra_share: float = 0.15
    name: str = ""
    epochs: int = 50
    steps: int = 120
    batch_size: int = 12
    features: int = 16
    depth: int = 5
    context_slices: int = 5
    dropout: float = 0.2
    rows: int = 192
    columns: int = 256
    pixel_mm: float = 1.6
    slice_mm: float = 3.0
    lr: float = 2e-3
    weight_decay: float = 1e-4
    averaging: float = 0.998
    loss: str = "generalized-dice"
    augment: str = "full"
    folds: int = 5
    fold: int = 0
    keep: str = "best"
    resume: bool = False
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    network: NetworkParameters = field(init=False)

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("steps", 1), ("batch_size", 1), ("folds", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {low}")
        if self.folds == 1:
            raise ValueError("--folds 1 leaves nothing to train on; give 0 or at least 2")
        for name in ("extra_share", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0 and below 1")
        if not self.lr > 0 or self.weight_decay < 0:
            raise ValueError("--lr must be above 0 and --weight-decay not below it")
        network = NetworkParameters(
            context_slices=self.context_slices,
            features=self.features,
            depth=self.depth,
            dropout=self.dropout,
        )
        if self.rows % network.multiple or self.columns % network.multiple:
            raise ValueError(
                f"{self.rows} rows and {self.columns} columns must be multiples of "
                f"{network.multiple} for a network of depth {self.depth}"
            )
        object.__setattr__(self, "network", network)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(pixel_mm=self.pixel_mm, slice_mm=self.slice_mm, crop=True)


@dataclass(frozen=True)
class Scores:
    """Of one validation: loss, Dice per case and the published per-slice score."""

    loss: float
    dice_per_case: dict[str, float]
    dice_slice: float

    @property
    def dice_case(self) -> float:
        values = list(self.dice_per_case.values())
        return float(np.mean(values)) if values else math.nan

    @property
    def quality(self) -> float:
        """What the best epoch is chosen by; single slices count where there is no volume."""
        return self.dice_case if self.dice_per_case else self.dice_slice


def train(
    options: Options,
    report: Callable[[str], None] = print,
    cancelled: Callable[[], bool] | None = None,
) -> Model:
    """Train one model and leave it in ``<output>/model``, with its history beside it.

    With ``folds=0`` every case trains and none validates. ``keep="best"`` takes the weights of the
    epoch with the highest validation Dice per case; ``last`` those of the last, which leaves the
    held-out fold untouched as a test.

    Raises:
        InputError: unusable data, named.
        Cancelled: ``cancelled()`` became true; finished epochs stay on disk, and ``resume`` goes
            on after them.
    """
    started = time.monotonic()
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)

    cases = find_cases(options.data)
    training, validation = split(cases, options)
    extra = find_cases(options.extra) if options.extra else []
    report(
        f"{len(training)} cases train, {len(validation)} validate, {len(extra)} extra; "
        f"{device}, {precision}"
    )
    output = Path(options.output)
    cached = build_cache(
        [*training, *validation, *extra],
        Path(options.cache) if options.cache else output / "cache",
        options.preprocessing,
    )
    keep_freed_memory()
    train_cases = cached[: len(training)]
    valid_cases = cached[len(training) : len(training) + len(validation)]
    sampler = Sampler(
        train_cases,
        cached[len(training) + len(validation) :],
        options.preprocessing,
        options.context_slices,
        (options.rows, options.columns),
        options.batch_size,
        options.seed,
        AUGMENTATIONS[options.augment],
        options.extra_share,
    )

    network = build(options.network).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(network, avg_fn=averaged(options.averaging), use_buffers=True)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.epochs * options.steps, pct_start=0.15
    )
    loss_function = LOSSES[options.loss]
    model = Model(
        name=options.name or output.name,
        version="1.0.0",
        network=options.network,
        preprocessing=options.preprocessing,
    )
    report(f"{count_parameters(network):,} parameters")

    run = Run(network, average, optimizer, schedule, sampler)
    settings = _settings(options, training, validation, extra)
    best = -math.inf
    kept = Scores(math.nan, {}, math.nan)
    rows: list[dict[str, Any]] = []
    if options.resume:
        progress = run.load(output / CHECKPOINT_FILE, settings)
        best, kept, rows = progress["best"], Scores(**progress["kept"]), progress["rows"]
        report(f"resumed after epoch {len(rows)}")
    for epoch in range(len(rows) + 1, options.epochs + 1):
        epoch_started = time.monotonic()
        network.train()
        losses = []
        for slices, labels in sampler.batches(options.steps):
            if cancelled is not None and cancelled():
                raise Cancelled(f"Cancelled; {epoch - 1} finished epochs are in {output}.")
            slices = slices.to(device, memory_format=torch.channels_last)
            labels = (labels > 0).long().to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = network(slices)
            loss = loss_function(logits, labels)
            if not torch.isfinite(loss):
                raise KidneySegError(
                    f"The loss is not finite in epoch {epoch}; lower --lr and start again. The "
                    f"last good state is in {output}."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            losses.append(loss.item())

        scores = validate(model, average.module, valid_cases, options, precision)
        row = {
            "epoch": epoch,
            "lr": schedule.get_last_lr()[0],
            "train_loss": float(np.mean(losses)),
            "valid_loss": scores.loss,
            "valid_dice_case": scores.dice_case,
            "valid_dice_slice": scores.dice_slice,
            "seconds": time.monotonic() - epoch_started,
        }
        rows.append(row)
        _write_history(rows, output / "history.csv")
        report("  ".join(f"{k} {v:.4g}" for k, v in row.items() if math.isfinite(v)))
        if scores.quality > best or options.keep == "last" or not valid_cases:
            best, kept = scores.quality, scores
            facts = _card(options, train_cases, valid_cases, scores, epoch, started)
            save_model(replace(model, card=facts), average.module.state_dict(), output / "model")
        progress = {"best": best, "kept": asdict(kept), "rows": rows}
        run.save(output / CHECKPOINT_FILE, settings, progress)
    write_json(_finite(asdict(kept)), output / "scores.json")
    draw_curves(rows, output / "curves.png")
    return load_model(output / "model")


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed instead of giving it back page by page.

    Every batch frees and takes the same large blocks; on Linux the page faults of doing so took
    half of the time of augmentation. Elsewhere nothing is asked for.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # glibc; M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-3, 2**30)):
            set_option(option, value)


def averaged(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential average of weights that forgets the untrained ones first.

    The decay rises as ``(1 + n) / (10 + n)`` up to ``decay``, so that early averages follow the
    network instead of its initial state.
    """

    def update(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        rate = max(1 - decay, 9 / (10 + int(count)))
        return average + (current - average) * rate

    return update


def split(cases: Sequence[Case], options: Options) -> tuple[list[Case], list[Case]]:
    """Training and validation cases; all of a patient's on one side."""
    if options.folds == 0:
        return list(cases), []
    if not 0 <= options.fold < options.folds:
        raise InputError(
            f"There is no fold {options.fold} of {options.folds}; give 0 to {options.folds - 1}."
        )
    fold_of = folds_by_patient(cases, options.folds, seed=0)
    held_out = {patient for patient, fold in fold_of.items() if fold == options.fold}
    return (
        [case for case in cases if case.patient not in held_out],
        [case for case in cases if case.patient in held_out],
    )


def validate(
    model: Model,
    network: torch.nn.Module,
    cases: Sequence[CachedCase],
    options: Options,
    precision: str,
) -> Scores:
    """Scores on the working grid, before components are chosen.

    ``valid_loss`` is ``1 - Dice`` of all cases' pixels together. Single slices count in the
    per-slice score alone: a Dice per case of one slice would weigh as much as a whole volume.
    """
    if not cases:
        return Scores(math.nan, {}, math.nan)
    network.eval()
    backend = TorchBackend(model, options.device, precision, network)
    per_case: dict[str, float] = {}
    per_slice: list[float] = []
    overlap = total = 0
    for case in cases:
        working = scale(np.array(case.hu(), np.float32), model.preprocessing)
        probability = predict(working, case.spacing_mm[0], backend)
        prediction = probability >= model.threshold
        truth = np.asarray(case.labels()) > 0
        overlap += int(np.logical_and(prediction, truth).sum())
        total += int(prediction.sum()) + int(truth.sum())
        per_slice += [slice_score(prediction, truth)] * case.slices
        value = dice(prediction, truth)
        if value is not None and not case.case.is_slice:
            per_case[case.case.name] = value
    return Scores(
        1 - 2 * overlap / total if total else math.nan, per_case, float(np.mean(per_slice))
    )


def _settings(
    options: Options, training: Sequence[Case], validation: Sequence[Case], extra: Sequence[Case]
) -> dict[str, Any]:
    """What a resumed run must share with the one before."""
    free = ("data", "extra", "output", "cache", "resume", "device", "network")
    settings = {k: v for k, v in asdict(options).items() if k not in free}
    parts = {"training": training, "validation": validation, "extra": extra}
    names = {k: [f"{case.source}/{case.name}" for case in v] for k, v in parts.items()}
    return {**settings, **{f"{k} cases": v for k, v in names.items()}}


def _write_history(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY)
        writer.writeheader()
        writer.writerows(rows)


def _card(
    options: Options,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    scores: Scores,
    epoch: int,
    started: float,
) -> dict[str, Any]:
    """What the model card says of the run, all of it facts."""
    sources = sorted({item.case.source for item in training})
    places = ("network", "data", "output", "cache", "extra", "resume")
    choices = {k: v for k, v in asdict(options).items() if k not in places}
    return {
        "description": "Both kidneys with their tumours and cysts, in CT.",
        "licence": RESEARCH_USE,
        "training": {
            "date": date.today().isoformat(),
            "patients": {
                source: len({i.case.patient for i in training if i.case.source == source})
                for source in sources
            },
            "slices": sum(item.slices for item in training),
            "options": choices,
            "epoch": epoch,
            "minutes": round((time.monotonic() - started) / 60, 1),
        },
        "scores": {
            "validation_patients": len({item.case.patient for item in validation}),
            "validation_dice_per_case": scores.dice_per_case,
            "validation_slice_score": _finite(scores.dice_slice),
        },
    }


def _finite(value: Any) -> Any:
    """The same with None for what is not a number: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
