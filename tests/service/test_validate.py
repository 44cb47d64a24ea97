"""tests/service/test_validate.py - `rankservectl validate`: every field of both CRDs, wrong in each way.

The cases are made from the CRDs themselves, so a new field is tested by being there.
"""
import copy
import os
import re
import subprocess

import pytest
import yaml

from service import CTL, ROOT

CRDS = {}
for name in "inferenceservices", "cachepolicies":
    with open(os.path.join(ROOT, "k8s-mpi-operator", "base", "crds", name + ".yaml")) as f:
        crd = yaml.safe_load(f)
    CRDS[crd["spec"]["names"]["kind"]] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def validate(tmp_path, *documents):
    path = tmp_path / "d.yaml"
    path.write_text("---\n".join(d if isinstance(d, str) else yaml.safe_dump(d)
                                 for d in documents))
    return subprocess.run([CTL, "validate", "-f", path], text=True, capture_output=True, timeout=20)


def leaves(schema, path=()):
    """Every field below `schema`: (path, its schema)."""
    for name, s in schema.get("properties", {}).items():
        yield path + (name,), s
        yield from leaves(s, path + (name,))
    if "additionalProperties" in schema:
        yield path + ("memory",), schema["additionalProperties"]
    if "items" in schema:
        yield from leaves(schema["items"], path + (0,))


def good(s):
    """A value that the schema takes."""
    if "enum" in s:
        return s["enum"][0]
    if s.get("x-kubernetes-int-or-string"):
        return s.get("minimum", 1)
    t = s["type"]
    if t == "object":
        return {k: good(s["properties"][k]) for k in s.get("required", [])}
    if t == "array":
        return []
    if t == "string":
        for text in "x", "1s", "80%":
            if re.search(s.get("pattern", ""), text):
                return text
    return {"integer": s.get("minimum", 1), "number": s.get("maximum", 1), "boolean": True}[t]


def wrong(s):
    """(what, value, what the line must say): each way in which a value can be wrong."""
    t = s.get("type", "integer or string")
    if "enum" in s:
        yield "enum", "nonsense", "it must be one of: " + ", ".join(map(str, s["enum"]))
    if t == "object":
        yield "scalar for object", 3, "it must be an object"
        yield "list for object", [1], "it must be an object"
        if "properties" in s:
            yield "unknown field", {**good(s), "zzzunknown": 1}, ".zzzunknown is unknown"
            for k in s.get("required", []):
                yield "missing " + k, {a: b for a, b in good(s).items() if a != k}, k + " is missing"
        return
    if t == "array":
        yield "object for list", {"a": 1}, "it must be a list"
        return
    yield "object for value", {"a": 1}, "it must be of type " + t if "enum" not in s else "must be"
    yield "list for value", [1, 2], "it must be"
    if "enum" in s:
        return
    if t == "string":
        yield "number for text", 12, "it must be of type string"
        yield "boolean for text", True, "it must be of type string"
        if "minLength" in s:
            yield "too short", "", "it must have at least"
        if "maxLength" in s:
            yield "too long", "x" * (s["maxLength"] + 1), "it must have at most"
        if "pattern" in s:
            yield "pattern", "!?", "it must match"
    if t in ("integer", "number"):
        yield "text for number", "many", "it must be of type " + t
        yield "quoted number", "2", "it must be of type " + t
        yield "boolean for number", True, "it must be of type " + t
    if t == "integer":
        yield "fraction", 1.5, "it must be of type integer"
    if t == "boolean":
        yield "text for boolean", "yes", "it must be of type boolean"
        yield "number for boolean", 1, "it must be of type boolean"
    if s.get("x-kubernetes-int-or-string"):
        yield "pattern", "!?", "it must match"
    if "minimum" in s:
        yield "too small", s["minimum"] - 1, "it must be from" if "maximum" in s else "at least"
    if "maximum" in s:
        yield "too large", s["maximum"] + 1, "it must be from"


def document(kind, path, value):
    d = {"apiVersion": "serving.llm-d.ai/v1alpha1", "kind": kind, "metadata": {"name": "a"},
         "spec": {}}
    schema, at = CRDS[kind], d
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if part == 0:
            at.append({k: good(v) for k, v in schema["items"]["properties"].items()})
            schema, at = schema["items"], at[0]
            continue
        schema = schema.get("properties", {}).get(part) or schema["additionalProperties"]
        if last:
            at[part] = copy.deepcopy(value)
        else:
            at = at.setdefault(part, [] if schema["type"] == "array" else good(schema))
    return d


def spelled(path):
    return "".join(f"[{p}]" if p == 0 else "." + p for p in path)[1:]


CASES = [(kind, path, s, *w) for kind in CRDS for path, s in leaves(CRDS[kind])
         if path[0] in ("spec", "status") for w in wrong(s)]


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_wrong_in_each_way(tmp_path, kind):
    cases = [c for c in CASES if c[0] == kind]
    assert len(cases) > (300 if kind == "InferenceService" else 60)
    for _, path, _, what, value, says in cases:
        r = validate(tmp_path, document(kind, path, value))
        line = next((x for x in r.stderr.splitlines() if spelled(path) in x), "")
        assert r.returncode == 1 and says in line, (spelled(path), what, r.stderr, r.stdout)
        assert re.match(r".*d\.yaml:\d+: ", line)


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_right_is_taken(tmp_path, kind):
    for path, s in leaves(CRDS[kind]):
        if path[0] not in ("spec", "status") or "additionalProperties" in s:
            continue
        r = validate(tmp_path, document(kind, path, good(s)))
        faults = [x for x in r.stderr.splitlines()
                  if spelled(path) + " " in x and "has no effect yet" not in x and "rule" not in x]
        assert faults == [], (path, r.stderr)


