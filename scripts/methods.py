#!/usr/bin/env python3
"""Compare all methods on CT volumes: a table of PSNR, SSIM, seconds and peak memory, PSNR against seconds, slices side by side.

    make methods CT="VOLUME.nii.gz ..." [VIEWS=36,24,12] [METHODS=fdk,os-sart,asd-pocs,gaussians,field]
    scripts/methods.py VOLUME.nii.gz ... -o OUT [--views 36,24,12] [--voxels 128] [--photons 1e5,inf] [--methods ...]

Every volume is simulated with `diffnr simulate`, reconstructed with every method's defaults, and scored within the field of view with
`diffnr evaluate` (chests with the lungs' Dice and average surface distance). A representation's name may be followed by what SliceFixer does:
field+slice-fixer (its reference supervises the optimisation by similarity), field+modulus (by the modulus of the difference), field+repair
(post-processing: the field's volume repaired, the end). Writes OUT/table.md, OUT/table.json, and for every volume, number of views and photons a contact sheet of middle
slices (OUT/*_slices.png) and a curve (OUT/*_seconds.png). Needs the release build of diffnr, numpy, matplotlib and nibabel. Scans and
reconstructions that are there already are kept: an interrupted run goes on where it stopped.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import matplotlib
import nibabel

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

DIFFNR = pathlib.Path(__file__).resolve().parent.parent / "target/release/diffnr"


def diffnr(*arguments: str) -> dict:
    """Runs one subcommand with --json and returns its answer."""
    done = subprocess.run([DIFFNR, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"diffnr {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def reconstruct(scan: pathlib.Path, method: str, anatomy: str, photons: str, result: pathlib.Path, more: list[str]) -> dict:
    """One method's volume in `result`; what the run said, with `total_s` and `curve` for the table and the picture."""
    name, _, how = method.partition("+")
    told = ["--photons", photons] if name in ("gaussians", "field") else []
    if how == "repair":
        volume = result.with_name(result.name.replace(method, name))
        before = json.loads(volume.with_name(volume.name.replace(".nii.gz", ".json")).read_text())
        run = diffnr("repair", str(volume), "--scan", str(scan), "-o", str(result), "--anatomy", anatomy, *told)
        return {**run, "total_s": before["total_s"] + run["seconds"]["repair"], "curve": [], "peak_memory_bytes": before["peak_memory_bytes"]}
    trace = result.with_name(result.name.replace(".nii.gz", ".trace.json"))
    if how:
        told += ["--slice-fixer", "shipped", "--anatomy", anatomy, *more, *(["--repair-modulus"] if how == "modulus" else [])]
    run = diffnr("reconstruct", str(scan), "--method", name, "-o", str(result), "--device", "cpu", "--trace", str(trace), *told)
    return {**run, "total_s": run["seconds"]["reconstruct"], "curve": json.loads(trace.read_text())["points"]}


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def slices(volume: np.ndarray) -> list[np.ndarray]:
    """Middle axial, coronal and sagittal slice of an array [x, y, z] in HU, as they are hung: anterior and head up."""
    x, y, z = (count // 2 for count in volume.shape)
    return [volume[:, ::-1, z].T, volume[:, y, ::-1].T, volume[x, :, ::-1].T]


def draw_slices(path: pathlib.Path, title: str, panels: list[tuple[str, np.ndarray]]) -> None:
    figure, axes = plt.subplots(3, len(panels), figsize=(2.6 * len(panels), 8.2), squeeze=False)
    for column, (caption, volume) in enumerate(panels):
        for row, image in enumerate(slices(volume)):
            axes[row][column].imshow(image, cmap="gray", vmin=-1000, vmax=600, interpolation="nearest")
            axes[row][column].set_axis_off()
        axes[0][column].set_title(caption, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_seconds(path: pathlib.Path, title: str, curves: list[tuple[str, list[dict]]]) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for name, points in curves:
        points = [point for point in points if "psnr_db" in point]
        axes.plot([p["seconds"] for p in points], [p["psnr_db"] for p in points], marker="." if len(points) < 4 else None, label=name)
    axes.set(xscale="log", xlabel="seconds", ylabel="PSNR (dB)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True)
    parser.add_argument("--views", default="36,24,12")
    parser.add_argument("--voxels", default="128")
    parser.add_argument("--photons", default="1e5", help="photons a pixel; inf for none of their noise")
    parser.add_argument("--methods", default="fdk,os-sart,asd-pocs,gaussians,field")
    parser.add_argument("--repair", default="", help="options of diffnr reconstruct for +slice-fixer and +modulus, as one word: '--repairs 2'")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    rows = []
    for volume in options.volumes:
        name = volume.name.removesuffix(".gz").removesuffix(".nii")
        for voxels in options.voxels.split(","):
            for photons in options.photons.split(","):
                for views in options.views.split(","):
                    label = f"{name}_{voxels}_{views}_{photons}"
                    scan = options.out / label
                    if not (scan / "meta_data.json").exists():
                        noise = ["--noise-free"] if photons == "inf" else ["--photons", photons]
                        diffnr("simulate", str(volume), "-o", str(scan), "--views", views, "--voxels", voxels,
                               "--detector", f"{voxels}x{voxels}", "--force", *noise)
                    panels, curves = [("ground truth", 2000 * np.load(scan / "vol_gt.npy") - 1000)], []
                    for method in options.methods.split(","):
                        result = options.out / f"{label}_{method}.nii.gz"
                        answer = options.out / f"{label}_{method}.json"
                        if not answer.exists():
                            answer.write_text(json.dumps(reconstruct(scan, method, name.partition("_")[0], photons, result, options.repair.split())))
                        run = json.loads(answer.read_text())
                        score = diffnr("evaluate", str(result), "--reference", str(scan), "--fov", str(scan),
                                       *(["--lungs"] if name.startswith("chest") else []))
                        row = {"volume": name, "voxels": int(voxels), "photons": photons, "views": int(views), "method": method,
                               "psnr_db": score["psnr_db"], "ssim": score["ssim"], "seconds": run["total_s"],
                               "lungs_dice": score.get("lungs", {}).get("dice"), "lungs_asd_mm": score.get("lungs", {}).get("asd_mm"),
                               "peak_mib": run["peak_memory_bytes"] / 2**20, "iterations": run.get("iterations")}
                        rows.append(row)
                        print(f"{label:34} {method:21} {row['psnr_db']:6.2f} dB  SSIM {row['ssim']:.3f}  {row['seconds']:7.2f} s  "
                              f"{row['peak_mib']:5.0f} MiB", flush=True)
                        panels.append((f"{method}\n{row['psnr_db']:.2f} dB, SSIM {row['ssim']:.3f}, {row['seconds']:.1f} s",
                                       np.asarray(nibabel.load(result).dataobj)))
                        curves.append((method, run["curve"]))
                    title = f"{name}, {views} views, {photons} photons, {voxels}^3"
                    draw_slices(options.out / f"{label}_slices.png", title, panels)
                    draw_seconds(options.out / f"{label}_seconds.png", title, curves)

    (options.out / "table.json").write_text(json.dumps(rows, indent=1))
    lines = ["| volume | photons | views | method | PSNR dB | SSIM | lungs' Dice | ASD mm | seconds | peak MiB |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    lines += [f"| {r['volume']} | {r['photons']} | {r['views']} | {r['method']} | {r['psnr_db']:.2f} | {r['ssim']:.4f} | {number(r['lungs_dice'], 4)} |"
              f" {number(r['lungs_asd_mm'], 3)} | {r['seconds']:.1f} | {r['peak_mib']:.0f} |" for r in rows]
    lines += ["", "| mean of all volumes: photons | views | method | PSNR dB | SSIM | seconds |", "|---|---|---|---|---|---|"]
    for key in dict.fromkeys((r["photons"], r["views"], r["method"]) for r in rows):
        of_key = [r for r in rows if (r["photons"], r["views"], r["method"]) == key]
        psnr, ssim, seconds = (sum(r[what] for r in of_key) / len(of_key) for what in ("psnr_db", "ssim", "seconds"))
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {psnr:.2f} | {ssim:.4f} | {seconds:.1f} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
