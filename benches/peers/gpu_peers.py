#!/usr/bin/env python3
"""Other people's programs on the same GPU and scans as `benches/cuda`, for the part `peers` of scripts/gpu-check.

    gpu_peers.py FILE --scan VIEWS PIXELS VOXELS [--scan ...] [--ours CUDA.json] [--scene SCENE --volume FDK.npy] [--astra FOLDER]

Writes rows to FILE. `--ours`: what `benches/cuda --json` measured, whose rows stand beside. `--scene`, `--volume`: a scene folder, and our FDK of it, which that
of the CuPy kernel is held against. `--astra`: where Python finds it. Each peer has a process of its own: one that is not there, fails or hangs is a row.
"""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

# Scans of `benches/cuda`: a box of 256 mm, seen wholly.
SOURCE_TO_ISOCENTRE_MM, SOURCE_TO_DETECTOR_MM, BOX_MM = 1000.0, 1500.0, 256.0
SECONDS_EACH = 50


def pitch_mm(pixels: int) -> float:
    return 1.5 * 256.0 * 1.2 / pixels


def say(what: str, seconds: float | None = None, beside: str = "", remark: str = "") -> None:
    print(json.dumps({"what": what, "seconds": seconds, "beside": beside, "remark": remark}), flush=True)


def median(work, wait, rounds: int = 5) -> float:
    """Seconds of one call, a warm-up before."""
    work(), wait()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work(), wait()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


# ---- ASTRA -----------------------------------------------------------------------------------------------------------------------------------------


def astra(options) -> None:
    """FDK of the same scans: data on the device where ASTRA takes it, else from the host and back, copies counted in."""
    import astra as library
    import numpy as np

    if not library.use_cuda():
        say("ASTRA", remark="lacks: it sees no GPU")
        return
    for views, pixels, voxels in options.scan:
        angles = np.linspace(0, 2 * np.pi, views, endpoint=False)
        pitch, box = pitch_mm(pixels), BOX_MM / 2
        behind = SOURCE_TO_DETECTOR_MM - SOURCE_TO_ISOCENTRE_MM
        scan = library.create_proj_geom("cone", pitch, pitch, pixels, pixels, angles, SOURCE_TO_ISOCENTRE_MM, behind)
        grid = library.create_vol_geom(voxels, voxels, voxels, -box, box, -box, box, -box, box)
        for place in ["from the host and back", "on the device"]:
            try:
                if place == "on the device":
                    import torch

                    arrays = [torch.ones(shape, device="cuda") for shape in [(pixels, views, pixels), (voxels,) * 3]]
                    data, volume = [library.data3d.link(*of) for of in zip(["-proj3d", "-vol"], [scan, grid], arrays)]
                else:
                    data = library.data3d.create("-proj3d", scan, np.ones((pixels, views, pixels), np.float32))
                    volume = library.data3d.create("-vol", grid)
                settings = library.astra_dict("FDK_CUDA") | {"ProjectionDataId": data, "ReconstructionDataId": volume}
                fdk = library.algorithm.create(settings)
                seconds = median(lambda: library.algorithm.run(fdk), lambda: None, 3)
            except Exception as error:
                say(f"ASTRA {library.__version__}: FDK_CUDA {voxels}^3, {place}", remark=f"failed: {type(error).__name__}: {error}")
                continue
            what = f"ASTRA {library.__version__}: FDK_CUDA {voxels}^3 from {views} views of {pixels}^2, {place}"
            say(what, seconds, f"{voxels**3 * views / seconds / 1e9:.1f} GUPS", "weights and filter counted in")
            library.algorithm.delete(fdk)
            library.data3d.delete([data, volume])


# ---- FDK as textbooks have it ------------------------------------------------------------------------------------------------------------------------

# A thread a voxel, a loop over the views, four pixels each. Projections [view][v][u], volume [x][y][z].
BACK_PROJECTION = r"""
extern "C" __global__ void back_project(const float* projections, const float2* turns, float* volume, int views, int pixels, int voxels, float voxel_mm,
                                        float pitch_mm, float to_isocentre_mm, float to_detector_mm) {
    int iz = blockIdx.x * blockDim.x + threadIdx.x, iy = blockIdx.y * blockDim.y + threadIdx.y, ix = blockIdx.z;
    if (iz >= voxels || iy >= voxels) return;
    float x = (ix - 0.5f * (voxels - 1)) * voxel_mm, y = (iy - 0.5f * (voxels - 1)) * voxel_mm, z = (iz - 0.5f * (voxels - 1)) * voxel_mm;
    float middle = 0.5f * (pixels - 1), sum = 0.0f;
    for (int view = 0; view < views; view++) {
        float2 turn = turns[view];
        float nearness = 1.0f / (to_isocentre_mm - x * turn.x - y * turn.y), factor = to_detector_mm * nearness / pitch_mm;
        float u = (y * turn.x - x * turn.y) * factor + middle, v = middle - z * factor;
        int column = int(floorf(u)), row = int(floorf(v));
        if (column < 0 || row < 0 || column >= pixels - 1 || row >= pixels - 1) continue;
        const float* at = projections + (size_t(view) * pixels + row) * pixels + column;
        float a = u - column, b = v - row;
        float above = at[0] + a * (at[1] - at[0]), below = at[pixels] + a * (at[pixels + 1] - at[pixels]);
        sum += nearness * nearness * (above + b * (below - above));
    }
    volume[(size_t(ix) * voxels + iy) * voxels + iz] = sum;
}
"""


