"""perf/bench_lines.py - the lines this engine is held to: target, figure, met or not.

Every figure is the median of the rounds of one run.  Where vLLM does not run beside us (VLLM_BIN),
its CPU backend's figures are those noted on another two-core machine with AVX-512 VNNI (W8A8, 22
November 2026), and are compared only on such machines.
"""
import statistics

NOTED = {"prompt_512_tok_s": 1650, "prompt_2048_tok_s": 1080, "c8_tok_s": 217, "c32_tok_s": 341,
         "disturbed_long_ttft_max": 16500}


class Lines:
    def __init__(self, results):
        self.r = results
        self.rows = []
        self.avx512 = results["isa"].startswith("avx512")

    def median(self, part, name, kind=None):
        rounds = self.r.get(part, [])
        if kind:
            rounds = [s[kind] for s in rounds if kind in s]
        values = [s[name] for s in rounds if name in s]
        return statistics.median(values) if values else None

    def service(self, kind, name):
        return self.median("service", name, kind)

    def vllm(self, name):
        """Its figure and whose it is; None where neither was measured nor noted for such a machine."""
        value = self.service("vllm", name)
        if value is not None:
            return value, "vLLM-CPU int8"
        return (NOTED[name], "vLLM-CPU int8 (noted)") if self.avx512 else (None, "vLLM-CPU int8")

    def against_vllm(self, work, mine, name, least):
        value, whose = self.vllm(name)
        if value is not None:
            self.ratio(work, mine, value, least, whose)

    def add(self, work, target, figure, met):
        """`figure` None: not measured."""
        self.rows.append({"work": work, "target": target,
                          "figure": figure if figure is not None else "not measured",
                          "met": met if figure is not None else None})

    def ratio(self, work, mine, other, least, whose, digits=0):
        figure = met = None
        if mine and other:
            figure = f"{mine / other:.2f} x ({mine:.{digits}f} / {other:.{digits}f})"
            met = mine / other >= least
        self.add(work, f">= {least:g} x {whose}", figure, met)

    def most(self, work, value, most, unit):
        figure = f"{value:.4g} {unit}" if value is not None else None
        self.add(work, f"<= {most:g} {unit}", figure, value is not None and value <= most)

    def share(self, work, value, least, whose):
        figure = f"{100 * value:.0f} %" if value is not None else None
        self.add(work, f">= {100 * least:.0f} % of {whose}", figure,
                 value is not None and value >= least)


def engine_lines(t, shares):
    for n in (512, 2048):
        name = f"prefill_{n}"
        mine = t.median("engine", name)
        t.ratio(f"prefill {n}", mine, t.median("llama_engine", name), 4, "llama.cpp Q4_1")
        t.ratio(f"prefill {n}", mine, t.median("llama_engine_q4_0", name), 2, "llama.cpp Q4_0")
        beside = t.service("ours", f"prompt_{n}_tok_s")    # through the service, as vLLM's
        t.against_vllm(f"prefill {n}", beside or mine, f"prompt_{n}_tok_s", 1.3)
        t.share(f"prefill {n}", shares.get(name), 0.5, "GEMM and attention at their peaks")
    t.share("GEMM kernels, 512 rows, the slowest type", shares.get("gemm"), 0.6, "the 8-bit peak")
    mine = t.median("engine", "decode_1")
    t.ratio("decode, 1 stream", mine, t.median("llama_engine", "decode_1"), 1.7, "llama.cpp Q4_1")
    t.ratio("decode, 1 stream", mine, t.median("llama_engine_q4_0", "decode_1"), 1,
            "llama.cpp Q4_0")
    t.share("decode, 1 stream", shares.get("decode_1"), 0.65, "what the read bandwidth allows")
    t.ratio("decode, 32 streams", t.median("engine", "decode_32"),
            t.median("llama_engine", "decode_32"), 4, "llama.cpp Q4_1")
    for kv in ("", "_int8"):
        shallow = t.median("engine", "decode_1_d0" + kv)
        deep = t.median("engine", "decode_1_d4096" + kv)
        t.most(f"decode at depth 0 against 4096{kv.replace('_', ', KV ')}",
               shallow / deep if shallow and deep else None, 1.6, "x")


