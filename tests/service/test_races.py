"""tests/service/test_races.py - whole jobs of the thread sanitizer's build: no thread races another.

Only there (tests/run.sh, in the long run): elsewhere other tests do the same and more.  MPI's own
libraries are not instrumented, so what they alone touch is not looked at.
"""
import concurrent.futures
import glob

import pytest

import tiny_gguf
from service import BUILD, Service

ROLES = [["--prefill", 1, "--decode", 1], ["--both", 2]]


@pytest.mark.skipif(not BUILD.endswith("san-thread"), reason="for the thread sanitizer's build")
@pytest.mark.parametrize("roles", ROLES, ids=["1/1", "2"])
def test_a_whole_job_has_no_races(roles, tmp_path):
    model, reports = str(tmp_path / "tiny.gguf"), str(tmp_path / "races")
    tiny_gguf.write(model)
    options = f"log_path={reports} ignore_noninstrumented_modules=1 exitcode=0"

    def ask(service, n):
        prompt = [(7 * i + n) % 250 for i in range(60 + 20 * n)]
        return service.complete(prompt=prompt, max_tokens=24, seed=n, ignore_eos=True,
                                temperature=1.0 if n % 2 else 0)

    with Service("--threads", 2, "--kv-cache-memory-bytes", "4MiB", *roles, model=model,
                 env={"TSAN_OPTIONS": options}) as service:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n: ask(service, n), range(1, 17)))
        service.settle(20)
    assert all(a["usage"]["completion_tokens"] == 24 for a in answers)
    assert not glob.glob(reports + "*"), open(glob.glob(reports + "*")[0]).read()
