"""Reading of shards and drawing of batches, on a made-up curation of two subjects."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from slicefixer import data
from slicefixer.checkpoint import load, model_of
from slicefixer.compact import PROJECTION, Compact, CompactShape
from slicefixer.train import Options, train
from slicefixer.validate import repair_volume, validate
from slicefixer.window import HuWindow

SHAPE = (32, 48, 64)
SMALL = CompactShape(vae=(8, 16), unet=(16, 32), attention=(False, True), context=32, tokens=2, embedding=32)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(3)
    (tmp_path / "curation.json").write_text(json.dumps({"options": {"seed": 7}}))
    for split, subject in (("train", "chest_a"), ("validation", "leg_b")):
        place = tmp_path / split / subject
        place.mkdir(parents=True)
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
        # Not the same under any turn or mirror.
        reference = np.where(z**2 + y**2 + x**2 < 0.8, 40 + 200 * x + 100 * y + 50 * z, -1000).astype(np.int16)
        save_file({"reference_hu": reference}, place / "reference.safetensors")
        for number, method in enumerate(("gaussians", "field", "fdk")):
            # Stripes of 140 HU: of no mean, which a repair would leave.
            stripes = 140 * np.cos(0.5 * np.pi * np.arange(SHAPE[2]) + 0.25 * np.pi)
            degraded = (reference + stripes + random.normal(0, 30, SHAPE)).astype(np.int16)
            projections = np.stack([np.tile(np.linspace(0, 1, 40, dtype=np.float32), (20, 1)), np.ones((20, 40), np.float32)])
            arrays = {
                "degraded_hu": degraded,
                "unexplained_hu": ((reference - degraded) // 2).astype(np.int16),
                "projections": projections,
                "inside": np.ones(SHAPE[1:], np.uint8),
                "inside_z": np.stack([np.full(SHAPE[1:], 2, np.int16), np.full(SHAPE[1:], 30, np.int16)]),
            }
            facts = {"subject": subject, "method": method, "views": "24", "photons": "100000", "anatomy": subject.split("_")[0]}
            save_file(arrays, place / f"{number:03}.safetensors", facts)
    return tmp_path


def test_shards_are_read_with_what_belongs_to_them(folder):
    training = data.shards(folder, "train")
    assert [shard.method for shard in training] == ["gaussians", "field", "fdk"]
    shard = training[0]
    assert shard.projections.shape == (2, PROJECTION, PROJECTION)
    assert shard.anatomy == data.anatomy_index("chest") != 0
    assert shard.inside[1].sum() == 0 and shard.inside[2].all() and not shard.inside[30].any()
    with pytest.raises(data.DataError, match="curation.json"):
        data.shards(folder / "train", "train")
    save_file({"degraded_hu": np.zeros((2, 2, 2), np.int16)}, folder / "train" / "chest_a" / "000.safetensors", {})
    with pytest.raises(data.DataError, match="000.*shape"):
        data.shards(folder, "train")


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_a_plane_is_taken_apart_and_put_together_again(folder, plane):
    shard = data.shards(folder, "train")[0]
    slices = data.along(shard.reference, plane)
    # [z][y][x]: axial slices have rows y and columns x, the others have rows z.
    assert slices.shape == ((32, 48, 64), (48, 32, 64), (64, 32, 48))[plane]
    first = data.stack_of(shard.reference, plane, np.array([0]), 1)[0]
    assert first.shape[0] == 3 and (first[0] == first[1]).all() and (first[1] == slices[0]).all() and (first[2] == slices[1]).all()

    class Unchanged:
        neighbours, unexplained, window = 1, False, HuWindow()

        def condition(self, scan):
            return scan

        def repair(self, slices, context, plane, height):
            return slices[:, 1:2]

    # A model that does nothing gives the volume back, whichever plane: axes and window have their inverses (float32 at 1000 HU).
    np.testing.assert_allclose(repair_volume(Unchanged(), shard, "cpu", (plane,)), shard.degraded, atol=0.01)


def test_a_validation_says_what_a_model_does_where_the_scan_says_nothing(folder):
    class Sink:
        neighbours, unexplained, window = 1, False, HuWindow()

        def condition(self, scan):
            return scan

        def repair(self, slices, context, plane, height):
            # The first two slices of 32 are not measured.
            return slices[:, 1:2] + 2.0 * (height < 2 / 32)[:, None, None, None]

    table = validate(Sink(), data.shards(folder, "train")[:1])
    row = table.rows[0]
    assert abs(row.changed_outside_hu - (Sink.window.high - Sink.window.low)) < 0.1 and abs(table.mean_gain_db()) < 1e-3
    assert f"changed by {Sink.window.high - Sink.window.low:.0f} HU at most" in table.markdown()


def test_batches_depend_on_seed_and_step_alone(folder):
    training = data.shards(folder, "train")
    # Slices of different planes differ in size here, and cannot be one batch.
    for shard in training:
        volumes = (shard.degraded, shard.unexplained, shard.reference, shard.inside)
        shard.degraded, shard.unexplained, shard.reference, shard.inside = (v[:32, :32, :32] for v in volumes)
    model = Compact(CompactShape(planes=3, neighbours=1))
    sampler = data.Sampler(training, model, 6, seed=5)
    sampler.draw(3)
    again = data.Sampler(training, model, 6, seed=5)
    a, b = sampler.draw(4), again.draw(4)
    for one, two in ((a.slices, b.slices), (a.target, b.target), (a.plane, b.plane), (a.height, b.height), (a.scan.projections, b.scan.projections)):
        assert torch.equal(one, two)
    assert not torch.equal(a.slices, sampler.draw(5).slices)
    # Three slices, and behind them what is unexplained there: half of what they lack, mirrored with them.
    assert a.slices.shape == (6, 6, 32, 32) and len(set(a.plane.tolist())) > 1
    torch.testing.assert_close(a.slices[:, 4:5], (a.target - a.slices[:, 1:2]) / 2, atol=1e-3, rtol=0)


def test_mirroring_an_axis_mirrors_slices_height_and_the_view_across_it():
    stack = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    views = torch.arange(2 * 2 * 3.0).reshape(2, 2, 3)
    # z in a coronal stack [y z x]: its rows; both views turn their rows, the height along y stays.
    slices, _, _, projections, height = data.mirrored(0, 1, stack, stack, stack, views, 0.2)
    assert (slices == stack[:, ::-1]).all() and height == 0.2 and torch.equal(projections, views.flip(1))
    # y is that stack's normal: the height turns round, and the view along x (the first) is mirrored.
    slices, _, _, projections, height = data.mirrored(1, 1, stack, stack, stack, views, 0.2)
    assert (slices == stack[::-1]).all() and height == pytest.approx(0.8)
    assert torch.equal(projections[0], views[0].flip(1)) and torch.equal(projections[1], views[1])


def test_slices_beside_the_ends_of_a_body_are_drawn_too(folder):
    # The ball reaches from slice 2 to 29; its first neighbours are air that a model has to leave alone.
    training = [shard for shard in data.shards(folder, "train") if shard.method == "field"]
    sampler = data.Sampler(training, Compact(CompactShape(neighbours=1)), 8, seed=1)
    heights = torch.cat([sampler.draw(step).height for step in range(60)])
    drawn = [int((heights.sub((index + 0.5) / SHAPE[0]).abs() < 1e-4).sum()) for index in range(SHAPE[0])]
    # Of 480 draws each slice in view has 16 or so; four standard deviations less are none.
    assert min(drawn[1:31]) >= 1 and drawn[1] + drawn[30] > 8, drawn


def test_a_body_on_its_side_has_the_other_view_from_the_front():
    # Parallel rays through a volume [z][y][x]: along x with columns along y, a quarter turn on along y with columns against x.
    def views(volume):
        return torch.from_numpy(np.stack((volume.sum(2), volume.sum(1)[:, ::-1])))

    volume = np.random.default_rng(4).random((5, 6, 6))
    turned, target, inside, projections = data.laid_on_its_side(volume[None], volume[2], volume[2] > 0.5, views(volume))
    assert (turned[0] == volume.swapaxes(1, 2)).all() and (target == volume[2].T).all() and (inside == (volume[2].T > 0.5)).all()
    torch.testing.assert_close(projections, views(volume.swapaxes(1, 2)))


def test_training_goes_on_where_it_stopped_learns_and_refuses_other_options(folder, tmp_path):
    for split in ("train", "validation"):
        for path in (folder / split).rglob("*.safetensors"):
            # Cubes, so that slices of all planes fit into one batch.
            cube(path)
    options = Options(steps=80, batch=4, rate=3e-3, average=10, validate_every=0)
    said = []
    whole = load(train(folder, tmp_path / "whole", SMALL, options, "cpu", say=said.append))
    # Interrupted at once, and then again after a second or so.
    for minutes in (0.0, 0.02):
        train(folder, tmp_path / "parts", SMALL, options, "cpu", minutes=minutes, say=said.append)
    parts = load(train(folder, tmp_path / "parts", SMALL, options, "cpu", say=said.append))
    assert whole.step == parts.step == 80
    for name, values in whole.averaged.items():
        assert torch.equal(values, parts.averaged[name]), name
    gain = validate(model_of(whole), data.shards(folder, "validation")).mean_gain_db()
    # Stripes of 100 HU (root mean square), and noise of 30: without the stripes it would be 10 dB more.
    assert gain > 3.0, gain
    with pytest.raises(data.DataError, match="options: rate"):
        train(folder, tmp_path / "whole", SMALL, Options(steps=80, batch=4, rate=1e-3, average=10), "cpu", say=said.append)


def test_a_training_may_begin_with_the_weights_of_another(folder, tmp_path):
    for path in (folder / "train").rglob("*.safetensors"):
        cube(path)
    options = Options(steps=3, batch=2, average=10, validate_every=0)
    first = train(folder, tmp_path / "first", SMALL, options, "cpu", say=[].append)
    # Nothing learnt yet: what is there is what it began with.
    second = load(train(folder, tmp_path / "second", SMALL, Options(steps=4, batch=2), "cpu", minutes=0.0, say=[].append, begin=first))
    assert (second.step, second.before) == (0, 3)
    for name, values in load(first).averaged.items():
        assert torch.equal(values, second.weights[name]) and torch.equal(values, second.averaged[name]), name
    # Its own checkpoint comes first when it goes on, and the steps before are counted once.
    on = load(train(folder, tmp_path / "second", SMALL, Options(steps=4, batch=2), "cpu", say=[].append, begin=first))
    assert (on.step, on.before) == (4, 3)
    other = CompactShape.from_dict(SMALL.as_dict() | {"skips": False})
    with pytest.raises(data.DataError, match="first/checkpoint.pt: was trained with other shape: skips"):
        train(folder, tmp_path / "third", other, options, "cpu", say=[].append, begin=first)


def cube(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        facts, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    for name, values in arrays.items():
        if name != "projections":
            arrays[name] = np.ascontiguousarray(values[tuple(slice(0, 32) if n > 2 else slice(None) for n in values.shape)])
    save_file(arrays, path, facts)
