"""tests/service/test_handover.py - one gateway over jobs that take turns (rankserve-gateway --jobs)."""
import asyncio
import json
import os
import signal
import subprocess
import threading
import time

import httpx
import pytest

from fake_job import FakeJob, Plan, tiny_model
from service import BUILD, LONG, MODEL, PATIENCE, Service

pytestmark = pytest.mark.usefixtures("needs_model")
SLOW = {"RANKSERVE_NULL_STEP_US": "3000", "RANKSERVE_NULL_TOKEN_US": "10"}


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain for " + what)


class Job(Service):
    """A service whose endpoint file is in `folder`."""

    def __init__(self, folder, name, *flags, service="chat", env=None):
        self.entry = folder / f"{name}.json"
        super().__init__("--backend", "null", "--threads", 1, "--link-listen", "127.0.0.1:0",
                         "--job-id", name, "--name", service, "--drain-timeout-s", 60,
                         "--endpoint-file", self.entry, *flags, env={**SLOW, **(env or {})})
        wait_for(lambda: self.said().get("state") == "live", 10, "the endpoint file")

    def said(self):
        try:
            return json.loads(self.entry.read_text())
        except FileNotFoundError:
            return {}

    def drain(self):
        self.process.send_signal(signal.SIGTERM)

    def ended(self, seconds=60):
        return self.process.wait(seconds * PATIENCE)


class Gateway:
    def __init__(self, folder, *flags, ready=True, model=MODEL):
        self.model = os.path.basename(model).removesuffix(".gguf")
        self.lines = []                   # of the log but for those of requests
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "rankserve-gateway"), "--model", model, "--listen", "127.0.0.1:0",
             "--jobs", str(folder), *map(str, flags)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True).start()
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        self.url = self.wait_line("ready " if ready else "listening ").split()[1]
        self.http = httpx.Client(base_url=self.url, timeout=60 * PATIENCE)

    def _read(self, pipe):
        for line in pipe:
            if " info gateway request=" not in line or "another job" in line:
                self.lines.append(line.rstrip("\n"))

    def wait_line(self, text, seconds=10):
        return wait_for(lambda: next((x for x in list(self.lines) if text in x), None), seconds,
                        f"'{text}' in {self.lines[-40:]}")

    def count(self, text):
        return sum(text in x for x in self.lines)

    def complete(self, prompt, tokens=4, **more):
        return self.http.post("/v1/completions", json={
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **more})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(20 * PATIENCE) == 0
        finally:
            self.process.kill()


class Load:
    """Clients that ask one thing after the other until told to stop; a thread with a loop."""

    def __init__(self, url, clients, tokens):
        self.url, self.clients, self.tokens = url, clients, tokens
        self.started = self.done = 0
        self.wrong, self.stop = [], False
        self.thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)
        self.thread.start()

    async def _all(self):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=120 * PATIENCE, limits=limits) as c:
            await asyncio.gather(*(self._client(c, i) for i in range(self.clients)))

    async def _client(self, c, i):
        body = {"model": os.path.basename(MODEL).removesuffix(".gguf"), "stream": True,
                "max_tokens": self.tokens, "ignore_eos": True}
        n = 0
        while not self.stop:
            self.started += 1
            n += 1
            try:
                await self._ask(c, {**body, "prompt": f"client {i} asks for the {n}th time"})
            except Exception as e:        # seen by the test, not lost in a thread
                self.wrong.append(repr(e))
            self.done += 1

    async def _ask(self, c, body):
        tokens, finish, last = 0, None, ""
        async with c.stream("POST", "/v1/completions", json=body) as r:
            if r.status_code != 200:
                raise AssertionError(f"{r.status_code} {await r.aread()}")
            async for line in r.aiter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line[6:])["choices"][0]
                    tokens += 1
                    finish = choice["finish_reason"] or finish
                last = line or last
        if (finish, last) != ("length", "data: [DONE]") or not tokens:
            raise AssertionError(f"{tokens} chunks, {finish}, '{last}'")

    def end(self):
        self.stop = True
        self.thread.join(120 * PATIENCE)
        assert not self.thread.is_alive() and self.done == self.started


