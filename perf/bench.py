#!/usr/bin/env python3
"""perf/bench.py - `make bench`: our figures, and llama.cpp's beside them in the same run.

    perf/bench.py [--rounds N] [--only machine,kernels,engine,service,places] [--quick] [--out FILE]
    make bench LLAMA_BIN=DIR BENCH="--rounds 3"

LLAMA_BIN is a folder with llama-bench and llama-server; then every row is measured on both, in
turns, in every round, and the table has the ratio.  Figures are medians over the rounds, with the
least and the greatest.  The model is --model, else RANKSERVE_TEST_MODEL, else the default one.
LLAMA_MODEL may name another file for llama.cpp (the same weights in another format), LLAMA_FLAGS
more flags of llama-server.

Writes perf/results/DATE-ISA-COMMIT.json: machine, settings, every round's figures, and the table.
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("RANKSERVE_BUILD", os.path.join(ROOT, "build"))
LLAMA = os.environ.get("LLAMA_BIN", "")
PARTS = ["machine", "kernels", "engine", "service", "places"]
ISAS = ["plain", "avx2", "avx512"]


# --- programs ---------------------------------------------------------------------------------

def run(command, seconds, **more):
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=seconds,
                       **more)
    if r.returncode != 0:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words}: exit {r.returncode}\n{r.stdout}{r.stderr}")
    return r.stdout


def run_for_json(command, seconds):
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "out.json")
        print(run([*command, out], seconds), end="", flush=True)
        with open(out) as f:
            return json.load(f)


def build(name):
    return os.path.join(BUILD, name)


def llama_env():
    paths = [LLAMA, os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}


def first_line(command):
    try:
        return run(command, 20, cwd=ROOT).splitlines()[0].strip()
    except (RuntimeError, OSError, IndexError, subprocess.TimeoutExpired):
        return ""


def machine():
    cpu, flags = "", []
    with open("/proc/cpuinfo") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            elif key.strip() == "flags":
                flags = value.split()
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1])
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni",
              "avx512_bf16", "amx_int8")
    commit = first_line(["git", "rev-parse", "--short=12", "HEAD"])
    changed = first_line(["git", "status", "--porcelain", "--untracked-files=no"])
    return {"cpu": cpu, "flags": [f for f in wanted if f in flags],
            "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory / 2**20, 1),
            "kernel": platform.release(), "compiler": first_line(["gcc", "--version"]),
            "commit": commit + ("+" if changed else ""),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "load_before": os.getloadavg()[0],
            "llama": llama_version()}


def llama_version():
    if not LLAMA:
        return ""
    r = subprocess.run([os.path.join(LLAMA, "llama-server"), "--version"], capture_output=True,
                       text=True, env=llama_env(), timeout=20)
    return (r.stderr + r.stdout).splitlines()[0] if r.returncode == 0 else "?"


# --- engines ----------------------------------------------------------------------------------

def engine_round(a):
    return run_for_json([build("engine_bench"), a.model, a.threads], 900)


def llama_engine_round(a):
    """llama-bench, once each: the names are those of engine_bench."""
    out = {}
    base = [os.path.join(LLAMA, "llama-bench"), "-m", a.llama_model, "-t", a.threads, "-r", 1,
            "-o", "json"]
    for flags in (["-p", "512,2048", "-n", 64], ["-p", 0, "-n", 16, "-d", 4096]):
        for row in json.loads(run([*base, *flags], 900, env=llama_env())):
            name = f"prefill_{row['n_prompt']}" if row["n_prompt"] else "decode_1"
            if row.get("n_depth"):
                name += f"_d{row['n_depth']}"
            out[name] = row["avg_ts"]
    return out


def peak_share(name, value, engine, roof):
    """What part of the machine's peak `value` tokens a second are; None where that says nothing."""
    isa = ISAS[int(engine["isa"])]
    if isa == "plain":
        return None
    int8, f32 = roof[f"int8_{isa}"] * 1e9, roof[f"f32_{isa}"] * 1e9
    if name.startswith("prefill"):
        n = int(name.split("_")[1])
        best = (n * engine["layer_ops"] + engine["head_ops"]) / int8
        best += engine["attention_ops"] * n * (n + 1) / 2 / f32
        return value * best / n
    depth = int(name.split("_d")[1]) if "_d" in name else 64 if name == "decode_1" else 256
    streams = int(name.split("_")[1])
    bytes_read = engine["weight_bytes"] + streams * depth * engine["kv_token_bytes"]
    best = max(bytes_read / (roof["read_92mib"] * 1e9),
               streams * (engine["layer_ops"] + engine["head_ops"]) / int8)
    return value / streams * best


