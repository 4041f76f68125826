"""What Lightning's loop calls: one training step, one validation, and what an epoch leaves behind.

Nothing here depends on what went before but through the weights: every draw and every dropout has
random numbers of its own, by seed, epoch and step. That is why a killed run resumes to the same
losses as an unbroken one.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import Cancelled, KidneySegError
from KidneySegLib.model import Model
from KidneySegLib.network import UNet
from KidneySegLib.writing import atomic
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.checkpoint import BEST, LAST, RUN
from UNetTrainerLib.distributed import gathered, share_batch_norm
from UNetTrainerLib.losses import LOSSES
from UNetTrainerLib.optimizers import build_optimizer, build_schedule
from UNetTrainerLib.options import Options
from UNetTrainerLib.progress import Progress
from UNetTrainerLib.supervision import DeepSupervision
from UNetTrainerLib.validation import CaseScore, Scores, score_case

Row = dict[str, Any]
Tensors = tuple[Tensor, ...] | list[Tensor]


class Training(pl.LightningModule):
    """A network, the average of its weights, its loss and its optimiser.

    Attributes:
        rows: one mapping an epoch, with the columns of ``history.csv``.
        scores: of the last validation.
        kept: scores of the epoch whose weights are kept; None before there is one.
    """

    def __init__(
        self,
        options: Options,
        model: Model,
        network: UNet,
        training: Sequence[CachedCase],
        validation: Sequence[CachedCase],
        settings: dict[str, Any],
        steps: int,
    ):
        super().__init__()
        self.options = options
        self.model = model
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: AveragedModel | None = None
        if options.averaging:
            self.average = AveragedModel(
                network, multi_avg_fn=averaged(options.averaging), use_buffers=True
            ).requires_grad_(False)
        self.loss = LOSSES[options.loss]
        self.supervision: DeepSupervision | None = None
        if options.deep_supervision:  # after the average, whose copy is not to be watched
            self.supervision = DeepSupervision(network, options.deep_supervision)
        self.training_cases = training
        self.validation_cases = validation
        self.settings = settings
        self.steps = steps
        self.rows: list[Row] = []
        self.scores = Scores()
        self.kept: Scores | None = None
        self.waited = 0.0
        self._losses: list[Tensor] = []
        self._scored: list[CaseScore] = []
        self._started = time.monotonic()
        self._schedule_state: dict[str, Any] | None = None

    @property
    def best_network(self) -> nn.Module:
        """What validates and ships: the average where there is one."""
        return self.network if self.average is None else self.average.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        own = [self.network, *([self.supervision] if self.supervision else [])]
        moved = [parameter for part in own for parameter in part.parameters()]
        optimizer = build_optimizer(self.options, moved)
        self.schedule = build_schedule(self.options, optimizer, self.steps)
        return optimizer

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            share_batch_norm(self.network, self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        if self._schedule_state is not None:
            self.schedule.load_state_dict(self._schedule_state)

    def on_train_epoch_start(self) -> None:
        self._started = time.monotonic()
        self._losses.clear()

    def training_step(
        self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int
    ) -> dict[str, Tensor]:
        slices, labels, weights, numbers = batch
        torch.manual_seed(
            _seed(self.options.seed, self.current_epoch, index, self.global_rank)
        )  # of dropout
        logits = self.network(slices.to(memory_format=torch.channels_last))
        with torch.autocast(logits.device.type, enabled=False):
            labels = gathered(labels)
            weighted = gathered(weights) if weights.numel() else None
            loss = self.loss(gathered(logits.float()), labels, weighted)
            coarser = self.supervision(self.loss, labels, weighted) if self.supervision else 0.0
        if not torch.isfinite(loss):
            raise KidneySegError(self._not_finite(slices, logits, numbers))
        self._losses.append(loss.detach())
        # Every process computes the loss of the whole batch; the mean of their gradients, each of
        # its own slices alone, is that divided by the number of processes.
        return {"loss": (loss + coarser) * self.trainer.world_size, "told": loss.detach()}

    def _not_finite(self, slices: Tensor, logits: Tensor, numbers: Tensor) -> str:
        broken = [
            int(number)
            for number, seen, answer in zip(numbers, slices, logits, strict=True)
            if not (torch.isfinite(seen).all() and torch.isfinite(answer).all())
        ]
        names = sorted({self.training_cases[i].case.name for i in broken or map(int, numbers)})
        return (
            f"The loss is not finite in epoch {self.current_epoch + 1}, at {', '.join(names)}; "
            "lower --lr or train with --precision 32, and look at those cases. The last good "
            "state is kept, and --resume goes on from it."
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.schedule.step_batch()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def on_validation_epoch_start(self) -> None:
        self._scored.clear()
        precision = "bfloat16" if self.trainer.precision == "bf16-mixed" else "float32"
        network = self.best_network.eval()
        self._backend = TorchBackend(self.model, str(self.device), precision, network)

    def validation_step(self, number: int, index: int) -> None:
        if number < 0:  # fills up the share of a process that has one case less
            return
        case = self.validation_cases[int(number)]
        self._scored.append(score_case(case, self._backend, self.loss, self.options.around > 0))

    def on_validation_epoch_end(self) -> None:
        scored = self._scored
        if self.trainer.world_size > 1:
            shares: list[list[CaseScore]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(shares, scored)
            scored = [score for share in shares for score in share]
        self.scores = Scores(tuple(sorted(scored, key=lambda case: (case.source, case.name))))
        self.log("quality", torch.tensor(self.scores.quality))

    def on_train_epoch_end(self) -> None:
        train_loss = float(torch.stack(self._losses).mean())
        row = {
            "epoch": self.current_epoch + 1,
            "lr": self.schedule.lr,
            "train_loss": train_loss,
            "valid_loss": self.scores.loss,
            "valid_dice_case": self.scores.dice_case,
            "valid_dice_slice": self.scores.dice_slice,
            "seconds": time.monotonic() - self._started,
        }
        self.rows.append(row)
        valid_loss = self.scores.loss
        self.schedule.step_epoch(valid_loss if math.isfinite(valid_loss) else train_loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RUN] = {
            "settings": self.settings,
            "rows": self.rows,
            "kept": None if self.kept is None else self.kept.to_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint[RUN]
        self.rows = run["rows"]
        self.kept = None if run["kept"] is None else Scores.from_dict(run["kept"])
        self._schedule_state = run["schedule"]


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def averaged(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential average of weights that forgets the untrained ones first.

    The decay rises as ``(1 + n) / (10 + n)`` up to ``decay``, so that early averages follow the
    network instead of its initial state. All tensors of a kind are moved at once, and the count is
    read once for them: a GPU is waited for a few times a step and not once for every tensor.
    """

    def update(averages: Tensors, current: Tensors, count: Tensor | int) -> None:
        now = min(decay, 1 - 9 / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averages, current, count)

    return update


