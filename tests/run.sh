#!/bin/bash
# tests/run.sh - runs every test; the last line is `N passed, N failed, N skipped`.
#   run.sh          the tests of `make check`
#   run.sh --long   also full counts (RANKSERVE_TEST_LONG=1) and the sanitizer builds
# A test that fails shows its output.  Exit 1 when one failed.
cd "$(dirname "$0")/.." || exit 1
long=
[ "$1" = --long ] && long=1
passed=0 failed=0 skipped=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
unit_seconds=300 service_seconds=2400 processors=$(nproc)
[ -n "$long" ] && export RANKSERVE_TEST_LONG=1 unit_seconds=900 service_seconds=7200

export RANKSERVECTL=${RANKSERVECTL:-$PWD/build/rankservectl}
if [ -z "$RANKSERVE_TEST_MODEL" ] && [ -x "$RANKSERVECTL" ]; then
    model=$(timeout 600 "$RANKSERVECTL" pull) && export RANKSERVE_TEST_MODEL=$model
    [ -n "$model" ] || echo "no default model: the tests that need it are skipped"
fi

# unit PROGRAM NAME: runs it beside others, a processor each; `units` waits, and counts.
started=()
unit() {
    local program=$1 name=$2 log=$work/unit${#started[@]}
    while [ "$(jobs -rp | wc -l)" -ge "$processors" ]; do wait -n; done
    started+=("$name")
    { CMOCKA_MESSAGE_OUTPUT=TAP timeout -k 5 "$unit_seconds" "$program" > "$log" 2>&1 < /dev/null
      echo $? > "$log.code"; } &
}

# Tests counted by their TAP lines; a program that ends badly after them counts as well.
units() {
    local at name log code ok bad skip seen plan
    wait
    for at in "${!started[@]}"; do
        name=${started[at]} log=$work/unit$at code=$(cat "$work/unit$at.code")
        skip=$(grep -cE '^(not )?ok .*# SKIP' "$log")    # cmocka says "not ok" of a skipped one
        ok=$(grep -E '^ok ' "$log" | grep -vc '# SKIP')
        bad=$(grep -E '^not ok ' "$log" | grep -vc '# SKIP')
        plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | head -n 1)
        seen=$((ok + bad + skip))
        if [ "$bad" = 0 ] && { [ "$code" != 0 ] || [ "$seen" != "${plan:-none}" ]; }; then bad=1; fi
        passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
        if [ "$bad" != 0 ]; then
            echo "FAILED $name (exit code $code)"
            tail -n 60 "$log" | sed 's/^/    /'
        else
            echo "ok     $name ($ok)"
        fi
    done
    started=()
}

# Counts of a JUnit file: passed failed skipped.
junit_counts() {
    python3 - "$1" << 'PYTHON'
import sys, xml.etree.ElementTree as tree
total = bad = skip = 0
for suite in tree.parse(sys.argv[1]).getroot().iter("testsuite"):
    total += int(suite.get("tests"))
    bad += int(suite.get("failures")) + int(suite.get("errors"))
    skip += int(suite.get("skipped"))
print(total - bad - skip, bad, skip)
PYTHON
}

