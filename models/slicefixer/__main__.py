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
    learn = commands.add_parser("train", help="train the compact model on pairs of `diffnr curate`")
    learn.add_argument("pairs", type=Path, help="folder that `diffnr curate -o` wrote")
    learn.add_argument("-o", "--out", type=Path, required=True, help="folder for the checkpoint; one that is there is gone on from")
    learn.add_argument("--shape", choices=SHAPES, default="usual")
    learn.add_argument("--minutes", type=float, help="stop after so long; the same command goes on later")
    for option in fields(Options):
        learn.add_argument("--" + option.name.replace("_", "-"), type=option.type, default=option.default, help=f"[{option.default}]")
    learn.add_argument("--no-skips", action="store_true", help="ablation: no skips from encoder to decoder")
    learn.add_argument("--no-conditioning", action="store_true", help="ablation: the model is told nothing of the scan")
    check = commands.add_parser("validate", help="PSNR and SSIM before and after repair on the validation split")
    check.add_argument("pairs", type=Path)
    check.add_argument("checkpoint", type=Path)
    check.add_argument("--split", default="validation", choices=("train", "validation"))
    check.add_argument("--planes", default="axial,coronal,sagittal", help="repair along these and average")
    check.add_argument("--json", action="store_true")
    write = commands.add_parser("export", help="ONNX graphs and their manifest")
    write.add_argument("checkpoint", type=Path)
    write.add_argument("-o", "--out", type=Path, required=True, help="folder for slicefixer-compact*.onnx and manifest.toml")
    for command in (learn, check):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--threads", type=int, default=0, help="CPU threads [all]")
    return parser


def run(given: argparse.Namespace) -> None:
    if getattr(given, "threads", 0):
        torch.set_num_threads(given.threads)
    if given.command == "train":
        shape = SHAPES[given.shape].as_dict() | {"skips": not given.no_skips, "conditioned": not given.no_conditioning}
        options = Options(**{option.name: getattr(given, option.name) for option in fields(Options)})
        say = lambda line: print(line, flush=True)  # noqa: E731
        path = train(given.pairs, given.out, CompactShape.from_dict(shape), options, given.device, given.minutes, say)
        print(f"wrote {path}")
    elif given.command == "validate":
        from .model import PLANES

        planes = tuple(PLANES.index(name) for name in given.planes.split(","))
        table = validate(model_of(load(given.checkpoint)).to(given.device), data.shards(given.pairs, given.split), given.device, planes)
        print(json.dumps([row.__dict__ for row in table.rows]) if given.json else table.markdown())
    else:
        from .export import export

        print("\n".join(f"wrote {path}" for path in export(given.checkpoint, given.out)))


def main() -> int:
    try:
        run(arguments().parse_args())
    except (data.DataError, FileNotFoundError) as error:
        print(f"slicefixer: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
