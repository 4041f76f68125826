"""Every choice of a training run: its name, default, choices and one line of help, in one place.

The command line and the Slicer module are made from this table, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from KidneySegLib.errors import UsageError
from UNetTrainerLib.augmentation import AUGMENTATIONS

if TYPE_CHECKING:
    from KidneySegLib.network import NetworkParameters
    from KidneySegLib.preprocess import Preprocessing

LABELS = {
    "kidney": ("background", "kidney"),
    "kidney-tumour": ("background", "kidney", "tumour"),
}
NETWORKS = ("unet", "inception-unet")
DROPOUT_PLACES = ("lowest", "everywhere")
OPTIMIZERS = ("nadam", "adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "plateau", "constant")
LOSSES = (
    "generalized-dice",
    "generalized-dice-ce",
    "slice-dice-ce",
    "dice",
    "dice-bce",
    "focal",
    "weighted-ce",
)
VIEWS = ("axial", "coronal", "sagittal")
PRECISIONS = ("auto", "bf16", "16-mixed", "32")
PROGRESS = ("auto", "bar", "lines", "slicer", "none")
SPLITS = ("folds", "kits19")
PRESET_NAMES = ("none", "kits19-paper")


def option(
    default: Any, group: str, text: str, metavar: str = "", choices: tuple[str, ...] = ()
) -> Any:
    """A field of `Options` with what its flag says of it."""
    return field(
        default=default,
        metadata={"group": group, "help": text, "metavar": metavar, "choices": choices},
    )


DATA, INPUT, NETWORK, LEARNING, MACHINE, RUN = (
    "data",
    "what the network sees",
    "network",
    "learning",
    "machine",
    "run",
)


@dataclass(frozen=True)
class Options:
    """Every choice of a training run; see ``kidneyseg train --help``.

    Each field is a flag of the same name, with ``-`` for ``_``.
    """

    data: tuple[str, ...] = option(
        (), DATA, "KiTS19 case folders, or a folder with images/ and masks/", "FOLDER"
    )
    output: str = option("", DATA, "gets the model, its history and pictures", "FOLDER")
    extra: tuple[str, ...] = option(
        (), DATA, "further cases that only train, such as generated ones", "FOLDER"
    )
    extra_share: float = option(0.15, DATA, "share of the draws that --extra takes", "X")
    cache: str = option("", DATA, "prepared slices (default: in the output)", "FOLDER")
    split: str = option(
        "folds", DATA, "who validates: folds, kits19 (cases 161-209), or a split.json", "HOW|FILE"
    )
    folds: int = option(5, DATA, "parts of the patients; one validates; 0 trains on all", "N")
    fold: int = option(0, DATA, "which of them validates, from 0", "N")
    skip_bad: bool = option(False, DATA, "leave out the cases that the check finds unusable")
    check_only: bool = option(False, DATA, "check the data, print the table and stop")

    classes: str = option(
        "kidney", INPUT, "kidney with its tumours, or both apart", choices=tuple(LABELS)
    )
    in_channels: int = option(1, INPUT, "channels of a picture: 1 for CT, 3 for colour", "N")
    view: str = option("axial", INPUT, "which slices of a volume are cut", choices=VIEWS)
    context_slices: int = option(5, INPUT, "neighbouring slices as channels, an odd number", "N")
    pixel_mm: float = option(1.6, INPUT, "pixel size the network works at; 0 keeps each", "X")
    slice_mm: float = option(3.0, INPUT, "thinner slices are averaged up to this; 0 keeps", "X")
    context_mm: float = option(3.0, INPUT, "distance of the neighbouring slices", "X")
    scaling: str = option(
        "window",
        INPUT,
        "intensities: a window in HU, or each volume's own minimum and maximum",
        choices=("window", "minmax"),
    )
    window_low: float = option(-125.0, INPUT, "lower end of the window in HU", "HU")
    window_high: float = option(275.0, INPUT, "upper end of the window in HU", "HU")
    no_body_crop: bool = option(False, INPUT, "keep the air around the body")
    rows: int = option(192, INPUT, "of a training slice", "N")
    columns: int = option(256, INPUT, "of a training slice", "N")
    prior: bool = option(False, INPUT, "show the network what the --finder thinks of the slice")
    crop: int = option(0, INPUT, "train on random squares of so many pixels; 0: whole slices", "N")
    around: float = option(0.0, INPUT, "share of the squares that are laid around a kidney", "X")

    network: str = option("unet", NETWORK, "kind of network", choices=NETWORKS)
    features: int = option(16, NETWORK, "channels of the finest level", "N")
    depth: int = option(5, NETWORK, "levels of the network", "N")
    no_padding: bool = option(False, NETWORK, "unpadded convolutions, as in the U-Net paper")
    dropout: float = option(0.2, NETWORK, "share of channels dropped", "X")
    dropout_place: str = option(
        "lowest", NETWORK, "levels that drop channels", choices=DROPOUT_PLACES
    )

    epochs: int = option(50, LEARNING, "how often to validate before the end", "N")
    steps: int = option(120, LEARNING, "batches an epoch; 0: every slice once", "N")
    batch_size: int = option(12, LEARNING, "slices a batch, over all devices", "N")
    foreground: float = option(0.6, LEARNING, "least share of slices with kidney", "X")
    optimizer: str = option(
        "adamw", LEARNING, "optimiser; sgd has Nesterov momentum 0.9", choices=OPTIMIZERS
    )
    lr: float = option(2e-3, LEARNING, "learning rate, with one-cycle the largest", "X")
    weight_decay: float = option(1e-4, LEARNING, "weight decay", "X")
    min_lr: float = option(0.0, LEARNING, "no schedule goes below this learning rate", "X")
    schedule: str = option("one-cycle", LEARNING, "of the learning rate", choices=SCHEDULES)
    early_stopping: int = option(
        0, LEARNING, "stop after so many epochs without a better validation; 0: never", "N"
    )
    loss: str = option("generalized-dice", LEARNING, "loss function", choices=LOSSES)
    deep_supervision: float = option(
        0.0, LEARNING, "share of the loss that coarser levels have as well; 0: none", "X"
    )
    augment: str = option(
        "full", LEARNING, "random changes of the slices", choices=tuple(AUGMENTATIONS)
    )
    averaging: float = option(0.998, LEARNING, "decay of the average of weights; 0: none", "X")
    clip_norm: float = option(5.0, LEARNING, "gradients are cut to this length; 0: not", "X")

    device: str = option("auto", MACHINE, "where to train", "auto|cpu|cuda|cuda:N|mps")
    devices: int = option(1, MACHINE, "GPUs, or processes on CPUs, of each machine", "N")
    nodes: int = option(1, MACHINE, "machines, each started by torchrun or SLURM", "N")
    workers: int = option(-1, MACHINE, "processes that prepare slices; -1: by cores", "N")
    precision: str = option("auto", MACHINE, "of the network", choices=PRECISIONS)
    seed: int = option(0, MACHINE, "of every random choice", "N")

    name: str = option("", RUN, "of the model (default: the output folder's)", "NAME")
    model_version: str = option("1.0.0", RUN, "of the model", "X.Y.Z")
    preset: str = option(
        "none", RUN, "published choices, where no flag says otherwise", choices=PRESET_NAMES
    )
    init_from: str = option("", RUN, "fine-tune this model, in its own shape", "NAME|FOLDER")
    finder: str = option("", RUN, "this model shows the new one where to look", "NAME|FOLDER")
    margin_mm: float = option(
        25.0, RUN, "with a --finder, how far around what it found to look", "X"
    )
    wide: bool = option(False, RUN, "with a --finder, look at the whole slices too: slower, surer")
    blend: float = option(0.0, RUN, "share of the finder's own answer in the mean of both", "X")
    views: tuple[str, ...] = option(
        (), RUN, "with a --finder, the models of other views to answer with", "NAME|FOLDER"
    )
    threshold: float = option(0.5, RUN, "probability from which on a pixel is kidney", "X")
    resume: bool = option(False, RUN, "go on after the last finished epoch in the output")
    keep: str = option("best", RUN, "which epoch's weights ship", choices=("best", "last"))
    half_weights: bool = option(
        False, RUN, "store the weights in half precision: a folder of half the size"
    )
    install: bool = option(False, RUN, "put the model where KidneySeg lists it")
    progress: str = option("auto", RUN, "how to tell of it", choices=PROGRESS)

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            if getattr(self, name) < low:
                raise UsageError(f"{flag(name)} must be at least {low}.")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} must be at least 0 and below 1.")
        if not 0 < self.threshold < 1:
            raise UsageError("--threshold must lie between 0 and 1.")
        for choice in fields(self):
            allowed = choice.metadata["choices"]
            if allowed and getattr(self, choice.name) not in allowed:
                raise UsageError(
                    f"{flag(choice.name)} is one of {', '.join(allowed)}, not "
                    f"{getattr(self, choice.name)!r}."
                )
        if self.around and not self.crop:
            raise UsageError("--around needs the size of the squares; give --crop as well.")
        for name in ("blend", "wide", "views"):
            if getattr(self, name) and not self.finder:
                raise UsageError(f"{flag(name)} is for what a finder shows; give --finder as well.")
        if self.prior and not self.finder:
            raise UsageError("--prior is what a finder thinks; give --finder as well.")
        if self.finder and self.view != "axial":
            raise UsageError(
                "--finder is for the network that looks at axial slices; give those of other views "
                "to it with --views."
            )
        if self.finder and self.in_channels > 1:
            raise UsageError("--finder is for CT; leave it out for colour pictures.")
        if self.finder and not self.around:
            raise UsageError(
                "--finder shows a network where kidneys are, and it must have learnt to look "
                "there; give --crop and --around as well."
            )
        if self.finder and self.scaling != "window":
            raise UsageError(
                "--finder needs --scaling window: what it shows has no minimum and maximum of the "
                "whole volume."
            )
        if not self.context_mm > 0:
            raise UsageError("--context-mm must be above 0.")
        if not self.lr > 0:
            raise UsageError("--lr must be above 0.")
        if self.min_lr > self.lr:
            raise UsageError("--min-lr must not be above --lr.")
        if not self.window_low < self.window_high:
            raise UsageError("--window-low must be below --window-high.")
        if self.context_slices % 2 != 1:
            raise UsageError("--context-slices must be an odd number.")
        if self.folds == 1:
            raise UsageError("--folds 1 leaves nothing to train on; give 0 or at least 2.")
        if self.split == "folds" and 0 < self.folds <= self.fold:
            raise UsageError(
                f"There is no fold {self.fold} of {self.folds}; give 0 to {self.folds - 1}."
            )
        if self.batch_size % self.processes:
            raise UsageError(
                f"--batch-size {self.batch_size} cannot be shared evenly by {self.processes} "
                f"processes; give a multiple of {self.processes}."
            )
        if self.early_stopping and self.split == "folds" and self.folds == 0:
            raise UsageError("--early-stopping needs cases that validate; give --folds 2 or more.")
        if self.deep_supervision and self.depth < 3:
            raise UsageError(
                "--deep-supervision is for networks with coarser levels; give --depth 3 or more."
            )
        multiple = 2 ** (self.depth - 1)
        for name in ("crop",) if self.crop else ("rows", "columns"):
            if not self.no_padding and getattr(self, name) % multiple:
                raise UsageError(
                    f"{flag(name)} must be a multiple of {multiple} for a network of depth "
                    f"{self.depth}."
                )

    @property
    def processes(self) -> int:
        """Of all machines together."""
        return self.devices * self.nodes

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each output channel."""
        return LABELS[self.classes]

    @property
    def network_parameters(self) -> NetworkParameters:
        from KidneySegLib.network import NetworkParameters

        return NetworkParameters(
            kind=self.network,
            in_channels=self.in_channels,
            context_slices=self.context_slices,
            prior=self.prior,
            classes=len(self.labels),
            features=self.features,
            depth=self.depth,
            padding=not self.no_padding,
            dropout=self.dropout,
            dropout_place=self.dropout_place,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        from KidneySegLib.preprocess import Preprocessing

        return Preprocessing(
            window_hu=(self.window_low, self.window_high),
            scaling=self.scaling,
            pixel_mm=self.pixel_mm or None,
            slice_mm=self.slice_mm or None,
            context_mm=self.context_mm,
            crop=not self.no_body_crop,
            view=self.view,
        )

    @property
    def training_size(self) -> tuple[int, int]:
        """Rows and columns that are labelled in a training slice, the network's output.

        An unpadded network sees its ``margin`` more on every side.
        """
        from KidneySegLib.network import valid_size

        wanted = (self.crop, self.crop) if self.crop else (self.rows, self.columns)
        rows, columns = (valid_size(self.network_parameters, length) for length in wanted)
        return rows, columns


_AT_LEAST = {
    "margin_mm": 0,
    "folds": 0,
    "fold": 0,
    "in_channels": 1,
    "context_slices": 1,
    "pixel_mm": 0,
    "slice_mm": 0,
    "rows": 1,
    "columns": 1,
    "crop": 0,
    "features": 1,
    "depth": 1,
    "epochs": 1,
    "steps": 0,
    "batch_size": 1,
    "weight_decay": 0,
    "min_lr": 0,
    "early_stopping": 0,
    "clip_norm": 0,
    "devices": 1,
    "nodes": 1,
    "workers": -1,
    "seed": 0,
}
_SHARES = (
    "extra_share", "averaging", "dropout", "foreground", "around", "blend", "deep_supervision",
)  # fmt: skip

# The KiTS19 U-Net's published choices. Its numbers of epochs and of slices a batch are not among
# them, nor is where the best state is judged: those stay with the user.
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "kits19-paper": {
        "classes": "kidney",
        "in_channels": 1,
        "context_slices": 1,
        "pixel_mm": 0.0,
        "slice_mm": 0.0,
        "scaling": "minmax",
        "no_body_crop": True,
        "rows": 512,
        "columns": 512,
        "network": "unet",
        "features": 64,
        "depth": 5,
        "dropout": 0.5,
        "dropout_place": "lowest",
        "steps": 0,
        "batch_size": 4,
        "optimizer": "nadam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "schedule": "plateau",
        "loss": "generalized-dice",
        "augment": "none",
        "averaging": 0.0,
        "deep_supervision": 0.0,
        "clip_norm": 0.0,
        "extra_share": 0.0,
    },
}

