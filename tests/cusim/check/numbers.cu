/* tests/cusim/check/numbers.cu - instructions whose results numbers.c compares with its own. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>

#define KERNEL(name, threads)                                                                    \
    static __global__ void name(const uint32_t *in, uint32_t *out);                              \
    extern "C" cudaError_t k_##name(const uint32_t *in, uint32_t *out, cudaStream_t s)           \
    {                                                                                            \
        name<<<1, threads, 0, s>>>(in, out);                                                     \
        return cudaGetLastError();                                                               \
    }                                                                                            \
    static __global__ void name(const uint32_t *in, uint32_t *out)

/* Each thread: 16 results of three inputs. */
KERNEL(integers, 256)
{
    uint32_t x = in[threadIdx.x], y = in[threadIdx.x + 256], z = in[threadIdx.x + 512];
    int32_t s = (int32_t)x, t = (int32_t)y;
    uint32_t *o = out + 16 * threadIdx.x;
    o[0] = __umulhi(x, y);
    o[1] = (uint32_t)__mulhi(s, t);
    o[2] = y ? x / y : 0;
    o[3] = t ? (uint32_t)(s % t) : 0;
    o[4] = __byte_perm(x, y, z);
    o[5] = (uint32_t)__popc(x) + 100 * (uint32_t)__clz((int)y);
    o[6] = __brev(x);
    o[7] = (uint32_t)__dp4a(s, t, (int32_t)z);
    o[8] = __funnelshift_l(x, y, z);
    o[9] = __funnelshift_r(x, y, z);
    asm("bfe.s32 %0, %1, %2, %3;" : "=r"(o[10]) : "r"(x), "r"(y & 31), "r"(z & 31));
    asm("bfe.u32 %0, %1, %2, %3;" : "=r"(o[11]) : "r"(x), "r"(y & 31), "r"(z & 31));
    asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(o[12]) : "r"(x), "r"(y), "r"(z & 31), "r"(x & 15));
    asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(o[13]) : "r"(x), "r"(y), "r"(z));
    uint64_t w = (uint64_t)x << 32 | y;
    o[14] = (uint32_t)(w / (z | 1)) ^ (uint32_t)((int64_t)w % (int64_t)(z | 1));
    o[15] = (uint32_t)((w << (z & 63)) >> 32) ^ (uint32_t)((int64_t)w >> (z & 63));
}

/* A jump table. */
KERNEL(switches, 256)
{
    uint32_t v = in[threadIdx.x];
    switch (v % 9) {
    case 0: v = v * 3 + in[1]; break;
    case 1: v = v ^ in[2]; break;
    case 2: v = v / 7 + 1; break;
    case 3: v = ~v + in[4]; break;
    case 4: v = __popc(v) * in[5]; break;
    case 5: v = v << 3 | 1; break;
    case 6: v = v - in[6]; break;
    case 7: v = __brev(v) + in[7]; break;
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
    o[1] = exp2f(x);
    o[2] = expf(x);
    o[3] = rsqrtf(fabsf(x) + 1);
    o[4] = x / y;
    o[5] = fmaxf(x, y) - fminf(x, y);
    o[6] = (float)(int)x + rintf(y);
    o[7] = __logf(fabsf(y) + 1) + tanhf(x);
}

/* All halves of both kinds to float and back, all pairs of FP8. */
KERNEL(halves, 256)
{
    for (uint32_t k = 0; k < 256; k++) {
        uint32_t v = k << 8 | threadIdx.x;
        float f = __half2float(__ushort_as_half((unsigned short)v));
        float b = __bfloat162float(__ushort_as_bfloat16((unsigned short)v));
        __nv_bfloat162 pair = __floats2bfloat162_rn(f, b);
        out[v] = *(uint32_t *)&pair;
        out[65536 + v] = __half_as_ushort(__float2half(b)) |
                         (uint32_t)__nv_cvt_float_to_fp8(f, __NV_SATFINITE, __NV_E4M3) << 16 |
                         (uint32_t)__nv_cvt_float_to_fp8(f, __NV_SATFINITE, __NV_E5M2) << 24;
    }
    out[131072 + threadIdx.x] = __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)threadIdx.x,
                                                        __NV_E4M3).x;
}

/* Warp operations: shuffles of all kinds, votes, folds. */
KERNEL(warps, 64)
{
    uint32_t v = in[threadIdx.x], *o = out + 8 * threadIdx.x;
    o[0] = __shfl_xor_sync(0xffffffffu, v, 5);
    o[1] = __shfl_up_sync(0xffffffffu, v, 3);
    o[2] = __shfl_down_sync(0xffffffffu, v, 2, 8);
    o[3] = __shfl_sync(0xffffffffu, v, threadIdx.x * 7, 16);
    o[4] = __ballot_sync(0xffffffffu, v & 1);
    o[5] = __reduce_add_sync(0xffffffffu, v) ^ (uint32_t)__reduce_max_sync(0xffffffffu, (int)v);
    o[6] = (uint32_t)__syncthreads_count(v & 1);
    o[7] = __any_sync(0xffffffffu, v > 0xfff00000u) + 2u * __all_sync(0xffffffffu, v != 0);
}

/* A 16 x 16 (rows) and B 8 x 16 (its columns as rows) of bf16 in `in`, products of both forms. */
KERNEL(matrices, 32)
{
    __shared__ __align__(16) uint32_t s[256];
    for (uint32_t k = threadIdx.x; k < 256; k += 32) s[k] = in[k];
    __syncwarp();
    uint32_t a[4], b[2], lane = threadIdx.x;
    uint32_t base = (uint32_t)__cvta_generic_to_shared(s);
    uint32_t at = base + (lane & 15) * 32 + (lane >> 4) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(at));
    at = base + 512 + (lane & 7) * 32 + (lane >> 3 & 1) * 16;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1]) : "r"(at));
    float d[4] = {0, 0, 0, 0};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    int c[4] = {0, 0, 0, 0};    /* the same bytes as 16 x 32 and 32 x 8 of int8 */
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    for (int k = 0; k < 4; k++) {
        uint32_t row = (lane >> 2) + 8 * (k >> 1), column = 2 * (lane & 3) + (k & 1);
        out[row * 8 + column] = __float_as_uint(d[k]);
        out[128 + row * 8 + column] = (uint32_t)c[k];
    }
}

KERNEL(atomics, 256)
{
    uint32_t v = in[threadIdx.x];
    if (threadIdx.x == 0) for (int k = 0; k < 8; k++) out[k] = k == 1 ? 0x7fffffff : 0;
    __syncthreads();
    atomicAdd(&out[0], v);
    atomicMin((int *)&out[1], (int)v);
    atomicMax(&out[2], v);
    atomicXor(&out[3], v);
    atomicAdd((float *)&out[4], (float)(v & 255));
    atomicInc(&out[5], 99);
    atomicOr(&out[6], 1u << (v & 31));
    atomicCAS(&out[7], 0, threadIdx.x + 1);
}