# service NAME ARGUMENT...: pytest, beside others; `services` waits, and counts.
running=()
service() {
    local name=$1 log=$work/service${#running[@]}
    shift
    if [ ! -x build/venv/bin/python ]; then
        echo "FAILED $name: no build/venv (tests/deps.sh test makes it)"
        failed=$((failed + 1))
        return
    fi
    running+=("$name")
    { timeout -k 20 "$service_seconds" build/venv/bin/python -m pytest -q -ra --tb=short \
          -p no:cacheprovider --junitxml="$log.xml" "$@" > "$log" 2>&1 < /dev/null
      echo $? > "$log.code"; } &
}

services() {
    local at name log code ok bad skip
    wait
    for at in "${!running[@]}"; do
        name=${running[at]} log=$work/service$at code=$(cat "$work/service$at.code")
        read -r ok bad skip < <(junit_counts "$log.xml" 2> /dev/null) || { ok=0 bad=1 skip=0; }
        if [ "$bad" = 0 ] && [ "$code" != 0 ] && [ "$code" != 5 ]; then bad=1; fi
        passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
        if [ "$bad" != 0 ]; then
            echo "FAILED $name (exit code $code)"
            tail -n 300 "$log" | sed 's/^/    /'
        else
            echo "ok     $name ($ok)"
            grep '^SKIPPED' "$log" | sed 's/^/    /'
        fi
    done
    running=()
}

if tests/tidy.sh > "$work/tidy"; then
    passed=$((passed + 1))
    echo "ok     tidy"
else
    failed=$((failed + 1))
    echo "FAILED tidy"
    sed 's/^/    /' "$work/tidy"
fi

for source in tests/unit/*_test.c; do
    name=$(basename "$source" .c)
    unit "build/unit/$name" "$name"
done

# Every fault that tests/cusim knows is planted and must be found; it is built where nvcc is.
if [ -x build/cusim/check/check ]; then
    unit build/cusim/check/check cusim
else
    skipped=$((skipped + 1))
    echo "skipped cusim: no nvcc"
fi

# The CUDA backend, in emulation; without nvcc it is not built.  counters.json is for cuda-gates.
for source in tests/cuda/*_test.c; do
    name=$(basename "$source" .c)
    if [ -x "build/cuda/$name" ] && [ -e build/cusim/libcusim.so ]; then
        CUSIM_STATS=build/cuda/${name/backend_test/counters}.json unit_seconds=360 \
            LD_LIBRARY_PATH=$PWD/build/cusim unit "build/cuda/$name" "cuda_$name"
    else
        skipped=$((skipped + 1))
        echo "skip   cuda_$name (no nvcc)"
    fi
done
units
if [ -e build/rankserve-cuda.so ]; then
    if make -s cuda-gates > "$work/gates" 2>&1; then
        passed=$((passed + 1))
        echo "ok     cuda gates"
    else
        failed=$((failed + 1))
        echo "FAILED cuda gates"
        tail -n 30 "$work/gates" | sed 's/^/    /'
    fi
fi

san=$PWD/build/san-address-undefined
if [ -n "$long" ]; then
    make -s -j"$processors" SAN=address,undefined all unit || failed=$((failed + 1))
    for source in tests/unit/*_test.c; do
        name=$(basename "$source" .c)
        unit_seconds=2400 unit "$san/unit/$name" "$name (sanitizers)"
    done
    for name in engine_{threads,bits,stress,engine}_test; do
        make -s SAN=thread "build/san-thread/unit/$name" || failed=$((failed + 1))
        unit "build/san-thread/unit/$name" "$name (thread sanitizer)"
    done
    units
fi

# Two at a time: those of the first share mostly wait, for deadlines, other programs or the dead;
# those of the second mostly compute.  Each may be late because of the other.
export RANKSERVE_TEST_PATIENCE=${RANKSERVE_TEST_PATIENCE:-2}
apart=(tests/service/test_{ctl,cuda,docs,gateway,gateway_input,gateway_thread,handover,hosts,job}.py
       tests/service/test_{k8s,kills,nccl,ompi5,pods,render,shared_view,slurm,survive}.py
       tests/service/test_{template,tokenizer,validate}.py)
service "tests/service, apart" "${apart[@]}"
service "tests/service, the others" tests/service "${apart[@]/#/--ignore=}" \
    --ignore=tests/service/test_races.py
services
if [ -n "$long" ]; then
    # Whole jobs and gateways of the sanitizer build: slower, so with more patience.
    export RANKSERVE_BUILD=$san RANKSERVECTL=$san/rankservectl RANKSERVE_PROGRAM=$san/rankserve \
        RANKSERVE_GATEWAY=$san/rankserve-gateway RANKSERVE_TEST_PATIENCE=6 RANKSERVE_TEST_LONG=
    service "tests/service (sanitizers), apart" tests/service/test_{job,ctl,gateway*}.py
    service "tests/service (sanitizers), the others" tests/service/test_{serve,same}.py
    services
    make -s -j"$processors" SAN=thread all || failed=$((failed + 1))
    san=$PWD/build/san-thread
    export RANKSERVE_BUILD=$san RANKSERVECTL=$san/rankservectl RANKSERVE_PROGRAM=$san/rankserve \
        RANKSERVE_GATEWAY=$san/rankserve-gateway
    service "tests/service (thread sanitizer)" tests/service/test_races.py
    services
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