# --- services ---------------------------------------------------------------------------------

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def stop(process, seconds=30):
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def ours(a, *flags):
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        p = subprocess.Popen([build("rankservectl"), "up", "--model", a.model, "--listen",
                              "127.0.0.1:0", "--threads", str(a.threads), *map(str, flags)],
                             stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        try:
            line = p.stdout.readline()
            if not line.startswith("ready "):
                log.seek(0)
                raise RuntimeError("our service did not start:\n" + log.read()[-2000:])
            yield line.split()[1], time.monotonic() - began
        finally:
            stop(p)


@contextlib.contextmanager
def llama(a, slots, context):
    port, began = free_port(), time.monotonic()
    url = f"http://127.0.0.1:{port}"
    command = [os.path.join(LLAMA, "llama-server"), "-m", a.llama_model, "-t", a.threads,
               "-np", slots, "-c", slots * context, "--host", "127.0.0.1", "--port", port,
               *os.environ.get("LLAMA_FLAGS", "").split()]
    p = subprocess.Popen([str(c) for c in command],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=llama_env(),
                         start_new_session=True)
    try:
        while True:
            try:
                with urllib.request.urlopen(url + "/health", timeout=2) as r:
                    if r.status == 200:
                        break
            except OSError:
                if p.poll() is not None or time.monotonic() - began > 120:
                    raise RuntimeError("llama-server did not start") from None
            time.sleep(0.05)
        yield url, time.monotonic() - began
    finally:
        stop(p, 10)


def load(url, seed, *flags, seconds=400):
    """rankservectl bench; failures are in its figures."""
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "out.json")
        r = subprocess.run([build("rankservectl"), "bench", "--url", url, "--ignore-eos", "--seed",
                            str(seed), "--duration", str(seconds), "--result-file", out,
                            *map(str, flags)], capture_output=True, text=True,
                           timeout=seconds * 2 + 60)
        if not os.path.exists(out):
            raise RuntimeError(r.stderr)
        with open(out) as f:
            result = json.load(f)
        if result["failed"]:
            print(f"  failed: {result['errors']} {result.get('first_error', '')}", flush=True)
        return result


def clients(url, seed, count, requests):
    r = load(url, seed, "--num-prompts", requests, "--max-concurrency", count, "--input-len", 200,
             "--output-len", 64)
    return {f"c{count}_tok_s": r["output_throughput"], f"c{count}_ttft_p50": r["p50_ttft_ms"],
            f"c{count}_itl_p50": r["p50_itl_ms"], f"c{count}_itl_p99": r["p99_itl_ms"],
            f"c{count}_failed": r["failed"]}


def one_long_request(url, seed):
    r = load(url, seed, "--num-prompts", 3, "--max-concurrency", 1, "--input-len", 2000,
             "--output-len", 2, "--warmup", 1)
    return {"ttft_2000": r["p50_ttft_ms"]}


def shared_prefix(url, seed):
    """The first request of each client computes the prefix; later ones are what counts."""
    r = load(url, seed, "--num-prompts", 24, "--max-concurrency", 4, "--input-len", 50,
             "--shared-prefix-len", 1500, "--output-len", 16, "--warmup", 4)
    return {"prefix_ttft_p50": r["p50_ttft_ms"], "prefix_ttft_p99": r["p99_ttft_ms"]}


def interference(url, seed):
    r = load(url, seed, "--long-prompts", 4, "--long-input-len", 4000, "--long-interval", 2,
             "--max-concurrency", 4, "--input-len", 50, "--output-len", 1500)
    return {"disturbed_itl_p99_before": r.get("p99_itl_before_ms", 0),
            "disturbed_itl_p99_during": r.get("p99_itl_during_ms", 0),
            "disturbed_ratio": r.get("itl_p99_ratio", 0),
            "disturbed_long_ttft_max": r.get("max_long_ttft_ms", 0)}


