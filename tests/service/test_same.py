"""tests/service/test_same.py - the same request gives the same bits wherever and however it runs.

Random requests (greedy and seeded, 1 to 700 prompt tokens) are run alone on one worker; then alone and
in batches of 16 on other arrangements of ranks and other chunk sizes.  Token ids must be identical.
A subset here; all of them in the long run.
"""
import concurrent.futures
import random

import pytest

from service import LONG, Service, goldens

COUNT = 100 if LONG else 24
ARRANGEMENTS = [
    ("aggregated, small chunks", ["--max-num-batched-tokens", 48, "--max-num-seqs", 16]),
    ("1/1", ["--prefill", 1, "--decode", 1]),
    ("2/2, odd chunks", ["--prefill", 2, "--decode", 2, "--max-num-batched-tokens", 200]),
]
if LONG:
    ARRANGEMENTS += [
        ("1/1, one thread", ["--prefill", 1, "--decode", 1, "--threads", 1]),
        ("aggregated, no prefix cache", ["--no-enable-prefix-caching"]),
        ("2/1, long chunks", ["--prefill", 2, "--decode", 1, "--max-num-batched-tokens", 2048]),
        ("aggregated, tiny pool", ["--kv-cache-memory-bytes", "48MiB", "--max-model-len", 1024]),
    ]


def requests():
    draw = random.Random(20240501)
    text = [i for case in goldens() for i in case["ids"]]
    out = []
    for n in range(COUNT):
        length = draw.choice([1, 2, 15, 16, 17, 31, 32, 33, 100, 255, 256, 257, 700,
                              draw.randint(1, 700)])
        start = draw.randrange(len(text) - length)
        body = {"prompt": text[start:start + length], "max_tokens": draw.randint(1, 24),
                "ignore_eos": True, "return_token_ids": True, "seed": n}
        if n % 2:
            body.update(temperature=1.0, top_p=draw.choice([1.0, 0.9]),
                        top_k=draw.choice([-1, 40]), repetition_penalty=draw.choice([1.0, 1.1]))
        out.append(body)
    return out


def run(service, body):
    r = service.complete(**body)
    assert r["usage"]["completion_tokens"] == body["max_tokens"]
    return r["choices"][0]["token_ids"]


def run_batch(service, bodies, at_once):
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda b: run(service, b), bodies))


@pytest.fixture(scope="module")
def reference(needs_model):
    with Service("--no-enable-prefix-caching") as s:
        ids = [run(s, b) for b in requests()]
        s.settle()
    return ids


def test_a_batch_changes_nothing(reference, aggregated):
    assert run_batch(aggregated, requests(), 16) == reference
    aggregated.settle()


@pytest.mark.parametrize("flags", [a[1] for a in ARRANGEMENTS], ids=[a[0] for a in ARRANGEMENTS])
def test_other_arrangements_give_the_same_tokens(reference, flags):
    with Service(*flags) as s:
        assert run_batch(s, requests(), 16) == reference
        if LONG:
            assert [run(s, b) for b in requests()] == reference
        s.settle()