def filtered(numbers, projections, pitch: float, to_isocentre: float, to_detector: float):
    """Weights and ramp filter (Ram-Lak) of [view][v][u], and the constants of FDK over a full turn; `numbers` is NumPy or CuPy."""
    views, rows, columns = projections.shape
    v = (numbers.arange(rows, dtype=numbers.float32) - (rows - 1) / 2)[:, None] * pitch
    u = (numbers.arange(columns, dtype=numbers.float32) - (columns - 1) / 2)[None, :] * pitch
    weighted = projections * (to_detector / numbers.sqrt(to_detector**2 + u * u + v * v))
    step = pitch * to_isocentre / to_detector
    length = 1 << (2 * columns - 1).bit_length()
    place = numbers.arange(length)
    place = numbers.minimum(place, length - place).astype(numbers.float64)
    ramp = numbers.where(place % 2 == 1, -1 / (math.pi * numbers.maximum(place, 1) * step) ** 2, 0.0)
    ramp[0] = 1 / (4 * step**2)
    response = numbers.fft.rfft(ramp).real.astype(numbers.float32) * (step * math.pi / views * to_isocentre**2)
    rows_of_all = numbers.fft.irfft(numbers.fft.rfft(weighted, length) * response, length)[..., :columns]
    return numbers.ascontiguousarray(rows_of_all, dtype=numbers.float32)


def scene(folder: pathlib.Path):
    """Projections [view][v][u], angles, and the scanner of a scene folder with square detector and volume about the isocentre."""
    import numpy as np

    told = json.loads((folder / "meta_data.json").read_text())
    views = told["proj_train"]
    return np.stack([np.load(folder / view["file_path"]) for view in views]), [view["angle"] for view in views], told["scanner"]


