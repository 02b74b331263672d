#!/usr/bin/env python3
"""What scripts/gpu-check leaves, of parts that are at their end or not yet, as one JSON and one table.

    gpu_check.py WORK OUT --seconds S [--stand-in]
"""
import argparse
import json
import os
import pathlib
import re

PARTS = ["self-test", "conformance", "bench", "reconstruct", "r2", "racecheck", "memcheck", "ct", "peers", "slice-fixer"]


def text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else ""


def load(path: pathlib.Path):
    """A JSON file; nothing where it is not there or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def replace(path: pathlib.Path, content: str) -> None:
    """Writes a file that is whole at any time."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(content)
    os.replace(new, path)


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
        # Those that ended otherwise than tests do: 101 is a test that failed.
        "broken": [f"{module}: exit code {rc}" for module, rc in re.findall(r"^module (\S+): exit code (\d+)$", log, re.MULTILINE) if rc != "101"],
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


def bench(folder: pathlib.Path) -> dict:
    """The reports of the cases' processes as one. A process that failed, or found nothing, is named."""
    whole: dict = {"rows": [], "iterations": [], "failed": []}
    for file in sorted(folder.glob("*.case")):
        case, found = text(file), load(file.with_suffix(".json")) or {}
        whole["machine"] = whole.get("machine") or found.get("machine")
        for key in ["rows", "iterations", "failed"]:
            whole[key] += found.get(key) or []
        if found.get("preview"):
            whole["preview"] = found["preview"]
        rc = text(file.with_suffix(".rc"))
        if (rc and not found.get("failed")) or not found:
            why = {"": "not at its end", "124": "cut off", "137": "cut off"}.get(rc, f"exit code {rc}")
            last = [line for line in text(file.with_suffix(".errors")).splitlines() if "gpu-check-parts: line" not in line][-1:]
            whole["failed"].append({"case": case, "error": ": ".join([why] + last)})
    return whole


def self_test(doctor: dict) -> list[dict]:
    """Every GPU against the CPU, as `diffnr doctor` has it."""
    devices = ((doctor.get("checks") or {}).get("cuda_kernels") or {}).get("devices") or []
    return [{"device": device.get("name"), "self_test": device.get("self_test")} for device in devices]


def sanitized(folder: pathlib.Path) -> list[dict]:
    """The modules in the order in which they were run, and those that were not reached."""
    rows = []
    outcomes = {"0": "clean", "99": "errors", "124": "cut off", "137": "cut off"}
    for module in text(folder / "modules").split():
        log, rc, tests = text(folder / f"{module}.log"), text(folder / f"{module}.rc"), text(folder / f"{module}.tests")
        if rc:
            outcome = outcomes.get(rc, f"exit code {rc}")
        else:
            outcome = "not at its end" if (folder / f"{module}.tests").exists() else "not reached"
        errors = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", log)
        row = {"module": module, "outcome": outcome, "errors": sum(int(a or b) for a, b in errors)}
        row["tests"] = len(re.findall(r"^test \S+ \.\.\. (?:ok|FAILED)", tests, re.MULTILINE))
        # What was said last, where it is neither clean nor the tool's own errors.
        row["last_lines"] = f"{tests}\n{log}".splitlines()[-3:] if rc and rc not in outcomes else []
        rows.append(row)
    return rows


# ---- report ----------------------------------------------------------------------------------------------------------------------------------------


