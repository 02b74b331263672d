"""The compact model: what must hold of it trained or not."""

import numpy as np
import onnxruntime
import pytest
import torch

from slicefixer import export as exporting
from slicefixer.compact import PROJECTION, Compact, CompactShape, without_local_mean
from slicefixer.losses import repair_loss
from slicefixer.model import ANATOMIES, Scan, anatomy_index
from slicefixer.optimiser import Optimiser
from slicefixer.window import HuWindow

SMALL = CompactShape(vae=(8, 16), unet=(16, 32), attention=(False, True), context=32, tokens=2, embedding=32)


def disturbed(shape: CompactShape = SMALL) -> Compact:
    """A model none of whose layers is zero any more, as after training."""
    torch.manual_seed(1)
    model = Compact(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs(model: Compact, batch: int = 2, rows: int = 32, columns: int = 24):
    random = torch.Generator().manual_seed(2)
    slices = 2 * torch.rand(batch, model.channels, rows, columns, generator=random) - 1
    scan = Scan(torch.rand(1, 2, PROJECTION, PROJECTION, generator=random) * 4, torch.tensor([3]))
    return slices, scan, torch.arange(batch) % 3, torch.linspace(0.2, 0.8, batch)


def test_an_untrained_model_changes_nothing_not_even_outside_the_window():
    model = Compact(SMALL).eval()
    slices, scan, plane, height = inputs(model)
    middle = slices[:, model.neighbours : model.neighbours + 1]
    middle[0, 0, 3, 4] = 1.7
    assert torch.equal(model(slices, scan, plane, height), middle)


def test_a_repair_leaves_the_mean_about_each_pixel():
    taps = Compact(SMALL).taps
    random = torch.Generator().manual_seed(7)
    # The same everywhere, at the border too: nothing is left.
    flat = without_local_mean(torch.full((2, 1, 40, 24), 0.3), taps)
    assert flat.abs().max() < 1e-6
    # A long wave is all but gone, noise stays: its mean over some 2 pi 12^2 pixels is 3 % of it, more at the border.
    wave = torch.cos(torch.arange(256.0) * (2 * torch.pi / 256)).expand(1, 1, 256, 256)
    assert without_local_mean(wave, taps)[..., 64:-64, 64:-64].abs().max() < 0.1
    noise = torch.randn(1, 1, 256, 256, generator=random)
    torch.testing.assert_close(without_local_mean(noise, taps).std(), noise.std(), atol=0, rtol=0.01)


def test_repair_is_deterministic_and_does_not_mix_the_slices_of_a_batch():
    model = disturbed()
    slices, scan, plane, height = inputs(model, batch=3)
    with torch.no_grad():
        context = model.condition(scan)
        together = model.repair(slices, context, plane, height)
        alone = model.repair(slices[1:2], context, plane[1:2], height[1:2])
        assert torch.equal(together, model.repair(slices, context, plane, height))
    # Another batch size is another order of sums.
    torch.testing.assert_close(alone, together[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("what", ["projections", "anatomy", "plane", "height", "neighbours", "unexplained", "skips"])
def test_everything_that_the_model_is_told_has_an_effect(what):
    model = disturbed()
    slices, scan, plane, height = inputs(model)
    with torch.no_grad():
        before = model(slices, scan, plane, height)
        if what == "projections":
            scan = Scan(scan.projections.flip(1), scan.anatomy)
        elif what == "anatomy":
            scan = Scan(scan.projections, scan.anatomy + 1)
        elif what == "plane":
            plane = (plane + 1) % 3
        elif what == "height":
            height = 1 - height
        elif what == "neighbours":
            slices[:, 0] = 0
        elif what == "unexplained":
            slices[:, -1] = 0
        else:
            for skip in model.decoder.skips:
                skip.weight.zero_()
        assert (model(slices, scan, plane, height) - before).abs().max() > 1e-5


def test_the_graphs_give_what_the_model_gives(tmp_path):
    model = disturbed()
    files = exporting.graphs(model)
    whole = {role: onnxruntime.InferenceSession(proto.SerializeToString()) for role, proto in files.items()}
    for proto in files.values():
        exporting.halve(proto)
    halved = {role: onnxruntime.InferenceSession(proto.SerializeToString()) for role, proto in files.items()}
    # Other sizes than those it was exported with.
    for batch, rows, columns in ((1, 16, 16), (5, 48, 32)):
        slices, scan, plane, height = inputs(model, batch, rows, columns)
        with torch.no_grad():
            context = model.condition(scan)
            expected = model.repair(slices, context, plane, height).numpy()
        # fp32: another order of sums; fp16 weights: half precision has 11 bits, and a latent is amplified by the diffusion step.
        for sessions, tolerance in ((whole, 1e-4), (halved, 1e-2)):
            told = sessions["condition"].run(None, {"projections": scan.projections.numpy(), "anatomy": scan.anatomy.numpy()})[0]
            given = {"slices": slices.numpy(), "context": told, "plane": plane.numpy(), "height": height.numpy()}
            repaired = sessions["repair"].run(None, given)[0]
            assert repaired.shape == expected.shape
            assert np.abs(repaired - expected).max() < tolerance * np.abs(expected).max()


def test_no_graph_tells_where_it_was_made():
    import os

    for proto in exporting.graphs(disturbed()).values():
        text = proto.SerializeToString()
        for word in (b".py", b"slicefixer/", os.getcwd().encode(), os.path.expanduser("~/").encode()):
            assert word not in text, word
        assert {opset.version for opset in proto.opset_import if opset.domain == ""} == {18}
        assert all(opset.domain == "" for opset in proto.opset_import)


def test_a_change_where_the_scan_says_nothing_is_an_error_like_any_other():
    random = torch.Generator().manual_seed(3)
    target = 0.2 * torch.randn(1, 1, 32, 32, generator=random)
    given, inside = target + 0.02 * torch.randn(target.shape, generator=random), torch.zeros_like(target)
    inside[..., :16] = 1.0
    repaired = torch.where(inside > 0, target, given)
    best, gain_db, _ = repair_loss(repaired, given, target, inside, 0.0)
    assert gain_db > 15
    # As far from the truth outside as before: no change, no error, whatever the truth is there (similarity aside, whose windows look across).
    assert repair_loss(repaired, given, target + 5 * (1 - inside), inside, 0.0)[0] == best
    # As many pixels on either side, so the same change is the same error.
    change = 0.3 * torch.ones_like(target)
    outside, within = (repair_loss(repaired + change * side, given, target, inside, 0.0)[0].item() for side in (1 - inside, inside))
    assert outside > best.item() + 1.0 and abs(outside - within) < 1e-5


def test_a_step_moves_every_parameter_by_about_the_rate():
    model = Compact(SMALL).to(memory_format=torch.channels_last)
    rate, random = 1e-3, torch.Generator().manual_seed(3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        # Of very different sizes, which neither of the two rules lets through.
        parameter.grad = 10.0 ** torch.randint(-9, 3, (1,), generator=random).item() * torch.randn(parameter.shape, generator=random)
    Optimiser(model, rate).step()
    for name, parameter in model.named_parameters():
        # Decay is taken out: it is 1 % of the rate of each value.
        moved = (parameter - before[name] * (1 - 1e-2 * rate)).square().mean().sqrt().item() / rate
        # AdamW's first step is the rate; Muon's a fifth of AdamW's usual step, its singular values within a third of one.
        assert 0.13 < moved < 0.27 or moved == pytest.approx(1.0, rel=1e-3), (name, moved)


def test_a_model_whose_weights_are_no_matrices_in_memory_is_refused():
    with pytest.raises(ValueError, match="channels_last"):
        Optimiser(Compact(SMALL), 1e-3)


def test_the_window_is_linear_and_has_an_inverse():
    window = HuWindow()
    hu = torch.tensor([-3000.0, -1024.0, 0.0, 2048.0, 30000.0])
    unit = window.to_unit(hu)
    assert unit[1] == -1 and unit[3] == 1
    # float32 at 30000 HU.
    torch.testing.assert_close(window.to_hu(unit), hu, atol=0.01, rtol=0)


def test_anatomies_have_fixed_numbers():
    assert ANATOMIES[anatomy_index("chest")] == ANATOMIES[anatomy_index("lung")] == "chest"
    assert anatomy_index("hedgehog") == 0
