"""tests/service/test_render.py - `rankservectl render`: golden files, and what it refuses.

tests/data/render/NAME.TARGET.out is what k8s-mpi-operator/examples/NAME.yaml and
tests/data/render/NAME.yaml render to.  RANKSERVE_GOLDEN=write makes them anew; read the diff.
"""
import glob
import os
import subprocess

import pytest

from service import CTL, ROOT

DATA = os.path.join(ROOT, "tests", "data", "render")
EXAMPLES = os.path.join(ROOT, "k8s-mpi-operator", "examples")
FLAGS = {
    "k8s": [],
    "slurm": ["--model", "/data/model.gguf", "--time", "12:00:00", "--partition", "gpu"],
    "local": ["--model", "/data/model.gguf"],
}
MORE = {"packed.k8s": ["--host-gpus", "4", "--image", "registry.local/rankserve:2"],
        "packed.slurm": ["--host-gpus", "4", "--launcher", "srun", "--account", "physics"]}


def render(path, target, *flags, env=None):
    return subprocess.run([CTL, "render", "-f", path, "--target", target, *flags], text=True,
                          capture_output=True, timeout=20, env={**os.environ, **(env or {})})


def sources():
    out = [os.path.join(EXAMPLES, n + ".yaml") for n in
           ("inference-service", "cache-policy", "prefill-decode", "quantized", "tuned")]
    return out + sorted(glob.glob(os.path.join(DATA, "*.yaml")))


@pytest.mark.parametrize("target", ["slurm", "k8s", "local"])
@pytest.mark.parametrize("path", sources(), ids=lambda p: os.path.basename(p)[:-5])
def test_renders_as_before(path, target):
    name = os.path.basename(path)[:-5] + "." + target
    r = render(path, target, *FLAGS[target], *MORE.get(name, []))
    assert (r.returncode, r.stderr) == (0, "")
    golden = os.path.join(DATA, name + ".out")
    if os.environ.get("RANKSERVE_GOLDEN") == "write":
        with open(golden, "w") as f:
            f.write(r.stdout)
    with open(golden) as f:
        assert r.stdout == f.read()


def test_only_the_file_counts():
    path = os.path.join(EXAMPLES, "tuned.yaml")
    env = {"RANKSERVE_DECODE": "9", "TZ": "Asia/Tokyo", "LC_ALL": "de_DE.UTF-8", "HOME": "/x"}
    assert render(path, "k8s", env=env).stdout == render(path, "k8s").stdout


def test_a_script_is_a_script():
    for target in "slurm", "local":
        for path in sources():
            r = render(path, target, *FLAGS[target])
            assert subprocess.run(["bash", "-n"], input=r.stdout, text=True).returncode == 0


