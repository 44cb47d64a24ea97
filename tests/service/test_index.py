"""tests/service/test_index.py - rank 0's index of a running job, keys of requests, and what they buy.

The index must be exact: every heartbeat compares it with the worker's own count and xor of its keys,
so `checks` that go on and `mismatches` that stay 0 are the workers' own word for it.
"""
import os
import random
import time

import pytest

import link_client as link
from job import Job
from service import PATIENCE, Service

FAST = {"RANKSERVE_NULL_STEP_US": "300", "RANKSERVE_NULL_TOKEN_US": "20"}
TOPIC = "You answer in short sentences, and you stay with what the user asked about. " * 6


def prompt(seed, count):
    r = random.Random(seed)
    return [r.randrange(5, 1000) for _ in range(count)]


def exact(metrics, before=0):
    """Checks were made since, and none failed."""
    return (metrics["llm_d_index_mismatches_total"] == 0
            and metrics["llm_d_index_checks_total"] > before)


def chat(service, messages, **more):
    r = service.post("/v1/chat/completions", model=service.model(), messages=messages,
                     temperature=0, max_tokens=48, **more)
    assert r.status_code == 200, r.text
    return r


def test_a_conversation_stays_where_it_is_cached_and_computes_only_what_is_new():
    with Service("--prefill", 2, "--decode", 2, "--threads", 1, "--debug-headers") as s:
        messages, seen, rank = [{"role": "system", "content": TOPIC}], 0, None
        for turn in range(6):
            messages.append({"role": "user", "content": f"Tell me fact number {turn} about cats."})
            r = chat(s, messages)
            usage, text = r.json()["usage"], r.json()["choices"][0]["message"]["content"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            if turn:
                assert cached >= (seen - 1) // 16 * 16, (turn, cached, seen)
                assert r.headers["x-rankserve-prefill"] == rank, "computed elsewhere"
                assert r.headers["x-rankserve-decode"] == rank, "left its cache"
            rank = r.headers["x-rankserve-decode"]
            # Of the reply the last token's KV is not there: it was never an input.
            seen = usage["total_tokens"] - 1
            messages.append({"role": "assistant", "content": text})
        s.settle()
        before = s.metrics()["llm_d_index_checks_total"]
        until = time.monotonic() + 10 * PATIENCE
        while not exact(s.metrics(), before + 8):
            assert s.metrics()["llm_d_index_mismatches_total"] == 0
            assert time.monotonic() < until
            time.sleep(0.1)
        m = s.metrics()
        assert m["llm_d_index_blocks"] > 0 and m["llm_d_prefix_reuse_ratio"] > 0.95
        assert m["llm_d_index_lookups_total"] >= 6


def test_two_conversations_at_once_do_not_pull_each_other_around():
    """Another load between two turns does not move a conversation off its cache."""
    with Service("--prefill", 1, "--decode", 1, "--threads", 1, "--debug-headers") as s:
        a = [{"role": "system", "content": TOPIC + "Speak of cats."}]
        b = [{"role": "system", "content": "Speak of dogs. " + TOPIC}]
        cached = []
        for turn in range(3):
            for m in (a, b):
                m.append({"role": "user", "content": f"Fact {turn}?"})
                r = chat(s, m).json()
                m.append({"role": "assistant", "content": r["choices"][0]["message"]["content"]})
                usage = r["usage"]
                cached.append((usage["prompt_tokens"],
                               usage["prompt_tokens_details"]["cached_tokens"]))
        assert all(got == 0 for _, got in cached[:1])
        assert all(got > 0.7 * asked for asked, got in cached[2:]), cached
        s.settle()


def test_keys_of_a_gateway_and_keys_made_by_rank_0_find_the_same():
    ids = prompt(1, 100)
    with Job(prefill=1, decode=1, env=FAST) as job:
        c = job.client()
        first = c.generate(ids, max_tokens=4)
        assert first.cached == 0
        for keys in ((), c.keys(ids), c.keys(ids)[:2]):
            again = c.generate(ids, max_tokens=4, keys=keys)
            assert again.ids == first.ids
            assert again.cached == 96
        assert c.home()
        c.state = None
        assert c.until(lambda: c.state and c.state["reuse_possible"])
        # Two keys show two blocks: what was found beyond them was not hoped for.
        assert c.state["reuse_possible"] == c.state["reuse_captured"] == 96 + 96 + 32


def test_keys_that_are_lies_change_no_answer():
    ids = prompt(2, 100)
    with Job(prefill=2, decode=2, env=FAST) as job:
        c = job.client()
        first = c.generate(ids, max_tokens=4)
        lies = [os.urandom(16) for _ in range(6)]
        others = c.keys(prompt(3, 100))
        c.generate(prompt(3, 100), max_tokens=4)
        for keys in (lies, others, c.keys(ids)[::-1]):
            assert c.generate(ids, max_tokens=4, keys=keys).ids == first.ids
        too_many = c.generate(ids, max_tokens=4, keys=c.keys(ids) + [bytes(16)])
        assert too_many.code == link.BAD_REQUEST
        assert c.home()


@pytest.mark.parametrize("shape", [dict(both=2), dict(prefill=2, decode=2)])
def test_a_storm_over_full_pools_leaves_the_index_exact(shape):
    """Pools of 64 blocks, prompts that share beginnings: everything is evicted again and again."""
    r, blocks = random.Random(4), 64
    token = 30 * 2 * 3 * 64 * 2       # the default model's KV of a token, in bytes
    with Job("--kv-cache-memory-bytes", blocks * 16 * token, **shape, env=FAST) as job:
        c, streams = job.client(), []
        roots = [prompt(i, 200) for i in range(6)]
        for i in range(300):
            ids = r.choice(roots)[:r.randrange(20, 200)] + prompt(100 + i, r.randrange(1, 60))
            streams.append(c.request(ids, max_tokens=r.randrange(1, 30)))
            c.pump(r.choice([0, 0, 0.004]))
            if r.random() < 0.2:
                c.cancel(r.choice(streams))
        c.wait(streams, 60)
        assert c.home()
        checks = c.state["index_checks"]
        assert c.until(lambda: c.state["index_checks"] > checks + 8, 10)
        assert c.state["index_mismatches"] == 0, job.log()[-2000:]
        assert 0 < c.state["index_blocks"] <= 4 * blocks
        assert "asking for its keys" not in job.log()


def test_a_lost_workers_entries_go_with_it():
    with Job(both=2, env=FAST) as job:
        c = job.client()
        c.wait([c.request(prompt(i, 160), max_tokens=2) for i in range(8)])
        held = {c.answers[s].decode for s in c.answers}
        assert held == {1, 2}, "both have worked"
        assert c.home()
        blocks = c.state["index_blocks"]
        job.kill(1)
        assert c.until(lambda: c.state["workers_alive"] == 1)
        for i in range(8):
            assert c.generate(prompt(i, 160), max_tokens=2).decode == 2
        c.state = None
        assert c.until(lambda: c.state and c.state["index_blocks"] == blocks)
        assert c.state["index_mismatches"] == 0
