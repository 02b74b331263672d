"""The compact model: the paper's topology, small, trained from scratch.

A convolutional encoder brings a slice (and its neighbours) to a latent a quarter as fine, a U-Net with self- and cross-attention takes one diffusion step
there (t = 199, epsilon prediction: x0 = (z - sqrt(1 - abar) eps) / sqrt(abar), no noise is added), a decoder with skips from every level of the
encoder makes the slice. (The paper's skips begin at zero, beside weights that are trained already; here nothing is, and they begin like the rest.) The encoder gives the mean, nothing is sampled: the same slice gives the same repair. What the decoder gives is
added to the slice, so that an untrained model changes nothing, and what lies outside the window passes through. It has no mean over a neighbourhood: how much
there is in all, few views tell as well as many, and a model that may change it continues bodies beyond their ends.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import Attention, Residual, TokenLayer, Transformer, double, group_norm, halve, scaled, zero
from .model import ANATOMIES, PLANES, Scan, SliceFixer

# Side of the projections that the conditioner takes, in pixels.
PROJECTION = 128

# Standard deviation of the neighbourhood whose mean a repair leaves as it is, in pixels.
NEIGHBOURHOOD = 12.0

# Brings what is unexplained to about the size of a slice's own values.
UNEXPLAINED = 8.0


@dataclass(frozen=True)
class CompactShape:
    """Sizes. Channels from the finest level to the coarsest."""

    vae: tuple[int, ...] = (64, 96)
    latent: int = 32
    unet: tuple[int, ...] = (96, 160)
    # Levels of the U-Net with attention.
    attention: tuple[bool, ...] = (False, True)
    # Pixels of a side that are one place of the finest level, as channels.
    patch: int = 2
    context: int = 128
    tokens: int = 8
    embedding: int = 128
    step: int = 199
    neighbours: int = 2
    # Whether it sees what is unexplained, and how many of PLANES it learns.
    unexplained: bool = True
    planes: int = 1
    # Ablations: none of the decoder's skips, no conditioning on the scan.
    skips: bool = True
    conditioned: bool = True

    def as_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict) -> "CompactShape":
        return CompactShape(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


class Encoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], latent: int, channels_in: int):
        super().__init__()
        self.into = nn.Conv2d(channels_in, channels[0], 3, padding=1)
        before = (channels[0], *channels[:-1])
        self.blocks = nn.ModuleList(Residual(i, o) for i, o in zip(before, channels, strict=True))
        self.halves = nn.ModuleList(halve(o) for o in channels[:-1])
        self.out_of = nn.Conv2d(channels[-1], latent, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Latent, and what went into each level."""
        x, inputs = self.into(x), []
        for level, block in enumerate(self.blocks):
            inputs.append(x)
            x = block(x)
            if level < len(self.halves):
                x = self.halves[level](x)
        return self.out_of(F.silu(x)), inputs


class Decoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], latent: int, skips: bool, channels_out: int):
        super().__init__()
        self.into, self.middle = nn.Conv2d(latent, channels[-1], 3, padding=1), Residual(channels[-1], channels[-1])
        inputs = (channels[0], *channels[:-1])
        # From the coarsest level up.
        levels = range(len(channels) - 1, -1, -1)
        self.skips = nn.ModuleList(nn.Conv2d(inputs[i], channels[i], 1, bias=False) for i in levels) if skips else None
        self.blocks = nn.ModuleList(Residual(channels[i], channels[i]) for i in levels)
        self.doubles = nn.ModuleList(nn.Conv2d(channels[i], channels[i - 1], 1) for i in levels if i > 0)
        self.out_of = zero(nn.Conv2d(channels[0], channels_out, 3, padding=1))

    def forward(self, z: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = self.middle(self.into(z))
        for level, block in enumerate(self.blocks):
            if self.skips is not None:
                x = x + self.skips[level](inputs[-1 - level])
            x = block(x)
            if level < len(self.doubles):
                x = double(self.doubles[level](x))
        return self.out_of(F.silu(x))


class UNet(nn.Module):
    def __init__(self, shape: CompactShape):
        super().__init__()
        channels, embedding = shape.unet, shape.embedding

        def attend(width: int, wanted: bool) -> nn.Module | None:
            return Transformer(width, shape.context) if wanted else None

        self.into = nn.Conv2d(shape.latent, channels[0], 3, padding=1)
        before = (channels[0], *channels[:-1])
        self.down = nn.ModuleList(Residual(i, o, embedding) for i, o in zip(before, channels, strict=True))
        self.down_attention = nn.ModuleList(attend(o, wanted) for o, wanted in zip(channels, shape.attention, strict=True))
        self.halves = nn.ModuleList(halve(o) for o in channels[:-1])
        last = channels[-1]
        self.middle = nn.ModuleList((Residual(last, last, embedding), Residual(last, last, embedding)))
        self.middle_attention = Transformer(last, shape.context)
        levels = range(len(channels) - 1, -1, -1)
        self.up = nn.ModuleList(Residual(channels[i], channels[i], embedding) for i in levels)
        self.up_attention = nn.ModuleList(attend(channels[i], shape.attention[i]) for i in levels)
        self.doubles = nn.ModuleList(nn.Conv2d(channels[i], channels[i - 1], 1) for i in levels if i > 0)
        self.out_of = scaled(nn.Conv2d(channels[0], shape.latent, 3, padding=1), 0.2)

    def forward(self, z: torch.Tensor, embedding: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x, kept = self.into(z), []
        for level, (block, attention) in enumerate(zip(self.down, self.down_attention, strict=True)):
            x = block(x, embedding)
            x = x if attention is None else attention(x, context)
            kept.append(x)
            if level < len(self.halves):
                x = self.halves[level](x)
        x = self.middle[1](self.middle_attention(self.middle[0](x, embedding), context), embedding)
        for level, (block, attention) in enumerate(zip(self.up, self.up_attention, strict=True)):
            x = block(x + kept.pop(), embedding)
            x = x if attention is None else attention(x, context)
            if level < len(self.doubles):
                x = double(self.doubles[level](x))
        return self.out_of(F.silu(x))


class Conditioner(nn.Module):
    """Two orthogonal projections and the anatomy as tokens; stands where the paper has RAD-DINO features, a text prompt and their adapter."""

    def __init__(self, width: int, tokens: int):
        super().__init__()
        channels = (16, 32, 64, width)
        layers: list[nn.Module] = []
        for i, o in zip((1, *channels[:-1]), channels, strict=True):
            layers += [halve_to(i, o), group_norm(o), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        side = PROJECTION // 2 ** len(channels)
        self.places = nn.Parameter(0.02 * torch.randn(1, 2 * side * side, width))
        self.layers = nn.ModuleList(TokenLayer(width) for _ in range(2))
        self.anatomy = nn.Parameter(0.02 * torch.randn(len(ANATOMIES), tokens, width))
        self.adapt, self.norm = Attention(width), nn.LayerNorm(width)

    def forward(self, scan: Scan) -> torch.Tensor:
        # A line integral of 4 is a chest from the side.
        views = (scan.projections * 0.25).flatten(0, 1).unsqueeze(1)
        tokens = self.features(views).flatten(2).transpose(1, 2)
        tokens = tokens.unflatten(0, (-1, 2)).flatten(1, 2) + self.places
        for layer in self.layers:
            tokens = layer(tokens)
        words = self.anatomy[scan.anatomy]
        return torch.cat((self.norm(words + self.adapt(words, tokens)), tokens), 1)


def without_local_mean(change: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """`change` [B, 1, rows, columns] less its mean about each pixel, by `taps` along rows and columns; what lies outside does not count."""
    half = (taps.numel() - 1) // 2

    def summed(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, taps.view(1, 1, 1, -1), padding=(0, half))
        return F.conv2d(x, taps.view(1, 1, -1, 1), padding=(half, 0))

    return change - summed(change) / summed(torch.ones_like(change[:1]))


def halve_to(channels_in: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)


class Compact(SliceFixer):
    def __init__(self, shape: CompactShape = CompactShape()):
        super().__init__()
        self.shape, self.neighbours, self.unexplained, self.planes = shape, shape.neighbours, shape.unexplained, PLANES[: shape.planes]
        self.multiple = shape.patch * 2 ** (len(shape.vae) + len(shape.unet) - 2)
        self.encoder = Encoder(shape.vae, shape.latent, self.channels * shape.patch**2)
        self.unet = UNet(shape)
        self.decoder = Decoder(shape.vae, shape.latent, shape.skips, shape.patch**2)
        self.conditioner = Conditioner(shape.context, shape.tokens)
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1.0 - beta, 0)[shape.step].item()
        self.of_latent, self.of_noise = kept**-0.5, (1.0 - kept) ** 0.5 * kept**-0.5
        self.register_buffer("frequencies", torch.exp(-torch.arange(16) * (torch.log(torch.tensor(1e4)) / 16)), persistent=False)
        places = torch.arange(-2 * NEIGHBOURHOOD, 2 * NEIGHBOURHOOD + 1)
        self.register_buffer("taps", torch.exp(-0.5 * (places / NEIGHBOURHOOD) ** 2), persistent=False)
        self.plane = nn.Parameter(0.02 * torch.randn(len(PLANES), shape.embedding))
        self.embed1, self.embed2 = nn.Linear(64, shape.embedding), nn.Linear(shape.embedding, shape.embedding)

    def condition(self, scan: Scan) -> torch.Tensor:
        if not self.shape.conditioned:
            scan = Scan(torch.zeros_like(scan.projections), torch.zeros_like(scan.anatomy))
        return self.conditioner(scan)

    def embedding(self, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        step = (self.shape.step * self.frequencies)[None].expand(height.shape[0], -1)
        place = 1000.0 * height[:, None] * self.frequencies[None]
        waves = torch.cat((step.sin(), step.cos(), place.sin(), place.cos()), 1)
        return self.embed2(F.silu(self.embed1(waves))) + self.plane[plane]

    def repair(self, slices: torch.Tensor, context: torch.Tensor, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        context = context.expand(slices.shape[0], -1, -1)
        middle = slices[:, self.neighbours : self.neighbours + 1]
        seen = slices.clamp(-1.0, 1.0)
        if self.unexplained:
            # What is unexplained are some tens of HU.
            values, unexplained = slices.chunk(2, 1)
            seen = torch.cat((values.clamp(-1.0, 1.0), (UNEXPLAINED * unexplained).clamp(-1.0, 1.0)), 1)
        latent, inputs = self.encoder(F.pixel_unshuffle(seen, self.shape.patch))
        noise = self.unet(latent, F.silu(self.embedding(plane, height)), context)
        change = F.pixel_shuffle(self.decoder(self.of_latent * latent - self.of_noise * noise, inputs), self.shape.patch)
        return middle + without_local_mean(change.float(), self.taps)
