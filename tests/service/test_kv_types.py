"""tests/service/test_kv_types.py - --kv-cache-dtype through whole services.

Each type: the same tokens aggregated, in batches and from prefill to decode ranks; 8-bit types hold
nearly twice the blocks in the same memory; what cannot be is refused in one line.
"""
import concurrent.futures
import re
import subprocess

import pytest

from service import CTL, LONG, MODEL, Service, goldens

TYPES = ["int8", "fp8"] + (["f32", "auto"] if LONG else [])
MEMORY = 64 << 20


def requests():
    text = [i for case in goldens() for i in case["ids"]]
    lengths = [1, 16, 33, 255, 257, 600]
    return [{"prompt": text[n * 90:n * 90 + length], "max_tokens": 12, "ignore_eos": True,
             "return_token_ids": True, "seed": n, "temperature": n % 2}
            for n, length in enumerate(lengths)]


def run(service, body):
    r = service.complete(**body)
    return r["choices"][0]["token_ids"]


@pytest.mark.parametrize("kind", TYPES)
def test_the_same_tokens_wherever_they_are_computed(kind, needs_model):
    flags = ["--kv-cache-dtype", kind]
    with Service(*flags, "--kv-cache-memory-bytes", MEMORY) as s:
        alone = [run(s, b) for b in requests()]
        blocks = s.settle()["total"]
    # 30 layers x 16 tokens x 3 heads x (key and value of 64 elements, and their scales)
    element, scale = {"f32": (4, 0), "auto": (2, 0)}.get(kind, (1, 4))
    assert blocks == MEMORY // (30 * 16 * 3 * 2 * (64 * element + scale))
    with Service(*flags, "--prefill", 1, "--decode", 1, "--max-num-seqs", 8,
                 "--max-num-batched-tokens", 100) as s:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda b: run(s, b), requests())) == alone
        s.settle()


def refusal(*flags):
    r = subprocess.run([CTL, "up", "--model", MODEL, "--listen", "127.0.0.1:0", *map(str, flags)],
                       capture_output=True, text=True, timeout=60)
    assert r.returncode != 0 and "ready" not in r.stdout
    log = re.compile(r"starting |\d{4}-")
    return [line for line in r.stderr.splitlines() if not log.match(line)]


def test_an_unknown_type_is_refused(needs_model):
    (said,) = refusal("--kv-cache-dtype", "int4")
    assert "kv-cache-dtype" in said and "int8" in said and "int4" in said


@pytest.mark.parametrize("flags", [["--max-model-len", 2000], ["--block-size", 256]],
                         ids=["a sequence", "a block"])
def test_a_pool_too_small_says_what_would_do(flags, needs_model):
    flags = [*flags, "--kv-cache-dtype", "int8", "--kv-cache-memory-bytes"]
    (said,) = refusal(*flags, "1MiB")
    enough = int(re.search(r"at least (\d+)", said).group(1))
    (said,) = refusal(*flags, enough - 1)
    assert f"at least {enough}" in said
    with Service(*flags, enough) as s:
        assert len(run(s, requests()[1])) == 12
        s.settle()
