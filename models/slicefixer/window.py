"""One fixed window of Hounsfield units, the same for every slice, and back without a loss."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HuWindow:
    """HU from `low` to `high` become -1 to 1."""

    low: float = -1024.0
    high: float = 2048.0

    def to_unit(self, hu: torch.Tensor) -> torch.Tensor:
        """Linear; values outside the window leave [-1, 1], nothing is clipped."""
        return (hu - self.low) * (2.0 / (self.high - self.low)) - 1.0

    def difference(self, hu: torch.Tensor) -> torch.Tensor:
        """A difference of values in window units."""
        return hu * (2.0 / (self.high - self.low))

    def to_hu(self, unit: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_unit`."""
        return (unit + 1.0) * ((self.high - self.low) / 2.0) + self.low
