#!/usr/bin/env bash
# The main job, for real: a C gantry process plays a scan into the daemon through shared memory; the daemon publishes a volume
# through shared memory; a reader in a third process saves it, and it is scored against the truth.
#
#   scripts/demo.sh [CT.nii.gz]      settings by environment: VIEWS (180) FPS (30) VOXELS (128) PHOTONS (100000) OUT (demo)
set -euo pipefail
cd "$(dirname "$0")/.."

ct=${1:-}
out=${OUT:-demo}
views=${VIEWS:-180}
fps=${FPS:-30}
voxels=${VOXELS:-128}
photons=${PHOTONS:-100000}
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

if [ -n "$ct" ]; then object=("$ct"); what=$ct; else object=(--phantom thorax); what="the built-in thorax phantom"; fi

say() { printf '\n== %s\n' "$*"; }

say "1/5  simulate: $views views of $what, $photons photons a pixel, raw detector counts"
"$diffnr" simulate "${object[@]}" -o "$out/scan" --views "$views" --voxels "$voxels" --photons "$photons" --raw --force
"$diffnr" replay "$out/scan" --raw --record "$out/gantry.frames"

say "2/5  plan: every buffer and the schedule, before anything runs"
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

say "3/5  serve: the daemon; a gantry (a C process) plays $fps frames a second into its ring"
"$diffnr" serve --config "$out/gantry.toml" --once >"$out/daemon.log" 2>&1 &
daemon=$!
"$gantry" "$name" "$out/gantry.frames" --fps "$fps" --wait-ready --timeout 30 &
player=$!

say "4/5  watch: a reader in a third process waits for the full volume"
"$diffnr" watch --name "$name" --wait full --timeout $((views / fps + 60)) \
    --scan "$out/scan" --save "$out/volume.nii.gz" --png "$out/volume.png" &
reader=$!
wait "$player" || { echo "the gantry simulator failed" >&2; kill "$reader"; exit 1; }
wait "$reader"
wait "$daemon" || { echo "the daemon failed; its log:" >&2; tail -20 "$out/daemon.log" >&2; daemon=; exit 1; }
daemon=

say "5/5  evaluate"
"$diffnr" evaluate "$out/volume.nii.gz" --reference "$out/scan" --fov "$out/scan"
python3 - "$out/status.json" <<'PY'
import json, sys
status = json.load(open(sys.argv[1]))
for what, key in [("frame taken to volume updated", "frame_latency"), ("last frame to volume published", "preview_latency")]:
    h = status[key]
    print(f"latency, {what}: p50 {h['p50_ms']:.2f} ms, p99 {h['p99_ms']:.2f} ms, max {h['max_ms']:.2f} ms over {h['count']}")
PY

cat <<TXT

volume      $out/volume.nii.gz   (HU; any NIfTI viewer)
picture     $out/volume.png
scan        $out/scan            (meta_data.json, proj_train/, vol_gt.npy)
daemon log  $out/daemon.log
TXT