RULES = [
    ("InferenceService", {"serving": {"prefill": {"replicas": 1}}}, "spec.serving",
     "prefill workers need decode"),
    ("InferenceService", {"serving": {"decode": {"replicas": 1}}}, "spec.serving",
     "decode workers need prefill"),
    ("InferenceService", {"serving": {"both": {"replicas": 1, "autoscaling": {
        "minReplicas": 4, "maxReplicas": 2}}}}, "spec.serving.both.autoscaling", "minReplicas must"),
    ("InferenceService", {"serving": {"both": {"replicas": 1, "autoscaling": {"enabled": True}}}},
     "spec.serving.both.autoscaling", "enabled autoscaling needs maxReplicas"),
    ("CachePolicy", {"routing": {"cacheLocalityWeight": 0, "latencyWeight": 0.0}}, "spec.routing",
     "one of the weights"),
]


@pytest.mark.parametrize("kind,spec,path,says", RULES)
def test_the_rules_between_fields_hold(tmp_path, kind, spec, path, says):
    r = validate(tmp_path, {"apiVersion": "serving.llm-d.ai/v1alpha1", "kind": kind,
                            "metadata": {"name": "a"}, "spec": spec})
    assert r.returncode == 1 and f": {path} breaks a rule: {says}" in r.stderr, r.stderr


def test_engine_fields_are_the_options(tmp_path):
    printed = subprocess.run([CTL, "up", "--print-config"], text=True, capture_output=True).stdout
    names = {line.split(" = ")[0] for line in printed.splitlines()}
    elsewhere = {"model", "prefill", "decode", "both", "tensor-parallel-size", "run-dir", "link",
                 "link-listen", "name", "secret-file", "status-file", "job-id", "labels",
                 "max-prefix-length", "cache-ttl", "cache-max-entries", "cache-memory-threshold",
                 "cache-locality-weight", "latency-weight", "redis"}
    engine = CRDS["InferenceService"]["properties"]["spec"]["properties"]["engine"]["properties"]
    camel = {re.sub(r"-(.)", lambda m: m.group(1).upper(), n) for n in names - elsewhere}
    assert set(engine) == camel
    defaults = dict(line.split(" = ") for line in printed.splitlines() if not line.endswith("= "))
    for name, s in engine.items():
        option = re.sub(r"[A-Z]", lambda m: "-" + m.group(0).lower(), name)
        said = re.search(r"Default (.+?)\.?(?:, .*|$)", s["description"])
        if said and option in defaults:
            want = {"auto": "0", "random": "0", "1GiB": "1073741824"}.get(said.group(1))
            assert defaults[option] in (said.group(1), want), name


HEAD = "apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceService\nmetadata: {name: a}\nspec: "
BAD_FILES = [
    ("", "the file is empty"), ("- 1\n", "must hold fields"), ("a: [", "d.yaml:"),
    ("kind: Pod\n", "apiVersion is missing"), ("apiVersion: v1\n", "kind is missing"),
    ("apiVersion: v1\nkind: Pod\n", "metadata.name is missing"),
    ("apiVersion: v2\nkind: MPIJob\nmetadata: {name: a}\n", "kubeflow.org/v2beta1 MPIJob"),
    ("apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceServices\n", "must be"),
    (HEAD.replace("metadata: {name: a}\n", "") + "{}\n", "metadata.name is missing"),
    (HEAD + "\n", "spec is missing"), (HEAD + "{a: &x 1, b: *x}\n", "d.yaml:"),
    (HEAD + "{model: {}, model: {}}\n", "d.yaml:4:"),
    ("\x00", "d.yaml:"), ("a: " * 20000, "d.yaml:"), ("[" * 10000, "d.yaml:"),
    (HEAD + "{engine: {maxNumSeqs: 600}}\n", "--max-num-batched-tokens"),
]


@pytest.mark.parametrize("text,says", BAD_FILES, ids=[repr(b[0])[:40] for b in BAD_FILES])
def test_a_bad_file_gets_a_line(tmp_path, text, says):
    r = validate(tmp_path, text)
    assert r.returncode == 1 and says in r.stderr, r.stderr


def test_examples_and_renders_are_valid():
    files = [os.path.join(ROOT, "k8s-mpi-operator", "examples", n)
             for n in os.listdir(os.path.join(ROOT, "k8s-mpi-operator", "examples"))]
    data = os.path.join(ROOT, "tests", "data", "render")
    files += [os.path.join(data, n) for n in os.listdir(data) if n.endswith(".k8s.out")]
    for path in files:
        r = subprocess.run([CTL, "validate", "-f", path], text=True, capture_output=True)
        assert r.returncode == 0, (path, r.stderr)


MPIJOB = [("slotsPerWorker: 1", "slotsPerWorkers: 1", "did you mean slotsPerWorker?"),
          ("restartPolicy: OnFailure", "restartPolicy: Always", "it must be one of: Never, OnFailure"),
          ("WaitForWorkersReady", "WaitForWorkers", "it must be one of: AtStartup"),
          ("    Worker:", "    Workers:", "spec.mpiReplicaSpecs.Workers is unknown"),
          ("mpiImplementation: OpenMPI", "mpiImplementation: MVAPICH", "it must be one of: OpenMPI"),
          ("          containers:", "          container:", "containers is missing")]


@pytest.mark.parametrize("old,new,says", MPIJOB)
def test_what_the_operator_would_only_find_later(tmp_path, old, new, says):
    with open(os.path.join(ROOT, "tests", "data", "render", "tuned.k8s.out")) as f:
        text = f.read()
    assert old in text
    r = validate(tmp_path, text.replace(old, new))
    assert r.returncode == 1 and says in r.stderr
