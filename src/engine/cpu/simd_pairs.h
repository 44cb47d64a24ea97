/* engine/cpu/simd_pairs.h - AVX-512 products with 4-bit panels whose scales are whole numbers, two
 * blocks at a time.
 *
 * A block's sum s of (q - 8) * v is at most 8 * 127 * 32 = 32512 in size, so two of them fit one
 * lane of 32 bits.  What the two blocks add to an output is s0*dx0 + s1*dx1 and m0*u0 + m1*u1, all
 * factors with 15 bits and a sign: dx is the product of the weights' and the activations' scales, m
 * what is left of the minimum, u the sum of the activations.  Both sums are below 2^31, so they are
 * exact until they are added to totals in floats, which have units of their own.  Beside 16
 * vpdpbusd that is one multiplication for two dx and one for each sum: 9.5 a block, where floats
 * take 11.
 *
 * What that costs: a product of scales is off by at most 1.5 D*X / 32767, where D and X are an
 * output's and a row's largest scales, and a minimum's share by M*U / 32767 (of the largest m and
 * u), so a result by at most the sum over blocks of (1.5 * D*X * |s| + M*U) / 32767.  The 8-bit
 * activations err by d*x * sqrt(sum of (q - 8)^2 / 12) in each block (roundings being independent);
 * with values of all sizes s is some 170 times that without d*x, so what is added is some
 * 0.0026 * D*X / (d*x) of it.  If an output's d lie within PAIR_RANGE of each other, the block of
 * the row's largest x errs by D*X / PAIR_RANGE or more in place of d*x: whatever the other blocks'
 * activations are, n blocks add at most 0.0026 * PAIR_RANGE * sqrt(2n/3) of the error that is there
 * (a fifth for 10 blocks, half for 48), if a single block holds all of a row; usually it is below a
 * hundredth.  Panels of a wider range keep F16 scales (pack.h).
 */
#include "engine/cpu/simd.h"

#define PAIR_LEAST 1e-30f             /* rows whose scales are all below it are zero */

/* Lanes of a group's rows row .. row+rows-1. */
INLINE __mmask16 rows_mask(uint32_t row, uint32_t rows)
{
    return (__mmask16)(((1u << rows) - 1) << row);
}

/* Two blocks' numbers in one vector: the first's in the upper halves. */
INLINE __m512i pair_of(vf first, vf second)
{
    __m512i low = _mm512_and_si512(_mm512_cvtps_epi32(second), _mm512_set1_epi32(0xffff));
    return _mm512_or_si512(_mm512_slli_epi32(_mm512_cvtps_epi32(first), 16), low);
}

/* The larger in size; NaN, which is the largest whole number, stays. */
INLINE vf larger(vf top, vf x)
{
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(top),
                                                _mm512_castps_si512(vf_abs(x))));
}

/* Some rows of one group. */
static void pair_group(const struct act_block *b, uint32_t pairs, __mmask16 rows,
                       struct act_pair *out, struct act_units *units)
{
    vf scale_top = vf_zero(), sum_top = vf_zero();
    for (uint32_t i = 0; i < 2 * pairs; i++) {
        scale_top = larger(scale_top, _mm512_maskz_loadu_ps(rows, b[i].s.scale));
        sum_top = larger(sum_top, _mm512_maskz_loadu_ps(rows, b[i].s.sum));
    }
    vf by_scale = vf_keep_from(vf_all(PAIR_MOST) / scale_top, scale_top, vf_all(PAIR_LEAST));
    vf by_sum = vf_keep_from(vf_all(PAIR_MOST) / sum_top, sum_top, vf_all(PAIR_LEAST));
    _mm512_mask_storeu_ps(units->scale, rows, scale_top * vf_all(32768 / PAIR_MOST));
    _mm512_mask_storeu_ps(units->sum, rows, sum_top * vf_all(1 / PAIR_MOST));
    for (uint32_t i = 0; i < pairs; i++, b += 2, out++) {
        const struct act_scales *x = &b[0].s, *y = &b[1].s;
        __m512i scale = pair_of(_mm512_maskz_loadu_ps(rows, x->scale) * by_scale,
                                _mm512_maskz_loadu_ps(rows, y->scale) * by_scale);
        __m512i sum = pair_of(_mm512_maskz_loadu_ps(rows, x->sum) * by_sum,
                              _mm512_maskz_loadu_ps(rows, y->sum) * by_sum);
        __m512i first = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(rows, x->start), 12);
        __m512i second = _mm512_srai_epi32(_mm512_maskz_loadu_epi32(rows, y->start), 4);
        second = _mm512_add_epi32(second, _mm512_set1_epi32(0x8000));
        _mm512_mask_storeu_epi32(out->start, rows, _mm512_add_epi32(first, second));
        _mm512_mask_storeu_epi32(out->scale, rows, scale);
        _mm512_mask_storeu_epi32(out->sum, rows, sum);
    }
}

static void rows_pair(const struct acts *a, uint32_t row, uint32_t rows)
{
    uint32_t pairs = a->k / 64, end = row + rows;
    for (uint32_t n; row < end; row += n) {
        uint32_t group = row / ROW_GROUP, in = row % ROW_GROUP;
        n = end - row < ROW_GROUP - in ? end - row : ROW_GROUP - in;
        pair_group(a->q + (uint64_t)group * 2 * pairs, pairs, rows_mask(in, n),
                   a->pairs + (uint64_t)group * pairs, a->units + group);
    }
}

