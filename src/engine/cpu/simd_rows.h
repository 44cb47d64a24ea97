/* engine/cpu/simd_rows.h - operations on a row, for the instruction set of the including file.
 *
 * Lengths are multiples of 16, those of rows that become 8-bit multiples of 32.
 */
#include "engine/cpu/simd_kv.h"

static void rows_norm(const float *x, const float *weight, float eps, uint32_t n, float *out)
{
    vf squares = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = vf_load(x + i);
        squares = vf_fma(v, v, squares);
    }
    vf inverse = vf_all(1 / sqrtf(vf_sum(squares) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += LANES) {
        vf_store(out + i, vf_load(x + i) * inverse * vf_load(weight + i));
    }
}

static void rows_swiglu(const float *gate, const float *up, uint32_t n, float *out)
{
    const vf one = vf_all(1.0f);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf g = vf_load(gate + i);
        vf_store(out + i, g / (one + vf_exp(vf_zero() - g)) * vf_load(up + i));
    }
}

static void rows_to_half(const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i += LANES) vf_store_half(out + i, vf_load(x + i));
}

static void rows_quantize_block(const float *x, struct act_block *b, uint32_t r)
{
    vf top = vf_abs(vf_load(x));
    for (uint32_t i = LANES; i < 32; i += LANES) top = vf_max(top, vf_abs(vf_load(x + i)));
    float amax = vf_top(top), scale = amax / 127;
    __m256 inverse = _mm256_set1_ps(amax > 0 ? 127 / amax : 0);
    __m256i a = _mm256_packs_epi32(whole8(x, inverse), whole8(x + 8, inverse));
    __m256i c = _mm256_packs_epi32(whole8(x + 16, inverse), whole8(x + 24, inverse));
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, c),
                                                _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)b->q[r], bytes);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    b->scale[r] = scale;
    b->sum[r] = scale * (float)_mm_cvtsi128_si32(s);
}

static void rows_quantize(const float *x, uint32_t n, const struct acts *a, uint32_t row,
                          uint32_t first)
{
    struct act_block *b = a->q + (uint64_t)(row / ROW_GROUP) * (a->k / 32) + first / 32;
    for (uint32_t i = 0; i < n; i += 32) rows_quantize_block(x + i, b++, row % ROW_GROUP);
}
