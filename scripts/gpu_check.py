#!/usr/bin/env python3
"""What scripts/gpu-check leaves, as one JSON and one table; and figures of other people's programs on the same GPU.

    gpu_check.py report WORK OUT --seconds S [--stand-in]
    gpu_check.py peers FILE --views N --pixels N --voxels N
"""
import argparse
import json
import pathlib
import re
import statistics
import sys
import time

PARTS = ["conformance", "bench", "reconstruct", "r2", "slice-fixer", "ct", "peers", "memcheck", "racecheck"]


def text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else ""


def load(path: pathlib.Path):
    """A JSON file; nothing where it is not there or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


# ---- parts -----------------------------------------------------------------------------------------------------------------------------------------


def conformance(log: str) -> dict:
    """Every test's outcome, and what the tests printed of how near they came."""
    tests = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED|ignored)", log, re.MULTILINE))
    announced = re.findall(r"^running (\d+) tests?$", log, re.MULTILINE)
    # The largest difference of each comparison, and its tolerance.
    nearest: dict[str, list[float]] = {}
    for what, given, tolerance in re.findall(r"^(.+): within (\S+) of (\S+)$", log, re.MULTILINE):
        if float(given) >= nearest.get(what, [0.0])[0]:
            nearest[what] = [float(given), float(tolerance)]
    return {
        "tests": tests,
        "differences": nearest,
        "announced": sum(map(int, announced)) if announced else None,
        "skipped": re.findall(r"^SKIPPED: (.*)$", log, re.MULTILINE),
        "panics": re.findall(r"^thread '([^']+)'.* panicked at [^\n]*\n([^\n]*)", log, re.MULTILINE),
    }


def reconstructions(folder: pathlib.Path) -> list[dict]:
    """Runs of `diffnr reconstruct`, with their quality and the hash of their volume."""
    rows = []
    # In the order in which they ran.
    for errors in sorted(folder.glob("*.errors"), key=lambda path: path.stat().st_mtime_ns):
        label = errors.name.removesuffix(".errors")
        run, failed = load(folder / f"{label}.run.json"), text(folder / f"{label}.failed")
        row = {"label": label}
        if run is None:
            rows.append(row | {"failed": failed or "cut off"})
            continue
        quality = load(folder / f"{label}.evaluate.json") or {}
        keys = ["method", "device", "voxels", "views", "seconds", "iterations", "slice_fixer", "warnings"]
        row |= {key: run[key] for key in keys if key in run}
        rows.append(row | {"sha256": text(folder / f"{label}.sha256"), "psnr_db": quality.get("psnr_db"), "ssim": quality.get("ssim")})
    for row in rows:
        again = next((other for other in rows if other["label"] == row["label"] + "-again" and "sha256" in other), None)
        if again and "sha256" in row:
            row["same_bits_again"] = again["sha256"] == row["sha256"]
    return rows


def sanitized(folder: pathlib.Path) -> list[dict]:
    rows = []
    for path in sorted(folder.glob("*.rc")):
        log, rc = text(path.with_suffix(".log")), int(text(path))
        errors = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", log)
        outcome = {0: "clean", 99: "errors", 124: "cut off", 137: "cut off"}.get(rc, f"exit code {rc}")
        tests = len(re.findall(r"^test \S+ \.\.\. ", text(path.with_suffix(".tests")), re.MULTILINE))
        rows.append({"module": path.stem, "outcome": outcome, "tests": tests, "errors": sum(int(a or b) for a, b in errors)})
    return rows


# ---- report ----------------------------------------------------------------------------------------------------------------------------------------


