#!/usr/bin/env python3
"""perf/policies.py - the scheduling policies against each other, simulated: tables and a plot.

    perf/policies.py TRACE.jsonl ... [--ctl build/rankservectl] [--out perf/results/policies]

For each trace and 8 to 64 workers: TTFT, goodput (TTFT <= 2 s and mean ITL <= 50 ms) and reuse of
`cost` beside llm-d's two at 0.70 to 0.95 of the prompt capacity, and the load each carries while
nine of ten requests meet the targets.  Writes OUT.md, OUT.json and OUT.svg (TTFT against load).
Virtual time: the figures do not depend on the machine.
"""
import argparse
import json
import os
import subprocess
import tempfile

POLICIES = ["cost", "llm-d-affinity", "llm-d-weighted"]
COLOURS = {"cost": "#0b6e4f", "llm-d-affinity": "#c8553d", "llm-d-weighted": "#4a6fa5"}
WORKERS = [8, 16, 32, 64]
LOADS = [round(0.2 + 0.05 * i, 2) for i in range(18)]
COMPARED = [0.7, 0.8, 0.9, 0.95]


def simulate(ctl, trace, workers, policies=POLICIES, loads=LOADS):
    """{(policy, load): result}"""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run(
            [ctl, "sim", "--trace", trace, "--workers", str(workers), "--json", out.name,
             "--policy", ",".join(policies), "--load", ",".join(map(str, loads))],
            check=True, stdout=subprocess.DEVNULL, timeout=600)
        return {(r["policy"], round(r["load"], 2)): r for r in json.load(open(out.name))}


def carried(options, trace, workers, runs, policy):
    """The highest load, in hundredths, at which 90 % meet the targets."""
    met = [load for load in LOADS if runs[policy, load]["goodput"] >= 0.9]
    if not met:
        return 0.0
    near = [round(max(met) + 0.01 * i, 2) for i in range(-6, 6)]
    fine = simulate(options.ctl, trace, workers, [policy], near)
    return max(load for load in near if fine[policy, load]["goodput"] >= 0.9)


def compare(name, workers, runs):
    rows = []
    for load in COMPARED:
        own, others = runs["cost", load], [runs[p, load] for p in POLICIES[1:]]
        rows.append({
            "trace": name, "workers": workers, "load": load,
            "ttft_p50": [r["ttft_ms"]["p50"] for r in [own] + others],
            "ttft_p99": [r["ttft_ms"]["p99"] for r in [own] + others],
            "goodput": [100 * r["goodput"] for r in [own] + others],
            "reuse_of_held": 100 * own["reuse_of_held"],
            "reuse_of_endless": [100 * r["reuse_of_endless"] for r in [own] + others],
        })
    return rows


def triple(values, form):
    return " / ".join(form % v for v in values)


def table(rows, capacity):
    lines = ["| trace | workers | load | TTFT p50, ms | TTFT p99, ms | goodput, % | reuse, % | of an endless cache, % |",
             "|---|---|---|---|---|---|---|---|"]
    worse, gains = [], {"ttft_p50": [], "ttft_p99": []}
    for r in rows:
        lines.append("| %s | %d | %.2f | %s | %s | %s | %.1f | %s |" % (
            r["trace"], r["workers"], r["load"], triple(r["ttft_p50"], "%.0f"),
            triple(r["ttft_p99"], "%.0f"), triple(r["goodput"], "%.1f"), r["reuse_of_held"],
            triple(r["reuse_of_endless"], "%.0f")))
        where = "%s, %d workers, %.2f" % (r["trace"], r["workers"], r["load"])
        for key in gains:
            gains[key].append(1 - r[key][0] / min(r[key][1:]))
            if r[key][0] > min(r[key][1:]):
                worse.append("%s: %s %.0f against %.0f" % (where, key, r[key][0], min(r[key][1:])))
        if r["goodput"][0] < max(r["goodput"][1:]) - 1:
            worse.append("%s: goodput" % where)
    lines += ["", "Each cell: `cost` / `llm-d-affinity` / `llm-d-weighted` (metrics 50 ms old).  "
              "Reuse: of the tokens that some worker held, those not computed again; then, of what a cache "
              "without end would hold, those of each policy.", "",
              "Against the better of the two, on average over these %d points: TTFT p50 %.0f %% "
              "lower, p99 %.0f %% lower.  Worse at: %s." % (
                  len(rows), 100 * sum(gains["ttft_p50"]) / len(rows),
                  100 * sum(gains["ttft_p99"]) / len(rows), "; ".join(worse) or "no point"),
              "", "| trace | workers | load carried at 90 % | `cost` ahead by |", "|---|---|---|---|"]
    for (name, workers), loads in capacity.items():
        best = max(loads[1:])
        lines.append("| %s | %d | %s | %s |" % (
            name, workers, triple(loads, "%.2f"),
            "%.0f %%" % (100 * (loads[0] / best - 1)) if best else "neither reaches it"))
    return lines


