"""tests/service/test_kills.py - kill -9 of a random worker at a random moment, under load.

A whole service with four workers, four clients that stream.  Every answer must be the one of an
undisturbed service: ids, text, probabilities, finish, usage.  When too few workers are left, the
service is stopped and another one started.  The pauses are printed; they decide nothing.

On a machine that is far too busy a worker may be silent for so long that rank 0 takes it for hung.
That is one more loss like any other, unless with the kills it leaves nobody: such a service and its
kills do not count.
"""
import concurrent.futures
import json
import os
import random
import re
import signal
import statistics
import subprocess
import threading
import time

import httpx

from service import LONG, PATIENCE, Service, goldens

KILLS = int(os.environ.get("RANKSERVE_TEST_KILLS", 102 if LONG else 8))
STREAMS = 4
ROLES = [["--prefill", 2, "--decode", 2], ["--prefill", 1, "--decode", 3],
         ["--prefill", 1, "--decode", 2, "--both", 1], ["--both", 4]]


def bodies():
    """Greedy and seeded; stop strings, penalties, probabilities."""
    draw = random.Random(77)
    text = [i for case in goldens() for i in case["ids"]]
    out = []
    for n in range(24 if LONG else 10):
        length = draw.choice([1, 17, 64, 150, 300])
        start = draw.randrange(len(text) - length)
        body = {"prompt": text[start:start + length], "max_tokens": draw.choice([16, 32, 64]),
                "ignore_eos": n % 3 != 0, "return_token_ids": True, "seed": n, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}}
        if n % 2:
            body.update(temperature=1.0, top_p=0.9, repetition_penalty=1.1,
                        frequency_penalty=0.2)
        if n % 4 == 2:
            body.update(logprobs=2)
        if n % 6 == 5:
            body.update(stop=[" the", "\n\n"])
        out.append(body)
    return out


def stream(service, body, times=None):
    """All that the client sees: (status, ids, text, probabilities, finish, counts)."""
    ids, text, probabilities, finish, counts = [], "", [], None, None
    with httpx.Client(base_url=service.url, timeout=120 * PATIENCE) as c:
        with c.stream("POST", "/v1/completions", json={"model": service.model(), **body}) as r:
            if r.status_code != 200:
                return r.status_code, r.read()
            last = None
            for line in r.iter_lines():
                if not line.startswith("data: "):
                    continue
                last = line
                if line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return "error", line
                if event.get("usage"):
                    counts = (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
                for choice in event["choices"]:
                    if times is not None:
                        times.append(time.time())
                    ids += choice["token_ids"]
                    text += choice["text"]
                    probabilities += flatten(choice.get("logprobs"))
                    finish = choice["finish_reason"] or finish
            assert last == "data: [DONE]"
    return 200, ids, text, probabilities, finish, counts


def flatten(logprobs):
    if not logprobs:
        return []
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]))


class Storm:
    """Four clients that stream against a service whose workers die."""

    def __init__(self, service, want, seed):
        self.service, self.want, self.over = service, want, threading.Event()
        self.times = [[] for _ in range(STREAMS)]
        self.wrong, self.answered, self.ranks = [], 0, set()
        self.threads = [threading.Thread(target=self.client, args=(i, seed)) for i in range(STREAMS)]
        for t in self.threads:
            t.start()

    def client(self, index, seed):
        draw = random.Random(seed * 100 + index)
        asks = bodies()
        while not self.over.is_set():
            n = draw.randrange(len(asks))
            try:
                got = stream(self.service, asks[n], self.times[index])
            except (httpx.HTTPError, AssertionError, KeyError) as e:
                got = ("client", repr(e))
            if got != self.want[n]:
                self.wrong.append((n, got, self.want[n]))
            self.answered += 1

    def moved(self, since):
        return all(t and t[-1] > since for t in self.times)

    def wait_moved(self, since):
        until = time.monotonic() + 60 * PATIENCE
        while not self.moved(since):
            assert time.monotonic() < until, "a stream does not go on"
            assert not self.wrong, self.wrong[0]
            time.sleep(0.02)

    def stop(self):
        self.over.set()
        for t in self.threads:
            t.join()

    def end(self):
        self.stop()
        assert not self.wrong, self.wrong[0]