def stolen_core(url, seed):
    """Throughput beside a process that wants one core, as a share of what the rest would allow."""
    flags = ["--num-prompts", 100000, "--max-concurrency", 8, "--input-len", 50, "--output-len", 64]
    alone = load(url, seed, *flags, seconds=10)["output_throughput"]
    hog = subprocess.Popen(["sh", "-c", "ulimit -t 30; while :; do :; done"],
                           start_new_session=True)
    try:
        began = time.monotonic()
        beside = load(url, seed + 5000, *flags, seconds=10)["output_throughput"]
        wall = time.monotonic() - began
    finally:
        os.killpg(hog.pid, signal.SIGKILL)
        _, _, usage = os.wait4(hog.pid, 0)
        hog.returncode = -9
    stolen = (usage.ru_utime + usage.ru_stime) / (wall * len(os.sched_getaffinity(0)))
    return {"stolen_kept": beside / alone if alone else 0, "stolen_share": stolen}


def all_cases(url, seed, quick):
    out = {}
    for case in ([lambda: clients(url, seed + 1, 1, 4), lambda: clients(url, seed + 8, 8, 24)] +
                 ([] if quick else [lambda: clients(url, seed + 32, 32, 64),
                                    lambda: one_long_request(url, seed + 100),
                                    lambda: shared_prefix(url, seed + 200),
                                    lambda: interference(url, seed + 300),
                                    lambda: stolen_core(url, seed + 400)])):
        out.update(case())
        print("  ", {k: round(v, 2) for k, v in list(out.items())[-4:]}, flush=True)
    return out


def service_round(a, number):
    seed, out = number * 10000, {}
    print("service, aggregated", flush=True)
    with ours(a, "--both", 1, "--max-num-seqs", 64) as (url, start):
        out["ours"] = {"start_s": start, **all_cases(url, seed, a.quick)}
    if not a.quick:
        print("service, 1/1", flush=True)
        with ours(a, "--prefill", 1, "--decode", 1, "--max-num-seqs", 64) as (url, start):
            out["split"] = {"start_s": start, **all_cases(url, seed, a.quick)}
    if LLAMA:
        print("service, llama-server", flush=True)
        with llama(a, 32 if not a.quick else 8, 4608) as (url, start):
            out["llama"] = {"start_s": start, **all_cases(url, seed, a.quick)}
    return out


def places_round():
    """Milliseconds to render a service file for each place, with the start of the program."""
    out = {}
    source = os.path.join(ROOT, "k8s-mpi-operator", "examples", "tuned.yaml")
    for target in "slurm", "k8s", "local":
        start = time.perf_counter()
        run([build("rankservectl"), "render", "-f", source, "--target", target, "--model", "/m"], 20)
        out[f"render_{target}_ms"] = (time.perf_counter() - start) * 1000
    return out


# --- the table --------------------------------------------------------------------------------

def summary(rounds, name):
    values = [r[name] for r in rounds if name in r]
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(name, x, y):
    """How many times better: more tokens, or fewer milliseconds."""
    if not x or not y or not x["median"] or not y["median"]:
        return None
    less_is_better = "_tok_s" not in name and ("ttft" in name or "itl" in name or
                                               name in ("start_s", "disturbed_ratio"))
    return y["median"] / x["median"] if less_is_better else x["median"] / y["median"]


