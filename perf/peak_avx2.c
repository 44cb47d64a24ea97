/* perf/peak_avx2.c - AVX2's peaks; see peak.h. */
#include "peak.h"

#include <immintrin.h>

/* The value may have changed, for all the compiler knows; costs nothing. */
#define TOUCH(x) __asm__ volatile("" : "+x"(x))

enum { CHAINS = 8 };

uint64_t peak_int8_avx2(uint64_t rounds)
{
    __m256i sum[CHAINS], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_setzero_si256();
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++) {
            TOUCH(a);
            __m256i pairs = _mm256_maddubs_epi16(a, b);
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, ones));
        }
    }
    for (int i = 0; i < CHAINS; i++) TOUCH(sum[i]);
    return rounds * CHAINS * 32 * 2;
}

/* 15 * 127 * 2 * 8 < 32768: eight products before one widening. */
uint64_t peak_int4_avx2(uint64_t rounds)
{
    __m256i sum[CHAINS], wide = _mm256_setzero_si256();
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    const __m256i ones = _mm256_set1_epi16(1);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++) {
            TOUCH(a);
            sum[i] = _mm256_maddubs_epi16(a, b);
        }
        for (int turn = 1; turn < 8; turn++) {
#pragma GCC unroll 8
            for (int i = 0; i < CHAINS; i++) {
                TOUCH(a);
                sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(a, b));
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < CHAINS; i++) {
            wide = _mm256_add_epi32(wide, _mm256_madd_epi16(sum[i], ones));
        }
    }
    TOUCH(wide);
    return rounds * CHAINS * 8 * 32 * 2;
}

uint64_t peak_f32_avx2(uint64_t rounds)
{
    enum { F32_CHAINS = 12 };
    __m256 sum[F32_CHAINS], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    for (int i = 0; i < F32_CHAINS; i++) sum[i] = _mm256_setzero_ps();
    for (uint64_t r = 0; r < rounds; r++) {
        TOUCH(a);
#pragma GCC unroll 12
        for (int i = 0; i < F32_CHAINS; i++) sum[i] = _mm256_fmadd_ps(a, b, sum[i]);
    }
    for (int i = 0; i < F32_CHAINS; i++) TOUCH(sum[i]);
    return rounds * F32_CHAINS * 8 * 2;
}

/* `ahead` (a constant): bytes from what is read to what is fetched; 0: nothing. */
static inline __attribute__((always_inline)) uint64_t read_all(const void *at, uint64_t bytes,
                                                               uint64_t ahead)
{
    __m256i sum[CHAINS];
    const __m256i *from = at;
    uint64_t count = bytes / sizeof *from / CHAINS * CHAINS;
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_setzero_si256();
    for (uint64_t i = 0; i < count; i += CHAINS) {
#pragma GCC unroll 8
        for (int j = 0; j < CHAINS; j++) {
            if (ahead && j % 2 == 0) _mm_prefetch((const char *)(from + i + j) + ahead, _MM_HINT_T1);
            sum[j] = _mm256_xor_si256(sum[j], _mm256_loadu_si256(from + i + j));
        }
    }
    for (int i = 0; i < CHAINS; i++) TOUCH(sum[i]);
    return count * sizeof *from;
}

uint64_t peak_read_avx2(const void *at, uint64_t bytes)
{
    return read_all(at, bytes, 0);
}

uint64_t peak_read_ahead_avx2(const void *at, uint64_t bytes)
{
    return read_all(at, bytes, 8 << 10);
}
