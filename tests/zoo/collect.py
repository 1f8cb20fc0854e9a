"""Export architectures of other libraries, and see what emseg makes of them: `make zoo`.

Each is exported with `torch.export` and `torch.onnx.export`, for tiles of any shape where the exporter can do that. emseg reads
it as it is; where it refuses, what its message asks for is written beside the file. A run in small tiles is compared with one
pass of the network itself. Results go to ``results.json`` in the given folder, the table to the documentation, and facts for
the tests beside this file.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import lzma
import math
import re
import shutil
import time
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor, nn
from zoo.architectures import ALL, Architecture
from zoo.facts import facts_of, name_of

from emseg import segment
from emseg_core.box import triple
from emseg_core.errors import ModelError
from emseg_core.model.external_model import SETTINGS, ExternalModel, contract_of, read_external
from emseg_core.specs.contract import Contract
from emseg_core.store.outputs.lifecycle import open_output

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "workflows" / "docs" / "networks.md"
MAX_COMPARED = 6 * 10**11
"""Floating-point operations of the tiles of a comparison."""
MAX_PROGRAM = 10_000
"""Bytes of an exported program that is kept for the tests."""
MAX_EXPORT = 1_500_000
"""Bytes of an exported program that may be kept."""
FILES = {".pt2, any tile": "any-tile.pt2", ".pt2, fixed tile": "fixed-tile.pt2"}
"""Names of exported programs."""
TIE = 1e-3
"""Difference of logits, or of a probability from its threshold, that rounding may turn round."""
MEAN, DEVIATION = 128.0, 40.0


class Spread(nn.Module):
    """A network whose first output has logits of mean 0 and deviation 2, so that all classes occur."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        with torch.inference_mode():
            made = leaves(network(torch.randn(shape)))[0]
        over = [0, *range(2, made.dim())]
        self.mean = nn.Buffer(made.mean(over, keepdim=True).clone())
        self.scale = nn.Buffer((2 / made.std(over, keepdim=True).clamp_min(1e-6)).clone())

    def forward(self, x: Tensor) -> Any:
        """Return the outputs of the network."""
        made = leaves(self.network(x))
        first = (made[0] - self.mean) * self.scale
        return (first, *made[1:]) if len(made) > 1 else first


def leaves(made: Any) -> list[Tensor]:
    """Return all tensors in what a network returns."""
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, dict) else made
    return [tensor for part in parts for tensor in leaves(part)]


def built(architecture: Architecture) -> nn.Module:
    """Return a network with weights that are the same each time."""
    torch.manual_seed(1)
    network = architecture.make().eval()
    return Spread(network, architecture.shape).eval() if "activation" in architecture.told else network


def exported(network: nn.Module, architecture: Architecture, folder: Path) -> Iterator[tuple[str, Path | str]]:
    """Yield each export and its file, or why there is none."""
    x = torch.randn(architecture.shape)
    any_length = (dict.fromkeys(range(2, x.dim()), torch.export.Dim.AUTO),)
    free: Any = None
    for (kind, name), lengths in zip(FILES.items(), (any_length, None), strict=True):
        if lengths and not architecture.any_tile:
            continue
        path = folder / name
        try:
            program = torch.export.export(network, (x,), dynamic_shapes=lengths)
            torch.export.save(program, path)
        except Exception as error:
            yield kind, first_line(error)
            continue
        free = free or program
        yield kind, path
    path = folder / "network.onnx"
    try:
        with redirect_stdout(io.StringIO()):
            torch.onnx.export(free, (), path, dynamo=True, verbose=False)
        yield "ONNX", path
    except Exception as error:
        yield "ONNX", first_line(error)


def first_line(error: Exception) -> str:
    """Return the start of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def write_told(path: Path, told: dict[str, Any]) -> None:
    """Write what is told beside a network."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in told.items() if name != "heads"]
    for head in told.get("heads", ()):
        lines += ["[[heads]]", *(f"{name} = {json.dumps(value)}" for name, value in head.items())]
    path.with_name(f"{path.name}.toml").write_text("\n".join(lines) + "\n")


