"""A training run on disk, from which a killed run goes on as if nothing had happened.

One safetensors file holds every tensor; what is no tensor lies in its header as JSON. Nothing in
it is ever unpickled, and since it is one file, moved into place, it is whole or the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.writing import atomic
from UNetTrainerLib.sampling import Sampler

CHECKPOINT_FILE = "checkpoint.safetensors"
_HEADER = "kidneyseg"


@dataclass(frozen=True)
class Run:
    """Everything of a run that changes while it trains."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    sampler: Sampler

    def save(self, path: Path, settings: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write the state after an epoch.

        Args:
            settings: what must be the same to go on: options and cases.
            progress: what the caller needs to go on: history, best score.
        """
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        for number, state in optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
        tensors["random.torch"] = torch.get_rng_state()
        tensors["random.sampler"] = self.sampler.torch_rng.get_state()
        header = {
            "settings": settings,
            "progress": progress,
            "optimizer_groups": optimizer["param_groups"],
            "schedule": _plain(self.schedule.state_dict()),
            "random_numpy": self.sampler.rng.bit_generator.state,
        }
        with atomic(path) as temporary:
            save_file(
                {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()},
                temporary,
                metadata={_HEADER: json.dumps(header)},
            )

    def load(self, path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Go on from a saved state and return its ``progress``.

        Raises:
            InputError: there is no such file or it is damaged.
            UsageError: it belongs to a run with other options or cases, named.
        """
        header, tensors = _read(path)
        then, now = header["settings"], json.loads(json.dumps(settings))
        changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
        if changed:
            raise UsageError(
                f"{path} was trained with other {', '.join(changed)}; resume with the same, or "
                "choose another --output."
            )
        self.network.load_state_dict(_part(tensors, "network."))
        self.average.load_state_dict(_part(tensors, "average."))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            number, name = key.split(".", 1)
            states.setdefault(int(number), {})[name] = value
        groups = header["optimizer_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.schedule.load_state_dict(header["schedule"])
        torch.set_rng_state(tensors["random.torch"])
        self.sampler.torch_rng.set_state(tensors["random.sampler"])
        self.sampler.rng.bit_generator.state = header["random_numpy"]
        progress: dict[str, Any] = header["progress"]
        return progress


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"There is no {path} to resume from; leave out --resume.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged and cannot be resumed ({error}); start again without --resume."
        ) from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's state without its functions, which its constructor sets anyway."""
    return {k: v for k, v in state.items() if isinstance(v, int | float | str | list | bool)}
