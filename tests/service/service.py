"""tests/service/service.py - starts a whole service (job and gateway) and looks at it from outside.

Service(...) runs `rankservectl up` with the flags given, waits for its `ready URL` line, and stops it
with SIGINT.  Everything it starts dies with it.  `blocks()` reads the KV books from /metrics, and
`settle()` waits until nothing is held: the check that every block came home.
"""
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time

import httpx

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("RANKSERVE_BUILD", os.path.join(ROOT, "build"))
CTL = os.environ.get("RANKSERVECTL", os.path.join(BUILD, "rankservectl"))
MODEL = os.environ.get("RANKSERVE_TEST_MODEL", "")
GOLDENS = os.path.join(ROOT, "tests", "data", "goldens.json")
LONG = os.environ.get("RANKSERVE_TEST_LONG", "") == "1"
# Sanitizer builds are slow: every deadline below is stretched by this.
PATIENCE = float(os.environ.get("RANKSERVE_TEST_PATIENCE", "1"))


class Service:
    def __init__(self, *flags, model=None, env=None):
        self.directory = tempfile.TemporaryDirectory(prefix="rankserve-test-")
        self.endpoint_file = os.path.join(self.directory.name, "endpoint.json")
        self.run_dir = os.path.join(self.directory.name, "run")
        self.lines = []
        command = [CTL, "up", "--model", model or MODEL, "--listen", "127.0.0.1:0",
                   "--endpoint-file", self.endpoint_file, "--run-dir", self.run_dir,
                   *map(str, flags)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, **(env or {})})
        self.stderr_thread = threading.Thread(target=self._read_stderr, daemon=True)
        self.stderr_thread.start()
        self.url = self._wait_ready(60 * PATIENCE)
        self.http = httpx.Client(base_url=self.url, timeout=300 * PATIENCE)

    def _read_stderr(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def _wait_ready(self, seconds):
        found = []

        def read():
            for line in self.process.stdout:
                if line.startswith("ready "):
                    found.append(line.split()[1])
                    return
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(seconds)
        if not found:
            self.kill()
            raise RuntimeError("not ready; log:\n" + "\n".join(self.lines[-30:]))
        return found[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, seconds=30):
        """Drains; returns the exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(seconds * PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
                raise RuntimeError("did not stop; log:\n" + "\n".join(self.lines[-30:]))
        self.stderr_thread.join(5)
        self.directory.cleanup()
        return self.process.returncode

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    # What it says of itself.

    def metrics(self):
        """Values by full name, and by bare name: the sum over its labels."""
        out = {}
        for line in self.http.get("/metrics").text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                out[name] = float(value)
                bare = name.split("{")[0]
                if bare != name:
                    out[bare] = out.get(bare, 0) + float(value)
        return out

    def blocks(self):
        m = self.metrics()
        return {s: int(m['rankserve_kv_blocks{state="%s"}' % s])
                for s in ("total", "free", "held", "cached")}

    def settle(self, seconds=5):
        """Waits until no block is held and no request runs; asserts that the books add up."""
        until = time.monotonic() + seconds * PATIENCE
        while True:
            b = self.blocks()
            if b["held"] == 0 and b["free"] + b["cached"] == b["total"]:
                return b
            assert time.monotonic() < until, f"blocks did not come home: {b}"
            time.sleep(0.1)

    def workers(self):
        """pids of the job's ranks by rank, found through their environment."""
        out = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f:
                    environ = f.read()
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    command = f.read()
            except OSError:
                continue
            rank = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", environ)
            if rank and self.run_dir.encode() in command:
                out[int(rank.group(1))] = int(pid)
        return out

    # Requests.

    def post(self, path, **body):
        return self.http.post(path, json=body)

    def complete(self, prompt, **more):
        body = {"model": self.model(), "prompt": prompt, "temperature": 0, **more}
        r = self.http.post("/v1/completions", json=body)
        assert r.status_code == 200, r.text
        return r.json()

    def model(self):
        if not hasattr(self, "_model"):
            self._model = self.http.get("/v1/models").json()["data"][0]["id"]
        return self._model


def goldens():
    with open(GOLDENS) as f:
        return json.load(f)
