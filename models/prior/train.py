#!/usr/bin/env python3
"""Learn the experts of diffnr's prior (src/compute/experts.rs) from CT volumes.

    models/prior/train.py DIR_OF_NIFTI -o models/prior/experts.json [--minutes 30] [--resume STATE.pt]

What is learnt is not a denoiser but the prior of a reconstruction: thick slices of CT volumes are measured along a few lines of their
Fourier transform (what few views of a parallel beam see, by the projection slice theorem), noise is added, the volume is reconstructed by descending data term plus
prior, and what the prior should have been follows from how far the reconstruction is from the truth. The gradient is taken through the
last steps of the descent only (Jacobian-free, Fung et al. 2022, AAAI). Reconstructions are kept in a pool and go on from where they were, so that the prior
meets its own mistakes.

Needs numpy, nibabel and torch. One thread; some 25 minutes.
"""

import argparse
import itertools
import json
import math
import pathlib
import time

import nibabel
import numpy as np
import torch

WATER_PER_MM = 0.0193
UNIT_PER_MM = 2 * WATER_PER_MM
# Voxel edges that volumes are averaged to, mm.
VOXELS_MM = (1.6, 2.2, 2.9, 3.6)
SIDE, THICK = 64, 12
# Slices at both ends whose neighbourhoods are cut off: reconstructed, not judged.
EDGE = 2
# Lines and noise whose weight is written: found by scans of volumes that are not learnt from (docs/methods.md).
WRITTEN_FOR = (10, 0.02)
OFFSETS = list(itertools.product(range(3), repeat=3))


def averaged(volume: np.ndarray, axis: int, from_mm: float, to_mm: float) -> np.ndarray:
    """Means over cells of `to_mm` along one axis."""
    volume = np.moveaxis(volume, axis, 0)
    count = int(volume.shape[0] * from_mm / to_mm)
    total = np.concatenate([np.zeros_like(volume[:1]), np.cumsum(volume, 0, dtype=np.float64)])
    at = np.arange(count + 1) * to_mm / from_mm
    low = np.minimum(at.astype(int), volume.shape[0] - 1)
    share = (at - low).reshape(-1, *[1] * (volume.ndim - 1))
    edges = total[low] * (1 - share) + total[low + 1] * share
    return np.moveaxis(np.diff(edges, axis=0) * from_mm / to_mm, 0, axis).astype(np.float32)


