"""Building blocks after Stable Diffusion's, in operations that ONNX opset 18 and TensorRT have (attention as MatMul and Softmax)."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    groups = math.gcd(channels, 8)
    return nn.GroupNorm(groups, channels, eps=1e-5)


def zero(layer: nn.Module) -> nn.Module:
    """A layer that at first adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def scaled(layer: nn.Module, factor: float) -> nn.Module:
    """A layer that at first adds little."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
    return layer


class Residual(nn.Module):
    """Two convolutions beside an identity; `embedding` channels are added between them.

    Without normalisation: a slice's contrast is what is to be repaired, and on a CPU it took as long as the convolutions.
    """

    def __init__(self, channels_in: int, channels: int, embedding: int = 0):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = scaled(nn.Conv2d(channels, channels, 3, padding=1), 0.2)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.embed = nn.Linear(embedding, channels) if embedding else None

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        h = self.conv1(F.silu(x))
        if self.embed is not None:
            h = h + self.embed(embedding)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head attention of `width` to `context_width`; written out, for opset 23's Attention is refused by TensorRT-RTX."""

    def __init__(self, width: int, context_width: int | None = None, head: int = 32):
        super().__init__()
        context_width = context_width or width
        self.heads = max(width // head, 1)
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(context_width, width, bias=False)
        self.v, self.out = nn.Linear(context_width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context

        def split(t: torch.Tensor) -> torch.Tensor:
            return t.unflatten(2, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(context)), split(self.v(context))
        weights = torch.softmax(q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5), dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Stable Diffusion's block on an image: self-attention, cross-attention to the context, gated feed-forward; adds nothing at first."""

    def __init__(self, width: int, context_width: int, growth: int = 2):
        super().__init__()
        self.norm, self.into, self.out_of = group_norm(width), nn.Linear(width, width), zero(nn.Linear(width, width))
        self.norm1, self.to_self = nn.LayerNorm(width), Attention(width)
        self.norm2, self.to_context = nn.LayerNorm(width), Attention(width, context_width)
        self.norm3, self.feed1, self.feed2 = nn.LayerNorm(width), nn.Linear(width, 2 * growth * width), nn.Linear(growth * width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        rows = x.shape[2]
        h = self.into(self.norm(x).flatten(2).transpose(1, 2))
        h = h + self.to_self(self.norm1(h))
        h = h + self.to_context(self.norm2(h), context)
        value, gate = self.feed1(self.norm3(h)).chunk(2, -1)
        h = h + self.feed2(value * F.gelu(gate))
        return x + self.out_of(h).transpose(1, 2).unflatten(2, (rows, -1))


class TokenLayer(nn.Module):
    """Self-attention and feed-forward over tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.feed1, self.feed2 = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed2(F.gelu(self.feed1(self.norm2(x))))


def halve(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


def double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
