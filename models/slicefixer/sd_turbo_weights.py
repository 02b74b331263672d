"""The user's folder of pretrained weights, in the layout of diffusers; what is missing is refused by its name.

    WEIGHTS/unet, vae            stabilityai/sd-turbo: config.json, diffusion_pytorch_model.safetensors (or .fp16.safetensors)
    WEIGHTS/text_encoder         the same repository's: config.json, model.safetensors (or .fp16.safetensors)
    WEIGHTS/tokenizer            vocab.json, merges.txt
    WEIGHTS/scheduler            scheduler_config.json
    WEIGHTS/rad-dino             microsoft/rad-dino: config.json, model.safetensors, preprocessor_config.json
    WEIGHTS/lpips                for the LPIPS loss: vgg16.pth (torchvision's), vgg.pth (the linear layers of lpips 0.1)
    WEIGHTS/clip                 for the CLIP and GAN losses, e.g. openai/clip-vit-base-patch32: config.json, model.safetensors, vocab.json, merges.txt
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .data import DataError

# Parts of the model (not of its losses), and the stem of each one's weights.
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model", "rad-dino": "model", "tokenizer": "", "scheduler": ""}

# What else decides about a part's result.
SETTINGS = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "scheduler_config.json", "preprocessor_config.json")

WHERE = "give the folder of stabilityai/sd-turbo with microsoft/rad-dino as rad-dino in it (models/README.md)"


def packages():
    """diffusers, transformers and peft; a `DataError` that says how to install them."""
    try:
        import diffusers
        import peft
        import transformers
    except ImportError as error:
        raise DataError(f"the sd-turbo model needs {error.name}: pip install -e models[sd-turbo]") from error
    return diffusers, transformers, peft


@dataclass(frozen=True)
class Weights:
    folder: Path

    def file(self, part: str, *names: str, what: str = WHERE) -> Path:
        """The first of the names that is there."""
        for name in names:
            if (self.folder / part / name).is_file():
                return self.folder / part / name
        raise DataError(f"{self.folder / part / names[0]} is missing: {what}")

    def tensors(self, part: str, stem: str, what: str = WHERE) -> Path:
        return self.file(part, f"{stem}.safetensors", f"{stem}.fp16.safetensors", what=what)

    def model(self, part: str, kind: type, stem: str, what: str = WHERE, **settings) -> nn.Module:
        """A frozen module of diffusers or transformers, every one of whose weights is in the file."""
        self.file(part, "config.json", what=what)
        path = self.tensors(part, stem, what)
        if path.name == f"{stem}.fp16.safetensors":
            settings["variant"] = "fp16"
        try:
            module, told = kind.from_pretrained(
                self.folder / part, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings
            )
        except Exception as error:
            # safetensors, json and the two libraries have an error each for a damaged file.
            raise DataError(f"{path}: cannot be read: {error}") from error
        missing = sorted(map(str, told["missing_keys"])) + sorted(map(str, told.get("mismatched_keys", [])))
        if missing:
            raise DataError(f"{path}: {len(missing)} tensors are missing or of another shape ({', '.join(missing[:3])}): it is not {kind.__name__}'s")
        return module.float().eval().requires_grad_(False)

    def json(self, part: str, name: str, what: str = WHERE) -> dict:
        path = self.file(part, name, what=what)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of each part's weights and settings: LoRA belongs to what it was trained beside."""
        found = {}
        for part, stem in PARTS.items():
            paths = ([self.tensors(part, stem)] if stem else []) + [self.folder / part / name for name in SETTINGS]
            digest = hashlib.sha256()
            for path in paths:
                if path.is_file():
                    with path.open("rb") as file:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
            found[part] = digest.hexdigest()
        return found

    def tokenizer(self, part: str, what: str = WHERE):
        _, transformers, _ = packages()
        self.file(part, "vocab.json", what=what), self.file(part, "merges.txt", what=what)
        return transformers.CLIPTokenizer.from_pretrained(self.folder / part, local_files_only=True)

    def normalisation(self, part: str, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation [1, 3, 1, 1] of the images that the part was trained on, for values in [0, 1]; the given ones where no file says."""
        if (self.folder / part / "preprocessor_config.json").is_file():
            told = self.json(part, "preprocessor_config.json")
            mean, std = told.get("image_mean", mean), told.get("image_std", std)
        return torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
