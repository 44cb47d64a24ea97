/* engine/cpu/simd_scales.h - what reading a panel needs: its scales as floats, the next panel's way
 * into the cache.  For the instruction set of the including file; see pack.h for how they lie.
 */
#include "engine/cpu/simd.h"

struct block_scales {
    vf d, low;                        /* w = d*q + low; without minimums `low` is not set     */
    vf d_high;                        /* K6: of the second half; there d is of the first      */
};

#ifdef __AVX512F__
/* One block's numbers of two that lie side by side. */
INLINE vf one_of_pair(const uint8_t *at, bool second)
{
    __m512i v = _mm512_loadu_si512(at);
    if (second) v = _mm512_slli_epi32(v, 16);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(v, 16));
}

/* The PAIR forms as floats (for 16-bit activations). */
INLINE struct block_scales pair_scales(const uint8_t *panel, enum panel_scales form, uint32_t b)
{
    const float *unit = (const float *)(const void *)panel;
    const uint8_t *at = panel + pair_scales_at(form, b);
    struct block_scales s = { .d = vf_load(unit) * one_of_pair(at, b % 2) };
    if (form == SCALES_PAIR) return s;
    vf m = vf_load(unit + PANEL) * one_of_pair(at + PAIR_BYTES, b % 2);
    s.low = m - s.d * vf_all(8);
    return s;
}
#endif

/* Of block b, outputs first .. first+LANES-1; of PAIR forms `at` is the panel. */
INLINE struct block_scales block_scales(const uint8_t *at, enum panel_scales form, uint32_t b,
                                        uint32_t first)
{
    struct block_scales s;
#ifdef __AVX512F__
    if (form >= SCALES_PAIR) return pair_scales(at, form, b);
#endif
    if (form == SCALES_HALF) {
        s.d = vf_load_half(at + (uint64_t)b * HALF_BYTES + 2 * first);
    } else if (form == SCALES_HALF_MIN) {
        at += (uint64_t)b * HALF_MIN_BYTES + 2 * first;
        s.d = vf_load_half(at);
        s.low = vf_load_half(at + 2 * PANEL);
    } else if (form == SCALES_K) {
        at += (uint64_t)(b / 8) * K_BYTES;
        const uint8_t *own = at + K_HEAD_BYTES + b % 8 * 2 * PANEL + first;
        s.d = vf_load_half(at + 2 * first) * vf_load_u8(own);
        s.low = vf_zero() - vf_load_half(at + 2 * PANEL + 2 * first) * vf_load_u8(own + PANEL);
    } else {
        at += (uint64_t)(b / 8) * K6_BYTES;
        const uint8_t *own = at + K6_HEAD_BYTES + b % 8 * 2 * PANEL + first;
        vf d = vf_load_half(at + 2 * first);
        s.d = d * vf_load_int8(own);
        s.d_high = d * vf_load_int8(own + PANEL);
    }
    return s;
}

/* A block's quants of the panel after this one.  What the processor prefetches by itself is too
 * little where a panel comes from memory.  `near`: many rows give each line time to arrive in the
 * nearest cache; few rows wait for memory, and more lines can be under way to the second. */
INLINE void prefetch_panel(const uint8_t *next, uint32_t quant_bytes, bool near)
{
    UNROLL for (uint32_t i = 0; i < quant_bytes; i += 64) {
        if (near) {
            _mm_prefetch((const char *)next + i, _MM_HINT_T0);
        } else {
            _mm_prefetch((const char *)next + i, _MM_HINT_T1);
        }
    }
}

/* w = d*(q - zero), where zero is 128 >> this. */
INLINE int zero_shift(enum panel_kind kind)
{
    return kind == PANEL_Q4 ? 4 : kind == PANEL_Q5 ? 3 : kind == PANEL_Q6 ? 2 : 0;
}

INLINE bool has_low(enum panel_scales form)
{
    return form == SCALES_HALF_MIN || form == SCALES_K || form == SCALES_PAIR_MIN;
}
