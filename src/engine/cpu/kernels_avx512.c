/* engine/cpu/kernels_avx512.c - AVX-512 with VNNI: 8-bit products, and the shared bodies.
 *
 * One 32-value block of a panel of 16 outputs meets a row in 8 vpdpbusd (16 for 16-bit activations:
 * high bytes, then low ones); then one multiply-add by the block's scales, one for its minimums.
 * Blocks are added in ascending order.
 */
#include "engine/cpu/attend_avx512_bf16.h"
#include "engine/cpu/simd_attend.h"
#include "engine/cpu/simd_float.h"
#include "engine/cpu/simd_quantize.h"
#include "engine/cpu/simd_rows.h"
#include "engine/cpu/simd_scales.h"

/* Rows whose sums grow in turn (clang puts these sums in memory). */
#ifdef __clang__
enum { AT_ONCE = 1 };
#else
enum { AT_ONCE = 4 };
#endif

/* The bits above line j's nibbles, at their place. */
INLINE __m512i high_bits(const uint8_t *at, enum panel_kind kind, int j)
{
    if (kind == PANEL_Q5) {
        __m512i bits = _mm512_loadu_si512(at + 256);
        bits = j < 4 ? _mm512_slli_epi16(bits, 4 - (unsigned)j % 4) :
                       _mm512_srli_epi16(bits, (unsigned)j % 4);
        return _mm512_and_si512(bits, _mm512_set1_epi8(0x10));
    }
    __m512i bits = _mm512_loadu_si512(at + 256 + j / 4 * 64);
    bits = j % 4 < 2 ? _mm512_slli_epi16(bits, 4 - 2 * ((unsigned)j % 4)) :
                       _mm512_srli_epi16(bits, 2 * ((unsigned)j % 4) - 4);
    return _mm512_and_si512(bits, _mm512_set1_epi8(0x30));
}

/* A block's lines, unsigned. */
INLINE void load_quants(const uint8_t *at, enum panel_kind kind, __m512i w[8])
{
    if (kind == PANEL_Q8) {
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        UNROLL for (int j = 0; j < 8; j++) {
            w[j] = _mm512_xor_si512(_mm512_loadu_si512(at + 64 * j), flip);
        }
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i both = _mm512_loadu_si512(at + 64 * j);
        w[j] = _mm512_and_si512(both, low);
        w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
    if (kind == PANEL_Q4) return;
    UNROLL for (int j = 0; j < 8; j++) w[j] = _mm512_or_si512(w[j], high_bits(at, kind, j));
}

/* sum += the products of a line with four values.  (From the intrinsic GCC makes two instructions,
 * clang one.) */
INLINE __m512i dot_line(__m512i sum, __m512i w, const int8_t *q)
{
    const int32_t *four = (const int32_t *)(const void *)q;
#ifdef __clang__
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(*four));
#else
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*four));
    return sum;
#endif
}

/* sum[r] += the products of lines from .. from+count-1 with the values of row r: each line with all
 * rows in turn, as one row's products wait for each other. */
INLINE void dot(__m512i *sum, const __m512i w[8], const int8_t (*q)[32], int rows, int from,
                int count)
{
    UNROLL for (int j = from; j < from + count; j++) {
        UNROLL for (int r = 0; r < rows; r++) sum[r] = dot_line(sum[r], w[j], q[r] + 4 * j);
    }
}

/* The same with values of 8 or 16 bits, of rows from `row` on. */
INLINE void dot_any(__m512i *sum, const __m512i w[8], const struct act_scales *x, int row, int rows,
                    bool wide, int from, int count)
{
    if (!wide) {
        dot(sum, w, ((const struct act_block *)x)->q + row, rows, from, count);
        return;
    }
    const struct wide_block *b = (const struct wide_block *)x;
    __m512i start[AT_ONCE];
    UNROLL for (int r = 0; r < rows; r++) start[r] = sum[r], sum[r] = _mm512_setzero_si512();
    dot(sum, w, b->high + row, rows, from, count);
    UNROLL for (int r = 0; r < rows; r++) {
        sum[r] = _mm512_add_epi32(_mm512_slli_epi32(sum[r], 8), start[r]);
    }
    dot(sum, w, b->low + row, rows, from, count);
}

