"""The paper's losses of the sd-turbo model: L2 + LPIPS + 4 CLIP + 0.4 GAN + 0.5 SSIM. Pictures are [B, 1, rows, columns] in window units, unclamped.

LPIPS, CLIP and GAN need networks that were trained on photographs, whose weights the user gives; one that is missing is refused by the name of its file, and
`--losses` leaves it out. None has a substitute. Where the paper and its base leave a choice:

    CLIP   1 - cosine of the embeddings of the repaired slice and of a caption ("a chest CT slice"), as in the one-step picture translation SD-Turbo is used for
    GAN    hinge loss of small heads on the frozen features of CLIP's picture encoder; without the augmentations of Vision-aided GAN
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from .data import DataError
from .losses import errors
from .model import ANATOMIES
from .sd_turbo_weights import Weights, packages

WEIGHTS = {"l2": 1.0, "lpips": 1.0, "clip": 4.0, "gan": 0.4, "ssim": 0.5}

LEAVE_OUT = "give it, or leave the loss out by --losses (e.g. --losses l2,ssim)"

# CLIP's own normalisation, where its folder has no preprocessor_config.json.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def names_of(text: str) -> tuple[str, ...]:
    """`l2,ssim` in the paper's order; a name that is none is refused."""
    asked = [name.strip() for name in text.split(",")]
    unknown = [name for name in asked if name not in WEIGHTS]
    if unknown:
        raise DataError(f"--losses {unknown[0]}: there are {', '.join(WEIGHTS)}")
    return tuple(name for name in WEIGHTS if name in asked)


def coloured(picture: torch.Tensor) -> torch.Tensor:
    return picture.clamp(-1.0, 1.0).expand(-1, 3, -1, -1)


def state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


class Lpips(nn.Module):
    """Learned perceptual similarity (Zhang et al. 2018, version 0.1) over VGG-16, in the layout of torchvision's and the authors' weights."""

    # Convolutions after which features are compared (relu1_2 ... relu5_3), by their place in torchvision's `features`, and those before a pooling.
    COMPARED = (2, 7, 14, 21, 28)
    CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)

    def __init__(self, weights: Weights):
        super().__init__()
        paths = [weights.file("lpips", name, what="the LPIPS loss needs it: " + LEAVE_OUT) for name in ("vgg16.pth", "vgg.pth")]
        vgg, linear = map(state_dict, paths)
        try:
            for place in self.CONVOLUTIONS:
                for kind in ("weight", "bias"):
                    self.register_buffer(f"{kind}{place}", vgg[f"features.{place}.{kind}"].float(), persistent=False)
            for n in range(len(self.COMPARED)):
                self.register_buffer(f"linear{n}", linear[f"lin{n}.model.1.weight"].float(), persistent=False)
        except KeyError as error:
            raise DataError(f"{paths[0].parent}: no tensor {error.args[0]}") from error
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    def features(self, picture: torch.Tensor) -> list[torch.Tensor]:
        x, found = (coloured(picture) - self.shift) / self.scale, []
        for place in self.CONVOLUTIONS:
            x = F.relu(F.conv2d(x, getattr(self, f"weight{place}"), getattr(self, f"bias{place}"), padding=1))
            if place in self.COMPARED:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
                x = F.max_pool2d(x, 2)
        return found

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.features(a), self.features(b), strict=True)
        return sum(F.conv2d((x - y).square(), getattr(self, f"linear{n}")).mean((1, 2, 3)) for n, (x, y) in enumerate(pairs)).mean()


