"""The network as an ONNX graph, for engines other than torch.

The graph's weights are ONNX *external data*: name, place and length of what lies in the model's
``weights.safetensors`` already, so that they are stored once and the graph is a small file. A graph
therefore belongs to one file of weights, byte for byte.

Writing a graph takes the package ``onnx``; running one does not.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from KidneySegLib.parameters import NetworkParameters, convolutions

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "slices", "logits"
# Old enough for every engine of the last years, new enough for all that a U-Net has.
_OPSET, _IR_VERSION = 17, 8
_EPSILON = 1e-5  # of torch's batch norm
_TYPES = {"F64": "DOUBLE", "F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}


def graph_of(parameters: NetworkParameters, weights: Path) -> bytes:
    """The ONNX graph of a network whose weights lie in a safetensors file beside it.

    Its input ``slices`` is float32 ``(N, input_channels, rows, columns)`` of any size that
    `predict` may ask for, its output ``logits`` as that of `network.UNet`.

    Args:
        weights: the file; only what it says about its tensors is read.

    Raises:
        ModuleNotFoundError: the package ``onnx`` is not installed.
        KeyError: the file lacks a tensor of the network.
    """
    graph = _Graph(weights)
    x = INPUT
    skips = []
    for level in range(parameters.depth):
        if level:
            x = graph.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
        x = _block(graph, f"encoder.{level}", x, level, parameters)
        skips.append(x)
    skips.pop()
    for number, level in enumerate(reversed(range(parameters.depth - 1))):
        x = _up(graph, f"up.{number}.layer", x, parameters)
        skip = _cropped(graph, skips.pop(), parameters.depth - 1 - level, parameters)
        x = graph.add("Concat", [x, skip], axis=1)
        x = _block(graph, f"decoder.{number}", x, level, parameters)
    graph.convolution("head", x, 1, output=OUTPUT)
    return graph.model(parameters)


def entry(parameters: NetworkParameters, graph: bytes, weights: Path) -> dict[str, str]:
    """What a model's card says of its ONNX file, so that `mismatch` can tell another one."""
    return {
        "sha256": hashlib.sha256(graph).hexdigest(),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "network_sha256": _shape_digest(parameters),
    }


