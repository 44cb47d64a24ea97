/* engine/cpu/kernels_avx2.c - AVX2: 8-bit products, and the shared bodies.
 *
 * Four rows meet a panel of 16 outputs.  Unsigned quants meet 8-bit activations by vpmaddubsw,
 * whose 16-bit sums take `lines_at_once` lines without overflow (2 x 127 x the largest quant each:
 * 8 lines of 15, 4 of 31, 2 of 63).  Signed ones go as |w| x (x with w's sign), one line.  16-bit
 * activations meet even and odd values by vpmaddwd.  Blocks are added in ascending order.
 */
#include "engine/cpu/simd_attend.h"
#include "engine/cpu/simd_float.h"
#include "engine/cpu/simd_quantize.h"
#include "engine/cpu/simd_rows.h"
#include "engine/cpu/simd_scales.h"

enum { ROWS_AT_ONCE = 4 };

/* Keeps GCC from adding in another order, which would need more registers than there are. */
#define PIN(x) __asm__("" : "+x"(x))

INLINE __m256i four_values(const void *x)
{
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
}

INLINE __m256i load(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

/* The bits above line j's nibbles, at their place. */
INLINE __m256i high_bits(const uint8_t *at, enum panel_kind kind, int j)
{
    if (kind == PANEL_Q5) {
        __m256i bits = load(at + 256);
        bits = j < 4 ? _mm256_slli_epi16(bits, 4 - j % 4) : _mm256_srli_epi16(bits, j % 4);
        return _mm256_and_si256(bits, _mm256_set1_epi8(0x10));
    }
    __m256i bits = load(at + 256 + j / 4 * 64);
    bits = j % 4 < 2 ? _mm256_slli_epi16(bits, 4 - j % 4 * 2) :
                       _mm256_srli_epi16(bits, j % 4 * 2 - 4);
    return _mm256_and_si256(bits, _mm256_set1_epi8(0x30));
}

/* Line j of a block for eight outputs (`at` is theirs): bytes, signed for Q8. */
INLINE __m256i line(const uint8_t *at, enum panel_kind kind, int j)
{
    if (kind == PANEL_Q8) return load(at + 64 * j);
    __m256i w = load(at + 64 * (j % 4));
    if (j >= 4) w = _mm256_srli_epi16(w, 4);
    w = _mm256_and_si256(w, _mm256_set1_epi8(15));
    return kind == PANEL_Q4 ? w : _mm256_or_si256(w, high_bits(at, kind, j));
}

INLINE int lines_at_once(enum panel_kind kind)
{
    return kind == PANEL_Q4 ? 8 : kind == PANEL_Q5 ? 4 : kind == PANEL_Q6 ? 2 : 1;
}

/* sum[r][p] += the products of lines from .. from+count-1 with the rows' values. */
INLINE void dot(__m256i sum[][PARTS], const uint8_t *at, enum panel_kind kind,
                const struct act_block *x, uint32_t row, int rows, int from, int count)
{
    const __m256i ones = _mm256_set1_epi16(1);
    int chunk = lines_at_once(kind) < count ? lines_at_once(kind) : count;
    UNROLL for (int first = from; first < from + count; first += chunk) {
        __m256i part[ROWS_AT_ONCE][PARTS];
        UNROLL for (int j = first; j < first + chunk; j++) {
            __m256i w[PARTS], size[PARTS];
            UNROLL for (int p = 0; p < PARTS; p++) {
                w[p] = line(at + 32 * p, kind, j);
                if (kind == PANEL_Q8) size[p] = _mm256_abs_epi8(w[p]);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i v = four_values(x->q[row + (uint32_t)r] + 4 * j);
                UNROLL for (int p = 0; p < PARTS; p++) {
                    __m256i t = kind == PANEL_Q8 ?
                        _mm256_maddubs_epi16(size[p], _mm256_sign_epi8(v, w[p])) :
                        _mm256_maddubs_epi16(w[p], v);
                    part[r][p] = j == first ? t : _mm256_add_epi16(part[r][p], t);
                    PIN(part[r][p]);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int p = 0; p < PARTS; p++) {
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(part[r][p], ones));
                PIN(sum[r][p]);
            }
        }
    }
}

/* The same with 16-bit activations. */
INLINE void dot_wide(__m256i sum[][PARTS], const uint8_t *at, enum panel_kind kind,
                     const struct wide_block *x, uint32_t row, int rows, int from, int count)
{
    const __m256i even_byte = _mm256_set1_epi16(255);
    UNROLL for (int j = from; j < from + count; j++) {
        __m256i even[PARTS], odd[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) {
            __m256i w = line(at + 32 * p, kind, j);
            if (kind == PANEL_Q8) {
                even[p] = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
                odd[p] = _mm256_srai_epi16(w, 8);
            } else {
                even[p] = _mm256_and_si256(w, even_byte);
                odd[p] = _mm256_srli_epi16(w, 8);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const int16_t *v = x->pairs[row + (uint32_t)r] + 4 * j;
            __m256i a = four_values(v), b = four_values(v + 2);
            UNROLL for (int p = 0; p < PARTS; p++) {
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(even[p], a));
                PIN(sum[r][p]);
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(odd[p], b));
                PIN(sum[r][p]);
            }
        }
    }
}

