/* perf/peak_avx512.c - the peaks of AVX-512 with VNNI; see peak.h. */
#include "peak.h"

#include <immintrin.h>

#define TOUCH(x) __asm__ volatile("" : "+v"(x))

enum { CHAINS = 16 };

uint64_t peak_int8_avx512(uint64_t rounds)
{
    __m512i sum[CHAINS], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_setzero_si512();
    for (uint64_t r = 0; r < rounds; r++) {
        TOUCH(a);
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
    }
    for (int i = 0; i < CHAINS; i++) TOUCH(sum[i]);
    return rounds * CHAINS * 64 * 2;
}

uint64_t peak_f32_avx512(uint64_t rounds)
{
    __m512 sum[CHAINS], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_setzero_ps();
    for (uint64_t r = 0; r < rounds; r++) {
        TOUCH(a);
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_fmadd_ps(a, b, sum[i]);
    }
    for (int i = 0; i < CHAINS; i++) TOUCH(sum[i]);
    return rounds * CHAINS * 16 * 2;
}