def mismatch(
    kept: Mapping[str, str], parameters: NetworkParameters, graph: Path, weights: Path
) -> str:
    """What has changed since a graph was written; empty where it belongs to the weights still.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    now = entry(parameters, graph.read_bytes(), weights)
    for key, what in (
        ("weights_sha256", "the weights have changed"),
        ("network_sha256", "the network in the card has changed"),
        ("sha256", "the file itself has changed"),
    ):
        if kept.get(key) != now[key]:
            return what
    return ""


def _shape_digest(parameters: NetworkParameters) -> str:
    """Of what differs from the defaults: a parameter that later versions add changes nothing."""
    usual = asdict(NetworkParameters())
    told = {key: value for key, value in asdict(parameters).items() if value != usual[key]}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _block(graph: _Graph, name: str, x: str, level: int, parameters: NetworkParameters) -> str:
    width = parameters.features * 2**level
    for layer in ("1", "2"):
        conv = f"{name}.conv{layer}"
        if parameters.kind == "inception-unet":
            x = _inception(graph, conv, x, width, parameters)
        else:
            x = graph.convolution(conv, x, 3, pad=parameters.padding)
        norm = [f"{name}.norm{layer}.{part}" for part in _NORM]
        if parameters.normalisation == "before_relu":
            x = graph.add("Relu", [graph.norm(norm, x)])
        else:
            x = graph.norm(norm, graph.add("Relu", [x]))
    return x


_NORM = ("weight", "bias", "running_mean", "running_var")


def _inception(graph: _Graph, name: str, x: str, width: int, parameters: NetworkParameters) -> str:
    sizes = {place: size for place, _, _, size in convolutions(name, 1, width, parameters)}

    def branch(part: str, at: str) -> str:
        return graph.convolution(f"{name}.{part}", at, sizes[f"{name}.{part}"])

    branches = [
        branch("branch1", x),
        branch("branch3", graph.add("Relu", [branch("reduce3", x)])),
        branch("branch5", graph.add("Relu", [branch("reduce5", x)])),
        graph.add(
            "MaxPool",
            [branch("branch_pool", x)],
            kernel_shape=[3, 3],
            strides=[1, 1],
            pads=[1, 1, 1, 1],
        ),
    ]
    return graph.add("Concat", branches, axis=1)


def _up(graph: _Graph, name: str, x: str, parameters: NetworkParameters) -> str:
    if parameters.up_sampling == "transposed":
        weights = [graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")]
        return graph.add("ConvTranspose", [x, *weights], kernel_shape=[2, 2], strides=[2, 2])
    twice = graph.constant([1.0, 1.0, 2.0, 2.0])
    larger = graph.add(
        "Resize",
        [x, "", twice],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    return graph.convolution(f"{name}.1", larger, 1)


def _cropped(graph: _Graph, skip: str, below: int, parameters: NetworkParameters) -> str:
    """The skip connection, cropped to what comes up from ``below`` levels under it.

    In sizes that an unpadded network takes nothing is odd, and what its skip connections have too
    much is the same in all of them.
    """
    if parameters.padding:
        return skip
    aside = 4
    for _ in range(below - 1):
        aside = 2 * aside + 8
    starts, ends, axes = (graph.constant(at) for at in ([aside] * 2, [-aside] * 2, [2, 3]))
    return graph.add("Slice", [skip, starts, ends, axes])


class _Graph:
    """Nodes and weights, as they are added."""

    def __init__(self, weights: Path):
        import onnx

        self._onnx = onnx
        self._file = weights.name
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._tensors: dict[str, Any] = json.loads(file.read(length))
        self._begin = 8 + length
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """One more node; returns the name of what it gives."""
        output = output or f"{kind}_{len(self._nodes)}"
        node = self._onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        self._nodes.append(node)
        return output

    def weight(self, name: str) -> str:
        """A tensor of the weights' file as float32."""
        kept = self._tensors[name]
        kind = _TYPES[kept["dtype"]]
        if name not in self._initializers:
            tensor = self._onnx.TensorProto()
            tensor.name = name
            tensor.data_type = getattr(tensor, kind)
            tensor.dims.extend(kept["shape"])
            tensor.data_location = self._onnx.TensorProto.EXTERNAL
            start, stop = kept["data_offsets"]
            for key, value in (
                ("location", self._file),
                ("offset", self._begin + start),
                ("length", stop - start),
            ):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        if kind == "FLOAT":
            return name
        return self.add("Cast", [name], to=self._onnx.TensorProto.FLOAT)

    def constant(self, values: list[float] | list[int]) -> str:
        """A few figures that are stored in the graph itself."""
        kind = "FLOAT" if isinstance(values[0], float) else "INT64"
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = self._onnx.helper.make_tensor(
            name, getattr(self._onnx.TensorProto, kind), [len(values)], values
        )
        return name

    def convolution(self, name: str, x: str, size: int, pad: bool = True, output: str = "") -> str:
        weights = [self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        pads = [size // 2 if pad else 0] * 4
        return self.add("Conv", [x, *weights], output, kernel_shape=[size, size], pads=pads)

    def norm(self, names: list[str], x: str) -> str:
        figures = [self.weight(name) for name in names]
        return self.add("BatchNormalization", [x, *figures], epsilon=_EPSILON)

    def model(self, parameters: NetworkParameters) -> bytes:
        helper, floats = self._onnx.helper, self._onnx.TensorProto.FLOAT

        def described(name: str, channels: int, rows: str, columns: str) -> Any:
            return helper.make_tensor_value_info(name, floats, ["N", channels, rows, columns])

        graph = helper.make_graph(
            self._nodes,
            parameters.kind,
            [described(INPUT, parameters.input_channels, "rows", "columns")],
            [described(OUTPUT, parameters.classes, "rows_out", "columns_out")],
            list(self._initializers.values()),
        )
        model: onnx.ModelProto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="KidneySeg",
        )
        return bytes(model.SerializeToString())
