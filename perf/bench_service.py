"""perf/bench_service.py - services that are measured, and what is asked of them.

A case takes a service's address and a seed and returns figures by name: tokens a second, or
milliseconds.  Prompts are different for each seed, so no case finds another's in the cache.
"""
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

from bench_machine import ROOT

BUILD = os.environ.get("RANKSERVE_BUILD", os.path.join(ROOT, "build"))
LLAMA = os.environ.get("LLAMA_BIN", "")
VLLM = os.environ.get("VLLM_BIN", "")
SHARED, OWN, BLOCK = 1500, 50, 16     # of the shared-prefix case
INTERFERENCE_BEGINS_S = 20            # streams fill, are watched, and all long prompts are sent


def build(name):
    return os.path.join(BUILD, name)


def llama_env():
    paths = [LLAMA, os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths))}


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
                             stdout=subprocess.PIPE, stderr=log, text=True, process_group=0)
        try:
            line = p.stdout.readline()
            if not line.startswith("ready "):
                log.seek(0)
                raise RuntimeError("our service did not start:\n" + log.read()[-2000:])
            yield line.split()[1], time.monotonic() - began
        finally:
            stop(p)


def wait_healthy(process, url, seconds, name):
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url + "/health", timeout=2) as r:
                if r.status == 200:
                    return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start") from None
        time.sleep(0.05)


