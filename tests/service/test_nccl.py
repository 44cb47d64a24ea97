"""tests/service/test_nccl.py - whole jobs whose KV goes from GPU to GPU, in emulation.

Ranks are processes of a real MPI job, their NCCL that of tests/cusim, the model a small random one.
Tokens are those of one rank that does everything: not a bit may change on the way.
"""
import random
import re
import signal

import pytest

import job as job_module
import tiny_gguf
from job import Job
from service import LONG
from test_cuda import CUSIM, pytestmark as built

pytestmark = [built[0]]
FLAGS = ["--max-model-len", "320", "--kv-cache-memory-bytes", "8MiB",
         "--max-num-batched-tokens", "64", "--max-num-seqs", "8"]
WORDS = [5 + i for i in range(500)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_gguf.write(path)
    return path


class Emulated(Job):
    def __init__(self, model, *options, connector="nccl", env=None, **more):
        env = {"LD_LIBRARY_PATH": CUSIM, "CUSIM_CHECK": "0", "CUSIM_DEVICES": "8", **(env or {})}
        super().__init__(*FLAGS, "--kv-connector", connector, *options, backend="cuda",
                         model=model, env=env, limit_s=120, **more)


@pytest.fixture
def only_rank(tmp_path, monkeypatch):
    """The program under a shell that sets a variable in one rank."""
    def make(rank, name, value):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n[ $OMPI_COMM_WORLD_RANK = {rank} ] && "
                        f'export {name}={value}\nexec {job_module.PROGRAM} "$@"\n')
        path.chmod(0o755)
        monkeypatch.setattr(job_module, "PROGRAM", str(path))
    return make


def prompts(count, seed=1):
    dice = random.Random(seed)
    return [dice.choices(WORDS, k=dice.randrange(20, 250)) for _ in range(count)]


def answers(job, asked, tokens=6):
    """All at once."""
    c = job.client()
    got = c.wait([c.request(ids, max_tokens=tokens) for ids in asked], 60)
    assert all(a.code == 0 for a in got)
    assert c.home()
    return [a.ids for a in got]


def carried(job):
    """KV bytes sent, and those of them that went over lanes, once a heartbeat has told."""
    c = job.client()
    c.until(lambda: c.state and c.state["kv_bytes_sent"], 5)
    c.pump(0.7)
    return c.state["kv_bytes_sent"], c.state["kv_bytes_lanes"]


def nothing_failed(job):
    """Recovery would hide a mistake: so nothing may have needed any."""
    return not re.search("^.*( failed |refused|broke).*$", job.log(), re.M)


@pytest.fixture(scope="module")
def wanted(model):
    """What one rank that does everything answers."""
    with Emulated(model, both=1) as job:
        return answers(job, prompts(12))


@pytest.mark.parametrize("prefill, decode", [(1, 1), (2, 2), (3, 1)])
def test_prefill_and_decode_over_nccl_answer_as_one_rank_does(model, wanted, prefill, decode):
    checks = {"CUSIM_CHECK": str(int(prefill == 1))}  # every access and its order, once
    with Emulated(model, prefill=prefill, decode=decode, env=checks) as job:
        assert answers(job, prompts(12)) == wanted
        sent, over_lanes = carried(job)
        assert sent == over_lanes > 12 * 20 * 3 * 256, job.log()
        ups = set(re.findall(r"rank=(\d+) lane (to|from)=(\d+) up", job.log()))
        assert {(a, "to", b) for a, way, b in ups if way == "to"} == \
               {(b, "to", a) for a, way, b in ups if way == "from"}
        assert nothing_failed(job), job.log()


@pytest.mark.skipif(not LONG, reason="a wrong NCCL goes the same way: make check-long")
def test_through_the_host_the_answers_are_the_same(model, wanted):
    with Emulated(model, connector="mpi", prefill=1, decode=1) as job:
        assert answers(job, prompts(12)) == wanted
        sent, over_lanes = carried(job)
        assert sent > 0 and over_lanes == 0


def test_auto_begins_by_mpi_and_goes_on_over_the_lane(model, wanted):
    with Emulated(model, connector="auto", prefill=1, decode=1) as job:
        answers(job, prompts(1, seed=9))
        assert job.wait_log(r"lane to=2 up")
        assert answers(job, prompts(12)) == wanted
        sent, over_lanes = carried(job)
        assert 0 < over_lanes <= sent
        assert nothing_failed(job), job.log()