def report(work: pathlib.Path, out: pathlib.Path, seconds: float, stand_in: bool) -> None:
    date, commit, smi = (text(work / "machine").splitlines() + ["", "", ""])[:3]
    doctor = load(work / "doctor.json") or {}
    result = {
        "measured_on": "stand-in: nothing here is a figure of a GPU" if stand_in else "GPU",
        "stand_in": stand_in,
        "date": date,
        "commit": commit,
        "nvidia_smi": smi or None,
        "cuda_kernels": doctor.get("checks", {}).get("cuda_kernels"),
        "seconds": seconds,
        "parts": {},
    }
    for name in PARTS:
        state = text(work / f"{name}.state")
        if not state:
            continue
        part = {"state": state, "seconds": float(text(work / f"{name}.seconds") or 0)}
        log = text(work / f"{name}.log")
        if name == "conformance":
            part |= conformance(log)
        elif name == "bench":
            part |= load(work / "bench" / "cuda.json") or {}
        elif name == "peers":
            part["rows"] = load(work / "peers.json") or []
        elif name.endswith("check"):
            part["rows"] = sanitized(work / name)
        else:
            part["rows"] = reconstructions(work / name)
            part["traces"] = {path.name.removesuffix(".trace.json"): load(path) for path in sorted((work / name).glob("*.trace.json"))}
        if state.startswith("failed") and not part.get("rows"):
            part["last_lines"] = log.splitlines()[-5:]
        result["parts"][name] = part
    out.joinpath("gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
    out.joinpath("gpu-check.md").write_text(table(result))


def figure(value, form: str) -> str:
    return "" if value is None else format(value, form)


def table(result: dict) -> str:
    machine = result["parts"].get("bench", {}).get("machine", {})
    devices = (result["cuda_kernels"] or {}).get("devices") or [{}]
    device = machine.get("description") or result["nvidia_smi"] or devices[0].get("name") or "no device found"
    lines = [f"# GPU check, {result['date']}, commit {result['commit']}", "", f"{device}; nvidia-smi: {result['nvidia_smi'] or 'not there'}."]
    if machine:
        cores = "multiprocessors and clock not told"
        if machine["multiprocessors"]:
            cores = f"{machine['multiprocessors']:.0f} multiprocessors at {machine['clock_hz'] / 1e9:.2f} GHz"
        lines.append(
            f"Copy on the device {machine['copy_bytes_per_s'] / 1e12:.3f} TB/s, {cores}, a launch {1e6 * machine['launch_s']:.1f} us, "
            f"a value returned {1e6 * machine['answer_s']:.1f} us."
        )
    if result["stand_in"]:
        lines += ["", "**On the stand-in for the driver, on a CPU: no figure here is a GPU's.** It shows that the script works."]
    lines += ["", "| part | what | seconds | beside | remark |", "|---|---|---|---|---|"]

    def line(part: str, what: str, seconds: str = "", beside: str = "", remark: str = "") -> None:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in (part, what, seconds, beside, remark)]
        lines.append("| " + " | ".join(cells) + " |")

    for name, part in result["parts"].items():
        last = "; ".join(part.get("last_lines", []))
        line(f"**{name}**", "", f"{part['seconds']:.0f}", "", part["state"] + (f": {last}" if last else ""))
        if name == "conformance":
            outcomes = list(part["tests"].values())
            failed = [test for test, outcome in part["tests"].items() if outcome == "FAILED"]
            beside = f"{outcomes.count('ok')} ok, {len(failed)} failed of {part['announced']}"
            skipped = f"{len(part['skipped'])} say SKIPPED" if part["skipped"] else ""
            line(name, "tests", "", beside, "; ".join(failed + ([skipped] if skipped else [])))
            shares = sorted(part["differences"].items(), key=lambda item: item[1][0] / item[1][1], reverse=True)
            for what, (given, tolerance) in shares[:10]:
                line(name, f"nearest to its tolerance: {what}", "", f"{given:.1e} of {tolerance:.0e}")
        elif name == "bench":
            bench_lines(part, line)
        elif name == "peers":
            for row in part["rows"]:
                line(name, row["what"], figure(row.get("seconds"), ".3g"), row.get("beside", ""), row.get("remark", ""))
        elif name.endswith("check"):
            for row in part["rows"]:
                line(name, row["module"], "", row["outcome"], f"{row['errors']} errors in {row['tests']} tests")
        else:
            for row in part["rows"]:
                if "failed" in row or not row["label"].endswith(("-again", "-trace")):
                    reconstruction_line(name, row, line)
    return "\n".join(lines) + "\n"


def bench_lines(part: dict, line) -> None:
    for row in part.get("rows", []):
        beside = f"floor {row['floor_s']:.3g} ({row['floor_by']}), {row['ratio']:.1f} x"
        line("bench", f"{row['operation']}, {row['sizes']} ({row['case']})", f"{row['seconds']:.3g}", beside, f"{row['gups']:.1f} GUPS" if row["gups"] else "")
    for row in part.get("failed", []):
        line("bench", row["case"], "", "", f"failed: {row['error']}")
    for row in part.get("iterations") or []:
        what = f"{row['what']}: an iteration of {row['views_per_iteration']} views of {row['pixels']}^2 into {row['voxels']}^3"
        beside = f"as one; {row['singly_s']:.3g} as {row['steps']} steps" + (f"; {row['graphs_refused']}" if row["graphs_refused"] else "")
        line("bench", what, f"{row['as_one_s']:.3g}", beside, f"{row['replayed']} replayed")
    if preview := part.get("preview"):
        what = f"volume of {preview['voxels']}^3 in shared memory after the last of {preview['frames']} frames of {preview['pixels']}^2"
        beside = f"p50; p99 {preview['p99_s']:.3g} of {preview['runs']} runs"
        line("bench", what, f"{preview['p50_s']:.3g}", beside, f"{preview['frames_per_s']:.0f} frames a second")


def reconstruction_line(name: str, row: dict, line) -> None:
    if "failed" in row:
        line(name, row["label"], "", "", f"failed: {row['failed']}")
        return
    beside = f"PSNR {figure(row['psnr_db'], '.2f')} dB, SSIM {figure(row['ssim'], '.4f')}"
    remarks = [f"{row['iterations']} iterations"] if row.get("iterations") else []
    if "same_bits_again" in row:
        remarks.append("same bits again" if row["same_bits_again"] else "OTHER BITS IN THE SECOND RUN")
    if fixer := row.get("slice_fixer"):
        remarks.append(f"{fixer.get('repairs')} repairs on {fixer.get('provider')}")
    remarks += row.get("warnings") or []
    line(name, row["label"], f"{row['seconds']['reconstruct']:.3g}", beside, "; ".join(remarks))


