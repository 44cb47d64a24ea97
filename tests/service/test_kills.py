"""tests/service/test_kills.py - kill -9 of a random worker at a random moment, under load.

A whole service with four workers, four clients that stream.  Every answer must be the one of an
undisturbed service: ids, text, probabilities, finish, usage.  When too few workers are left, the
service is stopped and another one started.  The pauses are printed; they decide nothing.  One kill in
six is a SIGSTOP: a worker that hangs is noticed by its silence, and its pauses are told apart.

What is printed of each request that was placed again after a SIGKILL: its pause, from the kill to the
next token that its client saw, less the recompute.  That is told twice: as it was (from placed to the
token, on cores that four workers share), and as its tokens would take alone on an idle service.

On a machine that is far too busy a worker may be silent for so long that rank 0 takes it for hung.
That is one more loss like any other, unless with the kills it leaves nobody: such a service and its
kills do not count.
"""
import collections
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
FIRST = int(os.environ.get("RANKSERVE_TEST_SEED", 0))          # of the services' random choices
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


# When some came, how long their request's prompt is, how many came before them, how many they are.
Tokens = collections.namedtuple("Tokens", "at prompt index count")
Kill = collections.namedtuple("Kill", "at how rank")
# A request that was placed again: seconds from the kill to being noticed, placed, and its next token.
Again = collections.namedtuple("Again", "noticed placed token prompt emitted")


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
                        times.append(Tokens(time.time(), len(body["prompt"]), len(ids),
                                            len(choice["token_ids"])))
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
        self.wrong, self.answered, self.kills = [], 0, []
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
        return all(t and t[-1].at > since for t in self.times)

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
    kill = Kill(time.time(), how, victim)
    os.kill(pids[victim], how)
    storm.kills.append(kill)
    storm.wait_moved(kill.at)
    if how == signal.SIGSTOP:
        os.kill(pids[victim], signal.SIGCONT if draw.randrange(2) else signal.SIGKILL)


def seconds_a_row(service):
    """Of a prompt, alone: the quickest of a few that share nothing."""
    def first_token(length, start):
        began = time.monotonic()
        service.complete(prompt=list(range(start, start + length)), max_tokens=1)
        return time.monotonic() - began
    return min(first_token(400, 1000 * n) - first_token(100, 1000 * n + 500)
               for n in range(1, 5)) / 300


# -- pauses -----------------------------------------------------------------------------------------

def placed_again(lines, kill, until):
    """(when, prompt, emitted) of each request that was placed again after this loss."""
    for line in lines:
        found = re.search(r"placed req=\S+ attempt=(\d+) .* prompt=(\d+) emitted=(\d+)", line)
        if found and int(found.group(1)) > 1 and kill.at <= stamp(line) + 0.001 < until:
            yield stamp(line), int(found.group(2)), int(found.group(3))


def resumed(storm, at, prompt, emitted):
    """When a client of such a request that was placed again at this time saw it go on, or None."""
    return min((t.at for times in storm.times for t in times
                if at <= t.at and t.prompt == prompt and t.index <= emitted < t.index + t.count),
               default=None)


def row_of(a):
    return (f"noticed {a.noticed:.3f} s, placed {a.placed:.3f} s, token {a.token:.3f} s after the kill: "
            f"{a.prompt} + {a.emitted} tokens again in {a.token - a.placed:.3f} s")


