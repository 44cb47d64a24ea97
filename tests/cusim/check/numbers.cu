/* tests/cusim/check/numbers.cu - instructions whose results numbers.c compares with its own. */
#include <cuda_fp16.h>
#include <stdint.h>

#define KERNEL(name, threads)                                                                    \
    static __global__ void name(const uint32_t *in, uint32_t *out);                              \
    extern "C" cudaError_t k_##name(const uint32_t *in, uint32_t *out, cudaStream_t s)           \
    {                                                                                            \
        name<<<1, threads, 0, s>>>(in, out);                                                     \
        return cudaGetLastError();                                                               \
    }                                                                                            \
    static __global__ void name(const uint32_t *in, uint32_t *out)

/* Each thread: 8 results of three inputs. */
KERNEL(integers, 256)
{
    uint32_t x = in[threadIdx.x], y = in[threadIdx.x + 256], z = in[threadIdx.x + 512];
    int32_t s = (int32_t)x, t = (int32_t)y;
    uint32_t *o = out + 8 * threadIdx.x;
    o[0] = y ? x / y : 0;
    o[1] = t ? (uint32_t)(s % t) : 0;
    o[2] = __byte_perm(x, y, z);
    o[3] = __funnelshift_l(x, y, z);
    asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(o[4]) : "r"(x), "r"(y), "r"(z & 31), "r"(x & 15));
    uint64_t w = (uint64_t)x << 32 | y;
    o[5] = (uint32_t)(w / (z | 1)) ^ (uint32_t)((int64_t)w / (int64_t)(z | 1));
    o[6] = (uint32_t)((w << (z & 63)) >> 32) ^ (uint32_t)(w >> (z & 63));
    o[7] = (uint32_t)(min(s, t) ^ max(s, t)) + min(x, z) * 3 + max(y, z);
}

/* A jump table. */
KERNEL(switches, 256)
{
    uint32_t v = in[threadIdx.x];
    switch (in[threadIdx.x + 256]) {
    case 0: v = v * 3 + in[1]; break;
    case 1: v = v ^ in[2]; break;
    case 2: v = v / 7 + 1; break;
    case 3: v = ~v + in[4]; break;
    case 4: v = v * in[5]; break;
    case 5: v = v << 3 | 1; break;
    case 6: v = v - in[6]; break;
    case 7: v = v % 1000 + in[7]; break;
    default: v = 77; break;
    }
    out[threadIdx.x] = v;
}

/* Floats: 8 results per thread of one input (as a float) and its neighbour. */
KERNEL(floats, 256)
{
    float x = __uint_as_float(in[threadIdx.x]), y = __uint_as_float(in[255 - threadIdx.x]);
    float *o = (float *)out + 8 * threadIdx.x;
    o[0] = fmaf(x, y, 1.5f);
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(o[1]) : "f"(x));
    o[2] = 1 / (x * x + 1);
    o[3] = sqrtf(fabsf(x) + 1);
    o[4] = x / y;
    o[5] = fmaxf(x, y) - fminf(x, y);
    o[6] = (float)__float2int_rn(x) - (float)(unsigned)threadIdx.x;
    o[7] = x < y ? -x : y;
}

/* All halves to float and back, and as pairs. */
KERNEL(halves, 256)
{
    for (uint32_t k = 0; k < 256; k++) {
        uint32_t v = k << 8 | threadIdx.x;
        float f = __half2float(__ushort_as_half((unsigned short)v));
        __half2 pair = __floats2half2_rn(f, f * 0.7f), two = __hsub2(pair, __hmul2(pair, pair));
        out[v] = *(uint32_t *)&pair;
        out[65536 + v] = *(uint32_t *)&two;
    }
}

KERNEL(warps, 64)
{
    uint32_t v = in[threadIdx.x], *o = out + 2 * threadIdx.x;
    o[0] = __shfl_xor_sync(0xffffffffu, v, 5);
    o[1] = __shfl_xor_sync(0xffffffffu, v, 4, 8);
}

/* A 16 x 16 (rows) and B 8 x 16 (its columns as rows; as columns) of halves in `in`. */
KERNEL(matrices, 32)
{
    __shared__ __align__(16) uint32_t s[256];
    for (uint32_t k = threadIdx.x; k < 256; k += 32) s[k] = in[k];
    __syncwarp();
    uint32_t a[4], b[4], lane = threadIdx.x;
    uint32_t base = (uint32_t)__cvta_generic_to_shared(s);
    uint32_t at = base + (lane & 15) * 32 + (lane >> 4) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(at));
    at = base + 512 + (lane & 7) * 32 + (lane >> 3 & 1) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1]) : "r"(at));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[2]), "=r"(b[3]) : "r"(base + 512 + (lane & 15) * 16));
    for (int k = 0; k < 2; k++) {
        float d[4] = {0, 0, 0, 0};
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[2 * k]),
                       "r"(b[2 * k + 1]));
        for (int e = 0; e < 4; e++) {
            uint32_t row = (lane >> 2) + 8 * (e >> 1), column = 2 * (lane & 3) + (e & 1);
            out[128 * k + row * 8 + column] = __float_as_uint(d[e]);
        }
    }
}

KERNEL(atomics, 256)
{
    uint32_t v = in[threadIdx.x];
    if (threadIdx.x == 0) out[0] = out[1] = 0;
    __syncthreads();
    atomicAdd(&out[0], v);
    atomicInc(&out[1], 99);
}
