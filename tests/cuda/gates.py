# tests/cuda/gates.py - the kernels without a GPU: what they take, what they say, how they read.
#
#   gates.py [--write] OBJECT... COUNTERS.json    compares with tests/cuda/resources.txt, or makes it
#
# For every kernel and architecture ptxas says registers, spills and shared memory; a number that
# grows past the committed one fails.  The PTX itself is held to rules: which instructions a kernel
# must have, and which none may.  The PTX is read out of the objects (it is not compressed there).
# What src/cuda/blas.c looks up by name must be in the real cuBLAS.
# The counters are what the emulator saw in backend_test (CUSIM_STATS): each attention and product
# kernel must have run, and moved few more sectors and wavefronts than its bytes need.
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TABLE = os.path.join(HERE, "resources.txt")
PTXAS = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "ptxas")
NAMES = ("kernel", "arch", "registers", "spill", "shared")
# Kernel name (a part of it): instructions that it must have.
MUST = {
    "6attend": ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
                "ldmatrix.sync.aligned.m8n8.x4.shared", "ldmatrix.sync.aligned.m8n8.x4.trans"],
    "12attend_mixed": ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
                       "ldmatrix.sync.aligned.m8n8.x4.shared",
                       "ldmatrix.sync.aligned.m8n8.x4.trans"],
    "8gemm_few": ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"],
    "9gemm_many": ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"],
    "7move_kvI5uint4": ["ld.global.v4", "st.global.v4"],
    "6unpack": ["st.global.v4"],
}
NEVER = [(r"\.f64\b", "double precision"), (r"\b(ld|st)\.local", "local memory"),
         (r"\bbar\.sync\s+\d+\s*,\s*\d", "a barrier of a part of the block")]

COUNTED = ("attend", "gemm", "unpack")    # in a kernel's name
MOST = {"global_sectors": 1.1, "shared_wavefronts": 1.2}     # times the ideal


def ptx_of(path):
    """The PTX texts in an object: from .version to the first byte that is no text."""
    data = open(path, "rb").read()
    return [m.group(0).decode() for m in re.finditer(rb"\.version \d[\t\n\r -~]+", data)]


def kernels_of(text):
    for part in re.split(r"(?=\.(?:visible )?\.?entry )", text)[1:]:
        name = re.search(r"entry\s+([\w$]+)", part).group(1)
        yield name, part


def lint(arch, text):
    wrong = []
    for name, body in kernels_of(text):
        for pattern, what in NEVER:
            if re.search(pattern, body):
                wrong.append(f"{name} {arch}: {what}")
        for part, needed in MUST.items():
            if part in name:
                wrong += [f"{name} {arch}: has no {i}" for i in needed if i not in body]
        if re.search("6attend|12attend_mixed", name) and name.count("ELb0EE") and "cp.async.cg" not in body:
            wrong.append(f"{name} {arch}: has no cp.async.cg")
    return wrong


def resources(arch, text):
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "k.ptx")
        open(source, "w").write(text)
        out = subprocess.run([PTXAS, "-v", f"-arch={arch}", source, "-o", os.path.join(folder, "k")],
                             check=True, capture_output=True, text=True).stderr
    rows, name, spill = [], None, 0
    for line in out.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)'", line):
            name = m.group(1)
        elif m := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spill = int(m.group(1)) + int(m.group(2))
        elif name and (m := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            rows.append((name, arch, int(m.group(1)), spill, int(shared.group(1)) if shared else 0))
            name = None
    return rows


def read_table():
    rows = {}
    for line in open(TABLE):
        if not line.startswith("#"):
            name, arch, *numbers = line.split()
            rows[name, arch] = [int(n) for n in numbers]
    return rows


def compare(rows):
    known, wrong = read_table(), []
    for name, arch, *now in rows:
        before = known.get((name, arch))
        if before is None:
            wrong.append(f"{name} {arch}: not in the table")
        for what, a, b in zip(NAMES[2:], before or now, now):
            if b > a:
                wrong.append(f"{name} {arch}: {what} {a} -> {b}")
    return wrong


def count(path, rows):
    counters = {k["kernel"]: k for k in json.load(open(path))}
    wrong = []
    for name in sorted({r[0] for r in rows if any(c in r[0] for c in COUNTED)}):
        if name not in counters:
            wrong.append(f"{name}: has not run in the emulator")
            continue
        for what, most in MOST.items():
            now, ideal = counters[name][what], counters[name][what + "_ideal"]
            if now > most * ideal:
                wrong.append(f"{name}: {what} {now / max(ideal, 1):.3f} of the ideal, over {most}")
    return wrong


def library():
    """Names that src/cuda/blas.c looks up at run time and NVIDIA's library does not have."""
    path = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "lib64/libcublas.so.13")
    with open(os.path.join(HERE, "../../src/cuda/blas.c")) as f:
        calls = re.search(r"#define CALLS\(X\)(.*?)\n\n", f.read(), re.S).group(1)
    wanted = {"cublas" + name for name in re.findall(r"X\((\w+)\)", calls)}
    there = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True,
                           text=True).stdout
    has = {line.split()[-1].split("@")[0] for line in there.splitlines()}
    return [f"{path} has no {name}" for name in sorted(wanted - has)] if wanted else ["no names"]


def main():
    write = "--write" in sys.argv
    rows, wrong = [], library()
    paths = [a for a in sys.argv[1:] if not a.startswith("-")]
    for path in [p for p in paths if p.endswith(".o")]:
        for text in ptx_of(path):
            arch = re.search(r"\.target\s+(\w+)", text).group(1)
            wrong += lint(arch, text)
            rows += resources(arch, text)
    rows.sort()
    if write:
        with open(TABLE, "w") as f:
            f.write("# " + " ".join(NAMES) + "  (tests/cuda/gates.py --write)\n")
            f.writelines(" ".join(map(str, r)) + "\n" for r in rows)
    else:
        wrong += compare(rows)
    for path in [p for p in paths if p.endswith(".json")]:
        wrong += count(path, rows)
    for line in wrong:
        print("cuda-gates:", line)
    print(f"cuda-gates: {len(rows)} kernels by architecture, {len(wrong)} worse")
    return 1 if wrong or not rows else 0


sys.exit(main())