def add_pauses(storm, report):
    """Of each kill: noticed, placed, and of each stream from the last token before to the next."""
    lines = storm.service.lines
    for i, kill in enumerate(storm.kills):
        until = storm.kills[i + 1].at if i + 1 < len(storm.kills) else float("inf")
        pauses = report["pauses"][kill.how]
        lost = [stamp(line) for line in lines if f"lost worker={kill.rank} " in line]
        pauses["noticed"] += [at - kill.at for at in lost[:1]]
        for at, prompt, emitted in placed_again(lines, kill, until):
            pauses["placed again"].append(at - kill.at)
            token = resumed(storm, at, prompt, emitted)
            if not token:
                continue
            pauses["resumed (with the recompute)"].append(token - kill.at)
            if kill.how != signal.SIGKILL:
                continue
            again = Again(lost[0] - kill.at, at - kill.at, token - kill.at, prompt, emitted)
            report["again"].append(again)
            if again.token > 1:
                report["late"].append(row_of(again) + "; rank 0 meanwhile:")
                report["late"] += [f"  {stamp(line) - kill.at:6.3f} {line.split('Z', 1)[1][:120]}"
                                   for line in lines if re.search(r"Z .*\b(lost|placed|finished) ", line)
                                   and kill.at - 0.2 < stamp(line) < token]
        for times in storm.times:
            before = [t.at for t in times if t.at <= kill.at]
            after = [t.at for t in times if t.at > kill.at]
            if before and after:
                pauses["gap in a stream"].append(after[0] - before[-1])


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
            and lost - {str(kill.rank) for kill in storm.kills}
            and not any(got[0] == 200 for _, got, _ in storm.wrong))


def one_service(roles, want, kills, seed, report):
    draw = random.Random(seed)
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
        report["kills"] += len(storm.kills)
        report["answers"] += storm.answered
        m = service.metrics()
        report["replaced"] += int(m["llm_d_requests_replaced_total"])
    add_pauses(storm, report)


def say_spread(name, values):
    values = sorted(values)
    if not values:
        print(f"{name}: none")
        return
    print(f"{name}: {len(values)}, median {statistics.median(values):.3f} s, "
          f"p90 {values[len(values) * 9 // 10]:.3f} s, most {values[-1]:.3f} s, "
          f"within 1 s {sum(v <= 1 for v in values)}")


def say_recompute(report):
    """Of each SIGKILL: what a pause is more than the recompute."""
    row_s, all_of = report["row_s"], report["again"]
    print(f"a row of a prompt alone on an idle service: {row_s * 1e3:.2f} ms")
    for name, chosen in (("streams", [a for a in all_of if a.emitted]),
                         ("prompts without a token", [a for a in all_of if not a.emitted])):
        say_spread(f"SIGKILL, {name}, pause", [a.token for a in chosen])
        say_spread(f"SIGKILL, {name}, pause less the recompute as it was",
                   [a.placed for a in chosen])
        say_spread(f"SIGKILL, {name}, pause less the recompute alone",
                   [a.token - row_s * (a.prompt + a.emitted) for a in chosen])
    print("longest pauses:", *[row_of(a) for a in sorted(all_of, key=lambda a: -a.token)[:10]],
          sep="\n  ")


def say(report):
    print(f"kills {report['kills']}, answers {report['answers']}, replaced "
          f"{report['replaced']}, starved services {report['starved']}")
    print("lost otherwise:", *report["others"], sep="\n  ")
    for how, pauses in report["pauses"].items():
        for name, values in pauses.items():
            say_spread(f"{how.name}, {name}", values)
    say_recompute(report)
    print("later than 1 s after a SIGKILL:", *report["late"], sep="\n  ")


def test_random_kills_cost_no_client_a_token(needs_model):
    report = {"kills": 0, "answers": 0, "replaced": 0, "others": [], "starved": 0, "late": [],
              "again": [], "pauses": {how: collections.defaultdict(list)
                                      for how in (signal.SIGKILL, signal.SIGSTOP)}}
    with Service("--threads", 1) as service:
        report["row_s"] = seconds_a_row(service)
        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            want = list(pool.map(lambda b: stream(service, b), bodies()))
    assert all(w[0] == 200 for w in want)
    try:
        for turn in range(FIRST, FIRST + 1000):
            if report["kills"] >= KILLS:
                break
            print(turn, report["kills"], report["answers"], report["replaced"], flush=True)
            one_service(ROLES[turn % len(ROLES)], want, KILLS - report["kills"], 1 + turn, report)
    finally:
        say(report)
