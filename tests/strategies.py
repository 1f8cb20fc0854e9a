"""Hypothesis strategies for boxes, shapes, chunks, networks and tiles."""

from __future__ import annotations

from hypothesis import strategies as st

from emseg_core.box import Box, Triple
from emseg_core.specs.model import ModelSpec

TINY_FLOPS = 3 * 10**7
"""Maximum arithmetic of the smallest tile of a network in a property test."""


def triples(values: st.SearchStrategy[int]) -> st.SearchStrategy[Triple]:
    """Draw three integers, each from its own strategy."""
    return st.tuples(values, values, values)


def shapes(most: int = 40) -> st.SearchStrategy[Triple]:
    """Draw shapes of volumes, often with single slices and other thin axes."""
    return triples(st.one_of(st.integers(max(1, most // 2), most), st.integers(1, most), st.just(1)))


@st.composite
def boxes(draw: st.DrawFn, low: int = -30, high: int = 30) -> Box:
    """Draw boxes anywhere, also below zero."""
    pairs = [sorted(draw(st.tuples(st.integers(low, high - 1), st.integers(low, high - 1)))) for _ in range(3)]
    (z0, z1), (y0, y1), (x0, x1) = pairs
    return Box((z0, y0, x0), (z1 + 1, y1 + 1, x1 + 1))


@st.composite
def boxes_in(draw: st.DrawFn, shape: Triple) -> Box:
    """Draw boxes inside a volume of this shape."""
    start = [draw(st.integers(0, length - 1)) for length in shape]
    stop = [draw(st.integers(first + 1, length)) for first, length in zip(start, shape, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


@st.composite
def model_specs(
    draw: st.DrawFn,
    depths: st.SearchStrategy[int] = st.integers(0, 3),
    widths: st.SearchStrategy[int] = st.integers(1, 3),
    most_flops: int = TINY_FLOPS,
) -> ModelSpec:
    """Draw networks with a small smallest tile: 2-D, isotropic 3-D, and anything between, level by level."""
    depth, kind = draw(depths), draw(st.sampled_from(["planar", "cubic", "mixed"]))
    if kind == "cubic":
        kernels = [(k, k, k) for k in draw(st.lists(st.sampled_from([1, 3]), min_size=depth + 1, max_size=depth + 1))]
        pooling = [(p, p, p) for p in draw(st.lists(st.sampled_from([2, 3]), min_size=depth, max_size=depth))]
    else:
        deep = st.just(1) if kind == "planar" else st.sampled_from([1, 1, 3])
        kernel = st.tuples(deep, st.sampled_from([3, 1, 5]), st.sampled_from([3, 1]))
        factor = st.tuples(
            st.just(1) if kind == "planar" else st.sampled_from([1, 2]), st.sampled_from([2, 3, 1]), st.sampled_from([2, 1])
        )
        kernels = draw(st.lists(kernel, min_size=depth + 1, max_size=depth + 1))
        pooling = draw(st.lists(factor, min_size=depth, max_size=depth))
    names = tuple("abcd"[: draw(st.integers(1, 4))])
    model = ModelSpec(draw(widths), depth, names, tuple(kernels), tuple(pooling))
    while model.flops(model.tile_for((1, 1, 1))) > most_flops:  # fewer levels instead of a rejected example
        depth -= 1
        model = ModelSpec(model.width, depth, names, model.kernels[: depth + 1], model.pooling[:depth])
    return model


@st.composite
def valid_tiles(draw: st.DrawFn, model: ModelSpec, most_cells: int = 3) -> Triple:
    """Draw tiles that fit a network, with outputs of one or more lattice cells per axis, up to a limit."""
    z, y, x = (draw(st.integers(1, most_cells)) * lattice for lattice in model.lattice)
    return model.tile_for((z, y, x))
