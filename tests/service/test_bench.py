"""tests/service/test_bench.py - `rankservectl bench` against a server whose every delay is known.

Counts must be exact.  Times are only held between what the server slept and far more, because a busy
machine stretches them.
"""
import collections
import http.server
import json
import subprocess
import threading
import time

import pytest

from service import CTL, PATIENCE

FIRST_MS, GAP_MS = 60, 10


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer(200, {"data": [{"id": "fake"}]})

    def event(self, body):
        data = b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if self.path == "/tokenize":                       # two tokens a word
            self.answer(200, {"tokens": [0] * (2 * len(body["prompt"].split()))})
            return
        with server.lock:
            server.bodies.append((self.path, body, time.monotonic()))
            number = len(server.bodies)
            server.running += 1
            server.running_max = max(server.running_max, server.running)
        try:
            if server.refuse_every and number % server.refuse_every == 0:
                self.answer(429, {"error": {"message": "full"}})
            else:
                self.stream(body, cut=server.cut_every and number % server.cut_every == 0)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.running -= 1

    def stream(self, body, cut):
        chat = self.path.endswith("chat/completions")
        prompt = body["messages"][0]["content"].split() if chat else body["prompt"]
        long = len(prompt) > 1000
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if chat:
            self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if long:
            self.server.stalled.clear()                    # everybody waits for a long prompt
            time.sleep(self.server.stall_s)
            self.server.stalled.set()
        else:
            time.sleep(FIRST_MS / 1000)
        for i in range(body["max_tokens"]):
            if i:
                time.sleep(GAP_MS / 1000)
            self.server.stalled.wait(10)
            if cut and i == 2:
                self.close_connection = True
                self.wfile.write(b"0\r\n\r\n")
                return
            choice = {"delta": {"content": "x "}} if chat else {"text": "x ", "finish_reason": None}
            self.event({"choices": [choice]})
        if self.server.usage:
            self.event({"choices": [], "usage": {"prompt_tokens": len(prompt),
                                                 "completion_tokens": body["max_tokens"]}})
        self.event(b"[DONE]")
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def fake():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock = threading.Lock()
    server.bodies, server.running, server.running_max = [], 0, 0
    server.refuse_every = server.cut_every = 0
    server.usage, server.stall_s = True, 0.4
    server.stalled = threading.Event()
    server.stalled.set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()


def bench(server, tmp_path, *flags, code=0):
    out = tmp_path / "result.json"
    r = subprocess.run([CTL, "bench", "--url", server.url, "--result-file", str(out),
                        *map(str, flags)], capture_output=True, text=True, timeout=60 * PATIENCE)
    assert r.returncode == code, r.stdout + r.stderr
    return json.loads(out.read_text()), r.stdout


def test_closed_loop_counts_and_times(fake, tmp_path):
    r, text = bench(fake, tmp_path, "--num-prompts", 12, "--max-concurrency", 3, "--input-len", 40,
                    "--shared-prefix-len", 32, "--output-len", 8, "--ignore-eos", "--warmup", 2)
    assert (r["sent"], r["completed"], r["failed"], r["cut_off"]) == (12, 12, 0, 0)
    assert r["total_output_tokens"] == 12 * 8 and r["total_input_tokens"] == 12 * 72
    assert r["max_concurrent_requests"] == 3 and fake.running_max == 3
    assert (r["ttft_count"], r["tpot_count"], r["itl_count"], r["e2el_count"]) == (12, 12, 84, 12)
    assert r["model_id"] == "fake" and r["errors"] == {}
    assert FIRST_MS <= r["median_ttft_ms"] <= r["p99_ttft_ms"] <= r["max_ttft_ms"]
    assert r["median_itl_ms"] >= GAP_MS * 0.5 and r["mean_tpot_ms"] >= GAP_MS
    assert r["mean_e2el_ms"] >= FIRST_MS + 7 * GAP_MS
    assert r["output_throughput"] == pytest.approx(96 / r["duration"], rel=1e-6)
    assert "12 completed" in text
    bodies = [b for _, b, _ in fake.bodies]
    assert len(bodies) == 14 and all(b["ignore_eos"] and b["stream"] for b in bodies)
    assert len({tuple(b["prompt"]) for b in bodies}) == 14
    assert len({tuple(b["prompt"][:32]) for b in bodies}) == 1


