/* engine/cpu/simd_kv.h - elements of the KV pool as floats and back, for the instruction set of the
 * including file.
 *
 * 8-bit elements are a byte and their position's scale (one for its key, one for its value): int8
 * is scale * byte; fp8 (E4M3) is scale * the F16 number whose exponent and upper mantissa bits the
 * byte is, so values up to 448 are stored as up to 1.75 and no code is an infinity or a NaN.
 */
#ifndef RANKSERVE_ENGINE_CPU_SIMD_KV_H
#define RANKSERVE_ENGINE_CPU_SIMD_KV_H

#include "engine/cpu/simd.h"

/* LANES elements, without their scales.  `at` and `sub` are kv_run() and kv_sub() of a dimension of
 * keys, or of a position of values. */
INLINE vf kv_load(const uint8_t *at, enum kv_type type, uint32_t sub)
{
    switch (type) {
    case KV_F32: return vf_load((const float *)(const void *)at);
    case KV_F16: return vf_load_half(at);
    case KV_INT8: return vf_load_int8_of(at, sub);
    default: return vf_load_fp8(at);
    }
}

/* Eight floats, times `inverse`, to the nearest whole numbers. */
INLINE __m256i whole8(const float *x, __m256 inverse)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
}

/* Sixteen floats, times `inverse`, as bytes. */
INLINE __m128i int8_of(const float *x, __m256 inverse)
{
    __m256i both = _mm256_packs_epi32(whole8(x, inverse), whole8(x + 8, inverse));
    both = _mm256_permute4x64_epi64(both, 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}

/* Eight floats, times `inverse`, to F16 and on to the nearest code, in 16 bits each. */
INLINE __m128i fp8_of_8(const float *x, __m256 inverse)
{
    __m128i half = _mm256_cvtps_ph(_mm256_mul_ps(_mm256_loadu_ps(x), inverse), 0);
    __m128i size = _mm_and_si128(half, _mm_set1_epi16(0x7fff));
    __m128i odd = _mm_and_si128(_mm_srli_epi16(size, 7), _mm_set1_epi16(1));
    size = _mm_srli_epi16(_mm_add_epi16(_mm_add_epi16(size, _mm_set1_epi16(0x3f)), odd), 7);
    size = _mm_min_epi16(size, _mm_set1_epi16(0x7e));
    return _mm_or_si128(size, _mm_and_si128(_mm_srli_epi16(half, 8), _mm_set1_epi16(0x80)));
}

static const float fp8_scales[] = FP8_SCALE_LIST, fp8_inverses[] = FP8_INVERSE_LIST;

/* Which of fp8_scales errs least: how much of a step is lost depends on where elements lie between
 * two powers of two. */
INLINE int fp8_best_scale(const float *x, uint32_t n, float inverse)
{
    int best = 0;
    float least = INFINITY;
    vf sum[FP8_SCALES];
    UNROLL for (int s = 0; s < FP8_SCALES; s++) sum[s] = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = vf_load(x + i) * vf_all(inverse);
        UNROLL for (int s = 0; s < FP8_SCALES; s++) {
            vf y = v * vf_all(fp8_inverses[s]);
            vf error = (vf)(((vi)y + 0x80000) & -0x100000) - y;
            sum[s] = vf_fma(error, error, sum[s]);
        }
    }
    UNROLL for (int s = 0; s < FP8_SCALES; s++) {
        float all = vf_sum(sum[s]) * (fp8_scales[s] * fp8_scales[s]);
        best = all < least ? s : best;
        least = all < least ? all : least;
    }
    return best;
}

/* What the rounding of a key can still choose: an element may change to the other of its two codes.
 * What that adds to (sum over queries (q . error)^2 + unseen * error . error) is
 * cost + sum over queries seen * step. */
struct rounding {
    _Alignas(64) float change[HEAD_DIM_MAX];  /* in the units of codes; 0: there is no other    */
    _Alignas(64) float cost[HEAD_DIM_MAX];    /* infinite once it changed                       */
    _Alignas(64) float step[KEY_QUERIES_MAX][HEAD_DIM_MAX];    /* query * change               */
    vf seen[KEY_QUERIES_MAX];                 /* 2 * (query . error)                            */
    float unseen;                             /* weight of an error whoever sees it             */
};

/* From the code v of y to the one on the other side of y, of the same sign; 0: there is none. */
INLINE vf other_code(enum kv_type type, vf v, vf y)
{
    if (type == KV_INT8) {
        vf other = v + (vf)(((vi)vf_all(1) | ((v > y) & INT32_MIN)));
        return vf_min(vf_max(other, vf_all(-KV_INT8_MOST)), vf_all(KV_INT8_MOST)) - v;
    }
    vf size = vf_abs(v);
    vi grows = vf_abs(y) > size;
    vi there = (size > vf_all(0x1p-14f)) & ~(grows & (size >= vf_all(KV_FP8_MOST)));
    return (vf)((vi)((vf)((vi)v + (grows & 0x200000) - 0x100000) - v) & there);
}

INLINE float squares_of(const float *x, uint32_t n)
{
    vf sum = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) sum = vf_fma(vf_load(x + i), vf_load(x + i), sum);
    return vf_sum(sum);
}

