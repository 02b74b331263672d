"""The sd-turbo model on a randomly initialised miniature of the same classes: the user's folder, loading, training, checkpoint, export."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

WHY = "the sd-turbo model's packages are not there: pip install -e models[sd-turbo]"
diffusers = pytest.importorskip("diffusers", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
peft = pytest.importorskip("peft", reason=WHY)

from slicefixer import export as exporting  # noqa: E402
from slicefixer.__main__ import arguments, run  # noqa: E402
from slicefixer.checkpoint import load, model_of  # noqa: E402
from slicefixer.compact import PROJECTION  # noqa: E402
from slicefixer.data import DataError  # noqa: E402
from slicefixer.model import Scan  # noqa: E402
from slicefixer.rad_dino import prompt  # noqa: E402
from slicefixer.sd_turbo import SdTurbo, SdTurboShape, signal_power, skip_channels  # noqa: E402
from slicefixer.sd_turbo_losses import Discriminator, Losses, Lpips  # noqa: E402
from slicefixer.sd_turbo_train import SdTurboOptions, train  # noqa: E402
from slicefixer.sd_turbo_weights import Weights  # noqa: E402

SHAPE = SdTurboShape(heads=2)
WIDTH, SIDE = 32, 32


def unet(**changes):
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": WIDTH, "norm_num_groups": 4, "attention_head_dim": (2, 4)}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return diffusers.UNet2DConditionModel(**(sizes | blocks | {"use_linear_projection": True, "sample_size": 8} | changes))


def vae(**changes):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (4, 8, 16, 16)}
    return diffusers.AutoencoderKL(**(blocks | {"layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4} | changes))


def write_tokenizer(folder: Path):
    """Every byte as a word of its own, as CLIP's begins; no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(printable))]
    letters = [chr(n) for n in (*printable, *others)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder as the user gives it, of a few hundred kilobytes."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("weights")
    unet().save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    count = write_tokenizer(folder / "tokenizer")
    text = {"vocab_size": count, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 48}
    text |= {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"beta_schedule": "scaled_linear", "prediction_type": "epsilon"}))
    views = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**views)).save_pretrained(folder / "rad-dino")
    (folder / "rad-dino/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    picture = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    clip = transformers.CLIPConfig(text_config=text, vision_config=picture, projection_dim=16)
    transformers.CLIPModel(clip).save_pretrained(folder / "clip")
    write_tokenizer(folder / "clip")
    (folder / "lpips").mkdir()
    vgg, linear, channels = {}, {}, 3
    for place in Lpips.CONVOLUTIONS:
        vgg |= {f"features.{place}.weight": 0.3 * torch.randn(6, channels, 3, 3), f"features.{place}.bias": torch.zeros(6)}
        channels = 6
    linear = {f"lin{n}.model.1.weight": torch.rand(1, 6, 1, 1) for n in range(5)}
    torch.save(vgg, folder / "lpips/vgg16.pth"), torch.save(linear, folder / "lpips/vgg.pth")
    return folder


@pytest.fixture
def pairs(tmp_path):
    """A made-up curation of two subjects."""
    random, folder = np.random.default_rng(3), tmp_path / "pairs"
    folder.mkdir()
    (folder / "curation.json").write_text(json.dumps({"options": {"seed": 7}}))
    for split, subject in (("train", "chest_a"), ("validation", "leg_b")):
        place = folder / split / subject
        place.mkdir(parents=True)
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, SIDE),) * 3, indexing="ij")
        reference = np.where(z**2 + y**2 + x**2 < 0.8, 40 + 200 * x + 100 * y + 50 * z, -1000).astype(np.int16)
        save_file({"reference_hu": reference}, place / "reference.safetensors")
        for number, method in enumerate(("gaussians", "field")):
            arrays = {
                "degraded_hu": (reference + random.normal(100, 30, reference.shape)).astype(np.int16),
                "unexplained_hu": np.zeros_like(reference),
                "projections": random.random((2, 20, 40), np.float32),
                "inside": np.ones((SIDE, SIDE), np.uint8),
                "inside_z": np.stack([np.full((SIDE, SIDE), 2, np.int16), np.full((SIDE, SIDE), 30, np.int16)]),
            }
            facts = {"subject": subject, "anatomy": subject.split("_")[0], "method": method, "views": "24"}
            save_file(arrays, place / f"{number:03}.safetensors", metadata=facts)
    return folder


