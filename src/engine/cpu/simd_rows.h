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

#ifdef __AVX512F__
/* 2^(i/32) */
_Alignas(64) static const float powers[32] = {
    1.00000000f, 1.02189720f, 1.04427373f, 1.06714046f, 1.09050775f, 1.11438680f,
    1.13878858f, 1.16372490f, 1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f,
    1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f, 1.41421354f, 1.44518077f,
    1.47682619f, 1.50916445f, 1.54221082f, 1.57598090f, 1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.83400810f, 1.87416768f,
    1.91520655f, 1.95714414f,
};

/* x / (1 + e^-x) to 5e-7 of it.  e^-x = 2^m e^f with m in 32nds: the power of its fraction is
 * looked up, and a parabola is enough for e^f. */
INLINE vf silu(vf x)
{
    const vf round = vf_all(0x1.8p18f);               /* floats beside it are 1/32 apart */
    vf in = vf_min(vf_max(x, vf_all(-87)), vf_all(87));
    vf z = vf_fma(in, vf_all(-1.44269504f), round), m = z - round;
    vf f = _mm512_fnmsub_ps(m, vf_all(0.693147181f), in);
    vf power = _mm512_permutex2var_ps(vf_load(powers), (__m512i)z, vf_load(powers + 16));
    vf e = vf_fma(power * f, vf_fma(f, vf_all(0.5f), vf_all(1.00001466f)), power);
    vf d = vf_all(1) + _mm512_scalef_ps(e, m), r = _mm512_rcp14_ps(d);
    return x * (r * _mm512_fnmadd_ps(r, d, vf_all(2)));       /* Newton */
}
#else
INLINE vf silu(vf x)
{
    return x / (vf_all(1) + vf_exp(vf_zero() - x));
}
#endif

static void rows_swiglu(const float *gate, const float *up, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i += LANES) {
        vf_store(out + i, silu(vf_load(gate + i)) * vf_load(up + i));
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
