"""tests/service/test_ompi5.py - the same sources under Open MPI 5 (build/ompi5, from tests/deps.sh).

Both versions' libraries have one name, and a program built with the one runs on the other without a
word: so these tests look at what the job says of its library.
"""
import os
import shutil
import signal
import subprocess
import time

import pytest

import service
from service import BUILD, PATIENCE, ROOT, Service

VENV = os.path.join(ROOT, "build", "ompi5")
BIN = os.path.join(VENV, "rankserve")             # programs
pytestmark = [
    pytest.mark.skipif(not os.path.exists(os.path.join(VENV, "bin", "mpicc")),
                       reason="not installed: Open MPI 5 (tests/deps.sh test)"),
    pytest.mark.skipif("san-" in BUILD, reason="the plain build is enough"),
    pytest.mark.usefixtures("needs_model"),
]


@pytest.fixture(scope="module")
def programs():
    """rankserve built with 5's mpicc; the other programs do not know MPI."""
    made = subprocess.run(
        ["make", "-s", "-C", ROOT, f"MPICC={VENV}/bin/mpicc",
         f"B={os.path.relpath(BUILD, ROOT)}",     # as `make` names it: else headers do not count
         "M=build/ompi5/rankserve", "build/ompi5/rankserve/rankserve"], text=True, capture_output=True, timeout=600 * PATIENCE)
    assert made.returncode == 0, made.stderr
    for name in "rankservectl", "rankserve-gateway":
        shutil.copy2(os.path.join(BUILD, name), BIN)   # each looks for the others beside itself
    linked = subprocess.run(["ldd", f"{BIN}/rankserve"], text=True, capture_output=True).stdout
    assert f"{VENV}/lib/libmpi.so" in linked
    return BIN


@pytest.fixture
def started(programs, monkeypatch):
    monkeypatch.setattr(service, "CTL", os.path.join(programs, "rankservectl"))
    path = f"{VENV}/bin:{os.environ['PATH']}"

    def start(*flags, env=None):
        return Service("--threads", 1, "--kv-cache-memory-bytes", "64MiB", *flags,
                       env={"PATH": path, **(env or {})})
    return start


def test_it_serves_the_same_text(started, aggregated):
    prompt = "Once upon a time there was a ship"
    want = aggregated.complete(prompt, max_tokens=12)["choices"][0]["text"]
    with started("--prefill", 1, "--decode", 2) as s:
        assert any('mpi="Open MPI v5.' in line for line in s.lines), s.lines
        assert s.complete(prompt, max_tokens=12)["choices"][0]["text"] == want
        s.settle()
        assert s.stop() == 0


def test_a_lost_worker_is_noticed_and_the_others_go_on(started):
    with started("--prefill", 1, "--decode", 2, "--backend", "null") as s:
        os.kill(s.workers()[3], signal.SIGKILL)
        end = time.monotonic() + 10 * PATIENCE
        while not any("lost worker=3" in line for line in s.lines) and time.monotonic() < end:
            time.sleep(0.05)
        assert any("lost worker=3" in line for line in s.lines)
        s.complete("hello", max_tokens=4)
