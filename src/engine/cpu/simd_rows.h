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

static void rows_swiglu(const float *gate, const float *up, uint32_t n, float *out)
{
    const vf one = vf_all(1.0f);
    for (uint32_t i = 0; i < n; i += LANES) {
        vf g = vf_load(gate + i);
        vf_store(out + i, g / (one + vf_exp(vf_zero() - g)) * vf_load(up + i));
    }
}

static void rows_to_half(const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i += LANES) vf_store_half(out + i, vf_load(x + i));
}
