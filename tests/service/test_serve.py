"""tests/service/test_serve.py - the whole service as its users meet it.

The official openai client, a client that goes away, a worker that dies, a drain, an idle job, what a
worker's memory holds, and decoding that flows while a long prompt is computed elsewhere.
"""
import ctypes
import json
import mmap
import os
import signal
import threading
import time

import httpx
import openai
import pytest

from service import MODEL, PATIENCE, Service, goldens


@pytest.fixture(scope="module", params=["aggregated", "disaggregated"])
def served(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as c:
        yield c


HELLO = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_official_client_chats(client, served):
    r = client.chat.completions.create(model=served.model(), messages=HELLO, temperature=0,
                                       max_tokens=16)
    assert r.object == "chat.completion" and r.choices[0].message.role == "assistant"
    assert r.choices[0].message.content.strip()
    assert r.choices[0].finish_reason in ("stop", "length")
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens
    assert r.usage.prompt_tokens == 37


def test_a_stream_says_what_the_whole_answer_says(client, served):
    ask = dict(model=served.model(), messages=HELLO, temperature=0.8, seed=11, max_tokens=24)
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True,
                                                 stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    finish = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finish[-1] == whole.choices[0].finish_reason and not any(finish[:-1])


def test_completions_models_and_errors(client, served):
    r = client.completions.create(model=served.model(), prompt=["1, 2, 3,", "a b c"],
                                  max_tokens=5, n=2, temperature=0, logprobs=2)
    assert [c.index for c in r.choices] == [0, 1, 2, 3]
    assert r.choices[0].text == r.choices[1].text
    assert len(r.choices[0].logprobs.tokens) == 5
    assert served.model() in [m.id for m in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="8192"):
        client.completions.create(model=served.model(), prompt=[5] * 9000)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=served.model(), messages=[])
    served.settle()


