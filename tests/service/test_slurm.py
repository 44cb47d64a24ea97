"""tests/service/test_slurm.py - services as jobs of a real Slurm (tests/labs/slurm.sh)."""
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time

import httpx
import pytest

from service import CTL, LONG, PATIENCE, ROOT
from test_handover import Gateway, Load

LAB = os.path.join(ROOT, "tests", "labs", "slurm.sh")
PORT = 20000 + os.getpid() % 5000 * 4
SERVICE = """apiVersion: serving.llm-d.ai/v1alpha1
kind: InferenceService
metadata: {name: NAME}
spec:
  model: {modelUri: "file://MODEL"}
  serving: {prefill: {replicas: 1}, decode: {replicas: 2}}
  engine: {threads: 1, kvCacheMemoryBytes: 64MiB, drainTimeoutS: 60}
"""

missing = [t for t in ("slurmctld", "slurmd", "sbatch", "mpirun") if not shutil.which(t)]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason="not installed: " + " ".join(missing)),
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of one's own needs root"),
]


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain for " + what)


class Slurm:
    def __init__(self, directory, model):
        self.directory, self.model = directory, model
        self.jobs = directory / "jobs"
        self.env = {**os.environ, "SLURM_CONF": str(directory / "slurm" / "slurm.conf"),
                    "SLURM_LAB_PORT": str(PORT), "RANKSERVE_JOBS": str(self.jobs)}
        subprocess.run([LAB, "up", str(directory / "slurm")], env=self.env, check=True, timeout=60)

    def down(self):
        self.run("scancel", "--user=root", check=False)
        time.sleep(1)
        subprocess.run([LAB, "down", str(self.directory / "slurm")], env=self.env, timeout=60)

    def run(self, *command, check=True, **more):
        return subprocess.run([*map(str, command)], text=True, capture_output=True, check=check,
                              env={**self.env, **more}, cwd=self.directory, timeout=120)

    def ctl(self, *words, **more):
        return self.run(CTL, "slurm", *words, check=False, **more)

    def submit(self, name, *flags, **more):
        path = self.directory / f"{name}.yaml"
        path.write_text(SERVICE.replace("NAME", name).replace("MODEL", self.model))
        limit = () if "--time" in flags else ("--time", "20")
        r = self.ctl("submit", "-f", path, *limit, *flags, **more)
        assert r.returncode == 0, r.stderr
        return r.stdout.split()[1]

    def endpoint(self, job):
        try:
            return json.loads((self.jobs / f"{job}.json").read_text())
        except FileNotFoundError:
            return {}

    def live(self, job):
        wait_for(lambda: self.endpoint(job).get("state") == "live", 60, f"job {job}: {self.log()}")
        return self.endpoint(job)

    def log(self):
        return "".join(p.read_text() for p in sorted(self.directory.glob("*.log")))[-3000:]

    def state(self, job):
        r = self.run("scontrol", "show", "job", job, check=False)
        found = re.search(r"JobState=(\w+)", r.stdout)
        return found.group(1) if found else "GONE"

    def exit_code(self, job):
        out = self.run("scontrol", "show", "job", job).stdout
        return re.search(r"ExitCode=(\S+)", out).group(1)

    def ended(self, job, seconds=60):
        wait_for(lambda: self.state(job) not in ("RUNNING", "COMPLETING", "PENDING"), seconds,
                 f"the end of job {job}")
        return self.state(job)


class Client:
    @classmethod
    def at(cls, url):
        model = httpx.get(url + "/v1/models").json()["data"][0]["id"]
        return cls({"url": url, "model": model})

    def __init__(self, endpoint):
        key = "none"
        if "api_key_file" in endpoint:
            with open(endpoint["api_key_file"]) as f:
                key = f.read().strip()
        self.http = httpx.Client(base_url=endpoint["url"], timeout=120 * PATIENCE,
                                 headers={"Authorization": "Bearer " + key})
        self.model = endpoint["model"]
        self.first = threading.Event()
        self.tokens, self.finish, self.error = 0, None, None

    def stream(self, tokens):
        body = {"model": self.model, "prompt": "Once upon a time", "max_tokens": tokens,
                "stream": True, "ignore_eos": True, "temperature": 0}

        def read():
            try:
                with self.http.stream("POST", "/v1/completions", json=body) as r:
                    assert r.status_code == 200
                    for line in r.iter_lines():
                        if line.startswith("data: {"):
                            choice = json.loads(line[6:])["choices"][0]
                            self.tokens += 1
                            self.finish = choice["finish_reason"] or self.finish
                            self.first.set()
            except Exception as e:            # seen by the test, not lost in a thread
                self.error = e
        self.thread = threading.Thread(target=read)
        self.thread.start()
        assert self.first.wait(60 * PATIENCE), self.error
        return self


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, needs_model_path):
    s = Slurm(tmp_path_factory.mktemp("slurm"), needs_model_path)
    yield s
    s.down()


