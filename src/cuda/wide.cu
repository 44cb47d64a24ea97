/* cuda/wide.cu - what stands before and behind a product of many rows that cuBLAS computes
 * (cuda/blas.c): blocks of weights as F16, and what gemm.cu does with its columns.
 */
#include "cuda/blocks.h"

enum { THREADS = 256, WARPS = THREADS / 32 };

/* Two integers of a block as two weights, each rounded once. */
DEVICE uint32_t scaled(uint32_t pair, float scale, float min)
{
    float2 f = __half22float2(*(__half2 *)&pair);
    return pack_f16(fmaf(f.x, scale, min), fmaf(f.y, scale, min));
}

/* A warp makes 8 rows of 64 inputs; to (rows, in). */
template <int TYPE>
static __global__ void __launch_bounds__(THREADS) unpack(const weights w, int row0, uint16_t *to)
{
    int lane = threadIdx.x & 31, k = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * 64;
    int row = blockIdx.y * 8 + lane / 4;
    lane_weights<TYPE> from;
    if (k >= w.in) return;
    fetch<TYPE>(w, row0 + blockIdx.y * 8, k, lane, from);
#pragma unroll
    for (int half = 0; half < 2; half++, k += 32) {
        uint32_t b[4];
        expand<TYPE>(from, half, b);
        float scale = block_scale(w, w.scales, row0 + row, k), min = 0;
        if constexpr (TYPE == WEIGHT_Q4_1) min = block_scale(w, w.mins, row0 + row, k);
        uint4 wide = make_uint4(scaled(b[0], scale, min), scaled(b[1], scale, min),
                                scaled(b[2], scale, min), scaled(b[3], scale, min));
        store_global(to + (int64_t)row * w.in + k + lane % 4 * 8, wide);
    }
}

static __global__ void __launch_bounds__(THREADS)
finish(const float *sums, int64_t stride, int column0, int columns, const gemm_out out)
{
    int column = 2 * (blockIdx.x * THREADS + threadIdx.x);
    if (column >= columns) return;
    float2 two = *(const float2 *)(sums + blockIdx.y * stride + column);
    emit(out, blockIdx.y, column0 + column, two.x, two.y);
}

/* --- launchers ------------------------------------------------------------------------------- */

extern "C" cudaError_t k_unpack(const struct weights *w, int row0, int rows, void *to,
                                cudaStream_t stream)
{
    dim3 grid((w->in / 64 + WARPS - 1) / WARPS, rows / 8);
    uint16_t *f16 = (uint16_t *)to;
    switch (w->type) {
    case WEIGHT_Q8_0: unpack<WEIGHT_Q8_0><<<grid, THREADS, 0, stream>>>(*w, row0, f16); break;
    case WEIGHT_Q4_0: unpack<WEIGHT_Q4_0><<<grid, THREADS, 0, stream>>>(*w, row0, f16); break;
    case WEIGHT_Q4_1: unpack<WEIGHT_Q4_1><<<grid, THREADS, 0, stream>>>(*w, row0, f16); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

extern "C" cudaError_t k_finish(const float *sums, int64_t stride, int rows, int column0,
                                int columns, const struct gemm_out *out, cudaStream_t stream)
{
    dim3 grid((columns / 2 + THREADS - 1) / THREADS, rows);
    finish<<<grid, THREADS, 0, stream>>>(sums, stride, column0, columns, *out);
    return cudaGetLastError();
}
