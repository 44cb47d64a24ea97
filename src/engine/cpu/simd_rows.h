/* engine/cpu/simd_rows.h - operations on a row, for the instruction set of the including file.
 *
 * Lengths are multiples of 16.
 */
#include "engine/cpu/simd_kv.h"

static void rows_norm(const float *x, const float *weight, float eps, uint32_t n, float *out)
{
    vf squares = vf_zero();
    for (uint32_t i = 0; i < n; i += LANES) {
        vf v = vf_load(x + i);
        squares = vf_fma(v, v, squares);
    }
    vf inverse = vf_all(1 / sqrtf(vf_sum(squares) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += LANES) {
        vf_store(out + i, vf_load(x + i) * inverse * vf_load(weight + i));
    }
}

static void rows_scale(const float *x, float by, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i += LANES) vf_store(out + i, vf_load(x + i) * vf_all(by));
}

static void rows_swiglu(const float *gate, const float *up, uint32_t n, float *out)
{
    const vf one = vf_all(1.0f);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf g = vf_load(gate + i);
        vf_store(out + i, g / (one + vf_exp(vf_zero() - g)) * vf_load(up + i));
    }
}

/* y = x * cosine + partner * sine, times `scale`; see kernels.h. */
INLINE void head_rotate(float *x, const float *cosines, const float *sines, uint32_t dims,
                        uint32_t size, bool pairs, float scale)
{
    const vf all = vf_all(scale);
    uint32_t i = 0, half = dims / 2;
    for (; pairs && i + LANES <= dims; i += LANES) {
        vf v = vf_load(x + i);
        vf turned = v * vf_load(cosines + i) + vf_swap(v, 1) * vf_load(sines + i);
        vf_store(x + i, turned * all);
    }
    for (; pairs && i < dims; i += 2) {
        float a = x[i], b = x[i + 1];
        x[i] = (a * cosines[i] + b * sines[i]) * scale;
        x[i + 1] = (b * cosines[i + 1] + a * sines[i + 1]) * scale;
    }
    for (; !pairs && i + LANES <= half; i += LANES) {
        vf a = vf_load(x + i), b = vf_load(x + half + i), c = vf_load(cosines + i);
        vf_store(x + i, (a * c + b * vf_load(sines + i)) * all);
        vf_store(x + half + i, (b * c + a * vf_load(sines + half + i)) * all);
    }
    for (; !pairs && i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = (a * cosines[i] + b * sines[i]) * scale;
        x[half + i] = (b * cosines[i] + a * sines[half + i]) * scale;
    }
    for (i = dims; i < size; i++) x[i] *= scale;
}

static void rows_rotate(float *x, uint32_t heads, const float *cosines, const float *sines,
                        uint32_t dims, uint32_t size, bool pairs, float scale)
{
    for (; heads > 0; heads--, x += size) {
        head_rotate(x, cosines, sines, dims, size, pairs, scale);
    }
}

/* One stage of the transform within a vector: sum in the lanes below `step`, difference above. */
INLINE vf mix_lanes(vf x, uint32_t step)
{
    float sign[LANES];
    for (uint32_t i = 0; i < LANES; i++) sign[i] = i & step ? -1 : 1;
    return vf_fma(x, vf_load(sign), vf_swap(x, step));
}

static void rows_mix(float *x, uint32_t n)
{
    uint32_t part = n & -n;
    const vf norm = vf_all(1 / sqrtf((float)part));
    for (float *at = x; at < x + n; at += part) {
        for (uint32_t i = 0; i < part; i += LANES) {
            vf v = vf_load(at + i) * norm;
            UNROLL for (uint32_t step = 1; step < LANES; step *= 2) v = mix_lanes(v, step);
            vf_store(at + i, v);
        }
        for (uint32_t step = LANES; step < part; step *= 2) {
            for (uint32_t i = 0; i < part; i += LANES) {
                if (i & step) continue;
                vf a = vf_load(at + i), b = vf_load(at + i + step);
                vf_store(at + i, a + b);
                vf_store(at + i + step, a - b);
            }
        }
    }
}

static void rows_to_half(const float *x, uint32_t n, uint16_t *out)
{
    const vf least = vf_all(-HALF_MOST), most = vf_all(HALF_MOST);
    for (uint32_t i = 0; i < n; i += LANES) {         /* of a NaN and a number, the second */
        vf_store_half(out + i, vf_min(most, vf_max(least, vf_load(x + i))));
    }
}
