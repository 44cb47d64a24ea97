/* engine/cpu/kernels_avx2.c - AVX2: 8-bit products, and the shared bodies.
 *
 * Eight outputs at a time.  Quants of at most 31 meet four rows by vpmaddubsw, whose 16-bit sums
 * cannot overflow: 8 x 2 x 15 x 127 = 30,480 for 4-bit, 4 x 2 x 31 x 127 = 31,496 for 5-bit.
 * Signed 8-bit quants go as |w| x (x with w's sign).  Blocks are added in ascending order.
 */
#include "engine/cpu/simd_attend.h"
#include "engine/cpu/simd_float.h"
#include "engine/cpu/simd_rows.h"

enum { SUB_ROWS = 4 };

/* How quants become products: unsigned nibbles, unsigned of 5 bits, signed bytes. */
enum form { FORM_4, FORM_5, FORM_8 };

INLINE __m256i four_values(const int8_t *x)
{
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
}

INLINE __m256i quant(const uint8_t *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

/* Sums over the block's 32 values: eight outputs (`at` is theirs) for SUB_ROWS rows. */
INLINE void dots4(const uint8_t *at, const struct act_block *x, uint32_t row, __m256i *sum)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    UNROLL for (int r = 0; r < SUB_ROWS; r++) sum[r] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 4; j++) {
        __m256i both = quant(at + 64 * j);
        __m256i a = _mm256_and_si256(both, low);
        __m256i b = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        UNROLL for (int r = 0; r < SUB_ROWS; r++) {
            const int8_t *q = x->q[row + (uint32_t)r];
            __m256i p = _mm256_maddubs_epi16(a, four_values(q + 4 * j));
            __m256i t = _mm256_maddubs_epi16(b, four_values(q + 16 + 4 * j));
            sum[r] = _mm256_add_epi16(sum[r], _mm256_add_epi16(p, t));
        }
    }
    UNROLL for (int r = 0; r < SUB_ROWS; r++) sum[r] = _mm256_madd_epi16(sum[r], ones);
}

INLINE void dots5(const uint8_t *at, const struct act_block *x, uint32_t row, __m256i *sum)
{
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (int r = 0; r < SUB_ROWS; r++) sum[r] = _mm256_setzero_si256();
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i part[SUB_ROWS];
        UNROLL for (int r = 0; r < SUB_ROWS; r++) part[r] = _mm256_setzero_si256();
        UNROLL for (int j = 4 * h; j < 4 * h + 4; j++) {
            __m256i w = quant(at + 64 * j);
            UNROLL for (int r = 0; r < SUB_ROWS; r++) {
                __m256i p = _mm256_maddubs_epi16(w, four_values(x->q[row + (uint32_t)r] + 4 * j));
                part[r] = _mm256_add_epi16(part[r], p);
            }
        }
        UNROLL for (int r = 0; r < SUB_ROWS; r++) {
            sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(part[r], ones));
        }
    }
}

INLINE void dots8(const uint8_t *at, const struct act_block *x, uint32_t row, __m256i *sum)
{
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8((char)0x80);
    UNROLL for (int r = 0; r < SUB_ROWS; r++) sum[r] = _mm256_setzero_si256();
    UNROLL for (int j = 0; j < 8; j++) {
        __m256i w = _mm256_xor_si256(quant(at + 64 * j), flip), size = _mm256_abs_epi8(w);
        UNROLL for (int r = 0; r < SUB_ROWS; r++) {
            __m256i v = _mm256_sign_epi8(four_values(x->q[row + (uint32_t)r] + 4 * j), w);
            __m256i p = _mm256_madd_epi16(_mm256_maddubs_epi16(size, v), ones);
            sum[r] = _mm256_add_epi32(sum[r], p);
        }
    }
}

INLINE void dots(enum form form, const uint8_t *at, const struct act_block *x, uint32_t row,
                 __m256i *sum)
{
    if (form == FORM_4) dots4(at, x, row, sum);
    if (form == FORM_5) dots5(at, x, row, sum);
    if (form == FORM_8) dots8(at, x, row, sum);
}