def disturbed(folder: Path, shape: SdTurboShape = SHAPE) -> SdTurbo:
    """A model whose trained parts are no longer what they began as."""
    model = SdTurbo.load(folder, shape)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.trained().values():
            value.add_(0.1 * torch.randn_like(value))
    return model


def inputs(batch: int = 2, rows: int = 32, columns: int = 48):
    random = torch.Generator().manual_seed(2)
    slices = 2 * torch.rand(batch, 1, rows, columns, generator=random) - 1
    scan = Scan(torch.rand(1, 2, PROJECTION, PROJECTION, generator=random) * 4, torch.tensor([3]))
    return slices, scan, torch.arange(batch) % 3, torch.linspace(0.2, 0.8, batch)


def test_sizes_are_those_that_are_published():
    # On the meta device nothing is allocated.
    with torch.device("meta"):
        large_unet = diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        large_vae = vae(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
        views = transformers.Dinov2Model(transformers.Dinov2Config(image_size=518))
        views.width = views.config.hidden_size
        count = lambda module: sum(p.numel() for p in module.parameters()) / 1e6  # noqa: E731
        assert [round(count(m), 1) for m in (large_unet, large_vae.encoder, large_vae.decoder, views)] == [865.9, 34.2, 49.5, 86.6]
        model = SdTurbo(large_unet, large_vae, views, torch.zeros(8, 77, 1024), 0.755)
    assert sum(skip.weight.numel() for skip in model.skips) == 491_520
    # LoRA, skips, the conditioning adapter (about 14.5 M as published), and ours of plane and height.
    trained = sum(value.numel() for value in model.trained().values()) / 1e6
    assert 14.0 < trained < 15.0, trained
    assert model.multiple == 32


def test_the_step_and_the_skips_are_the_papers():
    assert skip_channels((128, 256, 512, 512)) == [(512, 512), (256, 512), (128, 512), (128, 256)]
    # Published figures of the schedule.
    assert signal_power({}, 999) == pytest.approx(0.00466, abs=5e-6)
    assert signal_power({}, 199) == pytest.approx(0.755, abs=5e-4)
    # Against diffusers' own.
    schedule = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert signal_power({}, 199) == pytest.approx(schedule.alphas_cumprod[199].item(), rel=1e-5)
    with pytest.raises(DataError, match="prediction_type = v_prediction"):
        signal_power({"prediction_type": "v_prediction"}, 199)


def test_untrained_it_is_what_the_pipeline_of_its_parts_gives(weights):
    model = SdTurbo.load(weights, SHAPE)
    slices, scan, plane, height = inputs()
    slices[0, 0, 3, 4] = 1.7
    with torch.no_grad():
        found = model(slices, scan, plane, height)
        # The same by diffusers' own calls, on weights that were never touched by LoRA.
        plain = diffusers.AutoencoderKL.from_pretrained(weights / "vae").eval()
        fresh = diffusers.UNet2DConditionModel.from_pretrained(weights / "unet").eval()
        grey = torch.nn.functional.interpolate(slices.clamp(-1, 1), scale_factor=2, mode="bilinear").repeat(1, 3, 1, 1)
        z = plain.encode(grey).latent_dist.mode() * plain.config.scaling_factor
        eps = fresh(z, 199, model.condition(scan).expand(2, -1, -1)).sample
        kept = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod[199]
        x0 = (z - (1 - kept).sqrt() * eps) / kept.sqrt()
        expected = torch.nn.functional.avg_pool2d(plain.decode(x0 / plain.config.scaling_factor).sample.mean(1, keepdim=True), 2)
    expected[0, 0, 3, 4] += 0.7
    # float32 through some fifty layers, in another order.
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_repair_is_deterministic_and_does_not_mix_the_slices_of_a_batch(weights):
    model = disturbed(weights)
    slices, scan, plane, height = inputs(batch=3)
    with torch.no_grad():
        context = model.condition(scan)
        together = model.repair(slices, context, plane, height)
        assert torch.equal(together, model.repair(slices, context, plane, height))
        alone = model.repair(slices[1:2], context, plane[1:2], height[1:2])
    torch.testing.assert_close(alone, together[1:2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("what", ["projections", "anatomy", "plane", "height", "skips", "unet", "vae", "adapter"])
def test_everything_that_it_is_told_or_learns_has_an_effect(weights, what):
    model = disturbed(weights)
    slices, scan, plane, height = inputs()
    with torch.no_grad():
        before = model(slices, scan, plane, height)
        if what == "projections":
            scan = Scan(scan.projections.flip(1).square(), scan.anatomy)
        elif what == "anatomy":
            scan = Scan(scan.projections, scan.anatomy + 1)
        elif what == "plane":
            plane = (plane + 1) % 3
        elif what == "height":
            height = 1 - height
        else:
            for name, value in model.trained().items():
                if name.startswith(what + "."):
                    value.mul_(-0.5)
        assert (model(slices, scan, plane, height) - before).abs().max() > 1e-6


@pytest.mark.parametrize("enlarge", [0, 3])
def test_an_enlargement_that_does_not_divide_is_refused(weights, enlarge):
    with pytest.raises(DataError, match=f"enlarge = {enlarge}: must divide 16"):
        SdTurbo.load(weights, SdTurboShape(heads=2, enlarge=enlarge))


def test_prompts_name_the_anatomy():
    assert prompt("chest") == "remove artifacts for this chest CT slice"
    assert prompt("other") == "remove artifacts for this CT slice"


def test_training_goes_on_as_if_it_had_not_been_interrupted(weights, pairs, tmp_path):
    options = SdTurboOptions(steps=4, batch=2, rate=1e-3, validate_every=0)
    lines = []
    whole = load(train(pairs, tmp_path / "whole", weights, SHAPE, options, "cpu", say=lines.append))
    assert any("losses: l2, lpips, clip, gan, ssim" in line for line in lines)
    # The clock ends a training at once.
    train(pairs, tmp_path / "parts", weights, SHAPE, options, "cpu", minutes=1e-9)
    half = SdTurboOptions(**(vars(options) | {"every_s": 0.0}))
    train(pairs, tmp_path / "parts", weights, SHAPE, half, "cpu", minutes=1e-9)
    resumed = load(train(pairs, tmp_path / "parts", weights, SHAPE, options, "cpu"))
    assert whole.step == resumed.step == 4
    for name, value in whole.averaged.items():
        assert torch.equal(value, resumed.averaged[name]), name
    # It learnt: LoRA's second factors, the skips and the adapters of plane and height began at zero.
    for part in ("unet.", "vae.encoder", "vae.decoder", "skips.", "height."):
        began_at_zero = [v for name, v in whole.averaged.items() if name.startswith(part) and ("lora_B" in name or part in ("skips.", "height."))]
        assert began_at_zero and all(v.abs().max() > 0 for v in began_at_zero), part
    # What is the user's is not in the checkpoint: it is small, and other weights are refused.
    assert {name.split(".")[0] for name in whole.averaged} == {"unet", "vae", "skips", "adapter", "plane", "height"}
    assert all("lora" in name for name in whole.averaged if name.startswith(("unet", "vae")))
    with pytest.raises(DataError, match="other rate"):
        train(pairs, tmp_path / "whole", weights, SHAPE, SdTurboOptions(**(vars(options) | {"rate": 1e-4})), "cpu")


def test_a_training_interrupted_in_its_middle(weights, pairs, tmp_path, monkeypatch):
    """Two steps, a stop, two more: the same bits as four."""
    from slicefixer import sd_turbo_train

    options = SdTurboOptions(steps=4, batch=1, rate=1e-3, validate_every=0, losses="l2,gan")
    whole = load(train(pairs, tmp_path / "whole", weights, SHAPE, options, "cpu"))
    draws = sd_turbo_train.data.Sampler.draw

    def stop_after_two(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return draws(self, step)

    monkeypatch.setattr(sd_turbo_train.data.Sampler, "draw", stop_after_two)
    saving = SdTurboOptions(**(vars(options) | {"every_s": 0.0}))
    with pytest.raises(KeyboardInterrupt):
        train(pairs, tmp_path / "parts", weights, SHAPE, saving, "cpu")
    assert load(tmp_path / "parts/checkpoint.pt").step == 2
    monkeypatch.undo()
    resumed = load(train(pairs, tmp_path / "parts", weights, SHAPE, options, "cpu"))
    assert all(torch.equal(value, resumed.averaged[name]) for name, value in whole.averaged.items())
    assert all(torch.equal(value, resumed.weights["discriminator"][name]) for name, value in whole.weights["discriminator"].items())


def test_training_brings_the_loss_down(weights, pairs, tmp_path):
    """Forty steps on one kind of offset: what is left of it after them."""
    options = SdTurboOptions(steps=40, batch=2, rate=1e-2, validate_every=0, losses="l2,ssim")
    checkpoint = load(train(pairs, tmp_path / "run", weights, SHAPE, options, "cpu"))
    from slicefixer import data

    batch = data.Sampler(data.shards(pairs, "train"), SdTurbo.load(weights, SHAPE), 4, seed=9).draw(0)
    losses = Losses(Weights(weights), ("l2", "ssim"))

    def loss(model: SdTurbo) -> float:
        with torch.no_grad():
            repaired = model(batch.slices, batch.scan, batch.plane, batch.height)
            return losses(repaired, batch.target, batch.inside, batch.scan.anatomy)[0].item()

    before, after = loss(SdTurbo.load(weights, SHAPE)), loss(model_of(checkpoint, weights))
    assert after < 0.7 * before, (before, after)


def test_the_checkpoint_gives_the_model_again_adapter_and_all(weights, pairs, tmp_path):
    options = SdTurboOptions(steps=2, batch=1, rate=1e-2, validate_every=0, losses="l2")
    checkpoint = load(train(pairs, tmp_path / "run", weights, SHAPE, options, "cpu"))
    slices, scan, plane, height = inputs()
    with torch.no_grad():
        first, second = (model_of(checkpoint, weights)(slices, scan, plane, height) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(DataError, match="--weights"):
        model_of(checkpoint)
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    path = other / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).add_(1.0)
    save_torch(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match="unet: other weights"):
        model_of(checkpoint, other)
    shutil.copy(weights / "unet/diffusion_pytorch_model.safetensors", path)
    assert torch.equal(model_of(checkpoint, other).trained()["plane"], checkpoint.averaged["plane"])
    (other / "rad-dino/preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.25] * 3}))
    with pytest.raises(DataError, match="rad-dino: other weights or settings"):
        model_of(checkpoint, other)


def test_the_graphs_give_what_the_model_gives(weights):
    model = disturbed(weights)
    slices, scan, plane, height = inputs()
    with torch.no_grad():
        trained = model(slices, scan, plane, height)
        merged = model.merged()
        # LoRA's product is added to the weights: another order of sums.
        torch.testing.assert_close(merged(slices, scan, plane, height), trained, atol=1e-4, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    files = exporting.graphs(merged)
    for proto in files.values():
        assert {opset.version for opset in proto.opset_import if opset.domain == ""} == {18}
        assert all(opset.domain == "" for opset in proto.opset_import)
        text = proto.SerializeToString()
        assert not any(word in text for word in (b".py", b"site-packages", str(weights).encode()))
    whole = {role: onnxruntime.InferenceSession(proto.SerializeToString()) for role, proto in files.items()}
    for proto in files.values():
        exporting.halve(proto)
    halved = {role: onnxruntime.InferenceSession(proto.SerializeToString()) for role, proto in files.items()}
    assert [value.name for value in whole["repair"].get_inputs()] == ["slices", "context", "plane", "height"]
    # Other sizes than those it was exported with.
    for batch, rows, columns in ((1, merged.multiple, merged.multiple), (3, 48, 32)):
        slices, scan, plane, height = inputs(batch, rows, columns)
        with torch.no_grad():
            expected = merged(slices, scan, plane, height).numpy()
        # fp16 weights have 11 bits.
        for sessions, tolerance in ((whole, 1e-3), (halved, 2e-2)):
            told = sessions["condition"].run(None, {"projections": scan.projections.numpy(), "anatomy": scan.anatomy.numpy()})[0]
            given = {"slices": slices.numpy(), "context": told, "plane": plane.numpy(), "height": height.numpy()}
            repaired = sessions["repair"].run(None, given)[0]
            assert repaired.shape == expected.shape
            assert np.abs(repaired - expected).max() < tolerance


def test_from_the_command_line_to_graphs_and_manifest(weights, pairs, tmp_path, capsys, monkeypatch):
    def command(*words):
        run(arguments().parse_args([str(word) for word in words]))
        return capsys.readouterr().out

    where = (pairs, "-o", tmp_path / "run", "--weights", weights, "--device", "cpu")
    shown = command("train", *where, "--model", "sd-turbo", "--steps", 2, "--batch", 1, "--losses", "ssim,l2")
    assert "losses: l2, ssim" in shown and "checkpoint.pt" in shown
    checkpoint = tmp_path / "run/checkpoint.pt"
    rows = json.loads(command("validate", pairs, checkpoint, "--weights", weights, "--planes", "axial", "--device", "cpu", "--json"))
    assert len(rows) == 2 and all(np.isfinite(row["psnr_db"]).all() for row in rows)
    # As a model too large for one file is written: data outside on the way.
    monkeypatch.setattr(exporting, "MOST_VALUES_INSIDE", 1000)
    command("export", checkpoint, "-o", tmp_path / "out", "--weights", weights)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.toml", "slicefixer-sd-turbo-condition.onnx", "slicefixer-sd-turbo.onnx"]
    import tomllib

    manifest = tomllib.loads((tmp_path / "out/manifest.toml").read_text())
    assert (manifest["name"], manifest["opset"], manifest["neighbours"], manifest["multiple"]) == ("slicefixer-sd-turbo", 18, 0, 8)
    assert manifest["training"]["losses"] == "ssim,l2"
    shapes = {graph["role"]: {value["name"]: value["shape"] for value in graph["input"] + graph["output"]} for graph in manifest["graph"]}
    assert shapes["condition"] == {"projections": [1, 2, 128, 128], "anatomy": [1], "context": [1, 48, WIDTH]}
    assert shapes["repair"]["slices"] == ["batch", 1, "rows", "columns"] == shapes["repair"]["repaired"]
    for graph in manifest["graph"]:
        assert not any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in onnx.load(tmp_path / "out" / graph["file"]).graph.initializer)
        onnxruntime.InferenceSession(tmp_path / "out" / graph["file"])


def test_a_graph_that_no_single_file_holds_is_refused(monkeypatch):
    weight = onnx.numpy_helper.from_array(np.zeros(300, np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weight]))
    exporting.check_size(model, "repair.onnx")
    monkeypatch.setattr(exporting, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="repair.onnx would have 1200 bytes of weights, one file holds 1000"):
        exporting.check_size(model, "repair.onnx")


def test_packages_that_are_not_there_are_named(weights, monkeypatch):
    # None in the list of modules is what an import that fails looks like.
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DataError, match=r"needs diffusers: pip install -e models\[sd-turbo\]"):
        SdTurbo.load(weights, SHAPE)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "sd-turbo"], "needs --weights"),
        (["--model", "sd-turbo", "--weights", "w", "--ssim-weight", "1"], "--ssim-weight is no option of --model sd-turbo"),
        (["--model", "sd-turbo", "--weights", "w", "--shape", "small"], "--shape is no option"),
        (["--weights", "w"], "--weights is no option of --model compact"),
        (["--losses", "l2"], "--losses is no option of --model compact"),
        (["--model", "sd-turbo", "--weights", "w", "--losses", "l2,magic"], "--losses magic"),
    ],
)
def test_options_are_refused_where_they_mean_nothing(tmp_path, words, message):
    with pytest.raises(DataError, match=message):
        run(arguments().parse_args(["train", str(tmp_path), "-o", str(tmp_path / "out"), *words]))


