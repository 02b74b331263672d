"""`python -m slicefixer train | validate | export`."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

import torch

from . import data
from .checkpoint import load, model_of
from .compact import CompactShape
from .model import PLANES
from .sd_turbo_train import SdTurboOptions
from .train import Options, train
from .validate import validate

SHAPES = {
    "small": CompactShape(vae=(32, 64), unet=(64, 128), context=96, embedding=96),
    "usual": CompactShape(),
    "large": CompactShape(vae=(96, 160), unet=(160, 288), context=192),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slicefixer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="train a model on pairs of `diffnr curate`")
    learn.add_argument("pairs", type=Path, help="folder that `diffnr curate -o` wrote")
    learn.add_argument("-o", "--out", type=Path, required=True, help="folder for the checkpoint; one that is there is gone on from")
    learn.add_argument("--model", choices=("compact", "sd-turbo"), default="compact")
    learn.add_argument("--shape", choices=SHAPES, help="of the compact model [usual]")
    learn.add_argument("--enlarge", type=int, help="sd-turbo: slices are enlarged so many times, 512 pixels are what it knows [2]")
    learn.add_argument("--minutes", type=float, help="stop after so long; the same command goes on later")
    learn.add_argument("--begin", type=Path, metavar="CHECKPOINT", help="compact: begin with the weights of an ended training, its rate anew")
    for name, (kind, usual) in options_of_models().items():
        learn.add_argument("--" + name.replace("_", "-"), type=kind, help=usual)
    learn.add_argument("--all-planes", action="store_true", help="compact: learn coronal and sagittal slices too")
    learn.add_argument("--no-unexplained", action="store_true", help="ablation: the model does not see what the scan says and the volume does not")
    learn.add_argument("--no-skips", action="store_true", help="ablation: no skips from encoder to decoder")
    learn.add_argument("--no-conditioning", action="store_true", help="ablation: the model is told nothing of the scan")
    check = commands.add_parser("validate", help="PSNR and SSIM before and after repair on the validation split")
    check.add_argument("pairs", type=Path)
    check.add_argument("checkpoint", type=Path)
    check.add_argument("--split", default="validation", choices=("train", "validation"))
    check.add_argument("--planes", help="repair along these and average [all that the model knows]")
    check.add_argument("--json", action="store_true")
    write = commands.add_parser("export", help="ONNX graphs and their manifest")
    write.add_argument("checkpoint", type=Path)
    write.add_argument("-o", "--out", type=Path, required=True, help="folder for slicefixer-*.onnx and manifest.toml")
    for command in (learn, check, write):
        command.add_argument("--weights", type=Path, help="sd-turbo: folder of the pretrained weights (models/README.md)")
    for command in (learn, check):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--threads", type=int, default=0, help="CPU threads [all]")
    return parser


def options_of_models() -> dict[str, tuple[type, str]]:
    """Type and help of every option of a training; defaults are each model's own."""
    found: dict[str, tuple[type, str]] = {}
    for model, kind in (("compact", Options), ("sd-turbo", SdTurboOptions)):
        for option in fields(kind):
            before = found.get(option.name, (option.type, ""))[1]
            found[option.name] = (option.type, f"{before}{', ' if before else ''}{model} [{option.default}]")
    return found


def chosen(kind: type, given: argparse.Namespace):
    """The options of a kind of training; one that belongs to the other is refused."""
    own = {option.name for option in fields(kind)}
    told = {name: getattr(given, name) for name in options_of_models() if getattr(given, name) is not None}
    alien = sorted(set(told) - own)
    if alien:
        raise data.DataError(f"--{alien[0].replace('_', '-')} is no option of --model {given.model}")
    return kind(**told)


def train_sd_turbo(given: argparse.Namespace, say) -> Path:
    from . import sd_turbo_train
    from .sd_turbo import SdTurboShape

    for option in ("shape", "begin", "no_conditioning", "no_unexplained", "all_planes"):
        if getattr(given, option):
            raise data.DataError(f"--{option.replace('_', '-')} is no option of --model sd-turbo")
    if given.weights is None:
        raise data.DataError("--model sd-turbo needs --weights FOLDER: the pretrained weights (models/README.md)")
    shape = SdTurboShape(enlarge=2 if given.enlarge is None else given.enlarge, skips=not given.no_skips)
    return sd_turbo_train.train(given.pairs, given.out, given.weights, shape, chosen(SdTurboOptions, given), given.device, given.minutes, say)


def run(given: argparse.Namespace) -> None:
    if getattr(given, "threads", 0):
        torch.set_num_threads(given.threads)
    if given.command == "train":
        say = lambda line: print(line, flush=True)  # noqa: E731
        if given.model == "sd-turbo":
            path = train_sd_turbo(given, say)
        else:
            for option in ("weights", "enlarge"):
                if getattr(given, option) is not None:
                    raise data.DataError(f"--{option} is no option of --model compact")
            chosen_so = {"skips": not given.no_skips, "conditioned": not given.no_conditioning, "unexplained": not given.no_unexplained}
            shape = SHAPES[given.shape or "usual"].as_dict() | chosen_so | ({"planes": len(PLANES)} if given.all_planes else {})
            path = train(given.pairs, given.out, CompactShape.from_dict(shape), chosen(Options, given), given.device, given.minutes, say, given.begin)
        print(f"wrote {path}")
    elif given.command == "validate":
        model = model_of(load(given.checkpoint), given.weights).to(given.device)
        planes = tuple(PLANES.index(name) for name in (given.planes.split(",") if given.planes else model.planes))
        table = validate(model, data.shards(given.pairs, given.split), given.device, planes)
        print(json.dumps([row.__dict__ for row in table.rows]) if given.json else table.markdown())
    else:
        from .export import export

        print("\n".join(f"wrote {path}" for path in export(given.checkpoint, given.out, given.weights)))


def main() -> int:
    try:
        run(arguments().parse_args())
    except (data.DataError, FileNotFoundError) as error:
        print(f"slicefixer: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
