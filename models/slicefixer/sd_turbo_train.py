"""Training of the sd-turbo model; goes on from its checkpoint, which holds LoRA, skips and adapters only."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import data
from .checkpoint import Checkpoint, commit_here, load
from .sd_turbo import SdTurbo, SdTurboShape
from .sd_turbo_losses import Losses, names_of
from .sd_turbo_weights import Weights
from .validate import validate


@dataclass
class SdTurboOptions:
    """The paper's, where it says."""

    steps: int = 20_000
    batch: int = 4
    rate: float = 1e-5
    seed: int = 0
    # Share of slices from FDK and OS-SART.
    others: float = 0.1
    # Which of the paper's losses, whose weights stand in `sd_turbo_losses`.
    losses: str = "l2,lpips,clip,gan,ssim"
    # Seconds between checkpoints, and steps between validations (0: none).
    every_s: float = 300.0
    validate_every: int = 2_000


# May change when a training goes on.
FREE = ("every_s", "validate_every")

# Steps over which the rate rises, at most a tenth of all.
RISE = 200


def train(folder: Path, out: Path, weights: Path, shape: SdTurboShape, options: SdTurboOptions, device: str, minutes: float | None = None, say=print) -> Path:
    """Trains until `options.steps` are done, or for `minutes`; returns the checkpoint's path.

    An existing checkpoint in `out` is gone on from; other weights, shape or options than its own are refused.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    before = load(path) if path.exists() else None
    if before is not None:
        differing = [] if before.kind == "sd-turbo" else ["kind"]
        ours = shape.as_dict() | {"weights": before.shape.get("weights")} | asdict(options)
        theirs = before.shape | before.options
        differing += sorted(key for key in ours if ours[key] != theirs.get(key) and key not in FREE)
        if differing:
            raise data.DataError(f"{path}: was trained with other {', '.join(differing)}; give the same, or another folder")
        shape = SdTurboShape(**before.shape)
    torch.manual_seed(options.seed)
    losses = Losses(Weights(weights), names_of(options.losses)).to(device)
    model = SdTurbo.load(weights, shape).to(device)
    learnt = [value for value in model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=options.rate, weight_decay=1e-2)
    against = torch.optim.AdamW(losses.discriminator.parameters(), lr=options.rate, weight_decay=1e-2) if losses.discriminator else None
    step, history, commit = 0, [], commit_here()
    if before is not None:
        model.take(before.weights["model"])
        optimiser.load_state_dict(before.optimiser["model"])
        if against:
            losses.discriminator.load_state_dict(before.weights["discriminator"])
            against.load_state_dict(before.optimiser["discriminator"])
        step, history, commit = before.step, before.history, before.commit
        say(f"going on from step {step}")
    training, validation = data.shards(folder, "train"), data.shards(folder, "validation")
    for shard in training + validation:
        uneven = [n for n in shard.degraded.shape if n % model.multiple]
        if uneven:
            raise data.DataError(f"{shard.path}: {uneven[0]} voxels along an axis: this model takes multiples of {model.multiple}")
    say(
        f"{len(training)} shards to learn from, {len(validation)} to validate; {sum(p.numel() for p in learnt) / 1e6:.2f} M of "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters learn on {device}; losses: {', '.join(losses.names)}"
    )
    sampler = data.Sampler(training, model, options.batch, options.seed, options.others)

    def save() -> None:
        ours = {"model": model.trained()} | ({"discriminator": losses.discriminator.state_dict()} if against else {})
        states = {"model": optimiser.state_dict()} | ({"discriminator": against.state_dict()} if against else {})
        Checkpoint("sd-turbo", model.shape.as_dict(), model.trained(), ours, states, step, asdict(options), history, commit).save(path)

    began = saved = time.monotonic()
    sums, count = {}, 0
    while step < options.steps and (minutes is None or time.monotonic() - began < 60 * minutes):
        batch = sampler.draw(step)
        for rates in (optimiser, against) if against else (optimiser,):
            for group in rates.param_groups:
                group["lr"] = options.rate * min(1.0, (step + 1) / min(RISE, options.steps / 10 + 1))
        scan = data.Scan(batch.scan.projections.to(device), batch.scan.anatomy.to(device))
        target, inside = batch.target.to(device), batch.inside.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=torch.device(device).type == "cuda"):
            repaired = model(batch.slices.to(device), scan, batch.plane.to(device), batch.height.to(device)).float()
        loss, parts = losses(repaired, target, inside, scan.anatomy)
        gradients = torch.autograd.grad(loss, learnt)
        for value, gradient in zip(learnt, gradients, strict=True):
            value.grad = gradient
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        if against:
            against.zero_grad()
            told_apart = losses.of_discriminator(repaired.detach(), target, inside)
            told_apart.backward()
            against.step()
            parts["discriminator"] = told_apart.detach()
        step += 1
        sums, count = {name: sums.get(name, 0.0) + part.item() for name, part in parts.items()}, count + 1
        if step % 100 == 0:
            means = {name: value / count for name, value in sums.items()}
            say(f"step {step} of {options.steps}: {', '.join(f'{name} {value:.4f}' for name, value in means.items())}; {time.monotonic() - began:.0f} s")
            history.append({"step": step} | means)
            sums, count = {}, 0
        if validation and options.validate_every and step % options.validate_every == 0:
            table = validate(model, validation, device, planes=(0,), every=8)
            say(f"step {step}: validation {table.mean_gain_db():+.2f} dB (axial, every eighth slice)")
            history.append({"step": step, "validation_gain_db": table.mean_gain_db()})
        if time.monotonic() - saved > options.every_s:
            save()
            saved = time.monotonic()
    save()
    return path
