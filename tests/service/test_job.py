"""tests/service/test_job.py - the MPI job by itself: rank 0, workers, transfers, deaths, ends.

Most tests use the null backend: real messages, real block counts, no arithmetic.
"""
import ctypes
import os
import platform
import random
import re
import shutil
import signal
import struct
import subprocess
import threading
import time

import pytest

import job as job_module
import link_client as link
from job import MODEL, Job
from service import LONG, PATIENCE

pytestmark = pytest.mark.skipif(not os.path.exists(MODEL), reason="RANKSERVE_TEST_MODEL is not set")
SHAPES = [dict(both=1), dict(prefill=1, decode=1), dict(prefill=2, decode=2)]
FAST = {"RANKSERVE_NULL_STEP_US": "500", "RANKSERVE_NULL_TOKEN_US": "5"}
SLOW = {"RANKSERVE_NULL_STEP_US": "20000", "RANKSERVE_NULL_TOKEN_US": "200"}


def prompt(seed, length):
    r = random.Random(seed)
    return [r.randrange(3, 40000) for _ in range(length)]


def lost_how(job, rank, signal_number):
    """Kills; how rank 0 came to know, as it says itself."""
    job.kill(rank, signal_number)
    line = job.wait_log(f"lost worker={rank} ", 10)
    assert line, job.log()
    return re.search(r'how="([^"]*)"', line).group(1)


def answers(backend, shape, options=(), env=None, count=8):
    """Ids of greedy and seeded requests, alone and together."""
    with Job(*options, backend=backend, env=env, **shape) as job:
        c = job.client()
        lengths = [1, 2, 15, 16, 17, 90, 150, 33][:count]
        streams = [c.request(prompt(i, n), max_tokens=10, temperature=0.9 * (i % 2), seed=i,
                             top_p=0.9 if i % 2 else 1.0) for i, n in enumerate(lengths)]
        got = [a.ids for a in c.wait(streams, 40)]
        for i, n in enumerate(lengths[:3]):
            again = c.generate(prompt(i, n), max_tokens=10, temperature=0.9 * (i % 2), seed=i,
                               top_p=0.9 if i % 2 else 1.0)
            assert again.ids == got[i]
        assert c.home()
        assert all(len(ids) == 10 for ids in got)
        return got


def test_the_same_ids_in_every_shape_without_arithmetic():
    want = answers("null", SHAPES[0], env=FAST)
    for shape in SHAPES[1:]:
        assert answers("null", shape, env=FAST) == want
    assert answers("null", SHAPES[1], ["--max-num-batched-tokens", 32, "--max-num-seqs", 16], env=FAST) == want


def test_the_same_ids_in_every_shape_with_the_real_model():
    want = answers("cpu", SHAPES[0])
    for shape in SHAPES[1:]:
        assert answers("cpu", shape) == want
    assert answers("cpu", SHAPES[1], ["--max-num-batched-tokens", 32, "--max-num-seqs", 16]) == want
    assert answers("cpu", SHAPES[0], ["--max-num-batched-tokens", 48, "--max-num-seqs", 16]) == want


@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_cancelled_in_any_state_frees_everything(shape):
    with Job(**shape, env=SLOW) as job:
        c = job.client()
        streams = []
        for wait in (0, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4):
            s = c.request(prompt(int(wait * 1000), 300), max_tokens=500)
            c.pump(wait)
            c.cancel(s)
            streams.append(s)
        for a in c.wait(streams):
            assert a.code == link.CANCELLED and a.ends == 1
        assert c.home()


