#!/usr/bin/env python3
"""RTK on the CPU beside diffnr: the same projections, the same geometry, medians of five.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install itk-rtk
    cargo build --release
    .venv-peers/bin/python benches/peers/rtk.py [--diffnr target/release/diffnr] [--projector projector.json] [--json FILE]

1. Accuracy: RTK's own test of its FDK (3D Shepp-Logan, 180 views of 128 x 128 pixels, 128^3 voxels, field-of-view mask), for RTK, for
   diffnr on RTK's projections, and both against each other.
2. Speed: FDK from 50 views of 256 x 256 pixels to 128^3 and 256^3 voxels; with `--projector`, the JSON of
   `cargo bench --bench projector -- --json FILE`, also Joseph forward and back-projection.

Times are of the reconstruction alone: projections in memory, files read and written outside. diffnr's comes from
`diffnr reconstruct --json` (a fresh process each time), RTK's from a filter updated anew. Nothing of RTK is part of diffnr.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import itk
import numpy as np
from itk import RTK as rtk

RUNS = 5
FLOAT_3D = itk.Image[itk.F, 3]


def finished(source):
    """A filter's output, cut off from its pipeline: RTK's filters take their inputs' memory where they can."""
    source.Update()
    output = source.GetOutput()
    output.DisconnectPipeline()
    return output


def image(size, spacing, value=0.0):
    """A centred image; RTK's axes x, y, z."""
    source = rtk.ConstantImageSource[FLOAT_3D].New()
    source.SetOrigin([-0.5 * (n - 1) * d for n, d in zip(size, spacing)])
    source.SetSpacing([float(d) for d in spacing])
    source.SetSize(list(size))
    source.SetConstant(value)
    return finished(source)


def circle(views, sid, sdd):
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for view in range(views):
        geometry.AddProjection(sid, sdd, 360.0 * view / views)
    return geometry


def shepp_logan(geometry, projections):
    phantom = rtk.SheppLoganPhantomFilter[FLOAT_3D, FLOAT_3D].New()
    phantom.SetInput(projections)
    phantom.SetGeometry(geometry)
    phantom.SetPhantomScale(128.0)
    return finished(phantom)


def rtk_fdk(geometry, projections, volume):
    fdk = rtk.FDKConeBeamReconstructionFilter[FLOAT_3D].New()
    fdk.SetInput(0, volume)
    fdk.SetInput(1, projections)
    fdk.SetGeometry(geometry)
    fdk.GetRampFilter().SetTruncationCorrection(0.0)
    fdk.GetRampFilter().SetHannCutFrequency(0.0)
    return finished(fdk)


def field_of_view(geometry, projections, volume):
    mask = rtk.FieldOfViewImageFilter[FLOAT_3D, FLOAT_3D].New()
    mask.SetInput(0, volume)
    mask.SetProjectionsStack(projections)
    mask.SetGeometry(geometry)
    return finished(mask)


def projected(kind, geometry, first, second):
    """kind: 'forward' (first: projections, second: volume) or 'back' (first: volume, second: projections)."""
    if kind == "forward":
        joseph = rtk.JosephForwardProjectionImageFilter[FLOAT_3D, FLOAT_3D].New()
    else:
        joseph = rtk.JosephBackProjectionImageFilter[FLOAT_3D, FLOAT_3D].New()
    joseph.SetInput(0, first)
    joseph.SetInput(1, second)
    joseph.SetGeometry(geometry)
    joseph.Update()


def ours_from(volume):
    """RTK's array [z][y][x] as diffnr's [x][y][z]: our x, y, z are RTK's z, x, y."""
    return np.ascontiguousarray(itk.array_from_image(volume).transpose(0, 2, 1))


def median_seconds(work):
    work()
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


class Diffnr:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def scan(self, geometry, projections):
        """Writes RTK's own files, which diffnr reads."""
        self.xml, self.mha = (os.path.join(self.folder, name) for name in ("geometry.xml", "projections.mha"))
        writer = rtk.ThreeDCircularProjectionGeometryXMLFileWriter.New()
        writer.SetFilename(self.xml)
        writer.SetObject(geometry)
        writer.WriteFile()
        itk.imwrite(projections, self.mha)

    def fdk(self, size):
        out = os.path.join(self.folder, "volume.npy")
        command = [self.program, "reconstruct", self.xml, "--projections", self.mha, "--size", str(size)]
        command += ["--device", "cpu", "--json", "-o", out]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        return np.load(out), json.loads(result.stdout)