@pytest.mark.parametrize(
    "gone, message",
    [
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors is missing"),
        ("vae/config.json", "vae/config.json is missing"),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors is missing"),
        ("tokenizer/merges.txt", "tokenizer/merges.txt is missing"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        ("rad-dino/model.safetensors", "rad-dino/model.safetensors is missing"),
    ],
)
def test_a_missing_file_is_named(weights, tmp_path, gone, message):
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    (folder / gone).unlink()
    with pytest.raises(DataError, match=message):
        SdTurbo.load(folder, SHAPE)


@pytest.mark.parametrize("part, stem", [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_damaged_weights_are_refused_and_never_filled_up_with_random_ones(weights, tmp_path, part, stem):
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    path = folder / part / f"{stem}.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    save_torch({name: value for name, value in tensors.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match="1 tensors are missing"):
        SdTurbo.load(folder, SHAPE)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        SdTurbo.load(folder, SHAPE)


@pytest.mark.parametrize(
    "loss, gone", [("lpips", "lpips/vgg16.pth"), ("lpips", "lpips/vgg.pth"), ("clip", "clip/model.safetensors"), ("gan", "clip/config.json")]
)
def test_a_loss_without_its_network_is_refused_by_the_name_of_the_file(weights, tmp_path, loss, gone):
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    (folder / gone).unlink()
    with pytest.raises(DataError, match=f"{gone} is missing: the .*--losses"):
        Losses(Weights(folder), ("l2", loss))
    Losses(Weights(folder), ("l2", "ssim"))


def test_losses_are_least_where_slices_agree_and_count_only_inside(weights):
    torch.manual_seed(4)
    losses = Losses(Weights(weights), ("l2", "lpips", "clip", "ssim"))
    target = (0.5 * torch.randn(2, 1, 32, 32)).clamp(-1, 1)
    inside, anatomy = torch.ones(2, 1, 32, 32), torch.tensor([3, 0])
    inside[..., :8] = 0
    repaired = target + 0.1 * torch.randn_like(target) * inside
    _, same = losses(target, target, inside, anatomy)
    _, parts = losses(repaired, target, inside, anatomy)
    for name in ("l2", "lpips", "ssim"):
        assert same[name] == pytest.approx(0.0, abs=1e-6) and parts[name] > 1e-4, name
    torch.testing.assert_close(parts["l2"], ((repaired - target) ** 2).sum() / inside.sum())
    # SSIM's windows reach 5 pixels out; the others see nothing of what is outside.
    far = repaired.clone()
    far[..., :2] = 3.0
    _, outside = losses(far, target, inside, anatomy)
    assert all(torch.equal(outside[name], parts[name]) for name in parts)
    total, _ = losses(repaired, target, inside, anatomy)
    expected = parts["l2"] + parts["lpips"] + 4 * parts["clip"] + 0.5 * parts["ssim"]
    torch.testing.assert_close(total, expected)


def test_the_discriminator_learns_to_tell_references_from_repairs():
    torch.manual_seed(6)
    heads = Discriminator(24)
    optimiser = torch.optim.Adam(heads.parameters(), 1e-2)
    # Along a direction: a shift of all channels is what the normalisation takes away.
    direction = torch.randn(24)
    draw = lambda shift: [torch.randn(16, 5, 24) + shift * direction for _ in range(3)]  # noqa: E731
    for _ in range(60):
        loss = torch.relu(1 - heads(draw(0.5))).mean() + torch.relu(1 + heads(draw(-0.5))).mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert heads(draw(0.5)).mean() > 0.3 > -0.3 > heads(draw(-0.5)).mean()