def test_a_storm_of_requests_and_cancels_is_answered_exactly_once():
    r = random.Random(5)
    with Job(prefill=2, decode=2, env=FAST) as job:
        c, streams, cancelled = job.client(), [], set()
        for i in range(200):
            s = c.request(prompt(i, r.randrange(1, 400)), max_tokens=r.randrange(1, 40),
                          temperature=r.choice([0, 1]), seed=i)
            streams.append(s)
            c.pump(r.choice([0, 0, 0.002]))
            if r.random() < 0.4:
                victim = r.choice(streams)
                c.cancel(victim)
                cancelled.add(victim)
        for s, a in zip(streams, c.wait(streams, 40)):
            assert a.code == link.OK or (s in cancelled and a.code == link.CANCELLED)
        assert c.home()
        c.pump(0.2)
        assert all(c.answers[s].ends == 1 for s in streams)


def test_cancels_that_come_in_one_go_with_their_requests_are_not_lost():
    with Job(both=1, env=SLOW) as job:
        c, frames = job.client(), []
        c.frame = lambda kind, stream, body=b"": frames.append(link.HEAD.pack(
            link.MAGIC, link.VERSION, kind, link.HEAD.size + len(body), 0, stream) + body)
        streams = [c.request([5, 6, 7], max_tokens=300) for _ in range(300)]
        for s in streams:
            c.cancel(s)
        job.kill(0, signal.SIGSTOP)
        sender = threading.Thread(target=c.sock.sendall, args=(b"".join(frames),))
        sender.start()
        time.sleep(0.1)
        job.kill(0, signal.SIGCONT)
        sender.join()
        assert all(a.code == link.CANCELLED for a in c.wait(streams))
        assert c.home()


def test_a_decode_rank_that_is_full_costs_no_answer_and_is_not_asked_in_vain():
    # Sequences that grow are charged as they grow; before that the first would not fit 250 times.
    with Job("--kv-cache-memory-bytes", 24 << 20, "--max-model-len", 1024, prefill=1, decode=1,
             env=FAST) as job:
        c = job.client()
        streams = [c.request(prompt(i, 16), max_tokens=900) for i in range(8)]
        assert c.until(lambda: min(len(c.answers[s].ids) for s in streams) > 120)
        for i in range(6):
            job.kill(2, signal.SIGSTOP)
            s = c.request(prompt(50 + i, 290), max_tokens=2 + i % 3, seed=i)
            c.until(lambda s=s: c.answers[s].ids, 0.3)
            job.kill(2, signal.SIGCONT)
            streams.append(s)
            c.pump(0.05)
        for s, a in zip(streams, c.wait(streams, 40)):
            assert a.code == link.OK and a.finish == "length"
        assert [len(c.answers[s].ids) for s in streams] == [900] * 8 + [2, 3, 4] * 2
        assert c.home()
        assert c.state["requests_no_room"] == job.log().count("refused req") <= 8


def test_a_decode_rank_that_has_no_room_after_all_costs_a_retry_and_no_answer():
    # What is cancelled says GONE at once, and gives its blocks back when its step is over.
    env = dict(RANKSERVE_NULL_STEP_US="120000", RANKSERVE_NULL_TOKEN_US="5")
    with Job("--kv-cache-memory-bytes", 24 << 20, "--max-model-len", 1024, prefill=1, decode=1,
             env=env) as job:
        c = job.client()
        for i in range(4):
            first = c.request(prompt(i, 700), max_tokens=200)
            assert c.until(lambda: len(c.answers[first].ids) >= 3)
            c.cancel(first)
            second = c.generate(prompt(50 + i, 700), max_tokens=3)
            assert second.code == link.OK and len(second.ids) == 3
            assert c.wait([first])[0].code == link.CANCELLED
        assert c.home()
        assert c.state["requests_no_room"] == job.log().count("refused req") >= 1


def test_a_decode_rank_that_never_says_ready_costs_an_attempt_and_no_answer():
    ids = prompt(7, 90)
    with Job(both=1, env=FAST) as job:
        want = job.client().generate(ids, max_tokens=10).ids
    with Job(prefill=1, decode=1, env=dict(FAST, RANKSERVE_FAKE_NO_READY="300")) as job:
        c = job.client()
        a = c.generate(ids, max_tokens=10, timeout=15)
        assert a.code == 0 and a.ids == want
        assert job.wait_log("no READY in 0.3 s")
        assert c.home()


