"""tests/service/test_survive.py - a lost worker loses nothing.

Workers are killed (SIGKILL), stopped (SIGSTOP) and woken again (SIGCONT) at every stage of requests:
while a prompt is computed, while KV moves, while tokens come.  Each answer must be what the same
request gives when nobody is disturbed, token for token; every block must come home.
"""
import os
import random
import signal
import time

import pytest

import link_client as link
from job import MODEL, Job
from service import LONG

pytestmark = pytest.mark.skipif(not os.path.exists(MODEL), reason="RANKSERVE_TEST_MODEL is not set")
FAST = {"RANKSERVE_NULL_STEP_US": "500", "RANKSERVE_NULL_TOKEN_US": "5"}
SLOW = {"RANKSERVE_NULL_STEP_US": "8000", "RANKSERVE_NULL_TOKEN_US": "150"}
COUNT = 24


def asks(count, seed=1, most=90):
    """Requests: greedy and seeded, with and without probabilities, penalties by their length."""
    r = random.Random(seed)
    out = []
    for i in range(count):
        length = r.choice([1, 16, 33, 150, 300])
        ask = dict(ids=[r.randrange(3, 40000) for _ in range(length)], seed=i,
                   max_tokens=r.choice([1, 2, 30, most]), temperature=0.9 * (i % 2))
        if i % 3 == 0:
            ask.update(flags=link.LOGPROBS | link.PROMPT_LOGPROBS, top_count=2,
                       prompt_top_count=1)
        out.append(ask)
    return out


def said(answer):
    """All that a client sees of it."""
    assert answer.ends == 1 and answer.output_tokens == len(answer.ids)
    return (answer.code, answer.finish, answer.ids, answer.positions, answer.tops, answer.scores)


@pytest.fixture(scope="module")
def undisturbed():
    """What the null backend answers to asks(), asked once each."""
    with Job(both=1, env=FAST) as job:
        c = job.client()
        return [said(a) for a in c.wait([c.request(**a) for a in asks(COUNT)], 40)]


def check(client, streams, undisturbed):
    got = client.wait(streams, 60)
    for i, answer in enumerate(got):
        assert said(answer) == undisturbed[i], (i, answer.code, answer.finish)
        assert answer.cached <= answer.prompt_tokens
    assert client.home()


@pytest.mark.parametrize("victim", [1, 2, 3, 4] if LONG else [1, 4])
@pytest.mark.parametrize("after", [0.03, 0.15, 0.3, 0.6] if LONG else [0.2])
def test_a_killed_worker_costs_no_token(undisturbed, victim, after):
    with Job(prefill=2, decode=2, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(COUNT)]
        c.pump(after)
        job.kill(victim)
        check(c, streams, undisturbed)
        assert c.state["workers_lost"] == 1 and c.state["workers_alive"] == 3


@pytest.mark.parametrize("first,second", [(1, 2), (2, 1)])
def test_the_other_role_takes_over_when_nobody_is_left_of_one(undisturbed, first, second):
    with Job(prefill=1, decode=1, both=0, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(12)]
        c.pump(0.5)
        job.kill(first)
        check(c, streams, undisturbed)
        streams = [c.request(**a) for a in asks(4)]
        job.kill(second)
        c.until(lambda: all(c.answers[s].done() for s in streams), 5)
        assert {c.answers[s].code for s in streams} == {link.WORKER_LOST}
        assert job.status() == {"code": 3, "why": "no worker is left"}
        assert job.ended(3)


def test_both_workers_of_a_pair_die_at_once(undisturbed):
    with Job(prefill=2, decode=2, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(COUNT)]
        c.pump(0.2)
        pids = job.pids()
        os.kill(pids[1], signal.SIGKILL)
        os.kill(pids[3], signal.SIGKILL)
        check(c, streams, undisturbed)


def test_a_worker_that_does_it_all_dies(undisturbed):
    with Job(both=3, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(COUNT)]
        c.pump(0.3)
        job.kill(2)
        c.pump(0.2)
        job.kill(1)
        check(c, streams, undisturbed)


@pytest.mark.parametrize("victim", [1, 3])
def test_a_worker_that_hangs_is_replaced_and_leaves_when_it_wakes(undisturbed, victim):
    with Job(prefill=2, decode=2, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(COUNT)]
        c.pump(0.2)
        pid = job.pids()[victim]
        job.kill(victim, signal.SIGSTOP)
        assert c.until(lambda: c.state and c.state["workers_lost"] == 1, 5)
        os.kill(pid, signal.SIGCONT)
        check(c, streams, undisturbed)
        until = time.monotonic() + 3
        while victim in job.pids() and time.monotonic() < until:
            time.sleep(0.02)
        assert victim not in job.pids()


def test_a_worker_that_only_pauses_is_not_lost(undisturbed):
    with Job(prefill=2, decode=2, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(COUNT)]
        for victim in (1, 3, 4):
            c.pump(0.2)
            job.kill(victim, signal.SIGSTOP)
            c.pump(0.3)
            job.kill(victim, signal.SIGCONT)
        check(c, streams, undisturbed)
        assert c.state["workers_lost"] == 0


def test_spares_take_the_places_of_lost_workers(undisturbed):
    with Job(prefill=1, decode=1, spares=3, env=SLOW) as job:
        c = job.client()
        streams = [c.request(**a) for a in asks(COUNT)]
        for victim, heir in ((2, 3), (1, 5), (3, None)):
            c.pump(0.2)
            if victim == 1:
                job.kill(4)         # a spare that is lost takes no place
                assert job.wait_log("lost worker=4 role=spare")
            job.kill(victim)
            if heir:
                assert job.wait_log(f"spare worker={heir} takes the place of worker={victim}")
        check(c, streams, undisturbed)
        assert c.state["workers_alive"] == 1
        # Decode workers compute prompts too when that is cheaper; a dead spare computes none.
        assert {1, 5} <= {a.prefill for a in c.answers.values()} <= {1, 2, 3, 5}


def test_l6_l9_kv_that_comes_after_a_cancel_touches_nobodys_blocks():
    # A pool with room for little else: what a cancel frees is used again at once.
    with Job("--kv-cache-memory-bytes", 16 << 20, "--max-model-len", 512,
             "--no-enable-prefix-caching", prefill=1, decode=1, backend="cpu") as job:
        c, r = job.client(), random.Random(11)
        some = [dict(ids=[r.randrange(3, 40000) for _ in range(n)], max_tokens=6, seed=n,
                     temperature=n % 2) for n in (60, 121, 33)]
        want = [c.generate(**a, timeout=60).ids for a in some]
        for turn in range(20 if LONG else 6):
            victim = c.request([r.randrange(3, 40000) for _ in range(240)], max_tokens=250,
                               flags=link.IGNORE_EOS)
            c.until(lambda: len(c.answers[victim].ids) >= 20, r.random() * 0.5)
            c.cancel(victim)
            streams = [c.request(**a) for a in some]
            assert [a.ids for a in c.wait(streams, 60)] == want, turn
            assert c.wait([victim])[0].code == link.CANCELLED
        assert c.home()
