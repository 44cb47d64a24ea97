"""tests/service/test_roles.py - workers change between prefill and decode while a job runs.

First prompts are long and answers short, then the other way round.  Each answer must be what the
same request gives when nobody changes anything, token for token; every block must come home.
"""
import os
import random
import re
import signal

import pytest

from job import MODEL, Job

pytestmark = pytest.mark.skipif(not os.path.exists(MODEL), reason="RANKSERVE_TEST_MODEL is not set")
FAST = {"RANKSERVE_NULL_STEP_US": "300", "RANKSERVE_NULL_TOKEN_US": "1"}
SLOW = {"RANKSERVE_NULL_STEP_US": "8000", "RANKSERVE_NULL_TOKEN_US": "150"}
PROMPTS, ANSWERS, LONG_ANSWERS = 26, 30, 6


def asks(count, seed, prompt, output):
    r = random.Random(seed)
    return [dict(ids=[r.randrange(3, 40000) for _ in range(prompt)], max_tokens=output, seed=i,
                 temperature=0.9 * (i % 2)) for i in range(count)]


LOADS = {"prompts": asks(PROMPTS, 1, 1500, 4), "answers": asks(ANSWERS, 2, 20, 150),
         "long": asks(LONG_ANSWERS, 3, 20, 400)}


def said(answer):
    assert answer.ends == 1 and answer.output_tokens == len(answer.ids)
    return answer.code, answer.finish, answer.ids, answer.positions


@pytest.fixture(scope="module")
def undisturbed():
    with Job(both=1, env=FAST) as job:
        c = job.client()
        return {name: [said(a) for a in c.wait([c.request(**a) for a in load], 60)]
                for name, load in LOADS.items()}


def start(client, name):
    return name, [client.request(**a) for a in LOADS[name]]


def check(client, undisturbed, *loads):
    for name, streams in loads:
        assert [said(a) for a in client.wait(streams, 90)] == undisturbed[name], name


def wait_role(job, client, text):
    """The first line of the log about a role with this in it, while answers come."""
    found = []

    def seen():
        found[:] = re.findall(f"role worker=.*{text}.*", job.log())
        return found
    assert client.until(seen, 60), job.log()[-3000:]
    return found[0], int(re.search(r"worker=(\d+)", found[0]).group(1))


def roles(client):
    client.state = None
    assert client.until(lambda: client.state)
    return tuple(client.state[f"workers_{name}"] for name in ("prefill", "decode", "both", "spare"))


def test_roles_follow_the_mix(undisturbed):
    with Job("--pd-role-switch-interval", "1500ms", "--max-num-seqs", 8, prefill=2, decode=2,
             env=SLOW) as job:
        c = job.client()
        assert roles(c) == (2, 2, 0, 0)
        first = start(c, "prompts")
        _, worker = wait_role(job, c, "from=decode to=prefill")
        assert re.search(f"rank={worker} role from=decode to=prefill", job.log())
        assert roles(c) == (3, 1, 0, 0) and c.state["role_switches"] == 1
        check(c, undisturbed, first)
        second = start(c, "answers")
        wait_role(job, c, "from=prefill to=decode")
        check(c, undisturbed, second)
        assert c.home() and c.state["workers_lost"] == c.state["index_mismatches"] == 0
        assert c.state["role_switches"] >= 2 and sum(roles(c)) == 4


def test_what_lasts_longer_than_the_drain_goes_on_elsewhere(undisturbed):
    with Job("--pd-role-switch-interval", "1s", "--policy", "load-based", prefill=1, decode=2,
             env=SLOW) as job:
        c = job.client()
        long = start(c, "long")
        c.pump(0.5)
        load = start(c, "prompts")
        line, _ = wait_role(job, c, "from=decode to=prefill")
        assert int(re.search(r"resumed=(\d+)", line).group(1)) > 0
        check(c, undisturbed, long, load)
        assert c.home() and c.state["requests_replaced"] == 0


@pytest.mark.parametrize("own", [True, False])
def test_a_worker_that_dies_while_it_is_drained_costs_no_token(undisturbed, own):
    with Job("--pd-role-switch-interval", "5s", "--policy", "load-based", prefill=2, decode=2,
             env=SLOW) as job:
        c = job.client()
        long = start(c, "long")
        c.pump(0.5)
        load = start(c, "prompts")
        _, worker = wait_role(job, c, "drains=decode for=prefill")
        job.kill(worker if own else 1, signal.SIGKILL)
        if not own:
            assert wait_role(job, c, "stays=decode")[1] == worker
        check(c, undisturbed, long, load)
        assert c.home() and c.state["workers_lost"] == 1
        assert roles(c)[1] == (1 if own else 2) or c.state["role_switches"]


def test_roles_stay_when_they_are_told_to():
    with Job("--no-enable-pd-role-switch", "--pd-role-switch-interval", "300ms", prefill=2,
             decode=2, env=SLOW) as job:
        c = job.client()
        start(c, "prompts")
        c.pump(2)
        assert roles(c) == (2, 2, 0, 0) and "role worker=" not in job.log()