INLINE void any_dot(__m256i sum[][PARTS], const uint8_t *at, enum panel_kind kind,
                    const struct act_scales *x, uint32_t row, int rows, int from, int count,
                    bool wide)
{
    if (wide) {
        dot_wide(sum, at, kind, (const struct wide_block *)x, row, rows, from, count);
    } else {
        dot(sum, at, kind, (const struct act_block *)x, row, rows, from, count);
    }
}

INLINE __m256i start_of(int32_t start, enum panel_kind kind, enum panel_scales form)
{
    if (kind == PANEL_Q8 || has_low(form)) return _mm256_setzero_si256();
    return _mm256_srai_epi32(_mm256_set1_epi32(start), zero_shift(kind));
}

/* What a block adds to some rows; K6 has a scale for each half. */
INLINE void add_block(vf acc[][PARTS], const uint8_t *at, const struct block_scales *s,
                      const struct act_scales *x, uint32_t row, int rows, enum panel_kind kind,
                      enum panel_scales form, bool wide)
{
    __m256i sum[ROWS_AT_ONCE][PARTS], high[ROWS_AT_ONCE][PARTS];
    UNROLL for (int r = 0; r < rows; r++) {
        int32_t whole = x->start[row + (uint32_t)r], low = x->start_low[row + (uint32_t)r];
        UNROLL for (int p = 0; p < PARTS; p++) {
            sum[r][p] = start_of(form == SCALES_K6 ? low : whole, kind, form);
            if (form == SCALES_K6) high[r][p] = start_of(whole - low, kind, form);
        }
    }
    any_dot(sum, at, kind, x, row, rows, 0, form == SCALES_K6 ? 4 : 8, wide);
    if (form == SCALES_K6) any_dot(high, at, kind, x, row, rows, 4, 4, wide);
    UNROLL for (int r = 0; r < rows; r++) {
        vf scale = vf_all(x->scale[row + (uint32_t)r]);
        UNROLL for (int p = 0; p < PARTS; p++) {
            vf dots = _mm256_cvtepi32_ps(sum[r][p]);
            if (form == SCALES_K6) {
                dots = vf_fma(_mm256_cvtepi32_ps(high[r][p]), s[p].d_high, dots * s[p].d);
                acc[r][p] = vf_fma(dots, scale, acc[r][p]);
            } else {
                acc[r][p] = vf_fma(dots, s[p].d * scale, acc[r][p]);
            }
            if (has_low(form)) {
                acc[r][p] = vf_fma(s[p].low, vf_all(x->sum[row + (uint32_t)r]), acc[r][p]);
            }
        }
    }
}

/* `rows` (a constant) rows of one group, from `row` on, against one panel. */
INLINE void rows_panel(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,
                       uint32_t row, int rows, enum panel_kind kind, enum panel_scales form,
                       bool wide, vf acc[][PARTS])
{
    const uint32_t blocks = m->in / 32, quant_bytes = panel_quant_bytes(kind);
    const uint64_t step = wide ? sizeof(struct wide_block) : sizeof(struct act_block);
    const uint8_t *scales = panel + (uint64_t)blocks * quant_bytes;
    vf total[ROWS_AT_ONCE][PARTS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int p = 0; p < PARTS; p++) total[r][p] = vf_zero();
    }
    for (uint32_t b = 0; b < blocks; b++, panel += quant_bytes) {
        struct block_scales s[PARTS];
        UNROLL for (uint32_t p = 0; p < PARTS; p++) {
            s[p] = block_scales(scales, form, b, p * LANES);
        }
        if (row == 0) prefetch_panel(panel + m->panel_bytes, quant_bytes, false);
        add_block(total, panel, s, x, row, rows, kind, form, wide);
        x = (const struct act_scales *)((const uint8_t *)x + step);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int p = 0; p < PARTS; p++) acc[r][p] = total[r][p];
    }
}

