/* engine/cpu/kernels_avx512.c - AVX-512 with VNNI: 8-bit products, and the shared bodies.
 *
 * One 32-value block of a panel of 16 outputs meets a row in 8 vpdpbusd (16 for 16-bit activations:
 * high bytes, then low ones); then one multiply-add by the block's scales, one for its minimums.
 * Blocks are added in ascending order.
 */
#include "engine/cpu/simd_attend.h"
#include "engine/cpu/simd_float.h"
#include "engine/cpu/simd_quantize.h"
#include "engine/cpu/simd_rows.h"
#include "engine/cpu/simd_scales.h"

INLINE __m512i four_values(const int8_t *x)
{
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
}

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

/* start + the products of lines from .. from+count-1 with a row's values. */
INLINE __m512i dot(__m512i sum, const __m512i w[8], const int8_t *q, int from, int count)
{
    UNROLL for (int j = from; j < from + count; j++) {
        sum = _mm512_dpbusd_epi32(sum, w[j], four_values(q + 4 * j));
    }
    return sum;
}

/* The same with values of 8 or 16 bits, of row r. */
INLINE __m512i row_dot(__m512i start, const __m512i w[8], const struct act_scales *x, int r,
                       bool wide, int from, int count)
{
    if (!wide) return dot(start, w, ((const struct act_block *)x)->q[r], from, count);
    const struct wide_block *b = (const struct wide_block *)x;
    __m512i high = dot(_mm512_setzero_si512(), w, b->high[r], from, count);
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), dot(start, w, b->low[r], from, count));
}

INLINE __m512i start_of(int32_t start, enum panel_kind kind)
{
    return _mm512_srai_epi32(_mm512_set1_epi32(start), (unsigned)zero_shift(kind));
}

/* What a block adds to row r. */
INLINE vf add_block(vf acc, const __m512i w[8], const struct block_scales *s,
                    const struct act_scales *x, int r, enum panel_kind kind,
                    enum panel_scales form, bool wide)
{
    vf scale = vf_all(x->scale[r]);
    if (form == SCALES_K6) {
        __m512i start = start_of(x->start_low[r], kind);
        __m512i rest = start_of(x->start[r] - x->start_low[r], kind);
        vf low = _mm512_cvtepi32_ps(row_dot(start, w, x, r, wide, 0, 4));
        vf high = _mm512_cvtepi32_ps(row_dot(rest, w, x, r, wide, 4, 4));
        return vf_fma(vf_fma(high, s->d_high, low * s->d), scale, acc);
    }
    __m512i start = has_low(form) ? _mm512_setzero_si512() : start_of(x->start[r], kind);
    acc = vf_fma(_mm512_cvtepi32_ps(row_dot(start, w, x, r, wide, 0, 8)), s->d * scale, acc);
    return has_low(form) ? vf_fma(s->low, vf_all(x->sum[r]), acc) : acc;
}

/* `rows` (a constant) rows of one group against one panel. */
INLINE void rows_panel(const struct matrix *m, const uint8_t *panel, const struct act_scales *x,
                       int rows, enum panel_kind kind, enum panel_scales form, bool wide, vf *acc)
{
    const uint32_t blocks = m->in / 32, quant_bytes = panel_quant_bytes(kind);
    const uint64_t step = wide ? sizeof(struct wide_block) : sizeof(struct act_block);
    const uint8_t *scales = panel + (uint64_t)blocks * quant_bytes;
    vf total[ROW_GROUP];
    UNROLL for (int r = 0; r < rows; r++) total[r] = vf_zero();
    for (uint32_t b = 0; b < blocks; b++, panel += quant_bytes) {
        __m512i w[8];
        load_quants(panel, kind, w);
        prefetch_panel(panel + m->panel_bytes, quant_bytes, rows > 8);
        struct block_scales s = block_scales(scales, form, b, 0);
        UNROLL for (int r = 0; r < rows; r++) {
            total[r] = add_block(total[r], w, &s, x, r, kind, form, wide);
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

static group_fn *const groups[PANEL_Q8 + 1][SCALES_K6 + 1][2] = {
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
    group_fn *group = groups[m->kind][m->scales][a->wide != NULL];
    for (uint32_t r = 0; r < rows; r += ROW_GROUP) {
        const struct act_scales *x = group_at(a, row0 + r);
        uint32_t n = rows - r < ROW_GROUP ? rows - r : ROW_GROUP;
        for (uint32_t p = 0; p < panels; p++) {
            vf acc[ROW_GROUP];
            group(m, m->data + (panel0 + p) * m->panel_bytes, x, n, acc);
            uint32_t columns = m->out - (panel0 + p) * PANEL;
            if (columns > PANEL) columns = PANEL;
            float *to = out + r * stride + (uint64_t)p * PANEL;
            for (uint32_t i = 0; i < n; i++) put(to + i * stride, &acc[i], columns, add);
        }
    }
}

/* Blocks of 8 tokens are narrower than a vector of positions. */
static void tile_any(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                     const uint32_t *visible, uint32_t count, struct partial *out,
                     float *room)
{
    if (kv->lanes < LANES) {
        kernels_avx2.tile(kv, tile, queries, visible, count, out, room);
    } else {
        attend_tile(kv, tile, queries, visible, count, out, room);
    }
}

const struct kernels kernels_avx512 = {
    .norm = rows_norm, .quantize = rows_quantize, .swiglu = rows_swiglu, .rotate = rows_rotate,
    .mix = rows_mix, .to_half = rows_to_half,
    .to_byte = rows_to_byte, .gemm = gemm, .tile = tile_any, .merge = attend_merge,
};
