/* engine/cpu/simd_quantize.h - activations as whole numbers with a scale for each 32, for the
 * instruction set of the including file; see kernels.h for the forms.
 *
 * x ~ scale * v, |v| at most 127 or WIDE_MAX, rounded to the nearest.
 */
#include "engine/cpu/simd.h"

enum { WIDE_MAX = 127 * 256 + 127 };  /* 256*high + low, both within -127 .. 127 */
#define ROUND_LEAST 1e-30f            /* blocks whose largest value is below it are zero */

/* 32 floats times `inverse`, to the nearest whole numbers: eight of them a vector. */
INLINE void whole_numbers(const float *x, float inverse, __m256i v[4])
{
    const __m256 by = _mm256_set1_ps(inverse);
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by));
    }
}

INLINE int32_t sum_of(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

INLINE void store_scales(struct act_scales *s, uint32_t r, float scale, const __m256i v[4])
{
    uint32_t low = (uint32_t)sum_of(_mm256_add_epi32(v[0], v[1]));
    uint32_t sum = low + (uint32_t)sum_of(_mm256_add_epi32(v[2], v[3]));
    s->scale[r] = scale;
    s->sum[r] = scale * (float)(int32_t)sum;
    s->start[r] = (int32_t)(0u - 128 * sum);     /* wraps where v is no number, as scale then */
    s->start_low[r] = (int32_t)(0u - 128 * low);
}

/* Lowest 16 bits of 8 + 8 numbers that fit, in order. */
INLINE __m256i to_16_bits(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

INLINE void store_bytes(int8_t *to, const __m256i v[4])
{
    __m256i a = to_16_bits(v[0], v[1]), b = to_16_bits(v[2], v[3]);
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)to, bytes);
}

INLINE void store_wide(struct wide_block *b, uint32_t r, const __m256i v[4])
{
#ifdef __AVX512F__
    __m256i high[4], low[4];
    UNROLL for (int i = 0; i < 4; i++) {
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(v[i], _mm256_set1_epi32(128)), 8);
        low[i] = _mm256_sub_epi32(v[i], _mm256_slli_epi32(high[i], 8));
    }
    store_bytes(b->high[r], high);
    store_bytes(b->low[r], low);
#else
    UNROLL for (int i = 0; i < 2; i++) {
        __m256i ordered = to_16_bits(v[2 * i], v[2 * i + 1]);
        ordered = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(ordered, 0xd8), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(b->pairs[r] + 16 * i), ordered);
    }
#endif
}

/* As whole numbers, which order positive floats alike, and NaN above them all. */
INLINE float largest_of_32(const float *x)
{
    const __m256i size = _mm256_set1_epi32(INT32_MAX);
    __m256i top = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 4; i++) {
        __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)(x + 8 * i));
        top = _mm256_max_epi32(top, _mm256_and_si256(bits, size));
    }
    __m128i t = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(t));
}

static void row_quantize(const float *x, uint32_t n, const struct acts *a, uint64_t block,
                         uint32_t r)
{
    const float most = a->wide ? WIDE_MAX : 127;
    for (uint32_t i = 0; i < n; i += 32, block++) {
        float top = largest_of_32(x + i);
        __m256i v[4];
        whole_numbers(x + i, top >= ROUND_LEAST ? most / top : 0, v);
        if (a->wide) {
            store_scales(&a->wide[block].s, r, top / most, v);
            store_wide(&a->wide[block], r, v);
        } else {
            store_scales(&a->q[block].s, r, top / most, v);
            store_bytes(a->q[block].q[r], v);
        }
    }
}

#ifdef __AVX512F__
INLINE __m512i largest(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }

/* Lane r becomes the largest of the lanes of v[r]. */
INLINE __m512i largest_each(__m512i v[ROW_GROUP])
{
    UNROLL for (int i = 0; i < 8; i++) {
        v[i] = largest(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                       _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    }
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = largest(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]),
                       _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
    }
    UNROLL for (int n = 2; n >= 1; n--) {
        UNROLL for (int i = 0; i < n; i++) {
            v[i] = largest(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88),
                           _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xdd));
        }
    }
    return v[0];
}

/* Two rows' values as bytes, one row behind the other. */
INLINE __m512i two_rows(const float *x, const float *y, float by_x, float by_y)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i of_x = _mm512_packs_epi32(_mm512_cvtps_epi32(vf_load(x) * vf_all(by_x)),
                                      _mm512_cvtps_epi32(vf_load(x + LANES) * vf_all(by_x)));
    __m512i of_y = _mm512_packs_epi32(_mm512_cvtps_epi32(vf_load(y) * vf_all(by_y)),
                                      _mm512_cvtps_epi32(vf_load(y + LANES) * vf_all(by_y)));
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(of_x, of_y));
}