def likeness(ours, theirs) -> str:
    """Of two volumes, within the cylinder that every view sees."""
    import numpy as np

    n = ours.shape[0]
    off = np.arange(n) - (n - 1) / 2
    inside = np.hypot(off[:, None], off[None, :]) < 0.45 * n
    a, b = (volume[inside][:, n // 4 : -n // 4].ravel().astype(np.float64) for volume in [ours, theirs])
    apart = np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(a**2))
    return f"correlation with our FDK {np.corrcoef(a, b)[0, 1]:.6f}, {100 * apart:.2f} % apart (RMS)"


def cupy(options) -> None:
    """The textbook's back-projection, held against our FDK of the same scan; a copy and transforms."""
    import cupy as library
    import numpy as np

    kernel, wait = library.RawKernel(BACK_PROJECTION, "back_project"), library.cuda.Device().synchronize

    def back_project(projections, angles, volume, voxel_mm, pitch, to_isocentre, to_detector):
        views, pixels, _ = projections.shape
        n = volume.shape[0]
        turns = library.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
        lengths = [np.float32(mm) for mm in [voxel_mm, pitch, to_isocentre, to_detector]]
        grid, block = ((n + 31) // 32, (n + 7) // 8, n), (32, 8, 1)
        counts = [np.int32(count) for count in [views, pixels, n]]
        return lambda: kernel(grid, block, (projections, turns, volume, *counts, *lengths))

    remark = "weights and filter not counted"
    if options.scene and options.volume and options.volume.exists():
        projections, angles, scanner = scene(options.scene)
        pitch, voxel = scanner["sDetector"][0] / projections.shape[1], scanner["sVoxel"][0] / scanner["nVoxel"][0]
        lengths = (pitch, scanner["DSO"], scanner["DSD"])
        volume = library.zeros(scanner["nVoxel"], library.float32)
        back_project(filtered(library, library.asarray(projections), *lengths), angles, volume, voxel, *lengths)()
        remark += "; " + likeness(np.load(options.volume), library.asnumpy(volume))
    for views, pixels, voxels in options.scan:
        projections, volume = library.ones((views, pixels, pixels), library.float32), library.zeros((voxels,) * 3, library.float32)
        angles = np.linspace(0, 2 * np.pi, views, endpoint=False)
        lengths = (pitch_mm(pixels), SOURCE_TO_ISOCENTRE_MM, SOURCE_TO_DETECTOR_MM)
        seconds = median(back_project(projections, angles, volume, BOX_MM / voxels, *lengths), wait)
        what = f"CuPy: a textbook's back-projection (a thread a voxel) {voxels}^3 from {views} views of {pixels}^2"
        say(what, seconds, f"{voxels**3 * views / seconds / 1e9:.1f} GUPS", remark)
    views, pixels, _ = options.scan[0]
    response = library.ones(pixels + 1, library.float32)
    arrays(
        f"CuPy {library.__version__}",
        lambda shape: library.zeros(shape, library.float32),
        library.copyto,
        lambda rows: library.fft.irfft(library.fft.rfft(rows) * response),
        wait,
        (views, pixels),
    )


# ---- copies and transforms ---------------------------------------------------------------------------------------------------------------------------


def arrays(name: str, zeros, copy, through_spectrum, wait, of: tuple[int, int]) -> None:
    """A copy on the device, and rows to their spectrum and back."""
    views, pixels = of
    values = 1 << 28
    first, second = zeros(values), zeros(values)
    seconds = median(lambda: copy(second, first), wait)
    say(f"{name}: copy of 1 GiB on the device", seconds, f"{8 * values / seconds / 1e12:.3f} TB/s")
    del first, second
    length = 2 * pixels
    rows = zeros((views * pixels, length))
    seconds = median(lambda: through_spectrum(rows), wait)
    what = f"{name}: {views * pixels} rows of {length} to their spectrum, times a response, and back"
    say(what, seconds, remark="beside filter_rows, which pads and cuts rows too")


def pytorch(options) -> None:
    import torch

    if not torch.cuda.is_available():
        say("PyTorch", remark=f"lacks: {torch.__version__} sees no GPU")
        return
    views, pixels, _ = options.scan[0]
    response = torch.ones(pixels + 1, device="cuda")
    arrays(
        f"PyTorch {torch.__version__}",
        lambda shape: torch.zeros(shape, device="cuda"),
        lambda to, of: to.copy_(of),
        lambda rows: torch.fft.irfft(torch.fft.rfft(rows) * response),
        torch.cuda.synchronize,
        (views, pixels),
    )


PEERS = {"CuPy": cupy, "ASTRA": astra, "PyTorch": pytorch}


def ours(file: pathlib.Path) -> list[dict]:
    """Rows of our own FDK on the same scans."""
    try:
        rows = json.loads(file.read_text())["rows"]
    except (OSError, ValueError, KeyError):
        return [{"what": "ours", "remark": "not measured"}]
    back = [row for row in rows if row["operation"] == "back_project_fdk"]
    found = [
        {"what": f"ours: back_project_fdk {row['sizes']}", "seconds": row["seconds"], "beside": f"{row['gups']:.1f} GUPS"} for row in back
    ]
    whole = [row for row in rows if row["case"] == "fdk"]
    if len(whole) == 3:
        seconds = sum(row["seconds"] for row in whole)
        found.append({"what": f"ours: weights, filter and back_project_fdk {whole[0]['sizes']}, on the device", "seconds": seconds})
    return found


def run(options) -> None:
    rows = ours(options.ours) if options.ours else []
    for name in PEERS:
        remark, command = None, [sys.executable, __file__, *sys.argv[1:], "--only", name]
        paths = [str(options.astra)] if options.astra and name == "ASTRA" else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths + [os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_EACH, env=environment)
            printed, last = process.stdout, process.stderr.strip().splitlines()[-1:]
            if process.returncode:
                lacking = last and last[0].startswith(("ImportError", "ModuleNotFoundError"))
                remark = ("lacks: " if lacking else f"failed (exit code {process.returncode}): ") + "".join(last)
        except subprocess.TimeoutExpired as late:
            # Bytes, whatever was asked for.
            printed, remark = bytes(late.stdout or b"").decode(), f"cut off after {SECONDS_EACH} s"
        rows += [json.loads(line) for line in printed.splitlines() if line.startswith('{"what"')]
        if remark:
            rows.append({"what": name, "remark": remark})
        options.file.write_text(json.dumps(rows, indent=1) + "\n")
    print(options.file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--scan", type=int, nargs=3, action="append", required=True, metavar=("VIEWS", "PIXELS", "VOXELS"))
    for name in ["--ours", "--scene", "--volume", "--astra"]:
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--only", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        PEERS[options.only](options)
    else:
        run(options)


if __name__ == "__main__":
    main()
