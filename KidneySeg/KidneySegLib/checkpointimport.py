"""Turn a checkpoint of the KiTS19 system into a model folder, once."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

from KidneySegLib.errors import ModelError
from KidneySegLib.model import RESEARCH_USE, Model
from KidneySegLib.modelsaving import save_model

# What torch's reader of checkpoints raises on bytes that are none, as tried on random ones.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def import_checkpoint(path: Path | str, folder: Path | str, name: str = "kits19-unet") -> Model:
    """Turn the KiTS19 system's ``.pt`` state dictionary into a model folder.

    The file is read with ``weights_only=True``, so nothing in it is executed.

    Raises:
        ModelError: the file is not such a state dictionary.
    """
    import torch

    from KidneySegLib.network import OLD_PARAMETERS, import_old_state
    from KidneySegLib.preprocess import Preprocessing

    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}; give the path of the checkpoint.") from None
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} is not a plain state dictionary that is safe to read ({reason}); export the "
            "weights with torch.save(network.state_dict(), ...)."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ModelError(f"{path} does not hold a plain state dictionary of tensors.")
    try:
        renamed = import_old_state(state)
    except ValueError as error:
        raise ModelError(f"{path} is not a checkpoint of the KiTS19 U-Net: {error}.") from error
    model = Model(
        name=name,
        version="1.0.0",
        network=OLD_PARAMETERS,
        preprocessing=Preprocessing(scaling="minmax"),
        card={"description": f"Imported from {path.name}.", "licence": RESEARCH_USE},
    )
    return save_model(model, renamed, folder)
