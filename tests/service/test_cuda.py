"""tests/service/test_cuda.py - whole jobs with --backend cuda, in emulation (tests/cusim).

The library there takes the place of NVIDIA's; ranks are processes of a real MPI job.  What a GPU
would have to refuse is refused in one line; a lost device ends its rank; a pair of ranks answers as
one does.
"""
import json
import os
import subprocess

import pytest

from service import Service

BUILD = os.path.abspath(os.environ.get("RANKSERVE_BUILD", "build"))
CUSIM = os.path.join(BUILD, "cusim")
MODEL = os.environ.get("RANKSERVE_TEST_MODEL", "")
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


@pytest.mark.parametrize("fault, said", [
    ({"CUSIM_DEVICES": "0"}, "no usable GPU here"),
    ({"CUSIM_DEVICES": "none"}, "driver"),
    ({"CUSIM_MEMORY": "100m"}, "are left (gpu-memory-utilization"),
    ({"CUSIM_CC": "7.5"}, "8.0 is the least"),
])
def test_a_start_that_cannot_be_is_one_line_and_a_status_file(tmp_path, fault, said):
    status = tmp_path / "status"
    done = subprocess.run(
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2",
         os.path.join(BUILD, "rankserve"), "--model", MODEL, "--both", "1", *FLAGS,
         "--run-dir", str(tmp_path), "--link", str(tmp_path / "link"),
         "--status-file", str(status)],
        env=emulated(**fault), capture_output=True, timeout=120, check=False)
    assert done.returncode != 0
    why = json.loads(status.read_text())["why"]
    assert said in why and "\n" not in why


def answer(*roles):
    with Service(*roles, *FLAGS, env=emulated()) as service:
        reply = service.complete("The capital of France is", max_tokens=3, temperature=0)
        return reply["choices"][0]["text"]


def test_prefill_and_decode_ranks_answer_as_one_rank_does():
    assert answer("--prefill", "1", "--decode", "1") == answer("--both", "1") != ""
