"""Lightning's checkpoints as safetensors: a training run on disk that goes on after a kill.

One file holds every tensor; what is no tensor lies in its header as JSON. Nothing in it is ever
unpickled, and since it is one file, moved into place, it is whole or the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.modelsaving import save_tensors
from KidneySegLib.writing import atomic

LAST, BEST = "last.safetensors", "best.safetensors"
RUN = "kidneyseg"  # the entry of a checkpoint that Lightning leaves to us
_HEADER = "checkpoint"


class SafetensorsIO(CheckpointIO):
    """What Lightning calls to write and read a checkpoint."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        tensors: dict[str, Tensor] = {}
        header = json.dumps(_plain(checkpoint, tensors))
        with atomic(Path(path)) as temporary:
            save_tensors(tensors, temporary, {_HEADER: header})

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        header, tensors = _read(Path(path))
        checkpoint: dict[str, Any] = _restored(header, tensors)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def check_settings(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make sure that a run can be resumed with these settings, and return its history.

    Args:
        settings: what must be the same: options and cases.

    Raises:
        InputError: there is no such checkpoint or it is damaged.
        UsageError: it belongs to a run with other options or cases, named.
    """
    header, tensors = _read(path)
    run = _restored(header, tensors)[RUN]
    then, now = run["settings"], json.loads(json.dumps(settings))
    changed = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if changed:
        raise UsageError(
            f"{path} was trained with other {', '.join(changed)}; resume with the same, or "
            "choose another --output."
        )
    history: list[dict[str, Any]] = run["rows"]
    return history


def _read(path: Path) -> tuple[Any, dict[str, Tensor]]:
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


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The same for JSON: tensors are put aside, and what JSON would change is spelt out."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"items": [[key, _plain(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(inner, tensors) for inner in value]}
    if isinstance(value, list):
        return [_plain(inner, tensors) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds {value!r}, which is neither a tensor nor plain")


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": key}:
            return tensors[key]
        case {"items": items}:
            return {key: _restored(inner, tensors) for key, inner in items}
        case {"tuple": inner}:
            return tuple(_restored(item, tensors) for item in inner)
        case list():
            return [_restored(inner, tensors) for inner in value]
    return value
