"""tests/service/test_gateway_thread.py - one thread serves all of the gateway's sockets.

So what takes long is done elsewhere (gateway/helpers.c): these tests let clients leave, jobs go and
the program end in the middle of it.  And what is there together leaves together.
"""
import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

import fake_job
from fake_job import DRAINING, END, FakeJob, Gateway, Plan, tiny_model
from gateway_bench import complete, http, job, own, shared, until  # noqa: F401
from service import LONG as LONG_TESTS
from service import PATIENCE

LONG = "Some text that is read elsewhere. "     # 34 bytes, a token each


def request(prompt, **more):
    body = json.dumps({"prompt": prompt, **more}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def connect(gateway):
    return socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":")[-1])))



def test_long_and_short_prompts_are_each_answered_with_their_own(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        job.plan = lambda r: Plan(f"{len(r.ids)}", finish="length")
        sizes = [1, 5, 200, 3000, 300, 2, 3800, 1, 40, 3] * 3
        answers = [None] * len(sizes)

        def ask(i):
            with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
                answers[i] = [complete(client, LONG * sizes[i], max_tokens=9).json(),
                              client.post("/tokenize", json={"prompt": LONG * sizes[i]}).json()]
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(sizes))]
        for t in threads:
            t.start()
        for t in threads:
            t.join(90 * PATIENCE)
        for size, (answer, tokens) in zip(sizes, answers, strict=True):
            assert answer["choices"][0]["text"] == f"{len(LONG) * size}"
            assert answer["usage"]["prompt_tokens"] == tokens["count"] == len(LONG) * size