def report(work: pathlib.Path, out: pathlib.Path, seconds: float, stand_in: bool) -> None:
    machine = dict(line.split(": ", 1) for line in text(work / "machine").splitlines() if ": " in line)
    doctor = load(work / "doctor.json") or {}
    result = {
        "measured_on": "stand-in: nothing here is a figure of a GPU" if stand_in else "GPU",
        "stand_in": stand_in,
        "date": machine.pop("date", "?"),
        "commit": machine.pop("commit", "?"),
        "nvidia_smi": machine.pop("nvidia_smi", None),
        "machine": machine,
        "too_old": text(work / "too-old") or None,
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
        if name == "self-test":
            part["rows"] = self_test(doctor)
        elif name == "conformance":
            part |= conformance(log)
        elif name == "bench":
            part |= bench(work / "bench")
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
    replace(out / "gpu-check.json", json.dumps(result, indent=1) + "\n")
    replace(out / "gpu-check.md", table(result))


def figure(value, form: str) -> str:
    return "" if value is None else format(value, form)


def table(result: dict) -> str:
    machine = result["parts"].get("bench", {}).get("machine") or {}
    devices = (result["cuda_kernels"] or {}).get("devices") or [{}]
    device = machine.get("description") or result["nvidia_smi"] or devices[0].get("name") or "no device found"
    lines = [f"# GPU check, {result['date']}, commit {result['commit']}", "", f"{device}; nvidia-smi: {result['nvidia_smi'] or 'not there'}."]
    lines += ["; ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["machine"].items()) + f"; all in {result['seconds']:.0f} s."]
    if result["too_old"]:
        lines += ["", f"**Nothing ran: {result['too_old']}.**"]
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
        if name == "self-test":
            for row in part["rows"]:
                found = row["self_test"] or {"failed": "not tested"}
                apart = [f"{each['case']} {each['apart']:.0e} of {each['limit']:.0e}" for each in found.get("agreements", [])]
                beside = "apart from the CPU: " + "; ".join(apart) if apart else ""
                line(name, row["device"] or "?", figure(found.get("seconds"), ".2f"), beside, found.get("failed", ""))
        elif name == "conformance":
            outcomes = list(part["tests"].values())
            failed = [test for test, outcome in part["tests"].items() if outcome == "FAILED"]
            beside = f"{outcomes.count('ok')} ok, {len(failed)} failed of {part['announced']}"
            skipped = f"{len(part['skipped'])} say SKIPPED" if part["skipped"] else ""
            line(name, "tests", "", beside, "; ".join(part["broken"] + failed + ([skipped] if skipped else [])))
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
                found = f"{row['errors']} errors in {row['tests']} tests"
                line(name, row["module"], "", row["outcome"], "; ".join([found, *row["last_lines"]]))
        else:
            for row in part["rows"]:
                if "failed" in row or not row["label"].endswith(("-again", "-trace")):
                    reconstruction_line(name, row, line)
            for what, trace in part["traces"].items():
                points = [point for point in (trace or {}).get("points", []) if "psnr_db" in point]
                # The first, the last, and some between.
                shown = sorted({round(share * (len(points) - 1)) for share in [0, 0.25, 0.5, 0.75, 1]}) if points else []
                beside = [f"{points[at]['psnr_db']:.2f} dB at {points[at]['seconds']:.2f} s" for at in shown]
                line(name, f"{what}: PSNR against seconds", "", "; ".join(beside))
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
        what = f"volume of {preview['voxels']}^3 in {preview['place']} after the last of {preview['frames']} frames of {preview['pixels']}^2"
        beside = f"p50; p99 {preview['p99_s']:.3g} of {preview['runs']} runs"
        remark = f"{preview['frames_per_s']:.0f} frames a second; the same bits as through the host"
        line("bench", what, f"{preview['p50_s']:.3g}", beside, "; ".join(filter(None, [remark, preview["not_shared"]])))


def reconstruction_line(name: str, row: dict, line) -> None:
    if "failed" in row:
        line(name, row["label"], "", "", row["failed"] if row["failed"].startswith("lacks") else f"failed: {row['failed']}")
        return
    beside = f"PSNR {figure(row['psnr_db'], '.2f')} dB, SSIM {figure(row['ssim'], '.4f')}"
    remarks = [f"{row['iterations']} iterations"] if row.get("iterations") else []
    if "same_bits_again" in row:
        remarks.append("same bits again" if row["same_bits_again"] else "OTHER BITS IN THE SECOND RUN")
    if fixer := row.get("slice_fixer"):
        remarks.append(f"{fixer.get('repairs')} repairs on {fixer.get('provider')}")
    remarks += row.get("warnings") or []
    line(name, row["label"], f"{row['seconds']['reconstruct']:.3g}", beside, "; ".join(remarks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--stand-in", action="store_true")
    report(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