def test_a_gateway_that_leaves_frees_everything():
    with Job(prefill=1, decode=1, env=SLOW) as job:
        stays, leaves = job.client(), job.client()
        for i in range(10):
            leaves.request(prompt(i, 200), max_tokens=1000)
        stays.pump(0.3)
        leaves.close()
        assert stays.home()
        assert stays.generate(prompt(1, 5), max_tokens=3).code == link.OK


@pytest.mark.parametrize("victim", [1, 3])
def test_a_killed_worker_is_noticed_at_once_and_the_others_continue(victim):
    with Job(prefill=2, decode=2, env=SLOW) as job:
        c = job.client()
        streams = [c.request(prompt(i, 300), max_tokens=60) for i in range(12)]
        c.pump(0.3)
        assert lost_how(job, victim, signal.SIGKILL) == "its connection ended"
        assert all(a.code == link.OK for a in c.wait(streams))
        later = c.wait([c.request(prompt(i, 50), max_tokens=5) for i in range(6)])
        assert all(a.code == link.OK for a in later)
        assert c.home()
        assert c.state["workers_lost"] == 1 and c.state["workers_alive"] == 3


def test_a_stopped_worker_is_noticed_by_its_silence_and_leaves_when_it_wakes():
    with Job(prefill=1, decode=2, env=SLOW) as job:
        c = job.client()
        stream = c.request(prompt(1, 100), max_tokens=400)
        c.pump(0.2)
        pid = job.pids()[2]
        assert lost_how(job, 2, signal.SIGSTOP) == "silent"
        os.kill(pid, signal.SIGCONT)
        c.cancel(stream)
        assert c.wait([stream])[0].code == link.CANCELLED
        assert c.generate(prompt(2, 30), max_tokens=4).code == link.OK
        end = time.monotonic() + 3
        while 2 in job.pids() and time.monotonic() < end:
            time.sleep(0.02)
        assert 2 not in job.pids()


