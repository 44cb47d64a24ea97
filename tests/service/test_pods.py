"""tests/service/test_pods.py - the pods' entry scripts as the MPI Operator starts them: three hosts, a
launcher and two workers with sshd on 2222, nothing as root, KV going from host to host."""
import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest

from service import BUILD, MODEL, PATIENCE, ROOT

LAB = os.path.join(ROOT, "tests", "labs", "hosts.sh")
PROMPT = "The capital of France is Paris, and the capital of Italy is"
USER = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--no-new-privs"]

missing = [t for t in ("ip", "nsenter", "setpriv", "mpirun", "ssh", "ssh-keygen", "curl")
           if not shutil.which(t)] + ([] if os.path.exists("/usr/sbin/sshd") else ["sshd"])


def can_make_hosts():
    if os.geteuid() != 0 or missing:
        return False
    name = f"rkprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


pytestmark = [
    pytest.mark.skipif(bool(missing), reason="not installed: " + " ".join(missing)),
    pytest.mark.skipif(not can_make_hosts(), reason="no network namespaces here"),
]


class Pods:
    def __init__(self, directory):
        self.directory, self.started = directory, []
        self.home = os.path.join(directory, "home")
        self.log = open(os.path.join(directory, "log"), "w+")
        os.chmod(directory, 0o755)
        self.lab("up", "3")
        self.image()
        self.secret()

    def lab(self, command, *words):
        subprocess.run([LAB, command, self.directory, *words], check=True, timeout=30)

    def image(self):
        """What the Dockerfile puts where, as far as it matters."""
        programs = os.path.join(self.directory, "bin")
        os.makedirs(programs)
        for name in "rankserve", "rankserve-gateway", "rankservectl":
            shutil.copy(os.path.join(BUILD, name), programs)
        shutil.copy(os.path.join(ROOT, "scripts", "rankserve-launch"), programs)
        shutil.copy(os.path.join(ROOT, "k8s-mpi-operator", "entry", "rankserve-worker"), programs)
        self.model = os.path.join(self.directory, "model.gguf")
        shutil.copy(os.path.realpath(MODEL), self.model)
        etc = os.path.join(self.directory, "etc")
        os.makedirs(os.path.join(etc, "ssh"))
        shutil.copy(os.path.join(ROOT, "k8s-mpi-operator", "entry", "ssh_config"),
                    os.path.join(etc, "ssh", "ssh_config"))
        with open("/etc/passwd") as f:
            others = [x for x in f if x.split(":")[2] != "1000"]
        with open(os.path.join(etc, "passwd"), "w") as f:
            f.write("".join(others) + f"rankserve:x:1000:1000::{self.home}:/bin/bash\n")

    def secret(self):
        """As the operator mounts it: owned by root, readable by the group."""
        keys = os.path.join(self.home, ".ssh")
        os.makedirs(keys)
        key = os.path.join(keys, "id_rsa")
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", key],
                       check=True)
        shutil.copy(key + ".pub", os.path.join(keys, "authorized_keys"))
        for path in key, key + ".pub", os.path.join(keys, "authorized_keys"):
            os.chown(path, 0, 1000)
            os.chmod(path, 0o640)
        os.chown(self.home, 1000, 1000)

    def start(self, host, *command, **env):
        settings = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": self.home, **env}
        p = subprocess.Popen(
            [LAB, "exec", self.directory, host, *USER, "env", "-i",
             *[f"{k}={v}" for k, v in settings.items()], *command],
            stdout=self.log, stderr=self.log, start_new_session=True)
        self.started.append(p)
        return p

    def worker(self, host):
        return self.start(host, os.path.join(self.directory, "bin", "rankserve-worker"))

    def launcher(self, *options, hosts=("h1", "h2"), shares="1 1"):
        names = os.path.join(self.directory, "hostfile")
        with open(names, "w") as f:
            f.writelines(f"{h} slots=1\n" for h in hosts)
        return self.start(
            "h0", os.path.join(self.directory, "bin", "rankserve-launch"), "--listen=0.0.0.0:8000",
            "--model=" + self.model, "--threads=1", "--kv-cache-memory-bytes=64MiB", *options,
            K_MPI_JOB_ROLE="launcher", RANKSERVE_OPERATOR_HOSTS=names, RANKSERVE_HOST_WORKERS=shares,
            OMPI_MCA_orte_default_hostfile=names, OMPI_MCA_orte_keep_fqdn_hostnames="true")

    def curl(self, path, *flags, **body):
        data = ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body else []
        r = subprocess.run([LAB, "exec", self.directory, "h2", "curl", "-s", "--max-time", "60",
                            *flags, "http://h0:8000" + path, *data], text=True,
                           capture_output=True, timeout=90)
        return r.stdout

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def ready(self, process):
        end = time.monotonic() + 60 * PATIENCE
        while self.curl("/health", "-o", "/dev/null", "-w", "%{http_code}") != "200":
            assert process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.3)

    def stop(self):
        self.lab("down")
        for p in self.started:
            p.wait(20)
        self.log.close()
        shutil.rmtree(self.directory)


@pytest.fixture
def pods(needs_model):
    p = Pods(tempfile.mkdtemp(prefix="rankserve-pods-", dir="/tmp"))
    try:
        yield p
    finally:
        p.stop()


def test_launcher_starts_workers_join_chat_works(pods, aggregated):
    launcher = pods.launcher("--prefill=1", "--decode=1")
    time.sleep(1)                             # the workers' pods come later
    for host in "h1", "h2":
        pods.worker(host)
    pods.ready(launcher)
    assert "hosts=3" in pods.said(), pods.said()
    asked = {"max_tokens": 8, "temperature": 0}
    answer = json.loads(pods.curl("/v1/completions", model="model", prompt=PROMPT, **asked))
    assert answer["choices"][0]["text"] == aggregated.complete(PROMPT, **asked)["choices"][0]["text"]
    chat = json.loads(pods.curl("/v1/chat/completions", model="model", max_tokens=8,
                                messages=[{"role": "user", "content": "Say hello."}]))
    assert chat["choices"][0]["message"]["content"]
    metrics = pods.curl("/metrics")
    assert "llm_d_requests_total" in metrics

    launcher.terminate()                      # the pod is to go
    assert launcher.wait(60 * PATIENCE) == 143, "0 would complete the MPIJob for ever"
    assert "drained" in pods.said() and "cut off" not in pods.said()


def test_a_lost_pod_leaves_a_service(pods):
    for host in "h1", "h2":
        pods.worker(host)
    launcher = pods.launcher("--both=2")
    pods.ready(launcher)
    pods.lab("kill", "h1")
    end = time.monotonic() + 30 * PATIENCE
    while "lost" not in pods.said():
        assert time.monotonic() < end, pods.said()
        time.sleep(0.3)
    answer = json.loads(pods.curl("/v1/completions", model="model", prompt="Hello", max_tokens=4))
    assert answer["usage"]["completion_tokens"] == 4
    assert launcher.poll() is None


def test_shares_that_leave_a_worker_out_are_refused(pods):
    for host in "h1", "h2":
        pods.worker(host)
    launcher = pods.launcher("--both=2", shares="1")
    assert launcher.wait(60 * PATIENCE) == 1
    assert "1 workers have no host: RANKSERVE_HOST_WORKERS is '1' for 2 hosts" in pods.said()
