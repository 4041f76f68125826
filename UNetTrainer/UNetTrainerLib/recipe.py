"""What a recipe says: a model trained in stages.

A recipe is a JSON file::

    {
      "phantoms": {"cases": 24, "seed": 1000, "size": [256, 256, 60]},
      "stages": [
        {"name": "finder", "pixel_mm": 2.0, "epochs": 12},
        {"name": "network", "finder": "finder", "prior": true, "crop": 128, "around": 0.9}
      ]
    }

Generated CTs, if any, train as ``extra`` cases. Every stage is a training run with the options of
`Options`; its ``finder``, its list of ``views``, and what it starts from with ``init_from``, are
models of earlier stages.
The last stage's model is the recipe's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from KidneySegLib.errors import UsageError
from UNetTrainerLib.options import DEFAULTS, resolve

# A stage is told by these where it is; the recipe has no say in them.
ROLES = ("finder", "init_from", "views")  # what earlier stages can be to a later one
_PLACES = ("data", "extra", "output", "cache", "split", "folds", "fold", "resume", "progress")


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says; see the head of this file.

    Attributes:
        name: of the model, from the file's name.
        phantoms: arguments of `write_cases`, or None.
        stages: options of each stage by its name, in order.
    """

    name: str
    phantoms: Mapping[str, Any] | None
    stages: Mapping[str, Mapping[str, Any]]


def read_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: what in it cannot work, with the file.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no recipe {path}; check the path.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a recipe ({error}); check it.") from error
    if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
        raise UsageError(f"{path} has no list of stages; see the recipe beside a shipped model.")
    unknown = sorted(set(data) - {"phantoms", "stages"})
    if unknown:
        raise UsageError(f"{path} has the entry {unknown[0]!r}, which no recipe knows.")
    stages: dict[str, dict[str, Any]] = {}
    for stage in data["stages"]:
        given = dict(stage) if isinstance(stage, dict) else {}
        name = given.pop("name", None)
        if not isinstance(name, str) or not name.isidentifier() or name in stages:
            raise UsageError(f"Every stage of {path} needs a name of its own, of letters.")
        wrong = sorted(set(given) - set(DEFAULTS) | set(given) & set(_PLACES))
        if wrong:
            raise UsageError(f"Stage {name} of {path} has {wrong[0]!r}, which is no choice of it.")
        for role in ROLES:
            for wanted in named(given.get(role)):
                if wanted not in stages:
                    raise UsageError(
                        f"Stage {name} of {path} wants {wanted!r} as {role}, which is no earlier "
                        "stage."
                    )
        alone = {key: value for key, value in given.items() if key != "init_from"}
        resolve({"output": "x", **alone})  # what cannot work together is said before any training
        stages[name] = given
    if not stages:
        raise UsageError(f"{path} has no stage; see the recipe beside a shipped model.")
    name = path.resolve().parent.name if path.stem == "recipe" else path.stem
    return Recipe(name, data.get("phantoms"), stages)


def named(stages: str | Sequence[str] | None) -> Sequence[str]:
    """The stages that a role names: none, one, or a list."""
    return [stages] if isinstance(stages, str) else stages or []
