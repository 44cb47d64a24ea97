"""tests/service/gateway_bench.py - what the tests of the gateway share: fixtures and shorthands."""
import contextlib
import json
import os
import socket
import time

import httpx
import pytest

from fake_job import CHATML, FakeJob, Gateway, Plan, tiny_model
from service import PATIENCE


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("gateway"))
    job = FakeJob(directory)
    model = tiny_model(os.path.join(directory, "tiny.gguf"))
    gateway = Gateway(job, model, "--debug-headers")
    yield job, gateway
    code = gateway.stop()
    job.close()
    assert code == 0, "\n".join(gateway.log)
    assert not [line for line in gateway.log if "Sanitizer" in line or "runtime error" in line]


@pytest.fixture
def job(shared):
    shared[0].plan = lambda request: Plan()
    shared[0].requests.clear()
    return shared[0]


@pytest.fixture
def http(shared):
    with httpx.Client(base_url=shared[1].url, timeout=20 * PATIENCE) as client:
        yield client


@contextlib.contextmanager
def own(tmp_path, *flags, template=CHATML, env=None, wait=True, **job_options):
    job = FakeJob(str(tmp_path), **job_options)
    gateway = Gateway(job, tiny_model(str(tmp_path / "tiny.gguf"), template), *flags, env=env,
                      wait=wait)
    if not wait:
        assert gateway.listening.wait(10 * PATIENCE), gateway.log
    try:
        yield job, gateway
    finally:
        code = gateway.stop()
        job.close()
    assert code == 0, "\n".join(gateway.log)


def chat(http, content="hi", **more):
    return http.post("/v1/chat/completions",
                     json={"model": "tiny", "messages": [{"role": "user", "content": content}], **more})


def complete(http, prompt="hi", **more):
    return http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, **more})


def events(text):
    """The JSON of a stream's events; checks the framing byte by byte."""
    assert text.endswith("data: [DONE]\n\n")
    parts = text.split("\n\n")[:-2]
    assert all(p.startswith("data: {") and "\n" not in p for p in parts)
    return [json.loads(p[6:]) for p in parts]


def until(condition, seconds=3):
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def raw(gateway, data, seconds=5, read=True):
    host, port = gateway.url[7:].split(":")
    s = socket.create_connection((host, int(port)), timeout=seconds * PATIENCE)
    with contextlib.suppress(OSError):
        s.sendall(data)
    if not read:
        return s
    got = b""
    with s, contextlib.suppress(OSError):
        while more := s.recv(65536):
            got += more
            if b"\r\n\r\n" in got and b"content-length" in got.lower():
                break
    return got