@pytest.fixture(scope="module")
def needs_model_path():
    from service import MODEL
    if not os.path.exists(MODEL):
        pytest.skip("RANKSERVE_TEST_MODEL is not set")
    return os.path.realpath(MODEL)


def test_submit_serve_drain(slurm):
    start = time.monotonic()
    job = slurm.submit("chat")
    endpoint = slurm.live(job)
    print(f"submit to ready {time.monotonic() - start:.1f} s")
    assert endpoint["job_id"] == "slurm-" + job
    assert 0 < endpoint["expires"] - time.time() <= 20 * 60
    key_file = endpoint["api_key_file"]
    for path in key_file, slurm.jobs / f"{job}.json":
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert httpx.post(endpoint["url"] + "/v1/completions", json={}).status_code == 401
    assert slurm.ctl("url", "chat").stdout.strip() == endpoint["url"]
    assert re.search(rf"{job} +chat +RUNNING .* live +http", slurm.ctl("status").stdout)
    second = slurm.ctl("submit", "-f", slurm.directory / "chat.yaml")
    assert second.returncode == 1 and f"job {job} is already called 'chat'" in second.stderr

    client = Client(endpoint).stream(200)
    slurm.run("scancel", "--batch", "-s", "USR1", job)
    wait_for(lambda: slurm.endpoint(job).get("state") == "draining", 10, "draining")
    refused = client.http.post("/v1/completions", json={"model": client.model, "prompt": "a"})
    assert refused.status_code == 503 and "retry-after" in refused.headers
    client.thread.join(120 * PATIENCE)
    assert (client.error, client.tokens, client.finish) == (None, 200, "length")
    assert slurm.ended(job) == "COMPLETED" and slurm.exit_code(job) == "0:0"
    assert not os.path.exists(key_file) and slurm.endpoint(job) == {}
    assert "drained" in slurm.ctl("logs", job).stdout


def test_requeue_comes_back(slurm):
    job = slurm.submit("again")
    first = slurm.live(job)
    slurm.run("scontrol", "requeue", job)
    wait_for(lambda: slurm.state(job) == "PENDING", 60, "the requeue")
    slurm.run("scontrol", "update", f"jobid={job}", "StartTime=now")
    second = wait_for(lambda: slurm.endpoint(job).get("state") == "live" and
                      slurm.endpoint(job)["started"] != first["started"] and slurm.endpoint(job),
                      60, "the second start")
    Client(second).stream(5).thread.join(60)
    slurm.ctl("cancel", job)
    assert slurm.ended(job) == "COMPLETED"


@pytest.mark.skipif(not LONG, reason="long suite")
def test_with_srun(slurm):
    job = slurm.submit("direct", "--launcher", "srun")
    Client(slurm.live(job)).stream(5).thread.join(60)
    slurm.ctl("cancel", "direct")
    assert slurm.ended(job) == "COMPLETED" and slurm.exit_code(job) == "0:0"


def gateway_as_a_step(slurm, job):
    """docs/SLURM.md: a gateway that follows the endpoint directory, beside the job's own."""
    step = subprocess.Popen(
        ["srun", "--overlap", f"--jobid={job}", "--nodes=1", "--ntasks=1",
         os.path.join(os.path.dirname(CTL), "rankserve-gateway"), "--model", slurm.model,
         "--jobs", str(slurm.jobs), "--listen", "127.0.0.1:0"],
        env=slurm.env, cwd=slurm.directory, stdout=subprocess.PIPE, text=True)
    url = next(line.split()[1] for line in step.stdout if line.startswith("ready "))
    client = Client.at(url).stream(5)
    client.thread.join(60)
    assert (client.error, client.tokens) == (None, 5)
    step.terminate()                          # srun ends its step, not gently
    step.wait(30 * PATIENCE)


def test_the_script_works_by_itself(slurm):
    script = os.path.join(ROOT, "slurm", "rankserve.sbatch")
    job = slurm.run("sbatch", "--parsable", "--nodes=2", script, "--threads=1",
                    "--kv-cache-memory-bytes=64MiB", RANKSERVE_MODEL=slurm.model,
                    RANKSERVE_LAUNCH=os.path.join(ROOT, "scripts", "rankserve-launch"),
                    RANKSERVE_BIN=os.path.dirname(CTL)).stdout.strip()
    endpoint = slurm.live(job)
    Client(endpoint).stream(5).thread.join(60)
    gateway_as_a_step(slurm, job)
    stale = slurm.jobs / "999999.json"
    stale.write_text(json.dumps(endpoint))
    assert "999999     stale" in slurm.ctl("status").stdout
    assert "is stale" in slurm.ctl("url", "999999").stderr
    stale.unlink()
    slurm.ctl("cancel", job)
    assert slurm.ended(job) == "COMPLETED"


