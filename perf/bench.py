#!/usr/bin/env python3
"""perf/bench.py - `make bench`: our figures, llama.cpp's beside them in the same run, and the lines.

    perf/bench.py [--rounds N] [--only machine,kernels,engine,service,places,plane] [--quick] [--out FILE]
    make bench LLAMA_BIN=DIR BENCH="--rounds 3 --quick"

LLAMA_BIN is a folder with llama-bench and llama-server; then rows are measured on both, in turns.
VLLM_BIN is a folder with `vllm` (its CPU backend), VLLM_MODEL what it serves (a Hugging Face folder,
the same weights in int8); then services are measured beside it, too.
Figures are medians over the rounds, with the least and the greatest.  --quick does each slow row
once or twice and stays below a quarter of an hour; what does not fit --limit is left out and says so.
The model is --model, else RANKSERVE_TEST_MODEL, else the default one.  LLAMA_MODEL may name another
file for llama.cpp (the same weights in another format), LLAMA_MODEL_Q4_0 one in Q4_0 (else
llama-quantize makes it), LLAMA_FLAGS more flags of llama-server.

Beside every measurement stands what part of the machine other processes took meanwhile.
Writes perf/results/DATE-ISA-COMMIT.json: machine, settings, every round's figures, the table, the
lines; and the same table and lines as text in a .txt beside it.
"""
import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import bench_plane as plane
import bench_service as service
from bench_lines import lines, print_lines
from bench_machine import QUIET, ROOT, Watch, isa_of, machine
from bench_service import LLAMA, VLLM, build, llama_env

PARTS = ["machine", "kernels", "engine", "service", "places", "plane"]
ISAS = ["plain", "avx2", "avx512", "avx512_bf16"]


# --- measuring --------------------------------------------------------------------------------

class Meter:
    """Runs measurements one after another while there is time, and watches the machine."""

    def __init__(self, limit):
        self.until = time.monotonic() + limit if limit else None
        self.seen, self.left_out = [], []

    def left(self):
        return self.until - time.monotonic() if self.until else 1e9

    def __call__(self, name, expected, measure, *arguments, **more):
        """What `measure` returns, or {} when its `expected` seconds are more than are left."""
        if self.left() < expected:
            self.left_out.append(name)
            return {}
        with Watch() as w:
            try:
                out = measure(*arguments, **more)
            except (RuntimeError, subprocess.TimeoutExpired) as e:
                print(f"  {name} failed: {e}", flush=True)
                self.left_out.append(f"{name} (failed)")
                out = {}
        self.seen.append({"name": name, **w.figures()})
        flat = {k: v for k, v in out.items() if not isinstance(v, dict)}
        for kind, figures in out.items():
            if isinstance(figures, dict):
                flat.update({f"{kind} {k}": v for k, v in figures.items()})
        shown = {k: round(v, 2) for k, v in flat.items()}
        note = "" if w.quiet() else f"  [others {100 * w.others:.0f} %, steal {100 * w.steal:.0f} %]"
        print(f"  {name}, {w.seconds:.1f} s{note}", flush=True)
        if len(shown) <= 6:
            print(f"    {shown}", flush=True)
        return out

    @contextlib.contextmanager
    def or_left_out(self, name):
        """What cannot even be started is left out; the rest goes on."""
        try:
            yield
        except (RuntimeError, OSError) as e:
            print(f"  {name} failed: {e}", flush=True)
            self.left_out.append(f"{name} (failed)")

    def verdict(self):
        worst = max(self.seen, key=lambda s: s["others"] + s["steal"], default=None)
        loud = [s for s in self.seen if s["others"] + s["steal"] > QUIET]
        if not loud:
            return "the machine was quiet" if self.seen else "nothing was watched"
        share = 100 * (worst["others"] + worst["steal"])
        return (f"the machine was NOT quiet: in {len(loud)} of {len(self.seen)} measurements others "
                f"took more than {100 * QUIET:.0f} % of it; most, {share:.0f} %, during "
                f"{worst['name']}; figures are lower than they would be, ratios less sure")