def test_chat_prompts_are_calibrated_and_roles_are_no_tokens(fake, tmp_path):
    fake.usage = False
    r, _ = bench(fake, tmp_path, "--endpoint", "chat", "--num-prompts", 4, "--input-len", 100,
                 "--output-len", 5)
    assert r["completed"] == 4 and r["total_output_tokens"] == 20 and r["itl_count"] == 16
    path, body, _ = fake.bodies[0]
    assert path == "/v1/chat/completions"
    assert len(body["messages"][0]["content"].split()) == 50   # two tokens a word
    assert r["p50_ttft_ms"] >= FIRST_MS                    # the role was no token


def test_open_loop_keeps_its_times_whatever_the_server_does(fake, tmp_path):
    r, _ = bench(fake, tmp_path, "--num-prompts", 40, "--request-rate", 40, "--output-len", 30,
                 "--seed", 3)
    assert r["completed"] == 40
    assert r["max_concurrent_requests"] > 5                # it did not wait for answers
    times = [t for _, _, t in fake.bodies]
    assert 0.4 < times[-1] - times[0] < 3 * PATIENCE       # 39 gaps of 25 ms
    assert r["max_send_delay_ms"] < 500 * PATIENCE


def test_failures_are_counted_by_kind(fake, tmp_path):
    fake.refuse_every, fake.cut_every = 5, 7
    r, text = bench(fake, tmp_path, "--num-prompts", 20, "--max-concurrency", 1,
                    "--output-len", 4, code=1)
    kinds = collections.Counter(r["errors"])
    assert kinds == {"http 429": 4, "stream ended early": 2}
    assert r["completed"] == 14 and r["failed"] == 6
    assert "first: http 429: " in text and "full" in text


def test_goodput_counts_whole_requests(fake, tmp_path):
    fake.stall_s = 0.5
    flags = ["--num-prompts", 6, "--max-concurrency", 2, "--output-len", 4]
    r, _ = bench(fake, tmp_path, *flags, "--goodput", f"ttft:{FIRST_MS / 2}", "e2el:60000")
    assert r["good"] == 0 and r["request_goodput"] == 0
    r, _ = bench(fake, tmp_path, *flags, "--goodput", "ttft:30000", "itl:30000", "e2el:60000")
    assert r["good"] == 6
    assert r["request_goodput"] == pytest.approx(r["request_throughput"])


def test_long_prompts_are_seen_in_the_streams_gaps(fake, tmp_path):
    r, _ = bench(fake, tmp_path, "--long-prompts", 2, "--long-input-len", 1500, "--long-interval",
                 0.2, "--max-concurrency", 3, "--output-len", 2000, "--input-len", 20)
    assert r["long_ttft_count"] == 2 and r["failed"] == 0
    assert r["p50_long_ttft_ms"] >= 400
    assert r["max_itl_during_ms"] >= 300                   # the stall, whole
    assert r["max_itl_before_ms"] < r["max_itl_during_ms"]
    assert r["itl_before_count"] > 100
    assert r["itl_p99_ratio"] > 2


def test_time_is_bounded(fake, tmp_path):
    began = time.monotonic()
    r, _ = bench(fake, tmp_path, "--num-prompts", 500, "--max-concurrency", 2, "--output-len", 20,
                 "--duration", 1)
    assert time.monotonic() - began < 10 * PATIENCE
    assert r["cut_off"] == 2 and 0 < r["completed"] < 100
    assert r["duration"] == pytest.approx(1, abs=0.5 * PATIENCE)


@pytest.mark.parametrize("flags, word", [
    (["--num-prompts", "0"], "--num-prompts"),
    (["--max-concurrency", "10000"], "--max-concurrency"),
    (["--request-rate", "-1"], "--request-rate"),
    (["--goodput", "p99:3"], "--goodput"),
    (["--endpoint", "tea"], "--endpoint"),
    (["--token-range", "9:3"], "--token-range"),
    (["--burst", "1"], "--burstiness"),
    (["stray"], "stray"),
])
def test_bad_flags_are_refused_in_one_line(flags, word):
    r = subprocess.run([CTL, "bench", "--url", "http://127.0.0.1:9", *flags], capture_output=True,
                       text=True, timeout=20 * PATIENCE)
    assert r.returncode == 1 and r.stderr.count("\n") == 1 and word in r.stderr


def test_nobody_there_is_one_line():
    r = subprocess.run([CTL, "bench", "--url", "http://127.0.0.1:9"], capture_output=True, text=True,
                       timeout=20 * PATIENCE)
    assert r.returncode == 1 and r.stderr.count("\n") == 1 and "127.0.0.1:9" in r.stderr