def test_a_start_that_cannot_be_says_why(slurm):
    broken = slurm.directory / "file"
    broken.write_text("")
    job = slurm.submit("nowhere", RANKSERVE_JOBS=str(broken / "jobs"))
    assert slurm.ended(job) == "FAILED"
    assert f"{broken}/jobs cannot be made (RANKSERVE_JOBS)" in slurm.log()
    path = slurm.directory / "gone.yaml"
    path.write_text(SERVICE.replace("NAME", "gone").replace("MODEL", "/no/model.gguf"))
    job = slurm.ctl("submit", "-f", path).stdout.split()[1]
    assert slurm.ended(job) == "FAILED"
    assert "/no/model.gguf: No such file" in slurm.log()
    assert "no job of yours is called 'nobody'" in slurm.ctl("url", "nobody").stderr


def test_without_slurm_one_line_says_so(tmp_path):
    r = subprocess.run([CTL, "slurm", "status"], env={"PATH": str(tmp_path)}, text=True,
                       capture_output=True)
    assert r.returncode == 1 and "squeue: No such file" in r.stderr


def test_a_job_near_its_end_hands_over(slurm):
    """The successor is submitted ahead of the time limit, serves, and the old job ends: no error."""
    job = slurm.submit("turns", "--consecutive", "295", "--time", "5")
    slurm.live(job)
    with Gateway(slurm.jobs, "--jobs-name", "turns") as g:
        load = Load(g.url, 2, 20)
        next_job = wait_for(lambda: (slurm.jobs / f"{job}.next").exists() and
                            (slurm.jobs / f"{job}.next").read_text().strip(), 30, "the next job")
        streams = [Client.at(g.url).stream(200) for _ in range(2)]
        slurm.live(next_job)
        wait_for(lambda: slurm.endpoint(job).get("state") == "draining", 20, "the drain")
        first = load.done
        assert slurm.ctl("url", "turns").stdout.strip() == slurm.endpoint(next_job)["url"]
        for s in streams:
            s.thread.join(120 * PATIENCE)
            assert (s.error, s.tokens, s.finish) == (None, 200, "length")
        assert slurm.ended(job) == "COMPLETED" and slurm.exit_code(job) == "0:0"
        wait_for(lambda: load.done > first + 8, 60, "requests after the hand-over")
        load.end()
        assert load.wrong == []
        g.wait_line(f"job=slurm-{job} left")
    assert sorted(p.name for p in slurm.jobs.glob(f"{job}.*")) == []
    slurm.run("scancel", "--batch", "-s", "USR1", "--name=turns")
    slurm.ended(next_job)


@pytest.mark.skipif(not LONG, reason="long suite")
def test_the_time_limit_drains_the_job(slurm):
    """USR1 comes before the limit (--signal); the stream that runs then ends by itself."""
    job = slurm.submit("limit", "--time", "3")
    endpoint = slurm.live(job)
    streams = []
    while slurm.endpoint(job).get("state") == "live":
        if sum(c.thread.is_alive() for c in streams) < 2:
            streams.append(Client(endpoint).stream(80))
        time.sleep(0.2)
    assert any(c.thread.is_alive() for c in streams), "none ran when the drain began"
    for c in streams:
        c.thread.join(120 * PATIENCE)
        assert (c.error, c.tokens, c.finish) == (None, 80, "length")
    assert slurm.ended(job, 150) == "COMPLETED" and slurm.exit_code(job) == "0:0"


