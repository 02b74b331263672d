"""What SD-Turbo is told of a scan: the text prompt, and RAD-DINO's features of two orthogonal projections through an adapter."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Attention
from .model import ANATOMIES
from .sd_turbo_weights import Weights, packages

# A line integral that is white in the radiograph that RAD-DINO is shown; what is beyond stays white. A chest from the side has 4.
WHITE = 8.0


def prompt(anatomy: str) -> str:
    part = "" if anatomy == "other" else anatomy + " "
    return f"remove artifacts for this {part}CT slice"


@torch.no_grad()
def prompts(weights: Weights) -> torch.Tensor:
    """The text encoder's words [anatomies, tokens, width]: the encoder itself is not needed any more."""
    _, transformers, _ = packages()
    tokenizer = weights.tokenizer("tokenizer")
    encoder = weights.model("text_encoder", transformers.CLIPTextModel, "model")
    length = encoder.config.max_position_embeddings
    ids = tokenizer([prompt(name) for name in ANATOMIES], padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return encoder(ids).last_hidden_state


class RadDino(nn.Module):
    """Frozen RAD-DINO (a ViT-B/14 that was trained on radiographs): one token for each view."""

    def __init__(self, weights: Weights):
        super().__init__()
        _, transformers, _ = packages()
        self.vit = weights.model("rad-dino", transformers.Dinov2Model, "model", attn_implementation="eager")
        self.side, self.width = self.vit.config.image_size, self.vit.config.hidden_size
        mean, std = weights.normalisation("rad-dino", (0.5307,) * 3, (0.2583,) * 3)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, projections: torch.Tensor) -> torch.Tensor:
        """Line integrals [B, 2, rows, columns] to tokens [B, 2, width]."""
        views = (projections / WHITE).clamp(0.0, 1.0).flatten(0, 1).unsqueeze(1)
        views = F.interpolate(views, size=(self.side, self.side), mode="bilinear", align_corners=False)
        tokens = self.vit(pixel_values=(views.expand(-1, 3, -1, -1) - self.mean) / self.std).pooler_output
        return tokens.unflatten(0, (-1, 2))


class Adapter(nn.Module):
    """Words query views: attention with `heads` heads, residual, normalised."""

    def __init__(self, words: int, views: int, heads: int):
        super().__init__()
        self.views = nn.Linear(views, words)
        self.attention, self.norm = Attention(words, words, words // heads), nn.LayerNorm(words)

    def forward(self, words: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        return self.norm(words + self.attention(words, self.views(views)))
