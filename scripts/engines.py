#!/usr/bin/env python3
"""Build TensorRT-RTX engines of a SliceFixer model's graphs: says, on a machine without a GPU, whether TensorRT-RTX takes them.

    make engines [MODEL=models]
    scripts/engines.py models [--slices 8] [--pixels 512]

Reads the folder's manifest.toml, builds an engine of each graph for one up to so many slices of up to so many pixels a side, and prints
its size and the seconds that it took. Nothing is kept: `diffnr` builds its own on the machine that runs them. Exit codes: 0 all built, 1 a
graph was refused (the parser's words are printed), 4 no model there. Needs the PyPI package tensorrt_rtx_cu13.
"""

import argparse
import pathlib
import sys
import time
import tomllib

import tensorrt_rtx as trt


def shape_of(declared: list[int | str], slices: int, pixels: int) -> tuple[int, ...]:
    """A declared shape with numbers for its names: `batch` is slices, all others pixels."""
    return tuple(size if isinstance(size, int) else slices if size == "batch" else pixels for size in declared)


def build(path: pathlib.Path, inputs: list[dict], multiple: int, slices: int, pixels: int) -> tuple[int, int]:
    """Layers and bytes of the engine; raises RuntimeError with the parser's words."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for told in inputs:
        least, most = shape_of(told["shape"], 1, multiple), shape_of(told["shape"], slices, pixels)
        if least != most:
            profile.set_shape(told["name"], least, most, most)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("parsed, but no engine was built")
    return network.num_layers, engine.nbytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="folder with manifest.toml")
    parser.add_argument("--slices", type=int, default=8, help="largest batch [8]")
    parser.add_argument("--pixels", type=int, default=512, help="largest side of a slice [512]")
    given = parser.parse_args()
    try:
        manifest = tomllib.loads((given.model / "manifest.toml").read_text())
    except FileNotFoundError as error:
        print(f"engines: {error}; `python -m slicefixer export` writes a model's folder", file=sys.stderr)
        return 4
    print(f"TensorRT-RTX {trt.__version__}, {manifest['name']}")
    refused = 0
    for graph in manifest["graph"]:
        began = time.monotonic()
        try:
            layers, size = build(given.model / graph["file"], graph["input"], manifest["multiple"], given.slices, given.pixels)
            print(f"{graph['file']}: {layers} layers, engine of {size / 2**20:.1f} MiB in {time.monotonic() - began:.1f} s")
        except RuntimeError as error:
            refused = 1
            print(f"{graph['file']}: refused: {error}", file=sys.stderr)
    return refused


if __name__ == "__main__":
    sys.exit(main())
