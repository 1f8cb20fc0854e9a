"""Test that tiling has no effect: a real network in float64, any tiles and blocks, against one pass over the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fakes import ArrayVolume, LocalMean, MeanClassifier, MemoryLabels, SmallPredictor, context_of, plan_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mean_in_one_pass, one_pass, random_network, torch_predictor
from numpy.typing import NDArray
from oracles import hull, mirror
from strategies import boxes_in, model_specs, shapes, triples, valid_tiles

import emseg_core.grid.plan
from emseg_core.block import predict_box, predict_tiles, read_seen, segment_block
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError
from emseg_core.grid.cost import cost_of
from emseg_core.grid.layout import plan_volume
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import QUANTA, Canvas, softmax
from emseg_core.grid.symmetry import SymmetricPredictor
from emseg_core.grid.tiles import Tile, tiles_of
from emseg_core.normalise import Normalisation, Scope
from emseg_core.ports import Predictor
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import VolumeSpec

if TYPE_CHECKING:
    from emseg_core.model.unet import UNet

EXACT = 1e-10
"""Maximum difference between two float64 computations of one probability."""
FLOPS = 2 * 10**7
"""Approximate arithmetic of one example."""

PLAIN = ModelSpec.unet(width=1, depth=0)
PLANAR = ModelSpec.unet(width=4, depth=2)
SOLID = ModelSpec.unet(width=4, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
ANISOTROPIC = ModelSpec(3, 2, ("a", "b", "c"), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2)))


def alike(model: ModelSpec) -> ModelSpec:
    """Return the network with the kernels and pooling of y on both axes of the plane."""
    kernels, pooling = (tuple((z, y, y) for z, y, _ in sizes) for sizes in (model.kernels, model.pooling))
    return replace(model, kernels=kernels, pooling=pooling)


MODELS = model_specs(depths=st.integers(0, 3), widths=st.integers(1, 2), most_flops=FLOPS // 10)
ALIKE = model_specs(depths=st.integers(0, 2), widths=st.integers(1, 2), most_flops=FLOPS // 100).map(alike)
"""Networks that are the same along y and x, even if z differs."""


@st.composite
def scenes(
    draw: st.DrawFn, models: st.SearchStrategy[ModelSpec] = MODELS
) -> tuple[UNet, Triple, Triple, Triple, Normalisation]:
    """Draw a network with weights, the shapes of volume, write unit and tile, and numbers to normalise with."""
    model = draw(models)
    shape = list(draw(shapes(40)))
    while model.flops(model.tile_for(triple(shape))) > FLOPS and max(shape) > 1:
        shape[int(np.argmax(shape))] //= 2
    tile, unit = draw(valid_tiles(model)), draw(triples(st.integers(4, 30)))
    while tiles_in(triple(shape), unit, tile, model) * model.flops(tile) > FLOPS:
        if all(length >= n for length, n in zip(unit, shape, strict=True)):
            tile = model.tile_for(triple(max(n, cell) for n, cell in zip(shape, model.lattice, strict=True)))
            break
        unit = triple(2 * length for length in unit)
    seed, rows = draw(st.integers(0, 99)), draw(st.sampled_from([1, shape[0]]))
    mean, deviation = np.random.default_rng(seed).uniform(50, 150, (2, rows)).tolist()
    table = Normalisation("volume" if rows == 1 else "slice", tuple(mean), tuple(deviation))
    return random_network(model, seed), triple(shape), unit, tile, table


def tiles_in(shape: Triple, unit: Triple, tile: Triple, model: ModelSpec) -> int:
    plan = plan_by_hand(model, shape, unit, tile)
    return cost_of(plan, VolumeSpec(shape, "uint8", (8, 8, 8)), probabilities=False).tiles


def noise(shape: Triple, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def normalised(values: NDArray[np.uint8], table: Normalisation) -> NDArray[np.float32]:
    """Normalise the whole volume slice by slice."""
    rows = len(values) if table.scope == "slice" else 1
    mean, deviation = (np.array(numbers, np.float32) for numbers in (table.mean, table.deviation))
    return np.stack([(plane.astype(np.float32) - mean[z % rows]) / deviation[z % rows] for z, plane in enumerate(values)])


def stitched(volume: ArrayVolume, predictor: Predictor, plan: Plan, table: Normalisation) -> NDArray[Any]:
    """Return logits of the plan's region, block by block and tile by tile, in the network's own precision."""
    whole: Canvas[Any] = Canvas(plan.region, np.float64, len(plan.model.classes))
    for block in plan:
        seen = read_seen(volume, table, plan.read_box(block))
        for target, logits in predict_tiles(predictor, seen, plan.tiles(block), plan.batch):
            whole.paste(target, logits)
    return whole.finish()


def check_labels(labels: MemoryLabels, probabilities: NDArray[Any]) -> None:
    """Check that labels are those of the truth except for ties, and that stored probabilities are rounded correctly."""
    best = np.sort(probabilities, axis=0)[::-1]
    clear = best[0] - best[1] > EXACT if len(best) > 1 else np.ones(labels.labels.shape, bool)
    np.testing.assert_array_equal(labels.labels[clear], probabilities.argmax(axis=0)[clear])
    assert labels.probabilities is not None
    assert np.abs(labels.probabilities - QUANTA * probabilities).max() <= 0.5 + QUANTA * EXACT


@given(st.data(), scenes())
@settings(max_examples=200)
def test_tiled_is_untiled(data: st.DataObject, scene: tuple[UNet, Triple, Triple, Triple, Normalisation]) -> None:
    """Any blocks and any tiles, also of a region, give the result of one pass over the mirrored whole."""
    network, shape, unit, tile, table = scene
    values = noise(shape)
    volume = ArrayVolume(values)
    region = data.draw(st.just(volume.spec.box) | boxes_in(shape))
    truth = one_pass(network, normalised(values, table))[(slice(None), *region.slices())]
    plan, predictor = plan_by_hand(network.spec, shape, unit, tile, region), torch_predictor(network)

    logits = stitched(volume, predictor, plan, table)
    np.testing.assert_allclose(softmax(logits), softmax(truth), rtol=0, atol=EXACT)
    np.testing.assert_allclose(logits, truth, rtol=EXACT, atol=EXACT)


@given(st.data(), scenes(ALIKE))
@settings(max_examples=15)
def test_tiled_is_untiled_with_test_time_augmentation(
    data: st.DataObject, scene: tuple[UNet, Triple, Triple, Triple, Normalisation]
) -> None:
    """Turning and mirroring each tile gives the result of turning and mirroring the whole volume."""
    network, shape, unit, tile, table = scene
    values = noise(shape)
    volume = ArrayVolume(values)
    region = data.draw(st.just(volume.spec.box) | boxes_in(shape))
    truth = mean_in_one_pass(network, normalised(values, table))[(slice(None), *region.slices())]
    plan, predictor = plan_by_hand(network.spec, shape, unit, tile, region), torch_predictor(network)
    found = softmax(stitched(volume, SymmetricPredictor(predictor), plan, table))
    np.testing.assert_allclose(found, truth, rtol=0, atol=EXACT)


@pytest.mark.parametrize("model", [PLANAR, SOLID, ANISOTROPIC])
def test_the_mean_over_symmetries_is_not_what_one_of_them_gives(model: ModelSpec) -> None:
    """Otherwise the test above would prove nothing. Long tiles of both orientations occur."""
    values, network = noise((5, 60, 44)), random_network(model)
    table = Normalisation("volume", (120.0,), (70.0,))
    plan = plan_by_hand(model, (5, 60, 44), (3, 33, 40), model.tile_for((2, 16, 32)))
    found = softmax(stitched(ArrayVolume(values), SymmetricPredictor(torch_predictor(network)), plan, table))
    np.testing.assert_allclose(found, mean_in_one_pass(network, normalised(values, table)), rtol=0, atol=EXACT)
    assert np.abs(found - softmax(one_pass(network, normalised(values, table)))).max() > 1e-3


@given(scenes())
@settings(max_examples=60)
def test_what_is_written_is_untiled(scene: tuple[UNet, Triple, Triple, Triple, Normalisation]) -> None:
    network, shape, unit, tile, table = scene
    values = noise(shape)
    plan = plan_by_hand(network.spec, shape, unit, tile)
    labels = MemoryLabels(plan, probabilities=True)
    context = context_of(ArrayVolume(values), torch_predictor(network), plan, normalisation=table, labels=labels)
    for block in reversed(list(plan)):
        assert not labels.is_done(block.write)
        outcome = segment_block(context, block)
        assert (outcome.status, outcome.cause) == ("done", None)
        assert labels.is_done(block.write)
    check_labels(labels, softmax(one_pass(network, normalised(values, table))))


@given(st.data(), scenes())
@settings(max_examples=60)
def test_a_box_by_itself_with_any_lead_is_untiled(
    data: st.DataObject, scene: tuple[UNet, Triple, Triple, Triple, Normalisation]
) -> None:
    network, shape, _, tile, table = scene
    values = noise(shape)
    box = data.draw(boxes_in(shape))
    z, y, x = (data.draw(st.integers(0, step - 1)) for step in network.spec.step(tile))
    found = predict_box(ArrayVolume(values), torch_predictor(network), table, box, tile, (z, y, x))
    truth = softmax(one_pass(network, normalised(values, table)))[(slice(None), *box.slices())]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-7)


@pytest.mark.parametrize("region", [None, Box((1, 3, 6), (5, 90, 101))])
@pytest.mark.parametrize("model", [PLANAR, SOLID, ANISOTROPIC])
@pytest.mark.parametrize("shape", [(6, 97, 101), (1, 150, 20), (37, 1, 120)])
def test_plans_as_they_are_made_are_untiled(shape: Triple, model: ModelSpec, region: Box | None) -> None:
    values, network = noise(shape), random_network(model)
    volume = VolumeSpec(shape, "uint8", (16, 16, 16))
    if region is not None and not volume.box.contains(region):
        region = Box((0, 0, 3), (1, 1, shape[2]))
    plan = plan_volume(volume, model, region)
    table = Normalisation("volume", (120.0,), (70.0,))
    truth = one_pass(network, normalised(values, table))[(slice(None), *plan.region.slices())]
    logits = stitched(ArrayVolume(values), torch_predictor(network), plan, table)
    np.testing.assert_allclose(logits, truth, rtol=EXACT, atol=EXACT)


@given(st.data(), shapes(20), model_specs(depths=st.just(0)))
@settings(max_examples=30)
def test_nothing_of_this_needs_torch(data: st.DataObject, shape: Triple, model: ModelSpec) -> None:
    """NumPy computes a mean over the context: the blocks give the result of the mirrored whole."""
    values, predictor = noise(shape), LocalMean(model)
    plan = plan_by_hand(model, shape, data.draw(triples(st.integers(5, 20))), data.draw(valid_tiles(model)))
    whole = mirror(normalised(values, Normalisation("volume", (99.0,), (50.0,))), plan.region.grow(model.context))
    truth = predictor.predict(whole[None])[0]
    logits = stitched(ArrayVolume(values), predictor, plan, Normalisation("volume", (99.0,), (50.0,)))
    np.testing.assert_allclose(logits, truth, rtol=1e-5, atol=1e-5)


@given(st.data(), shapes(20), model_specs(depths=st.just(0)), st.booleans(), st.sampled_from(["volume", "slice"]))
@settings(max_examples=40)
def test_a_predictor_that_makes_the_bytes_itself(
    data: st.DataObject, shape: Triple, model: ModelSpec, probabilities: bool, scope: Scope
) -> None:
    """It gets stored tiles in batches. The output is that of a predictor which returns logits."""
    values, rows = noise(shape), shape[0] if scope == "slice" else 1
    table = Normalisation(scope, tuple(90.0 + z for z in range(rows)), tuple(50.0 + z for z in range(rows)))
    tile, batch = data.draw(valid_tiles(model)), data.draw(st.integers(1, 3))
    plan = plan_by_hand(model, shape, data.draw(triples(st.integers(5, 20))), tile, batch=batch)
    outputs = []
    for predictor in (LocalMean(model), MeanClassifier(model)):
        labels = MemoryLabels(plan, probabilities)
        settings = {"normalisation": table, "probabilities": probabilities, "labels": labels}
        context = context_of(ArrayVolume(values), predictor, plan, **settings)  # type: ignore[arg-type]
        assert all(segment_block(context, block).cause is None for block in plan)
        outputs.append(labels)
    np.testing.assert_array_equal(outputs[0].labels, outputs[1].labels)
    if probabilities:
        np.testing.assert_array_equal(outputs[0].probabilities, outputs[1].probabilities)


def test_the_turn_ends_where_such_a_predictor_or_what_is_made_of_it_fails() -> None:
    """This also holds in the middle of a block; otherwise the next block would wait for ever."""
    plan = plan_by_hand(PLAIN, (1, 16, 16), (1, 16, 16), PLAIN.tile_for((1, 8, 8)))
    for fails in (Canvas.paste, MeanClassifier.predict):
        context = context_of(ArrayVolume(noise((1, 16, 16))), MeanClassifier(PLAIN), plan)
        with pytest.MonkeyPatch.context() as patch:
            owner = Canvas if fails is Canvas.paste else MeanClassifier
            patch.setattr(owner, fails.__name__, lambda *_: 1 / 0)
            assert "ZeroDivisionError" in str(segment_block(context, plan.block(0)).cause)
        assert segment_block(context, plan.block(0)).cause is None


def test_what_such_a_predictor_cannot_label_fails_the_block() -> None:
    values = np.zeros((1, 16, 16), np.float32)
    plan = plan_by_hand(PLAIN, (1, 16, 16), (1, 16, 16), PLAIN.tile_for((1, 8, 8)))
    values[0, 3, 3] = np.float32(3e38)
    table = Normalisation("volume", (0.0,), (1e-30,))
    with np.errstate(over="ignore", invalid="ignore"):
        outcome = segment_block(
            context_of(ArrayVolume(values), MeanClassifier(PLAIN), plan, normalisation=table), plan.block(0)
        )
    assert outcome.cause is not None
    assert "the network predicts NaN or infinity in 0:1,0:8,0:8" in outcome.cause


# -- what would go wrong --------------------------------------------------------------------------------------------


def late(off: Triple) -> Callable[..., Iterator[Tile]]:
    """Return a function that makes tiles whose outputs start `off` voxels before the lattice, each longer by a cell."""

    def tiles(box: Box, tile: Triple, model: ModelSpec) -> Iterator[Tile]:
        kept = triple(step - cell for step, cell in zip(model.step(tile), model.lattice, strict=True))
        back = triple(-o for o in off)
        for part in tiles_of(box, model.tile_for(kept), model):
            source = Box.of_shape(tile).shift(part.source.start).shift(back)
            yield Tile(source, part.target, source.grow(triple(-c for c in model.context)))

    return tiles


@pytest.mark.parametrize("model", [PLANAR, SOLID, ANISOTROPIC])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tiles_off_the_lattice_are_wrong(model: ModelSpec, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift by a whole cell is still right, so only the lattice matters, and this test would notice a tile that leaves it."""
    shape: Triple = (6, 30, 30)
    values, network = noise(shape), random_network(model)
    table = Normalisation("volume", (120.0,), (70.0,))
    truth = one_pass(network, normalised(values, table))
    plan = plan_by_hand(model, shape, (4, 16, 16), model.tile_for(triple(3 * cell for cell in model.lattice)))
    for by in range(model.lattice[axis] + 1):
        off = triple(by if i == axis else 0 for i in range(3))
        shifted = late(off)
        monkeypatch.setattr(emseg_core.grid.plan, "tiles_of", shifted)
        monkeypatch.setattr(
            emseg_core.grid.plan, "hull_of", lambda *case, made=shifted: hull([part.source for part in made(*case)])
        )
        logits = stitched(ArrayVolume(values), torch_predictor(network), plan, table)
        difference = np.abs(logits - truth).max()
        if by % model.lattice[axis]:
            assert difference > 1e-3, f"{by} of {model.lattice[axis]} voxels off"
        else:
            assert difference < EXACT


