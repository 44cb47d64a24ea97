"""tests/service/test_roles.py - workers change between prefill and decode while a job runs.

First prompts are long and answers short, then the other way round.  Each answer must be what the
same request gives when nobody changes anything, token for token; every block must come home.
"""
import os
import random
import re

import pytest

from job import MODEL, Job
from service import LONG

pytestmark = pytest.mark.skipif(not os.path.exists(MODEL), reason="RANKSERVE_TEST_MODEL is not set")
FAST = {"RANKSERVE_NULL_STEP_US": "300", "RANKSERVE_NULL_TOKEN_US": "1"}
ROOM = ["--kv-cache-memory-bytes", "8G"]      # the null backend stores nothing
SLOW = {"RANKSERVE_NULL_STEP_US": "8000", "RANKSERVE_NULL_TOKEN_US": "150"}


def asks(count, seed, prompt, output):
    r = random.Random(seed)
    return [dict(ids=[r.randrange(3, 40000) for _ in range(prompt)], max_tokens=output, seed=i,
                 temperature=0.9 * (i % 2)) for i in range(count)]


LOADS = {"prompts": asks(12, 1, 1500, 4), "answers": asks(24, 2, 20, 150),
         "long": asks(6, 3, 20, 600)}


def said(answer):
    assert answer.ends == 1 and answer.output_tokens == len(answer.ids)
    return answer.code, answer.finish, answer.ids, answer.positions


@pytest.fixture(scope="module")
def undisturbed():
    with Job(both=1, env=FAST) as job:
        c = job.client()
        return {name: [said(a) for a in c.wait([c.request(**a) for a in load], 60)]
                for name, load in LOADS.items()}


def start(client, name, salt=0):
    """With another salt nothing of it is cached."""
    return name, [client.request(salt=salt, **a) for a in LOADS[name]]


def check(client, undisturbed, *loads):
    for name, streams in loads:
        assert [said(a) for a in client.wait(streams, 90)] == undisturbed[name], name


def press(job, client, name, text, waiting=20):
    """So many of these requests are kept waiting until the log has a line about a role with this
    text: the line, its worker, and the loads that were started."""
    found, loads = [], []

    def seen():
        found[:] = re.findall(f"role worker=.*{text}.*", job.log())
        left = sum(not client.answers[s].done() for _, streams in loads for s in streams)
        if not found and left < waiting:
            loads.append(start(client, name, 1 + len(loads)))
        return found
    assert client.until(seen, 60), "\n".join(re.findall(".* role .*", job.log()))
    return found[0], int(re.search(r"worker=(\d+)", found[0]).group(1)), loads


def roles(client):
    client.state = None
    assert client.until(lambda: client.state)
    return tuple(client.state[f"workers_{name}"] for name in ("prefill", "decode", "both", "spare"))


def test_roles_follow_the_mix(undisturbed):
    with Job("--pd-role-switch-interval", "1500ms", "--max-num-seqs", 16, *ROOM, prefill=2,
             decode=2, env=SLOW) as job:
        c = job.client()
        assert roles(c) == (2, 2, 0, 0)
        _, worker, loads = press(job, c, "prompts", "from=decode to=prefill")
        assert job.wait_log(f"rank={worker} role from=decode to=prefill")
        assert c.until(lambda: c.state["role_switches"] >= 1)
        check(c, undisturbed, *loads)
        _, _, loads = press(job, c, "answers", "from=prefill to=decode", waiting=40)
        check(c, undisturbed, *loads)
        assert c.home(20) and c.state["index_mismatches"] == 0
        assert c.state["role_switches"] >= 2 and sum(roles(c)) == c.state["workers_alive"]


def test_what_lasts_longer_than_the_drain_goes_on_elsewhere(undisturbed):
    with Job("--pd-role-switch-interval", "1s", "--policy", "load-based", *ROOM, prefill=1, decode=2,
             env=SLOW) as job:
        c = job.client()
        long = start(c, "long")
        c.pump(0.5)
        line, _, loads = press(job, c, "prompts", "from=decode to=prefill")
        assert int(re.search(r"resumed=(\d+)", line).group(1)) > 0
        check(c, undisturbed, long, *loads)
        assert c.home(20) and (c.state["requests_replaced"] == 0 or c.state["workers_lost"])


@pytest.mark.parametrize("own", [True, False] if LONG else [True])
def test_a_worker_that_dies_while_it_is_drained_costs_no_token(undisturbed, own):
    with Job("--pd-role-switch-interval", "2500ms", "--policy", "load-based", *ROOM, prefill=2,
             decode=2, env=SLOW) as job:
        c = job.client()
        long = start(c, "long")
        c.pump(0.5)
        _, worker, loads = press(job, c, "prompts", "drains=decode for=prefill")
        job.kill(worker if own else 1)
        check(c, undisturbed, long, *loads)
        assert c.home(20) and c.state["workers_lost"] >= 1
        if not own:
            assert job.wait_log(f"role worker={worker} (stays=decode|from=decode)")


@pytest.mark.skipif(not LONG, reason="the scheduler's own test has it")
def test_roles_stay_when_they_are_told_to():
    with Job("--no-enable-pd-role-switch", "--pd-role-switch-interval", "300ms", prefill=2,
             decode=2, env=SLOW) as job:
        c = job.client()
        for salt in range(4):
            start(c, "prompts", salt)
        c.pump(2)
        assert roles(c) == (2, 2, 0, 0) and "role worker=" not in job.log()
