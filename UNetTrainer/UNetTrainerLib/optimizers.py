"""What moves the weights, and how its learning rate changes over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from UNetTrainerLib.options import Options

MOMENTUM = 0.9
WARM_UP = 0.15
PATIENCE = 5
FACTOR = 0.25


def build_optimizer(options: Options, parameters: Iterable[Tensor]) -> optim.Optimizer:
    """The optimiser of ``--optimizer``, with ``--lr`` and ``--weight-decay`` on every parameter.

    ``sgd`` has Nesterov momentum of 0.9. The decay of ``adamw`` is apart from its gradients
    (Loshchilov and Hutter, arXiv:1711.05101); that of the others is added to them.
    """
    rate: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    match options.optimizer:
        case "nadam":
            return optim.NAdam(parameters, **rate)
        case "adam":
            return optim.Adam(parameters, **rate)
        case "sgd":
            return optim.SGD(parameters, **rate, momentum=MOMENTUM, nesterov=True)
        case _:
            return optim.AdamW(parameters, **rate)


class Schedule:
    """The learning rate from batch to batch and from epoch to epoch; never below ``--min-lr``.

    ``one-cycle`` rises from a 25th over the first 15 % of the batches and falls to nothing (Smith
    and Topin, arXiv:1708.07120); ``cosine`` falls from the first batch to the last; ``plateau``
    takes a quarter after 5 epochs that were no better than the best before; ``constant`` stays.

    Attributes:
        lr: at present.
    """

    def __init__(self, options: Options, optimizer: optim.Optimizer, steps_per_epoch: int):
        batches = options.epochs * steps_per_epoch
        self._optimizer = optimizer
        self._least = options.min_lr
        self._by_batch: OneCycleLR | CosineAnnealingLR | None = None
        self._by_epoch: ReduceLROnPlateau | None = None
        match options.schedule:
            case "one-cycle":
                self._by_batch = OneCycleLR(
                    optimizer, options.lr, total_steps=batches, pct_start=WARM_UP
                )
            case "cosine":
                self._by_batch = CosineAnnealingLR(optimizer, batches, options.min_lr)
            case "plateau":
                self._by_epoch = ReduceLROnPlateau(
                    optimizer, factor=FACTOR, patience=PATIENCE, min_lr=options.min_lr
                )
        self._set(self.lr)

    @property
    def lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _set(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = max(lr, self._least)

    def step_batch(self) -> None:
        """After every step of the optimiser; the last one of a run leaves the rate as it is."""
        if self._by_batch is None:
            return
        total = (
            self._by_batch.total_steps - 1
            if isinstance(self._by_batch, OneCycleLR)
            else self._by_batch.T_max
        )
        if self._by_batch.last_epoch < total:
            self._by_batch.step()
            self._set(self.lr)

    def step_epoch(self, loss: float) -> None:
        """After every epoch.

        Args:
            loss: of the validation, or of the training where nothing validates.
        """
        if self._by_epoch is not None:
            self._by_epoch.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in plain JSON."""
        inner = self._by_batch or self._by_epoch
        state = inner.state_dict() if inner is not None else {}
        # JSON has no word for infinity, which stands for "no loss yet".
        plain = {key: None if value == math.inf else value for key, value in state.items()}
        return {"lr": self.lr, "state": plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the other schedule was; its optimiser's own state is not in it."""
        inner = self._by_batch or self._by_epoch
        if inner is not None:
            inner.load_state_dict(
                {key: math.inf if value is None else value for key, value in state["state"].items()}
            )
        self._set(state["lr"])


def build_schedule(options: Options, optimizer: optim.Optimizer, steps_per_epoch: int) -> Schedule:
    """The schedule of ``--schedule`` for a run of ``--epochs`` with so many batches each."""
    return Schedule(options, optimizer, steps_per_epoch)
