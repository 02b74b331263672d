"""Losses on repaired slices, in units of the window from 0 to 1, where the scan says something."""

import torch
import torch.nn.functional as F


def gaussian_window() -> torch.Tensor:
    """11 taps, sigma 1.5, sum 1."""
    taps = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2.0 * 1.5**2))
    return taps / taps.sum()


def blurred(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Separable, only where the window lies wholly inside."""
    return F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity [B, 1, rows - 10, columns - 10] of images [B, 1, rows, columns] with values in [0, 1] (Wang et al. 2004)."""
    taps = gaussian_window().to(a)
    mean_a, mean_b = blurred(a, taps), blurred(b, taps)
    var_a, var_b = blurred(a * a, taps) - mean_a**2, blurred(b * b, taps) - mean_b**2
    both = blurred(a * b, taps) - mean_a * mean_b
    c1, c2 = 1e-4, 9e-4
    return (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def repair_loss(repaired: torch.Tensor, target: torch.Tensor, inside: torch.Tensor, ssim_weight: float) -> tuple[torch.Tensor, float, float]:
    """`mean square + ssim_weight (1 - SSIM)` and both parts; unclamped values in window units [-1, 1]."""
    repaired, target = repaired * 0.5 + 0.5, target * 0.5 + 0.5
    square = ((repaired - target) ** 2 * inside).sum() / inside.sum().clamp(min=1.0)
    # A place counts where the middle of the window is inside.
    within = inside[:, :, 5:-5, 5:-5]
    dissimilarity = ((1.0 - ssim(repaired, target)) * within).sum() / within.sum().clamp(min=1.0)
    return square + ssim_weight * dissimilarity, square.item(), dissimilarity.item()
