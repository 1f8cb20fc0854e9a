"""Read programs written by `torch.export` (``.pt2``) as data: no code from the file runs, and nothing is unpickled.

`torch.export.load` unpickles sample inputs, lets sympy evaluate strings, and resolves the functions that nodes call by
attribute lookups starting at ``torch``, which can reach arbitrary Python code. This module therefore parses the archive itself:
a list of nodes, each one of the operations in `OPERATIONS` with tensors and numbers as arguments, and weights as plain bytes.
Anything else is rejected.
"""

from __future__ import annotations

import json
import math
import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from emseg_core.errors import ModelError
from emseg_core.model.output import Ending, NetworkOutput
from emseg_core.model.receptive_arithmetic import Trace, Value
from emseg_core.model.torch_graph import NORMALISATIONS, Tracer, is_operation, named_arguments
from emseg_core.specs.contract import FrozenNorm

OPERATIONS = frozenset(
    " ".join(
        (
            "conv2d conv3d convolution conv_transpose2d conv_transpose3d linear addmm mm bmm baddbmm matmul einsum",
            "scaled_dot_product_attention relu relu_ leaky_relu leaky_relu_ elu elu_ celu celu_ gelu silu silu_ hardtanh",
            "hardtanh_ relu6 relu6_ hardswish hardswish_ hardsigmoid hardsigmoid_ mish mish_ prelu selu selu_ softplus",
            "log_sigmoid threshold threshold_ sigmoid sigmoid_ tanh tanh_ softmax _softmax log_softmax _log_softmax exp log",
            "sqrt rsqrt square reciprocal abs sign neg pow erf sin cos floor ceil round clamp clamp_ clamp_min clamp_max",
            "max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d",
            "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d mean sum var amax amin max min",
            "cumsum linalg_vector_norm upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_trilinear3d",
            "upsample_bicubic2d pixel_shuffle pixel_unshuffle batch_norm _native_batch_norm_legit_no_training instance_norm",
            "group_norm native_group_norm layer_norm native_layer_norm add add_ sub sub_ mul mul_ div div_ rsub minimum",
            "maximum where eq ne lt le gt ge logical_and logical_or logical_not masked_fill masked_fill_ cat stack slice",
            "select unbind index view view_as reshape _unsafe_view flatten unflatten permute movedim transpose swapaxes",
            "swapdims t squeeze unsqueeze expand expand_as contiguous clone alias split split_with_sizes chunk tensor_split",
            "pad constant_pad_nd reflection_pad2d reflection_pad3d replication_pad2d replication_pad3d narrow index_select",
            "roll flip repeat dropout dropout_ feature_dropout feature_dropout_ alpha_dropout feature_alpha_dropout detach",
            "detach_ to type_as _to_copy lift_fresh lift_fresh_copy copy copy_ fill fill_ zero_ slice_scatter",
            "select_scatter _assert_tensor_metadata zeros ones full arange empty zeros_like ones_like full_like empty_like",
            "new_zeros new_ones new_full new_empty sym_size size sym_numel",
        )
    ).split()
)
"""Names of operations of ``torch.ops.aten`` that a node may call: arithmetic on tensors, no files, no devices.

Each is a function of its arguments alone. None reads or runs anything, and none has an effect but on its first argument,
which `_checked_effects` keeps away from weights.
"""
UNINITIALISED = ("empty", "empty_like", "new_empty")
"""Operations whose result is whatever lies in memory; it is set to 0."""
FACTORIES = ("zeros", "ones", "full", "arange", "empty")
"""Operations that make a tensor on a device of their choice."""
MAY_ALIAS = (
    "reshape",
    "contiguous",
    "to",
    "flatten",
    "dropout",
    "feature_dropout",
    "type_as",
    "expand_as",
    "view_as",
    "unflatten",
)
"""Operations that may return a view of their input though their signature does not say so."""
SIZE_OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem", "eq", "ne", "lt", "le", "gt", "ge")
}
"""Operations of ``_operator`` that a node may call, for sizes."""
PLAIN_ARGUMENTS = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string")
"""Kinds of arguments that are numbers or strings."""
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
FLOATS = (torch.float16, torch.float32, torch.float64, torch.bfloat16)
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
ENDINGS: dict[str, Ending] = {
    **dict.fromkeys(("sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys(("softmax", "_softmax"), "softmax"),
    **dict.fromkeys(("log_softmax", "_log_softmax"), "log-softmax"),
}
PASSED_ON = ("to", "_to_copy", "clone", "alias", "contiguous", "detach", "detach_", "dropout", "dropout_", "feature_dropout")
"""Operations at the end of a program that keep what the values mean."""
EXPORT_HINT = "export it again with torch.export.save(torch.export.export(network.eval(), ...), FILE)"
ONNX_HINT = "export it to ONNX instead, with torch.onnx.export(network.eval(), ..., external_data=False)"
INPUTS = {**dict.fromkeys(NORMALISATIONS, "input"), "mul": "self"}
"""Name of the input of operations that may be watched."""
MAX_NODES = 100_000
JOINED = "the channels of several outputs"
"""Name of a result that no program has."""
Lengths = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of a program."""

    call: Any
    """The operation, which is called with the arguments."""
    arguments: tuple[Any, ...]
    """Values, or a `ValueName` for the result of an earlier node, also within lists."""
    keywords: dict[str, Any]
    results: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the operation, such as ``conv2d``; empty for one on sizes."""
        return str(self.call._schema.name).removeprefix("aten::") if is_operation(self.call) else ""


@dataclass(frozen=True, slots=True)
class ValueName:
    """Reference to the result of an earlier node, to the input, or to a weight."""

    name: str


class InputDevice:
    """Stands for any device that a program names: tensors stay on that of the input."""


class ExportedNetwork(nn.Module):
    """Module that runs the nodes of an exported program.

    Parameters
    ----------
    nodes
        The operations, in the order in which they run.
    weights
        Parameters and constants by the names that nodes use.
    source
        Name of the input.
    result
        Name of the output.
    """

    def __init__(self, nodes: list[Node], weights: Mapping[str, Tensor], source: str, result: str) -> None:
        super().__init__()
        self._names = sorted(weights, key=lambda name: not weights[name].is_floating_point())  # the first sets the type
        self.weights = nn.ParameterList(nn.Parameter(weights[name], requires_grad=False) for name in self._names)
        self._nodes, self._source, self._result = nodes, source, result
        self._last = _last_uses(nodes, result)
        self._changes_input = _checked_effects(nodes, source, weights)
        self._shapes = {name: weight.to("meta") for name, weight in weights.items()}
        self._all_weights = dict(weights)
        self.peak = 0
        """Most bytes of intermediate results alive at once in the last call."""

    def forward(self, tiles: Tensor) -> Tensor:
        """Run the program on its only input.

        Parameters
        ----------
        tiles
            The input, in the shape that the program was exported for.

        Returns
        -------
        Tensor
            The output of the program.
        """
        return self._run(tiles, dict(zip(self._names, self.weights, strict=True)))

    def norms(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """List the normalisations over space that can be frozen; see `emseg_core.model.frozen_norms`.

        Parameters
        ----------
        shape
            Shape of an input that the program accepts, batch and channels included.

        Returns
        -------
        tuple of int
            Their numbers among all normalisations of the program.
        """
        tracer = Tracer(self._source, shape)
        with torch.inference_mode():
            self._run(torch.empty(shape, device="meta"), self._shapes, tracer)
        found = _normalisations(self._nodes)
        used = {part.name for node in self._nodes for part in _names_in(node)} | {self._result}
        return tuple(
            number
            for number, node in enumerate(found)
            if tracer.normalised.get(node.results[0]) == len(shape)
            and _groups(node, len(shape), 1) is not None
            and all(part is None or part.name in self._all_weights for part in _affine(node))
            and not used & set(node.results[1:])
        )

    def frozen(self, norms: Sequence[FrozenNorm], rank: int) -> ExportedNetwork:
        """Return the same program with normalisations replaced by a product and a sum with constants.

        Parameters
        ----------
        norms
            The statistics to use.
        rank
            Number of axes of the input.

        Returns
        -------
        ExportedNetwork
            The program.
        """
        found, weights, replaced = _normalisations(self._nodes), dict(self._all_weights), dict[int, list[Node]]()
        for norm in norms:
            node = found[norm.number]
            name = node.results[0]
            for part, constant in zip(("factor", "offset"), _constants(node, norm, weights, rank), strict=True):
                weights[f"{part} of {name}"] = constant
            scaled, product, total = f"{name} scaled", torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor
            replaced[id(node)] = [
                Node(product, (_named(node)["input"], ValueName(f"factor of {name}")), {}, (scaled,)),
                Node(total, (ValueName(scaled), ValueName(f"offset of {name}")), {}, (name,)),
            ]
        nodes = [part for node in self._nodes for part in replaced.get(id(node), [node])]
        return ExportedNetwork(nodes, weights, self._source, self._result)

    def statistics(self, tile: Tensor, numbers: Sequence[int], norms: Sequence[FrozenNorm]) -> list[FrozenNorm]:
        """Measure what normalisations would use for one tile.

        Parameters
        ----------
        tile
            The input.
        numbers
            The normalisations to measure.
        norms
            Statistics that they use meanwhile; none for those of the tile.

        Returns
        -------
        list of FrozenNorm
            Mean and variance of the tile.
        """
        found, measured = _normalisations(self._nodes), dict[str, FrozenNorm]()
        wanted = {f"{found[number].results[0]}{' scaled' if norms else ''}": number for number in numbers}

        def watch(name: str, value: Tensor) -> None:
            number = wanted[name]
            channels, groups = value.shape[1], _groups(found[number], value.dim(), value.shape[1])
            assert groups is not None
            variance, mean = torch.var_mean(value.reshape(groups, -1), 1, correction=0)
            each = (part.repeat_interleave(channels // groups).tolist() for part in (mean, variance))
            measured[name] = FrozenNorm(number, *map(tuple, each))

        network = self.frozen(norms, tile.dim()) if norms else self
        with torch.inference_mode():
            network._run(tile, network._all_weights, watched=dict.fromkeys(wanted, watch))
        return [measured[name] for name in wanted]

    def _run(
        self,
        tiles: Tensor,
        weights: Mapping[str, Tensor],
        tracer: Tracer | None = None,
        watched: Mapping[str, Callable[[str, Tensor], None]] = MappingProxyType({}),
    ) -> Tensor:
        """Run the program with these weights, and let a tracer follow, or a function look at the input of a node."""
        values: dict[str, Any] = {self._source: tiles.clone() if self._changes_input else tiles}
        self.peak = alive = _bytes(tiles)
        mixed = tiles.device.type != "meta" and torch.is_autocast_enabled(tiles.device.type)
        for node, ended in zip(self._nodes, self._last, strict=True):
            if mixed and node.name == "_assert_tensor_metadata":
                continue  # it asks for the types that values have in float32
            arguments = [_filled(argument, values, weights, tiles.device) for argument in node.arguments]
            keywords = {name: _filled(argument, values, weights, tiles.device) for name, argument in node.keywords.items()}
            if node.name in FACTORIES:
                keywords["device"] = tiles.device
            if node.results and node.results[0] in watched:
                watched[node.results[0]](node.results[0], named_arguments(node.call, arguments, keywords)[INPUTS[node.name]])
            made = node.call(*arguments, **keywords)
            if node.name in UNINITIALISED:
                made.zero_()
            if tracer is not None and node.name:
                named = named_arguments(node.call, arguments, keywords)
                tracer.follow(node.call, named, named_arguments(node.call, node.arguments, node.keywords), node.results, made)
            values |= zip(node.results, made if len(node.results) > 1 else (made,), strict=False)
            alive += sum(_bytes(values[name]) for name in node.results if name in values)
            self.peak = max(self.peak, alive)
            for name in ended:
                alive -= _bytes(values.pop(name, None))
        result: Tensor = values[self._result]
        return result

    def cost(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Estimate the cost of an input without running the program.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        flops : int
            Floating-point operations.
        peak : int
            Most bytes of intermediate results alive at once.
        """
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            self._run(torch.empty(shape, device="meta"), self._shapes)
        return counter.get_total_flops(), self.peak

    def trace(self, shape: tuple[int, ...]) -> Trace:
        """Follow how the elements of all values lie over an input, without running the program.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        Trace
            What arithmetic says about the program. Any exception is raised if it does not accept such an input.
        """
        tracer = Tracer(self._source, shape)
        with torch.inference_mode():
            made = self._run(torch.empty(shape, device="meta"), self._shapes, tracer)
        return Trace(tuple(made.shape), tracer.values.get(self._result, Value((None,) * made.dim())), tracer.notes)


def _named(node: Node) -> dict[str, Any]:
    return named_arguments(node.call, node.arguments, node.keywords)


def _names_in(node: Node) -> Iterator[ValueName]:
    """Yield the names among the arguments of a node."""
    for argument in (*node.arguments, *node.keywords.values()):
        yield from (part for part in (argument if isinstance(argument, list) else [argument]) if isinstance(part, ValueName))


def _normalisations(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.name in NORMALISATIONS]


def _affine(node: Node) -> tuple[ValueName | None, ValueName | None]:
    """Return the names of the factor and the offset that follow a normalisation."""
    named = _named(node)
    return named["weight"], named["bias"]


def _groups(node: Node, rank: int, channels: int) -> int | None:
    """Return in how many groups a normalisation divides channels; None if it cannot be frozen."""
    named = _named(node)
    if node.name == "instance_norm":
        return channels
    if "group_norm" in node.name:
        groups = named["num_groups" if node.name == "group_norm" else "group"]
        return groups if isinstance(groups, int) else None
    if _affine(node) != (None, None):
        return None  # other numbers at each place of a tile
    return {rank - 1: 1, rank - 2: channels}.get(len(named["normalized_shape"]))


def _constants(node: Node, norm: FrozenNorm, weights: Mapping[str, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of a normalisation with these statistics, as constants that fit its input.

    Raises
    ------
    ValueError
        If the statistics are not those of this normalisation.
    """
    mean, variance = (torch.tensor(part, dtype=torch.float64) for part in (norm.mean, norm.variance))
    weight, bias = (None if part is None else weights[part.name].double() for part in _affine(node))
    if any(part is not None and part.shape != mean.shape for part in (weight, bias)):
        raise ValueError(f"normalisation {norm.number} has other channels than its frozen statistics")
    factor = (variance + _named(node)["eps"]).rsqrt() * (1 if weight is None else weight)
    offset = (0 if bias is None else bias) - mean * factor
    shape = (1, -1, *[1] * (rank - 2))
    return factor.float().reshape(shape), offset.float().reshape(shape)


def read_exported(data: bytes, path: str, outputs: Sequence[int] = (0,)) -> tuple[ExportedNetwork, Lengths, Lengths]:
    """Read the network of an exported program.

    Parameters
    ----------
    data
        The file.
    path
        Its path, for messages.
    outputs
        Indices of the outputs to use, whose channels are joined in this order.

    Returns
    -------
    network : ExportedNetwork
        The network.
    shape : tuple of int or None
        Shape of its input; None for axes of any length.
    example : tuple of int or None
        Shape of the input that it was exported with; None for axes of which the file does not say it.

    Raises
    ------
    ModelError
        If the file is damaged, contains anything not known to be harmless, or is not a network with one input.
    """
    try:
        archive = _Archive(zipfile.ZipFile(BytesIO(data)), path)
        program = archive.json(archive.only("models/", ".json"))
        module = program["graph_module"]
        graph, signature = module["graph"], module["signature"]
        weights, source = _inputs(archive, signature)
        if len(graph["nodes"]) > MAX_NODES:
            raise archive.refusal(f"it has {len(graph['nodes'])} nodes")
        nodes = [_node(node, archive) for node in graph["nodes"]]
        found = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"] if "user_output" in spec]
        if len(found) != len(signature["output_specs"]):
            raise archive.refusal("it was exported in training mode, and changes its own weights")
        sizes = graph["tensor_values"][source]["sizes"]
        shape = tuple(size.get("as_int") for size in sizes)
        example = tuple(_example(size) for size in sizes)
        result = _joined(nodes, [found[number] for number in outputs])
        return ExportedNetwork(nodes, weights, source, result), shape, example
    except ModelError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ModelError(
            f"{path} is not a readable exported program ({type(error).__name__}: {error}): {EXPORT_HINT}"
        ) from error


def _joined(nodes: list[Node], results: Sequence[str]) -> str:
    """Return the name of the result with the channels of all of these; add the operation that joins several."""
    if len(results) == 1:
        return results[0]
    parts = [ValueName(name) for name in results]
    nodes.append(Node(torch.ops.aten.cat.default, (parts, 1), {}, (JOINED,)))
    return JOINED


def read_outputs(data: bytes, path: str) -> tuple[NetworkOutput, ...]:
    """List the outputs of an exported program.

    Parameters
    ----------
    data
        The file.
    path
        Its path, for messages.

    Returns
    -------
    tuple of NetworkOutput
        Name, channels and last operation of each.

    Raises
    ------
    ModelError
        If the file is damaged.
    """
    try:
        archive = _Archive(zipfile.ZipFile(BytesIO(data)), path)
        module = archive.json(archive.only("models/", ".json"))["graph_module"]
        graph, found = module["graph"], []
        for spec in module["signature"]["output_specs"]:
            if "user_output" in spec:
                name = spec["user_output"]["arg"]["as_tensor"]["name"]
                sizes = graph["tensor_values"][name]["sizes"]
                channels = sizes[1].get("as_int") if len(sizes) > 1 else None
                found.append(NetworkOutput(name, channels, _ending(graph["nodes"], name, len(sizes)), len(sizes)))
        return tuple(found)
    except ModelError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ModelError(
            f"{path} is not a readable exported program ({type(error).__name__}: {error}): {EXPORT_HINT}"
        ) from error


def _ending(nodes: list[Mapping[str, Any]], name: str, rank: int) -> Ending | None:
    """Return the activation that a value comes from, if it is one over the channels."""
    for node in reversed(nodes):
        *where, operation, _ = ("", *str(node["target"]).split("."))
        arguments = {given["name"]: given["arg"] for given in node["inputs"]}
        made = [result["as_tensor"]["name"] for result in node["outputs"] if "as_tensor" in result]
        source = (node["inputs"][0]["arg"].get("as_tensor") or {}).get("name") if node["inputs"] else None
        known = where[1:] == ["torch", "ops", "aten"]
        if name not in made:
            if source == name and operation.endswith("_") and operation not in PASSED_ON:
                return None  # changed in place afterwards
            continue
        whole = any(DTYPES.get(given.get("as_scalar_type"), torch.float32) not in FLOATS for given in arguments.values())
        if not known or whole or (operation not in ENDINGS and operation not in PASSED_ON) or source is None:
            return None
        if operation in ENDINGS:
            over = arguments["dim"]["as_int"] if "dim" in arguments else 1
            return ENDINGS[operation] if over in (1, 1 - rank) else None
        name = source
    return None


@dataclass(frozen=True, slots=True)
class _Archive:
    """A zip file with the layout of ``.pt2``."""

    zip: zipfile.ZipFile
    path: str

    def only(self, folder: str, suffix: str) -> str:
        """Return the name of the only file with a suffix in a folder."""
        names = [name for name in self.zip.namelist() if f"/{folder}" in f"/{name}" and name.endswith(suffix)]
        if len(names) != 1:
            old = any(name.endswith("serialized_exported_program.json") for name in self.zip.namelist())
            raise self.refusal(
                "an old torch wrote it, partly as pickles" if old else f"it contains {len(names)} programs, not 1"
            )
        return names[0]

    def read(self, name: str) -> bytes:
        """Read a file, which is never larger than the archive because it is not compressed."""
        info = self.zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise self.refusal(f"{name} is compressed")
        return self.zip.read(info)

    def json(self, name: str) -> Any:
        """Parse a JSON file."""
        return json.loads(self.read(name))

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Read weights or constants by name."""
        name = self.only(f"data/{kind}/", "_config.json")
        found = {}
        for key, entry in self.json(name)["config"].items():
            if entry.get("use_pickle") is not False:
                raise self.refusal(f"{key} is a pickle, which can run code")
            file = PurePosixPath(name).with_name(PurePosixPath(entry["path_name"]).name)
            found[key] = _tensor(self.read(str(file)), entry["tensor_meta"])
        return found

    def refusal(self, why: str, remedy: str = EXPORT_HINT) -> ModelError:
        """Return the error that rejects the file."""
        return ModelError(f"{self.path} is not accepted as a network: {why}; {remedy}")


def _tensor(data: bytes, meta: Mapping[str, Any]) -> Tensor:
    """Build a tensor from plain little-endian bytes."""
    sizes, strides = ([int(length["as_int"]) for length in meta[name]] for name in ("sizes", "strides"))
    flat = torch.frombuffer(bytearray(data), dtype=DTYPES[meta["dtype"]]) if data else torch.empty(0)
    tensor = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError("its weights are not all finite")
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _inputs(archive: _Archive, signature: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the weights by the names that nodes use, and the name of the only input."""
    stored = {**archive.tensors("weights"), **archive.tensors("constants")}
    weights: dict[str, Tensor] = {}
    sources: list[str] = []
    for spec in signature["input_specs"]:
        (kind, entry), *_ = spec.items()
        if kind == "user_input":
            sources.append(entry["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            key = entry.get(f"{kind}_name", entry.get("tensor_constant_name"))
            weights[entry["arg"]["name"]] = stored[key]
        else:
            raise archive.refusal(f"it has an input of kind {kind!r}")
    if len(sources) != 1:
        raise archive.refusal(f"it has {len(sources)} inputs, not 1")
    if not any(weight.is_floating_point() for weight in weights.values()):
        raise archive.refusal("it has no weights")
    return weights, sources[0]


def _node(node: Mapping[str, Any], archive: _Archive) -> Node:
    """Read a node, which must call a known operation with tensors and numbers as arguments."""
    target = str(node["target"])
    *where, name = target.split(".")
    if where == ["_operator"] and name in SIZE_OPERATIONS:
        call = SIZE_OPERATIONS[name]
    elif where[:3] == ["torch", "ops", "aten"] and len(where) == 4 and where[3] in OPERATIONS:
        call = getattr(getattr(torch.ops.aten, where[3]), name)
    else:
        raise archive.refusal(f"it calls {target[:80]!r}, which is not an operation that networks may use here", ONNX_HINT)
    arguments, keywords = [], {}
    for given in node["inputs"]:
        if given["name"] in ("train", "training") and given["arg"].get("as_bool"):
            raise archive.refusal("it was exported in training mode")
        value = _argument(given["arg"], archive)
        if given.get("kind") == 2:
            keywords[str(given["name"])] = value
        else:
            arguments.append(value)
    results = [result for output in node["outputs"] for result in _results(output, archive)]
    return Node(call, tuple(arguments), keywords, tuple(results))


def _argument(argument: Mapping[str, Any], archive: _Archive) -> Any:
    """Read an argument of a node."""
    (kind, value), *others = argument.items()
    if others:
        raise archive.refusal("an argument has two kinds")
    if kind in PLAIN_ARGUMENTS:
        return value
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return ValueName(value["name"])
        case "as_tensors":
            return [ValueName(tensor["name"]) for tensor in value]
        case "as_optional_tensors" | "as_sym_ints" | "as_sym_floats":
            return [_argument(part, archive) for part in value]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _argument(value, archive)
        case "as_name":
            return ValueName(value)
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return MEMORY_FORMATS[value]
        case "as_device":
            return InputDevice
        case "as_layout":
            return None
        case _:
            raise archive.refusal(f"an argument has the unknown kind {str(kind)[:40]!r}")


def _results(output: Mapping[str, Any], archive: _Archive) -> list[str]:
    """Read the names of a node's results."""
    (kind, value), *_ = output.items()
    match kind:
        case "as_tensor":
            return [value["name"]]
        case "as_tensors":
            return [tensor["name"] for tensor in value]
        case "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return [value["as_name"]]
        case "as_none":
            return []
        case _:
            raise archive.refusal(f"a result has the unknown kind {str(kind)[:40]!r}")


def _filled(argument: Any, values: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device) -> Any:
    """Replace the names in an argument by their values, and whatever device it names by this one."""
    if argument is InputDevice:
        return device
    if isinstance(argument, ValueName):
        return values[argument.name] if argument.name in values else weights[argument.name]
    if isinstance(argument, list):
        return [_filled(part, values, weights, device) for part in argument]
    return argument


def _last_uses(nodes: list[Node], result: str) -> list[list[str]]:
    """List for each node the values that no later node uses."""
    last: dict[str, int] = {}
    for number, node in enumerate(nodes):
        named = [*node.arguments, *node.keywords.values()]
        for part in (part for argument in named for part in (argument if isinstance(argument, list) else [argument])):
            if isinstance(part, ValueName):
                last[part.name] = number
        last |= dict.fromkeys(node.results, number)
    ended: list[list[str]] = [[] for _ in nodes]
    for name, number in last.items():
        if name != result:
            ended[number].append(name)
    return ended


def _example(size: Mapping[str, Any]) -> int | None:
    """Return the length of an axis of the input in the example that a program was exported with."""
    hint = size.get("as_expr", {}).get("hint") or {}
    length = size.get("as_int", hint.get("as_int"))
    return length if isinstance(length, int) and length > 0 else None


def _checked_effects(nodes: list[Node], source: str, weights: Mapping[str, Tensor]) -> bool:
    """Return whether the program changes its input in place.

    Raises
    ------
    ModelError
        If it changes its own weights, so that its output would depend on how often it has run.
    """
    owners = {name: name for name in (source, *weights)}
    """The input or weight of which each value may be a view."""
    changed = set()
    for node in nodes:
        if not node.name:
            continue
        first = node.arguments[0] if node.arguments else next(iter(node.keywords.values()), None)
        owner = owners.get(first.name) if isinstance(first, ValueName) else None
        schema = node.call._schema
        if owner is not None and any(entry.alias_info and entry.alias_info.is_write for entry in schema.arguments):
            changed.add(owner)
        if owner is not None and (node.name in MAY_ALIAS or any(entry.alias_info for entry in schema.returns)):
            owners |= dict.fromkeys(node.results, owner)
    if own := sorted(changed - {source}):
        raise ModelError(f"the exported program changes its own weights ({own[0][:80]}): {ONNX_HINT}")
    return source in changed


def _bytes(value: Any) -> int:
    """Return the size of a tensor in bytes; 0 for anything else."""
    return math.prod(value.shape) * value.element_size() if isinstance(value, Tensor) else 0