INLINE vf scales_at(const uint8_t *at, uint32_t i, bool half)
{
    return half ? vf_load_half(at + 2 * i) : vf_load((const float *)(const void *)at + i);
}

/* Rows row .. row+3 of one group against one panel. */
INLINE void rows_panel(const struct matrix *m, const uint8_t *panel, const struct act_block *x,
                       uint32_t row, enum form form, bool half, vf acc[SUB_ROWS][PARTS])
{
    const uint32_t blocks = m->in / 32, quant_bytes = form == FORM_4 ? 256 : 512;
    const uint32_t one = half ? 32 : 64, scale_bytes = m->minimums ? 2 * one : one;
    const vf zero = vf_all(form == FORM_8 ? 0 : -(float)m->zero);
    UNROLL for (uint32_t p = 0; p < PARTS; p++) {
        const struct act_block *at = x;
        const uint8_t *w = panel + 32 * p, *scales = panel + (uint64_t)blocks * quant_bytes;
        vf total[SUB_ROWS];
        UNROLL for (int r = 0; r < SUB_ROWS; r++) total[r] = vf_zero();
        for (uint32_t b = 0; b < blocks; b++, at++, w += quant_bytes, scales += scale_bytes) {
            __m256i sum[SUB_ROWS];
            dots(form, w, at, row, sum);
            vf d = scales_at(scales, p * LANES, half);
            vf low = d * zero;
            if (m->minimums) low = scales_at(scales + one, p * LANES, half);
            UNROLL for (uint32_t r = 0; r < SUB_ROWS; r++) {
                vf scale = vf_all(at->scale[row + r]);
                total[r] = vf_fma(_mm256_cvtepi32_ps(sum[r]), d * scale, total[r]);
                total[r] = vf_fma(low, vf_all(at->sum[row + r]), total[r]);
            }
        }
        UNROLL for (int r = 0; r < SUB_ROWS; r++) acc[r][p] = total[r];
    }
}

static void sub_group(const struct matrix *m, const uint8_t *panel, const struct act_block *x,
                      uint32_t row, vf acc[SUB_ROWS][PARTS])
{
    if (m->kind == PANEL_Q4) {
        if (m->half_scales) {
            rows_panel(m, panel, x, row, FORM_4, true, acc);
        } else {
            rows_panel(m, panel, x, row, FORM_4, false, acc);
        }
    } else if (m->zero == 128) {
        rows_panel(m, panel, x, row, FORM_8, true, acc);
    } else if (m->half_scales) {
        rows_panel(m, panel, x, row, FORM_5, true, acc);
    } else {
        rows_panel(m, panel, x, row, FORM_5, false, acc);
    }
}

static void gemm(const struct matrix *m, const struct acts *a, uint32_t row0, uint32_t rows,
                 uint32_t panel0, uint32_t panels, float *out, uint64_t stride, bool add)
{
    if (matrix_is_float(m)) {
        float_gemm(m, a, row0, rows, panel0, panels, out, stride, add);
        return;
    }
    for (uint32_t r = 0; r < rows; r += SUB_ROWS) {
        uint32_t row = row0 + r, n = rows - r < SUB_ROWS ? rows - r : SUB_ROWS;
        const struct act_block *x = a->q + (uint64_t)(row / ROW_GROUP) * (a->k / 32);
        for (uint32_t p = 0; p < panels; p++) {
            vf acc[SUB_ROWS][PARTS];
            sub_group(m, m->data + (panel0 + p) * m->panel_bytes, x, row % ROW_GROUP, acc);
            uint32_t columns = m->out - (panel0 + p) * PANEL;
            if (columns > PANEL) columns = PANEL;
            float *to = out + r * stride + (uint64_t)p * PANEL;
            for (uint32_t i = 0; i < n; i++) put(to + i * stride, acc[i], columns, add);
        }
    }
}

const struct kernels kernels_avx2 = {
    .norm = rows_norm, .quantize = rows_quantize, .swiglu = rows_swiglu, .to_half = rows_to_half,
    .to_byte = rows_to_byte, .gemm = gemm, .tile = attend_tile, .merge = attend_merge,
};