typedef void rows_fn(const struct matrix *, const uint8_t *panel, const struct act_scales *,
                     uint32_t row, uint32_t rows, vf acc[][PARTS]);

#define ROWS(name, kind, form, wide)                                                              \
    static void name(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,    \
                     uint32_t row, uint32_t rows, vf acc[][PARTS])                                \
    {                                                                                             \
        if (rows == 1) {                                                                          \
            rows_panel(m, panel, x, row, 1, kind, form, wide, acc);                               \
        } else if (rows == 2) {                                                                   \
            rows_panel(m, panel, x, row, 2, kind, form, wide, acc);                               \
        } else {                                                                                  \
            rows_panel(m, panel, x, row, ROWS_AT_ONCE, kind, form, wide, acc);                    \
        }                                                                                         \
    }
#define BOTH_ROWS(name, kind, form)                                                               \
    ROWS(name, kind, form, false)                                                                 \
    ROWS(name##_wide, kind, form, true)
BOTH_ROWS(q4_half, PANEL_Q4, SCALES_HALF)
BOTH_ROWS(q4_half_min, PANEL_Q4, SCALES_HALF_MIN)
BOTH_ROWS(q4_k, PANEL_Q4, SCALES_K)
BOTH_ROWS(q5_half, PANEL_Q5, SCALES_HALF)
BOTH_ROWS(q5_half_min, PANEL_Q5, SCALES_HALF_MIN)
BOTH_ROWS(q5_k, PANEL_Q5, SCALES_K)
BOTH_ROWS(q6_k, PANEL_Q6, SCALES_K6)
BOTH_ROWS(q8_half, PANEL_Q8, SCALES_HALF)

static rows_fn *const kinds[PANEL_Q8 + 1][SCALES_K6 + 1][2] = {
    [PANEL_Q4] = { { q4_half, q4_half_wide }, { q4_half_min, q4_half_min_wide },
                   { q4_k, q4_k_wide } },
    [PANEL_Q5] = { { q5_half, q5_half_wide }, { q5_half_min, q5_half_min_wide },
                   { q5_k, q5_k_wide } },
    [PANEL_Q6] = { [SCALES_K6] = { q6_k, q6_k_wide } },
    [PANEL_Q8] = { { q8_half, q8_half_wide } },
};

/* The place of a group of rows. */
static const struct act_scales *group_at(const struct acts *a, uint32_t row)
{
    uint64_t at = (uint64_t)(row / ROW_GROUP) * (a->k / 32);
    return a->wide ? &a->wide[at].s : &a->q[at].s;
}

static void gemm(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                 uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    if (matrix_is_float(m)) {
        float_gemm(m, a, row0, rows, panel0, panels, out, stride, add);
        return;
    }
    rows_fn *some_rows = kinds[m->kind][m->scales][a->wide != NULL];
    for (uint32_t r = 0; r < rows; r += ROWS_AT_ONCE) {
        uint32_t row = row0 + r, n = rows - r < ROWS_AT_ONCE ? rows - r : ROWS_AT_ONCE;
        const struct act_scales *x = group_at(a, row);
        for (uint32_t p = 0; p < panels; p++) {
            vf acc[ROWS_AT_ONCE][PARTS];
            some_rows(m, m->data + (panel0 + p) * m->panel_bytes, x, row % ROW_GROUP, n, acc);
            uint32_t columns = m->out - (panel0 + p) * PANEL;
            if (columns > PANEL) columns = PANEL;
            float *to = out + r * stride + (uint64_t)p * PANEL;
            for (uint32_t i = 0; i < n; i++) put(to + i * stride, acc[i], columns, add);
        }
    }
}

const struct kernels kernels_avx2 = {
    .norm = rows_norm, .quantize = rows_quantize, .swiglu = rows_swiglu, .rotate = rows_rotate,
    .mix = rows_mix, .to_half = rows_to_half,
    .to_byte = rows_to_byte, .gemm = gemm, .tile = attend_tile, .merge = attend_merge,
};
