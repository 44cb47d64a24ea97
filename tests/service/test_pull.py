"""tests/service/test_pull.py - a worker fetches a prefix's KV from another one that holds it.

The holder is kept busy with a long prompt that begins alike, so that the next request with this
beginning goes to the other worker, for which fetching is cheaper than computing.  Whatever happens
to the fetch, the answer is the same and every block comes home.
"""
import os
import random
import signal
import time

from job import Job

SLOW = {"RANKSERVE_NULL_STEP_US": "2000", "RANKSERVE_NULL_TOKEN_US": "2000"}


def prompt(seed, count):
    r = random.Random(seed)
    return [r.randrange(5, 1000) for _ in range(count)]


def know_the_rates(job, c):
    """Pulls are weighed with measured rates: a few prompts, and the next heartbeat."""
    for i in range(4):
        c.generate(prompt(900 + i, 40), max_tokens=2)
    c.pump(0.5)


def pull_one(job, c, ids, tail=8, before=None, alike=640):
    """`ids` are held by one worker, which is busy with what begins with `alike` of them; the same
    beginning goes to the other one."""
    first = c.generate(ids, max_tokens=4, timeout=60)
    c.pump(0.3)
    busy = [c.request(ids[:alike] + prompt(50, 1500), max_tokens=1)]
    line = job.wait_log(f"placed .*prompt={alike + 1500} ")
    assert line and f"prefill={first.prefill} " in line, line
    if before:
        before(first.prefill)
    again = c.request(ids + prompt(60, tail), max_tokens=6)
    return first, busy, again


def test_pulled_tokens_have_the_same_bits_as_computed_ones():
    ids = prompt(1, 640)
    with Job(both=1, backend="cpu") as job:
        want = job.client().generate(ids + prompt(60, 8), max_tokens=6, timeout=60).ids
    with Job(both=2, backend="cpu", limit_s=120) as job:
        c = job.client()
        know_the_rates(job, c)
        first, busy, again = pull_one(job, c, ids)
        a = c.wait([again], 60)[0]
        assert a.ids == want
        c.wait(busy, 60)
        line = job.wait_log("pulled req=")
        assert line and "tokens=640" in line, job.log()[-3000:]
        assert a.prefill != first.prefill
        assert c.home()
        assert c.state["index_mismatches"] == 0


def test_a_holder_that_stops_costs_time_only():
    ids = prompt(2, 640)
    with Job(both=2, env=SLOW) as job:
        c = job.client()
        know_the_rates(job, c)
        want = None
        first, busy, again = pull_one(job, c, ids, before=lambda r: job.kill(r, signal.SIGSTOP))
        holder = first.prefill
        time.sleep(0.3)
        job.kill(holder, signal.SIGCONT)
        a = c.wait([again], 60)[0]
        assert a.code == 0 and len(a.ids) == 6
        c.wait(busy, 60)
        assert job.wait_log("is late: computing"), job.log()[-3000:]
        want = c.generate(ids + prompt(60, 8), max_tokens=6, timeout=60).ids
        assert a.ids == want
        assert c.home()
        assert c.state["index_mismatches"] == 0


def test_a_holder_that_dies_costs_time_only():
    ids = prompt(3, 640)
    with Job(both=2, env=SLOW) as job:
        c = job.client()
        know_the_rates(job, c)
        first, busy, again = pull_one(job, c, ids, before=lambda r: job.kill(r, signal.SIGSTOP))
        assert job.wait_log("pull req=")
        job.kill(first.prefill)
        a = c.wait([again], 60)[0]
        assert a.code == 0 and len(a.ids) == 6
        c.wait(busy, 60)
        assert a.ids == c.generate(ids + prompt(60, 8), max_tokens=6, timeout=60).ids
        assert c.home()


def test_a_request_cancelled_while_it_waits_for_a_pull_leaves_nothing():
    ids = prompt(4, 640)
    with Job(both=2, env=SLOW) as job:
        c = job.client()
        know_the_rates(job, c)
        first, busy, again = pull_one(job, c, ids, before=lambda r: job.kill(r, signal.SIGSTOP))
        assert job.wait_log("pull req=")
        c.cancel(again)
        c.wait([again], 30)
        job.kill(first.prefill, signal.SIGCONT)
        c.wait(busy, 60)
        assert c.home()
        assert c.state["index_mismatches"] == 0


def test_what_the_holder_has_dropped_meanwhile_is_computed():
    """A pool of 120 blocks: the busy holder's long prompt pushes the rest of the prefix out."""
    token = 30 * 2 * 3 * 64 * 2
    ids = prompt(5, 640)
    with Job("--kv-cache-memory-bytes", 120 * 16 * token, both=2, env=SLOW, limit_s=120) as job:
        c = job.client()
        know_the_rates(job, c)
        first, busy, again = pull_one(job, c, ids, alike=320)
        a = c.wait([again], 90)[0]
        c.wait(busy, 90)
        assert a.ids == c.generate(ids + prompt(60, 8), max_tokens=6, timeout=60).ids
        assert c.home()
        assert c.state["index_mismatches"] == 0
