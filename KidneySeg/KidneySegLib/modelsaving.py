"""Write a model's folder as a whole, or the ONNX file that one still lacks."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from KidneySegLib.errors import ModelError, UsageError
from KidneySegLib.model import (
    CARD_FILE,
    FINDER_FOLDER,
    FORMATS,
    ONNX_FILE,
    README_FILE,
    SECOND_LOOK_FILE,
    VIEWS_FOLDER,
    WEIGHTS_FILE,
    Model,
    check,
    load_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from KidneySegLib.parameters import NetworkParameters


def check_place(folder: Path) -> None:
    """Whether a model may be written there.

    Raises:
        UsageError: something that is no model is in that place.
    """
    if folder.exists() and not (
        folder.is_dir() and ((folder / CARD_FILE).is_file() or not any(folder.iterdir()))
    ):
        raise UsageError(
            f"{folder} exists and is no model, so it is not replaced; choose another folder."
        )


def save_model(
    model: Model,
    state: Mapping[str, Tensor],
    folder: Path | str,
    readme: str = "",
    second_look: Mapping[str, Tensor] | None = None,
) -> Model:
    """Write a model folder as a whole: a temporary folder is filled, then moved into place.

    An older model in the same place is replaced only once the new one is complete.

    Args:
        readme: the card for people, as Markdown; none is written when empty.
        second_look: weights of the second look, where it has one; by default those in its folder.

    Raises:
        UsageError: something that is no model is in that place.
        OSError: it cannot be written; an older model is untouched then.
    """
    check(model)
    folder = Path(folder)
    check_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = {WEIGHTS_FILE: state}
        if model.second_look is not None:
            weights[SECOND_LOOK_FILE] = second_look or model.load_second_look().state_dict()
        for file, tensors in weights.items():
            save_tensors(
                {key: _plain(value, model.half_weights) for key, value in tensors.items()},
                temporary / file,
            )
            (temporary / file).chmod(0o644)  # its writer keeps it to its owner
        facts = {
            "format": FORMATS[(model.finder is not None) + bool(model.views)],
            "name": model.name,
            "version": model.version,
            "network": asdict(model.network),
            "preprocessing": model.preprocessing.to_dict(),
            "labels": list(model.labels),
            "activation": model.activation,
            "threshold": model.threshold,
        }
        if model.finder is not None and model.search is not None:
            facts["search"] = model.search.to_dict()
            finder = model.finder.load_network().state_dict()
            save_model(model.finder, finder, temporary / FINDER_FOLDER)
        if model.views:
            facts["views"] = [view.preprocessing.view for view in model.views]
        for view in model.views:
            weights_of_view = view.load_network().state_dict()
            save_model(view, weights_of_view, temporary / VIEWS_FOLDER / view.preprocessing.view)
        if model.second_look is not None:
            facts["second_look"] = model.second_look.to_dict()
        if model.smallest_kidney_ml is not None:
            facts["smallest_kidney_ml"] = model.smallest_kidney_ml
        if model.half_weights:
            facts["half_weights"] = True
        onnx = _write_onnx(temporary, model.network)
        if onnx is not None:
            facts["onnx"] = onnx
        card = {**facts, **model.card, **facts}  # in this order, and a card overrides no fact
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        (temporary / CARD_FILE).write_text(text, encoding="utf-8")
        if readme:
            (temporary / README_FILE).write_text(readme, encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            try:
                temporary.rename(folder)
            except BaseException:
                (old / folder.name).rename(folder)
                raise
            finally:
                shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return replace(model, folder=folder, onnx=onnx)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors.

    Raises:
        OSError: the file cannot be written; its writer reports a full disk in its own way.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def _write_onnx(folder: Path, network: NetworkParameters) -> dict[str, str] | None:
    """Put the ONNX file beside the weights; its entry in the card, or None without ``onnx``."""
    from KidneySegLib.onnxfile import entry, graph_of

    weights = folder / WEIGHTS_FILE
    try:
        graph = graph_of(network, weights)
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        return None
    temporary = folder / f".{ONNX_FILE}"
    temporary.write_bytes(graph)
    temporary.replace(folder / ONNX_FILE)
    return entry(network, graph, weights)


def add_onnx(folder: Path | str) -> Model:
    """Write the ONNX file of a model that is there already, and those of its finder and views.

    Returns:
        The model as it is now.

    Raises:
        ModelError: the folder or its weights cannot be used, or written to.
        UsageError: the package ``onnx`` is not installed.
    """
    folder = Path(folder)
    model = load_model(folder)
    model.load_weights()
    for part in (model.finder, *model.views):
        if part is not None and part.folder is not None:
            add_onnx(part.folder)
    path = folder / CARD_FILE
    try:
        onnx = _write_onnx(folder, model.network)
        if onnx is None:
            raise UsageError(
                "The package onnx, which writes the file, is not installed; `pip install onnx`."
            )
        card = {**json.loads(path.read_text(encoding="utf-8")), "onnx": onnx}
        temporary = folder / f".{CARD_FILE}"
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be written to ({error.strerror}); copy the model to a folder of "
            "your own first."
        ) from error
    return load_model(folder)


def _plain(tensor: Tensor, half: bool) -> Tensor:
    """As it is stored; statistics of batch norms keep their range."""
    plain = tensor.detach().cpu().contiguous()
    return plain.half() if half and plain.ndim > 1 else plain
