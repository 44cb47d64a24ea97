"""tests/service/test_shared_view.py - jobs and gateways that share through Redis what jobs hold."""
import os
import secrets
import shutil
import signal
import socket
import subprocess

import pytest

from service import BUILD, LONG, MODEL
from test_handover import Gateway, Job, folder, wait_for  # noqa: F401 - folder is a fixture

pytestmark = [pytest.mark.usefixtures("needs_model"),
              pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server")]
TURN = "Tell me of the sea, of its depths and of what lives there, in many words. " * 8


def certificates(directory):
    """The flags of redis-server, and of what connects to it: each has a certificate of the same CA."""
    ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    made = [f"openssl req -x509 {ec} -subj /CN=ca -keyout ca.key -out ca.pem"]
    made += [f"openssl req -x509 {ec} -CA ca.pem -CAkey ca.key -subj /CN={name} -keyout {name}.key "
             f"-out {name}.pem -addext subjectAltName=DNS:{name}.test" for name in ("redis", "job")]
    subprocess.run(" && ".join([*made, "chmod 600 *.key"]), shell=True, check=True, cwd=directory,
                   capture_output=True)
    ca = f"{directory}/ca.pem"
    return (["--tls-ca-cert-file", ca, "--tls-cert-file", f"{directory}/redis.pem",
             "--tls-key-file", f"{directory}/redis.key"],
            ["--redis-cacert", ca, "--redis-cert", f"{directory}/job.pem",
             "--redis-key", f"{directory}/job.key", "--redis-sni", "redis.test"])


class Redis:
    """One server; with `tls` it has no port but that of TLS."""

    def __init__(self, directory, tls=False):
        self.directory = str(directory)
        self.flags, self.client = certificates(self.directory) if tls else ([], [])
        self.tls = tls
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0" if self.tls else str(self.port),
             "--tls-port", str(self.port) if self.tls else "0", "--bind", "127.0.0.1",
             "--save", "", "--dir", self.directory, *self.flags], stdout=subprocess.DEVNULL)

    def options(self):
        return ["--redis", f"redis{'s' * self.tls}://127.0.0.1:{self.port}/0", *self.client]

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["plain", pytest.param("tls", marks=pytest.mark.skipif(
    not LONG, reason="RANKSERVE_TEST_LONG is not set"))])
def redis(tmp_path, request):
    r = Redis(tmp_path, request.param == "tls")
    yield r
    r.kill()


def numbers(g):
    rows = (x.rsplit(" ", 1) for x in g.http.get("/metrics").text.splitlines() if x[:1] != "#")
    return {name.split("{")[0]: float(value) for name, value in rows if "{kind" not in name}


def cached(g, prompt):
    r = g.complete(prompt)
    assert r.status_code == 200, r.text
    return r.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_what_is_wrong_with_its_options_is_said_at_start(tmp_path):
    secret = tmp_path / "kv.key"
    secret.write_text("00" * 32)
    os.chmod(secret, 0o644)
    for flags, says in ((("--redis", "h", "--redis-sni", "n"), "need rediss://"),
                        (("--redis", "rediss://h", "--redis-cacert", "/nowhere"), "/nowhere"),
                        (("--redis", "rediss://h", "--redis-key", str(secret)), "need each other"),
                        (("--redis", "h:x"), "HOST:PORT"),
                        (("--redis", "h", "--redis-password-file", "/nowhere"), "/nowhere"),
                        (("--kv-secret-file", str(secret)), "chmod 600")):
        r = subprocess.run([os.path.join(BUILD, "rankserve-gateway"), "--model", MODEL, "--listen",
                            "127.0.0.1:0", "--jobs", str(tmp_path), *flags],
                           capture_output=True, text=True, timeout=60)
        assert r.returncode != 0 and says in r.stderr.splitlines()[-1]


def test_a_conversation_goes_on_where_it_is_held_though_another_gateway_sent_it(
        folder, redis, tmp_path):
    secret = tmp_path / "kv.key"
    secret.write_text(secrets.token_hex(32))
    os.chmod(secret, 0o600)
    share = [*redis.options(), "--kv-secret-file", secret]

    def up(g):
        return wait_for(lambda: numbers(g)["llm_d_redis_connected"] == 1, 10, "Redis")

    with Job(folder, "old", *share) as old, Gateway(folder, *share) as first:
        assert cached(first, TURN) == 0   # the only job there is
        wait_for(lambda: old.metrics()["llm_d_redis_announced_total"] > 5, 10, "its keys")
        with Job(folder, "new", *share), Gateway(folder, *share) as second, \
                Gateway(folder) as alone:
            for g in second, alone:
                g.wait_line("job=new state=live")
                g.wait_line("job=old state=live")
            up(second)
            assert cached(second, TURN + "And its storms?") > 50
            assert numbers(second)["llm_d_redis_looks_found_total"] == 1
            assert cached(alone, TURN + "And its tides?") == 0    # the newer one, for want of news
            assert alone.count("makes its own keys") == 2

            redis.process.send_signal(signal.SIGSTOP)
            assert cached(second, TURN + "And its ships?") > 50   # it was sent that before
            assert second.complete("Something else. " * 9).status_code == 200
            redis.kill()
            assert second.complete("And once more. " * 9).status_code == 200
            skipped = numbers(second)["llm_d_redis_looks_skipped_total"]
            assert skipped >= 2 and numbers(second)["llm_d_redis_connected"] == 0

            redis.start()
            wait_for(lambda: old.metrics()["llm_d_redis_jobs_connected"] == 1, 20, "the old job")
            with Gateway(folder, *share) as third:
                third.wait_line("job=new state=live")
                third.wait_line("job=old state=live")
                up(third)
                said = old.metrics()["llm_d_redis_announced_total"]
                assert cached(second, TURN + "And its sands?") > 50   # tells it again
                wait_for(lambda: old.metrics()["llm_d_redis_announced_total"] > said, 10, "news")
                assert cached(third, TURN + "And its stars?") > 50
            second.http.get("/health").raise_for_status()
            assert second.process.poll() is None