class Keeper(Checkpoint):
    """After every epoch: ``last`` and ``best`` on disk, and what else an epoch leaves behind.

    Lightning calls checkpoints last of all callbacks, when the others' state is settled.

    Args:
        folder: gets the checkpoints.
        keep: ``best`` or ``last``.
        leave: called on the first process with the training and whether this epoch is kept.
    """

    def __init__(self, folder: Path, keep: str, leave: Callable[[Training, bool], None]):
        self.folder = folder
        self.keep = keep
        self.leave = leave

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training)
        kept = pl_module.kept
        better = kept is None or not pl_module.scores.quality <= kept.quality
        chosen = better or self.keep == "last"
        if chosen:
            pl_module.kept = pl_module.scores
        # What is killed in between is done again from `last`, which is therefore written last.
        if trainer.is_global_zero:
            self.leave(pl_module, chosen)
        trainer.save_checkpoint(self.folder / (BEST if chosen else LAST))
        if chosen and trainer.is_global_zero:
            with atomic(self.folder / LAST) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)


class Teller(Callback):
    """Tells how far the training is, and how long it waited for slices."""

    def __init__(self, progress: Progress, cancelled: Callable[[], bool] | None):
        self.progress = progress
        self.cancelled = cancelled
        self.interrupted: BaseException | None = None
        self._mark = 0.0
        self._waited = 0.0
        self._working = 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time of training steps that was spent waiting for slices."""
        total = self._waited + self._working
        return self._waited / total if total else math.nan

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        # The first batch of an epoch is waited for while the workers start.
        self._waited += now - self._mark
        self._mark = now
        if self.cancelled is not None and self.cancelled():
            raise Cancelled(
                f"Cancelled; {trainer.current_epoch} finished epochs are kept, and --resume goes "
                "on after them."
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, Training)
        now = time.monotonic()
        self._working += now - self._mark
        self._mark = now
        dice = pl_module.scores.quality
        self.progress.batch(
            trainer.current_epoch + 1,
            int(trainer.max_epochs or 0),
            batch_idx + 1,
            pl_module.steps,
            float(outputs["told"]),
            dice if math.isfinite(dice) else None,
        )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.interrupted = exception