DEFAULTS: Mapping[str, Any] = {choice.name: choice.default for choice in fields(Options)}


def flag(name: str) -> str:
    """The flag of a field: ``batch_size`` is ``--batch-size``."""
    return "--" + name.replace("_", "-")


def resolve(given: Mapping[str, Any]) -> Options:
    """Options from what a user said: defaults, then the preset, the model to fine-tune, the flags.

    Args:
        given: only what was said. Whoever cannot tell what was said from what is default, as
            Slicer's module cannot, leaves out the values that equal the defaults.

    Raises:
        UsageError: a choice that cannot work, or flags that contradict ``--init-from``.
    """
    chosen = {**DEFAULTS, **PRESETS.get(given.get("preset", "none"), {})}
    if given.get("init_from"):
        shape, sight = _of_model(given["init_from"])
        for name, value in shape.items():
            if given.get(name, value) != value:
                raise UsageError(
                    f"--init-from {given['init_from']} was trained with {flag(name)} {value}; "
                    f"leave out {flag(name)} {given[name]} or train a new model."
                )
        chosen |= shape | sight
    return Options(**{**chosen, **given})


def _of_model(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that a model's own shape settles, and those of how it sees a CT.

    Weights fit no other shape. They do fit finer pixels: a network that learnt on coarse ones knows
    what a kidney is, and learns its borders in a fraction of the time.
    """
    from KidneySegLib.modelplaces import find_model

    model = find_model(name)
    classes = next((key for key, labels in LABELS.items() if labels == model.labels), None)
    if classes is None or model.activation != "softmax":
        raise UsageError(
            f"--init-from {name} tells {', '.join(model.labels)} apart, which is not trained here; "
            "choose another model."
        )
    network, preprocessing = model.network, model.preprocessing
    usual = type(network)
    for part in ("normalisation", "up_sampling"):  # the weights fit, or seem to, and mean otherwise
        if getattr(network, part) != getattr(usual, part):
            raise UsageError(
                f"--init-from {name} has {part} {getattr(network, part)!r}, which is not trained "
                "here; choose another model."
            )
    shape = {
        "classes": classes,
        "network": network.kind,
        "in_channels": network.in_channels,
        "context_slices": network.context_slices,
        "prior": network.prior,
        "features": network.features,
        "depth": network.depth,
        "no_padding": not network.padding,
        "scaling": preprocessing.scaling,
    }
    sight = {
        "window_low": preprocessing.window_hu[0],
        "window_high": preprocessing.window_hu[1],
        "pixel_mm": preprocessing.pixel_mm or 0.0,
        "slice_mm": preprocessing.slice_mm or 0.0,
        "context_mm": preprocessing.context_mm,
        "no_body_crop": not preprocessing.crop,
        "view": preprocessing.view,
    }
    return shape, sight