def quality(volume, truth):
    """RTK's CheckImageQuality: mean absolute error and PSNR with peak 2."""
    error = volume.astype(np.float64) - truth
    return float(np.abs(error).mean()), float(10 * np.log10(4.0 / (error**2).mean()))


def accuracy(diffnr):
    geometry = circle(180, 600.0, 1200.0)
    projections = shepp_logan(geometry, image([128, 128, 180], [4.0, 4.0, 1.0]))
    def empty(value=0.0):
        return image([128, 128, 128], [2.0, 2.0, 2.0], value)

    drawn = rtk.DrawSheppLoganFilter[FLOAT_3D, FLOAT_3D].New()
    drawn.SetInput(empty())
    drawn.SetPhantomScale(128.0)
    truth = ours_from(finished(drawn))
    theirs = ours_from(rtk_fdk(geometry, projections, empty()))
    mask = ours_from(field_of_view(geometry, projections, empty(1.0))) > 0.5
    diffnr.scan(geometry, projections)
    ours, _ = diffnr.fdk(128)
    difference = (ours - theirs)[mask]
    rows = {
        "rtk": quality(np.where(mask, theirs, 0), truth),
        "diffnr": quality(np.where(mask, ours, 0), truth),
        "between": {
            "rms": float(np.sqrt((difference.astype(np.float64) ** 2).mean())),
            "largest": float(np.abs(difference).max()),
            "mean": float(difference.mean()),
        },
    }
    print("RTK's test (mean error < 0.03, PSNR > 26 dB):")
    for name in ("rtk", "diffnr"):
        print(f"  {name:7} mean error {rows[name][0]:.4f}, PSNR {rows[name][1]:.2f} dB")
    print("  diffnr - RTK in the field of view: rms {rms:.5f}, mean {mean:+.6f}, largest {largest:.4f}".format(**rows["between"]))
    return rows


def speed(diffnr, projector):
    geometry = circle(50, 1000.0, 1500.0)
    projections = shepp_logan(geometry, image([256, 256, 50], [1.6, 1.6, 1.0]))
    diffnr.scan(geometry, projections)
    rows = []
    print("\n50 views of 256 x 256, medians of five:")
    for n in (128, 256):
        spacing = [256 * 1.6 / 1.5 / n] * 3
        theirs = median_seconds(lambda: rtk_fdk(geometry, projections, image([n] * 3, spacing)))
        runs = [diffnr.fdk(n)[1] for _ in range(RUNS)]
        ours = statistics.median(run["seconds"]["reconstruct"] for run in runs)
        rows.append({"operation": "fdk", "voxels": n, "rtk_s": theirs, "diffnr_s": ours, "device": runs[0]["device"]})
        forward = median_seconds(
            lambda: projected("forward", geometry, image([256, 256, 50], [1.6, 1.6, 1.0]), image([n] * 3, spacing, 0.01))
        )
        back = median_seconds(lambda: projected("back", geometry, image([n] * 3, spacing), projections))
        for operation, theirs in (("forward_project", forward), ("back_project_matched", back)):
            rows.append({"operation": operation, "voxels": n, "rtk_s": theirs, "diffnr_s": projector.get((operation, n))})
    for row in rows:
        ours = row["diffnr_s"]
        shown = "(not measured)" if ours is None else f"{ours:8.3f} s   {row['rtk_s'] / ours:6.1f} x faster"
        print(f"  {row['operation']:21} {row['voxels']}^3   RTK {row['rtk_s']:8.3f} s   diffnr {shown}")
    return rows


def projector_seconds(path):
    """Seconds by (operation, voxels): full SIMD, all threads, 50 views."""
    if path is None:
        return {}
    with open(path) as file:
        results = json.load(file)["results"]
    best = {}
    for row in results:
        operation, n, views = row.get("operation"), row.get("voxels"), row.get("views")
        n = n[0] if isinstance(n, list) else n
        if views == 50 and "seconds" in row:
            key = (operation, n)
            best[key] = min(row["seconds"], best.get(key, float("inf")))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    parser.add_argument("--diffnr", default=os.path.join(root, "target", "release", "diffnr"))
    parser.add_argument("--projector", help="JSON of the projector's bench")
    parser.add_argument("--json", help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        diffnr = Diffnr(arguments.diffnr, folder)
        report = {"itk": itk.Version.GetITKVersion(), "threads": itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()}
        report["accuracy"] = accuracy(diffnr)
        report["speed"] = speed(diffnr, projector_seconds(arguments.projector))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