/* Rows of a group from one of them on: pointers to structures of a group, moved on to that row's
 * place in their arrays. */
struct pair_from {
    const struct act_block *x;
    const struct act_pair *y;
    const struct act_units *units;
};

static struct pair_from rows_from(const struct acts *a, uint32_t row)
{
    uint64_t group = row / ROW_GROUP, in = row % ROW_GROUP;
    const uint8_t *x = (const uint8_t *)(a->q + group * (a->k / 32)) + in * sizeof a->q->q[0];
    const uint8_t *y = (const uint8_t *)(a->pairs + group * (a->k / 64)) + in * sizeof(int32_t);
    const uint8_t *units = (const uint8_t *)(a->units + group) + in * sizeof(float);
    return (struct pair_from){ (const void *)x, (const void *)y, (const void *)units };
}

#include "engine/cpu/simd_pairs_rows.h"

/* The sums of a pair's blocks with one row, each in half of a lane; the lower one plus 0x8000.
 * They are added up beside each other: products of one sum wait for each other. */
INLINE __m512i pair_sums(const uint8_t *panel, const struct act_block *x, int32_t start)
{
    __m512i w[8], first = _mm512_setzero_si512(), second = _mm512_set1_epi32(start);
    load_quants(panel, PANEL_Q4, w);
    dot(&first, w, x[0].q, 1, 0, 8);
    load_quants(panel + 256, PANEL_Q4, w);
    dot(&second, w, x[1].q, 1, 0, 8);
    return _mm512_add_epi32(_mm512_slli_epi32(first, 16), second);
}

/* One row against one panel, in units of scales and of minimums until the end. */
INLINE void pair_row(const uint8_t *panel, const uint8_t *next, const struct pair_from *from,
                     uint32_t pairs, bool min, vf *out)
{
    const uint32_t step = min ? PAIR_MIN_STEP : PAIR_STEP, head = min ? PAIR_MIN_HEAD : PAIR_HEAD;
    const float *unit = (const float *)(const void *)panel;
    const __m512i flip = _mm512_set1_epi32(0x8000);
    const struct act_block *x = from->x;
    vf of_d = vf_zero(), of_m = vf_zero();
    panel += head, next += head;
    for (const struct act_pair *y = from->y; y < from->y + pairs; y++) {
        prefetch_panel(next, step, false);
        __m512i d = _mm512_loadu_si512(panel + 512), sum = pair_sums(panel, x, *y->start);
        __m512i dx = _mm512_mulhrs_epi16(d, _mm512_set1_epi32(*y->scale));
        of_d = of_d + _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_xor_si512(sum, flip), dx));
        if (min) {
            __m512i m = _mm512_loadu_si512(panel + 512 + 4 * PANEL);
            __m512i u = _mm512_madd_epi16(m, _mm512_set1_epi32(*y->sum));
            of_m = of_m + _mm512_cvtepi32_ps(u);
        }
        panel += step, next += step, x += 2;
    }
    *out = of_d * (vf_load(unit) * vf_all(*from->units->scale));
    if (min) *out = vf_fma(of_m, vf_load(unit + PANEL) * vf_all(*from->units->sum), *out);
}

/* Up to eight rows of a group from `row` on against one panel. */
INLINE void some_rows(const struct matrix *m, const uint8_t *panel, const struct acts *a,
                      uint32_t row, uint32_t rows, bool min, vf out[8])
{
    const struct pair_from from = rows_from(a, row);
    const uint8_t *next = panel + m->panel_bytes;
    if (rows == 1) {
        pair_row(panel, next, &from, m->in / 64, min, out);
    } else if (rows <= 4) {
        pair_rows(panel, next, &from, m->in / 64, 4, min, out);
    } else {
        pair_rows(panel, next, &from, m->in / 64, 8, min, out);
    }
}

/* Where a panel's results for a group go. */
struct result {
    float *out;                       /* of the first row                                     */
    uint64_t stride;
    uint32_t columns;
    bool add;
};

/* Rows of one group against one panel, eight at a time. */
INLINE void pair_panel(const struct matrix *m, const uint8_t *panel, const struct acts *a,
                       uint32_t row, uint32_t rows, bool min, const struct result *to)
{
    for (uint32_t first = 0, n; first < rows; first += n) {
        vf out[8];
        float *at = to->out + first * to->stride;
        n = rows - first < 8 ? rows - first : 8;
        for (uint32_t r = 0; n > 4 && r < n; r++) fetch_to_write(at + r * to->stride);
        some_rows(m, panel, a, row + first, n, min, out);
        for (uint32_t r = 0; r < n; r++) put(at + r * to->stride, &out[r], to->columns, to->add);
    }
}

static void pair_gemm(const struct matrix *m, const uint8_t *panel, const struct acts *a,
                      uint32_t row, uint32_t rows, const struct result *to)
{
    if (m->scales == SCALES_PAIR_MIN) {
        pair_panel(m, panel, a, row, rows, true, to);
    } else {
        pair_panel(m, panel, a, row, rows, false, to);
    }
}
