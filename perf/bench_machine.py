"""perf/bench_machine.py - what the machine is, and who else used it during a measurement.

Owns nothing that is measured.  Shares are of all cores together: one busy process on two cores is 0.5.
"""
import datetime
import os
import platform
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICKS = os.sysconf("SC_CLK_TCK")
QUIET = 0.03                          # of the machine: what others may use of a quiet one


def first_line(command):
    try:
        r = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
        return r.stdout.splitlines()[0].strip() if r.returncode == 0 else ""
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return ""


def machine():
    cpu, flags = "", []
    with open("/proc/cpuinfo") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            elif key.strip() == "flags":
                flags = value.split()
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1])
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni",
              "avx512_bf16", "amx_int8")
    commit = first_line(["git", "rev-parse", "--short=12", "HEAD"])
    changed = first_line(["git", "status", "--porcelain", "--untracked-files=no"])
    return {"cpu": cpu, "flags": [f for f in wanted if f in flags],
            "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory / 2**20, 1),
            "kernel": platform.release(), "compiler": first_line(["gcc", "--version"]),
            "commit": commit + ("+" if changed else ""),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "load_before": os.getloadavg()[0]}


def isa_of(here):
    if os.environ.get("RANKSERVE_ISA"):
        return os.environ["RANKSERVE_ISA"]
    if "avx512_vnni" in here["flags"]:
        return "avx512_bf16" if "avx512_bf16" in here["flags"] else "avx512"
    return "avx2" if "avx2" in here["flags"] else "plain"


def busy_and_stolen():
    """CPU seconds that all processes used, and that the hypervisor kept from us."""
    with open("/proc/stat") as f:
        user, nice, system, _, _, irq, soft, steal = map(int, f.readline().split()[1:9])
    return (user + nice + system + irq + soft) / TICKS, steal / TICKS


def own_seconds():
    """CPU seconds of this process and all below it, those that have ended included."""
    parent, used = {}, {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as f:
                fields = f.read().rpartition(")")[2].split()
        except OSError:
            continue
        parent[int(name)] = int(fields[1])
        used[int(name)] = sum(map(int, fields[11:15])) / TICKS
    below = {os.getpid()}
    grew = True
    while grew:
        more = {p for p, q in parent.items() if q in below} - below
        below |= more
        grew = bool(more)
    return sum(used.get(p, 0) for p in below)


class Watch:
    """with Watch() as w: ...; then w.seconds, w.load, w.others, w.steal."""

    def __enter__(self):
        self.began, self.own, self.stat = time.monotonic(), own_seconds(), busy_and_stolen()
        return self

    def __exit__(self, *failure):
        busy, steal = busy_and_stolen()
        self.seconds = time.monotonic() - self.began
        room = max(self.seconds, 0.01) * (os.cpu_count() or 1)
        self.others = max(0, busy - self.stat[0] - (own_seconds() - self.own)) / room
        self.steal = (steal - self.stat[1]) / room
        self.load = os.getloadavg()[0]

    def figures(self):
        return {"seconds": round(self.seconds, 2), "load": round(self.load, 2),
                "others": round(self.others, 4), "steal": round(self.steal, 4)}

    def quiet(self):
        return self.others + self.steal <= QUIET
