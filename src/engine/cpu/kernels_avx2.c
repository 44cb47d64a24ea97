/* engine/cpu/kernels_avx2.c - AVX2: 8-bit products, and the shared bodies.
 *
 * Four rows at a time meet 16 outputs, as bytes or as pairs (avx2_block.h).  Products of bytes add
 * in 16 bits as long as they fit (2 x 127 x the largest quant each: 8 lines of 15, 4 of 31, 2 of
 * 63).  More than four rows: a block is unpacked once for a whole group, whose sums lie in memory.
 * Blocks are added in ascending order.
 */
#include "engine/cpu/avx2_block.h"
#include "engine/cpu/simd_attend.h"
#include "engine/cpu/simd_float.h"
#include "engine/cpu/simd_quantize.h"
#include "engine/cpu/simd_rows.h"

enum { ROWS_AT_ONCE = 4 };

/* Keeps GCC from adding in another order, which would need more registers than there are. */
#define PIN(x) __asm__("" : "+x"(x))

/* Lines whose products add in 16 bits. */
INLINE int lines_at_once(enum panel_kind kind)
{
    return kind == PANEL_Q4 ? 8 : kind == PANEL_Q5 ? 4 : 2;
}

INLINE __m256i value(const struct block *b, struct form f, uint32_t row, int step)
{
    return four_bytes(b->values + row * 4u * (uint32_t)steps_of(f) + 4 * step);
}

/* sum[r][p] += the products of unsigned bytes, of four or eight lines at once. */
INLINE void dot_bytes(__m256i sum[][PARTS], const struct block *b, struct form f, uint32_t row,
                      int rows)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const int chunk = lines_at_once(f.kind);
    UNROLL for (int first = 0; first < 8; first += chunk) {
        __m256i part[ROWS_AT_ONCE][PARTS];
        UNROLL for (int j = first; j < first + chunk; j++) {
            __m256i w[PARTS];
            UNROLL for (int p = 0; p < PARTS; p++) w[p] = weights(b->quants + 32 * p, f, j);
            UNROLL for (int r = 0; r < rows; r++) {
                __m256i v = value(b, f, row + (uint32_t)r, j);
                UNROLL for (int p = 0; p < PARTS; p++) {
                    __m256i t = _mm256_maddubs_epi16(w[p], v);
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

/* The same for K6, two lines at once, times the scale of their half. */
INLINE void dot_halves(__m256i sum[][PARTS], const struct block *b, struct form f, uint32_t row,
                       int rows)
{
    UNROLL for (int j = 0; j < 8; j += 2) {
        __m256i w[2][PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) {
            w[0][p] = weights(b->quants + 32 * p, f, j);
            w[1][p] = weights(b->quants + 32 * p, f, j + 1);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            __m256i v0 = value(b, f, row + (uint32_t)r, j);
            __m256i v1 = value(b, f, row + (uint32_t)r, j + 1);
            UNROLL for (int p = 0; p < PARTS; p++) {
                __m256i t = _mm256_add_epi16(_mm256_maddubs_epi16(w[0][p], v0),
                                             _mm256_maddubs_epi16(w[1][p], v1));
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(t, b->by[j / 4][p]));
                PIN(sum[r][p]);
            }
        }
    }
}

/* The same for 16 bits, of some steps. */
INLINE void dot_pairs(__m256i sum[][PARTS], const struct block *b, struct form f, uint32_t row,
                      int rows, int from, int to)
{
    UNROLL for (int j = from; j < to; j++) {
        __m256i w[PARTS];
        UNROLL for (int p = 0; p < PARTS; p++) w[p] = weights(b->quants + 32 * p, f, j);
        UNROLL for (int r = 0; r < rows; r++) {
            __m256i v = value(b, f, row + (uint32_t)r, j);
            UNROLL for (int p = 0; p < PARTS; p++) {
                sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(w[p], v));
                PIN(sum[r][p]);
            }
        }
    }
}

INLINE __m256i start_of(const struct block *b, struct form f, uint32_t row, int p)
{
    if (f.pairs || has_low(f.scales)) return _mm256_setzero_si256();
    __m256i start = four_bytes(b->start + row);
    return f.scales == SCALES_K6 ? _mm256_madd_epi16(start, b->zeros[p]) : start;
}

/* What a block adds to some rows. */
INLINE void add_block(vf total[][PARTS], const struct block *b, struct form f, uint32_t row,
                      int rows)
{
    __m256i sum[ROWS_AT_ONCE][PARTS];
    vf low[ROWS_AT_ONCE][PARTS];
    const bool halves = f.pairs && f.scales == SCALES_K6;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int p = 0; p < PARTS; p++) sum[r][p] = start_of(b, f, row + (uint32_t)r, p);
    }
    if (halves) {
        dot_pairs(sum, b, f, row, rows, 0, 8);
        UNROLL for (int r = 0; r < rows; r++) {
            UNROLL for (int p = 0; p < PARTS; p++) {
                low[r][p] = _mm256_cvtepi32_ps(sum[r][p]) * b->s[p].d;
                sum[r][p] = _mm256_setzero_si256();
            }
        }
        dot_pairs(sum, b, f, row, rows, 8, 16);
    } else if (f.pairs) {
        dot_pairs(sum, b, f, row, rows, 0, 16);
    } else if (f.scales == SCALES_K6) {
        dot_halves(sum, b, f, row, rows);
    } else {
        dot_bytes(sum, b, f, row, rows);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        vf scale = vf_all(b->x->scale[row + (uint32_t)r]);
        vf all = vf_all(b->x->sum[row + (uint32_t)r]);
        UNROLL for (int p = 0; p < PARTS; p++) {
            vf dots = _mm256_cvtepi32_ps(sum[r][p]);
            vf t = total[r][p];
            if (halves) {
                t = vf_fma(vf_fma(dots, b->s[p].d_high, low[r][p]), scale, t);
            } else {
                t = vf_fma(dots, b->s[p].d * scale, t);
            }
            total[r][p] = has_low(f.scales) ? vf_fma(b->s[p].low, all, t) : t;
        }
    }
}

