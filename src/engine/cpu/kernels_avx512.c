/* engine/cpu/kernels_avx512.c - AVX-512 with VNNI: 8-bit products, and the shared bodies.
 *
 * One 32-value block of a panel of 16 outputs meets a row in 8 vpdpbusd; then one multiply-add by
 * the block's scales, one for its minimums.  Blocks are added in ascending order.
 */
#include "engine/cpu/simd_attend.h"
#include "engine/cpu/simd_float.h"
#include "engine/cpu/simd_rows.h"

INLINE __m512i four_values(const int8_t *x)
{
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
}

INLINE void load_quants(const uint8_t *at, enum panel_kind kind, __m512i w[8])
{
    if (kind == PANEL_Q8) {
        UNROLL for (int j = 0; j < 8; j++) w[j] = _mm512_loadu_si512(at + 64 * j);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i both = _mm512_loadu_si512(at + 64 * j);
        w[j] = _mm512_and_si512(both, low);
        w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

/* `rows` (a constant) rows of one group against one panel. */
INLINE void rows_panel(const struct matrix *m, const uint8_t *panel, const struct act_block *x,
                       int rows, enum panel_kind kind, bool half, vf *acc)
{
    const uint32_t blocks = m->in / 32, quant_bytes = kind == PANEL_Q4 ? 256 : 512;
    const uint32_t one = half ? 32 : 64, scale_bytes = m->minimums ? 2 * one : one;
    const uint8_t *scales = panel + (uint64_t)blocks * quant_bytes;
    const vf zero = vf_all(-(float)m->zero);
    UNROLL for (int r = 0; r < rows; r++) acc[r] = vf_zero();
    for (uint32_t b = 0; b < blocks; b++, x++, panel += quant_bytes, scales += scale_bytes) {
        __m512i w[8];
        load_quants(panel, kind, w);
        vf d = half ? vf_load_half(scales) : vf_load((const float *)(const void *)scales);
        vf low = d * zero;
        if (m->minimums) {
            low = half ? vf_load_half(scales + one) :
                         vf_load((const float *)(const void *)(scales + one));
        }
        UNROLL for (int r = 0; r < rows; r++) {
            __m512i sum = _mm512_setzero_si512();
            UNROLL for (int j = 0; j < 8; j++) {
                sum = _mm512_dpbusd_epi32(sum, w[j], four_values(x->q[r] + 4 * j));
            }
            acc[r] = vf_fma(_mm512_cvtepi32_ps(sum), d * vf_all(x->scale[r]), acc[r]);
            acc[r] = vf_fma(low, vf_all(x->sum[r]), acc[r]);
        }
    }
}

#define GROUP(name, kind, half)                                                                   \
    static void name(const struct matrix *m, const uint8_t *panel, const struct act_block *x,     \
                     uint32_t rows, vf *acc)                                                      \
    {                                                                                             \
        if (rows == 1) {                                                                          \
            rows_panel(m, panel, x, 1, kind, half, acc);                                          \
        } else if (rows == 2) {                                                                   \
            rows_panel(m, panel, x, 2, kind, half, acc);                                          \
        } else if (rows <= 4) {                                                                   \
            rows_panel(m, panel, x, 4, kind, half, acc);                                          \
        } else if (rows <= 8) {                                                                   \
            rows_panel(m, panel, x, 8, kind, half, acc);                                          \
        } else if (rows <= 12) {                                                                  \
            rows_panel(m, panel, x, 12, kind, half, acc);                                         \
        } else {                                                                                  \
            rows_panel(m, panel, x, 16, kind, half, acc);                                         \
        }                                                                                         \
    }
GROUP(group_q4_half, PANEL_Q4, true)
GROUP(group_q4_float, PANEL_Q4, false)
GROUP(group_q8_half, PANEL_Q8, true)
GROUP(group_q8_float, PANEL_Q8, false)

static void gemm(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                 uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    if (matrix_is_float(m)) {
        float_gemm(m, a, row0, rows, panel0, panels, out, stride, add);
        return;
    }
    for (uint32_t r = 0; r < rows; r += ROW_GROUP) {
        const struct act_block *x = a->q + (uint64_t)((row0 + r) / ROW_GROUP) * (a->k / 32);
        uint32_t n = rows - r < ROW_GROUP ? rows - r : ROW_GROUP;
        for (uint32_t p = 0; p < panels; p++) {
            const uint8_t *panel = m->data + (panel0 + p) * m->panel_bytes;
            vf acc[ROW_GROUP];
            if (m->kind == PANEL_Q4) {
                (m->half_scales ? group_q4_half : group_q4_float)(m, panel, x, n, acc);
            } else {
                (m->half_scales ? group_q8_half : group_q8_float)(m, panel, x, n, acc);
            }
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
    .norm = rows_norm, .quantize = rows_quantize, .swiglu = rows_swiglu, .to_half = rows_to_half,
    .to_byte = rows_to_byte, .gemm = gemm, .tile = tile_any, .merge = attend_merge,
};
