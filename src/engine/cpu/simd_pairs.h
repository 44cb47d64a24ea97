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

/* Of some rows, in units of scales and of minimums. */
struct totals {
    vf of_d[ROW_GROUP], of_m[ROW_GROUP];
};

/* Adds two blocks, whose sums are in the halves of sum[row ..]. */
INLINE void add_pair(struct totals *t, const __m512i *sum, const uint8_t *scales,
                     const struct act_pair *y, int row, int rows, bool min)
{
    const __m512i d = _mm512_loadu_si512(scales), flip = _mm512_set1_epi32(0x8000);
    const __m512i m = min ? _mm512_loadu_si512(scales + 4 * PANEL) : d;
    UNROLL for (int r = row; r < row + rows; r++) {
        __m512i dx = _mm512_mulhrs_epi16(d, _mm512_set1_epi32(y->scale[r]));
        __m512i s = _mm512_madd_epi16(_mm512_xor_si512(sum[r], flip), dx);
        t->of_d[r] = t->of_d[r] + _mm512_cvtepi32_ps(s);
        if (!min) continue;
        __m512i u = _mm512_madd_epi16(m, _mm512_set1_epi32(y->sum[r]));
        t->of_m[r] = t->of_m[r] + _mm512_cvtepi32_ps(u);
    }
}

/* The sums of a second block, below those of the first.  One row alone would wait for itself. */
INLINE void second_of_pair(__m512i *sum, const __m512i w[8], const int8_t (*q)[32],
                           const int32_t *start, int rows)
{
    if (rows == 1) {
        __m512i second = _mm512_set1_epi32(*start);
        dot(&second, w, q, 1, 0, 8);
        *sum = _mm512_add_epi32(_mm512_slli_epi32(*sum, 16), second);
        return;
    }
    UNROLL for (int r = 0; r < rows; r++) {
        sum[r] = _mm512_add_epi32(_mm512_slli_epi32(sum[r], 16), _mm512_set1_epi32(start[r]));
    }
    dot(sum, w, q, rows, 0, 8);
}

/* Keeps a variable in memory, where the compiler would rather have sums there. */
#define HIDE(variable) __asm__ volatile("" : : "r"(&(variable)) : "memory")

/* `rows` (a constant) rows of one group against one panel; `t` is zero at first.  With many rows
 * the totals stay in memory: 16 sums and 8 lines of weights fill the registers. */
INLINE void pair_rows(const struct matrix *m, const uint8_t *panel, const struct act_block *x,
                      const struct act_pair *y, int rows, bool min, struct totals *t)
{
    const uint32_t pairs = m->in / 64, step = min ? PAIR_MIN_STEP : PAIR_STEP;
    const int n = rows < AT_ONCE ? rows : AT_ONCE;
    panel += min ? PAIR_MIN_HEAD : PAIR_HEAD;
    for (uint32_t p = 0; p < pairs; p++, panel += step, x += 2, y++) {
        __m512i w[8], sum[ROW_GROUP];
        load_quants(panel, PANEL_Q4, w);
        prefetch_panel(panel + m->panel_bytes, step, rows > 8);
        UNROLL for (int r = 0; r < rows; r++) sum[r] = _mm512_setzero_si512();
        UNROLL for (int r = 0; r < rows; r += n) dot(sum + r, w, x[0].q + r, n, 0, 8);
        load_quants(panel + 256, PANEL_Q4, w);
        UNROLL for (int r = 0; r < rows; r += n) {
            second_of_pair(sum + r, w, x[1].q + r, y->start + r, n);
            add_pair(t, sum, panel + 512, y, r, n, min);
            if (rows > 4) HIDE(*t);
        }
    }
}

/* Where a panel's results for a group go. */
struct result {
    float *out;                       /* of the first row                                     */
    uint64_t stride;
    uint32_t columns;
    bool add;
};

/* A panel's results from a group's totals. */
INLINE void put_totals(const struct totals *t, const float *unit, const struct act_units *u,
                       uint32_t rows, bool min, const struct result *to)
{
    const vf of_d = vf_load(unit), of_m = min ? vf_load(unit + PANEL) : vf_zero();
    for (uint32_t r = 0; r < rows; r++) {
        vf v = t->of_d[r] * (of_d * vf_all(u->scale[r]));
        if (min) v = vf_fma(t->of_m[r], of_m * vf_all(u->sum[r]), v);
        put(to->out + r * to->stride, &v, to->columns, to->add);
    }
}

/* One group's rows, of which `most` (a constant) are computed, against one panel. */
INLINE void pair_panel(const struct matrix *m, const uint8_t *panel, const struct acts *a,
                       uint32_t row, uint32_t rows, int most, bool min, const struct result *to)
{
    const uint32_t group = row / ROW_GROUP;
    struct totals t;
    for (uint32_t r = 0; most > 4 && r < rows; r++) fetch_to_write(to->out + r * to->stride);
    UNROLL for (int r = 0; r < most; r++) t.of_d[r] = t.of_m[r] = vf_zero();
    if (most > 4) HIDE(t);
    pair_rows(m, panel, a->q + (uint64_t)group * (a->k / 32),
              a->pairs + (uint64_t)group * (a->k / 64), most, min, &t);
    put_totals(&t, (const float *)(const void *)panel, a->units + group, rows, min, to);
}

typedef void pair_fn(const struct matrix *, const uint8_t *panel, const struct acts *,
                     uint32_t row, uint32_t rows, const struct result *);

#define PAIRS(name, most, min)                                                                    \
    static void name(const struct matrix *m, const uint8_t *panel, const struct acts *a,          \
                     uint32_t row, uint32_t rows, const struct result *to)                        \
    {                                                                                             \
        pair_panel(m, panel, a, row, rows, most, min, to);                                        \
    }
PAIRS(pair_1, 1, false)
PAIRS(pair_4, 4, false)
PAIRS(pair_8, 8, false)
PAIRS(pair_16, ROW_GROUP, false)
PAIRS(pair_min_1, 1, true)
PAIRS(pair_min_4, 4, true)
PAIRS(pair_min_8, 8, true)
PAIRS(pair_min_16, ROW_GROUP, true)

static pair_fn *pair_for(const struct matrix *m, uint32_t rows)
{
    static pair_fn *const all[2][4] = { { pair_1, pair_4, pair_8, pair_16 },
                                        { pair_min_1, pair_min_4, pair_min_8, pair_min_16 } };
    return all[m->scales == SCALES_PAIR_MIN][rows == 1 ? 0 : rows <= 4 ? 1 : rows <= 8 ? 2 : 3];
}