@pytest.fixture
def folder(tmp_path):
    jobs = tmp_path / "jobs"
    jobs.mkdir(mode=0o700)
    return jobs


def test_a_hand_over_loses_no_request(folder):
    """The old job drains under load; every stream ends, every request is answered."""
    clients, least = (520, 600) if LONG else (40, 80)
    with Job(folder, "old") as old, Gateway(folder) as g:
        load = Load(g.url, clients, 100)
        wait_for(lambda: load.started >= clients, 20, "the load")
        with Job(folder, "new") as new:
            g.wait_line("job=new state=live")
            before, done = load.started, load.done
            old.drain()
            assert old.ended() == 0
            g.wait_line("job=old left")
            wait_for(lambda: load.started - done >= least, 120, "the requests")
            load.end()
            counted = load.done - done
            m = g.http.get("/metrics").text
            print(f"{counted} requests during the hand-over, {before - done} of them in flight, "
                  f"{len(load.wrong)} failed, {g.count('goes to another job')} sent on")
            assert load.wrong == [] and counted >= least
            assert 'http_requests_total{status="500"' not in m
            assert new.metrics()["rankserve_kv_blocks"] > 0
            new.settle()


class Fakes:
    """Two jobs that are none, the newer one first in turn, and a gateway for them."""

    def __init__(self, folder, tmp_path):
        self.model = tiny_model(str(tmp_path / "tiny.gguf"))
        self.jobs = []
        for i, name in enumerate(("newer", "older")):
            (tmp_path / name).mkdir()
            job = FakeJob(str(tmp_path / name))
            job.plan = lambda r, text=name: Plan(text, finish="length")
            self.jobs.append(job)
            (folder / f"{name}.json").write_text(json.dumps({
                "job_id": name, "state": "live", "started": 10 - i, "link": job.path,
                "secret_file": job.secret_file}))
            os.chmod(folder / f"{name}.json", 0o600)
        self.newer, self.older = self.jobs


@pytest.fixture
def fakes(folder, tmp_path):
    f = Fakes(folder, tmp_path)
    with Gateway(folder, model=f.model) as f.gateway:
        for name in "newer", "older":
            f.gateway.wait_line(f"job={name} state=live")
        yield f
    for job in f.jobs:
        job.close()


REFUSED_FULL, REFUSED_LENGTH, REFUSED_STATE, WORKER_LOST, BAD_REQUEST = 1, 2, 3, 4, 7


@pytest.mark.parametrize("code", [REFUSED_STATE, REFUSED_FULL, WORKER_LOST])
def test_what_one_job_refuses_another_does(fakes, code):
    fakes.newer.plan = lambda r: Plan("", ids=[], code=code)
    r = fakes.gateway.complete("hello", 5)
    assert r.status_code == 200 and r.json()["choices"][0]["text"] == "older"
    assert len(fakes.newer.requests) == len(fakes.older.requests) == 1
    assert fakes.newer.requests[0].seed == fakes.older.requests[0].seed
    assert fakes.gateway.count("goes to another job") == 1


def test_another_job_gets_what_is_left_of_the_time(fakes):
    fakes.newer.plan = lambda r: Plan("", ids=[], code=REFUSED_FULL, before_s=0.5)
    assert fakes.gateway.complete("hello", 5, timeout=10).status_code == 200
    assert fakes.newer.requests[0].timeout_ms == 10000
    assert fakes.older.requests[0].timeout_ms <= 9500
    assert fakes.gateway.complete("hello", 5, timeout=0.1).status_code == 200
    assert fakes.older.requests[1].timeout_ms == 1


def test_a_link_that_breaks_before_the_first_token_costs_nothing(fakes):
    fakes.newer.plan = lambda r: Plan(quit_after=0)
    r = fakes.gateway.complete("hello", 5)
    assert r.status_code == 200 and r.json()["choices"][0]["text"] == "older"


def test_what_has_begun_is_not_begun_again(fakes):
    fakes.newer.plan = lambda r: Plan(quit_after=1, gap_s=0.1)
    r = fakes.gateway.complete("hello", 5)
    assert r.status_code == 500 and fakes.older.requests == []