def test_normalising_tile_by_tile_would_be_wrong() -> None:
    """Statistics of another position change the result. The right ones are those of the volume's slices, mirrored or not."""
    values, network = noise((5, 30, 30)), random_network(PLANAR)
    rising = Normalisation("slice", tuple(range(100, 105)), (60.0,) * 5)
    plan = plan_by_hand(PLANAR, (5, 30, 30), (2, 16, 16), PLANAR.tile_for((1, 8, 8)), Box((2, 0, 0), (5, 30, 30)))
    predictor = torch_predictor(network)
    right = stitched(ArrayVolume(values), predictor, plan, rising)
    np.testing.assert_allclose(right, one_pass(network, normalised(values, rising))[:, 2:], rtol=EXACT, atol=EXACT)
    falling = Normalisation("slice", rising.mean[::-1], rising.deviation)
    assert np.abs(stitched(ArrayVolume(values), predictor, plan, falling) - right).max() > 1e-3


# -- the last bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [PLANAR, SOLID])
def test_a_region_has_the_bytes_of_the_whole(model: ModelSpec) -> None:
    """In float32, the tiles of a region lie elsewhere than those of the whole, but have the same size."""
    shape: Triple = (10, 120, 130)
    values = noise(shape)
    table = Normalisation("volume", (120.0,), (70.0,))
    torch = pytest.importorskip("torch")
    predictor = torch_predictor(random_network(model, dtype=torch.float32))
    volume = ArrayVolume(values)
    whole = stitched(volume, predictor, plan_volume(volume.spec, model), table).astype(np.float32)
    for region in (Box((3, 41, 57), (8, 102, 119)), Box((0, 60, 0), (10, 61, 130))):
        part = stitched(volume, predictor, plan_volume(volume.spec, model, region), table).astype(np.float32)
        assert part.tobytes() == whole[(slice(None), *region.slices())].tobytes()


