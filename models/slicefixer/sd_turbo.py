"""The paper's model: SD-Turbo's VAE and U-Net, adapted by LoRA, one diffusion step, skips from the encoder to the decoder.

The pretrained weights are the user's (`sd_turbo_weights`). A slice is shown as a grey picture, enlarged to the size that SD-Turbo knows; its latent (the
posterior's mean, nothing is sampled, no noise is added) takes one step from t = 199: x0 = (z - sqrt(1 - abar) eps) / sqrt(abar), whose gain is
1.15, where t = 999 has 14.6. Skips of 1 x 1 convolutions, zero at first, lead from what goes into each of the encoder's levels to the decoder.

One addition to the paper: the plane and the slice's height are added to the context, by a layer that is zero at first. What lies outside the window
passes through.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .checkpoint import Checkpoint
from .data import DataError
from .model import PLANES, Scan, SliceFixer
from .rad_dino import Adapter, RadDino, prompts
from .sd_turbo_weights import Weights, packages

# Layers that LoRA is put beside: convolutions and the attention's projections.
OF_VAE = ["conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0"]
OF_UNET = ["to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out", "proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"]


@dataclass(frozen=True)
class SdTurboShape:
    unet_rank: int = 8
    vae_rank: int = 4
    heads: int = 8
    step: int = 199
    # A slice is enlarged so many times: SD-Turbo knows pictures of 512 pixels, the paper's slices have 256.
    enlarge: int = 2
    # Ablation.
    skips: bool = True
    # SHA-256 of the parts that the rest was trained beside.
    weights: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        return asdict(self)


def skip_channels(channels: tuple[int, ...]) -> list[tuple[int, int]]:
    """Channels in and out of the skips, from the coarsest level up, of a VAE with these channels from the finest level down."""
    into_encoder = [channels[0], *channels[:-1]]
    into_decoder = [channels[-1], *channels[:0:-1]]
    return list(zip(reversed(into_encoder), into_decoder, strict=True))


class SdTurbo(SliceFixer):
    # As the paper: a slice alone.
    neighbours = 0

    def __init__(self, unet: nn.Module, vae: nn.Module, views: nn.Module, words: torch.Tensor, kept: float, shape: SdTurboShape = SdTurboShape()):
        """Frozen parts, the prompts' words [anatomies, tokens, width], and `kept`: the share of the signal's power (abar) at `shape.step`."""
        super().__init__()
        _, _, peft = packages()
        self.shape = shape
        factor = 2 ** (len(vae.config.block_out_channels) + len(unet.config.block_out_channels) - 2)
        if shape.enlarge < 1 or factor % shape.enlarge:
            raise DataError(f"enlarge = {shape.enlarge}: must divide {factor}")
        self.multiple = factor // shape.enlarge
        for module in (unet, vae, views):
            module.requires_grad_(False)
        lora = lambda rank, layers: peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers)  # noqa: E731
        self.unet = peft.inject_adapter_in_model(lora(shape.unet_rank, OF_UNET), unet)
        self.vae = peft.inject_adapter_in_model(lora(shape.vae_rank, OF_VAE), vae)
        self.views = views
        self.register_buffer("words", words, persistent=False)
        width = words.shape[2]
        self.adapter = Adapter(width, views.width, shape.heads)
        self.skips = None
        if shape.skips:
            self.skips = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o in skip_channels(tuple(vae.config.block_out_channels)))
            for skip in self.skips:
                nn.init.zeros_(skip.weight)
        self.plane, self.height = nn.Parameter(torch.zeros(len(PLANES), width)), nn.Linear(32, width)
        nn.init.zeros_(self.height.weight), nn.init.zeros_(self.height.bias)
        self.register_buffer("frequencies", 0.5 * torch.pi * 2.0 ** (torch.arange(16) / 2), persistent=False)
        self.register_buffer("time", torch.tensor([shape.step]), persistent=False)
        self.of_latent, self.of_noise = kept**-0.5, (1.0 - kept) ** 0.5 * kept**-0.5
        # Nothing in it behaves differently when it learns.
        self.eval()

    @staticmethod
    def load(folder: Path, shape: SdTurboShape = SdTurboShape()) -> "SdTurbo":
        """From the user's weights; those of another training are refused."""
        diffusers, _, _ = packages()
        weights = Weights(folder)
        schedule = weights.json("scheduler", "scheduler_config.json")
        kept = signal_power(schedule, shape.step)
        found = weights.fingerprint()
        for part, known in shape.weights.items():
            if found[part] != known:
                raise DataError(f"{folder / part}: other weights or settings than those that this model was trained beside ({found[part][:12]}, then {known[:12]})")
        shape = SdTurboShape(**(shape.as_dict() | {"weights": found}))
        unet = weights.model("unet", diffusers.UNet2DConditionModel, "diffusion_pytorch_model")
        vae = weights.model("vae", diffusers.AutoencoderKL, "diffusion_pytorch_model")
        words = prompts(weights)
        if words.shape[2] != unet.config.cross_attention_dim:
            raise DataError(f"{folder}: the text encoder's words have {words.shape[2]} channels, the U-Net takes {unet.config.cross_attention_dim}")
        return SdTurbo(unet, vae, RadDino(weights), words, kept, shape)

    def trained(self) -> dict[str, torch.Tensor]:
        """All that is not the user's: LoRA, skips, and both adapters."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}

    def take(self, trained: dict[str, torch.Tensor]) -> None:
        """The reverse of `trained`."""
        ours = self.trained()
        differing = sorted(set(ours) ^ set(trained)) or sorted(name for name in ours if ours[name].shape != trained[name].shape)
        if differing:
            raise DataError(f"the checkpoint does not fit these weights: {len(differing)} tensors differ ({', '.join(differing[:3])})")
        with torch.no_grad():
            for name, value in ours.items():
                value.copy_(trained[name])

    def condition(self, scan: Scan) -> torch.Tensor:
        with torch.no_grad():
            views = self.views(scan.projections)
        return self.adapter(self.words[scan.anatomy], views)

    def place(self, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        angles = height[:, None] * self.frequencies[None]
        return self.plane[plane] + self.height(torch.cat((angles.sin(), angles.cos()), 1))

    def encode(self, picture: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Latent (the posterior's mean), and what went into each level."""
        encoder, inputs = self.vae.encoder, []
        x = encoder.conv_in(picture)
        for block in encoder.down_blocks:
            inputs.append(x)
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        moments = self.vae.quant_conv(x) if self.vae.quant_conv is not None else x
        return moments.chunk(2, 1)[0] * self.vae.config.scaling_factor, inputs

    def decode(self, latent: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
        decoder = self.vae.decoder
        z = latent / self.vae.config.scaling_factor
        z = self.vae.post_quant_conv(z) if self.vae.post_quant_conv is not None else z
        x = decoder.mid_block(decoder.conv_in(z))
        for level, block in enumerate(decoder.up_blocks):
            if self.skips is not None:
                x = x + self.skips[level](inputs[-1 - level])
            x = block(x)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))

    def repair(self, slices: torch.Tensor, context: torch.Tensor, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        context = context + self.place(plane, height)[:, None]
        inside = slices.clamp(-1.0, 1.0)
        picture = inside if self.shape.enlarge == 1 else F.interpolate(inside, scale_factor=float(self.shape.enlarge), mode="bilinear", align_corners=False)
        latent, inputs = self.encode(picture.expand(-1, 3, -1, -1))
        noise = self.unet(latent, self.time, encoder_hidden_states=context, return_dict=False)[0]
        repaired = self.decode(self.of_latent * latent - self.of_noise * noise, inputs).mean(1, keepdim=True)
        return F.avg_pool2d(repaired, self.shape.enlarge) + (slices - inside)

    def merged(self) -> "SdTurbo":
        """This model with LoRA added to the weights it stands beside; it can be exported, not trained."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in list(self.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
                    setattr(module, name, layer.get_base_layer())
        return self.requires_grad_(False)


def signal_power(schedule: dict, step: int) -> float:
    """abar at a step of SD-Turbo's noise schedule."""
    for name, wanted in (("beta_schedule", "scaled_linear"), ("prediction_type", "epsilon")):
        if schedule.get(name, wanted) != wanted:
            raise DataError(f"scheduler_config.json: {name} = {schedule[name]}: SD-Turbo's is {wanted}")
    first, last, steps = (schedule.get(name, usual) for name, usual in (("beta_start", 0.00085), ("beta_end", 0.012), ("num_train_timesteps", 1000)))
    beta = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - beta, 0)[step].item()


def of_checkpoint(checkpoint: Checkpoint, folder: Path | None) -> SdTurbo:
    if folder is None:
        raise DataError("an sd-turbo checkpoint holds LoRA and adapters only: give the pretrained weights by --weights FOLDER")
    model = SdTurbo.load(folder, SdTurboShape(**checkpoint.shape))
    model.take(checkpoint.averaged)
    return model