INLINE const struct act_scales *next_block(const struct act_scales *x, bool wide)
{
    return (const struct act_scales *)((const uint8_t *)x + (wide ? sizeof(struct wide_block) :
                                                                    sizeof(struct act_block)));
}

/* `rows` (a constant, up to four) rows of a group against one panel, with their sums in
 * registers. */
INLINE void few_rows(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,
                     int rows, struct form f, vf acc[][PARTS])
{
    const uint32_t blocks = m->in / 32, quant_bytes = panel_quant_bytes(f.kind);
    const uint8_t *scales = panel + (uint64_t)blocks * quant_bytes;
    const uint64_t each = (m->panel_bytes - (uint64_t)blocks * quant_bytes) / blocks;
    vf total[ROWS_AT_ONCE][PARTS];
    struct made made;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int p = 0; p < PARTS; p++) total[r][p] = vf_zero();
    }
    for (uint32_t b = 0; b < blocks; b++, panel += quant_bytes) {
        prefetch_panel(panel + m->panel_bytes, quant_bytes, false);
        prefetch_panel(scales + b * each + m->panel_bytes, 64, false);
        struct block block = make_block(panel, scales, b, x, f, (uint32_t)rows, &made);
        add_block(total, &block, f, 0, rows);
        x = next_block(x, f.wide);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int p = 0; p < PARTS; p++) acc[r][p] = total[r][p];
    }
}

/* A whole group, or what there is of it (by fours, so that up to three rows are computed for
 * nothing): each block is unpacked once, where that is more work than storing and loading it. */
INLINE void many_rows(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,
                      uint32_t rows, struct form f, vf acc[][PARTS])
{
    const uint32_t blocks = m->in / 32, quant_bytes = panel_quant_bytes(f.kind);
    const uint8_t *scales = panel + (uint64_t)blocks * quant_bytes;
    const uint64_t each = (m->panel_bytes - (uint64_t)blocks * quant_bytes) / blocks;
    struct made made;
    rows = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    f.ready = f.kind != PANEL_Q8 && (f.wide || f.kind != PANEL_Q4);
    for (uint32_t r = 0; r < ROW_GROUP; r++) {
        UNROLL for (int p = 0; p < PARTS; p++) acc[r][p] = vf_zero();
    }
    for (uint32_t b = 0; b < blocks; b++, panel += quant_bytes) {
        prefetch_panel(panel + m->panel_bytes, quant_bytes, true);
        prefetch_panel(scales + b * each + m->panel_bytes, 64, true);
        struct block block = make_block(panel, scales, b, x, f, rows, &made);
        for (uint32_t r = 0; r < rows; r += ROWS_AT_ONCE) {
            add_block(acc + r, &block, f, r, ROWS_AT_ONCE);
        }
        x = next_block(x, f.wide);
    }
}

typedef void rows_fn(const struct matrix *, const uint8_t *panel, const struct act_scales *,
                     uint32_t rows, vf acc[][PARTS]);

/* Unpacking to pairs is work enough to do it once already for three rows; Q8 is not unpacked. */
#define ROWS(name, kind_, scales_, wide_)                                                         \
    static void name(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,    \
                     uint32_t rows, vf acc[][PARTS])                                              \
    {                                                                                             \
        const bool q8 = kind_ == PANEL_Q8;                                                        \
        const struct form f = { .kind = kind_, .scales = scales_, .wide = wide_,                  \
                                .pairs = wide_ || q8 };                                           \
        if (rows == 1) {                                                                          \
            few_rows(m, panel, x, 1, f, acc);                                                     \
        } else if (rows == 2) {                                                                   \
            few_rows(m, panel, x, 2, f, acc);                                                     \
        } else if (rows <= ROWS_AT_ONCE && (!wide_ || q8)) {                                      \
            few_rows(m, panel, x, ROWS_AT_ONCE, f, acc);                                          \
        } else {                                                                                  \
            many_rows(m, panel, x, rows, f, acc);                                                 \
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
    for (uint32_t r = 0; r < rows; r += ROW_GROUP) {
        const struct act_scales *x = group_at(a, row0 + r);
        uint32_t n = rows - r < ROW_GROUP ? rows - r : ROW_GROUP;
        for (uint32_t p = 0; p < panels; p++) {
            vf acc[ROW_GROUP][PARTS];
            some_rows(m, m->data + (panel0 + p) * m->panel_bytes, x, n, acc);
            uint32_t columns = m->out - (panel0 + p) * PANEL;
            if (columns > PANEL) columns = PANEL;
            float *to = out + r * stride + (uint64_t)p * PANEL;
            for (uint32_t i = 0; i < n; i++) put(to + i * stride, acc[i], columns, add);
        }
    }
}

const struct kernels kernels_avx2 = {
    .norm = rows_norm, .quantize = rows_quantize, .swiglu = rows_swiglu, .scale = rows_scale,
    .rotate = rows_rotate,
    .mix = rows_mix, .to_half = rows_to_half,
    .to_byte = rows_to_byte, .gemm = gemm, .tile = attend_tile, .merge = attend_merge,
};