class Vllm:
    """vLLM's CPU backend.  It takes minutes to start, so it is started once, and stopped (SIGSTOP)
    whenever it is not asked.  It does not always outlive that: then it is started again."""

    def __init__(self, a):
        self.threads = a.threads
        self.start()
        self.signal(signal.SIGSTOP)

    def start(self):
        port, began = free_port(), time.monotonic()
        self.url = f"http://127.0.0.1:{port}"
        command = [os.path.join(VLLM, "vllm"), "serve", os.environ["VLLM_MODEL"], "--dtype",
                   "bfloat16", "--max-model-len", 8192, "--max-num-batched-tokens", 512, "--host",
                   "127.0.0.1", "--port", port]
        env = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{self.threads - 1}", "VLLM_CPU_KVCACHE_SPACE": "3",
               **os.environ}
        self.process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, env=env, process_group=0)
        wait_healthy(self.process, self.url, 600, "vllm")
        self.start_s = time.monotonic() - began

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def answers(self):
        body = json.dumps({"model": os.environ["VLLM_MODEL"], "prompt": "one", "max_tokens": 1})
        request = urllib.request.Request(self.url + "/v1/completions", body.encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as r:
                return r.status == 200
        except OSError:
            return False

    @contextlib.contextmanager
    def awake(self):
        self.signal(signal.SIGCONT)
        if not self.answers():
            self.close()
            self.start()
        try:
            yield self.url
        finally:
            self.signal(signal.SIGSTOP)

    def close(self):
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def llama(a, slots, context):
    port, began = free_port(), time.monotonic()
    url = f"http://127.0.0.1:{port}"
    command = [os.path.join(LLAMA, "llama-server"), "-m", a.llama_model, "-t", a.threads,
               "-np", slots, "-c", slots * context, "--host", "127.0.0.1", "--port", port,
               *os.environ.get("LLAMA_FLAGS", "").split()]
    p = subprocess.Popen([str(c) for c in command],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=llama_env(),
                         process_group=0)
    try:
        wait_healthy(p, url, 120, "llama-server")
        yield url, time.monotonic() - began
    finally:
        stop(p, 10)


def load(url, seed, *flags, seconds=120):
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


# --- cases ------------------------------------------------------------------------------------

def clients(url, seed, count, requests, seconds=120):
    r = load(url, seed, "--num-prompts", requests, "--max-concurrency", count, "--input-len", 200,
             "--output-len", 64, seconds=seconds)
    return {f"c{count}_tok_s": r["output_throughput"], f"c{count}_ttft_p50": r["p50_ttft_ms"],
            f"c{count}_itl_p50": r["p50_itl_ms"], f"c{count}_itl_p99": r["p99_itl_ms"],
            f"c{count}_failed": r["failed"]}


def counter(url, name):
    """The sum of a Prometheus counter's series; None where the server has none."""
    try:
        with urllib.request.urlopen(url + "/metrics", timeout=10) as r:
            text = r.read().decode()
    except OSError:
        return None
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(map(float, values)) if values else None


def shared_prefix(url, seed, seconds=120):
    """Four clients; the first prompts are not counted.  `again`: tokens of the shared prefix that
    were computed although they had been, of those in full blocks."""
    name, requests, first = "vllm:prompt_tokens_cached_total", 24, 4
    before = counter(url, name)
    r = load(url, seed, "--num-prompts", requests, "--max-concurrency", 4, "--input-len", OWN,
             "--shared-prefix-len", SHARED, "--output-len", 16, "--warmup", first,
             seconds=seconds)
    out = {"prefix_ttft_p50": r["p50_ttft_ms"], "prefix_ttft_p99": r["p99_ttft_ms"]}
    if before is not None and r["completed"] == requests:
        want = (requests + first - 1) * (SHARED // BLOCK * BLOCK)
        out["prefix_again"] = max(0, want - (counter(url, name) - before))
    return out


def interference(url, seed, seconds=120):
    r = load(url, seed, "--long-prompts", 4, "--long-input-len", 4000, "--long-interval", 2,
             "--max-concurrency", 4, "--input-len", 50, "--output-len", 1500, seconds=seconds)
    before, during = r.get("p99_itl_before_ms", 0), r.get("p99_itl_during_ms", 0)
    out = {"disturbed_itl_p99_before": before, "disturbed_itl_p99_during": during}
    if before and during:
        out["disturbed_ratio"] = during / before
    if r.get("long_ttft_count") == 4:
        out["disturbed_long_ttft_max"] = r["max_long_ttft_ms"]
    elif not r["failed"]:
        out["disturbed_over_ms"] = 1000 * (seconds - INTERFERENCE_BEGINS_S)
    return out


def prompts(url, seed):
    """Prompts alone, one after another: tokens a second until the first token."""
    out = {}
    for length, count in ((512, 5), (2048, 3)):
        r = load(url, seed + length, "--num-prompts", count, "--max-concurrency", 1, "--input-len",
                 length, "--output-len", 1, "--warmup", 1, seconds=60)
        out[f"prompt_{length}_tok_s"] = 1000 * length / r["p50_ttft_ms"]
    return out


def one_long_request(urls, seed, times):
    """A request of 2,000 tokens alone, to each service in turn; TTFT of each by name."""
    seen = {name: [] for name in urls}
    for i in range(times):
        for name, url in urls.items() if i % 2 else reversed(urls.items()):
            r = load(url, seed + i, "--num-prompts", 1, "--max-concurrency", 1, "--input-len",
                     2000, "--output-len", 2, seconds=30)
            seen[name].append(r["p50_ttft_ms"])
    return {name: {"ttft_2000": statistics.median(s)} for name, s in seen.items()}


LOADS = {                             # of stolen_core: flags, and the figure that counts
    "decode_1": (["--max-concurrency", 1, "--input-len", 8, "--output-len", 200],
                 "total_output_tokens"),
    "decode_8": (["--max-concurrency", 8, "--input-len", 8, "--output-len", 200],
                 "total_output_tokens"),
    "prefill": (["--max-concurrency", 2, "--input-len", 200, "--output-len", 1],
                "total_input_tokens"),
}


def tokens_a_second(url, seed, kind, seconds):
    flags, figure = LOADS[kind]
    r = load(url, seed, "--num-prompts", 100000, *flags, seconds=seconds)
    return r[figure] / r["duration"] if r["duration"] else 0


def own_session():
    """For a new process: another session, so for the kernel another user's work, as important as
    ours."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/autogroup") as f:
            nice = int(f.read().split()[-1])
        os.setsid()
        if nice:
            with open("/proc/self/autogroup", "w") as f:
                f.write(str(nice))


def stolen_core(url, seed, kind, seconds=10):
    """Throughput beside a process that wants core 0 for itself, as a share of that before and
    after; and what share of the machine that process got."""
    core = min(os.sched_getaffinity(0))
    before = tokens_a_second(url, seed, kind, seconds / 2)
    hog = subprocess.Popen(["taskset", "-c", str(core), "sh", "-c",
                            "ulimit -t 60; while :; do :; done"], preexec_fn=own_session)
    try:
        began = time.monotonic()
        beside = tokens_a_second(url, seed + 3000, kind, seconds)
        wall = time.monotonic() - began
    finally:
        hog.kill()
        _, _, usage = os.wait4(hog.pid, 0)
        hog.returncode = -9
    after = tokens_a_second(url, seed + 6000, kind, seconds / 2)
    alone = (before + after) / 2
    stolen = (usage.ru_utime + usage.ru_stime) / (wall * len(os.sched_getaffinity(0)))
    return {f"stolen_{kind}_kept": beside / alone if alone else 0,
            f"stolen_{kind}_share": stolen}
