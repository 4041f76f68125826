"""A model for people to read about: which folder is meant, its card, and who trained it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from KidneySegLib.errors import InputError, ModelError
from KidneySegLib.htmlpage import Cell, Column, Html, facts, join, paragraph, table, tag
from KidneySegLib.model import CARD_FILE, README_FILE, read_card
from KidneySegLib.modelplaces import find_model, list_cards

# What a training run leaves in its folder: the model, and who trained and who validated it.
MODEL_FOLDER, SPLIT_FILE = "model", "split.json"


@dataclass(frozen=True)
class Card:
    """A model's card.

    Attributes
    ----------
    folder
        Of the model.
    entries
        What its ``model.json`` holds.
    """

    folder: Path
    entries: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.entries['name']} {self.entries['version']}"


@dataclass(frozen=True)
class Patients:
    """Who trained a model and who did not, by the names that the trainer gives patients."""

    path: Path
    training: frozenset[str]
    validation: frozenset[str]


def find_card(name_or_folder: str | Path) -> Card:
    """The card of a model by its name, its folder, or the folder of the run that trained it.

    Raises
    ------
    ModelError
        There is no such model, or its folder is refused, with the reason.
    """
    wanted = str(name_or_folder)
    for card in list_cards()[0]:
        folder = card.pop("folder")
        if wanted in (card["name"], folder.name):
            return Card(folder, card)
    folder = Path(wanted).expanduser()
    if not (folder / CARD_FILE).is_file() and (folder / MODEL_FOLDER / CARD_FILE).is_file():
        folder = folder / MODEL_FOLDER
    if folder.is_dir():
        return Card(folder, read_card(folder))
    find_model(wanted)  # says what there is instead
    raise ModelError(f"{wanted} is no model folder; see `kidneyseg models`.")


def find_named(title: str) -> Card | None:
    """The card of an installed model by its name and version, such as results name it."""
    for entries in list_cards()[0]:
        card = Card(entries.pop("folder"), entries)
        if card.title == title:
            return card
    return None


def patients_of(folder: Path) -> Patients | None:
    """Who trained a model, where its folder still lies in its run; otherwise None.

    Raises
    ------
    InputError
        The run's split is there but damaged.
    """
    path = next(
        (place / SPLIT_FILE for place in (folder, folder.parent) if (place / SPLIT_FILE).is_file()),
        None,
    )
    if path is None:
        return None
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        parts = [split["training"], split["validation"]]
        if not all(isinstance(one, str) for part in parts for one in part):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say who trained the model; restore it from the run."
        ) from error
    return Patients(path, *map(frozenset, parts))


def card_of(card: Card) -> Html:
    """A model's card as content of a page: the facts of its training, its data, all in full."""
    entries = card.entries
    training = entries.get("training", {})
    listed = [("Model", card.title), ("Folder", str(card.folder))]
    listed += [
        (title, str(entries[key]))
        for key, title in (("description", "For"), ("licence", "Licence"))
        if key in entries
    ]
    if isinstance(training, dict):
        listed += [
            (title, str(training[key]))
            for key, title in (
                ("date", "Trained on"),
                ("epoch", "Epoch"),
                ("command", "Command"),
                ("machine", "Machine"),
            )
            if training.get(key) is not None
        ]
    parts = [facts(listed), _scores(entries.get("scores")), _data(entries.get("data"))]
    readme = card.folder / README_FILE
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        parts.append(_folded("The whole card", text))
    parts.append(
        _folded("model.json", json.dumps(dict(entries), indent=2, ensure_ascii=False, default=str))
    )
    return join(parts)


def _scores(entries: object) -> Html:
    """What the card says of how well the model does; figures of single cases are in the whole."""
    if not isinstance(entries, dict):
        return Html()
    listed = [
        (key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in entries.items()
        if isinstance(value, (str, int, float))
    ]
    return join([paragraph("Measured, as the card says:"), facts(listed)]) if listed else Html()


def _data(entries: object) -> Html:
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        return Html()
    keys = list(dict.fromkeys(key for one in entries for key in one))
    if not keys:
        return Html()
    columns = [Column(f"c{n}", key) for n, key in enumerate(keys)]
    rows = [[Cell(one.get(key, "")) for key in keys] for one in entries]
    return join([paragraph("Trained on:"), table("data", columns, rows)])


def _folded(title: str, text: str) -> Html:
    return tag("details", tag("summary", title), tag("pre", text))