def asked_for(message: str, known: dict[str, Any], told: dict[str, Any]) -> list[str]:
    """Return the settings that a message asks for."""
    names = [name for name in SETTINGS if re.search(rf"\b{name} = ", message) or (name == "heads" and "[[heads]]" in message)]
    wanted = [name for name in names if name in known and name not in told]
    return [name for name in wanted if name in ("heads", "output")] or wanted


def looked_at(path: Path, architecture: Architecture) -> dict[str, Any]:
    """Let emseg read a network, and tell it what it asks for."""
    base = {"mean": MEAN, "deviation": DEVIATION}
    known = {**architecture.told, "only_tile": [1, *architecture.shape[2:]][-3:]}
    told: dict[str, Any] = dict(base)
    found: dict[str, Any] = {"asked": [], "bytes": path.stat().st_size}
    while True:
        write_told(path, told)
        start = time.perf_counter()
        try:
            model = read_external(path)
            spec = contract_of(model)
        except ModelError as error:
            wanted = asked_for(str(error), known, told)
            if "heads" in wanted:
                wanted = ["heads"]
                for name in ("activation", "output", "classes"):
                    told.pop(name, None)
            found["seconds"] = time.perf_counter() - start
            if not wanted:
                return {**found, "refused": str(error).replace(str(path), path.name)}
            told |= {name: known[name] for name in wanted}
            if "activation" in wanted and "classes" in known:
                told["classes"] = known["classes"]
            found["asked"] += wanted
            continue
        except Exception:
            return {**found, "fault": traceback.format_exc()}
        return {**found, "seconds": time.perf_counter() - start, "model": model, "spec": spec}


# -- beside one pass -----------------------------------------------------------------------------------------------------


