"""Pairs from `diffnr curate` (docs/curation.md): volumes as stacks of slices along three planes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from .compact import PROJECTION
from .model import Scan, SliceFixer, anatomy_index
from .window import HuWindow

# Methods whose artefacts the running loop shows; the others are there for variety.
REPRESENTATIONS = ("gaussians", "field")


class DataError(ValueError):
    """What is wrong with which file, and what to do."""


@dataclass
class Shard:
    """One reconstruction and its reference, int16 HU [z][y][x]."""

    path: Path
    facts: dict[str, str]
    degraded: np.ndarray
    # What the scan says and `degraded` does not; a difference.
    unexplained: np.ndarray
    reference: np.ndarray
    # Where the scan says something, [z][y][x].
    inside: np.ndarray
    # [2, 128, 128]
    projections: torch.Tensor

    @property
    def method(self) -> str:
        return self.facts["method"]

    @property
    def views(self) -> int:
        return int(self.facts["views"])

    @property
    def anatomy(self) -> int:
        return anatomy_index(self.facts["anatomy"])

    def scan(self) -> Scan:
        return Scan(self.projections[None], torch.tensor([self.anatomy]))


def read(path: Path, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    with safe_open(path, "np") as file:
        if name not in file.keys():
            raise DataError(f"{path}: no tensor {name}; make the folder with `diffnr curate` of this version")
        values = file.get_tensor(name)
    if shape is not None and values.shape != shape:
        raise DataError(f"{path}: {name} has shape {values.shape}, its reference {shape}")
    return values


def read_shard(path: Path, reference: np.ndarray) -> Shard:
    with safe_open(path, "np") as file:
        facts = file.metadata()
    degraded = read(path, "degraded_hu", reference.shape)
    unexplained = read(path, "unexplained_hu", reference.shape)
    first, last = read(path, "inside_z").astype(np.int64)
    z = np.arange(reference.shape[0])[:, None, None]
    inside = (z >= first) & (z < last) & (read(path, "inside") > 0)
    projections = torch.from_numpy(read(path, "projections").astype(np.float32))
    if not bool(torch.isfinite(projections).all()):
        raise DataError(f"{path}: projections hold values that are no numbers")
    projections = F.interpolate(projections[None], size=(PROJECTION, PROJECTION), mode="area")[0]
    return Shard(path, facts, degraded, unexplained, reference, inside, projections)


def shards(folder: Path, split: str) -> list[Shard]:
    """All shards of a split, in the order of their names."""
    if not (folder / "curation.json").is_file():
        raise DataError(f"{folder}: no curation.json; give the folder that `diffnr curate -o` wrote")
    found = []
    for subject in sorted((folder / split).iterdir() if (folder / split).is_dir() else []):
        if not (subject / "reference.safetensors").is_file():
            continue
        reference = read(subject / "reference.safetensors", "reference_hu")
        found += [read_shard(path, reference) for path in sorted(subject.glob("[0-9]*.safetensors"))]
    return found


def split_seed(folder: Path) -> int:
    """The seed that the pairs were made with, for the model card."""
    return int(json.loads((folder / "curation.json").read_text())["options"]["seed"])


def along(volume: np.ndarray, plane: int) -> np.ndarray:
    """The volume [z][y][x] as slices of a plane: axial [z][y][x], coronal [y][z][x], sagittal [x][z][y]."""
    return (volume, volume.transpose(1, 0, 2), volume.transpose(2, 0, 1))[plane]


def stack_of(volume: np.ndarray, plane: int, index: np.ndarray, neighbours: int) -> np.ndarray:
    """Slices `index` of a plane, each between its neighbours [index, neighbour, row, column]; beyond the ends the last slice is repeated."""
    slices = along(volume, plane)
    places = index[:, None] + np.arange(-neighbours, neighbours + 1)
    return slices[np.clip(places, 0, slices.shape[0] - 1)]


def images_of(shard: Shard, plane: int, index: np.ndarray, neighbours: int, unexplained: bool) -> np.ndarray:
    """What a model sees of slices [index, image, row, column], HU."""
    volumes = (shard.degraded, shard.unexplained) if unexplained else (shard.degraded,)
    return np.concatenate([stack_of(volume, plane, index, neighbours) for volume in volumes], 1)


def in_units(images: torch.Tensor, window: HuWindow, unexplained: bool) -> torch.Tensor:
    """Images of `images_of` as a model takes them."""
    if not unexplained:
        return window.to_unit(images)
    values, differences = images.chunk(2, 1)
    return torch.cat((window.to_unit(values), window.difference(differences)), 1)


@dataclass
class Batch:
    # As SliceFixer.repair takes them.
    slices: torch.Tensor
    target: torch.Tensor
    # 1 where the scan says something, else 0.
    inside: torch.Tensor
    scan: Scan
    plane: torch.Tensor
    height: torch.Tensor


class Sampler:
    """Batches drawn by a seed and the number of the step alone, so that a training that is resumed sees what it would have seen."""

    def __init__(self, training: list[Shard], model: SliceFixer, batch: int, seed: int, others: float = 0.2):
        """`others`: share of batches' slices from methods other than the representations."""
        self.window, self.batch, self.seed = model.window, batch, seed
        self.neighbours, self.unexplained, self.planes = model.neighbours, model.unexplained, len(model.planes)
        self.groups = [[s for s in training if (s.method in REPRESENTATIONS) == wanted] for wanted in (True, False)]
        self.others = others if self.groups[1] else 0.0
        if not self.groups[0]:
            raise DataError("no shard of Gaussians or a field in the training split")

    def draw(self, step: int) -> Batch:
        random = np.random.default_rng((self.seed, step))
        parts = [self.one(random) for _ in range(self.batch)]
        slices, target, inside, projections, anatomy, plane, height = zip(*parts, strict=True)

        def stacked(arrays: tuple[np.ndarray, ...]) -> torch.Tensor:
            return torch.from_numpy(np.stack(arrays).astype(np.float32))

        scan = Scan(torch.stack(projections), torch.tensor(anatomy))
        return Batch(
            in_units(stacked(slices), self.window, self.unexplained),
            self.window.to_unit(stacked(target)),
            stacked(inside),
            scan,
            torch.tensor(plane),
            torch.tensor(height, dtype=torch.float32),
        )

    def one(self, random: np.random.Generator) -> tuple:
        group = self.groups[int(random.random() < self.others)]
        shard = group[random.integers(len(group))]
        plane = int(random.integers(self.planes))
        count = shard.reference.shape[plane]
        # Slices of nothing but air teach little; those beside a body's ends, air between what is none, have to be learnt.
        for _ in range(8):
            index = int(random.integers(count))
            slices = images_of(shard, plane, np.array([index]), self.neighbours, self.unexplained)
            if (slices[:, : 2 * self.neighbours + 1] > -500).mean((2, 3)).max() > 0.02 or random.random() < 0.05:
                break
        target = stack_of(shard.reference, plane, np.array([index]), 0)[0]
        # [volume, neighbour, row, column]
        slices = slices.reshape(-1, 2 * self.neighbours + 1, *slices.shape[2:])
        inside = stack_of(shard.inside, plane, np.array([index]), 0)[0]
        projections, height = shard.projections, (index + 0.5) / count
        # Mirrored bodies: in parallel rays a view along an axis stays what it is when that axis is turned round, the other one is
        # mirrored. Nearly so in a cone.
        for axis in range(3):
            if random.random() < 0.5:
                slices, target, inside, projections, height = mirrored(axis, plane, slices, target, inside, projections, height)
        # A body on its side: twice as many bodies to tell apart, which keeps a model from learning them by heart.
        if plane == 0 and slices.shape[-1] == slices.shape[-2] and random.random() < 0.5:
            slices, target, inside, projections = laid_on_its_side(slices, target, inside, projections)
        return slices.reshape(-1, *slices.shape[2:]), target, inside, projections, shard.anatomy, plane, height


