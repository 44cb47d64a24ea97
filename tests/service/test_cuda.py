"""tests/service/test_cuda.py - whole jobs with --backend cuda, in emulation (tests/cusim).

The library there takes the place of NVIDIA's; ranks are processes of a real MPI job.  What a GPU
would have to refuse is refused in one line; a lost device ends its rank and costs no token; a pair of
ranks answers as one does.  The default model is cut behind its first layers.
"""
import json
import os
import stat
import subprocess

import pytest

import job
from cut_model import cut
from service import Service

BUILD = os.path.abspath(os.environ.get("RANKSERVE_BUILD", "build"))
CUSIM = os.path.join(BUILD, "cusim")
MODEL = os.environ.get("RANKSERVE_TEST_MODEL", "")
WORDS = 2048                           # of the model for jobs without a gateway
FLAGS = ["--backend", "cuda", "--max-model-len", "128", "--kv-cache-memory-bytes", "32MiB",
         "--max-num-batched-tokens", "64", "--max-num-seqs", "8"]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(os.path.join(CUSIM, "libcusim.so")) or
                       not os.path.exists(os.path.join(BUILD, "rankserve-cuda.so")),
                       reason="no nvcc: neither the CUDA backend nor its emulator is built"),
    pytest.mark.skipif(not MODEL, reason="needs the default model"),
]


def emulated(**more):
    return {**os.environ, "LD_LIBRARY_PATH": CUSIM, "CUSIM_CHECK": "0", **more}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two layers with all words, and with few."""
    folder = tmp_path_factory.mktemp("models")
    whole, few = str(folder / "two-layers.gguf"), str(folder / "few-words.gguf")
    cut(MODEL, whole, layers=2)
    cut(MODEL, few, layers=2, words=WORDS)
    return whole, few


def start_fails(tmp_path, ranks, env):
    """Starts what cannot be; the line in the status file."""
    status = tmp_path / "status"
    words = ["mpirun", "--allow-run-as-root", "--oversubscribe"]
    for i, (count, flags) in enumerate(ranks):
        words += [":"] * (i > 0) + ["-np", str(count), os.path.join(BUILD, "rankserve"), *FLAGS,
                                    "--run-dir", str(tmp_path), "--link", str(tmp_path / "link"),
                                    "--status-file", str(status), *flags]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    why = json.loads(status.read_text())["why"]
    assert "\n" not in why
    assert [line for line in done.stderr.splitlines() if why in line], done.stderr
    return why


@pytest.mark.parametrize("fault, said", [
    ({"CUSIM_DEVICES": "0"}, "no usable GPU here"),
    ({"CUSIM_DEVICES": "1"}, "this host has 1 GPUs, and rank 1 of it has none"),
    ({"CUSIM_DEVICES": "none"}, "driver"),
    ({"CUSIM_MEMORY": "32m"}, "are left (gpu-memory-utilization"),
    ({"CUSIM_CC": "7.5"}, "8.0 is the least"),
    ({"CUSIM_CC": "8.0,9.0"}, "rank 1 has compute capability 8.0 and rank 2 9.0"),
])
def test_a_start_that_cannot_be_is_one_line_and_a_status_file(tmp_path, models, fault, said):
    assert said in start_fails(tmp_path, [(3, ["--both", "2", "--model", models[1]])],
                               emulated(**fault))


def test_ranks_with_different_models_do_not_start(tmp_path, models):
    ranks = [(2, ["--both", "2", "--model", models[1]]), (1, ["--both", "2", "--model", models[0]])]
    assert "rank 2 finds another file" in start_fails(tmp_path, ranks, emulated())


def test_a_gpu_is_one_rank(tmp_path, models):
    done = subprocess.run([os.path.join(BUILD, "rankserve"), "--backend", "cuda", "--model",
                           models[1], "--tensor-parallel-size", "2"], env=emulated(),
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "rankserve: --tensor-parallel-size 2 is not supported yet; only 1 is\n"


ASKS = [dict(ids=[(7 * i + k) % WORDS for k in range(5 + 9 * i)], seed=i, max_tokens=4, flags=1,
             temperature=0.8 * (i % 2)) for i in range(3)]


def ask_all(j):
    client = j.client()
    answers = client.wait([client.request(**a) for a in ASKS], 150)
    said = [(a.code, a.finish, a.ids) for a in answers]
    assert client.home()
    return said, client.state["workers_lost"]


@pytest.fixture(scope="module")
def undisturbed(models):
    with job.Job(*FLAGS, backend="cuda", model=models[1], both=1, env=emulated(),
                 limit_s=240) as j:
        said, _ = ask_all(j)
    assert all(len(s[2]) == 4 for s in said)
    return said


@pytest.mark.parametrize("fault, victim, roles", [
    ("ecc@25", 1, dict(both=2)), ("illegal@10", 2, dict(prefill=1, decode=2)),
    ("ecc@12", 1, dict(prefill=2, decode=1))])
def test_a_lost_device_ends_its_rank_and_no_answer(tmp_path, monkeypatch, models, undisturbed,
                                                   fault, victim, roles):
    wrapper = tmp_path / "rankserve"
    wrapper.write_text('#!/bin/bash\n[ "$OMPI_COMM_WORLD_RANK" = %d ] && export CUSIM_FAULT=%s\n'
                       'exec -a "$0" %s "$@"\n' % (victim, fault, job.PROGRAM))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(job, "PROGRAM", str(wrapper))
    with job.Job(*FLAGS, backend="cuda", model=models[1], env=emulated(), limit_s=240,
                 **roles) as j:
        said, lost = ask_all(j)
        assert said == undisturbed and lost >= 1 and victim not in j.pids()
        died = [line for line in j.log().splitlines() if " device=" in line]
        assert len(died) == 1 and f"rank={victim} device=" in died[0], died
        assert ("ECC" if "ecc" in fault else "illegal memory access") in died[0]


def test_long_prompts_go_through_cublas_when_asked(models):
    flags = [*FLAGS[:2], "--max-num-batched-tokens", "512", "--kv-cache-memory-bytes", "32MiB",
             "--max-model-len", "512", "--linear-backend", "cublas"]
    ids = [i % WORDS for i in range(300)]
    with job.Job(*flags, model=models[1], both=1, env=emulated(), limit_s=240) as j:
        got = j.client().generate(ids, 150, max_tokens=2)
        assert got.code == 0 and len(got.ids) == 2 and "linear_backend=cublas" in j.log()
        assert not j.wait_log(" lost: ", 0)


def answer(model, *flags):
    with Service(*FLAGS, *flags, model=model, env=emulated()) as service:
        reply = service.complete("The capital of France is", max_tokens=3, temperature=0)
        return reply["choices"][0]["text"]


def test_prefill_and_decode_ranks_answer_as_one_rank_does(models):
    one = answer(models[0], "--both", "1")
    assert answer(models[0], "--prefill", "1", "--decode", "1") == one != ""
