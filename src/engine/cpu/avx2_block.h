/* engine/cpu/avx2_block.h - AVX2: what a block of a panel and its activations become before they
 * meet.
 *
 * Bytes: unsigned quants, a line of four values a step, against 8-bit activations (vpmaddubsw).
 * Pairs: signed weights in 16 bits, half a line a step, against 16-bit activations (vpmaddwd), or
 * for Q8, which has no room for a sign in vpmaddubsw, against 8-bit ones widened.  A step takes
 * four bytes of activations in both.
 */
#include "engine/cpu/simd_scales.h"

INLINE __m256i four_bytes(const void *at)
{
    int32_t bytes;
    memcpy(&bytes, at, 4);
    return _mm256_set1_epi32(bytes);
}

INLINE __m256i load(const void *at)
{
    return _mm256_loadu_si256((const __m256i *)at);
}

INLINE void store(void *at, __m256i x)
{
    _mm256_storeu_si256((__m256i *)at, x);
}

/* What a kernel reads; constants. */
struct form {
    enum panel_kind kind;
    enum panel_scales scales;
    bool wide;                        /* activations of 16 bits                                */
    bool pairs;                       /* weights and activations meet in 16 bits               */
    bool ready;                       /* weights were unpacked before                          */
};

INLINE int steps_of(struct form f)
{
    return f.pairs ? 16 : 8;
}

/* The bits above line j's nibbles, at their place. */
INLINE __m256i high_bits(const uint8_t *at, enum panel_kind kind, int j)
{
    if (kind == PANEL_Q5) {
        __m256i bits = load(at + 256);
        bits = j < 4 ? _mm256_slli_epi16(bits, 4 - j % 4) : _mm256_srli_epi16(bits, j % 4);
        return _mm256_and_si256(bits, _mm256_set1_epi8(0x10));
    }
    __m256i bits = load(at + 256 + j / 4 * 64);
    bits = j % 4 < 2 ? _mm256_slli_epi16(bits, 4 - j % 4 * 2) :
                       _mm256_srli_epi16(bits, j % 4 * 2 - 4);
    return _mm256_and_si256(bits, _mm256_set1_epi8(0x30));
}

/* Line j of a block for eight outputs (`at` is theirs): bytes, signed for Q8. */
INLINE __m256i line(const uint8_t *at, enum panel_kind kind, int j)
{
    if (kind == PANEL_Q8) return load(at + 64 * j);
    __m256i w = load(at + 64 * (j % 4));
    if (j >= 4) w = _mm256_srli_epi16(w, 4);
    w = _mm256_and_si256(w, _mm256_set1_epi8(15));
    return kind == PANEL_Q4 ? w : _mm256_or_si256(w, high_bits(at, kind, j));
}

/* What four bytes of activations meet in one step: line `step`, or of a line the values 0 and 2,
 * then 1 and 3, in 16 bits, signed. */
INLINE __m256i weights(const uint8_t *at, struct form f, int step)
{
    if (f.ready) return load(at + 64 * step);
    if (!f.pairs) return line(at, f.kind, step);
    __m256i w = line(at, f.kind, step / 2);
    if (f.kind == PANEL_Q8) {
        if (step % 2 == 0) w = _mm256_slli_epi16(w, 8);
        return _mm256_srai_epi16(w, 8);
    }
    w = step % 2 ? _mm256_srli_epi16(w, 8) : _mm256_and_si256(w, _mm256_set1_epi16(255));
    if (has_low(f.scales)) return w;
    return _mm256_sub_epi16(w, _mm256_set1_epi16((short)(128 >> zero_shift(f.kind))));
}

/* One block of a panel, and the activations that meet it. */
struct block {
    const uint8_t *quants;            /* as in the panel; or ready: 64 bytes a step            */
    struct block_scales s[PARTS];
    __m256i by[2][PARTS], zeros[PARTS];   /* K6 in bytes: its halves' scales, see whole_scales */
    const struct act_scales *x;
    const uint8_t *values;            /* of row 0; 4 bytes a step                              */
    const int32_t *start;             /* of row 0: what its sum begins with, or see K6         */
};

/* What is made of a block before rows meet it; `values` of Q8 in bytes. */
struct made {
    _Alignas(32) uint8_t weights[16 * 64];
    _Alignas(32) int16_t values[ROW_GROUP][32];
    _Alignas(32) int32_t start[ROW_GROUP];
};