# ---- peers -----------------------------------------------------------------------------------------------------------------------------------------


def peers(file: pathlib.Path, views: int, pixels: int, voxels: int) -> None:
    rows = []
    for what, measure in [("ASTRA", astra), ("PyTorch", pytorch), ("CuPy", cupy)]:
        try:
            rows += measure(views, pixels, voxels)
        except ImportError as error:
            rows.append({"what": what, "remark": f"lacks: {error}"})
        except Exception as error:  # A peer that fails is a row, not the end.
            rows.append({"what": what, "remark": f"failed: {type(error).__name__}: {error}"})
        file.write_text(json.dumps(rows, indent=1) + "\n")
    print(file.read_text())


def median(work, wait, rounds: int = 5) -> float:
    """Seconds of one call, a warm-up before."""
    work(), wait()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work(), wait()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def astra(views: int, pixels: int, voxels: int) -> list[dict]:
    """FDK of the same scan as the bench's: data on the host, so that copies both ways are counted in."""
    import astra as library
    import numpy as np

    if not library.use_cuda():
        return [{"what": "ASTRA", "remark": "lacks: it sees no GPU"}]
    pitch, box = 1.5 * 256 * 1.2 / pixels, 128.0
    angles = np.linspace(0, 2 * np.pi, views, endpoint=False)
    scan = library.create_proj_geom("cone", pitch, pitch, pixels, pixels, angles, 1000.0, 500.0)
    grid = library.create_vol_geom(voxels, voxels, voxels, -box, box, -box, box, -box, box)
    data = library.data3d.create("-proj3d", scan, np.ones((pixels, views, pixels), np.float32))
    volume = library.data3d.create("-vol", grid)
    settings = library.astra_dict("FDK_CUDA") | {"ProjectionDataId": data, "ReconstructionDataId": volume}
    fdk = library.algorithm.create(settings)
    seconds = median(lambda: library.algorithm.run(fdk), lambda: None)
    what = f"ASTRA {library.__version__}: FDK_CUDA {voxels}^3 from {views} views of {pixels}^2, from the host and back"
    return [{"what": what, "seconds": seconds, "beside": f"{voxels**3 * views / seconds / 1e9:.1f} GUPS"}]


def array_rows(name: str, zeros, copy, filtered, wait, views: int, pixels: int) -> list[dict]:
    """A copy on the device, and rows to their spectrum and back."""
    values = 1 << 28
    first, second = zeros(values), zeros(values)
    seconds = median(lambda: copy(second, first), wait)
    bandwidth = {"what": f"{name}: copy of 1 GiB on the device", "seconds": seconds, "beside": f"{8 * values / seconds / 1e12:.3f} TB/s"}
    del first, second
    length = 2 * pixels
    rows = zeros((views * pixels, length))
    seconds = median(lambda: filtered(rows), wait)
    what = f"{name}: {views * pixels} rows of {length} to their spectrum, times a response, and back"
    return [bandwidth, {"what": what, "seconds": seconds, "remark": "beside filter_rows, which pads and cuts rows too"}]


def pytorch(views: int, pixels: int, voxels: int) -> list[dict]:
    import torch

    if not torch.cuda.is_available():
        return [{"what": "PyTorch", "remark": f"lacks: {torch.__version__} sees no GPU"}]
    response = torch.ones(pixels + 1, device="cuda")
    return array_rows(
        f"PyTorch {torch.__version__}",
        lambda shape: torch.zeros(shape, device="cuda"),
        lambda to, of: to.copy_(of),
        lambda rows: torch.fft.irfft(torch.fft.rfft(rows) * response),
        torch.cuda.synchronize,
        views,
        pixels,
    )


def cupy(views: int, pixels: int, voxels: int) -> list[dict]:
    import cupy as library

    response = library.ones(pixels + 1, library.float32)
    return array_rows(
        f"CuPy {library.__version__}",
        lambda shape: library.zeros(shape, library.float32),
        library.copyto,
        lambda rows: library.fft.irfft(library.fft.rfft(rows) * response),
        library.cuda.Device().synchronize,
        views,
        pixels,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_report = commands.add_parser("report")
    of_report.add_argument("work", type=pathlib.Path)
    of_report.add_argument("out", type=pathlib.Path)
    of_report.add_argument("--seconds", type=float, required=True)
    of_report.add_argument("--stand-in", action="store_true")
    of_peers = commands.add_parser("peers")
    of_peers.add_argument("file", type=pathlib.Path)
    for size in ["--views", "--pixels", "--voxels"]:
        of_peers.add_argument(size, type=int, required=True)
    arguments = vars(parser.parse_args())
    {"report": report, "peers": peers}[arguments.pop("command")](**arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