# -- too little memory ----------------------------------------------------------------------------------------------

MEAN = ModelSpec.unet(width=1, depth=0, kernel=(3, 3, 3))
SMALL: Triple = MEAN.tile_for((4, 16, 16))


def eight_tiles(predictor: LocalMean) -> NDArray[np.float32]:
    """Return logits of one block of eight tiles, given to the predictor in batches of up to eight."""
    shape: Triple = (8, 32, 32)
    plan = plan_by_hand(MEAN, shape, shape, SMALL, batch=8)
    volume = ArrayVolume(noise(shape))
    seen = read_seen(volume, Normalisation("volume", (120.0,), (70.0,)), plan.read_box(plan.block(0)))
    whole: Canvas[np.float32] = Canvas(plan.region, np.float32, 2)
    for target, logits in predict_tiles(predictor, seen, plan.tiles(plan.block(0)), plan.batch):
        whole.paste(target, logits)
    return whole.finish()


@pytest.mark.parametrize(
    ("room", "refused", "computed"),
    [(8, [], [8]), (4, [8], [4, 4]), (3, [8, 4, 4], [2] * 4), (1, [8, 4, 2, 2, 4, 2, 2], [1] * 8)],
)
def test_a_batch_is_halved_when_memory_is_short(room: int, refused: list[int], computed: list[int]) -> None:
    """The bytes are the same as with enough memory."""
    predictor = SmallPredictor(MEAN, room * int(np.prod(SMALL)))
    assert eight_tiles(predictor).tobytes() == eight_tiles(LocalMean(MEAN)).tobytes()
    assert predictor.refused == refused
    assert [count for count, *shape in predictor.shapes if triple(shape) == SMALL] == computed


def test_a_batch_is_not_halved_if_that_would_change_the_bytes() -> None:
    predictor = SmallPredictor(MEAN, 4 * int(np.prod(SMALL)), swayed=True)
    message = r"too little memory for a batch of 8 tiles \(\d+ voxels\): use fewer workers .* smaller --tile"
    with pytest.raises(BlockError, match=message) as caught:
        eight_tiles(predictor)
    assert "\n" not in str(caught.value)
    assert caught.value.fault == "block"
    assert predictor.refused == [8]
    assert SMALL not in [shape[1:] for shape in predictor.shapes], "a tile of the block was predicted in another batch"


def test_a_single_tile_cannot_be_halved() -> None:
    predictor = SmallPredictor(MEAN, int(np.prod(SMALL)) - 1)
    with pytest.raises(BlockError, match="too little memory for a batch of 1 tile "):
        eight_tiles(predictor)
    assert predictor.refused == [8, 4, 2, 1]