def ration(pid, runtime_us, period_us):
    """Gives each thread of a process so much of a processor in each period, and no more: SCHED_DEADLINE.
    A thread that has used it up can run, but does not.  (0, 0): as it was."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        policy, flags = (6, 1) if runtime_us else (0, 0)    # its children have none of it
        attributes = struct.pack("=IIQiIQQQ", 48, policy, flags, 0, 0, runtime_us * 1000,
                                 period_us * 1000, period_us * 1000)
        if ctypes.CDLL(None, use_errno=True).syscall(314, int(thread), attributes, 0) != 0:
            pytest.skip(f"sched_setattr: {os.strerror(ctypes.get_errno())}")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the system call's number")
def test_a_starved_worker_is_not_taken_for_hung():
    with Job(both=2, env=SLOW) as job:
        c = job.client()
        pid = job.pids()[1]
        ration(pid, 100, 4000000)
        c.pump(2.5)
        assert "lost worker" not in job.log()
        ration(pid, 0, 0)
        assert c.generate(prompt(2, 30), max_tokens=4).code == link.OK
        assert "lost worker" not in job.log()


def test_a_rank_0_that_was_stopped_declares_nobody_dead():
    with Job(prefill=1, decode=1, env=FAST) as job:
        c = job.client()
        pid = job.pids()[0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.6)
        os.kill(pid, signal.SIGCONT)
        assert c.generate(prompt(2, 30), max_tokens=4).code == link.OK
        c.pump(1.2)
        assert "lost worker" not in job.log()


def test_when_rank_0_dies_all_workers_leave():
    with Job(prefill=1, decode=1) as job:
        job.kill(0)
        assert job.ended(2)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_dies_during_start_ends_the_job(victim):
    with Job(prefill=1, decode=1, backend="cpu", live=False) as job:
        end, packing = time.monotonic() + 20, False
        while not packing and time.monotonic() < end:
            pid = job.pids().get(victim)
            try:
                packing = pid and "rankserve-packed" in open(f"/proc/{pid}/maps").read()
            except OSError:
                pass
        job.kill(victim)
        assert job.ended(3), job.log()
        if victim:
            assert job.status() == {"code": 1, "why": "rank 2 died during start"}


def test_an_idle_job_sleeps():
    with Job(both=2) as job:
        c = job.client()
        c.pump(1.2)
        first, pids = c.state, job.pids()
        begin = [sum(map(int, open(f"/proc/{p}/stat").read().split()[13:15])) for p in pids.values()]
        c.pump(4)
        seconds = (c.state["uptime_ns"] - first["uptime_ns"]) / 1e9
        used = [sum(map(int, open(f"/proc/{p}/stat").read().split()[13:15])) for p in pids.values()]
        assert (c.state["wakeups"] - first["wakeups"]) / seconds <= 100
        ticks = sum(used) - sum(begin)
        assert ticks / os.sysconf("SC_CLK_TCK") / seconds < 0.02  # coarse clock; the bench is exact


def test_a_drain_serves_what_was_accepted_and_ends_clean():
    with Job(prefill=1, decode=1, env=SLOW) as job:
        c = job.client()
        streams = [c.request(prompt(i, 50), max_tokens=20) for i in range(3)]
        c.pump(0.1)
        job.drain()
        assert c.until(lambda: c.state["state"] == 3, 3)
        late = c.request(prompt(9, 5))
        assert [a.code for a in c.wait(streams)] == [link.OK] * 3
        assert c.answers[late].code == link.REFUSED_STATE
        assert job.status() == {"code": 0, "why": "drained"}
        assert job.ended()
        assert job.process.wait(5) == 0


def test_gateways_see_the_end_though_the_ranks_take_long_to_leave():
    with Job(both=1, env=FAST) as job:
        c = job.client()
        job.kill(1, signal.SIGSTOP)
        job.drain()
        c.until(lambda: c.closed, 2.5)
        assert c.closed and job.pids()


def test_too_few_or_too_many_ranks_are_told_in_one_line():
    for ranks in (1, 2, 4):
        with Job(prefill=1, decode=1, ranks=ranks, live=False) as job:
            assert job.ended_by_itself(8)
            assert len(re.findall("^rankserve: ranks: ", job.log(), re.M)) == 1, job.log()
            assert job.status()["code"] == 1


def test_a_bad_model_is_told_in_one_line(tmp_path):
    cut = tmp_path / "cut.gguf"
    with open(MODEL, "rb") as f:
        cut.write_bytes(f.read(300000))
    for path in (str(tmp_path / "absent.gguf"), str(cut), "/dev/null", str(tmp_path)):
        with Job(both=2, model=path, live=False) as job:
            assert job.ended_by_itself(8)
            lines = re.findall("^rankserve: .*", job.log(), re.M)
            assert len(lines) == 1, job.log()
            assert job.status()["code"] == 1


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_an_unknown_instruction_set_is_told_in_one_line(shape):
    with Job(backend="cpu", env={"RANKSERVE_ISA": "nonsense"}, live=False, **shape) as job:
        assert job.ended_by_itself(8)
        lines = re.findall("^rankserve: .*", job.log(), re.M)
        assert lines == ["rankserve: RANKSERVE_ISA is 'nonsense': it must be plain, avx2, avx512 or avx512_bf16"]
        assert job.status()["code"] == 1 and "nonsense" in job.status()["why"]


def test_more_memory_than_the_host_has_is_told_in_one_line():
    with Job("--kv-cache-memory-bytes", "8TiB", "--max-model-len", 1000, backend="cpu", both=1,
             live=False) as job:
        assert job.ended_by_itself(8)
        assert job.log().count("kv-cache-memory-bytes is 8796093022208") == 1, job.log()
        assert job.status()["code"] == 1 and "memory" in job.status()["why"]


@pytest.mark.skipif(PATIENCE > 2, reason="the address sanitizer takes more address space than any")
def test_memory_that_cannot_be_had_is_told_in_one_line():
    limit = ("bash", "-c", 'ulimit -v 4000000; exec "$@"', "limited")
    with Job("--kv-cache-memory-bytes", "4GiB", "--max-model-len", 1000, backend="cpu", both=1,
             live=False, wrap=limit) as job:
        assert job.ended_by_itself(8)
        assert len(re.findall("KV cache of .* Cannot allocate memory", job.log())) == 1, job.log()
        assert job.status()["code"] == 1 and "KV cache" in job.status()["why"]


def test_a_pool_too_small_for_the_model_is_told_by_the_worker_that_found_out():
    with Job("--kv-cache-memory-bytes", "16MiB", "--max-model-len", 8192, prefill=1, decode=1,
             live=False) as job:
        assert "KV" in job.status(8)["why"] and job.status()["code"] == 1
        assert job.ended(5)


def test_a_bad_secret_file_is_told_in_one_line():
    with Job(both=1, secret="short", live=False) as job:
        assert job.ended_by_itself(8)
        assert len(re.findall("^rankserve: secret file ", job.log(), re.M)) == 1, job.log()


def test_a_port_in_use_is_told(tmp_path):
    with Job(both=1) as first:
        with Job("--link", first.link, both=1, live=False) as second:
            assert second.ended_by_itself(8)
            assert "cannot listen" in second.log()
            assert "cannot listen" in second.status()["why"]
        assert first.client().generate([1, 2, 3], max_tokens=2).code == link.OK


def test_a_gateway_with_a_wrong_secret_or_a_wrong_protocol_is_closed():
    with Job(both=1) as job:
        with pytest.raises(ConnectionError):
            link.Client(job.link, os.urandom(32))
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4000), b"\0" * 100):
            stranger = link.socket.socket(link.socket.AF_UNIX)
            stranger.settimeout(8)
            stranger.connect(job.link)
            stranger.sendall(garbage)
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
            stranger.close()
        c = job.client()
        assert c.job_is_real
        broken = job.client()
        broken.frame(link.TOKENS, 1, b"\0" * 8)
        assert not broken.until(lambda: False, 2) and broken.closed
        assert c.generate([1, 2, 3], max_tokens=2).code == link.OK


def test_requests_that_can_not_be_served_are_refused_one_by_one():
    with Job("--max-model-len", 256, "--max-queue", 4, "--max-num-seqs", 2, env=SLOW) as job:
        c = job.client()
        assert c.welcome["max_model_len"] == 256
        assert c.generate(prompt(1, 256)).code == link.REFUSED_LENGTH
        assert c.generate([1, 1 << 30]).code == link.BAD_REQUEST
        long = c.generate(prompt(1, 200), max_tokens=4000)
        assert (long.code, long.finish, len(long.ids)) == (link.OK, "length", 56)
        streams = [c.request(prompt(i, 20), max_tokens=30) for i in range(20)]
        codes = [a.code for a in c.wait(streams)]
        assert set(codes) == {link.OK, link.REFUSED_FULL}
        assert c.generate(prompt(3, 20), timeout_ms=86400001).code == link.BAD_REQUEST
        assert c.generate(prompt(3, 20), timeout_ms=(1 << 64) - 1).code == link.BAD_REQUEST
        assert c.generate(prompt(3, 20), timeout_ms=86400000).code == link.OK
        late = c.generate(prompt(3, 20), max_tokens=200, timeout_ms=300)
        assert late.code == link.TIMEOUT
        assert c.home()


def test_scores_of_the_prompt_and_alternatives_reach_the_gateway():
    with Job(prefill=1, decode=1, env=FAST) as job:
        c = job.client()
        a = c.generate(prompt(1, 40), max_tokens=5, top_count=3, prompt_top_count=2,
                       flags=link.LOGPROBS | link.PROMPT_LOGPROBS)
        assert [s[0] for s in a.scores] == list(range(1, 40))
        assert [s[1] for s in a.scores] == prompt(1, 40)[1:]
        assert len(a.ids) == 5


@pytest.mark.skipif(not LONG, reason="long suite")
def test_a_gateway_may_read_late_but_not_never():
    # Scores and alternatives of 6,000 tokens are 1 MB: 24 MB wait for one, more than 64 for the other.
    ask = {"max_tokens": 2, "prompt_top_count": 20, "flags": link.LOGPROBS | link.PROMPT_LOGPROBS}
    with Job("--max-model-len", 8192, both=1, env=FAST) as job:
        late, never, other = job.client(), job.client(), job.client()
        streams = [late.request(prompt(i, 6000), **ask) for i in range(22)]
        assert other.until(lambda: job.log().count("finished req=") == len(streams), 30)
        for i, a in enumerate(late.wait(streams, 30)):
            assert a.code == link.OK and len(a.ids) == 2
            assert [(s[0], s[1]) for s in a.scores] == list(enumerate(prompt(i, 6000)))[1:]
        for i in range(90):
            never.request(prompt(i, 6000), **ask)
        assert job.wait_log("gateway=. reads too slowly: disconnected", 60)
        assert other.generate(prompt(1, 40), max_tokens=4).code == link.OK
        assert other.home()


def test_every_rank_as_a_host_of_its_own_gives_the_same():
    want = answers("null", SHAPES[0], env=FAST, count=4)
    env = dict(FAST, RANKSERVE_FAKE_HOSTS="1")
    assert answers("null", SHAPES[1], env=env, count=4) == want


ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def has_pid_namespaces():
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_pid_namespaces(), reason="needs PID namespaces")
def test_ranks_with_pid_namespaces_of_their_own_share_no_memory_and_serve(tmp_path, monkeypatch):
    program = tmp_path / "rank"  # each finds itself where it looks for another: all are number 1
    program.write_text(f'#!/bin/sh\nexec {" ".join(ALONE)} {job_module.PROGRAM} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(job_module, "PROGRAM", str(program))
    with Job(prefill=1, decode=1, env=FAST, network=("--mca", "btl", "self,tcp")) as job:
        c = job.client()
        for i in range(3):
            assert len(c.generate(prompt(i, 150), max_tokens=5).ids) == 5
        assert c.home()
        assert "breaks the protocol" not in job.log()


NO_OUTBOX = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_outbox(void *at)
{
    char line[512];
    unsigned long from, to;
    int found = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && !found && fgets(line, sizeof line, f))
        found = sscanf(line, "%lx-%lx", &from, &to) == 2 && (uintptr_t)at >= from
                && (uintptr_t)at < to && strstr(line, "rankserve-outbox");
    if (f) fclose(f);
    return found;
}

int madvise(void *at, size_t bytes, int advice)
{
    if (advice == 23 && is_outbox(at)) { /* MADV_POPULATE_WRITE */
        fprintf(stderr, "no memory for an outbox\n");
        errno = EFAULT;
        return -1;
    }
    return (int)syscall(SYS_madvise, at, bytes, advice);
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_ranks_whose_host_has_no_memory_for_an_outbox_send_over_mpi(tmp_path):
    (tmp_path / "shim.c").write_text(NO_OUTBOX)
    shim = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c"], check=True)
    env = dict(FAST, LD_PRELOAD=str(shim),                # where sanitizers want to be first
               ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0")
    with Job(prefill=1, decode=1, env=env) as job:
        c = job.client()
        for i in range(3):
            assert len(c.generate(prompt(i, 150), max_tokens=5).ids) == 5
        assert job.log().count("no memory for an outbox") == 2
        assert c.home()


def test_help_is_printed_once():
    out = subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "3",
                          os.environ.get("RANKSERVE_PROGRAM", "build/rankserve"), "--help"],
                         capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    assert out.returncode == 0 and out.stdout.count("usage: ") == 1