def test_a_value_cannot_leave_its_quotes(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(document("  model: {modelUri: \"/m/a'; touch pwned; '.gguf\"}"))
    script = render(str(path), "slurm").stdout.split("launch=")[0]
    r = subprocess.run(["bash"], input=script + '\nprintf "%s\\n" "${options[@]}"', text=True,
                       capture_output=True, cwd=tmp_path)
    assert "--model=/m/a'; touch pwned; '.gguf" in r.stdout
    assert not (tmp_path / "pwned").exists()


def document(spec, name="chat"):
    return ("apiVersion: serving.llm-d.ai/v1alpha1\nkind: InferenceService\n"
            f"metadata: {{name: {name}}}\nspec:\n{spec}\n")


GPU = "  serving: {%s: {replicas: %d, resources: {limits: {nvidia.com/gpu: %s}}}}"
REFUSED = [
    # what, target, flags, spec, name, what the line says
    ("tensor parallel", "k8s", [], "  model: {tensorParallelSize: 4}", "a",
     "spec.model.tensorParallelSize"),
    ("pipeline parallel", "k8s", [], "  engine: {pipelineParallelSize: 2}", "a",
     "spec.engine.pipelineParallelSize"),
    ("no replicas", "k8s", [], "  serving: {decode: {replicas: 0}}", "a",
     "spec.serving.decode.replicas must be a whole number from 1"),
    ("a worker larger than a host", "slurm", ["--host-memory", "64Gi"],
     "  serving: {both: {replicas: 1, resources: {limits: {memory: 65Gi}}}}", "a",
     "spec.serving.both.resources asks for memory 65Gi, but a host has 64Gi"),
    ("more CPUs than a host", "slurm", ["--host-cpus", "4"],
     "  serving: {both: {replicas: 1, resources: {limits: {cpu: 8}}}}", "a",
     "spec.serving.both.resources asks for cpu"),
    ("two GPUs for one worker", "k8s", [], GPU % ("both", 1, 2), "a",
     "spec.serving.both.resources.limits[nvidia.com/gpu] is 2"),
    ("half a GPU", "k8s", [], GPU % ("both", 1, "500m"), "a", "drives 1 GPU"),
    ("an unknown resource", "k8s", [],
     "  serving: {both: {replicas: 1, resources: {limits: {amd.com/gpu: 1}}}}", "a",
     "spec.serving.both.resources.limits[amd.com/gpu] is unknown"),
    ("memory that is none", "k8s", [],
     "  serving: {both: {replicas: 1, resources: {limits: {memory: lots}}}}", "a",
     "must be a quantity above 0, like 16Gi"),
    ("half of the workers with GPUs", "k8s", [],
     "  serving: {prefill: {replicas: 1, resources: {limits: {nvidia.com/gpu: 1}}}, decode: "
     "{replicas: 1, resources: {limits: {memory: 1Gi}}}}", "a",
     "spec.serving.decode.resources has no nvidia.com/gpu but prefill has"),
    ("cuda without GPUs", "k8s", [], "  engine: {backend: cuda}", "a", "spec.engine.backend is cuda"),
    ("GPUs without cuda", "k8s", [], "  engine: {backend: cpu}\n" + GPU % ("both", 1, 1), "a",
     "spec.engine.backend is cpu"),
    ("a quantization", "k8s", [], "  model: {quantization: fp8}", "a", "spec.model.quantization"),
    ("autoscaling", "k8s", [], "  serving: {both: {replicas: 1, autoscaling: {enabled: true}}}", "a",
     "spec.serving.both.autoscaling.enabled"),
    ("a model from the network", "k8s", [], "  model: {modelUri: hf://a/b}", "a",
     "spec.model.modelUri is 'hf://a/b'"),
    ("a claim without a path", "k8s", [], "  model: {modelUri: pvc://models}", "a",
     "must be pvc://CLAIM/PATH"),
    ("a claim's way out", "k8s", [], "  model: {modelUri: pvc://models/../x}", "a",
     "must be pvc://CLAIM/PATH"),
    ("a relative path", "slurm", [], "  model: {modelUri: model.gguf}", "a", "a whole path"),
    ("a dot in a pod's name", "k8s", [], "  engine: {}", "llama-3.1", "metadata.name is 'llama-3.1'"),
    ("a pod's name too long", "k8s", [], "  engine: {}", "a" * 55, "metadata.name is too long"),
    ("a capital", "slurm", [], "  engine: {}", "Chat", "metadata.name is 'Chat'"),
    ("prefill alone", "k8s", [], "  serving: {prefill: {replicas: 1}}", "a", "needs --decode"),
    ("a target that is none", "nomad", [], "  engine: {}", "a", "slurm, k8s or local"),
    ("a host of no size", "slurm", ["--host-gpus", "none"], "  engine: {}", "a", "--host-gpus"),
    ("an image with a space", "k8s", ["--image", "a b"], "  engine: {}", "a", "--image"),
]


@pytest.mark.parametrize("what,target,flags,spec,name,says", REFUSED, ids=[r[0] for r in REFUSED])
def test_refuses_what_cannot_work(tmp_path, what, target, flags, spec, name, says):
    path = tmp_path / "s.yaml"
    path.write_text(document(spec, name))
    r = render(str(path), target, *flags)
    assert r.returncode == 1 and r.stdout == ""
    assert r.stderr.count("\n") == 1 and says in r.stderr, r.stderr


POLICY = [("caching", "{ttl: 1h}", "--cache-ttl=3600000ms"),
          ("caching", "{maxEntries: 10}", "--cache-max-entries=10"),
          ("caching", "{strategy: load-based}", "--policy=load-based"),
          ("eviction", "{memoryThreshold: 80%}", "--cache-memory-threshold=0.8"),
          ("routing", "{cacheLocalityWeight: 0.7}", "--cache-locality-weight=0.7"),
          ("routing", "{latencyWeight: 0.3}", "--latency-weight=0.3")]


@pytest.mark.parametrize("target", ["k8s", "slurm", "local"])
@pytest.mark.parametrize("field,value,option", POLICY)
def test_a_cache_policy_reaches_the_job(tmp_path, target, field, value, option):
    path = tmp_path / "s.yaml"
    path.write_text(document("  engine: {}") + "---\napiVersion: serving.llm-d.ai/v1alpha1\n"
                    f"kind: CachePolicy\nmetadata: {{name: p}}\nspec: {{{field}: {value}}}\n")
    r = render(str(path), target)
    assert r.returncode == 0 and option in r.stdout, r.stderr + r.stdout