def make_rows(results):
    rows = []

    def add(part, name, mine, others, share=None):
        if mine:
            rows.append({"part": part, "name": name, "ours": mine, "llama": others,
                         "ratio": ratio(name, mine, others), "peak_share": share})

    roof = results.get("machine_peaks", {})
    for name, value in roof.items():
        if name != "threads":
            add("machine", name, {"median": value, "min": value, "max": value}, None)
    for name, value in results.get("kernels", {}).items():
        isa = results["isa"]
        share = value * roof["threads"] / roof[f"int8_{isa}"] if f"int8_{isa}" in roof else None
        add("kernels", name, {"median": value, "min": value, "max": value}, None, share)
    engines = results.get("engine", [])
    for name in [n for n in (engines[0] if engines else {}) if n.startswith(("prefill", "decode"))]:
        mine = summary(engines, name)
        share = None
        if roof:
            share = peak_share(name.removesuffix("_cpu"), mine["median"], engines[0], roof)
        add("engine", name, mine, summary(results["llama_engine"], name), share)
    services = results.get("service", [])
    for kind in ("ours", "split"):
        mine = [s[kind] for s in services if kind in s]
        others = [s["llama"] for s in services if "llama" in s]
        for name in (mine[0] if mine else {}):
            add("service" if kind == "ours" else "service 1/1", name, summary(mine, name),
                summary(others, name))
    places = results.get("places", [])
    for name in (places[0] if places else {}):
        add("places", name, summary(places, name), None)
    return rows


def cell(s):
    return "" if not s else f"{s['median']:.4g} ({s['min']:.4g} .. {s['max']:.4g})"


def print_table(rows):
    print(f"\n{'':12} {'':26} {'ours, median (min .. max)':>32} {'llama.cpp':>32} {'ratio':>7}"
          f" {'of peak':>8}")
    for r in rows:
        share = f"{100 * r['peak_share']:.0f} %" if r["peak_share"] is not None else ""
        times = f"{r['ratio']:.2f}" if r["ratio"] is not None else ""
        print(f"{r['part']:12} {r['name']:26} {cell(r['ours']):>32} {cell(r['llama']):>32}"
              f" {times:>7} {share:>8}")


def write(results, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(results, f, indent=1)
        f.write("\n")


# --- all of it --------------------------------------------------------------------------------

def arguments():
    p = argparse.ArgumentParser(description="our figures, and llama.cpp's beside them")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default=",".join(PARTS), help="parts, with commas: " + " ".join(PARTS))
    p.add_argument("--quick", action="store_true", help="the shortest service rows only")
    p.add_argument("--model", default=os.environ.get("RANKSERVE_TEST_MODEL", ""))
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", default="", help="JSON file [perf/results/DATE-ISA-COMMIT.json]")
    a = p.parse_args()
    a.only = a.only.split(",")
    unknown = set(a.only) - set(PARTS)
    if unknown or a.rounds < 1:
        p.error(f"unknown part {' '.join(unknown)}" if unknown else "--rounds: at least 1")
    if not a.model:
        a.model = run([build("rankservectl"), "pull"], 600).strip()
    a.llama_model = os.environ.get("LLAMA_MODEL", a.model)
    return a


def measure(a, results):
    if "machine" in a.only:
        results["machine_peaks"] = run_for_json([build("roofline"), a.threads], 300)
    if "kernels" in a.only:
        results["kernels"] = run_for_json([build("kernel_bench"), a.model], 300)
    results["engine"], results["llama_engine"], results["service"] = [], [], []
    results["places"] = [places_round() for _ in range(20)] if "places" in a.only else []
    for number in range(a.rounds):
        print(f"round {number + 1} of {a.rounds}", flush=True)
        if "engine" in a.only:
            results["engine"].append(engine_round(a))
            if LLAMA:
                results["llama_engine"].append(llama_engine_round(a))
        if "service" in a.only:
            results["service"].append(service_round(a, number))


def main():
    a = arguments()
    here = machine()
    here_isa = "avx2" if "avx2" in here["flags"] else "plain"
    if "avx512_vnni" in here["flags"]:
        here_isa = "avx512"
    isa = os.environ.get("RANKSERVE_ISA", here_isa)
    results = {"machine": here, "isa": isa, "rounds": a.rounds, "threads": a.threads,
               "model": os.path.basename(a.model), "llama_model": os.path.basename(a.llama_model)}
    date = here["date"][:16].replace(":", "").replace("-", "")
    name = f"{date}-{isa}-{here['commit'].rstrip('+')}"
    path = a.out or os.path.join(ROOT, "perf", "results", name + ".json")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure(a, results)
    except KeyboardInterrupt:
        print("interrupted: the table has what was measured")
    here["load_after"] = os.getloadavg()[0]
    results["table"] = make_rows(results)
    print_table(results["table"])
    write(results, path)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
