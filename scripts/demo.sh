#!/usr/bin/env bash
# The main job, for real: a C gantry process plays a scan into the daemon through shared memory; the daemon publishes a volume
# through shared memory; a reader in a third process saves it, and it is scored against the truth. Then the methods side by side, from few
# views of the same object: FDK, ASD-POCS, a neural field, and the field with SliceFixer where a model and ONNX Runtime are there.
#
#   scripts/demo.sh [CT.nii.gz]      settings by environment: VIEWS (180) FPS (30) VOXELS (128) PHOTONS (100000) OUT (demo)
#                                    FEW_VIEWS (24); ANATOMY (of CT.nii.gz: chest, head ...); DIFFNR_MODELS (the folder of a SliceFixer)
set -euo pipefail
cd "$(dirname "$0")/.."

ct=${1:-}
out=${OUT:-demo}
views=${VIEWS:-180}
fps=${FPS:-30}
voxels=${VOXELS:-128}
photons=${PHOTONS:-100000}
few=${FEW_VIEWS:-24}
anatomy=${ANATOMY:-}
name="diffnr-demo-$$"
diffnr=target/release/diffnr
gantry=firmware-bridge/build/gantry_sim

mkdir -p "$out"
daemon=
clean() {
    [ -n "$daemon" ] && kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null
    rm -f "/dev/shm/$name".*
}
trap clean EXIT

if [ -n "$ct" ]; then object=("$ct"); what=$ct; else object=(--phantom thorax); what="the built-in thorax phantom"; anatomy=${anatomy:-chest}; fi

say() { printf '\n== %s\n' "$*"; }

say "1/6  simulate: $views views of $what, $photons photons a pixel, raw detector counts"
"$diffnr" simulate "${object[@]}" -o "$out/scan" --views "$views" --voxels "$voxels" --photons "$photons" --raw --force
"$diffnr" replay "$out/scan" --raw --record "$out/gantry.frames"

say "2/6  plan: every buffer and the schedule, before anything runs"
cat > "$out/gantry.toml" <<TOML
[shared_memory]
name = "$name"

[geometry]
scan = "scan"

[publish]
preview_every_views = 30

[supervise]
status_file = "status.json"
TOML
"$diffnr" plan --config "$out/gantry.toml"

say "3/6  serve: the daemon; a gantry (a C process) plays $fps frames a second into its ring"
"$diffnr" serve --config "$out/gantry.toml" --once >"$out/daemon.log" 2>&1 &
daemon=$!
"$gantry" "$name" "$out/gantry.frames" --fps "$fps" --wait-ready --timeout 30 &
player=$!

say "4/6  watch: a reader in a third process waits for the full volume"
"$diffnr" watch --name "$name" --wait full --timeout $((views / fps + 60)) \
    --scan "$out/scan" --save "$out/volume.nii.gz" --png "$out/volume.png" &
reader=$!
wait "$player" || { echo "the gantry simulator failed" >&2; kill "$reader"; exit 1; }
wait "$reader"
wait "$daemon" || { echo "the daemon failed; its log:" >&2; tail -20 "$out/daemon.log" >&2; daemon=; exit 1; }
daemon=

say "5/6  evaluate"
"$diffnr" evaluate "$out/volume.nii.gz" --reference "$out/scan" --fov "$out/scan"
python3 - "$out/status.json" <<'PY'
import json, sys
status = json.load(open(sys.argv[1]))
for what, key in [("frame taken to volume updated", "frame_latency"), ("last frame to volume published", "preview_latency")]:
    h = status[key]
    print(f"latency, {what}: p50 {h['p50_ms']:.2f} ms, p99 {h['p99_ms']:.2f} ms, max {h['max_ms']:.2f} ms over {h['count']}")
PY

say "6/6  methods: the same object from $few views, FDK | ASD-POCS | field | field + SliceFixer"
few_scan="$out/scan_few"
"$diffnr" simulate "${object[@]}" -o "$few_scan" --views "$few" --voxels "$voxels" --detector "$voxels" --photons "$photons" --force
names=() volumes=()
# A column of the picture: method NAME, options of reconstruct.
method() {
    local name=$1 file
    shift
    file="$out/method_${#volumes[@]}.nii.gz"
    "$diffnr" reconstruct "$few_scan" --device cpu "$@" -o "$file"
    names+=("$name") volumes+=("$file")
}
skipped=
skip() { skipped="SKIPPED: SliceFixer ($1)"; }
# What is missing of one of doctor's checks, and what to do about it; empty where it is good.
lacks() {
    { "$diffnr" doctor --json || true; } | python3 -c '
import json, sys
check = json.load(sys.stdin)["checks"][sys.argv[1]]
if check["state"] != "good":
    print(check["found"] + (" -> " + check["more"] if check["more"] else ""))' "$1"
}

method FDK --method fdk
method ASD-POCS --method asd-pocs
method field --method field --photons "$photons"
if [ "$(lacks onnxruntime)" ] && [ -f "${DIFFNR_MODELS:-models}/manifest.toml" ]; then
    make onnxruntime || true
fi
why=$(lacks slice_fixer)
if [ "$why" ]; then
    runtime=$(lacks onnxruntime)
    skip "$why${runtime:+; and $runtime}"
else
    "$diffnr" reconstruct "$few_scan" --device cpu --method field --photons "$photons" --slice-fixer shipped ${anatomy:+--anatomy "$anatomy"} \
        -o "$out/method_3.nii.gz" --json > "$out/slice_fixer.json"
    # A repair that fails leaves the run as it is without: that is no fourth column.
    why=$(python3 - "$out/slice_fixer.json" <<'PY'
import json, sys
run = json.load(open(sys.argv[1]))
fixer = run["slice_fixer"]
if fixer["repairs"] == 0:
    print("no repair came through: " + "; ".join(run.get("warnings", [])))
else:
    print(f"{fixer['repairs']} repairs in {fixer['repair_s']:.1f} s, the whole in {run['seconds']['reconstruct']:.1f} s", file=sys.stderr)
PY
    )
    if [ "$why" ]; then skip "$why"; else names+=("field + SliceFixer") volumes+=("$out/method_3.nii.gz"); fi
fi
"$diffnr" evaluate "${volumes[@]}" --names "$(IFS=,; echo "${names[*]}")" --reference "$few_scan" --fov "$few_scan" \
    --picture "$out/methods.png"
if [ "$skipped" ]; then echo "$skipped"; fi

cat <<TXT

volume      $out/volume.nii.gz   (HU; any NIfTI viewer)
picture     $out/volume.png
methods     $out/methods.png     ($few views, side by side)
scan        $out/scan            (meta_data.json, proj_train/, vol_gt.npy)
daemon log  $out/daemon.log

all in $SECONDS s
TXT