def run(command, seconds, **more):
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=seconds,
                       **more)
    if r.returncode != 0:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words}: exit {r.returncode}\n{r.stdout[-500:]}{r.stderr[-500:]}")
    return r.stdout


def run_for_json(command, seconds):
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "out.json")
        print(run([*command, out], seconds), end="", flush=True)
        with open(out) as f:
            return json.load(f)


def llama_version():
    if not LLAMA:
        return ""
    r = subprocess.run([os.path.join(LLAMA, "llama-server"), "--version"], capture_output=True,
                       text=True, env=llama_env(), timeout=20)
    return (r.stderr + r.stdout).splitlines()[0] if r.returncode == 0 else "?"


# --- engines ----------------------------------------------------------------------------------

def llama_bench(a, model, *flags):
    """llama-bench, once: the names are those of engine_bench."""
    out = {}
    command = [os.path.join(LLAMA, "llama-bench"), "-m", model, "-t", a.threads, "-r", 1, "-o",
               "json", *flags]
    for row in json.loads(run(command, 300, env=llama_env())):
        name = f"prefill_{row['n_prompt']}" if row["n_prompt"] else "decode_1"
        if row.get("n_depth"):
            name += f"_d{row['n_depth']}"
        out[name] = row["avg_ts"]
    return out


def llama_batched(a, model, streams):
    program = os.path.join(LLAMA, "llama-batched-bench")
    if not os.path.exists(program):
        return {}
    text = run([program, "-m", model, "-t", a.threads, "-c", 4096, "-b", 512, "-ub", 512, "-npp",
                64, "-ntg", 32, "-npl", streams, "--output-format", "jsonl"], 300, env=llama_env())
    rows = [json.loads(x) for x in text.splitlines() if x.startswith("{")]
    return {f"decode_{streams}": rows[-1]["speed_tg"]} if rows else {}


def engine_round(a, meter, results, number):
    once = number == 0 or not a.quick
    results["engine"].append(meter("engine", 40, run_for_json,
                                   [build("engine_bench"), a.model, a.threads], 120))
    if not LLAMA:
        return
    short = ["-p", "512,2048", "-n", 64]
    row = meter("llama.cpp Q4_1", 40, llama_bench, a, a.llama_model, *short)
    if once:
        row.update(meter("llama.cpp Q4_1 at depth", 60, llama_bench, a, a.llama_model, "-p", 0,
                         "-n", 16, "-d", 4096))
        row.update(meter("llama.cpp Q4_1, 32 streams", 40, llama_batched, a, a.llama_model, 32))
    results["llama_engine"].append(row)
    if a.llama_q4_0:
        results["llama_engine_q4_0"].append(meter("llama.cpp Q4_0", 30, llama_bench, a,
                                                  a.llama_q4_0, *short))


def peak_share(name, value, engine, roof):
    """What part of the machine's peak `value` tokens a second are; None where that says nothing.
    Not of decode_1, which engine_bench holds against reading in turns with it."""
    isa = ISAS[int(engine["isa"])]
    if isa == "plain":
        return None
    isa = isa.removesuffix("_bf16")    # attention's peak is that of float multiply-adds
    int8, f32 = roof[f"int8_{isa}"] * 1e9, roof[f"f32_{isa}"] * 1e9
    if name.startswith("prefill"):
        n = int(name.split("_")[1])
        best = (n * engine["layer_ops"] + engine["head_ops"]) / int8
        best += engine["attention_ops"] * n * (n + 1) / 2 / f32
        return value * best / n
    depth, kv = (256 if name == "decode_8" else 64), "f16"
    if "_d" in name:                   # decode_1_d4096, decode_1_d4096_int8
        depth, _, kv = name.split("_d")[1].partition("_")
    streams = int(name.split("_")[1])
    bytes_read = engine["weight_bytes"] + streams * int(depth) * engine[f"kv_bytes_{kv or 'f16'}"]
    best = max(bytes_read / (roof["read_92mib"] * 1e9),
               streams * (engine["layer_ops"] + engine["head_ops"]) / int8)
    return value / streams * best