def test_when_all_refuse_the_client_hears_of_it(fakes):
    for job in fakes.jobs:
        job.plan = lambda r: Plan("", ids=[], code=REFUSED_FULL, retry_after=3)
    r = fakes.gateway.complete("hello")
    assert r.status_code == 429 and r.headers["retry-after"] == "3"
    assert len(fakes.newer.requests) == len(fakes.older.requests) == 1
    for code, status in (REFUSED_LENGTH, 400), (BAD_REQUEST, 500):
        fakes.newer.plan = lambda r, code=code: Plan("", ids=[], code=code)
        assert fakes.gateway.complete("hello").status_code == status
        assert len(fakes.older.requests) == 1


def test_a_job_that_drains_gets_nothing_new(fakes):
    fakes.newer.state(3)
    fakes.gateway.wait_line("job=newer state=draining")
    assert fakes.gateway.complete("hello", 5).json()["choices"][0]["text"] == "older"
    fakes.older.state(3)
    fakes.gateway.wait_line("job=older state=draining")
    r = fakes.gateway.complete("hello", 5)
    assert r.status_code == 503 and "shutting down" in r.text
    assert fakes.gateway.http.get("/health").status_code == 503


def test_an_entry_that_says_draining_is_enough(fakes, folder):
    """No new requests; what runs there ends; then the link is let go."""
    fakes.newer.plan = lambda r: Plan("slowly", finish="length", gap_s=0.3)
    got = []
    running = threading.Thread(target=lambda: got.append(fakes.gateway.complete("a", 6)))
    running.start()
    wait_for(lambda: fakes.newer.requests, 5, "the request")
    path = folder / "newer.json"
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "state": "draining"}))
    wait_for(lambda: fakes.gateway.complete("b", 5).json()["choices"][0]["text"] == "older", 5,
             "the older job")
    running.join(20)
    assert got[0].json()["choices"][0]["text"] == "slowly"
    fakes.gateway.wait_line("job=newer left")


@pytest.mark.parametrize("first", ["newer", "older"])
def test_the_longer_beginning_counts_then_the_newer_job(fakes, folder, first):
    """In whichever order the gateway came to know them."""
    entries = {n: (folder / f"{n}.json").read_text() for n in ("newer", "older")}
    lives = {"newer": 1, "older": 1}

    def who(prompt):
        return fakes.gateway.complete(prompt, 5).json()["choices"][0]["text"]

    def remove(name):
        left = fakes.gateway.count(f"job={name} left")
        (folder / f"{name}.json").unlink()
        wait_for(lambda: fakes.gateway.count(f"job={name} left") > left, 10, "its end")

    def add(name):
        lives[name] += 1
        (folder / f"{name}.part").write_text(entries[name])
        os.chmod(folder / f"{name}.part", 0o600)
        os.rename(folder / f"{name}.part", folder / f"{name}.json")
        wait_for(lambda: fakes.gateway.count(f"job={name} state=live") == lives[name], 10, name)

    remove("newer")
    remove("older")
    add(first)
    if first == "newer":
        add("older")
        remove("newer")                   # its place is the first one
    long = "It was a dark and stormy night; " * 10
    assert who(long + "one") == "older"
    add("newer")
    assert [who(long + "two"), who("something else"), who(long[:200])] == ["older", "newer", "older"]


