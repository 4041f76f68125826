"""A model is a folder, ``model.json`` beside ``weights.safetensors``: load and check it.

No pickle is ever opened from a model folder. Where models are is `modelplaces`' business, writing
one `modelsaving`'s; an old checkpoint is turned into one by `checkpointimport`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from KidneySegLib.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from KidneySegLib.looknetwork import LookNetwork
    from KidneySegLib.network import UNet
    from KidneySegLib.parameters import NetworkParameters, Tensors
    from KidneySegLib.preprocess import Preprocessing
    from KidneySegLib.regions import Search
    from KidneySegLib.secondlook import SecondLook

CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
SECOND_LOOK_FILE = "second_look.safetensors"
ONNX_FILE = "network.onnx"
README_FILE = "README.md"
FINDER_FOLDER = "finder"
VIEWS_FOLDER = "views"
FORMAT = 1
FORMAT_WITH_FINDER = 2  # older versions would take the network for one that sees the whole CT
FORMAT_WITH_VIEWS = 3  # and for one that answers alone
FORMATS = (FORMAT, FORMAT_WITH_FINDER, FORMAT_WITH_VIEWS)
ACTIVATIONS = ("softmax", "sigmoid")
RESEARCH_USE = "Research use only, not for clinical use."

Network = TypeVar("Network", bound="nn.Module")


@dataclass(frozen=True)
class Model:
    """A model folder that passed every check but those of its weights.

    Attributes:
        folder: where it lies; None before it is saved.
        name: also the name of its folder in the resources.
        version: of these weights, e.g. ``1.0.0``.
        network: shape of the network.
        preprocessing: what happens to a CT before it.
        labels: name of each output channel, ``background`` among them for a softmax.
        activation: ``softmax`` over the channels or ``sigmoid`` on each.
        threshold: probability from which a voxel is kidney.
        card: everything else a user should know: data, licence, scores, command.
        finder: a coarse model that shows where this one looks; without it, everywhere.
        search: how the finder's answer becomes boxes; present where there is a finder.
        views: models that look where this one does, each along another axis, and whose answers are
            averaged with its own; only where there is a finder.
        second_look: how found components are looked at again; without it, they are not.
        smallest_kidney_ml: least volume of a kidney to be believed, from the masks it was trained
            on; None where they did not tell.
        half_weights: weights of convolutions are stored in half precision, which halves the folder;
            a network computes with what it is told to all the same.
        onnx: what `onnxfile.entry` says of the folder's ONNX file; None where there is none.
    """

    name: str
    version: str
    network: NetworkParameters
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ("background", "kidney")
    activation: str = "softmax"
    threshold: float = 0.5
    card: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    finder: Model | None = None
    search: Search | None = None
    views: tuple[Model, ...] = ()
    second_look: SecondLook | None = None
    smallest_kidney_ml: float | None = None
    half_weights: bool = False
    onnx: Mapping[str, str] | None = None

    @property
    def kidney_channels(self) -> tuple[int, ...]:
        """Output channels whose probabilities add up to that of kidney, tumours included."""
        return tuple(i for i, label in enumerate(self.labels) if label != "background")

    @property
    def digest(self) -> str:
        """Of all that shapes the model's answer: its weights, and what becomes of a CT before."""
        search = None if self.search is None else self.search.to_dict()
        facts = [asdict(self.network), self.preprocessing.to_dict(), self.threshold, search]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self._weights().read_bytes())
        if self.finder is not None:
            digest.update(self.finder.digest.encode())
        for view in self.views:
            digest.update(view.digest.encode())
        if self.second_look is not None:
            digest.update(json.dumps(self.second_look.to_dict()).encode())
            digest.update(self._weights(SECOND_LOOK_FILE).read_bytes())
        return digest.hexdigest()[:16]

    @property
    def graph_digest(self) -> str:
        """Of the ONNX file and the weights that it belongs to.

        Raises:
            ModelError: there is no such file.
        """
        if self.onnx is None:
            raise ModelError(
                f"Model {self.name} has no ONNX file, without which only PyTorch can run it; "
                f"`kidneyseg models --add-onnx {self.folder}` adds one."
            )
        return "-".join(str(value) for _, value in sorted(self.onnx.items()))

    def graph(self) -> Path:
        """The ONNX file, made sure to belong to the weights.

        Raises:
            ModelError: there is none, or it is another network's; with the reason.
        """
        from KidneySegLib.onnxfile import mismatch

        self.graph_digest  # noqa: B018 - says so where there is none
        path, weights = self._weights(ONNX_FILE), self._weights()
        try:
            difference = mismatch(self.onnx or {}, self.network, path, weights)
        except FileNotFoundError as error:
            raise _lacks(Path(error.filename)) from None
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
        if difference:
            raise ModelError(
                f"{path} is not used because {difference} since it was written; "
                f"`kidneyseg models --add-onnx {self.folder}` writes it anew."
            )
        return path

    def load_weights(self) -> dict[str, np.ndarray]:
        """The network's weights by name, as numbers that torch is not needed for.

        Raises:
            ModelError: the weights are missing, broken, of another shape or not finite.
        """
        from KidneySegLib.parameters import weight_shapes

        return self._numbers(WEIGHTS_FILE, weight_shapes(self.network))

    def load_second_look_weights(self) -> dict[str, np.ndarray]:
        """The same for the second look.

        Raises:
            ModelError: as for `load_weights`, or there is no second look.
        """
        if self.second_look is None:
            raise ModelError(f"Model {self.name} has no second look; choose another model.")
        return self._numbers(SECOND_LOOK_FILE, self.second_look.weight_shapes)

    def load_network(self) -> UNet:
        """The network with its weights, in evaluation mode.

        Raises:
            ModelError: as for `load_weights`.
        """
        import torch

        from KidneySegLib.network import build

        weights = self.load_weights()
        with torch.device("meta"):
            network = build(self.network)
        return _filled(network, weights)

    def load_second_look(self) -> LookNetwork:
        """The network of the second look with its weights, in evaluation mode.

        Raises:
            ModelError: as for `load_second_look_weights`.
        """
        import torch

        from KidneySegLib.looknetwork import LookNetwork

        weights = self.load_second_look_weights()
        assert self.second_look is not None
        with torch.device("meta"):
            network = LookNetwork(self.second_look)
        return _filled(network, weights)

    def _numbers(self, file: str, expected: Tensors) -> dict[str, np.ndarray]:
        """The tensors of a file, each checked against the shape it should have."""
        import numpy as np

        path = self._weights(file)
        state = _load_state(path)
        for key, shape in expected.items():
            if key not in state:
                raise ModelError(
                    f"{path} lacks {key}, so it belongs to another network; "
                    "restore the model folder or choose another model."
                )
            if state[key].shape != shape:
                raise ModelError(
                    f"{path} holds {key} with shape {state[key].shape} where "
                    f"{CARD_FILE} describes {shape}; restore the model folder or "
                    "choose another model."
                )
            # Weights may be stored in half precision to save room; the network has its own type.
            kind = np.int64 if key.endswith("num_batches_tracked") else np.float32
            state[key] = state[key].astype(kind)
            if not np.isfinite(state[key]).all():
                raise ModelError(
                    f"{path} holds figures that are not finite in {key}; restore the "
                    "model folder or choose another model."
                )
        unknown = sorted(set(state) - set(expected))
        if unknown:
            raise ModelError(
                f"{path} holds {unknown[0]}, which the network described in "
                f"{CARD_FILE} has no place for; restore the model folder or choose another model."
            )
        return state

    def _weights(self, file: str = WEIGHTS_FILE) -> Path:
        if self.folder is None:
            raise ModelError(f"Model {self.name} was not saved to a folder yet; save it first.")
        return self.folder / file