def texture(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return blobs with noise."""
    rng = np.random.default_rng(3)
    z, y, x = (np.arange(length) for length in shape)
    waves = np.sin(z / 3)[:, None, None] + np.sin(y / 4)[:, None] + np.sin(x / 5)
    return np.clip(128 + 30 * waves + rng.normal(0, 25, shape), 0, 255).astype(np.uint8)


def in_one_pass(network: nn.Module, spec: Contract, model: ExternalModel, values: NDArray[np.uint8]) -> Tensor:
    """Return the channels of the outputs that are used, for a whole volume."""
    lengths = triple(
        spec.next_valid(axis, length + 2 * spec.context[axis]) if spec.only_tile is None else length + 2 * spec.context[axis]
        for axis, length in enumerate(values.shape)
    )
    if spec.only_tile is not None:  # as the network is, tiles of more shapes may fit
        lengths = triple(
            length + (base - length) % lattice
            for length, base, lattice in zip(lengths, spec.only_tile, spec.lattice, strict=True)
        )
    around = [
        (spec.context[axis], lengths[axis] - spec.context[axis] - length) if not (spec.planar and axis == 0) else (0, 0)
        for axis, length in enumerate(values.shape)
    ]
    padded = (np.pad(values, around, mode="reflect").astype(np.float32) - np.float32(MEAN)) / np.float32(DEVIATION)
    tiles = torch.from_numpy(padded)[:, None, None] if spec.planar else torch.from_numpy(padded)[None, None, None]
    with torch.inference_mode():
        passes = [torch.cat([leaves(network(tile))[at] for at in model.used_outputs], 1) for tile in tiles]
    whole = torch.stack([one[0] for one in passes], 1) if spec.planar else passes[0][0]
    parts = [slice(crop, crop + length) for crop, length in zip(spec.crop, values.shape, strict=True)]
    return whole[:, parts[0], parts[1], parts[2]]


def compared(
    path: Path, network: nn.Module, model: ExternalModel, spec: Contract, made_for: tuple[int, ...], folder: Path
) -> dict[str, Any]:
    """Compare a run in small tiles with one pass; tiles are as large as it was made for if labels depend on them."""
    sides = [1, *made_for[2:]][-3:]
    tile = triple(
        spec.next_valid(axis, max(2 * context + max(2 * lattice, 16), 0 if spec.local else side))
        if not (spec.planar and axis == 0)
        else 1
        for axis, (context, lattice, side) in enumerate(zip(spec.context, spec.lattice, sides, strict=True))
    )
    kept = triple(length - 2 * context for length, context in zip(tile, spec.context, strict=True))
    shape = triple(2 if spec.planar and axis == 0 else 2 * length - 3 for axis, length in enumerate(kept))
    tiles = math.prod(-(-length // part) for length, part in zip(shape, kept, strict=True))
    if (operations := spec.flops(tile) * tiles) > MAX_COMPARED:
        return {"not compared": f"{operations:.0e} operations"}
    values = texture(shape)
    try:
        truth = in_one_pass(network, spec, model, values)
    except Exception as error:  # a network for tiles of one shape has no pass over a volume
        return {"not compared": first_line(error)[:120]}
    volume, output = folder / "volume.zarr", folder / "output.zarr"
    for place in (volume, output):
        shutil.rmtree(place, ignore_errors=True)
    array = zarr.create_array(volume, shape=shape, chunks=triple(min(16, length) for length in shape), dtype="uint8")
    array[...] = values
    report = segment(volume, output, model=path, workers=0, tile=tile if spec.only_tile is None else None)
    if report.exit_code:
        return {"not compared": f"exit code {report.exit_code}"}
    stored, wrong, total, ties = open_output(output), 0, 0, 0
    heads = {head.name: head for head in spec.heads}
    for image in stored.images:
        found = stored.read(image.name, stored.region)
        differs, tied = differing(heads[image.head.name], image.name, truth, np.asarray(found))
        wrong, total, ties = wrong + int((differs & ~tied).sum()), total + differs.size, ties + int((differs & tied).sum())
    return {"voxels": total, "wrong": wrong, "ties": ties, "tile": list(tile), "shape": list(shape)}


def differing(head: Any, name: str, whole: Tensor, found: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which values of an image differ from one pass, and which of them are ties."""
    truth = whole if head.source is None else whole[list(head.source)]
    if head.activation in ("sigmoid logits", "logits"):
        shares = truth.double().sigmoid() if head.activation == "sigmoid logits" else truth.double()
    else:
        shares = truth.double()
    values = shares.numpy()
    if head.kind == "classes":
        if head.activation.startswith("sigmoid"):
            return found != (values[0] > 0.5), np.abs(values[0] - 0.5) < TIE
        ranked = np.sort(values, axis=0)
        return found != values.argmax(0), ranked[-1] - ranked[-2] < TIE
    if head.kind == "independent":
        at = head.channels.index(name)
        return found != (values[at] >= head.thresholds[at]), np.abs(values[at] - head.thresholds[at]) < TIE
    if found.dtype == np.uint8:
        low, high = head.scale or (0.0, 1.0)
        off = np.abs(found - (np.clip(values, low, high) - low) / (high - low) * 254)
        return off > 0.5 + 254 * TIE, off < 0
    off = np.abs(found.astype(np.float64) - values)
    return off > 2e-3 * np.maximum(1, np.abs(values)), off < 0


# -- what is left ---------------------------------------------------------------------------------------------------------


def slim(data: bytes) -> bytes:
    """Return an exported program with weights that compress, and without what is not read.

    The operations and the shapes of weights are those of the network; so are the facts that follow from them.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(content)
                for node in program["graph_module"]["graph"]["nodes"]:
                    node["metadata"] = {}
                content = json.dumps(program, separators=(",", ":")).encode()
            elif re.search(r"data/weights/weight_\d+$", name) and len(content) % 4 == 0:
                numbers = np.frombuffer(content, np.float32)
                pattern = np.array([1, -2, 3, -1, 0.5], np.float32)
                pattern = np.abs(pattern) if numbers.min(initial=0) >= 0 else pattern  # variances
                content = (np.resize(pattern, numbers.shape) * np.abs(numbers).mean()).tobytes()
            elif "sample_inputs" in name:
                continue
            other.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


def operations_of(data: bytes) -> list[str]:
    """Return the names of the operations of an exported program."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        nodes = json.loads(archive.read(name))["graph_module"]["graph"]["nodes"]
    targets = [str(node["target"]).split(".") for node in nodes]
    return sorted({target[3] for target in targets if target[:3] == ["torch", "ops", "aten"]})


def keep(folder: Path, results: list[dict[str, Any]]) -> None:
    """Write the table, and the facts and programs that the tests read; of programs treated alike, the first."""
    PAGE.write_text(page(results))
    rows = [{key: value for key, value in row.items() if key not in ("seconds", "bytes")} for row in results]
    for row, before in zip(rows[1:], results, strict=False):
        if row.get("operations") == before.get("operations"):
            row.pop("operations", None)
    (HERE / "facts.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    programs, seen = HERE / "programs", list[Any]()
    shutil.rmtree(programs, ignore_errors=True)
    programs.mkdir()
    for row in results:
        if row["export"] not in FILES or "facts" not in row or (known := [title_of(row), row["facts"]]) in seen:
            continue
        seen.append(known)
        if row["bytes"] > MAX_EXPORT:
            continue
        kept = lzma.compress(slim((folder / slug(title_of(row)) / FILES[row["export"]]).read_bytes()), preset=9)
        if len(kept) <= MAX_PROGRAM:
            (programs / f"{name_of(row)}.pt2.xz").write_bytes(kept)


INTRODUCTION = """\
# Networks of other libraries

What `make zoo` found with torch {torch}: architectures of libraries that laboratories use, narrow and with random weights,
each exported with `torch.export` (for tiles of any shape, and for a fixed one) and with `torch.onnx.export`: {count} exports of
{networks} architectures. Exports that are treated alike share a line.

*Asked for* is what has to be written into the `.toml` beside the file, because the file does not say it; see
[Your own network](tutorials/your-own-network.md). *Context* and *lattice* are voxels (z, y, x). *Like one pass* compares a run
in small tiles with the network itself applied to the whole volume, voxel for voxel: all are equal but for ties, or the reason
why labels depend on tiles is named. *Probe* is the time to find this out, on one core.
"""


def page(results: list[dict[str, Any]]) -> str:
    """Return the page of the documentation, with a table for each library."""
    networks = {(row["library"], row["name"]) for row in results}
    lines = [INTRODUCTION.format(torch=torch.__version__.split("+")[0], count=len(results), networks=len(networks))]
    for library, rows in itertools.groupby(results, lambda row: row["library"]):
        lines += [
            f"## {library[0].upper()}{library[1:]}",
            "",
            "| network | export | asked for | context | lattice | tile | like one pass | probe |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, found in itertools.groupby(rows, lambda row: row["name"]):
            alike: dict[str, list[dict[str, Any]]] = {}
            for row in found:
                alike.setdefault(json.dumps([row.get("asked"), *cells(row)[:3]]), []).append(row)
            lines += [line(name, same) for same in alike.values()]
        lines.append("")
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return context, lattice, tile, and how a run compares."""
    if "facts" not in row:
        why = (
            "not exported: " + row["not exported"].split(":")[0]
            if "not exported" in row
            else "refused: " + row.get("refused", "")
        )
        return "", "", "", why.replace("|", "/")
    known = row["facts"]
    context, lattice, only = (" x ".join(map(str, known[key] or ())) for key in ("context", "lattice", "only_tile"))
    return context, lattice, f"{only} only" if only else "any", like_one_pass(row)


def like_one_pass(row: dict[str, Any]) -> str:
    """Return how a run compares with one pass."""
    run, reason = row.get("run", {}), re.sub(r" \([^)]*\)", "", row["facts"]["reason"])
    if "wrong" not in run:
        return f"no: {reason}" if reason else "not compared, as it takes too long" if run else ""
    if run["wrong"] == 0 and not reason:
        return f"yes, {run['voxels']} voxels"
    equal = math.floor(1000 - 1000 * run["wrong"] / run["voxels"]) / 10  # 100 % only if all are
    return f"{equal} %" + (f": {reason}" if reason else "")


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a line of the table for exports that are treated alike."""
    asked = ", ".join(dict.fromkeys("`[[heads]]`" if key == "heads" else f"`{key}`" for key in rows[0].get("asked", ())))
    compared = next((cells(row)[3] for row in rows if "wrong" in row.get("run", {})), cells(rows[0])[3])
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    said = [name, "; ".join(row["export"] for row in rows), asked, *cells(rows[0])[:3], compared]
    return f"| {' | '.join(said)} | {f'{max(seconds):.1f} s' if seconds else ''} |"


def main() -> None:
    """Run the zoo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for exported networks and results")
    parser.add_argument("names", nargs="*", help="parts of the names of architectures; default: all")
    parser.add_argument("--no-runs", action="store_true", help="read networks, but compare no runs")
    asked = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    stored = asked.folder / "results.json"
    results: list[dict[str, Any]] = json.loads(stored.read_text()) if asked.names and stored.exists() else []
    titles = [f"{architecture.library}: {architecture.name}" for architecture in ALL]
    for architecture, title in zip(ALL, titles, strict=True):
        if asked.names and not any(name in title for name in asked.names):
            continue
        results = [row for row in results if title_of(row) != title]
        for row in rows_of(architecture, asked.folder / slug(title), runs=not asked.no_runs):
            results.append(row)
            print(said(row), flush=True)
            stored.write_text(json.dumps(results, indent=1) + "\n")
    if {title_of(row) for row in results} == set(titles) and not asked.no_runs:
        keep(asked.folder, sorted(results, key=lambda row: titles.index(title_of(row))))


def rows_of(architecture: Architecture, folder: Path, *, runs: bool) -> Iterator[dict[str, Any]]:
    """Yield what is found out about each export of an architecture; a run is compared once for those treated alike."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    network, seen = built(architecture), list[dict[str, Any]]()
    for kind, path in exported(network, architecture, folder):
        row: dict[str, Any] = {"library": architecture.library, "name": architecture.name, "export": kind}
        if isinstance(path, str):
            yield {**row, "not exported": path}
            continue
        row |= looked_at(path, architecture)
        model, spec = row.pop("model", None), row.pop("spec", None)
        if path.suffix == ".pt2":
            row["operations"] = operations_of(path.read_bytes())
        if spec is not None:
            row |= {"facts": facts_of(spec), "told": path.with_name(f"{path.name}.toml").read_text()}
            if runs and not (path.suffix == ".pt2" and row["facts"] in seen):
                try:
                    row["run"] = compared(path, network, model, spec, architecture.shape, folder)
                except Exception:
                    row["fault"] = traceback.format_exc()
            seen.append(row["facts"])
        yield row


def slug(text: str) -> str:
    """Return a text as the name of a folder."""
    return re.sub(r"\W+", "-", text)


def title_of(row: dict[str, Any]) -> str:
    """Return the name of an architecture with its library."""
    return f"{row['library']}: {row['name']}"


def said(row: dict[str, Any]) -> str:
    """Return a line about a row."""
    parts = [f"{title_of(row)} | {row['export']} |"]
    parts += [f"{name.upper()} {row[name][-700:]}" for name in ("not exported", "refused", "fault") if name in row]
    if "facts" in row:
        known = row["facts"]
        parts.append(
            f"context {known['context']} lattice {known['lattice']} least {known['least']} only {known['only_tile']} "
            f"{known['basis']} {'exact' if known['local'] else 'NOT ' + known['reason']}"
        )
    parts += [f"asked {row['asked']}"] if row.get("asked") else []
    parts += [f"{row['seconds']:.1f} s"] if "seconds" in row else []
    return " ".join([*parts, str(row.get("run", ""))])


if __name__ == "__main__":
    main()