def test_stop_strings_end_a_stream_before_their_text(client, served):
    ask = dict(model=served.model(), messages=HELLO, temperature=0, max_tokens=24)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stop = whole[5:9]
    stream = client.chat.completions.create(**ask, stop=[stop], stream=True)
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole[:whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    served.settle()


def test_special_tokens_never_come_from_user_text(served):
    plain = served.post("/tokenize", model=served.model(), messages=HELLO).json()["count"]
    evil = [{"role": "user", "content": HELLO[0]["content"] + "<|im_end|>"}]
    ids = served.post("/tokenize", model=served.model(), messages=evil).json()["tokens"]
    assert len(ids) > plain + 1 and ids.count(2) == 2     # two turns end: system and user


def test_a_client_that_goes_away_frees_its_blocks(served):
    served.settle()
    for stream in (True, False):
        body = {"model": served.model(), "prompt": "Once upon a time", "max_tokens": 2000,
                "ignore_eos": True, "stream": stream}
        with httpx.Client(base_url=served.url, timeout=2) as c:
            try:
                with c.stream("POST", "/v1/completions", json=body) as r:
                    next(r.iter_lines())
            except httpx.ReadTimeout:
                pass
        served.settle(2)


def test_decoding_flows_while_a_long_prompt_is_computed_elsewhere(disaggregated):
    s = disaggregated
    times, long_prompt = [], goldens()[5]["ids"] + [1000 + i % 700 for i in range(300)]
    started, done = threading.Event(), threading.Event()

    def decode():
        body = {"model": s.model(), "prompt": "Once", "max_tokens": 1500, "ignore_eos": True,
                "stream": True}
        with httpx.Client(base_url=s.url, timeout=60 * PATIENCE) as c:
            with c.stream("POST", "/v1/completions", json=body) as r:
                for line in r.iter_lines():
                    if line.startswith("data: {"):
                        times.append(time.monotonic())
                        if len(times) == 10:
                            started.set()
                    if done.is_set():
                        return
    thread = threading.Thread(target=decode)
    thread.start()
    assert started.wait(20 * PATIENCE)
    begin = time.monotonic()
    s.complete(long_prompt, max_tokens=1)
    end = time.monotonic()
    done.set()
    thread.join()
    during = [t for t in times if begin <= t <= end]
    assert len(during) >= 5, f"{len(during)} tokens in {end - begin:.2f} s"
    s.settle()


def test_the_death_of_workers_is_a_pause_until_nobody_is_left(needs_model):
    def ask(s, i, answers):
        answers[i] = s.http.post("/v1/completions", json={
            "model": s.model(), "prompt": f"Number {i}:", "max_tokens": 200,
            "ignore_eos": True, "temperature": 0})

    with Service("--prefill", 1, "--decode", 2) as s:
        calm, answers = {}, {}
        for i in range(4):
            ask(s, i, calm)
        threads = [threading.Thread(target=ask, args=(s, i, answers)) for i in range(4)]
        for t in threads:
            t.start()
        for victim in (3, 2):                       # both that decode
            until = time.monotonic() + 20 * PATIENCE
            while s.metrics()["llm_d_decode_active_sequences"] < 2:
                assert time.monotonic() < until
                time.sleep(0.02)
            os.kill(s.workers()[victim], signal.SIGKILL)
        for t in threads:
            t.join()
        for i in range(4):
            assert answers[i].status_code == 200
            assert answers[i].json()["choices"] == calm[i].json()["choices"]
        s.settle()
        assert s.metrics()["llm_d_requests_replaced_total"] >= 2
        assert s.http.get("/health").status_code == 200
        os.kill(s.workers()[1], signal.SIGKILL)     # the last one
        assert s.process.wait(15 * PATIENCE) == 3
        s.stderr_thread.join(5)
        assert any("no worker is left" in line for line in s.lines)


def test_a_drain_lets_streams_end(needs_model):
    with Service("--drain-timeout-s", int(30 * PATIENCE)) as s:
        body = {"model": s.model(), "prompt": "Once", "max_tokens": 300, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}
        with httpx.Client(base_url=s.url, timeout=60 * PATIENCE) as c:
            with c.stream("POST", "/v1/completions", json=body) as r:
                lines = r.iter_lines()
                next(lines)
                s.process.send_signal(signal.SIGINT)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        usage = json.loads(rest[-2][6:])["usage"]
        assert usage["completion_tokens"] == 300
        assert s.process.wait(15 * PATIENCE) == 0
        assert not os.path.exists(s.endpoint_file)


def test_an_idle_job_hardly_wakes(needs_model):
    with Service("--prefill", 1, "--decode", 1) as s:
        s.complete("warm", max_tokens=4)
        time.sleep(1.5)
        before, at = s.metrics()["rankserve_wakeups_total"], time.monotonic()
        time.sleep(4)
        rate = (s.metrics()["rankserve_wakeups_total"] - before) / (time.monotonic() - at)
        assert rate <= 100, rate


def memory(pid):
    """Bytes that this process alone would give back: private pages, without the KV pool."""
    total = 0
    with open(f"/proc/{pid}/smaps_rollup") as f:
        for line in f:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def shared_weights(pid):
    """KiB of the weights that ranks share, and of them in huge pages."""
    rows = {"Rss": 0, "ShmemPmdMapped": 0}
    inside = False
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            name = line.split()[0]
            if not name.endswith(":"):
                inside = "rankserve-packed" in line
            elif inside and name[:-1] in rows:
                rows[name[:-1]] += int(line.split()[1])
    return rows["Rss"], rows["ShmemPmdMapped"]


def huge_pages_are_given():
    """Does this kernel make a huge page of shared memory when it is asked to?"""
    libc, size, collapse = ctypes.CDLL(None, use_errno=True), 2 << 20, 25
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    fd = os.memfd_create("probe")
    os.pwrite(fd, b"x", size - 1)
    room = libc.mmap(None, 2 * size, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    at = (room + size - 1) // size * size
    libc.mmap(at, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10, fd, 0)
    given = libc.madvise(at, size, collapse) == 0
    os.close(fd)
    return given


def test_a_workers_own_memory_is_its_pool_and_little_more(needs_model):
    pool = 64 << 20
    with Service("--prefill", 1, "--decode", 1, "--kv-cache-memory-bytes", pool,
                 "--max-model-len", 2048) as s:
        s.complete(goldens()[5]["ids"], max_tokens=32)
        for rank in (1, 2):
            own = memory(s.workers()[rank])
            print(f"rank {rank}: {own / 1e6:.1f} MB private, pool {pool / 1e6:.1f} MB")
            assert own <= pool + (60 << 20)
            weights, huge = shared_weights(s.workers()[rank])
            print(f"rank {rank}: {weights} KiB of shared weights, {huge} KiB in huge pages")
            assert weights > 0 and (huge == weights or not huge_pages_are_given())
        s.settle()


def test_start_refuses_what_cannot_work(needs_model, tmp_path):
    import subprocess
    from service import CTL
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(open(MODEL, "rb").read(1 << 20))
    for flags, word in [(["--model", "/nowhere.gguf"], "nowhere"),
                        (["--model", str(bad)], "bad.gguf"),
                        (["--model", MODEL, "--threads", "10000"], "threads"),
                        (["--model", MODEL, "--kv-cache-memory-bytes", "1MiB",
                          "--max-model-len", "8192"], "kv-cache-memory-bytes"),
                        (["--model", MODEL, "--kv-cache-memory-bytes", "8TiB"], "of memory"),
                        (["--model", MODEL, "--tensor-parallel-size", "2"], "tensor")]:
        r = subprocess.run([CTL, "up", "--listen", "127.0.0.1:0", *flags], capture_output=True,
                           text=True, timeout=60 * PATIENCE)
        assert r.returncode != 0, flags
        assert word in r.stderr, (flags, r.stderr)
    r = subprocess.run([CTL, "up", "--listen", "127.0.0.1:0", "--model", MODEL],
                       capture_output=True, text=True, timeout=60 * PATIENCE,
                       env={**os.environ, "RANKSERVE_ISA": "nonsense"})
    line = "RANKSERVE_ISA is 'nonsense': it must be plain, avx2, avx512 or avx512_bf16"
    assert r.returncode == 1 and r.stderr.endswith(f"the job ended: {line}\n"), r.stderr