def volumes(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Attenuation in units, [x, y, z], of every volume at every size of voxels that its own do not exceed."""
    found = {}
    for path in sorted(directory.glob("*.nii.gz")):
        # Stacks of single slices are no volumes.
        if "slices" in path.name:
            continue
        image = nibabel.load(path)
        spacing = image.header.get_zooms()[:3]
        attenuation = np.clip(1 + image.get_fdata(dtype=np.float32) / 1000, 0, None) * (WATER_PER_MM / UNIT_PER_MM)
        for to_mm in VOXELS_MM:
            if max(spacing[:2]) > 1.05 * to_mm or spacing[2] > 1.5 * to_mm:
                continue
            volume = attenuation
            for axis in range(3):
                volume = averaged(volume, axis, float(spacing[axis]), to_mm)
            if min(volume.shape) >= THICK + 4:
                found[f"{path.name[:-7]} {to_mm}"] = volume
    return found


class Problems:
    """Draws what is to be reconstructed."""

    def __init__(self, found: dict[str, np.ndarray], seed: int):
        self.random = np.random.default_rng(seed)
        self.volumes = list(found.values())
        size = np.array([volume.size**0.5 for volume in self.volumes])
        # Limbs are many and alike.
        size *= [1.0 if name.startswith(("chest", "head", "abdomen")) else 0.25 for name in found]
        self.weights = size / size.sum()
        edge = np.linspace(-1, 1, SIDE)
        radius = np.hypot(*np.meshgrid(edge, edge, indexing="ij"))
        # Nothing may be at the border, where a Fourier transform would go on at the other side.
        self.inside = np.clip((0.98 - radius) / 0.04, 0, 1).astype(np.float32)

    def truth(self) -> torch.Tensor:
        volume = self.volumes[self.random.choice(len(self.volumes), p=self.weights)]
        piece = np.zeros((SIDE, SIDE, THICK), np.float32)
        source, target = [], []
        for have, want in zip(volume.shape, piece.shape):
            if have >= want:
                first = int(self.random.integers(0, have - want + 1))
                source.append(slice(first, first + want))
                target.append(slice(0, want))
            else:
                first = (want - have) // 2
                source.append(slice(0, have))
                target.append(slice(first, first + have))
        piece[tuple(target)] = volume[tuple(source)]
        for axis in range(3):
            if self.random.random() < 0.5:
                piece = np.flip(piece, axis)
        if self.random.random() < 0.5:
            piece = piece.transpose(1, 0, 2)
        # [z, x, y], so that the last two are the slices'.
        return torch.from_numpy(np.ascontiguousarray((piece * self.inside[..., None]).transpose(2, 0, 1)))

    def lines(self, count: int) -> torch.Tensor:
        """1 for the frequencies that so many views see."""
        seen = np.zeros((SIDE, SIDE), np.float32)
        first = self.random.random() * math.pi
        along = np.arange(-SIDE // 2, SIDE // 2, 0.5)
        for line in range(count):
            angle = first + math.pi * (line + 0.15 * self.random.standard_normal()) / count
            x, y = (np.rint(along * trig).astype(int) for trig in (math.cos(angle), math.sin(angle)))
            keep = (np.abs(x) < SIDE // 2) & (np.abs(y) < SIDE // 2)
            seen[x[keep] % SIDE, y[keep] % SIDE] = 1
        return torch.from_numpy(seen)

    def draw(self, lines: int | None = None, noise: float | None = None) -> list:
        truth = self.truth()
        lines = lines or int(round(math.exp(self.random.uniform(math.log(5), math.log(22)))))
        noise = noise or math.exp(self.random.uniform(math.log(0.004), math.log(0.03)))
        seen = self.lines(lines)
        random = self.random.standard_normal((THICK, SIDE, SIDE, 2)).astype(np.float32)
        measured = torch.fft.fft2(truth, norm="ortho") + noise * 0.7071 * torch.view_as_complex(torch.from_numpy(random))
        return [truth, measured, seen, lines, noise, None, 0]


class Gather(torch.autograd.Function):
    """The 27 voxels of every neighbourhood inside."""

    @staticmethod
    def forward(_, volume):
        x, y, z = (count - 2 for count in volume.shape)
        return torch.stack([volume[i : x + i, j : y + j, k : z + k] for i, j, k in OFFSETS])

    @staticmethod
    def backward(_, by_voxels):
        return scattered(by_voxels)


class Scatter(torch.autograd.Function):
    """Its adjoint."""

    @staticmethod
    def forward(_, by_voxels):
        return scattered(by_voxels)

    @staticmethod
    def backward(_, by_volume):
        return Gather.forward(None, by_volume)


def scattered(by_voxels: torch.Tensor) -> torch.Tensor:
    _, x, y, z = by_voxels.shape
    volume = torch.zeros(x + 2, y + 2, z + 2)
    for offset, (i, j, k) in enumerate(OFFSETS):
        volume[i : i + x, j : j + y, k : k + z] += by_voxels[offset]
    return volume


class Experts(torch.nn.Module):
    def __init__(self, experts: int, tissues: int):
        super().__init__()
        cosine = np.array([[math.cos(math.pi * (i + 0.5) * u / 3) for i in range(3)] for u in range(3)])
        cosine /= np.linalg.norm(cosine, axis=1)[:, None]
        orders = sorted(OFFSETS, key=lambda order: (sum(u * u for u in order), order))[1 : experts + 1]
        taps = np.stack([np.einsum("i,j,k->ijk", *(cosine[u] for u in order)).ravel() for order in orders])
        torch.manual_seed(0)
        self.taps = torch.nn.Parameter(torch.tensor(taps, dtype=torch.float32) + 0.02 * torch.randn(len(orders), 27))
        # Logarithms of [convex, saturating].
        self.amplitudes = torch.nn.Parameter(torch.tensor([-6.0, -5.0]).repeat(len(orders), 1))
        self.widths = torch.nn.Parameter(torch.tensor([-2.5, -3.5]).repeat(len(orders), 1))
        self.tissues = torch.nn.Parameter(torch.zeros(tissues))
        # Logarithm of the weight at 10 lines and noise of 0.01, and its powers of both.
        self.weight = torch.nn.Parameter(torch.tensor([-0.3, 0.0, 0.6]))

    def prepared(self, lines: int, noise: float):
        weight = torch.exp(self.weight[0] + self.weight[1] * math.log(lines / 10) + self.weight[2] * math.log(noise / 0.01))
        taps = self.taps - self.taps.mean(1, keepdim=True)
        taps = taps / taps.norm(dim=1, keepdim=True)
        amplitudes, widths = torch.exp(self.amplitudes), torch.exp(self.widths)
        # With its gradient: a prior so steep that the descent can only creep is no good prior.
        curvature = (amplitudes / widths).sum(1)
        response = torch.fft.fftn(taps.reshape(-1, 3, 3, 3), s=(9, 9, 9), dim=(1, 2, 3)).abs() ** 2
        steepest = weight * (response * curvature[:, None, None, None]).sum(0).max() * torch.exp(self.tissues).max()
        return weight, taps, amplitudes, widths, steepest

    def gradient(self, volume, prepared):
        weight, taps, amplitudes, widths, _ = prepared
        around = Gather.apply(volume)
        shape = around.shape
        around = around.flatten(1)
        response = taps @ around
        convex, saturating = response / widths[:, :1], response / widths[:, 1:]
        influence = amplitudes[:, :1] * convex / torch.sqrt(1 + convex**2) + amplitudes[:, 1:] * saturating / (1 + saturating**2)
        knots = len(self.tissues) - 1
        at = (around.detach().mean(0) * knots).clamp(0, knots - 1e-3)
        knot, share = at.long(), at.frac()
        tissues = torch.exp(self.tissues)
        influence = influence * (tissues[knot] * (1 - share) + tissues[knot + 1] * share)
        return weight * Scatter.apply((taps.t() @ influence).reshape(shape))

    def reconstructed(self, problem: list, steps: int, with_gradient: int) -> torch.Tensor:
        _, measured, seen, lines, noise, begun, _ = problem
        prepared = self.prepared(lines, noise)
        length = 1 / (1 + prepared[-1])

        def stepped(volume):
            data = torch.fft.ifft2(seen * (torch.fft.fft2(volume, norm="ortho") - measured), norm="ortho").real
            return (volume - length * (data + self.gradient(volume, prepared))).clamp(min=0)

        with torch.no_grad():
            volume = torch.fft.ifft2(seen * measured, norm="ortho").real if begun is None else begun
            ahead, t = volume, 1.0
            for _ in range(steps):
                after = stepped(ahead)
                further = (1 + math.sqrt(1 + 4 * t * t)) / 2
                ahead, volume, t = after + (t - 1) / further * (after - volume), after, further
        for _ in range(with_gradient):
            volume = stepped(volume)
        return volume

    def written(self) -> str:
        """The experts at the weight that diffnr's `--prior 1` stands for, the busiest first."""
        with torch.no_grad():
            weight, taps, amplitudes, widths, _ = self.prepared(*WRITTEN_FOR)
            weight = float(weight)
            tissues = [float(f"{value:.4g}") for value in torch.exp(self.tissues)]
            experts = []
            for expert in torch.argsort(-(amplitudes / widths).sum(1)).tolist():
                # [z, x, y] to [x, y, z].
                pattern = taps[expert].reshape(3, 3, 3).permute(1, 2, 0).reshape(27).double().numpy().round(5)
                pattern[13] -= pattern.sum()
                (a, b), (s, c) = amplitudes[expert].tolist(), widths[expert].tolist()
                number = lambda value: float(f"{value:.5g}")  # noqa: E731
                experts.append(
                    {
                        "taps": pattern.round(5).tolist(),
                        "convex": [number(weight * a), number(s)],
                        "saturating": [number(weight * b), number(c)],
                    }
                )
        lines = ",\n".join("  " + json.dumps(expert) for expert in experts)
        return f'{{\n "unit_per_mm": {UNIT_PER_MM},\n "tissues": {json.dumps(tissues)},\n "experts": [\n{lines}\n ]\n}}\n'


def judged(volume: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return ((volume - truth)[EDGE:-EDGE] ** 2).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="folder of CT volumes, NIfTI, HU")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="JSON to write")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--experts", type=int, default=24)
    parser.add_argument("--tissues", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--resume", type=pathlib.Path, help="state that an earlier run left beside its JSON")
    parser.add_argument("--validate", default="chest_nlst,headneck_vhm,chest_cmbcrc_01068", help="volumes kept out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept_out = tuple(options.validate.split(","))
    everything = volumes(options.directory)
    learnt = {name: volume for name, volume in everything.items() if not name.startswith(kept_out)}
    kept = {name: volume for name, volume in everything.items() if name.startswith(kept_out) and name.endswith("2.9")}
    print(f"{len(learnt)} volumes to learn from, {len(kept)} to validate with", flush=True)
    experts = Experts(options.experts, options.tissues)
    if options.resume:
        experts.load_state_dict(torch.load(options.resume))
    slow = [experts.amplitudes, experts.widths, experts.tissues, experts.weight]
    groups = [{"params": [experts.taps], "lr": options.rate}, {"params": slow, "lr": 2 * options.rate}]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.98))
    problems, pool = Problems(learnt, 1), []
    validation = Problems(kept, 1000)
    fixed = [validation.draw(lines, noise) for lines, noise in ((18, 0.01), (12, 0.01), (6, 0.01)) for _ in range(6)]

    def validate() -> str:
        decibels = [-10 * math.log10(judged(experts.reconstructed(problem, 100, 0), problem[0])) for problem in fixed]
        return " ".join(f"{np.mean(decibels[first : first + 6]):.2f}" for first in range(0, len(fixed), 6))

    began, step, mean, told = time.time(), 0, 0.0, 0.0
    while (share := (time.time() - began) / (60 * options.minutes)) < 1:
        for group, rate in zip(adam.param_groups, (options.rate, 2 * options.rate)):
            group["lr"] = rate * 0.02 ** max(0.0, (share - 0.3) / 0.7)
        if len(pool) < 48:
            problem = problems.draw()
            pool.append(problem)
        else:
            problem = pool[problems.random.integers(len(pool))]
        fresh = problem[5] is None
        volume = experts.reconstructed(problem, 20 if fresh else 6, 3)
        problem[5], problem[6] = volume.detach(), problem[6] + 1
        if not fresh:
            loss = torch.log(judged(volume, problem[0]))
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(experts.parameters(), 1.0)
            adam.step()
            mean = 0.99 * mean + 0.01 * loss.item() if mean else loss.item()
        if problem[6] > 8:
            problem[:] = problems.draw()
        step += 1
        if time.time() - told > 60:
            told = time.time()
            torch.save(experts.state_dict(), options.output.with_suffix(".pt"))
            with torch.no_grad():
                weight = experts.weight.numpy().round(2)
                print(f"{told - began:5.0f} s, step {step}: log loss {mean:.3f}, weight {weight}", flush=True)
    with torch.no_grad():
        print(f"validation at 18, 12, 6 lines: PSNR {validate()} dB", flush=True)
    torch.save(experts.state_dict(), options.output.with_suffix(".pt"))
    options.output.write_text(experts.written())


if __name__ == "__main__":
    main()