def test_clients_may_leave_while_a_helper_reads_their_prompt(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        job.plan = lambda r: Plan("", ids=[65], hold=True)
        for i in range(24):
            s = connect(g)
            s.sendall(request(LONG * (300 + 400 * (i % 4)), max_tokens=5, stream=i % 2 == 0))
            s.close()
        with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
            until(lambda: len(job.requests) == 24, 30)    # they were asked before anybody looked
            until(lambda: all(r.cancelled.is_set() for r in job.requests), 10)
            job.plan = lambda r: Plan("here", finish="length")
            assert complete(client, LONG * 300).json()["choices"][0]["text"] == "here"


def test_what_a_helper_refuses_has_its_status(tmp_path):
    with own(tmp_path) as (job, g):
        ask = {"prompt": LONG * 400, "max_tokens": 2}
        assert "maximum context length" in httpx.post(g.url + "/v1/completions", json=ask).text
        r = httpx.post(g.url + "/v1/completions", json={**ask, "top_p": 7})
        assert r.status_code == 400 and r.json()["error"]["param"] == "top_p"
        ask["prompt"], ask["user"] = "short", "u" * 9000
        job.state(DRAINING)
        until(lambda: httpx.get(g.url + "/health").status_code == 503)
        r = httpx.post(g.url + "/v1/completions", json=ask)
        assert r.status_code == 503 and r.headers["retry-after"]


def test_a_stop_answers_those_whose_prompts_are_being_read(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        sockets = [connect(g) for _ in range(12)]
        for s in sockets:
            s.settimeout(30 * PATIENCE)
            s.sendall(request(LONG * 3800, max_tokens=5))
        until(lambda: len(job.requests) >= 1, 20)         # most others are still being read
        g.process.terminate()
        statuses = [s.recv(12).decode() for s in sockets]
        for s in sockets:
            s.close()
        assert g.process.wait(20 * PATIENCE) == 0
        assert set(statuses) <= {"HTTP/1.1 200", "HTTP/1.1 503"} and "HTTP/1.1 200" in statuses


def stop_while_prompts_are_read(tmp_path):
    """How many of 40 prompts, all too long, were being read when the stop came; how many had answers."""
    with own(tmp_path, max_model_len=131072) as (job, g):
        sockets, ask = [connect(g) for _ in range(40)], request(LONG * 15000, max_tokens=5)
        for s in sockets:
            s.settimeout(30 * PATIENCE)
            s.sendall(ask[:-1])
        httpx.get(g.url + "/health")                      # by now it has read most of that
        for s in sockets:
            s.sendall(ask[-1:])
        assert select.select(sockets, [], [], 20 * PATIENCE)[0]
        g.process.terminate()
        statuses = []
        for s in sockets:
            with s, contextlib.suppress(ConnectionError):
                statuses.append(s.recv(12).decode())
        assert g.process.wait(20 * PATIENCE) == 0 and not job.requests
        until(lambda: any("draining calls=" in line for line in g.log))
        (reading,) = [int(line.split("calls=")[1]) for line in g.log if "draining calls=" in line]
        return reading, sum(status in ("HTTP/1.1 400", "HTTP/1.1 503") for status in statuses)


def test_a_stop_waits_for_prompts_that_will_be_refused_once_they_are_read(tmp_path):
    """None of them is a call yet, so only the count of what helpers have keeps the gateway there."""
    for _ in range(10):                                   # they may all have been read before
        reading, answered = stop_while_prompts_are_read(tmp_path)
        assert answered >= reading
        if reading:
            return
    raise AssertionError("nobody counts what helpers read")


def test_others_are_served_while_a_long_answer_is_written(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        job.plan = lambda r: Plan("x", finish="length")
        send, ended, pings = job.send, threading.Event(), 0

        def see_end(peer, kind, *args):
            send(peer, kind, *args)
            if kind == END:
                ended.set()
        job.send = see_end
        body = json.dumps({"prompt": "y" * 30000, "max_tokens": 1, "prompt_logprobs": 20}).encode()
        with connect(g) as big, httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as other:
            big.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                        % (len(body), body))
            assert ended.wait(60 * PATIENCE)              # from here on 30 MB of text are made
            big.setblocking(False)
            while True:
                with contextlib.suppress(BlockingIOError):
                    assert big.recv(12) == b"HTTP/1.1 200"
                    break
                assert other.get("/ping").status_code == 200
                pings += 1
        assert pings > 15                                 # 2 when its thread made the text


def test_a_long_answer_that_nobody_waits_for_is_dropped(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        job.plan = lambda r: Plan("x", finish="length")
        ask = {"prompt": "y" * 6000, "max_tokens": 1, "prompt_logprobs": 20}
        with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
            for i in range(1, 7):
                with connect(g) as s:
                    s.sendall(request(ask["prompt"], max_tokens=1, prompt_logprobs=20))
                    until(lambda i=i: len(job.requests) == i, 20)
                    time.sleep(0.02 * i)                  # before, while and after it is written
            answer = client.post("/v1/completions", json=ask).json()
            assert len(answer["choices"][0]["prompt_logprobs"]) == 6000
            assert list(answer["choices"][0]["prompt_logprobs"][9].values())[0]["logprob"] == -0.5


def test_log_probabilities_of_one_answer_are_bounded(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        job.plan = lambda r: Plan("x", finish="length")
        with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
            for what, field in ({"prompt_logprobs": 20}, "prompt_logprobs"), (
                    {"echo": True, "logprobs": 20, "stream": True}, "logprobs"):
                r = complete(client, "y" * 20000, max_tokens=1, n=128, **what)
                assert r.status_code == 400 and r.json()["error"]["param"] == field
            assert complete(client, "y" * 20000, max_tokens=1, n=128).status_code == 200
            r = complete(client, "y" * 2000, max_tokens=1, n=4, prompt_logprobs=2)
            assert [len(c["prompt_logprobs"]) for c in r.json()["choices"]] == [2000] * 4


@pytest.mark.skipif(not LONG_TESTS, reason="RANKSERVE_TEST_LONG is not set")
def test_a_streamed_echo_may_be_longer_than_what_a_slow_client_may_leave(tmp_path):
    with own(tmp_path, max_model_len=131072) as (job, g):
        job.plan = lambda r: Plan("hello", finish="length")
        with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
            text = complete(client, "y" * 48000, max_tokens=5, echo=True, logprobs=20, stream=True).text
        assert len(text) > 8 << 20                        # CALL_QUEUE_BYTES_MAX
        assert text.endswith("data: [DONE]\n\n")
        made = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n")[:-2]]
        assert "".join(c["text"] for c in made) == "y" * 48000 + "hello"
        assert sum(len(c["logprobs"]["tokens"]) for c in made) == 48005


@pytest.mark.skipif(not LONG_TESTS, reason="RANKSERVE_TEST_LONG is not set")
def test_streamed_token_ids_of_a_prompt_may_be_more_than_a_slow_client_may_leave(tmp_path):
    """64 choices begin while the gateway is stopped: each with 50,000 ids, which the client asked for."""
    answer, n, size = threading.Event(), 64, 50000
    with own(tmp_path, max_model_len=131072) as (job, g):
        ended, send = threading.Semaphore(0), job.send

        def plan(r):
            answer.wait(60 * PATIENCE)
            return Plan("x", finish="length")

        def count(peer, kind, *args):
            send(peer, kind, *args)
            if kind == END:
                ended.release()
        job.plan, job.send = plan, count
        texts = []

        def ask():
            with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
                texts.append(complete(client, "y" * size, max_tokens=1, n=n, stream=True,
                                      return_token_ids=True).text)
        client = threading.Thread(target=ask)
        client.start()
        until(lambda: len(job.requests) == n, 30)
        os.kill(g.process.pid, signal.SIGSTOP)
        answer.set()
        assert all(ended.acquire(timeout=20 * PATIENCE) for _ in range(n))
        os.kill(g.process.pid, signal.SIGCONT)
        client.join(60 * PATIENCE)
        assert len(texts) == 1 and len(texts[0]) > 8 << 20 and texts[0].endswith("data: [DONE]\n\n")
        made = [json.loads(line[6:])["choices"][0] for line in texts[0].split("\n\n")[:-2]]
        ids = {c["index"]: len(c["prompt_token_ids"]) for c in made if "prompt_token_ids" in c}
        assert ids == dict.fromkeys(range(n), size)


@pytest.mark.skipif(not LONG_TESTS, reason="RANKSERVE_TEST_LONG is not set")
def test_a_gateway_that_was_stopped_takes_nobody_for_silent(tmp_path):
    with own(tmp_path) as (job, g):
        job.plan = lambda r: Plan("a patient answer", gap_s=1.0)
        with httpx.Client(base_url=g.url, timeout=60 * PATIENCE) as client:
            answers = []
            t = threading.Thread(target=lambda: answers.append(complete(client)))
            t.start()
            until(lambda: len(job.requests) == 1)
            os.kill(g.process.pid, signal.SIGSTOP)
            time.sleep(11)                                # silence is 10 s
            os.kill(g.process.pid, signal.SIGCONT)
            t.join(60 * PATIENCE)
        assert answers[0].json()["choices"][0]["text"] == "a patient answer"
        assert job.connections == 1


def test_clients_of_one_socket_do_not_take_the_files_of_the_other(tmp_path, monkeypatch):
    few = tmp_path / "few-files"
    few.write_text(f'#!/bin/sh\nulimit -n 60\nexec "{fake_job.GATEWAY}" "$@"\n')
    few.chmod(0o755)
    monkeypatch.setattr(fake_job, "GATEWAY", str(few))
    with own(tmp_path, "--uds", tmp_path / "uds") as (job, g), contextlib.ExitStack() as sockets:
        for _ in range(70):
            s = sockets.enter_context(socket.socket(socket.AF_UNIX))
            s.settimeout(10 * PATIENCE)
            s.connect(str(tmp_path / "uds"))
        for _ in range(3):
            assert httpx.get(g.url + "/ping", timeout=10 * PATIENCE).status_code == 200
        job.hang_up()
        job.listen()
        until(lambda: job.connections == 2, 10)           # nor those of links


def test_what_is_there_together_arrives_together(http, job, shared):  # noqa: F811
    job.plan = lambda r: Plan("", ids=[65, 66], finish="length", gap_s=0.03, at_once=True)
    with connect(shared[1]) as s:
        s.settimeout(10 * PATIENCE)
        s.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"live" in s.recv(1 << 16)                 # the first answer sets TCP_NODELAY, a push
        for _ in range(20):
            s.sendall(request("x", max_tokens=2, stream=True))
            answer = s.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200") and b'"text":"A' in answer
            if b"[DONE]" in answer:                       # a busy machine: all was there
                continue
            answer = s.recv(1 << 16)
            assert b'"text":"B"' in answer and b"data: [DONE]" in answer
            assert answer.endswith(b"\r\n0\r\n\r\n")


def test_a_stream_that_is_over_when_it_begins_is_one_write(http, job, shared):  # noqa: F811
    job.plan = lambda r: Plan("", ids=[65, 66], finish="length", per_frame=2, at_once=True)
    with connect(shared[1]) as s:
        s.settimeout(10 * PATIENCE)
        for _ in range(50):
            s.sendall(request("x", max_tokens=2, stream=True))
            head, _, body = s.recv(1 << 16).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and b"text/event-stream" in head
            assert b"content-length: %d" % len(body) in head.lower()
            assert b'"text":"AB"' in body and body.endswith(b"data: [DONE]\n\n")


class FarJob(FakeJob):
    """Listens on a port, and is reached by name."""

    def listen(self):
        port = int(self.path.rpartition(":")[2]) if ":" in self.path else 0
        self.listener = socket.create_server(("127.0.0.1", port))
        self.path = f"localhost:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()


def test_a_job_is_looked_up_by_name_each_time(tmp_path):
    job = FarJob(str(tmp_path))
    g = Gateway(job, tiny_model(str(tmp_path / "tiny.gguf")))
    try:
        with httpx.Client(base_url=g.url, timeout=20 * PATIENCE) as client:
            assert complete(client).status_code == 200
            job.hang_up()
            until(lambda: client.get("/health").status_code == 503)
            job.listen()
            until(lambda: client.get("/health").status_code == 200, 10)
            assert complete(client).status_code == 200
    finally:
        assert g.stop() == 0
        job.close()


def test_a_name_that_nobody_knows_keeps_nobody_waiting(tmp_path):
    secret = FakeJob(str(tmp_path))
    job = SimpleNamespace(path="nobody.invalid:1", secret_file=secret.secret_file)
    g = Gateway(job, tiny_model(str(tmp_path / "tiny.gguf")), wait=False)
    try:
        assert g.listening.wait(10 * PATIENCE)
        for _ in range(20):
            assert httpx.get(g.url + "/health").status_code == 503
            assert httpx.get(g.url + "/v1/models").status_code == 200
    finally:
        assert g.stop() == 0
        secret.close()


@pytest.mark.skipif(not LONG_TESTS, reason="thousands of requests: make check-long")
def test_policies_for_a_job_that_does_not_read_are_refused(tmp_path):
    with own(tmp_path) as (job, g), httpx.Client(base_url=g.url, timeout=20 * PATIENCE) as client:
        def tell():
            return client.post("/policy", json={})
        assert tell().json() == {"jobs": 1}
        job.reads.clear()
        told = 0
        while (r := tell()).status_code == 200:
            told += 1
            assert told < 6000                            # a few in the socket, and 64 KiB here
        assert r.status_code == 503 and "listens" in r.json()["error"]["message"]
        job.reads.set()
        until(lambda: tell().status_code == 200, 10)