def test_cancels_in_the_middle_leave_the_lane_in_order(model, wanted):
    """What was announced of a cancelled request still moves, and disturbs nobody."""
    with Emulated(model, prefill=2, decode=1) as job:
        c, dice = job.client(), random.Random(4)
        for turn in range(60):
            streams = [c.request(ids, max_tokens=60) for ids in prompts(8, seed=20 + turn)]
            for s in streams:
                c.pump(dice.uniform(0, 0.04))
                c.cancel(s)
            c.wait(streams, 30)
            if turn >= 4 and c.state["stale_refused"]:
                break
        assert c.state["stale_refused"], "no cancel hit a transfer"
        assert c.home()
        assert answers(job, prompts(12)) == wanted
        assert nothing_failed(job), job.log()


DEATHS = {"a decode rank dies": (3, signal.SIGKILL)}
if LONG:
    DEATHS |= {"a prefill rank dies": (1, signal.SIGKILL), "it hangs": (4, signal.SIGSTOP)}


@pytest.mark.parametrize("rank, number", DEATHS.values(), ids=DEATHS.keys())
def test_a_lost_rank_takes_its_lanes_with_it_and_nothing_else(model, wanted, rank, number):
    with Emulated(model, prefill=2, decode=2) as job:
        answers(job, prompts(4, seed=8))  # lanes are up
        c = job.client()
        streams = [c.request(ids, max_tokens=6) for ids in prompts(12)]
        c.pump(0.1)
        job.kill(rank, number)
        assert [a.ids for a in c.wait(streams, 60)] == wanted
        assert c.home()
        before = carried(job)[1]
        assert answers(job, prompts(12, seed=30))
        assert carried(job)[1] > before


BREAKS = {"the receiver's end": (3, 4)}
if LONG:
    BREAKS |= {"the sender's end": (1, 5)}


@pytest.mark.parametrize("rank, message", BREAKS.values(), ids=BREAKS.keys())
def test_a_lane_that_breaks_is_replaced_by_mpi(model, wanted, only_rank, rank, message):
    """Both ranks live: what was announced is computed again, and the pair goes on without it."""
    only_rank(rank, "CUSIM_NCCL_FAULT", message)
    with Emulated(model, prefill=2, decode=2) as job:
        assert answers(job, prompts(12)) == wanted
        assert job.wait_log("broke in a transfer: remote process exited")
        assert answers(job, prompts(12)) == wanted
        sent, over_lanes = carried(job)
        assert 0 < over_lanes < sent


def test_a_prefix_is_pulled_over_a_lane(model):
    """One of two workers holds it and is busy with what begins alike: the other one fetches it, and
    by NCCL.  Nothing else is sent between workers that do both."""
    with Emulated(model, both=2) as job:
        c, busy = job.client(), []
        for turn in range(30):         # the first ones teach the rates that pulls are weighed with
            ids = (prompts(1, seed=40 + turn)[0] * 13)[:240]
            asked = ids + WORDS[:8]
            want = c.generate(asked, max_tokens=4, salt=1).ids  # another salt: shares no block
            c.generate(ids, max_tokens=2)
            busy += [c.request(ids + random.Random(i).choices(WORDS, k=70), max_tokens=1)
                     for i in range(8)]
            assert c.generate(asked, max_tokens=4).ids == want
            if "pull req=" in job.log():
                break
        assert all(a.code == 0 for a in c.wait(busy, 60))
        assert job.wait_log("pull req="), job.log()[-3000:]
        assert c.home()
        sent, over_lanes = carried(job)
        assert sent == over_lanes > 0
        assert nothing_failed(job), job.log()


@pytest.mark.parametrize("version, said", [
    (22708, "rank 1 has NCCL 2.28.9, rank 2 has 2.27.8: all must have the same|"
            "rank 2 has NCCL 2.27.8, rank 1 has 2.28.9: all must have the same"),
    (20905, "rank 2: kv-connector nccl: NCCL 2.9.5 is too old"),
])
def test_a_wrong_nccl_is_one_line_and_ends_the_job(model, only_rank, version, said):
    only_rank(2, "CUSIM_NCCL_VERSION", version)
    with Emulated(model, prefill=1, decode=1, live=False) as job:
        status = job.status(30)
        assert status and status["code"] != 0
        assert re.search(said, status["why"]) and "\n" not in status["why"], status
        assert job.ended(15)


def test_auto_with_a_wrong_nccl_goes_by_mpi(model, wanted, only_rank):
    only_rank(2, "CUSIM_NCCL_VERSION", 22708)
    with Emulated(model, connector="auto", prefill=1, decode=1) as job:
        assert answers(job, prompts(12)) == wanted
        sent, over_lanes = carried(job)
        assert sent > 0 and over_lanes == 0
        assert "their KV goes by MPI" in job.log()


def test_nccl_without_a_gpu_is_refused(model):
    with Job("--kv-connector", "nccl", model=model, both=1, backend="cpu", live=False) as job:
        status = job.status(20)
        assert status and "kv-connector nccl: backend cpu has no GPU" in status["why"]