def _filled(network: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """An empty network with its weights, in evaluation mode."""
    import torch

    state = {key: torch.from_numpy(value) for key, value in weights.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _load_state(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise _lacks(path) from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as safetensors ({error}); copy the model folder again."
        ) from error


def _lacks(path: Path) -> ModelError:
    return ModelError(
        f"Model folder {path.parent} has no {path.name}; copy the whole folder or choose another "
        "model."
    )


def read_card(folder: Path | str) -> dict[str, Any]:
    """Read ``model.json`` and check what can be checked without torch.

    Raises:
        ModelError: names the folder and what is wrong with it.
    """
    folder = Path(folder)
    card_path = folder / CARD_FILE
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a model folder; give a folder that holds {CARD_FILE}.")
    if not card_path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no {CARD_FILE}.")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{card_path} cannot be read ({error}); copy the folder again.") from error
    if not isinstance(card, dict):
        raise ModelError(f"{card_path} does not describe a model; copy the folder again.")
    version = card.get("format")
    if version not in FORMATS:
        raise ModelError(
            f"{card_path} has format {version!r} but this version of KidneySeg reads formats "
            f"{FORMATS[0]} to {FORMATS[-1]}; update KidneySeg or choose another model."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise _lacks(folder / WEIGHTS_FILE)
    if card.get("second_look") is not None and not (folder / SECOND_LOOK_FILE).is_file():
        raise _lacks(folder / SECOND_LOOK_FILE)
    try:
        _text(card["name"]), _text(card["version"])
    except KeyError as error:
        raise ModelError(f"{card_path} lacks the entry {error}; copy the folder again.") from error
    except ValueError as error:
        raise ModelError(f"{card_path} is not usable: {error}.") from error
    return card


def load_model(folder: Path | str) -> Model:
    """Read and check ``model.json``; weights are only looked for here, and read on first use.

    Raises:
        ModelError: names the folder and what is wrong with it.
    """
    from KidneySegLib.parameters import NetworkParameters
    from KidneySegLib.preprocess import VIEWS, Preprocessing
    from KidneySegLib.regions import Search
    from KidneySegLib.secondlook import SecondLook

    folder = Path(folder)
    card = read_card(folder)
    card_path = folder / CARD_FILE
    finder, views = None, []
    if card.pop("format") != FORMAT:
        finder = load_model(folder / FINDER_FOLDER)
    for view in card.pop("views", []):
        if view not in VIEWS:
            raise ModelError(f"{card_path} is not usable: it has the unknown view {view!r}.")
        views.append(load_model(folder / VIEWS_FOLDER / view))
    look, smallest = (card.pop(key, None) for key in ("second_look", "smallest_kidney_ml"))
    half, onnx = card.pop("half_weights", False), card.pop("onnx", None)
    try:
        model = Model(
            name=_text(card.pop("name")),
            version=_text(card.pop("version")),
            network=NetworkParameters.from_dict(card.pop("network")),
            preprocessing=Preprocessing.from_dict(card.pop("preprocessing")),
            labels=_texts(card.pop("labels")),
            activation=_text(card.pop("activation")),
            threshold=float(card.pop("threshold")),
            search=None if finder is None else Search.from_dict(card.pop("search")),
            finder=finder,
            views=tuple(views),
            second_look=None if look is None else SecondLook.from_dict(look),
            smallest_kidney_ml=None if smallest is None else float(smallest),
            half_weights=half,
            onnx=onnx,
            card=card,
            folder=folder,
        )
        check(model)
    except KeyError as error:
        raise ModelError(f"{card_path} lacks the entry {error}; copy the folder again.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{card_path} is not usable: {error}.") from error
    return model


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a text was expected instead of {value!r}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"labels must be a list of texts, not {value!r}")
    return tuple(map(_text, value))


def check(model: Model) -> None:
    """Raises ValueError with what contradicts itself."""
    if model.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, not {model.activation!r}")
    if len(model.labels) != model.network.classes:
        raise ValueError(
            f"it names {len(model.labels)} labels for {model.network.classes} output channels"
        )
    if not model.kidney_channels:
        raise ValueError("none of its labels is a kidney")
    if not 0 < model.threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, not {model.threshold}")
    smallest = model.smallest_kidney_ml
    if smallest is not None and not 0 <= smallest < math.inf:
        raise ValueError(f"smallest_kidney_ml must be 0 or more, not {smallest}")
    if model.onnx is not None and not isinstance(model.onnx, Mapping):
        raise ValueError(f"onnx must be what was written with the ONNX file, not {model.onnx!r}")
    if not isinstance(model.half_weights, bool):
        raise ValueError(f"half_weights must be true or false, not {model.half_weights!r}")
    if (model.finder is None) != (model.search is None):
        raise ValueError("a finder and how to search with it belong together")
    if model.finder is not None and model.finder.finder is not None:
        raise ValueError("its finder has a finder of its own")
    if model.finder is not None and model.preprocessing.view != "axial":
        raise ValueError("it looks where a finder shows and so has to look at axial slices itself")
    if model.finder is not None and model.finder.preprocessing.view != "axial":
        raise ValueError("its finder looks at other slices than axial ones")
    if model.views and model.finder is None:
        raise ValueError("its views have no finder to show them where to look")
    seen = [view.preprocessing.view for view in model.views]
    if "axial" in seen or len(set(seen)) < len(seen):
        raise ValueError("its views must be others than the axial one, each of them once")
    for view in model.views:
        if view.finder is not None or view.network.prior:
            raise ValueError("one of its views wants a finder of its own")
    if model.finder is not None and any(
        one.preprocessing.scaling != "window" for one in (model, *model.views)
    ):
        raise ValueError("what a finder shows has no minimum and maximum of the whole volume")
