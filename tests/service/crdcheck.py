"""tests/service/crdcheck.py - manifests against CRDs' schemas, strictly: what is unknown is wrong.

`python crdcheck.py FILE...` checks files by hand.  The schemas: our own CRDs, and tests/data/crds.
"""
import glob
import json
import lzma
import os
import re
import sys

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = [os.path.join(ROOT, "k8s-mpi-operator", "base", "crds"),
           os.path.join(ROOT, "tests", "data", "crds")]
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
         "number": (int, float)}
# Of Kubernetes itself: a real API server judges these (test_k8s.py).
OWN = {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1",
       "kustomize.config.k8s.io/v1beta1", "apiextensions.k8s.io/v1"}


def schemas():
    """By (apiVersion, kind)."""
    found = {}
    for folder in FOLDERS:
        for path in sorted(glob.glob(os.path.join(folder, "*"))):
            for crd in read(path):
                for v in crd["spec"]["versions"]:
                    key = crd["spec"]["group"] + "/" + v["name"], crd["spec"]["names"]["kind"]
                    found[key] = v["schema"]["openAPIV3Schema"]
    return found


def read(path):
    if path.endswith(".json.xz"):
        with lzma.open(path) as f:
            return [json.load(f)]
    if not path.endswith((".yaml", ".out")):
        return []
    with open(path) as f:
        return [d for d in yaml.safe_load_all(f) if d]


def faults(schema, value, path):
    """A line for everything that is wrong."""
    if value is None:
        if not schema.get("nullable"):
            yield f"{path}: is null"
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            yield f"{path}: must be an integer or a string"
        return
    kind = schema.get("type")
    wrong = kind and (not isinstance(value, TYPES[kind]) or
                      (isinstance(value, bool) and kind != "boolean"))
    if wrong:
        yield f"{path}: must be of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: must be one of {schema['enum']}"
    if isinstance(value, dict):
        yield from object_faults(schema, value, path)
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30):
            yield f"{path}: has {len(value)} items"
        for i, item in enumerate(value):
            yield from faults(schema.get("items", {}), item, f"{path}[{i}]")
    elif isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30):
            yield f"{path}: has {len(value)} characters"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path}: must match {schema['pattern']}"
    elif not isinstance(value, bool):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            yield f"{path}: is {value}"


def object_faults(schema, value, path):
    known, more = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", []):
        if name not in value:
            yield f"{path}.{name}: is missing"
    for name, v in value.items():
        if name in known:
            yield from faults(known[name], v, f"{path}.{name}")
        elif isinstance(more, dict):
            yield from faults(more, v, f"{path}.{name}")
        elif "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{name}: is unknown"


def check(document, known):
    """Its faults; None for a kind without a schema."""
    schema = known.get((document["apiVersion"], document["kind"]))
    if schema is None:
        return None if document["apiVersion"] in OWN else [f"no schema for {document['kind']}"]
    head = {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"}}
    whole = {**schema, "properties": {**schema.get("properties", {}), **head}}
    return list(faults(whole, document, document["kind"]))


if __name__ == "__main__":
    said = [f"{path}: {line}" for path in sys.argv[1:] for d in read(path)
            for line in check(d, schemas()) or []]
    print("\n".join(said) or "ok")
    sys.exit(bool(said))
