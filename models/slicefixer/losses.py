"""Losses on repaired slices, in units of the window from 0 to 1."""

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


# Mean squares (of the window's range) below which a slice counts as repaired: 60 dB.
LEAST = 1e-6

# Dissimilarities below which a slice is as good as its reference: without it, slices of little but air would be all that counts.
LEAST_DISSIMILARITY = 0.02


def errors(image: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean square and `1 - SSIM` of each slice [B], inside; unclamped values in window units [-1, 1]."""
    image, target = image * 0.5 + 0.5, target * 0.5 + 0.5

    def mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (values * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3)).clamp(min=1.0)

    # A place counts where the middle of the window is inside.
    return mean((image - target) ** 2, inside), mean(1.0 - ssim(image, target), inside[:, :, 5:-5, 5:-5])


def changed_outside(repaired: torch.Tensor, given: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Sum of squared changes where the scan says nothing, over the number of pixels where it says something [B]: what adds to `errors`' mean square."""
    return ((0.5 * (repaired - given)) ** 2 * (1.0 - inside)).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1.0)


def repair_loss(
    repaired: torch.Tensor, given: torch.Tensor, target: torch.Tensor, inside: torch.Tensor, ssim_weight: float
) -> tuple[torch.Tensor, float, float]:
    """`ln(mean square) + ssim_weight (1 - SSIM) / (1 - SSIM of the slice as given)`, the mean over the slices; the gain in dB and the share of the
    dissimilarity that is left.

    In plain mean squares one slice of FDK from 12 views weighs as much as a hundred of a representation, and a network learns nothing else.
    Where the scan says nothing, any change counts as an error: where it was free, a network that may not change a neighbourhood's mean left thousands
    of HU there, at the price of nothing.
    """
    square, dissimilarity = errors(repaired, target, inside)
    square = square + changed_outside(repaired, given, inside)
    with torch.no_grad():
        square_before, dissimilarity_before = errors(given, target, inside)
    left = (dissimilarity + LEAST_DISSIMILARITY) / (dissimilarity_before + LEAST_DISSIMILARITY)
    loss = torch.log(square + LEAST) + ssim_weight * left
    gain_db = 10 * torch.log10((square_before + LEAST) / (square + LEAST))
    return loss.mean(), gain_db.mean().item(), left.mean().item()