INLINE __m512i start_of(int32_t start, enum panel_kind kind)
{
    return _mm512_srai_epi32(_mm512_set1_epi32(start), (unsigned)zero_shift(kind));
}

#include "engine/cpu/simd_pairs.h"

/* What a block adds to rows from `row` on. */
INLINE void add_block(vf *total, const __m512i w[8], const struct block_scales *s,
                      const struct act_scales *x, int row, int rows, enum panel_kind kind,
                      enum panel_scales form, bool wide)
{
    __m512i sum[AT_ONCE];
    UNROLL for (int r = 0; r < rows; r++) {
        sum[r] = has_low(form) ? _mm512_setzero_si512() : start_of(x->start[row + r], kind);
    }
    dot_any(sum, w, x, row, rows, wide, 0, 8);
    UNROLL for (int r = 0; r < rows; r++) {
        vf scale = s->d * vf_all(x->scale[row + r]);
        total[r] = vf_fma(_mm512_cvtepi32_ps(sum[r]), scale, total[r]);
        if (has_low(form)) total[r] = vf_fma(s->low, vf_all(x->sum[row + r]), total[r]);
    }
}

/* The same where the halves of a block have scales of their own. */
INLINE void add_halves(vf *total, const __m512i w[8], const struct block_scales *s,
                       const struct act_scales *x, int row, int rows, enum panel_kind kind,
                       bool wide)
{
    __m512i sum[AT_ONCE];
    vf low[AT_ONCE];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = start_of(x->start_low[row + r], kind);
    dot_any(sum, w, x, row, rows, wide, 0, 4);
    UNROLL for (int r = 0; r < rows; r++) {
        low[r] = _mm512_cvtepi32_ps(sum[r]) * s->d;
        sum[r] = start_of(x->start[row + r] - x->start_low[row + r], kind);
    }
    dot_any(sum, w, x, row, rows, wide, 4, 4);
    UNROLL for (int r = 0; r < rows; r++) {
        vf both = vf_fma(_mm512_cvtepi32_ps(sum[r]), s->d_high, low[r]);
        total[r] = vf_fma(both, vf_all(x->scale[row + r]), total[r]);
    }
}

/* `rows` (a constant) rows of one group against one panel. */
INLINE void rows_panel(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,
                       int rows, enum panel_kind kind, enum panel_scales form, bool wide, vf *acc)
{
    const uint32_t blocks = m->in / 32, quant_bytes = panel_quant_bytes(kind);
    const uint64_t step = wide ? sizeof(struct wide_block) : sizeof(struct act_block);
    const bool pairs = form >= SCALES_PAIR;
    const uint64_t each = (m->panel_bytes - (uint64_t)blocks * quant_bytes) / blocks;
    if (form == SCALES_HALF || form == SCALES_HALF_MIN) panel += panel_head_bytes(m->scales);
    const uint8_t *scales = pairs ? panel : panel + (uint64_t)blocks * quant_bytes;
    vf total[ROW_GROUP];
    UNROLL for (int r = 0; r < rows; r++) total[r] = vf_zero();
    for (uint32_t b = 0; b < blocks; b++) {
        const uint8_t *quants = panel + (pairs ? pair_quants_at(form, b) : b * quant_bytes);
        __m512i w[8];
        load_quants(quants, kind, w);
        prefetch_panel(quants + m->panel_bytes, quant_bytes, rows > 8);
        if (rows <= 8 && !pairs) prefetch_panel(scales + b * each + m->panel_bytes, 64, false);
        struct block_scales s = block_scales(scales, form, b, 0);
        const int most = form == SCALES_K6 ? (AT_ONCE + 1) / 2 : AT_ONCE;
        const int n = rows < most ? rows : most;
        UNROLL for (int r = 0; r < rows; r += n) {
            if (form == SCALES_K6) {
                add_halves(total + r, w, &s, x, r, n, kind, wide);
            } else {
                add_block(total + r, w, &s, x, r, n, kind, form, wide);
            }
        }
        x = (const struct act_scales *)((const uint8_t *)x + step);
    }
    UNROLL for (int r = 0; r < rows; r++) acc[r] = total[r];
}

typedef void group_fn(const struct matrix *, const uint8_t *panel, const struct act_scales *,
                      uint32_t rows, vf *acc);

