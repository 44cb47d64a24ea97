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

static float rows_to_byte(enum kv_type type, const float *x, uint32_t n, uint8_t *out)
{
    vf top = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) top = vf_max(top, vf_abs(vf_load(x + i)));
    float most = type == KV_INT8 ? KV_INT8_MOST : KV_FP8_MOST, amax = vf_top(top);
    __m256 inverse = _mm256_set1_ps(amax > KV_BYTE_LEAST ? most / amax : 0);
    for (uint32_t i = 0; i < n; i += 16) {
        __m128i bytes = type == KV_INT8 ? int8_of(x + i, inverse) :
                        _mm_packus_epi16(fp8_of_8(x + i, inverse), fp8_of_8(x + i + 8, inverse));
        _mm_storeu_si128((__m128i *)(void *)(out + i), bytes);
    }
    return amax > KV_BYTE_LEAST ? amax / most : 0;
}

#endif
