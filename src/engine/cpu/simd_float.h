/* engine/cpu/simd_float.h - products with float panels (F32, F16, BF16), for the instruction set of
 * the including file; and writing a panel's results.
 */
#include "engine/cpu/simd.h"

/* The first `columns` of a panel's 16 results. */
INLINE void put(float *to, const vf *acc, uint32_t columns, bool add)
{
    if (columns == PANEL) {
        UNROLL for (uint32_t p = 0; p < PARTS; p++) {
            vf v = acc[p];
            if (add) v = vf_load(to + p * LANES) + v;
            vf_store(to + p * LANES, v);
        }
        return;
    }
    float lane[PANEL];
    for (uint32_t p = 0; p < PARTS; p++) vf_store(lane + p * LANES, acc[p]);
    for (uint32_t c = 0; c < columns; c++) to[c] = add ? to[c] + lane[c] : lane[c];
}

INLINE vf float_weight(const uint8_t *at, uint32_t i, enum panel_kind kind)
{
    if (kind == PANEL_F32) return vf_load((const float *)(const void *)at + i);
    return kind == PANEL_F16 ? vf_load_half(at + 2ull * i) : vf_load_bf16(at + 2ull * i);
}

enum { FLOAT_ROWS = 4 };

INLINE void float_rows(const uint8_t *w, enum panel_kind kind, uint32_t in, const float *x,
                       uint32_t rows, uint64_t x_stride, uint32_t columns, float *out,
                       uint64_t stride, bool add)
{
    vf acc[FLOAT_ROWS][PARTS];
    const float *row[FLOAT_ROWS];
    UNROLL for (uint32_t r = 0; r < FLOAT_ROWS; r++) {
        row[r] = x + (r < rows ? r : 0) * x_stride;
        UNROLL for (uint32_t p = 0; p < PARTS; p++) acc[r][p] = vf_zero();
    }
    for (uint64_t k = 0; k < in; k++) {
        vf v[PARTS];
        UNROLL for (uint32_t p = 0; p < PARTS; p++) {
            v[p] = float_weight(w + k * PANEL * (kind == PANEL_F32 ? 4 : 2), p * LANES, kind);
        }
        UNROLL for (uint32_t r = 0; r < FLOAT_ROWS; r++) {
            vf value = vf_all(row[r][k]);
            UNROLL for (uint32_t p = 0; p < PARTS; p++) acc[r][p] = vf_fma(value, v[p], acc[r][p]);
        }
    }
    for (uint32_t r = 0; r < rows; r++) put(out + r * stride, acc[r], columns, add);
}

static void float_gemm(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                       uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    for (uint32_t p = 0; p < panels; p++) {
        const uint8_t *w = m->data + (panel0 + p) * m->panel_bytes;
        uint32_t columns = m->out - (panel0 + p) * PANEL;
        if (columns > PANEL) columns = PANEL;
        for (uint32_t r = 0; r < rows; r += FLOAT_ROWS) {
            const float *x = a->f + (uint64_t)(row0 + r) * a->k;
            uint32_t n = rows - r < FLOAT_ROWS ? rows - r : FLOAT_ROWS;
            float *to = out + r * stride + (uint64_t)p * PANEL;
            switch (m->kind) {
            case PANEL_F32:
                float_rows(w, PANEL_F32, m->in, x, n, a->k, columns, to, stride, add);
                break;
            case PANEL_F16:
                float_rows(w, PANEL_F16, m->in, x, n, a->k, columns, to, stride, add);
                break;
            default: float_rows(w, PANEL_BF16, m->in, x, n, a->k, columns, to, stride, add);
            }
        }
    }
}
