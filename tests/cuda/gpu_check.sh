#!/bin/bash
# tests/cuda/gpu_check.sh - runs the CUDA backend on real GPUs and prints a report to paste.
#   gpu_check.sh BUILD      (make gpu-check)
# Without a GPU: one line, exit 0.
build=${1:-build}
if ! gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version,compute_cap \
                       --format=csv,noheader 2> /dev/null) || [ -z "$gpus" ]; then
    echo "gpu-check: no NVIDIA GPU here: nothing was run"
    exit 0
fi
count=$(wc -l <<< "$gpus")
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0

# step NAME SECONDS COMMAND...: its time, and its output when it fails.
step() {
    local name=$1 seconds=$2 start=$EPOCHREALTIME
    shift 2
    if timeout -k 5 "$seconds" "$@" > "$work/log" 2>&1; then
        printf '  ok     %-44s %6.1f s\n' "$name" "$(bc <<< "$EPOCHREALTIME - $start")"
    else
        printf '  FAILED %-44s\n' "$name"
        tail -n 30 "$work/log" | sed 's/^/         /'
        failed=1
    fi
}

# answer ROLES...: two greedy answers of a whole job.
answer() {
    build/venv/bin/python - "$@" << 'PYTHON'
import sys
sys.path.insert(0, "tests/service")
from service import Service
with Service("--backend", "cuda", *sys.argv[1:]) as s:
    for text in "The capital of France is", "Once upon a time":
        print(s.complete(text, max_tokens=64, temperature=0)["choices"][0]["text"])
PYTHON
}

pair_agrees() {
    answer --both 1 > "$work/one" && answer --prefill 1 --decode 1 > "$work/two" &&
        diff "$work/one" "$work/two"
}

export -f answer pair_agrees
export work

echo "rankserve gpu-check, $(git describe --always --dirty 2> /dev/null)"
sed 's/^/  GPU    /' <<< "$gpus"
step "kernels and steps against the CPU, same bits" 900 "$build/cuda/backend_test"
grep -E '^ +[a-z0-9_ ]+: [0-9.e+-]+ of' "$work/log" | sed 's/^ */         /'
if [ -x build/venv/bin/python ] && [ -n "${RANKSERVE_TEST_MODEL:=$("$build/rankservectl" pull)}" ]
then
    export RANKSERVE_TEST_MODEL
    step "a whole job answers" 300 bash -c "answer --both 1"
    [ "$count" -ge 2 ] && step "prefill and decode on two GPUs answer alike" 600 bash -c pair_agrees
fi
[ "$failed" = 0 ] && echo "gpu-check: passed on $count GPU(s)"
exit "$failed"