# --- services ---------------------------------------------------------------------------------

def ask(a, meter, out, kind, url, seed, number):
    """Everything that is asked of our service in a round."""
    for count, requests, expected in ((1, 4, 5), (8, 24, 15), (32, 64, 25)):
        if count < 32 or number < 2 or not a.quick:
            out.update(meter(f"{kind}, {count} clients", expected, service.clients, url,
                             seed + count, count, requests, 60))
    out.update(meter(f"{kind}, shared prefix", 10, service.shared_prefix, url, seed + 200, 60))
    if number < 2 or not a.quick:
        out.update(meter(f"{kind}, interference", 40, service.interference, url, seed + 300, 90))
    if number == 0 or not a.quick:
        loads = service.LOADS if kind == "aggregated" or not a.quick else ["decode_8"]
        for i, load in enumerate(loads):
            out.update(meter(f"{kind}, a core stolen, {load}", 25, service.stolen_core, url,
                             seed + 400 + i, load))


def our_round(a, meter, out, seed, number):
    flags = ["--max-num-seqs", 64]
    with contextlib.ExitStack() as s:
        whole, start = s.enter_context(service.ours(a, "--both", 1, *flags))
        out["ours"] = {"start_s": start}
        split, start = s.enter_context(service.ours(a, "--prefill", 1, "--decode", 1, *flags))
        out["split"] = {"start_s": start}
        both = meter("2,000 tokens, both in turns", 30, service.one_long_request,
                     {"ours": whole, "split": split}, seed + 100, 4 if a.quick else 8)
        for kind, figures in both.items():
            out[kind].update(figures)
        out["ours"].update(meter("prompts alone", 15, service.prompts, whole, seed + 600))
        ask(a, meter, out["ours"], "aggregated", whole, seed, number)
        ask(a, meter, out["split"], "1/1", split, seed + 5000, number)


def llama_round(a, meter, results, seed, number):
    with service.llama(a, 32, 4608) as (url, start):
        out = results["llama"] = {"start_s": start}
        out.update(meter("llama-server, 8 clients", 45, service.clients, url, seed + 8, 8, 16, 60))
        if number and a.quick:
            return
        out.update(meter("llama-server, 1 client", 15, service.clients, url, seed + 1, 1, 4, 60))
        out.update(meter("llama-server, shared prefix", 60, service.shared_prefix, url,
                         seed + 200, 60))
        out.update(meter("llama-server, 32 clients", 60, service.clients, url, seed + 32, 32, 48,
                         60))
        out.update(meter("llama-server, interference", 140, service.interference, url, seed + 300,
                         130))


def vllm_round(meter, vllm, results, seed, number):
    with vllm.awake() as url:
        out = results["vllm"] = {"start_s": vllm.start_s}
        out.update(meter("vLLM, prompts alone", 20, service.prompts, url, seed + 600))
        for count, requests in ((1, 4), (8, 24), (32, 64)):
            out.update(meter(f"vLLM, {count} clients", 30, service.clients, url, seed + count, count,
                             requests, 60))
        if number == 0:
            out.update(meter("vLLM, shared prefix", 30, service.shared_prefix, url, seed + 200, 60))
            out.update(meter("vLLM, interference", 60, service.interference, url, seed + 300, 90))


def service_round(a, meter, vllm, number):
    seed, out = number * 10000, {}
    if vllm:
        with meter.or_left_out("vLLM"):
            vllm_round(meter, vllm, out, seed, number)
    with meter.or_left_out("our service"):
        our_round(a, meter, out, seed, number)
    if LLAMA and meter.left() > 60:
        with meter.or_left_out("llama-server"):
            llama_round(a, meter, out, seed, number)
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


