/* model/quant.c - block formats to floats; see quant.h.
 *
 * The reference for every faster kernel: the order of operations is ggml's (a product, then one sum
 * or difference, each rounded to float), so the values are the format's own, bit for bit.
 * Blocks may lie at any address: they are copied out before they are read.
 */
#include "model/quant.h"

#include <string.h>

#include "common/check.h"

struct type_row {
    const char *name;
    uint16_t values, bytes;           /* of one block */
    bool computable;
};

/* Numbers that are missing were formats once and are gone from the public list. */
static const struct type_row types[] = {
    [TENSOR_F32] = { "F32", 1, 4, true },
    [TENSOR_F16] = { "F16", 1, 2, true },
    [TENSOR_Q4_0] = { "Q4_0", 32, 18, true },
    [TENSOR_Q4_1] = { "Q4_1", 32, 20, true },
    [TENSOR_Q5_0] = { "Q5_0", 32, 22, true },
    [TENSOR_Q5_1] = { "Q5_1", 32, 24, true },
    [TENSOR_Q8_0] = { "Q8_0", 32, 34, true },
    [9] = { "Q8_1", 32, 40, false },
    [10] = { "Q2_K", 256, 84, false },
    [11] = { "Q3_K", 256, 110, false },
    [TENSOR_Q4_K] = { "Q4_K", 256, 144, true },
    [TENSOR_Q5_K] = { "Q5_K", 256, 176, true },
    [TENSOR_Q6_K] = { "Q6_K", 256, 210, true },
    [15] = { "Q8_K", 256, 292, false },
    [16] = { "IQ2_XXS", 256, 66, false },
    [17] = { "IQ2_XS", 256, 74, false },
    [18] = { "IQ3_XXS", 256, 98, false },
    [19] = { "IQ1_S", 256, 50, false },
    [20] = { "IQ4_NL", 32, 18, false },
    [21] = { "IQ3_S", 256, 110, false },
    [22] = { "IQ2_S", 256, 82, false },
    [23] = { "IQ4_XS", 256, 136, false },
    [24] = { "I8", 1, 1, false },
    [25] = { "I16", 1, 2, false },
    [26] = { "I32", 1, 4, false },
    [27] = { "I64", 1, 8, false },
    [28] = { "F64", 1, 8, false },
    [29] = { "IQ1_M", 256, 56, false },
    [TENSOR_BF16] = { "BF16", 1, 2, true },
    [34] = { "TQ1_0", 256, 54, false },
    [35] = { "TQ2_0", 256, 66, false },
    [39] = { "MXFP4", 32, 17, false },
};
enum { TYPE_COUNT = sizeof types / sizeof types[0] };

bool tensor_type_known(uint32_t t)
{
    return t < TYPE_COUNT && types[t].name;
}

const char *tensor_type_name(enum tensor_type t)
{
    return tensor_type_known(t) ? types[t].name : "?";
}

uint32_t tensor_block_values(enum tensor_type t)
{
    CHECK(tensor_type_known(t));
    return types[t].values;
}

uint32_t tensor_block_bytes(enum tensor_type t)
{
    CHECK(tensor_type_known(t));
    return types[t].bytes;
}

bool tensor_type_computable(enum tensor_type t)
{
    return tensor_type_known(t) && types[t].computable;
}

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 31u, fraction = h & 0x3ffu;
    if (exponent == 31) {             /* infinity, or a NaN, which comes out quiet */
        return float_of_bits(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    }
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * 0x1p-24f;
    return sign ? -tiny : tiny;
}

/* value >> shift, to nearest, ties to even; 1 <= shift <= 31. */
static uint32_t shift_to_even(uint32_t value, uint32_t shift)
{
    uint32_t kept = value >> shift, lost = value & ((1u << shift) - 1), half = 1u << (shift - 1);
    return kept + (lost > half || (lost == half && (kept & 1)));
}

uint16_t float_to_half(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000u, fraction = bits & 0x7fffffu;
    uint32_t exponent = bits >> 23 & 255u;
    if (exponent == 255) {
        return (uint16_t)(sign | 0x7c00u | (fraction ? 0x200u | fraction >> 13 : 0));
    }
    if (exponent >= 143) return (uint16_t)(sign | 0x7c00u);
    /* A fraction that rounds up carries into the exponent, up to infinity: which is right. */
    if (exponent >= 113) {
        return (uint16_t)(sign | shift_to_even((exponent - 112) << 23 | fraction, 13));
    }
    if (exponent < 102) return (uint16_t)sign;
    return (uint16_t)(sign | shift_to_even(fraction | 0x800000u, 126 - exponent));
}

float bf16_to_float(uint16_t b)
{
    return float_of_bits((uint32_t)b << 16);
}

static void q4_0(const void *at, float *out)
{
    struct block_q4_0 b;
    memcpy(&b, at, sizeof b);
    float d = half_to_float(b.d);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b.q[i] & 15) - 8);
        out[i + 16] = d * (float)((b.q[i] >> 4) - 8);
    }
}