INLINE void rounding_start(struct rounding *r, enum kv_type type, const float *x, uint32_t n,
                           float inverse, const float *queries, uint32_t count,
                           const uint8_t *bytes)
{
    vf unseen = vf_all(KEY_UNSEEN * squares_of(queries, n * count) / (float)n);
    for (uint32_t h = 0; h < count; h++) r->seen[h] = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = type == KV_INT8 ? vf_load_int8(bytes + i) : vf_load_fp8(bytes + i);
        vf y = vf_load(x + i) * vf_all(inverse), error = v - y;
        vf change = other_code(type, v, y);
        vf cost = unseen * change * (error + error + change);
        for (uint32_t h = 0; h < count; h++) {
            vf q = vf_load(queries + h * n + i), step = q * change;
            r->seen[h] = vf_fma(q, error + error, r->seen[h]);
            cost = vf_fma(step, step, cost);
            vf_store(r->step[h] + i, step);
        }
        vf_store(r->change + i, change);
        vf_store(r->cost + i, cost);
    }
    for (uint32_t h = 0; h < count; h++) r->seen[h] = vf_all(vf_sum(r->seen[h]));
    r->unseen = vf_top(unseen);
}

INLINE vi lane_numbers(void)
{
    _Alignas(64) static const int32_t numbers[16] = { 0, 1, 2, 3, 4, 5, 6, 7,
                                                      8, 9, 10, 11, 12, 13, 14, 15 };
    return *(const vi *)(const void *)numbers;
}

/* The element whose change helps most; HEAD_DIM_MAX: none does.  (Elements' numbers take the place
 * of the lowest bits of what they add.) */
INLINE uint32_t rounding_best(const struct rounding *r, uint32_t n, uint32_t count)
{
    vi number = lane_numbers();
    vf best = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES, number += LANES) {
        vf adds = vf_load(r->cost + i);
        for (uint32_t h = 0; h < count; h++) {
            adds = vf_fma(r->seen[h], vf_load(r->step[h] + i), adds);
        }
        best = vf_min((vf)(((vi)adds & -HEAD_DIM_MAX) | number), best);
    }
    float least = 0 - vf_top(vf_zero() - best);
    uint32_t bits;
    memcpy(&bits, &least, sizeof bits);
    return least < -1e-6f * r->unseen ? bits % HEAD_DIM_MAX : HEAD_DIM_MAX;
}

INLINE void rounding_change(struct rounding *r, uint32_t count, enum kv_type type, uint32_t at,
                            uint8_t *byte)
{
    bool negative = type == KV_FP8 && *byte & 0x80;
    *byte = (uint8_t)(*byte + ((r->change[at] > 0) != negative ? 1 : -1));
    for (uint32_t h = 0; h < count; h++) {
        vf step = vf_all(r->step[h][at]);
        r->seen[h] += step + step;
    }
    /* A whole vector, because the next round reads it whole. */
    float *cost = r->cost + at / LANES * LANES;
    vi chosen = lane_numbers() == (int32_t)(at % LANES);
    vf_store(cost, (vf)(((vi)vf_load(cost) & ~chosen) | ((vi)vf_all(INFINITY) & chosen)));
}

/* Rounds some elements of a key to the other side, so that its own queries see less of the error:
 * others of the head look much the same way. */
INLINE void shape(enum kv_type type, const float *x, uint32_t n, float inverse,
                  const float *queries, uint32_t count, uint8_t *bytes)
{
    struct rounding r;
    rounding_start(&r, type, x, n, inverse, queries, count, bytes);
    for (uint32_t i = 0; i < n / KEY_FLIP_EVERY; i++) {
        uint32_t at = rounding_best(&r, n, count);
        if (at >= n) break;
        rounding_change(&r, count, type, at, bytes + at);
    }
}

ENTRY float rows_to_byte(enum kv_type type, const float *x, uint32_t n, const float *queries,
                          uint32_t count, uint8_t *out)
{
    vf top = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) top = vf_max(top, vf_abs(vf_load(x + i)));
    float most = type == KV_INT8 ? KV_INT8_MOST : KV_FP8_MOST, amax = vf_top(top);
    float inverse = amax > KV_BYTE_LEAST ? most / amax : 0;
    int scale = type == KV_FP8 ? fp8_best_scale(x, n, inverse) : 0;
    inverse *= fp8_inverses[scale];
    __m256 all = _mm256_set1_ps(inverse);
    for (uint32_t i = 0; i < n; i += 16) {
        __m128i bytes = type == KV_INT8 ? int8_of(x + i, all) :
                        _mm_packus_epi16(fp8_of_8(x + i, all), fp8_of_8(x + i + 8, all));
        _mm_storeu_si128((__m128i *)(void *)(out + i), bytes);
    }
    switch (inverse > 0 ? count : 0) {
    case 0: break;
    case 1: shape(type, x, n, inverse, queries, 1, out); break;
    case 2: shape(type, x, n, inverse, queries, 2, out); break;
    case 3: shape(type, x, n, inverse, queries, 3, out); break;
    case 4: shape(type, x, n, inverse, queries, 4, out); break;
    default: shape(type, x, n, inverse, queries, count, out);
    }
    return inverse > 0 ? amax / most * fp8_scales[scale] : 0;
}

#endif
