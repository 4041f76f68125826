"""The training run, from top to bottom: data, network, epochs, model folder."""

from __future__ import annotations

import ctypes
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from KidneySegLib.backends.torchbackend import TorchBackend, choose_device, has_bfloat16
from KidneySegLib.errors import KidneySegError, UsageError
from KidneySegLib.model import Model, load_model
from KidneySegLib.model import check as check_model
from KidneySegLib.modelcard import MODEL_FOLDER, SPLIT_FILE
from KidneySegLib.modelplaces import find_model, resources_folder
from KidneySegLib.modelplaces import user_folder as models_folder
from KidneySegLib.modelsaving import check_place, save_model
from KidneySegLib.network import build, count_parameters
from KidneySegLib.preprocess import to_axial_order
from KidneySegLib.regions import Search
from KidneySegLib.writing import write_json
from UNetTrainerLib.cache import CachedCase, build_cache
from UNetTrainerLib.candidates import smallest_kidney_ml
from UNetTrainerLib.card import card, readme
from UNetTrainerLib.cases import (
    Case,
    Split,
    check_extra,
    find_everything,
    split_cases,
    write_split,
)
from UNetTrainerLib.check import check, table, usable_cases
from UNetTrainerLib.checkpoint import LAST, SafetensorsIO, check_settings
from UNetTrainerLib.distributed import launched
from UNetTrainerLib.loop import Keeper, Teller, Training
from UNetTrainerLib.memory import check_memory
from UNetTrainerLib.options import Options
from UNetTrainerLib.progress import Progress, Silent
from UNetTrainerLib.report import draw_curves, draw_examples, write_history
from UNetTrainerLib.sampling import BatchSampler, SliceDataset, loader

SCORES = "scores.json"  # of the epoch that was kept; written at the end of a run
EXAMPLES, TENSORBOARD = "examples", "tensorboard"
LIGHTNING_PRECISION = {"bf16": "bf16-mixed", "16-mixed": "16-mixed", "32": "32-true"}


@dataclass(frozen=True)
class Data:
    """Cases on the working grid, by what they are for, and the split that says so."""

    split: Split
    training: list[CachedCase]
    validation: list[CachedCase]
    extra: list[CachedCase]