static void q4_1(const void *at, float *out)
{
    struct block_q4_1 b;
    memcpy(&b, at, sizeof b);
    float d = half_to_float(b.d), m = half_to_float(b.m);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b.q[i] & 15) + m;
        out[i + 16] = d * (float)(b.q[i] >> 4) + m;
    }
}

/* The fifth bit of value i. */
static int high_bit(const uint8_t high[4], int i)
{
    return (high[i / 8] >> i % 8 & 1) << 4;
}

static void q5_0(const void *at, float *out)
{
    struct block_q5_0 b;
    memcpy(&b, at, sizeof b);
    float d = half_to_float(b.d);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(((b.q[i] & 15) | high_bit(b.high, i)) - 16);
        out[i + 16] = d * (float)(((b.q[i] >> 4) | high_bit(b.high, i + 16)) - 16);
    }
}

static void q5_1(const void *at, float *out)
{
    struct block_q5_1 b;
    memcpy(&b, at, sizeof b);
    float d = half_to_float(b.d), m = half_to_float(b.m);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b.q[i] & 15) | high_bit(b.high, i)) + m;
        out[i + 16] = d * (float)((b.q[i] >> 4) | high_bit(b.high, i + 16)) + m;
    }
}

static void q8_0(const void *at, float *out)
{
    struct block_q8_0 b;
    memcpy(&b, at, sizeof b);
    float d = half_to_float(b.d);
    for (int i = 0; i < 32; i++) out[i] = d * (float)b.q[i];
}

/* Part i of a Q4_K or Q5_K block has its low nibbles in the low half (i even) or the high half
 * (i odd) of bytes 32*(i/2) .. +31; its fifth bits, if there are any, are bit i of high[0..31]. */
static void k4_part(uint16_t d, uint16_t dmin, const uint8_t scales[12], const uint8_t *q,
                    const uint8_t *high, int i, float *out)
{
    unsigned scale, min;
    quant_scale_min_k4(scales, i, &scale, &min);
    float part_d = half_to_float(d) * (float)scale, part_min = half_to_float(dmin) * (float)min;
    for (int j = 0; j < 32; j++) {
        int value = q[i / 2 * 32 + j] >> (i % 2 * 4) & 15;
        if (high) value |= (high[j] >> i & 1) << 4;
        out[i * 32 + j] = part_d * (float)value - part_min;
    }
}

static void q4_k(const void *at, float *out)
{
    struct block_q4_k b;
    memcpy(&b, at, sizeof b);
    for (int i = 0; i < 8; i++) k4_part(b.d, b.dmin, b.scales, b.q, NULL, i, out);
}

static void q5_k(const void *at, float *out)
{
    struct block_q5_k b;
    memcpy(&b, at, sizeof b);
    for (int i = 0; i < 8; i++) k4_part(b.d, b.dmin, b.scales, b.q, b.high, i, out);
}

/* Each half of 128 values is four runs of 32: their low nibbles in 64 bytes (runs 0 and 1 the low
 * halves, 2 and 3 the high ones), their two high bits in 32 bytes (run r at bit 2r). */
static void q6_k(const void *at, float *out)
{
    struct block_q6_k b;
    memcpy(&b, at, sizeof b);
    float d = half_to_float(b.d);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, run = i / 32 % 4, j = i % 32;
        int low = b.low[half * 64 + run % 2 * 32 + j] >> (run / 2 * 4) & 15;
        int high = b.high[half * 32 + j] >> (2 * run) & 3;
        out[i] = d * (float)b.scales[i / 16] * (float)((low | high << 4) - 32);
    }
}

static void plain(enum tensor_type t, const uint8_t *from, float *out, size_t count)
{
    if (t == TENSOR_F32) {
        if (count) memcpy(out, from, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t word;
        memcpy(&word, from + 2 * i, 2);
        out[i] = t == TENSOR_F16 ? half_to_float(word) : bf16_to_float(word);
    }
}

void tensor_dequantize(enum tensor_type t, const void *blocks, float *out, size_t count)
{
    static void (*const one_block[TYPE_COUNT])(const void *, float *) = {
        [TENSOR_Q4_0] = q4_0, [TENSOR_Q4_1] = q4_1, [TENSOR_Q5_0] = q5_0, [TENSOR_Q5_1] = q5_1,
        [TENSOR_Q8_0] = q8_0, [TENSOR_Q4_K] = q4_k, [TENSOR_Q5_K] = q5_k, [TENSOR_Q6_K] = q6_k,
    };
    CHECK(tensor_type_computable(t));
    const uint8_t *from = blocks;
    if (!one_block[t]) {
        plain(t, from, out, count);
        return;
    }
    size_t values = types[t].values;
    CHECK(count % values == 0);
    for (size_t i = 0; i < count / values; i++) {
        one_block[t](from + i * types[t].bytes, out + i * values);
    }
}