def gaps(storm, at):
    """Of each stream: from the last token before the kill to the first after."""
    out = []
    for times in storm.times:
        before = [t for t in times if t <= at]
        after = [t for t in times if t > at]
        if before and after:
            out.append(after[0] - before[-1])
    return out


def stamp(line):
    found = re.search(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z", line)
    seconds = time.mktime(time.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S")) - time.timezone
    return seconds + int(found.group(2)) / 1000


def kill_one(storm, draw, living, how, report):
    service = storm.service
    pids = service.workers()
    for rank in [r for r in living if r not in pids]:       # starved, and taken for hung
        living.remove(rank)
        report["others"] += [line for line in service.lines if f"lost worker={rank} " in line]
    if len(living) < 2:
        return
    victim = living.pop(draw.randrange(len(living)))
    pid = pids[victim]
    at, lines = time.time(), len(service.lines)
    os.kill(pid, how)
    report["own"]["kills"] += 1
    storm.ranks.add(victim)
    storm.wait_moved(at)
    if how == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT if draw.randrange(2) else signal.SIGKILL)
    report["gap"] += gaps(storm, at)
    for line in service.lines[lines:]:
        if "placed" in line and "attempt=1 " not in line:
            report["placed"].append(stamp(line) - at)


def starved(service, storm):
    """The job ended because rank 0 took a busy worker for hung; no answer had a wrong token."""
    try:
        service.process.wait(20 * PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    service.stderr_thread.join(5)
    lost = {line.split("lost worker=")[1].split()[0] for line in service.lines
            if "lost worker=" in line and 'how="silent"' in line}
    print("starved:", sorted(lost), *service.lines[-4:], sep="\n  ")
    return (any("no worker is left" in line for line in service.lines)
            and lost - {str(r) for r in storm.ranks}
            and not any(got[0] == 200 for _, got, _ in storm.wrong))


def one_service(roles, want, kills, seed, report):
    draw, own = random.Random(seed), {"kills": 0}
    report["own"] = own
    with Service("--threads", 1, *roles) as service:
        storm = Storm(service, want, seed)
        try:
            storm.wait_moved(0)
            living = [1, 2, 3, 4]
            for _ in range(min(kills, 3)):
                time.sleep(draw.random() * 1.5)
                how = signal.SIGSTOP if draw.randrange(6) == 0 else signal.SIGKILL
                kill_one(storm, draw, living, how, report)
            storm.end()
        except AssertionError:
            storm.stop()
            if not starved(service, storm):
                raise
            report["starved"] += 1
            return
        service.settle(10)
        report["kills"] += own["kills"]
        report["answers"] += storm.answered
        m = service.metrics()
        report["replaced"] += int(m["llm_d_requests_replaced_total"])


def say(name, values):
    if values:
        values = sorted(values)
        print(f"{name}: {len(values)}, median {statistics.median(values):.3f} s, "
              f"p90 {values[len(values) * 9 // 10]:.3f} s, most {values[-1]:.3f} s")


def test_random_kills_cost_no_client_a_token(needs_model):
    report = {"kills": 0, "answers": 0, "replaced": 0, "gap": [], "placed": [],
              "others": [], "starved": 0}
    with Service("--threads", 1) as service:
        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            want = list(pool.map(lambda b: stream(service, b), bodies()))
    assert all(w[0] == 200 for w in want)
    try:
        for turn in range(1000):
            if report["kills"] >= KILLS:
                break
            print(turn, report["kills"], report["answers"], report["replaced"], flush=True)
            one_service(ROLES[turn % len(ROLES)], want, KILLS - report["kills"], 1 + turn, report)
    finally:
        print(f"kills {report['kills']}, answers {report['answers']}, replaced "
              f"{report['replaced']}, starved services {report['starved']}")
        print("lost otherwise:", *report["others"], sep="\n  ")
        say("from the kill until placed again", report["placed"])
        say("gap in a stream (with the recompute)", report["gap"])