def plot(path, panels):
    """panels: [(title, runs)]; TTFT p50 (line) and p99 (dashes), logarithmic, against load."""
    import math
    wide, high, left, top = 380, 250, 60, 40
    low, most = 10.0, 200000.0
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
           'font-family="sans-serif" font-size="11">' % (
               2 * (wide + left) + 40, ((len(panels) + 1) // 2) * (high + top + 40) + 30),
           '<rect width="100%" height="100%" fill="white"/>']

    def y(ms):
        return high * (1 - math.log(max(ms, low) / low) / math.log(most / low))

    for i, (title, runs) in enumerate(panels):
        out.append('<g transform="translate(%d,%d)">' % (
            left + (i % 2) * (wide + left + 20), top + (i // 2) * (high + top + 40)))
        out.append('<text x="0" y="-10" font-weight="bold">%s</text>' % title)
        for ms in (10, 100, 1000, 10000, 100000):
            out.append('<path d="M0 %.1fH%d" stroke="#ddd"/><text x="-6" y="%.1f" '
                       'text-anchor="end">%g s</text>' % (y(ms), wide, y(ms) + 4, ms / 1000))
        for load in (0.2, 0.4, 0.6, 0.8, 1.0):
            out.append('<text x="%.1f" y="%d" text-anchor="middle">%.1f</text>' % (
                wide * (load - LOADS[0]) / (LOADS[-1] - LOADS[0]), high + 14, load))
        for policy in POLICIES:
            for key, dash in (("p50", ""), ("p99", ' stroke-dasharray="4 3"')):
                points = " ".join("%.1f,%.1f" % (
                    wide * (load - LOADS[0]) / (LOADS[-1] - LOADS[0]),
                    y(runs[policy, load]["ttft_ms"][key])) for load in LOADS)
                out.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.6"%s/>'
                           % (points, COLOURS[policy], dash))
        out.append("</g>")
    for i, policy in enumerate(POLICIES):
        out.append('<text x="%d" y="14" fill="%s">%s</text>' % (
            left + 130 * i, COLOURS[policy], policy))
    out.append('<text x="%d" y="14">TTFT against load: p50 line, p99 dashes</text></svg>'
               % (left + 400))
    open(path, "w").write("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("traces", nargs="+")
    parser.add_argument("--ctl", default="build/rankservectl")
    parser.add_argument("--out", default="perf/results/policies")
    options = parser.parse_args()
    rows, capacity, panels, everything = [], {}, [], []
    for trace in options.traces:
        name = os.path.basename(trace).replace("_trace.jsonl", "")
        for workers in WORKERS:
            runs = simulate(options.ctl, trace, workers)
            rows += compare(name, workers, runs)
            capacity[name, workers] = [carried(options, trace, workers, runs, p)
                                       for p in POLICIES]
            panels.append(("%s, %d workers" % (name, workers), runs))
            everything += [dict(r, trace=name, workers=workers) for r in runs.values()]
    os.makedirs(os.path.dirname(options.out), exist_ok=True)
    text = "\n".join(["# Policies, simulated", "",
                      "Made by `perf/policies.py`; workers of 16,000 prompt tokens/s and 500,000 "
                      "tokens of KV.", ""] + table(rows, capacity)) + "\n"
    open(options.out + ".md", "w").write(text)
    for r in everything:
        del r["wall_s"]
    json.dump(everything, open(options.out + ".json", "w"), separators=(",", ":"))
    plot(options.out + ".svg", panels)
    print(text)


if __name__ == "__main__":
    main()
