"""Training of the compact model: on two cores in hours, on a GPU longer; goes on from its checkpoint."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import data
from .checkpoint import Checkpoint, commit_here, load
from .compact import Compact, CompactShape
from .losses import repair_loss
from .optimiser import Optimiser
from .validate import validate


@dataclass
class Options:
    steps: int = 6_000
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0
    ssim_weight: float = 0.5
    # Steps over which weights are averaged, about.
    average: int = 300
    # Share of slices from FDK and OS-SART.
    others: float = 0.03
    # Seconds between checkpoints, and steps between validations (0: none).
    every_s: float = 300.0
    validate_every: int = 1_000


def rate_at(options: Options, step: int) -> float:
    """Share of the rate: up over 200 steps (a tenth of fewer than 2000), then down along half a cosine."""
    rise = min(1.0, (step + 1) / min(200, options.steps / 10 + 1))
    fall = 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * step / options.steps)).item()
    return rise * max(fall, 0.01)


def train(
    folder: Path, out: Path, shape: CompactShape, options: Options, device: str, minutes: float | None = None, say=print, begin: Path | None = None
) -> Path:
    """Trains until `options.steps` are done, or for `minutes`; returns the checkpoint's path.

    `begin`: checkpoint of an ended training, whose (averaged) weights this one begins with; the rate and all else begin anew. An existing checkpoint in `out` is gone on from; other options than its own are refused, for the rate's schedule would have a break.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    torch.manual_seed(options.seed)
    # Convolutions on a CPU are a fifth faster with the channels last.
    model = Compact(shape).to(device, memory_format=torch.channels_last)
    optimiser = Optimiser(model, options.rate)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1.0 - 1.0 / options.average))
    step, history, commit, steps_before = 0, [], commit_here(), 0
    if path.exists():
        before = load(path)
        refuse_others(path, "shape", shape.as_dict(), before.shape)
        refuse_others(path, "options", asdict(options), before.options)
        model.load_state_dict(before.weights)
        averaged.module.load_state_dict(before.averaged)
        averaged.n_averaged.fill_(before.step)
        optimiser.load_state_dict(before.optimiser)
        step, history, commit, steps_before = before.step, before.history, before.commit, before.before
        say(f"going on from step {step}")
    elif begin is not None:
        before = load(begin)
        refuse_others(begin, "shape", shape.as_dict(), before.shape)
        model.load_state_dict(before.averaged)
        averaged.module.load_state_dict(before.averaged)
        steps_before = before.before + before.step
        say(f"beginning with the weights of {begin}, after {steps_before} steps")
    training, validation = data.shards(folder, "train"), data.shards(folder, "validation")
    say(f"{len(training)} shards to learn from, {len(validation)} to validate; {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}")
    sampler = data.Sampler(training, model, options.batch, options.seed, options.others)

    def save() -> None:
        Checkpoint("compact", shape.as_dict(), averaged.module.state_dict(), model.state_dict(), optimiser.state_dict(), step, asdict(options), history, commit, steps_before).save(path)

    halved = bfloat16_is_faster(device)
    began = saved = time.monotonic()
    sums, count = [0.0, 0.0], 0
    model.train()
    while step < options.steps and (minutes is None or time.monotonic() - began < 60 * minutes):
        batch = sampler.draw(step)
        optimiser.set_rate(options.rate * rate_at(options, step))
        scan = data.Scan(batch.scan.projections.to(device), batch.scan.anatomy.to(device))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=halved):
            repaired = model(batch.slices.to(device, memory_format=torch.channels_last), scan, batch.plane.to(device), batch.height.to(device)).float()
        given = batch.slices[:, model.neighbours : model.neighbours + 1].to(device)
        loss, gain_db, left = repair_loss(repaired, given, batch.target.to(device), batch.inside.to(device), options.ssim_weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        averaged.update_parameters(model)
        step += 1
        sums, count = [sums[0] + gain_db, sums[1] + left], count + 1
        if step % 100 == 0:
            seconds = time.monotonic() - began
            say(f"step {step} of {options.steps}: {sums[0] / count:+.2f} dB, 1 - SSIM x {sums[1] / count:.3f}; {seconds:.0f} s")
            history.append({"step": step, "gain_db": sums[0] / count, "dissimilarity_left": sums[1] / count})
            sums, count = [0.0, 0.0], 0
        if validation and options.validate_every and step % options.validate_every == 0:
            averaged.module.eval()
            table = validate(averaged.module, [s for s in validation if s.method in data.REPRESENTATIONS], device, planes=(0,), every=5)
            gains = ", ".join(f"{m} {table.mean_gain_db(m):+.2f} dB" for m in data.REPRESENTATIONS)
            say(f"step {step}: validation {gains} (axial, every fifth slice)")
            history.append({"step": step, "validation_gain_db": table.mean_gain_db()})
        if time.monotonic() - saved > options.every_s:
            save()
            saved = time.monotonic()
    save()
    return path


def refuse_others(path: Path, name: str, ours: dict, theirs: dict) -> None:
    """Refuses the checkpoint at `path` where its shape or options (`name`) are not those asked for."""
    differing = [key for key in ours if list_or(ours[key]) != list_or(theirs.get(key)) and key not in ("every_s", "validate_every")]
    if differing:
        raise data.DataError(f"{path}: was trained with other {name}: {', '.join(differing)}; give the same, or another folder")


def bfloat16_is_faster(device: str) -> bool:
    """Whether the machine multiplies matrices of bfloat16 in hardware: any GPU of today, CPUs with AMX (convolutions are 2.6 to 4.4 times as fast as in float32)."""
    return torch.device(device).type != "cpu" or torch.cpu._is_amx_tile_supported()


def list_or(value):
    return list(value) if isinstance(value, tuple) else value
