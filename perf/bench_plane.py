"""perf/bench_plane.py - what the control plane alone costs: gateway and rank 0, without an engine.

Workers run the null backend, so a request's time and CPU are those of HTTP, tokenizing, keys, link,
decision and MPI.  The client runs on the same machine and takes its share of the cores.  CPU is
what the kernel's books say of each process, all of it; cores are CPU seconds a second.
"""
import contextlib
import json
import os
import subprocess
import tempfile

import bench_service as service
from bench_machine import TICKS

STEP_US = 50                          # of the null backend
FLAGS = ["--backend", "null", "--both", 2, "--max-num-seqs", 256, "--max-queue", 4000,
         "--max-model-len", 131072, "--max-num-batched-tokens", 8192,
         "--kv-cache-memory-bytes", "60GiB"]
LONG, SHARED, RATE = 100000, 95000, 98.8
SHORT = ["--input-len", 200]


def processes(above):
    """What runs below process `above`, by what it is: gateway, rank0, workers, mpirun."""
    parent, kind = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as f:
                words = f.read()
            with open(f"/proc/{name}/environ", "rb") as f:
                environ = f.read().split(b"\0")
        except OSError:
            continue
        parent[int(name)] = int(words.rpartition(")")[2].split()[1])
        what = words.partition("(")[2].rpartition(")")[0]
        first = any(e in (b"OMPI_COMM_WORLD_RANK=0", b"PMI_RANK=0") for e in environ)
        kind[int(name)] = {"rankserve-gatew": "gateway", "rankserve": "rank0" if first else
                           "workers"}.get(what, "mpirun")
    below = {above}
    while more := {p for p, q in parent.items() if q in below} - below:
        below |= more
    return {p: kind[p] for p in below}


def seconds_of(kinds):
    """CPU seconds by kind."""
    out = {}
    for pid, kind in kinds.items():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
            out[kind] = out.get(kind, 0) + (int(fields[11]) + int(fields[12])) / TICKS
    return out


class Plane:
    """A service of null workers; ask() says what its processes used for each request."""

    def __init__(self, url, pid):
        self.url, self.kinds = url, processes(pid)

    def ask(self, seed, requests, *flags):
        before = seconds_of(self.kinds)
        r = service.load(self.url, seed, "--num-prompts", requests, "--output-len", 1, *flags)
        after = seconds_of(self.kinds)
        done = max(r["completed"], 1)
        for kind in ("gateway", "rank0", "workers", "mpirun"):
            r[f"{kind}_ms"] = (after.get(kind, 0) - before.get(kind, 0)) / done * 1000
        r["plane_cores"] = (r["gateway_ms"] + r["rank0_ms"]) * done / 1000 / r["duration"]
        return r


@contextlib.contextmanager
def started(a):
    more = {"RANKSERVE_NULL_STEP_US": str(STEP_US), "RANKSERVE_NULL_TOKEN_US": "0"}
    before = {k: os.environ.get(k) for k in more}
    os.environ.update(more)
    try:
        with service.ours(a, *FLAGS) as (url, _):
            yield Plane(url, os.getpid())
    finally:
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})


def short_prompts(plane, seed):
    """Prompts of 200 ids, one token out, 64 clients, as many as go."""
    plane.ask(seed, 500, *SHORT, "--max-concurrency", 64)
    r = plane.ask(seed + 1, 16000, *SHORT, "--max-concurrency", 64)
    return {"plane_requests_s": r["request_throughput"], "plane_failed": r["failed"],
            "plane_gateway_us": r["gateway_ms"] * 1000, "plane_rank0_us": r["rank0_ms"] * 1000}


def long_prompts(plane, seed):
    """Text of 100,000 tokens, nearly all of it known; then some that nobody has seen."""
    flags = ["--text", "--shared-prefix-len", SHARED, "--input-len", LONG - SHARED]
    plane.ask(seed, 2, *flags)
    r = plane.ask(seed, 500, *flags, "--request-rate", RATE)
    cold = plane.ask(seed + 1, 20, "--text", "--input-len", LONG, "--max-concurrency", 1)
    return {"plane_long_requests_s": r["request_throughput"], "plane_long_cores": r["plane_cores"],
            "plane_long_failed": r["failed"] + cold["failed"],
            "plane_long_gateway_ms": r["gateway_ms"], "plane_long_rank0_ms": r["rank0_ms"],
            "plane_cold_gateway_ms": cold["gateway_ms"], "plane_cold_rank0_ms": cold["rank0_ms"]}


def figures_of(program, *words, seconds=120):
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "out.json")
        r = subprocess.run([service.build(program), *map(str, words), out], capture_output=True,
                           text=True, timeout=seconds)
        if r.returncode != 0:
            raise RuntimeError(f"{program}: {r.stderr[-300:]}")
        with open(out) as f:
            return json.load(f)


def latency(plane, seed):
    """First tokens at 500 requests a second.  Added: what neither the null step nor a GET /ping of
    the same connections takes."""
    r = figures_of("latency_bench", plane.url.rpartition(":")[2], 500, 4, seed)
    first, step = r["first_token_p50_ms"], STEP_US / 1000
    return {"plane_first_token_p50_ms": first, "plane_ping_p50_ms": r["ping_p50_ms"],
            "plane_added_p50_ms": first - step - r["ping_p50_ms"],
            "plane_first_token_p99_ms": r["first_token_p99_ms"]}


def plane_round(a, meter, seed):
    out = {}
    with started(a) as plane:
        out.update(meter("control plane, 200 ids", 8, short_prompts, plane, seed))
        out.update(meter("control plane, 100,000 tokens", 12, long_prompts, plane, seed + 10))
        out.update(meter("control plane, first tokens", 10, latency, plane, seed + 20))
    return out


def decisions():
    """An index of ten million blocks on 1,024 workers."""
    return figures_of("sched_bench")


def simulator():
    """20,000 requests of conversations on 8 workers, at 0.7 of what they can."""
    r = figures_of("rankservectl", "sim", "--mix", 20000, "--policy", "cost", "--load", 0.7,
                   "--json")[0]
    return {"sim_times_real": r["virtual_s"] / r["wall_s"],
            "sim_requests_s": r["requests"] / r["wall_s"],
            "sim_decisions_s": r["decisions"] / r["wall_s"]}
