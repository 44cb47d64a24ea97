"""tests/service/test_policy.py - a CachePolicy in force: from the start, and changed while it runs."""
import subprocess
import time

import pytest

from service import CTL, PATIENCE, Service

PROMPT = "Once upon a time there was a very small dragon who wanted to learn how to read. " * 12

POLICY = """apiVersion: serving.llm-d.ai/v1alpha1
kind: CachePolicy
metadata: {name: p}
spec: {%s}
"""


@pytest.fixture(scope="module")
def service():
    with Service("--both", "1", "--labels", "app=chat,tier=1") as s:
        yield s


def policy(service, tmp_path, spec):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY % spec)
    return subprocess.run([CTL, "policy", "-f", str(path), "--url", service.url], text=True,
                          capture_output=True, timeout=30 * PATIENCE)


def change(service, tmp_path, spec):
    r = policy(service, tmp_path, spec)
    assert (r.returncode, r.stderr) == (0, "")


def cached(service, prompt=PROMPT):
    usage = service.complete(prompt, max_tokens=2)["usage"]
    return (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def until(condition, seconds=10):
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_time_to_live_empties_an_idle_cache(service, tmp_path):
    cached(service)
    assert cached(service) > 100
    until(lambda: service.blocks()["cached"] > 0)     # the figures are half a second old
    change(service, tmp_path, 'caching: {ttl: "1s"}')
    until(lambda: service.blocks()["cached"] == 0)
    change(service, tmp_path, 'caching: {ttl: "1h"}')
    cached(service)
    assert cached(service) > 100


def test_fewer_entries_keep_the_beginning(service, tmp_path):
    cached(service)
    whole = cached(service)
    change(service, tmp_path, "caching: {maxEntries: 4}")
    until(lambda: service.blocks()["cached"] <= 4)
    assert 0 < cached(service) <= 4 * 16 < whole
    change(service, tmp_path, "")
    cached(service)
    assert cached(service) == whole


def test_above_the_threshold_nothing_unused_is_kept(service, tmp_path):
    total = service.blocks()["total"]
    cached(service, PROMPT * 4)
    until(lambda: service.blocks()["cached"] > total // 100)
    change(service, tmp_path, 'eviction: {memoryThreshold: "1%"}')
    until(lambda: service.blocks()["cached"] <= total // 100)
    change(service, tmp_path, "")


def test_placement_follows_the_strategy(service, tmp_path):
    for strategy in ("round-robin", "llm-d-weighted", "prefix-aware"):
        change(service, tmp_path, f"caching: {{strategy: {strategy}}}")
        assert service.complete("Hello", max_tokens=3)["choices"][0]["text"]
    change(service, tmp_path, "routing: {cacheLocalityWeight: 0.7, latencyWeight: 0.3}")
    assert service.complete("Hello", max_tokens=3)["choices"][0]["text"]
    change(service, tmp_path, "")


def test_a_policy_for_others_is_refused(service, tmp_path):
    change(service, tmp_path, "selector: {matchLabels: {app: chat}}")
    change(service, tmp_path, f"selector: {{matchLabels: {{model: {service.model()}}}}}")
    r = policy(service, tmp_path, "selector: {matchLabels: {app: search}}")
    assert r.returncode == 1 and "409" in r.stderr and "app=search" in r.stderr


@pytest.mark.parametrize("spec, says", [
    ("caching: {ttl: -1s}", "spec.caching.ttl"),
    ("caching: {ttl: soon}", "spec.caching.ttl"),
    ("caching: {maxEntries: 0}", "spec.caching.maxEntries"),
    ("caching: {strategy: best}", "spec.caching.strategy"),
    ("caching: {size: 1}", "spec.caching.size"),
    ("eviction: {policy: lfu}", "spec.eviction.policy"),
    ('eviction: {memoryThreshold: "120%"}', "spec.eviction.memoryThreshold"),
    ("routing: {cacheLocalityWeight: 1.5}", "spec.routing.cacheLocalityWeight"),
    ("routing: {latencyWeight: -0.1}", "spec.routing.latencyWeight"),
    ("selector: {matchLabels: {app: [a]}}", "spec.selector.matchLabels.app"),
])
def test_what_a_file_says_wrongly_is_named(service, tmp_path, spec, says):
    r = policy(service, tmp_path, spec)
    assert r.returncode == 1 and says in r.stderr and r.stderr.count("\n") == 1, r.stderr


@pytest.mark.parametrize("body, says", [
    ({"cache-ttl": "never"}, "cache-ttl"),
    ({"cache-max-entries": -1}, "cache-max-entries"),
    ({"policy": "best"}, "policy"),
    ({"model": "x"}, "model"),
    ({"cache-ttl": ["1h"]}, "cache-ttl"),
    ([], "object"),
])
def test_a_wrong_body_is_a_400(service, body, says):
    r = service.http.post("/policy", json=body)
    assert r.status_code == 400 and says in r.json()["error"]["message"], r.text


def test_a_policy_in_the_service_file_holds_from_the_start(tmp_path):
    path = tmp_path / "service.yaml"
    path.write_text("""apiVersion: serving.llm-d.ai/v1alpha1
kind: InferenceService
metadata: {name: s, labels: {app: chat}}
spec:
  serving: {both: {replicas: 1}}
  caching: {prefixCaching: {enabled: true, maxPrefixLength: 64}}
---
""" + POLICY % "selector: {matchLabels: {app: chat}}, caching: {maxEntries: 3}")
    with Service("-f", str(path)) as s:
        cached(s)
        assert cached(s) == 3 * 16
        s.settle()
