"""Where models are: those that ship, those of the user, and how one is found by its name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from KidneySegLib.errors import ModelError
from KidneySegLib.model import CARD_FILE, Model, load_model, read_card

DEFAULT_MODEL = "kidney-unet-views"


def resources_folder() -> Path:
    """Models that ship with the module, in the source tree, in Slicer and when pip-installed."""
    here = Path(__file__).resolve().parent
    inside = here / "Resources" / "Models"
    return inside if inside.is_dir() else here.parent / "Resources" / "Models"


def user_folder() -> Path:
    """Where a user's own models live; it survives an update of Slicer.

    ``KIDNEYSEG_MODELS`` names another folder.
    """
    named = os.environ.get("KIDNEYSEG_MODELS")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share"))
    return base / "KidneySeg" / "Models"


def list_models() -> tuple[list[Model], list[str]]:
    """Every model that ships or that the user installed, and why other folders are refused."""
    models: list[Model] = []
    refused: list[str] = []
    for folder in _model_folders():
        try:
            model = load_model(folder)
        except ModelError as error:
            refused.append(str(error))
            continue
        if model.name not in {known.name for known in models}:
            models.append(model)
    return models, refused


def list_cards(*more: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The cards of the models that `list_models` lists, without the need for torch.

    Args:
        more: further folders with models in them, or model folders.

    Returns:
        What each ``model.json`` holds, and as "folder" the `Path` it is in; and why others are
        refused.
    """
    cards: list[dict[str, Any]] = []
    refused: list[str] = []
    for folder in _model_folders(*more):
        try:
            card = read_card(folder)
        except ModelError as error:
            refused.append(str(error))
            continue
        if card["name"] not in {known["name"] for known in cards}:
            cards.append({**card, "folder": folder})
    return cards, refused


def _model_folders(*more: Path) -> Iterator[Path]:
    """Every folder that may be a model's, the shipped ones first."""
    for base in (resources_folder(), user_folder(), *more):
        if (base / CARD_FILE).is_file():
            yield base
            continue
        try:
            inside = sorted(base.iterdir()) if base.is_dir() else []
        except OSError:  # a folder that may not be read has no models for this user
            continue
        for folder in inside:
            if folder.is_dir() and not folder.name.startswith("."):
                yield folder


def find_model(name_or_folder: str | Path | None = None) -> Model:
    """Look a model up: resources first, then the user's folder, then as a path.

    Args:
        name_or_folder: None takes the default model.

    Raises:
        ModelError: there is no such model, or its folder is refused, with the reason.
    """
    wanted = str(name_or_folder) if name_or_folder is not None else DEFAULT_MODEL
    for base in (resources_folder(), user_folder()):
        candidate = base / wanted
        if wanted and Path(wanted).name == wanted and (candidate / CARD_FILE).is_file():
            return load_model(candidate)
    path = Path(wanted).expanduser()
    if path.exists():
        return load_model(path)
    models, _ = list_models()
    for model in models:
        if model.name == wanted:  # its folder is called otherwise
            return model
    known = ", ".join(model.name for model in models) or "none"
    raise ModelError(
        f"There is no model {wanted!r}, neither by name (installed: {known}) nor as a folder; "
        "see `kidneyseg models`."
    )
