"""tests/service/job.py - starts the MPI job alone (no gateway) and always takes it down."""
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time

from link_client import PATIENCE, Client

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.environ.get("RANKSERVE_PROGRAM", os.path.join(ROOT, "build", "rankserve"))
MODEL = os.environ.get("RANKSERVE_TEST_MODEL", "")


class Job:
    def __init__(self, *options, prefill=0, decode=0, both=0, spares=0, backend="null", ranks=None,
                 model=None, env=None, limit_s=60, secret=None, live=True, wrap=(),
                 network=("--mca", "btl", "self,vader")):
        self.dir = tempfile.mkdtemp(prefix="rsjob.")
        self.link = os.path.join(self.dir, "link")
        self.status_path = os.path.join(self.dir, "status.json")
        self.log_path = os.path.join(self.dir, "log")
        self.secret = secrets.token_bytes(32)
        secret_path = os.path.join(self.dir, "secret")
        with open(os.open(secret_path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write((self.secret.hex() if secret is None else secret) + "\n")
        workers = (prefill + decode + both or 1) + spares
        command = ["timeout", "-k", "2", str(limit_s * PATIENCE), *wrap, "mpirun", "--enable-recovery",
                   "--oversubscribe", "--bind-to", "none", *network,
                   "--mca", "mpi_yield_when_idle", "0",
                   *[word for name in env or {} for word in ("-x", name)],
                   "-np", str(1 + workers if ranks is None else ranks), PROGRAM,
                   "--model", MODEL if model is None else model, "--backend", backend,
                   "--prefill", str(prefill), "--decode", str(decode), "--both", str(both),
                   "--spares", str(spares),
                   "--link", self.link, "--secret-file", secret_path,
                   "--status-file", self.status_path, "--threads", "1", *map(str, options)]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1",
                           OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", **(env or {}))
        self.log_file = open(self.log_path, "wb")
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log_file,
                                        stderr=subprocess.STDOUT, env=environment,
                                        start_new_session=True)
        self.clients = []
        if live and not self.wait_log("live workers", 30):
            log = self.log()
            self.stop()
            raise AssertionError(log)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.stop()

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def wait_log(self, text, timeout=5.0):
        """The line with this text, or None."""
        timeout *= PATIENCE
        end = time.monotonic() + timeout
        while True:
            found = re.search(f"^.*{text}.*$", self.log(), re.M)
            if found or time.monotonic() > end:
                return found.group(0) if found else None
            if self.process.poll() is not None and time.monotonic() > end - timeout + 1:
                return None
            time.sleep(0.01)

    def client(self, **options):
        c = Client(self.link, self.secret, **options)
        self.clients.append(c)
        return c

    def pids(self):
        """Process numbers by rank."""
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/environ", "rb") as f:
                    environ = f.read().split(b"\0")
                with open(f"/proc/{name}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            if self.link.encode() not in words or words[0] != PROGRAM.encode():
                continue
            for entry in environ:
                if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                    found[int(entry.split(b"=")[1])] = int(name)
        return found

    def kill(self, rank, number=signal.SIGKILL):
        os.kill(self.pids()[rank], number)
        return time.time()

    def mpirun(self):
        """mpirun's process number: the child of `timeout`."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            return int(f.read().split()[0])

    def drain(self):
        os.kill(self.mpirun(), signal.SIGUSR1)

    def status(self, timeout=5.0):
        end = time.monotonic() + timeout * PATIENCE
        while not os.path.exists(self.status_path):
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
        with open(self.status_path) as f:
            return json.load(f)

    def ended(self, timeout=8.0):
        """True once no rank of the job lives; mpirun itself may hang on after a death."""
        end = time.monotonic() + timeout * PATIENCE
        while time.monotonic() < end:
            if not self.pids():
                return True
            time.sleep(0.02)
        return False

    def ended_by_itself(self, timeout):
        """True when mpirun ends within this time."""
        try:
            self.process.wait(timeout * PATIENCE)
            return True
        except subprocess.TimeoutExpired:
            return False

    def stop(self):
        for c in self.clients:
            c.close()
        own = self.pids().values()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass
            if number == signal.SIGKILL or self.process.poll() is not None:
                break
            time.sleep(0.05)
        for pid in own:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.log_file.close()
        if os.environ.get("KEEP_JOB_LOG"):
            print(self.log())
        shutil.rmtree(self.dir, ignore_errors=True)