#define GROUP(name, kind, form, wide)                                                             \
    static void name(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,    \
                     uint32_t rows, vf *acc)                                                      \
    {                                                                                             \
        if (rows == 1) {                                                                          \
            rows_panel(m, panel, x, 1, kind, form, wide, acc);                                    \
        } else if (rows <= 4) {                                                                   \
            rows_panel(m, panel, x, 4, kind, form, wide, acc);                                    \
        } else if (rows <= 8) {                                                                   \
            rows_panel(m, panel, x, 8, kind, form, wide, acc);                                    \
        } else {                                                                                  \
            rows_panel(m, panel, x, ROW_GROUP, kind, form, wide, acc);                            \
        }                                                                                         \
    }
#define GROUPS(name, kind, form)                                                                  \
    GROUP(name, kind, form, false)                                                                \
    GROUP(name##_wide, kind, form, true)
GROUPS(q4_half, PANEL_Q4, SCALES_HALF)
GROUPS(q4_half_min, PANEL_Q4, SCALES_HALF_MIN)
GROUPS(q4_k, PANEL_Q4, SCALES_K)
GROUPS(q5_half, PANEL_Q5, SCALES_HALF)
GROUPS(q5_half_min, PANEL_Q5, SCALES_HALF_MIN)
GROUPS(q5_k, PANEL_Q5, SCALES_K)
GROUPS(q6_k, PANEL_Q6, SCALES_K6)
GROUPS(q8_half, PANEL_Q8, SCALES_HALF)

GROUP(q4_pair_wide, PANEL_Q4, SCALES_PAIR, true)
GROUP(q4_pair_min_wide, PANEL_Q4, SCALES_PAIR_MIN, true)

/* PAIR forms with 8-bit activations: pair_gemm(). */
static group_fn *const groups[PANEL_Q8 + 1][SCALES_PAIR_MIN + 1][2] = {
    [PANEL_Q4] = { { q4_half, q4_half_wide }, { q4_half_min, q4_half_min_wide },
                   { q4_k, q4_k_wide },
                   [SCALES_PAIR] = { NULL, q4_pair_wide },
                   [SCALES_PAIR_MIN] = { NULL, q4_pair_min_wide } },
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

/* Rows of one group, some panels. */
static void group_gemm(const struct matrix *m, const struct acts *a, uint32_t row, uint32_t rows,
                       uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    for (uint32_t p = 0; p < panels; p++, out += PANEL) {
        const uint8_t *panel = m->data + (panel0 + p) * m->panel_bytes;
        const enum panel_scales form = panel_form(m, panel);
        prefetch_panel(panel + m->panel_bytes, panel_head_bytes(m->scales), false);
        uint32_t columns = m->out - (panel0 + p) * PANEL;
        if (columns > PANEL) columns = PANEL;
        if (form >= SCALES_PAIR && !a->wide) {
            struct result to = { out, stride, columns, add };
            pair_gemm(m, panel, a, row, rows, &to);
            continue;
        }
        vf acc[ROW_GROUP];
        groups[m->kind][form][a->wide != NULL](m, panel, group_at(a, row), rows, acc);
        for (uint32_t i = 0; i < rows; i++) put(out + i * stride, &acc[i], columns, add);
    }
}

static void gemm(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                 uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    if (matrix_is_float(m)) {
        float_gemm(m, a, row0, rows, panel0, panels, out, stride, add);
        return;
    }
    for (uint32_t r = 0; r < rows; r += ROW_GROUP) {
        uint32_t n = rows - r < ROW_GROUP ? rows - r : ROW_GROUP;
        group_gemm(m, a, row0 + r, n, panel0, panels, out + r * stride, stride, add);
    }
}

#define TABLE(tile_fn)                                                                            \
    {                                                                                             \
        .norm = rows_norm, .quantize = rows_quantize, .pair = rows_pair, .swiglu = rows_swiglu,   \
        .scale = rows_scale, .rotate = rows_rotate, .mix = rows_mix, .to_half = rows_to_half,     \
        .to_byte = rows_to_byte, .gemm = gemm, .tile = tile_fn, .merge = attend_merge,            \
    }
const struct kernels kernels_avx512 = TABLE(attend_tile);
const struct kernels kernels_avx512_bf16 = TABLE(attend_avx512_bf16);