/* Lane r becomes the sum of v0 .. v15 of row r, and that of v16 .. v31; two rows are in each of
 * `bytes`, which are lost. */
INLINE void sum_each(__m512i bytes[ROW_GROUP / 2], __m512i *low, __m512i *high)
{
    const __m512i ones = _mm512_set1_epi8(1), none = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < 8; i++) bytes[i] = _mm512_dpbusd_epi32(none, ones, bytes[i]);
    UNROLL for (int i = 0; i < 4; i++) {
        bytes[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(bytes[2 * i], bytes[2 * i + 1]),
                                    _mm512_unpackhi_epi32(bytes[2 * i], bytes[2 * i + 1]));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        bytes[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(bytes[2 * i], bytes[2 * i + 1]),
                                    _mm512_unpackhi_epi64(bytes[2 * i], bytes[2 * i + 1]));
    }
    const __m512i first = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11,
                                            16, 24, 17, 25, 18, 26, 19, 27);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    *low = _mm512_permutex2var_epi32(bytes[0], first, bytes[1]);
    *high = _mm512_permutex2var_epi32(bytes[0], second, bytes[1]);
}

/* What store_scales() stores of one row, of those in `rows`. */
INLINE void store_group_scales(struct act_scales *s, __mmask16 rows, vf scale, __m512i low,
                               __m512i high)
{
    const __m512i none = _mm512_setzero_si512();
    __m512i all = _mm512_add_epi32(low, high);
    _mm512_mask_storeu_ps(s->scale, rows, scale);
    _mm512_mask_storeu_ps(s->sum, rows, scale * _mm512_cvtepi32_ps(all));
    _mm512_mask_storeu_epi32(s->start, rows, _mm512_sub_epi32(none, _mm512_slli_epi32(all, 7)));
    _mm512_mask_storeu_epi32(s->start_low, rows,
                             _mm512_sub_epi32(none, _mm512_slli_epi32(low, 7)));
}

/* 32 values of each row of a group; those not in `rows` are read and dropped. */
INLINE void group_block(const float *const x[ROW_GROUP], uint32_t column, __mmask16 rows,
                        struct act_block *to)
{
    _Alignas(64) float inverse[ROW_GROUP];
    __m512i v[ROW_GROUP], low, high;
    UNROLL for (int r = 0; r < ROW_GROUP; r++) {
        const float *at = x[r] + column;
        v[r] = largest(_mm512_castps_si512(vf_abs(vf_load(at))),
                       _mm512_castps_si512(vf_abs(vf_load(at + LANES))));
    }
    vf top = _mm512_castsi512_ps(largest_each(v));
    __mmask16 some = _mm512_cmp_ps_mask(top, vf_all(ROUND_LEAST), _CMP_GE_OQ);
    vf_store(inverse, _mm512_maskz_div_ps(some, vf_all(127), top));
    UNROLL for (int r = 0; r < ROW_GROUP; r += 2) {
        v[r / 2] = two_rows(x[r] + column, x[r + 1] + column, inverse[r], inverse[r + 1]);
        int in = rows >> r & 3;
        __mmask16 halves = (__mmask16)((in & 1) * 0xff | (in >> 1) * 0xff00);
        if (in == 3) _mm512_storeu_si512(to->q[r], v[r / 2]);
        else _mm512_mask_storeu_epi32(to->q[r], halves, v[r / 2]);
    }
    sum_each(v, &low, &high);
    store_group_scales(&to->s, rows, top / vf_all(127), low, high);
}

/* `count` rows of one group, the first of them row r; of finite ones the same bits as one after
 * another. */
static void group_quantize(const float *x, uint64_t stride, uint32_t count, uint32_t n,
                           struct act_block *to, uint32_t r)
{
    const float *row[ROW_GROUP];
    for (uint32_t i = 0; i < ROW_GROUP; i++) row[i] = x + (i - r < count ? i - r : 0) * stride;
    const __mmask16 rows = (__mmask16)(((1u << count) - 1) << r);
    for (uint32_t i = 0; i < n; i += 32, to++) group_block(row, i, rows, to);
}
#endif

static void rows_quantize(const float *x, uint64_t stride, uint32_t rows, uint32_t n,
                          const struct acts *a, uint32_t row, uint32_t first)
{
    for (uint32_t end = row + rows, count; row < end; row += count, x += count * stride) {
        uint64_t block = (uint64_t)(row / ROW_GROUP) * (a->k / 32) + first / 32;
        uint32_t r = row % ROW_GROUP;
        count = end - row < ROW_GROUP - r ? end - row : ROW_GROUP - r;
#ifdef __AVX512F__
        if (!a->wide && count > 1) {
            group_quantize(x, stride, count, n, a->q + block, r);
            continue;
        }
#endif
        for (uint32_t i = 0; i < count; i++) row_quantize(x + i * stride, n, a, block, r + i);
    }
}