def plane_figures(a, meter, number):
    out = {}
    with meter.or_left_out("the control plane"):
        out = plane.plane_round(a, meter, number * 1000 + 1)
    out.update(meter("simulator", 20, plane.simulator))
    if number == 0:
        out.update(meter("decisions", 30, plane.decisions))
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
        isa = results["isa"].removesuffix("_bf16")
        peak = ("f32" if name.startswith("attend_prefill") else "int8") + f"_{isa}"
        share = value * roof["threads"] / roof[peak] if peak in roof else None
        if name.startswith("attend_decode"):
            share = None               # one thread's GB/s: reading and arithmetic at once
        add("kernels", name, {"median": value, "min": value, "max": value}, None, share)
    engines = [e for e in results["engine"] if e]
    for name in [n for n in (engines[0] if engines else {})
                 if n.startswith(("prefill", "decode_", "mixed", "decoding", "reading"))]:
        mine = summary(engines, name)
        share = None
        if name == "decode_1" and "decoding_share" in engines[0]:
            share = summary(engines, "decoding_share")["median"]      # of reading in turns with it
        elif roof and name.startswith(("prefill", "decode_")):
            share = peak_share(name.removesuffix("_cpu"), mine["median"], engines[0], roof)
        add("engine", name, mine, summary(results["llama_engine"], name), share)
    services = results.get("service", [])
    for kind in ("ours", "split"):
        mine = [s[kind] for s in services if kind in s]
        others = [s["llama"] for s in services if "llama" in s]
        for name in dict.fromkeys(n for m in mine for n in m):
            add("service" if kind == "ours" else "service 1/1", name, summary(mine, name),
                summary(others, name))
    vllm = [s["vllm"] for s in services if "vllm" in s]
    for name in dict.fromkeys(n for v in vllm for n in v):
        add("vLLM", name, summary(vllm, name), None)
    for part in "places", "plane":
        rounds = results.get(part, [])
        for name in (rounds[0] if rounds else {}):
            add(part, name, summary(rounds, name), None)
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


def write(results, path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(results, f, indent=1)
        f.write("\n")
    with open(os.path.splitext(path)[0] + ".txt", "w") as f:
        f.write(text)


def shares_of(results):
    """Parts of the machine's peaks, by name, for the lines.  Products of 16-bit activations ("wide")
    are two 8-bit ones and are not held against the 8-bit peak."""
    rows = {r["name"]: r["peak_share"] for r in results["table"] if r["peak_share"] is not None}
    gemm = [r["peak_share"] for r in results["table"] if r["part"] == "kernels" and
            r["name"].endswith("_512") and "_wide_" not in r["name"] and r["peak_share"]]
    return {**rows, **({"gemm": min(gemm)} if gemm else {})}


def report(results, meter):
    out = io.StringIO()
    here = results["machine"]
    with contextlib.redirect_stdout(out):
        print(f"{here['date']}  {here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, "
              f"{' '.join(here['flags'])}\nLinux {here['kernel']}, {here['compiler']}, commit "
              f"{here['commit']}, {results['model']}, {results['threads']} threads, llama.cpp: "
              f"{here['llama'] or 'none'}")
        print(f"load {here['load_before']:.2f} before, {here['load_after']:.2f} after; "
              + results["verdict"])
        print_table(results["table"])
        print_lines(results["lines"])
        if meter.left_out:
            print("left out: " + ", ".join(meter.left_out))
    return out.getvalue()


# --- all of it --------------------------------------------------------------------------------

def arguments():
    p = argparse.ArgumentParser(description="our figures, and llama.cpp's beside them")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default=",".join(PARTS), help="parts, with commas: " + " ".join(PARTS))
    p.add_argument("--quick", action="store_true", help="slow rows once, not in every round")
    p.add_argument("--limit", type=float, default=None, metavar="SECONDS",
                   help="start nothing that would end later [840 with --quick, else none]")
    p.add_argument("--model", default=os.environ.get("RANKSERVE_TEST_MODEL", ""))
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--out", default="", help="JSON file [perf/results/DATE-ISA-COMMIT.json]")
    a = p.parse_args()
    a.only = a.only.split(",")
    unknown = set(a.only) - set(PARTS)
    if unknown or a.rounds < 1:
        p.error(f"unknown part {' '.join(unknown)}" if unknown else "--rounds: at least 1")
    if a.limit is None:
        a.limit = 840 if a.quick else 0
    if not a.model:
        a.model = run([build("rankservectl"), "pull"], 600).strip()
    a.llama_model = os.environ.get("LLAMA_MODEL", a.model)
    return a


