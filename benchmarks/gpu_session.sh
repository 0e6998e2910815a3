#!/usr/bin/env bash
# All that needs a GPU, in under nine minutes, with nothing to download: checks, tests, sanitizers, times, a profile.
#
#   benchmarks/gpu_session.sh                          every phase
#   TIME_LIMIT=500 benchmarks/gpu_session.sh time      one phase, with more time
#
# Results go to ${OUT:-gpu-results}: session.log, status.txt, cuda.json, cuda-verify.json, ncu.csv. For the report, copy
# the two cuda*.json to reports/ and run `python -m benchmarks report`. A phase that fails stops none of the others; the
# exit status is 1 if one did. PYTHON chooses an interpreter that has normnumba's dependencies, numba-cuda and pytest.
set -uo pipefail
mkdir -p "${OUT:-gpu-results}"
OUT=$(cd "${OUT:-gpu-results}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
benchmarks=("$PYTHON" -m benchmarks --device cuda --output "$OUT")
every_op=("$PYTHON" -m benchmarks.every_op)
failed=0

log() { printf '%s\n' "$*" | tee -a "$OUT/session.log"; }

# phase NAME SECONDS COMMAND...: run a command under its own limit, log it and note how it ended.
phase() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    log "== $name: $*"
    timeout --kill-after=5 "$limit" "$@" </dev/null 2>&1 | tee -a "$OUT/session.log"
    status=${PIPESTATUS[0]}
    case $status in
    0) status=passed ;;
    124 | 137) status="stopped after $limit s" failed=1 ;;
    *) status="failed with status $status" failed=1 ;;
    esac
    log "== $name $status, $((SECONDS - start)) s"
    printf '%s: %s\n' "$name" "$status" >>"$OUT/status.txt"
}

has() { command -v "$1" >/dev/null 2>&1; }

sanitize() { # TOOL SECONDS
    if has compute-sanitizer; then
        phase "$1" "$2" compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 "${every_op[@]}"
    else
        log "== $1 failed: compute-sanitizer is not installed"
        printf '%s: no compute-sanitizer\n' "$1" >>"$OUT/status.txt"
        failed=1
    fi
}

check() {
    phase nvidia-smi 10 nvidia-smi
    phase backends 20 "$PYTHON" -c \
        'import normnumba, sys; why = normnumba.backends()["cuda"]; print(why or "CUDA can be used"); sys.exit(why is not None)'
}

tests() { phase tests 190 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider tests; }

memcheck() { sanitize memcheck 55; }

racecheck() { sanitize racecheck 55; }

# Written case by case: what the limit cuts off is missing from cuda.json, and the report says how much that is.
time_kernels() { phase time "${TIME_LIMIT:-150}" "${benchmarks[@]}" peers; }

profile() {
    if ! has ncu; then
        log "== profile skipped: ncu is not installed"
        printf 'profile: no ncu\n' >>"$OUT/status.txt"
        return
    fi
    local metrics=dram__throughput.avg.pct_of_peak_sustained_elapsed,gpu__time_duration.sum
    metrics+=,launch__registers_per_thread,sm__warps_active.avg.pct_of_peak_sustained_active
    # At the clocks that the times above were taken at.
    phase profile 45 ncu --clock-control none --metrics "$metrics" --csv --log-file "$OUT/ncu.csv" "${every_op[@]}" \
        --shape 16384x4096 --shape 64x256x56x56 --op 'rms_norm_*ward' --op 'batch_norm_*ward'
}

: >"$OUT/session.log"
: >"$OUT/status.txt"
for name in "${@:-check tests memcheck racecheck time profile}"; do
    for part in $name; do
        case $part in
        check | tests | memcheck | racecheck | profile) "$part" ;;
        time) time_kernels ;;
        *)
            log "There is no phase $part: check, tests, memcheck, racecheck, time, profile."
            exit 2
            ;;
        esac
    done
done
log "$(cat "$OUT/status.txt")"
exit "$failed"