class Clip(nn.Module):
    """The frozen network of both the CLIP loss and the GAN."""

    def __init__(self, weights: Weights):
        super().__init__()
        _, transformers, _ = packages()
        needed = "the CLIP and GAN losses need it: " + LEAVE_OUT
        self.clip = weights.model("clip", transformers.CLIPModel, "model", needed, attn_implementation="eager")
        tokenizer = weights.tokenizer("clip", needed)
        mean, std = weights.normalisation("clip", CLIP_MEAN, CLIP_STD)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        captions = [f"a {'' if name == 'other' else name + ' '}CT slice" for name in ANATOMIES]
        length = self.clip.config.text_config.max_position_embeddings
        ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.no_grad():
            text = self.clip.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
            self.register_buffer("captions", F.normalize(self.clip.text_projection(text), dim=1), persistent=False)

    def seen(self, picture: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embedding [B, width], and the tokens of a third, two thirds and all of the layers."""
        side = self.clip.config.vision_config.image_size
        x = F.interpolate(coloured(picture) * 0.5 + 0.5, size=(side, side), mode="bicubic", antialias=True)
        told = self.clip.vision_model(pixel_values=(x - self.mean) / self.std, output_hidden_states=True)
        states, layers = told.hidden_states, len(told.hidden_states) - 1
        return self.clip.visual_projection(told.pooler_output), [states[-(-layers * n // 3)] for n in (1, 2, 3)]

    def unlike_caption(self, embedding: torch.Tensor, anatomy: torch.Tensor) -> torch.Tensor:
        return (1.0 - (F.normalize(embedding, dim=1) * self.captions[anatomy]).sum(1)).mean()


class Discriminator(nn.Module):
    """Heads on CLIP's tokens, one for each of three depths: which slices are references?"""

    def __init__(self, width: int):
        super().__init__()

        def head() -> nn.Module:
            first, second = spectral_norm(nn.Linear(width, 128)), spectral_norm(nn.Linear(128, 1))
            return nn.Sequential(nn.LayerNorm(width), first, nn.LeakyReLU(0.2), second)

        self.heads = nn.ModuleList(head() for _ in range(3))

    def forward(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        """[3, B]: positive for what looks like a reference."""
        return torch.stack([head(t).mean((1, 2)) for head, t in zip(self.heads, tokens, strict=True)])


class Losses(nn.Module):
    """The weighted sum of those that are wanted."""

    def __init__(self, weights: Weights, names: tuple[str, ...]):
        super().__init__()
        if not names:
            raise DataError("--losses: none is left")
        self.names = names
        self.lpips = Lpips(weights) if "lpips" in names else None
        self.clip = Clip(weights) if {"clip", "gan"} & set(names) else None
        self.discriminator = Discriminator(self.clip.clip.config.vision_config.hidden_size) if "gan" in names else None

    def forward(
        self, repaired: torch.Tensor, target: torch.Tensor, inside: torch.Tensor, anatomy: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the model, and its parts before they are weighted (detached). `inside`: 1 where the scan says something; elsewhere nothing counts."""
        # Networks see whole pictures: outside they see the reference in both.
        whole = target + inside * (repaired - target)
        parts = {}
        square, dissimilarity = errors(repaired, target, inside)
        if "l2" in self.names:
            # In window units, which are half of [0, 1]'s.
            parts["l2"] = 4.0 * square.mean()
        if self.lpips is not None:
            parts["lpips"] = self.lpips(whole, target)
        if self.clip is not None:
            embedding, tokens = self.clip.seen(whole)
            if "clip" in self.names:
                parts["clip"] = self.clip.unlike_caption(embedding, anatomy)
            if self.discriminator is not None:
                parts["gan"] = -self.discriminator(tokens).mean()
        if "ssim" in self.names:
            parts["ssim"] = dissimilarity.mean()
        total = sum(WEIGHTS[name] * part for name, part in parts.items())
        return total, {name: part.detach() for name, part in parts.items()}

    def of_discriminator(self, repaired: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """What the heads learn from: hinge loss."""
        with torch.no_grad():
            fake, real = self.clip.seen(target + inside * (repaired - target))[1], self.clip.seen(target)[1]
        return F.relu(1.0 - self.discriminator(real)).mean() + F.relu(1.0 + self.discriminator(fake)).mean()
