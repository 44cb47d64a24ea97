/* cuda/blocks.h - how the lanes of a warp read weights, in blocks or in F16, as pairs of F16.
 *
 * A unit is 8 rows of W and 64 inputs (cuda/pack.c). Lane (g, t) holds row g, inputs 8t .. 8t+7 of
 * each half of 32.  A block's integers are exact in F16; its scale is the caller's business.
 */
#ifndef RANKSERVE_CUDA_BLOCKS_H
#define RANKSERVE_CUDA_BLOCKS_H

#include "cuda/device.h"

/* 0x64 in front of a byte makes F16 1024 + byte. */
DEVICE uint32_t minus_f16(uint32_t both, uint32_t less)
{
    __half2 h = __hsub2(*(__half2 *)&both, *(__half2 *)&less);
    return *(uint32_t *)&h;
}

DEVICE uint32_t pair_of_bytes(uint32_t bytes, int first)
{
    uint32_t order = 0x4040u | (first + 1) << 8 | first;
    return minus_f16(__byte_perm(bytes ^ 0x80808080u, 0x64646464u, order), 0x64806480u);
}

/* The same for a nibble: 1024 + nibble. */
DEVICE uint32_t pair_of_nibbles(uint32_t word, int pair, uint32_t less)
{
    return minus_f16(((word >> 4 * pair) & 0x000f000fu) | 0x64006400u, less);
}

/* What a lane reads for 64 inputs of one column tile. */
template <int TYPE> struct lane_weights {
    uint4 half[2];
};
template <> struct lane_weights<WEIGHT_Q8_0> {
    uint4 both;
};
template <> struct lane_weights<WEIGHT_Q4_0> {
    uint2 both;
};
template <> struct lane_weights<WEIGHT_Q4_1> {
    uint2 both;
};

template <int TYPE>
DEVICE void fetch(const weights &w, int column0, int k, int lane, lane_weights<TYPE> &to)
{
    if constexpr (TYPE == WEIGHT_F16) {
        const uint16_t *row = (const uint16_t *)w.q + (int64_t)(column0 + lane / 4) * w.in;
        to.half[0] = *(const uint4 *)(row + k + lane % 4 * 8);
        to.half[1] = *(const uint4 *)(row + k + 32 + lane % 4 * 8);
    } else {
        int64_t i = ((int64_t)(column0 / 8) * (w.in / 64) + k / 64) * 32 + lane;
        to.both = ((const decltype(to.both) *)w.q)[i];
    }
}

template <int TYPE> DEVICE void expand(const lane_weights<TYPE> &from, int half, uint32_t to[4])
{
    if constexpr (TYPE == WEIGHT_Q8_0) {
        uint32_t low = half ? from.both.z : from.both.x, high = half ? from.both.w : from.both.y;
        to[0] = pair_of_bytes(low, 0), to[1] = pair_of_bytes(low, 2);
        to[2] = pair_of_bytes(high, 0), to[3] = pair_of_bytes(high, 2);
    } else if constexpr (TYPE == WEIGHT_Q4_0 || TYPE == WEIGHT_Q4_1) {
        uint32_t less = TYPE == WEIGHT_Q4_0 ? 0x64086408u : 0x64006400u;   /* 1032, 1024 */
        uint32_t word = half ? from.both.y : from.both.x;
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = pair_of_nibbles(word, i, less);
    } else {
        const uint4 &v = from.half[half];
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
}

/* The scale (or min) of row n's block at input k. */
DEVICE float block_scale(const weights &w, const void *plane, int n, int k)
{
    int64_t i = ((int64_t)(n / 8) * (w.in / 32) + k / 32) * 8 + n % 8;
    return f16_to_float(((const uint16_t *)plane)[i]);
}

#endif
