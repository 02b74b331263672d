"""What both models have in common: slices in, slices out, conditioned on a scan."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from .window import HuWindow

# Indices are part of a trained model: add at the end only. Parts of the body that are not listed are "other".
ANATOMIES = ("other", "phantom", "head", "chest", "abdomen", "pelvis", "leg", "arm")

# Names as files and scans have them.
ANATOMY_OF_NAME = {
    "headneck": "head", "headphantom": "head", "skull": "head", "chestabdomen": "chest", "chestcrop": "chest", "lung": "chest", "thorax": "chest",
    "shoulder": "arm", "hip": "pelvis", "buttock": "pelvis", "groin": "pelvis", "thigh": "leg", "thighknee": "leg", "knee": "leg", "calf": "leg",
    "lowerlegs": "leg", "foot": "leg", "catphan504": "phantom",
}  # fmt: skip

PLANES = ("axial", "coronal", "sagittal")


def anatomy_index(name: str) -> int:
    """Index of an anatomy by its name; 0 ("other") for one that no model knows."""
    name = ANATOMY_OF_NAME.get(name, name)
    return ANATOMIES.index(name) if name in ANATOMIES else 0


@dataclass
class Scan:
    """What a model is told of a scan, of B scans at once.

    projections: [B, 2, 128, 128], line integrals (dimensionless) of two orthogonal views, resampled to 128 x 128; rows from the top (+z) down.
    anatomy: [B] int64, index into ANATOMIES.
    """

    projections: torch.Tensor
    anatomy: torch.Tensor


class SliceFixer(nn.Module):
    """Repairs slices. Both methods are exported: `condition` runs once a scan, `repair` for every batch of slices."""

    window = HuWindow()
    # Slices on each side that the model sees beside the one it repairs.
    neighbours = 1
    # Whether it also sees, of each of these slices, what the scan says and the volume does not (docs/curation.md: unexplained_hu).
    unexplained = False
    # Planes along which it has learnt to repair: the first of PLANES.
    planes = PLANES
    # Rows and columns of a slice must be multiples of this.
    multiple = 8

    @property
    def channels(self) -> int:
        """Images of which a slice is repaired."""
        return (2 * self.neighbours + 1) * (2 if self.unexplained else 1)

    @abstractmethod
    def condition(self, scan: Scan) -> torch.Tensor:
        """Context tokens [B, tokens, width] of B scans."""

    @abstractmethod
    def repair(self, slices: torch.Tensor, context: torch.Tensor, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        """Repaired slices [B, 1, rows, columns] in window units, not clamped.

        slices: [B, channels, rows, columns]: 2 neighbours + 1 slices in window units, the middle one is to be repaired, and where the model sees it what is
        unexplained in each of them, in window units without the offset; context: [1 or B, tokens, width]; plane: [B] int64,
        index into PLANES; height: [B], place of the slice along its plane's normal, 0 to 1.
        """

    def forward(self, slices: torch.Tensor, scan: Scan, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        """Both at once, for training."""
        return self.repair(slices, self.condition(scan), plane, height)
