"""tests/service/test_hosts.py - the job over three hosts: network namespaces with names of their own.

Needs root, ip and nsenter; skipped elsewhere.  Nothing touches the machine's own interfaces.
"""
import os
import random
import shutil
import subprocess
import time

import pytest

import link_client as link
from job import MODEL, Job

NET = "10.77.43"
NAMES = ["rs0", "rs1", "rs2"]
SWITCH = "rssw"
AGENT = """#!/bin/bash
# runs a command on a "host"; detached, so that losing the host never looks like a failed start
host=$1; shift
setsid -f nsenter --net=/run/netns/$host unshare --uts --mount --propagation private sh -c '
hostname "$0"; mount --bind /etc/netns/$0/hosts /etc/hosts; exec sh -c "$1"' $host "$*" \\
    </dev/null >/dev/null 2>&1
"""


def sh(text, check=True):
    return subprocess.run(text, shell=True, check=check, capture_output=True, text=True).stdout


def possible():
    return (os.geteuid() == 0 and shutil.which("ip") and shutil.which("nsenter")
            and subprocess.run("ip netns add rsprobe && ip netns del rsprobe", shell=True,
                               capture_output=True).returncode == 0)


pytestmark = pytest.mark.skipif(not os.path.exists(MODEL) or not possible(),
                                reason="needs the model, root and network namespaces")


def down():
    for name in NAMES + [SWITCH]:
        sh(f"kill -9 $(ip netns pids {name} 2>/dev/null) 2>/dev/null; ip netns del {name}", False)
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


@pytest.fixture
def hosts(tmp_path):
    down()
    sh(f"ip netns add {SWITCH}; ip -n {SWITCH} link add br0 type bridge; "
       f"ip -n {SWITCH} link set br0 up")
    for i, name in enumerate(NAMES):
        os.makedirs(f"/etc/netns/{name}", exist_ok=True)
        with open(f"/etc/netns/{name}/hosts", "w") as f:
            f.write("127.0.0.1 localhost\n")
            f.writelines(f"{NET}.{10 + j} {other}\n" for j, other in enumerate(NAMES))
        sh(f"ip netns add {name}; ip link add v0 netns {name} type veth peer name p{i} "
           f"netns {SWITCH}; ip -n {SWITCH} link set p{i} master br0; "
           f"ip -n {SWITCH} link set p{i} up; ip -n {name} link set lo up; "
           f"ip -n {name} addr add {NET}.{10 + i}/24 dev v0; ip -n {name} link set v0 up")
    agent = tmp_path / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    yield str(agent)
    down()


def job_on(agent, **options):
    wrap = ["nsenter", f"--net=/run/netns/{NAMES[0]}", "unshare", "--uts", "--mount",
            "--propagation", "private", "sh", "-c",
            f'hostname {NAMES[0]}; mount --bind /etc/netns/{NAMES[0]}/hosts /etc/hosts; '
            'exec "$@"', "sh"]
    network = ["--mca", "plm_rsh_agent", agent, "--mca", "btl", "self,vader,tcp",
               "--mca", "btl_tcp_if_include", f"{NET}.0/24",
               "--mca", "oob_tcp_if_include", f"{NET}.0/24",
               "-H", f"{NAMES[0]}:1,{NAMES[1]}:2,{NAMES[2]}:2"]
    return Job(wrap=wrap, network=network, **options)


def prompt(seed, length):
    r = random.Random(seed)
    return [r.randrange(3, 40000) for _ in range(length)]


def test_weights_and_kv_cross_hosts_and_the_ids_are_the_same(hosts):
    with Job(both=1, backend="cpu") as job:
        want = [job.client().generate(prompt(n, n), max_tokens=6).ids for n in (3, 40, 200)]
    with job_on(hosts, prefill=2, decode=2, backend="cpu") as job:
        c = job.client()
        assert "hosts=3" in job.log()
        assert [c.generate(prompt(n, n), max_tokens=6).ids for n in (3, 40, 200)] == want
        assert c.home() and c.state["kv_bytes_sent"] > 0


@pytest.mark.parametrize("loss", ["killed", "cut off"])
def test_a_lost_host_is_noticed_and_the_others_go_on(hosts, loss):
    slow = {"RANKSERVE_NULL_STEP_US": "20000"}
    with job_on(hosts, prefill=1, decode=3, env=slow) as job:
        c = job.client()
        streams = [c.request(prompt(i, 50), max_tokens=300) for i in range(9)]
        c.pump(0.6)
        if loss == "killed":
            sh(f"kill -9 $(ip netns pids {NAMES[2]})")
        else:
            sh(f"ip -n {SWITCH} link set p2 down")
        assert job.wait_log("lost worker=3", 3) and job.wait_log("lost worker=4", 3)
        for s in streams:
            c.cancel(s)
        # What ran there runs again elsewhere: only what was cancelled ends.
        assert {a.code for a in c.wait(streams)} == {link.CANCELLED}
        assert c.state["requests_replaced"] > 0
        assert c.generate(prompt(1, 30), max_tokens=5).code == link.OK
        assert c.home() and c.state["workers_alive"] == 2
        if loss == "cut off":
            sh(f"ip -n {SWITCH} link set p2 up")
            end = time.monotonic() + 8
            while {3, 4} & set(job.pids()) and time.monotonic() < end:
                time.sleep(0.1)
            assert not {3, 4} & set(job.pids())