def train(
    options: Options,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Model | None:
    """Train one model and leave it in ``<output>/model``, with its history and pictures beside it.

    After every epoch the output holds, each whole or the one before: ``last.safetensors`` to
    resume from, ``best.safetensors``, ``model/``, ``history.csv``, ``curves.png``; at the end
    ``examples/`` and ``scores.json`` too. With ``folds=0`` every case trains and none validates.

    Returns:
        The model; None after ``check_only``, and in processes other than the first.

    Raises:
        UsageError, InputError: before any training, what cannot be used and what to do.
        Cancelled: ``cancelled()`` became true; finished epochs stay on disk.
        KidneySegError: the loss was not finite; the last good state stays.
    """
    started = time.monotonic()
    options, rank = launched(options)
    progress = progress if progress is not None and rank == 0 else Silent()
    output = writable(Path(options.output))
    if not options.check_only:
        check_machine(options)
        check_name(options)
        check_place(output / MODEL_FOLDER)

    model = planned(options)
    data = prepare(options, output, progress, model.finder if options.prior else None)
    if data is None:
        return None
    everything = [*data.training, *data.extra]
    dataset = SliceDataset(data.training, data.extra, options)
    pin_memory = choose_device(options.device).type == "cuda"
    batches = loader(dataset, options, rank, options.processes, pin_memory)

    model = replace(model, smallest_kidney_ml=smallest_of(data.training, options.view))
    torch.manual_seed(options.seed)
    network = build(model.network)
    if options.init_from:
        network.load_state_dict(find_model(options.init_from).load_network().state_dict())
    training = Training(
        options, model, network, everything, data.validation, settings(options, data), len(batches)
    )
    progress.line(
        f"{len(data.training)} cases train, {len(data.validation)} validate, {len(data.extra)} "
        f"extra; {count_parameters(network):,} parameters; "
        f"{choose_device(options.device)}, {precision_of(options)}"
    )
    checkpoint = output / LAST if options.resume else None
    if checkpoint is not None:
        done = len(check_settings(checkpoint, training.settings))
        # Workers begin to draw before Lightning tells them the epoch.
        cast(BatchSampler, batches.batch_sampler).set_epoch(done)
        progress.line(f"resumed after epoch {done}")
    if rank == 0:  # only now: a run that cannot be resumed leaves the record of the other alone
        if checkpoint is None:
            forget(output)
        write_split(data.split, output / SPLIT_FILE)

    teller = Teller(progress, cancelled)

    def leave(run: Training, chosen: bool) -> None:
        write_history(run.rows, output / "history.csv")
        draw_curves(run.rows, output / "curves.png")
        if chosen:
            facts = card(options, everything, data.validation, run, teller.waiting_share, started)
            state = run.best_network.state_dict()
            save_model(
                replace(model, card=facts), state, output / MODEL_FOLDER, readme(model, facts)
            )
        logger.log_metrics({k: v for k, v in run.rows[-1].items() if k != "epoch"}, len(run.rows))
        progress.line(
            "  ".join(f"{key} {value:.4g}" for key, value in run.rows[-1].items() if value == value)
            + f"  waiting {teller.waiting_share:.1%}"
        )

    callbacks = [teller, Keeper(output, options.keep, leave)]
    if options.early_stopping:
        callbacks.insert(0, EarlyStopping("quality", mode="max", patience=options.early_stopping))
    logger = TensorBoardLogger(output, name=TENSORBOARD, version="")
    keep_freed_memory()
    with quiet():
        loop = trainer(options, output, callbacks, logger)
        numbers = share_of(len(data.validation), rank, options.processes)
        valid_batches = DataLoader(cast("Dataset[int]", numbers), batch_size=None)
        run_loop(loop, training, batches, valid_batches, checkpoint, teller)
    if rank > 0:
        return None

    finished = load_model(output / MODEL_FOLDER)
    kept = training.kept
    if kept is not None and kept.cases:
        write_json(kept.to_dict(), output / SCORES)
        draw_examples(finished, data.validation, kept, output / EXAMPLES, options.device)
    if options.install:
        finished = install(finished)
        progress.line(f"installed as {finished.name}")
    return finished


def planned(options: Options) -> Model:
    """The model to be, without what only its data tell.

    Raises:
        UsageError: models in it that do not go together, which its folder would refuse after the
            first epoch.
    """
    finder = find_model(options.finder) if options.finder else None
    if finder is not None and finder.finder is not None:
        raise UsageError(
            f"--finder {options.finder} has a finder of its own; give that one, "
            f"{finder.finder.folder}."
        )
    model = Model(
        name=name_of(options),
        version=options.model_version,
        network=options.network_parameters,
        preprocessing=options.preprocessing,
        labels=options.labels,
        threshold=options.threshold,
        finder=finder,
        search=None
        if finder is None
        else Search(margin_mm=options.margin_mm, wide=options.wide, blend=options.blend),
        views=tuple(find_model(view) for view in options.views),
    )
    try:
        check_model(model)
    except ValueError as error:
        raise UsageError(
            f"No model can be made that way: {error}; choose other models with --finder and "
            "--views."
        ) from error
    return stored_in_half(model) if options.half_weights else model


def smallest_of(cases: Sequence[CachedCase], view: str) -> float | None:
    """What `smallest_kidney_ml` says of cases on the working grid of a view."""
    return smallest_kidney_ml(
        (to_axial_order(item.labels() > 0, view), item.spacing_mm)
        for item in cases
        if not item.case.is_slice
    )


def name_of(options: Options) -> str:
    """Of the model."""
    return options.name or Path(options.output).resolve().name


def stored_in_half(model: Model) -> Model:
    """The same model, whose weights and those of its parts take half the room."""
    finder = None if model.finder is None else stored_in_half(model.finder)
    views = tuple(map(stored_in_half, model.views))
    return replace(model, finder=finder, views=views, half_weights=True)


def share_of(cases: int, rank: int, processes: int) -> list[int]:
    """Numbers of the cases that a process validates; -1 where the others have one more."""
    longest = -(-cases // processes)
    own = list(range(rank, cases, processes))
    return own + [-1] * (longest - len(own))


def writable(output: Path) -> Path:
    """Make the output folder, or say why that is not possible."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written to ({error.strerror}); choose another --output."
        ) from error
    return output


def forget(output: Path) -> None:
    """Take away what an earlier run left of its end and would be taken for this one's."""
    (output / SCORES).unlink(missing_ok=True)
    shutil.rmtree(output / EXAMPLES, ignore_errors=True)
    for events in (output / TENSORBOARD).glob("events.out.tfevents.*"):
        events.unlink()


def check_machine(options: Options) -> None:
    """Device, precision and memory, before the data are looked at.

    Raises:
        UsageError: what is not there or does not fit, and what to choose instead.
    """
    device = choose_device(options.device)
    if options.precision == "16-mixed" and device.type == "cpu":
        raise UsageError("--precision 16-mixed needs a GPU; use bf16 or 32 on a CPU.")
    check_memory(options, device)


def precision_of(options: Options) -> str:
    """``auto`` to what the device is good at."""
    if options.precision != "auto":
        return options.precision
    return "bf16" if has_bfloat16(choose_device(options.device)) else "32"


def check_name(options: Options) -> None:
    """Whether the model can be installed under its name, if it is to be.

    Raises:
        UsageError: it is no name of a folder, or what is there would be found first or is no model.
    """
    if not options.install:
        return
    name = name_of(options)
    if name in (".", "..") or any(sign in name for sign in "/\\"):
        raise UsageError(
            f"{name} cannot be the name of a model's folder; give another --name, without slashes."
        )
    # A model that ships is found before the user's own of the same name.
    if (resources_folder() / name).exists():
        raise UsageError(
            f"A model named {name} ships with KidneySeg and would be found first; give another "
            "--name."
        )
    check_place(models_folder() / name)


def prepare(
    options: Options, output: Path, progress: Progress, finder: Model | None = None
) -> Data | None:
    """Find, check, split and cache the cases; None when they were only to be checked.

    Whoever comes second, another process of the same run or another run on the same cache, waits
    and then finds the work done.

    Args:
        finder: its answer for every case is cached as well.
    """
    cache = Path(options.cache) if options.cache else output / "cache"
    cases, extra = find_usable(options, cache, progress)
    if options.check_only:
        return None
    split = split_cases(cases, options.split, options.folds, options.fold)
    check_extra(extra, split.validation)
    if options.view != "axial":
        split, extra = volumes_alone(split, extra, options, progress)
    if options.early_stopping and not split.validation:
        raise UsageError(
            "--early-stopping needs cases that validate, and here there are none; leave it out, or "
            "choose another --split."
        )
    with FileLock(cache / ".lock"):
        cached = build_cache(
            [*split.training, *split.validation, *extra],
            cache,
            options.preprocessing,
            channels=options.in_channels,
            progress=progress.counter("cache"),
            finder=None if finder is None else TorchBackend(finder, options.device),
        )
    first, second = len(split.training), len(split.training) + len(split.validation)
    return Data(split, cached[:first], cached[first:second], cached[second:])


def find_usable(options: Options, cache: Path, progress: Progress) -> tuple[list[Case], list[Case]]:
    """The cases that can train and validate, and the extra ones, once all have been checked.

    Raises:
        InputError, UsageError: what cannot be used and what to do.
    """
    cases, incomplete = find_everything(options.data)
    extra, incomplete_extra = find_everything(options.extra) if options.extra else ([], [])
    writable(cache)
    with FileLock(cache / ".lock"):
        checked = check(
            [*cases, *extra],
            [*incomplete, *incomplete_extra],
            channels=options.in_channels,
            remembered=cache / "checked.json",
            progress=progress.counter("check"),
            extra=extra,
        )
    progress.line(table(checked))
    usable = set(usable_cases(checked, options.skip_bad, options.classes))
    return [case for case in cases if case in usable], [case for case in extra if case in usable]


def volumes_alone(
    split: Split, extra: list[Case], options: Options, progress: Progress
) -> tuple[Split, list[Case]]:
    """Without the single slices, which show nothing from another side.

    Raises:
        UsageError: nothing is left to train on.
    """
    parts = (split.training, split.validation, extra)
    kept = [tuple(case for case in cases if not case.is_slice) for cases in parts]
    left_out = sum(map(len, parts)) - sum(map(len, kept))
    if left_out:
        progress.line(f"{left_out} single slices left out: they have no {options.view} view")
    if not kept[0]:
        raise UsageError(
            f"--view {options.view} needs volumes to train on, and there are only single slices; "
            "give volumes with --data."
        )
    return replace(split, training=kept[0], validation=kept[1]), list(kept[2])


def settings(options: Options, data: Data) -> dict[str, Any]:
    """What a resumed run must share with the one before."""
    free = (
        "data", "extra", "output", "cache", "resume", "device", "devices", "nodes", "workers",
        "check_only", "skip_bad", "install", "progress", "split", "folds", "fold", "preset",
        "init_from", "finder", "margin_mm", "views", "threshold", "half_weights",
    )  # fmt: skip
    choices = {name: value for name, value in asdict(options).items() if name not in free}
    parts = {"training": data.training, "validation": data.validation, "extra": data.extra}
    names = {
        f"{part} cases": [f"{item.case.source}/{item.case.name}" for item in cases]
        for part, cases in parts.items()
    }
    return {**choices, **names}


def trainer(
    options: Options, output: Path, callbacks: Sequence[pl.Callback], logger: TensorBoardLogger
) -> pl.Trainer:
    """Lightning's trainer as these options want it."""
    device = choose_device(options.device)
    chosen: int | list[int] = options.devices
    if device.type == "cuda" and device.index is not None:
        chosen = [device.index]
    strategy: Any = "auto"
    if options.processes > 1:
        # Batch norm sees the whole batch in every process, so there is nothing to broadcast.
        strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=False)
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=chosen,
        num_nodes=options.nodes,
        strategy=strategy,
        precision=LIGHTNING_PRECISION[precision_of(options)],  # type: ignore[arg-type]
        max_epochs=options.epochs,
        callbacks=list(callbacks),
        logger=logger,
        plugins=[SafetensorsIO()],
        default_root_dir=output,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def run_loop(
    loop: pl.Trainer,
    training: Training,
    batches: DataLoader[Any],
    valid_batches: DataLoader[Any],
    checkpoint: Path | None,
    teller: Teller,
) -> None:
    """Fit, and let what stopped it through as it was."""
    valid = valid_batches if training.validation_cases else None
    try:
        loop.fit(training, batches, valid, ckpt_path=checkpoint)
    except SystemExit:
        # Lightning turns an interrupt into the exit code 1.
        if isinstance(teller.interrupted, KeyboardInterrupt):
            raise teller.interrupted from None
        raise
    except (OSError, KidneySegError) as error:
        cause = error.__cause__ if type(error) is KidneySegError else error
        if not isinstance(cause, OSError):
            raise
        # "Run again", as writers say, would begin anew and lose every epoch so far.
        output = Path(loop.default_root_dir)
        then = "go on with --resume" if (output / LAST).is_file() else "run again"
        raise KidneySegError(
            f"{output} cannot be written to ({cause.strerror or cause}); make room and {then}."
        ) from error


def install(model: Model) -> Model:
    """Put a model where KidneySeg lists it."""
    state = model.load_network().state_dict()
    return save_model(model, state, models_folder() / model.name, readme(model, model.card))


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's remarks on itself are no concern of who trains a model."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def keep_freed_memory() -> None:
    """Ask the C library to keep what is freed instead of giving it back page by page.

    Every batch frees and takes the same large blocks; on Linux the page faults of doing so took an
    eighth of a training step's time. Elsewhere nothing is asked for.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # glibc; M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-3, 2**30)):
            set_option(option, value)