/* Bytes of activations as pairs of 16 bits, in the order of `wide_block`. */
INLINE void widen(const int8_t *q, int16_t *to)
{
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    UNROLL for (int i = 0; i < 32; i += 16) {
        __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(q + i)), order);
        store(to + i, _mm256_cvtepi8_epi16(bytes));
    }
}

/* K6 in bytes: sum = scale0 * (q - 32) * x of the first half + scale1 * the same of the second.
 * by[h]: the scale as 16-bit pairs for vpmaddwd, which adds 16-bit sums; zeros: 32 times both
 * scales, which meet -x0, -x1, the sums of a row's halves (`start`, as 16-bit pairs). */
INLINE void whole_scales(struct block *b, const uint8_t *scales, uint32_t index)
{
    const __m256i low = _mm256_set1_epi32(0xffff);
    const uint8_t *at = scales + (uint64_t)(index / 8) * K6_BYTES;
    const uint8_t *own = at + K6_HEAD_BYTES + index % 8 * 2 * PANEL;
    UNROLL for (int p = 0; p < PARTS; p++) {
        __m256i scale[2];
        UNROLL for (int h = 0; h < 2; h++) {
            __m128i bytes = _mm_loadl_epi64((const __m128i *)(own + h * PANEL + p * LANES));
            scale[h] = _mm256_cvtepi8_epi32(bytes);
            b->by[h][p] = _mm256_or_si256(_mm256_slli_epi32(scale[h], 16),
                                          _mm256_and_si256(scale[h], low));
        }
        b->zeros[p] = _mm256_or_si256(_mm256_slli_epi32(scale[1], 16 + 5),
                                      _mm256_and_si256(_mm256_slli_epi32(scale[0], 5), low));
        b->s[p].d = vf_load_half(at + 2 * p * LANES);
    }
}

/* What the sums of eight rows begin with: -zero * x0 .. x31; of K6 see above. */
INLINE void make_start(const struct act_scales *x, struct form f, uint32_t row, int32_t *to)
{
    __m256i all = load(x->start + row);
    if (f.scales != SCALES_K6) {
        store(to + row, _mm256_srai_epi32(all, zero_shift(f.kind)));
        return;
    }
    __m256i first = load(x->start_low + row), second = _mm256_sub_epi32(all, first);
    first = _mm256_and_si256(_mm256_srai_epi32(first, 7), _mm256_set1_epi32(0xffff));
    store(to + row, _mm256_or_si256(first, _mm256_slli_epi32(_mm256_srai_epi32(second, 7), 16)));
}

/* Block `index`, whose scales begin at `scales`, for the first `rows` rows of a group. */
INLINE struct block make_block(const uint8_t *quants, const uint8_t *scales, uint32_t index,
                               const struct act_scales *x, struct form f, uint32_t rows,
                               struct made *made)
{
    struct block b = { .quants = quants, .x = x };
    if (f.scales == SCALES_K6 && !f.pairs) {
        whole_scales(&b, scales, index);
    } else {
        UNROLL for (uint32_t p = 0; p < PARTS; p++) {
            b.s[p] = block_scales(scales, f.scales, index, p * LANES);
        }
    }
    if (f.wide) {
        b.values = (const uint8_t *)((const struct wide_block *)x)->pairs;
    } else if (!f.pairs) {
        b.values = (const uint8_t *)((const struct act_block *)x)->q;
    } else {
        for (uint32_t r = 0; r < rows; r++) {
            widen(((const struct act_block *)x)->q[r], made->values[r]);
        }
        b.values = (const uint8_t *)made->values;
    }
    if (!f.pairs && !has_low(f.scales)) {
        for (uint32_t r = 0; r < rows; r += 8) make_start(x, f, r, made->start);
        b.start = made->start;
    }
    if (f.ready) {
        struct form packed = f;
        packed.ready = false;
        UNROLL for (int j = 0; j < steps_of(f); j++) {
            UNROLL for (int p = 0; p < PARTS; p++) {
                store(made->weights + 64 * j + 32 * p, weights(quants + 32 * p, packed, j));
            }
        }
        b.quants = made->weights;
    }
    return b;
}
