"""What a model gains on volumes that it has not learnt from."""

from dataclasses import dataclass, field

import numpy as np
import torch

from .data import Shard, along, images_of, in_units
from .losses import ssim
from .model import PLANES, SliceFixer


@dataclass
class Row:
    """One shard: quality before and after, inside the field of view."""

    subject: str
    method: str
    views: int
    photons: str
    psnr_db: tuple[float, float]
    ssim: tuple[float, float]
    # Largest change where the scan says nothing, HU: what neither figure sees, and the loop would.
    changed_outside_hu: float


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)

    def mean_gain_db(self, method: str | None = None) -> float:
        """Of all rows, or of one method's."""
        return float(np.mean([row.psnr_db[1] - row.psnr_db[0] for row in self.rows if method in (None, row.method)]))

    def markdown(self) -> str:
        lines = ["| subject | method | views | photons | PSNR dB | repaired | gain | SSIM | repaired |", "|---|---|---|---|---|---|---|---|---|"]
        for r in self.rows:
            lines.append(
                f"| {r.subject} | {r.method} | {r.views} | {r.photons} | {r.psnr_db[0]:.2f} | {r.psnr_db[1]:.2f} | {r.psnr_db[1] - r.psnr_db[0]:+.2f}"
                f" | {r.ssim[0]:.4f} | {r.ssim[1]:.4f} |"
            )
        outside = max(row.changed_outside_hu for row in self.rows)
        return "\n".join([*lines, f"mean gain {self.mean_gain_db():+.2f} dB; where the scan says nothing, changed by {outside:.0f} HU at most"])


@torch.no_grad()
def repair_volume(model: SliceFixer, shard: Shard, device: str, planes: tuple[int, ...], batch: int = 16, every: int = 1) -> np.ndarray:
    """The volume in HU [z][y][x], repaired slice by slice along each plane, the planes' results averaged. `every`: only each so-manieth slice (one plane)."""
    context = model.condition(to(shard, device))
    result = np.zeros(shard.degraded.shape, np.float32)
    for plane in planes:
        slices = along(shard.degraded, plane)
        places = np.arange(0, len(slices), every)
        repaired = np.zeros(slices.shape, np.float32)
        for part in np.array_split(places, -(-len(places) // batch)):
            images = torch.from_numpy(images_of(shard, plane, part, model.neighbours, model.unexplained).astype(np.float32))
            height = torch.from_numpy((part + 0.5) / len(slices)).float()
            index = torch.full((len(part),), plane)
            unit = model.repair(in_units(images, model.window, model.unexplained).to(device), context, index.to(device), height.to(device))
            repaired[part] = model.window.to_hu(unit)[:, 0].cpu().numpy()
        # Back to [z][y][x].
        result += repaired.transpose(((0, 1, 2), (1, 0, 2), (1, 2, 0))[plane])
    return result / len(planes)


def to(shard: Shard, device: str):
    scan = shard.scan()
    scan.projections, scan.anatomy = scan.projections.to(device), scan.anatomy.to(device)
    return scan


def quality(volume: np.ndarray, shard: Shard, width_hu: float, places: np.ndarray) -> tuple[float, float]:
    """PSNR in dB over the reference's own range inside the field of view, and the mean SSIM of axial slices in the window's range."""
    inside = shard.inside[places]
    difference = (volume[places].astype(np.float64) - shard.reference[places])[inside]
    peak = float(shard.reference[places][inside].max()) + 1000.0
    psnr = 10 * np.log10(peak**2 / np.mean(difference**2))
    a, b = (torch.from_numpy((v[places].astype(np.float32) + 1024.0) / width_hu)[:, None] for v in (volume, shard.reference))
    within = torch.from_numpy(inside[:, None, 5:-5, 5:-5].astype(np.float32))
    return float(psnr), float((ssim(a, b) * within).sum() / within.sum())


def validate(model: SliceFixer, shards: list[Shard], device: str = "cpu", planes: tuple[int, ...] = (0,), every: int = 1) -> Table:
    """Repairs every shard and compares with its reference. `every` above 1 takes each so-manieth axial slice: a quick look."""
    if every > 1 and planes != (0,):
        raise ValueError("every > 1 is for axial slices only")
    assert len(PLANES) == 3
    table = Table()
    for shard in shards:
        places = np.arange(0, shard.degraded.shape[0], every)
        width = model.window.high - model.window.low
        before = quality(shard.degraded, shard, width, places)
        repaired = repair_volume(model, shard, device, planes, every=every)
        after = quality(repaired, shard, width, places)
        outside = np.abs(repaired[places] - shard.degraded[places])[~shard.inside[places]].max(initial=0.0)
        facts = shard.facts
        changes = (before[0], after[0]), (before[1], after[1]), float(outside)
        table.rows.append(Row(facts["subject"], shard.method, shard.views, facts.get("photons", ""), *changes))
    return table