def test_what_is_wrong_with_an_entry_is_said_once(folder, tmp_path):
    good = {"url": "http://x", "model": "m", "name": "chat", "job_id": "slurm-1", "state": "live",
            "started": 5, "expires": None, "api_key_file": "", "link": "127.0.0.1:9",
            "secret_file": str(tmp_path / "secret"), "uds": ""}
    (tmp_path / "secret").write_text("0" * 64)
    os.chmod(tmp_path / "secret", 0o600)
    open_secret = tmp_path / "open"
    open_secret.write_text("0" * 64)
    os.chmod(open_secret, 0o644)

    def write(name, mode=0o600, text=None, **changes):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**good, "job_id": name, **changes}) if text is None else text)
        os.chmod(path, mode)

    write("torn", text='{"url": ')
    write("list", text="[]")
    write("twice", text='{"url": "a", "url": "b"}')
    write("long", text=" " * 70000)
    write("open", mode=0o666)
    write("odd", state="asleep")
    write("early", started="today")
    write("never", expires="never")
    write("over", expires=int(time.time()) - 100)
    write("mute", link="")
    write("unknown", secret_file=str(open_secret))
    write("nohost", link="no-such-host.invalid:1")
    write("stale")
    write("for-ever", expires=2**63 - 1)
    write("first", job_id="same", started=6)
    write("second", job_id="same", started=7)
    os.symlink("nothing", folder / "dangling.json")
    (folder / "folder.json").mkdir()
    (folder / "readme.txt").write_text("not ours")
    expected = {
        "torn": "", "list": "it is not a JSON object", "twice": "duplicate object key",
        "long": "it is longer than 65536 bytes", "open": "it must be yours, and writable by nobody",
        "odd": "\"state\" is 'asleep'; it must be starting, live or draining",
        "early": '"started" must be seconds', "never": '"expires" must be seconds',
        "over": "it is stale", "mute": '"link" must be a text',
        "unknown": f"secret file {open_secret}: others may read it; chmod 600", "nohost": '"link" is no-such-host.invalid:1, which no name server knows',
        "first": "second.json has the same job_id, 'same', and counts",
        "folder": "it is not a file",
    }
    with Gateway(folder, ready=False) as g:
        for name, text in expected.items():
            g.wait_line(f"/{name}.json: {text}")
        g.wait_line("job=stale does not answer at 127.0.0.1:9: its endpoint file may be stale", 15)
        r = g.complete("hello")
        assert r.status_code == 503 and "retry-after" in r.headers
        time.sleep(2.5)                   # another look
        for name in expected:
            assert g.count(f"/{name}.json: ") == 1, name
        assert g.count("/for-ever.json: ") == 0
        assert "readme" not in "".join(g.lines)
        with Job(folder, "fine"):
            g.wait_line("ready ")
            assert g.complete("hello").status_code == 200


def test_jobs_of_another_service_or_model_are_left_out(folder):
    with Job(folder, "other", service="other"), Gateway(folder, "--jobs-name", "chat",
                                                        ready=False) as g:
        time.sleep(0.5)
        assert g.complete("hello").status_code == 503
        with Job(folder, "ours") as ours:
            g.wait_line("ready ")
            assert g.complete("hello").status_code == 200
            entry = json.loads(ours.entry.read_text())
            (folder / "liar.json").write_text(json.dumps({**entry, "job_id": "liar",
                                                          "secret_file": str(folder / "liar")}))
            (folder / "liar").write_text("1" * 64)
            os.chmod(folder / "liar", 0o600)
            os.chmod(folder / "liar.json", 0o600)
            g.wait_line("link refused job=liar")
            assert "wrong secret" in g.wait_line("link refused job=liar")
            assert g.complete("hello").status_code == 200


def test_the_directory_may_be_away_for_a_while(folder, tmp_path):
    r = subprocess.run([os.path.join(BUILD, "rankserve-gateway"), "--model", MODEL, "--jobs",
                        str(tmp_path / "no")], text=True, capture_output=True, timeout=20)
    assert r.returncode == 1 and f"--jobs {tmp_path}/no: No such file or directory" in r.stderr
    r = subprocess.run([os.path.join(BUILD, "rankserve-gateway"), "--model", MODEL, "--jobs",
                        str(folder), "--link", "/x"], text=True, capture_output=True, timeout=20)
    assert r.returncode == 1 and "--jobs and --link: only one of them" in r.stderr
    with Job(folder, "one"), Gateway(folder) as g:
        os.rename(folder, tmp_path / "away")
        g.wait_line("No such file or directory; the jobs stay as they were")
        assert g.complete("hello").status_code == 200
        os.rename(tmp_path / "away", folder)
        with Job(folder, "two"):
            g.wait_line("job=two state=live")


def test_a_link_that_cannot_be_opened_ends_the_start(folder):
    with pytest.raises(RuntimeError, match="link: no-such-host.invalid:0"):
        Job(folder, "bad", "--link-listen", "no-such-host.invalid:0")
    with pytest.raises(RuntimeError, match="neither a path nor HOST:PORT"):
        Job(folder, "bad", "--link-listen", "nonsense")
    folder.rmdir()
    with pytest.raises(RuntimeError, match="--endpoint-file .*No such file"):
        Job(folder, "bad")