def mirrored(
    axis: int, plane: int, slices: np.ndarray, target: np.ndarray, inside: np.ndarray, projections: torch.Tensor, height: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, torch.Tensor, float]:
    """The same with one of the body's axes (0: z, 1: y, 2: x) turned round."""
    # Which axis of the stack that is: the planes' axes are [z y x], [y z x], [x z y].
    within = ((0, 1, 2), (1, 0, 2), (2, 0, 1))[plane].index(axis)
    # Counted from the end: before a stack's axes may stand the volumes that it was taken from.
    slices, target, inside = (np.flip(part, within - 3) for part in (slices, target, inside))
    if within == 0:
        height = 1.0 - height
    first, second = projections
    if axis == 0:
        first, second = first.flip(0), second.flip(0)
    elif axis == 1:
        first = first.flip(1)
    else:
        second = second.flip(1)
    return slices, target, inside, torch.stack((first, second)), height


def laid_on_its_side(
    slices: np.ndarray, target: np.ndarray, inside: np.ndarray, projections: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, torch.Tensor]:
    """Axial slices of the same body with x and y exchanged."""
    slices, target, inside = (np.swapaxes(part, -1, -2) for part in (slices, target, inside))
    # The first view looks along x, its columns run along y; a quarter turn on, the second's run against x.
    first, second = projections
    return slices, target, inside, torch.stack((second.flip(1), first.flip(1)))