@pytest.mark.skipif(not LONG, reason="long suite")
@pytest.mark.skipif(not shutil.which("ip"), reason="not installed: ip")
def test_a_killed_node_leaves_the_service(tmp_path, needs_model_path):
    """Three hosts, a worker on each; one dies with all that runs there, its slurmd included."""
    hosts = tempfile.mkdtemp(prefix="rankserve-hosts-", dir="/tmp")
    lab = os.path.join(ROOT, "tests", "labs", "hosts.sh")
    env = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm" / "slurm.conf"),
           "HOSTS_LAB_NET": "10.78.1", "RANKSERVE_JOBS": str(tmp_path / "jobs"),
           "RANKSERVE_MODEL": needs_model_path, "RANKSERVE_BIN": os.path.dirname(CTL),
           "RANKSERVE_API_KEY": "key", "RANKSERVE_INTERFACE": "v0",
           "RANKSERVE_LAUNCH": os.path.join(ROOT, "scripts", "rankserve-launch")}

    def sh(host, *command):
        return subprocess.run([lab, "exec", hosts, host, *map(str, command)], text=True, env=env,
                              stdout=subprocess.PIPE, timeout=60, cwd=tmp_path).stdout

    def complete(tokens):
        said = sh("h1", "curl", "-s", "--max-time", "50", endpoint["url"] + "/v1/completions",
                  "-H", "Authorization: Bearer key", "-H", "Content-Type: application/json", "-d",
                  json.dumps({"model": endpoint["model"], "prompt": "Hello", "max_tokens": tokens,
                              "ignore_eos": True}))
        return json.loads(said)["usage"]["completion_tokens"]

    def log():
        return "".join(p.read_text() for p in tmp_path.glob("*.log"))

    subprocess.run([lab, "up", hosts, "3"], check=True, env=env)
    try:
        subprocess.run([LAB, "up", tmp_path / "slurm", hosts], check=True, env=env, timeout=60)
        job = sh("h0", "sbatch", "--parsable", "--nodes=3",
                 os.path.join(ROOT, "slurm", "rankserve.sbatch"), "--threads=1",
                 "--kv-cache-memory-bytes=64MiB").strip()
        entry = tmp_path / "jobs" / f"{job}.json"
        wait_for(lambda: entry.exists() and json.loads(entry.read_text())["state"] == "live", 60,
                 "the start: " + log())
        endpoint = json.loads(entry.read_text())
        assert "hosts=3" in log() and complete(4) == 4
        subprocess.run([lab, "kill", hosts, "h2"], check=True, env=env)
        wait_for(lambda: "lost worker=3" in log(), 20, "the loss")
        assert complete(8) == 8
        wait_for(lambda: "down" in sh("h0", "sinfo", "-h", "-N", "-n", "h2"), 90, "Slurm to notice")
        assert "RUNNING" in sh("h0", "squeue", "-h", "-j", job, "-o", "%T")
        assert complete(8) == 8
        sh("h0", "scancel", "--batch", "-s", "USR1", job)
        wait_for(lambda: "drained" in log(), 30, "the drain")
        wait_for(lambda: "JobState=COMPLETED" in sh("h0", "scontrol", "show", "job", job), 60,
                 "the end")
        assert not entry.exists()
    finally:
        subprocess.run([lab, "down", hosts], env=env)
        shutil.rmtree(hosts)


def test_what_is_missing_is_named(slurm, tmp_path):
    """No mpirun, no sbatch, a directory that cannot be written, a setting that is none."""
    for tool in "bash", "dirname", "readlink", "hostname", "squeue", "id":
        (tmp_path / tool).symlink_to(shutil.which(tool))
    launch = os.path.join(ROOT, "scripts", "rankserve-launch")
    bash, bare = shutil.which("bash"), {"PATH": str(tmp_path), "RANKSERVE_BIN": os.path.dirname(CTL)}
    r = slurm.run(bash, launch, check=False, **bare)
    assert r.returncode == 1 and "rankserve-launch: mpirun is not in PATH on" in r.stderr
    r = slurm.run(bash, launch, check=False, **{**bare, "RANKSERVE_BIN": "/no"})
    assert r.returncode == 1 and "rankservectl is not in PATH" in r.stderr
    path = slurm.directory / "bare.yaml"
    path.write_text(SERVICE.replace("NAME", "bare").replace("MODEL", slurm.model))
    r = slurm.ctl("submit", "-f", path, **bare)
    assert r.returncode == 1 and "sbatch: No such file or directory" in r.stderr
    inside = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "x", "SLURM_JOB_NODELIST": "n1"}
    r = slurm.run("unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o ro tmpfs {tmp_path} && "
                  f"exec {launch} --model=/x", check=False, **inside, RANKSERVE_JOBS=str(tmp_path))
    assert r.returncode == 1 and f"{tmp_path} cannot be written (RANKSERVE_JOBS)" in r.stderr
    r = slurm.run(launch, "--model=/x", check=False, **inside, RANKSERVE_CONSECUTIVE="soon")
    assert r.returncode == 1 and "RANKSERVE_CONSECUTIVE is 'soon'; it must be seconds" in r.stderr
    r = slurm.run(launch, "--model=/x", check=False, **inside, RANKSERVE_STARTER="ssh")
    assert r.returncode == 1 and "it must be mpirun or srun" in r.stderr