def latency_lines(t):
    for kind, name in (("split", "1/1"), ("ours", "aggregated")):
        ratio = t.service(kind, "disturbed_ratio")
        t.most(f"ITL p99 beside 4 long prompts, {name}", ratio, 2.5, "x undisturbed")
        mine = t.service(kind, "disturbed_long_ttft_max")
        theirs = t.service("llama", "disturbed_long_ttft_max")
        if theirs:
            t.most(f"long prompts' last TTFT, {name}", mine, theirs, "ms (llama-server)")
        elif t.service("llama", "disturbed_over_ms"):
            t.most(f"long prompts' last TTFT, {name}", mine,
                   t.service("llama", "disturbed_over_ms"), "ms (llama-server took longer)")
        theirs, whose = t.vllm("disturbed_long_ttft_max")
        if theirs:
            t.most(f"long prompts' last TTFT, {name}", mine, theirs, f"ms ({whose})")
    for kind, name in (("ours", "aggregated"), ("split", "1/1")):
        t.most(f"shared prefix, TTFT p50, {name}", t.service(kind, "prefix_ttft_p50"), 150, "ms")
        t.most(f"shared prefix, TTFT p99, {name}", t.service(kind, "prefix_ttft_p99"), 400, "ms")
        again = t.service(kind, "prefix_again")     # 1/1: the prefix may be computed on both ranks
        t.most(f"shared prefix, computed again, {name}", again, 0 if kind == "ours" else 1488,
               "tokens")
    whole, split = t.service("ours", "ttft_2000"), t.service("split", "ttft_2000")
    figure = f"{split:.1f} / {whole:.1f} ms" if whole and split else None
    t.add("P/D against aggregated, TTFT of 2,000 tokens", "<= 1.03 x + 5 ms", figure,
          figure is not None and split <= 1.03 * whole + 5)


def throughput_lines(t):
    for kind, name in (("ours", "aggregated"), ("split", "1/1")):
        eight, many = t.service(kind, "c8_tok_s"), t.service(kind, "c32_tok_s")
        t.ratio(f"8 clients, output tok/s, {name}", eight, t.service("llama", "c8_tok_s"), 4,
                "llama-server Q4_1")
        t.against_vllm(f"8 clients, output tok/s, {name}", eight, "c8_tok_s", 1)
        t.against_vllm(f"32 clients, output tok/s, {name}", many, "c32_tok_s", 1.3)
    for kind, name in (("ours", "aggregated"), ("split", "1/1")):
        for load in ("decode_1", "decode_8", "prefill"):
            kept = t.service(kind, f"stolen_{load}_kept")
            share = t.service(kind, f"stolen_{load}_share")
            if kept is None and kind == "split" and load != "decode_8":
                continue
            figure = f"fell {100 * (1 - kept):.0f} %, stolen {100 * share:.0f} %" \
                if kept is not None else None
            t.add(f"a core stolen, {load}, {name}", "falls <= stolen share + 10 %", figure,
                  kept is not None and 1 - kept <= share + 0.1)
    for kind, name in (("ours", "aggregated"), ("split", "1/1")):
        t.most(f"start to ready, {name}", t.service(kind, "start_s"), 1, "s")


def plane_lines(t):
    """Null workers; gateway and rank 0 together, all of their CPU."""
    t.most("100,000-token prompts, 95 % known, 98.8 a second", t.median("plane", "plane_long_cores"),
           0.8, "cores")
    rate = t.median("plane", "plane_long_requests_s")
    t.add("the same: requests a second", ">= 95", f"{rate:.1f}" if rate else None,
          rate is not None and rate >= 95)
    for name in "gateway", "rank0":
        t.most(f"100,000 tokens never seen, {name}", t.median("plane", f"plane_cold_{name}_ms"), 60,
               "ms of CPU")
    t.most("200-token prompts, 500 a second, added", t.median("plane", "plane_added_p50_ms"), 0.3,
           "ms p50")
    t.most("the same: first token, all of it", t.median("plane", "plane_first_token_p99_ms"), 2,
           "ms p99")
    rate = t.median("plane", "plane_requests_s")
    t.add("200-token prompts, 64 clients", ">= 5000 requests/s", f"{rate:.0f}" if rate else None,
          rate is not None and rate >= 5000)


def lines(results, shares):
    """`shares`: parts of the machine's peak by name, where they say something."""
    t = Lines(results)
    if "engine" in results["only"] or "kernels" in results["only"]:
        engine_lines(t, shares)
    if "service" in results["only"]:
        latency_lines(t)
        throughput_lines(t)
    if "plane" in results["only"]:
        plane_lines(t)
    return t.rows


def print_lines(rows):
    words = {True: "met", False: "NOT MET", None: "-"}
    print(f"\n{'':46} {'target':38} {'figure':44} ")
    for r in rows:
        print(f"{r['work']:46} {r['target']:38} {r['figure']:44} {words[r['met']]}")
    count = [sum(r["met"] is v for r in rows) for v in (True, False, None)]
    print(f"{count[0]} met, {count[1]} not met, {count[2]} not measured")