@contextlib.contextmanager
def q4_0_model(a):
    """Sets a.llama_q4_0 to a Q4_0 file for llama.cpp, made here if need be; "" without one."""
    a.llama_q4_0 = os.environ.get("LLAMA_MODEL_Q4_0", "")
    program = os.path.join(LLAMA, "llama-quantize")
    if not LLAMA or a.llama_q4_0 or not os.path.exists(program):
        yield
        return
    folder = tempfile.mkdtemp(prefix="rankserve-bench-")
    try:
        path = os.path.join(folder, "q4_0.gguf")
        run([program, "--allow-requantize", a.llama_model, path, "Q4_0", a.threads], 120,
            env=llama_env())
        a.llama_q4_0 = path
        yield
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def vllm_beside(a, meter):
    """The peer, started and stopped again; None where there is none."""
    vllm = None
    if VLLM and "service" in a.only:
        with meter.or_left_out("vLLM"):
            vllm = service.Vllm(a)
    try:
        yield vllm
    finally:
        if vllm:
            vllm.close()


def measure(a, meter, results):
    if "machine" in a.only:
        results["machine_peaks"] = meter("peaks", 30, run_for_json,
                                         [build("roofline"), a.threads], 120)
    if "kernels" in a.only:
        results["kernels"] = meter("kernels", 30, run_for_json,
                                   [build("kernel_bench"), a.model], 120)
        if results["isa"] != "plain":
            results["kernels"].update(meter("attention", 10, run_for_json,
                                            [build("attend_bench")], 60))
    if "places" in a.only:
        results["places"] = [places_round() for _ in range(20)]
    with vllm_beside(a, meter) as vllm:
        for number in range(a.rounds):
            print(f"round {number + 1} of {a.rounds}", flush=True)
            if "engine" in a.only:
                engine_round(a, meter, results, number)
            if "service" in a.only and meter.left() > 60:
                results["service"].append(service_round(a, meter, vllm, number))
            if "plane" in a.only and meter.left() > 60:
                results["plane"].append(plane_figures(a, meter, number))


def main():
    a = arguments()
    here = machine()
    here["llama"] = llama_version()
    results = {"machine": here, "isa": isa_of(here), "rounds": a.rounds, "threads": a.threads,
               "only": a.only, "quick": a.quick, "model": os.path.basename(a.model),
               "llama_model": os.path.basename(a.llama_model), "engine": [], "llama_engine": [],
               "llama_engine_q4_0": [], "service": [], "plane": []}
    date = here["date"][:16].replace(":", "").replace("-", "")
    name = f"{date}-{results['isa']}-{here['commit'].rstrip('+')}"
    path = a.out or os.path.join(ROOT, "perf", "results", name + ".json")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    meter = Meter(a.limit)
    try:
        with q4_0_model(a):
            measure(a, meter, results)
    except KeyboardInterrupt:
        print("interrupted: the table has what was measured")
    here["load_after"] = os.getloadavg()[0]
    results["measured"], results["left_out"] = meter.seen, meter.left_out
    results["verdict"] = meter.verdict()
    results["table"] = make_rows(results)
    results["lines"] = lines(results, shares_of(results))
    text = report(results, meter)
    write(results, path, text)
    print("\n" + text + f"\n{path}")
    ours = [name for name in meter.left_out if not name.startswith("llama")]
    return 1 if any(name.endswith("(failed)") for name in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
