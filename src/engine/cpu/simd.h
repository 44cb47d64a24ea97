/* engine/cpu/simd.h - one vector type for two instruction sets, and what both compute with it.
 *
 * Included by the files that are compiled for AVX2 or AVX-512.  vf is 8 or 16 floats; the names
 * below are all that simd_rows.h, simd_attend.h and simd_float.h use.  Multiply-add is always the
 * fused one, exp is the same polynomial in every lane; a value's bits never depend on its place.
 */
#ifndef RANKSERVE_ENGINE_CPU_SIMD_H
#define RANKSERVE_ENGINE_CPU_SIMD_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "engine/cpu/kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define ENTRY static __attribute__((unused))      /* of a table, which not every file has */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define UNROLL                        /* a check at each access: minutes to compile */
#elif defined __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#ifdef __AVX512F__

enum { LANES = 16 };
typedef __m512 vf;
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_all(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *at) { return _mm512_loadu_ps(at); }
INLINE void vf_store(float *at, vf x) { _mm512_storeu_ps(at, x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, 8); }
INLINE vf vf_load_half(const void *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
}
INLINE void vf_store_half(void *at, vf x)
{
    _mm256_storeu_si256((__m256i *)at, _mm512_cvtps_ph(x, 8));
}
INLINE vf vf_load_bf16(const void *at)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE vf vf_load_int8(const void *at)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
}
/* Byte `sub` of each of 16 fours. */
INLINE vf vf_load_int8_of(const void *at, uint32_t sub)
{
    __m512i top = _mm512_slli_epi32(_mm512_loadu_si512(at), 24 - 8 * sub);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24));
}
/* Sign, 4 bits of exponent and 3 of mantissa, moved to where F16 has them. */
INLINE vf vf_load_fp8(const void *at)
{
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7),
                                            _mm256_set1_epi16((short)0xbfff)));
}
INLINE vf vf_load_u8(const void *at)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at)));
}
/* x * 2^n for whole n in the range of normal floats. */
INLINE vf vf_scale(vf x, vf n)
{
    __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n),
                                                      _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(x, _mm512_castsi512_ps(bits));
}
/* value where x >= limit, else 0. */
INLINE vf vf_keep_from(vf value, vf x, vf limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), value);
}
/* The first n lanes of x, `other` in the rest. */
INLINE vf vf_first(vf x, uint32_t n, vf other)
{
    return n >= 16 ? x : _mm512_mask_mov_ps(other, (__mmask16)((1u << n) - 1), x);
}
INLINE vf vf_abs(vf x) { return _mm512_abs_ps(x); }
INLINE __m256 vf_low(vf x) { return _mm512_castps512_ps256(x); }
INLINE __m256 vf_high(vf x) { return _mm512_extractf32x8_ps(x, 1); }
/* Each lane's neighbour at a distance of 1, 2, 4 (and 8): lane i gets lane i ^ step. */
INLINE vf vf_swap(vf x, uint32_t step)
{
    switch (step) {
    case 1: return _mm512_permute_ps(x, 0xb1);
    case 2: return _mm512_permute_ps(x, 0x4e);
    case 4: return _mm512_shuffle_f32x4(x, x, 0xb1);
    default: return _mm512_shuffle_f32x4(x, x, 0x4e);
    }
}

#else

enum { LANES = 8 };
typedef __m256 vf;
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_all(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *at) { return _mm256_loadu_ps(at); }
INLINE void vf_store(float *at, vf x) { _mm256_storeu_ps(at, x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_round(vf a) { return _mm256_round_ps(a, 8); }
INLINE vf vf_load_half(const void *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
}
INLINE void vf_store_half(void *at, vf x)
{
    _mm_storeu_si128((__m128i *)at, _mm256_cvtps_ph(x, 0));
}
INLINE vf vf_load_bf16(const void *at)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE vf vf_load_int8(const void *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
INLINE vf vf_load_int8_of(const void *at, uint32_t sub)
{
    __asm__ volatile("" : "+r"(at));  /* loaded for each byte: no register could keep it */
    __m256i top = _mm256_slli_epi32(_mm256_loadu_si256(at), (int)(24 - 8 * sub));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24));
}
INLINE vf vf_load_fp8(const void *at)
{
    __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)at));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7),
                                         _mm_set1_epi16((short)0xbfff)));
}
INLINE vf vf_load_u8(const void *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}
INLINE vf vf_scale(vf x, vf n)
{
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n),
                                                      _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(bits));
}
INLINE vf vf_keep_from(vf value, vf x, vf limit)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ), value);
}
INLINE vf vf_first(vf x, uint32_t n, vf other)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(in));
}
INLINE vf vf_abs(vf x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
INLINE __m256 vf_low(vf x) { return x; }
INLINE __m256 vf_high(vf x) { return x; }
INLINE vf vf_swap(vf x, uint32_t step)
{
    switch (step) {
    case 1: return _mm256_permute_ps(x, 0xb1);
    case 2: return _mm256_permute_ps(x, 0x4e);
    default: return _mm256_permute2f128_ps(x, x, 1);
    }
}

#endif

enum { PARTS = PANEL / LANES };       /* vectors of a panel's outputs */

/* The same bits as whole numbers; comparisons of either give -1 or 0 in each lane. */
typedef int32_t vi __attribute__((vector_size(sizeof(vf)), may_alias));

/* Lanes added in a fixed tree: each with the one half a vector further. */
INLINE float vf_sum(vf x)
{
    __m256 eight = vf_low(x);
    if (LANES == 16) eight = _mm256_add_ps(eight, vf_high(x));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float vf_top(vf x)
{
    __m256 eight = vf_low(x);
    if (LANES == 16) eight = _mm256_max_ps(eight, vf_high(x));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* e^x to about one unit in the last place; 0 below -87.3 (and for NaN), at most e^88. */
INLINE vf vf_exp(vf x)
{
    const vf low = vf_all(-87.3f);
    vf in = vf_min(vf_max(x, low), vf_all(88.0f));
    vf n = vf_round(in * vf_all(1.44269504088896341f));
    vf r = vf_fma(n, vf_all(-0.693359375f), in);         /* ln 2 in two parts (Cody, Waite) */
    r = vf_fma(n, vf_all(2.12194440e-4f), r);
    vf p = vf_all(1.9875691500e-4f);                     /* cephes' polynomial for e^r */
    p = vf_fma(p, r, vf_all(1.3981999507e-3f));
    p = vf_fma(p, r, vf_all(8.3334519073e-3f));
    p = vf_fma(p, r, vf_all(4.1665795894e-2f));
    p = vf_fma(p, r, vf_all(1.6666665459e-1f));
    p = vf_fma(p, r, vf_all(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + vf_all(1.0f);
    return vf_keep_from(vf_scale(p, n), x, low);
}

#endif
