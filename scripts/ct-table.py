#!/usr/bin/env python3
"""Simulate, reconstruct and score CT volumes: a table of PSNR, SSIM and seconds, and a picture of every reconstruction.

    scripts/ct-table.py VOLUME.nii.gz ... -o OUT [--views 360,50,36] [--voxels 128,256] [--photons 100000]

Needs only the release build of diffnr and Python's standard library. Writes OUT/table.md, OUT/table.json and a PNG a row.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

DIFFNR = pathlib.Path(__file__).resolve().parent.parent / "target/release/diffnr"


def diffnr(*arguments: str) -> dict:
    """Runs one subcommand with --json and returns its answer."""
    done = subprocess.run([DIFFNR, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"diffnr {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True)
    parser.add_argument("--views", default="360,50,36")
    parser.add_argument("--voxels", default="128,256")
    parser.add_argument("--photons", default="100000")
    parser.add_argument("--methods", default="fdk")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    rows = []
    for volume in options.volumes:
        name = volume.name.removesuffix(".gz").removesuffix(".nii")
        for voxels in options.voxels.split(","):
            for views in options.views.split(","):
                scan = options.out / f"{name}_{voxels}_{views}"
                started = time.monotonic()
                diffnr("simulate", str(volume), "-o", str(scan), "--views", views, "--voxels", voxels,
                       "--photons", options.photons, "--detector", f"{voxels}x{voxels}", "--force")
                simulated = time.monotonic() - started
                for method in options.methods.split(","):
                    result = scan.with_name(f"{scan.name}_{method}.nii.gz")
                    started = time.monotonic()
                    answer = diffnr("reconstruct", str(scan), "--method", method, "-o", str(result), "--png",
                                    str(result).replace(".nii.gz", ".png"))
                    wall = time.monotonic() - started
                    score = diffnr("evaluate", str(result), "--reference", str(scan), "--fov", str(scan))
                    rows.append({"volume": name, "voxels": int(voxels), "views": int(views), "method": method,
                                 "psnr_db": score["psnr_db"], "ssim": score["ssim"], "rmse_hu": score["rmse_hu"],
                                 "simulate_s": simulated, "command_s": wall, "reconstruct": answer})
                    row = rows[-1]
                    print(f"{name:24} {voxels:>4}^3 {views:>4} views {method:8} {row['psnr_db']:6.2f} dB  SSIM {row['ssim']:.3f}"
                          f"  RMSE {row['rmse_hu']:6.1f} HU  {wall:6.2f} s", flush=True)

    (options.out / "table.json").write_text(json.dumps(rows, indent=1))
    lines = ["| volume | voxels | views | method | PSNR dB | SSIM | RMSE HU | whole command s |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {r['volume']} | {r['voxels']}^3 | {r['views']} | {r['method']} | {r['psnr_db']:.2f} | {r['ssim']:.3f} |"
              f" {r['rmse_hu']:.1f} | {r['command_s']:.2f} |" for r in rows]
    (options.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
