#!/bin/bash
# tests/cuda/gpu_check.sh - runs the CUDA backend on real GPUs and prints a report to paste.
#   gpu_check.sh BUILD      (make gpu-check)
# Without a GPU: one line, exit 0.  Needs the driver and the toolkit (CUDA_HOME).  Whole jobs need
# also build/venv (tests/deps.sh test makes it) and the default model: without them it says so.
# shellcheck disable=SC2317,SC2001  # functions are called by bash -c
build=${1:-build}
export LD_LIBRARY_PATH=${CUDA_HOME:-/usr/local/cuda}/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
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
    local name=$1 seconds=$2 start=$SECONDS code
    shift 2
    timeout -k 5 "$seconds" "$@" > "$work/log" 2>&1
    code=$?
    if [ "$code" = 0 ]; then
        printf '  ok     %-48s %4d s\n' "$name" $((SECONDS - start))
    else
        printf '  FAILED %-48s exit code %d\n' "$name" "$code"
        tail -n 30 "$work/log" | sed 's/^/         /'
        failed=1
    fi
}

skip() {
    printf '  skip   %-48s %s\n' "$1" "$2"
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

# prompt_time FLAGS...: how long a prompt of 2000 tokens takes, the median of five.
prompt_time() {
    build/venv/bin/python - "$@" << 'PYTHON'
import statistics, sys, time
sys.path.insert(0, "tests/service")
from service import Service
def ask(s, first):
    start = time.monotonic()
    r = s.complete([first] + [i % 1000 + 10 for i in range(1999)], max_tokens=1)
    assert r["usage"]["prompt_tokens"] == 2000, r
    return time.monotonic() - start
with Service("--backend", "cuda", "--max-num-batched-tokens", "2048", *sys.argv[1:]) as s:
    ask(s, 1)
    took = statistics.median(ask(s, i) for i in range(2, 7))
    print(f"{' '.join(sys.argv[1:])}: {took * 1e3:.0f} ms for 2000 tokens of a prompt")
PYTHON
}

# pair_agrees CONNECTOR: how KV goes from GPU to GPU.
pair_agrees() {
    answer --both 1 > "$work/one" &&
        answer --prefill 1 --decode 1 --kv-connector "$1" > "$work/two" &&
        diff "$work/one" "$work/two"
}

export -f answer pair_agrees prompt_time
export work

echo "rankserve gpu-check, $(git describe --always --dirty 2> /dev/null)"
sed 's/^/  GPU    /' <<< "$gpus"
step "kernels, steps, cuBLAS against the CPU; same bits" 900 "$build/cuda/backend_test"
grep -E '^ +[a-z0-9_, ]+: [0-9.e+-]+ of' "$work/log" | sed 's/^ */         /'
if [ "$count" -ge 2 ]; then
    step "KV over NCCL lanes between two GPUs" 300 "$build/cuda/lanes_test"
else
    skip "KV over NCCL lanes between two GPUs" "one GPU"
fi
[ -n "$RANKSERVE_TEST_MODEL" ] || RANKSERVE_TEST_MODEL=$(timeout 600 "$build/rankservectl" pull)
export RANKSERVE_TEST_MODEL
if [ ! -x build/venv/bin/python ]; then
    skip "whole jobs" "no build/venv: run tests/deps.sh test"
elif [ -z "$RANKSERVE_TEST_MODEL" ]; then
    skip "whole jobs" "no model: set RANKSERVE_TEST_MODEL"
else
    step "a whole job answers" 300 bash -c "answer --both 1"
    for linear in rankserve cublas; do
        step "a long prompt, products by $linear" 300 bash -c "prompt_time --linear-backend $linear"
        grep ' ms for ' "$work/log" | sed 's/^/         /'
    done
    for connector in nccl mpi; do
        name="prefill and decode on two GPUs, KV by $connector"
        if [ "$count" -ge 2 ]; then
            step "$name" 600 bash -c "pair_agrees $connector"
        else
            skip "$name" "one GPU"
        fi
    done
fi
[ "$failed" = 0 ] && echo "gpu-check: passed on $count GPU(s)"
exit "$failed"
