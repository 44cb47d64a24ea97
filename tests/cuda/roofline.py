# tests/cuda/roofline.py - how fast the kernels could be at most, calculated from counts.
#
#   roofline.py BUILD > perf/results/cuda-roofline.md         (make cuda-roofline)
#
# Each case runs once in emulation (tests/cuda/roofline.c); nothing here was measured on a GPU.
import json
import os
import subprocess
import sys
import tempfile

# Public data sheets: SMs, bytes/s of memory, clock at which the tensor cores reach their peak.
GPUS = {"H100 SXM": (132, 3.35e12, 1.83e9), "B200": (148, 8.0e12, 1.85e9)}
# A clock of an SM: bytes out of L1 and shared memory, warp instructions, and multiply-adds of
# mma.sync.  The last is not what wgmma and tcgen05 do: the same for both, 0.63 of an H100's 2048.
L1_BYTES, ISSUES, MULTIPLY_ADDS = 128, 4, 0.63 * 2048
MMA = 16 * 8 * 16                     # multiply-adds of one instruction
CASES = [("attend", kv, tokens, length) for kv in ("f16", "fp8")
         for tokens, length in (("0", "4096"), ("512", "512"), ("256", "4096"))]
CASES += [("gemm", kind, rows, "4096", "4096") for kind in ("f16", "q8_0", "q4_0", "q4_1")
          for rows in ("1", "16")]
CASES += [("unpack", kind, "1024", "4096") for kind in ("q8_0", "q4_0", "q4_1")]
CASES += [("gemm", kind, "512", "1024", "4096") for kind in ("f16", "q8_0", "q4_0", "q4_1")]


def describe(case):
    if case[0] == "gemm":
        return f"product {case[1]}, {case[2]} row{'s'[case[2] == '1':]}, {case[4]} in, {case[3]} out"
    if case[0] == "unpack":
        return f"unpack {case[1]} for cuBLAS, {case[3]} in, {case[2]} out"
    if case[2] == "0":
        return f"attention {case[1]}, 8 sequences decode at {case[3]}"
    return f"attention {case[1]}, {case[2]} tokens of a prompt up to {case[3]}"


def run(build, case):
    with tempfile.TemporaryDirectory() as folder:
        stats = os.path.join(folder, "stats")
        out = subprocess.run([os.path.join(build, "cuda/roofline"), *case], check=True, text=True,
                             stdout=subprocess.PIPE,
                             env={**os.environ, "LD_LIBRARY_PATH": os.path.join(build, "cusim"),
                                  "CUSIM_CHECK": "0", "CUSIM_STATS": stats,
                                  "CUSIM_PATIENCE": "600"})
        (counts,) = json.load(open(stats))
        return int(out.stdout), counts


def times(gpu, crossed, c):
    """Microseconds that each part of the GPU is busy at least, all SMs alike."""
    sms, bandwidth, clock = GPUS[gpu]
    turns = sms * clock / 1e6
    return {
        "memory": crossed / bandwidth * 1e6,
        "tensor": c["mma"] * MMA / MULTIPLY_ADDS / turns,
        "L1": (c["global_sectors"] * 32 / L1_BYTES + c["shared_wavefronts"]) / turns,
        "issue": c["warp_instructions"] / ISSUES / turns,
    }


def main():
    results = [(describe(case), *run(sys.argv[1], case)) for case in CASES]
    print("""# CUDA kernels: rooflines

**Calculated, not measured.** Counts come from emulation (`tests/cusim`, PTX of compute_80); no GPU
was used. `make cuda-roofline` makes this file. For each case the microseconds that a part of the GPU
is busy at least, if all SMs share the work evenly; the longest is the bound:

- memory: weights, KV, inputs and results, each across the device's memory once;
- tensor: `mma.sync` at 0.63 of an H100's dense F16 peak per SM and clock, on both (assumed; wgmma
  and tcgen05 are faster, and not used);
- L1: 128 bytes a clock and SM for sectors and shared memory's wavefronts together;
- issue: PTX instructions, four a clock and SM; machine code differs.

Attention has 32 heads on 8 kv heads of 128.""")
    for gpu, (sms, bandwidth, clock) in GPUS.items():
        print(f"\n## {gpu}\n\n{sms} SMs, {bandwidth / 1e12:.2f} TB/s, {clock / 1e9:.2f} GHz\n")
        print("| case | memory | tensor | L1 | issue | bound | memory / bound |")
        print("|---|---:|---:|---:|---:|---|---:|")
        for name, crossed, counts in results:
            t = times(gpu, crossed, counts)
            bound = max(t, key=t.get)
            print(f"| {name} | " + " | ".join(f"{v:.2f}" for v in t.values()) +
                  f" | {bound} | {t['memory'] / t[bound]:.0%} |")


main()
