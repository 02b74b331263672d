"""A model on disk: its shape and weights, and what a training needs to go on."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from .compact import Compact, CompactShape
from .model import SliceFixer


@dataclass
class Checkpoint:
    kind: str
    shape: dict
    # Weights averaged over the last steps: what is validated and exported.
    averaged: dict
    weights: dict
    optimiser: dict
    step: int
    options: dict
    history: list
    # Of this package, when the training began.
    commit: str = "unknown"
    # Steps of the trainings whose weights it began with.
    before: int = 0

    def save(self, path: Path) -> None:
        beside = path.with_suffix(".partial")
        torch.save(self.__dict__, beside)
        beside.replace(path)


def commit_here() -> str:
    """Commit of the checkout that this package lies in; "unknown" for one that is installed elsewhere."""
    told = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def load(path: Path) -> Checkpoint:
    return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))


def model_of(checkpoint: Checkpoint, weights: Path | None = None) -> SliceFixer:
    """The averaged model, ready to repair. `weights`: folder of the pretrained weights of an sd-turbo model."""
    if checkpoint.kind == "sd-turbo":
        from .sd_turbo import of_checkpoint

        return of_checkpoint(checkpoint, weights)
    model = Compact(CompactShape.from_dict(checkpoint.shape))
    model.load_state_dict(checkpoint.averaged)
    return model.eval()
