/* tests/unit/model_quant_test.c - block formats: values by hand, and digests of the values that the
 * formats' public reference implementation (Python package gguf) gives for the same bytes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/quant.h"

enum { BLOCKS = 4 };

static const struct {
    enum tensor_type type;
    int bytes, half_at, second_half_at;      /* where the F16 scales are, or -1 */
    uint64_t digest;                         /* FNV-1a of the floats */
} known[] = {
    { TENSOR_Q8_0, 34, 0, -1, UINT64_C(0x6f6a088dddcf241e) },
    { TENSOR_Q4_0, 18, 0, -1, UINT64_C(0xde130096215ec835) },
    { TENSOR_Q5_0, 22, 0, -1, UINT64_C(0xb2ab806c63253abb) },
    { TENSOR_Q4_1, 20, 0, 2, UINT64_C(0xea2f1fad9e8f0cd3) },
    { TENSOR_Q5_1, 24, 0, 2, UINT64_C(0x31808a952a0f1c0f) },
    { TENSOR_Q4_K, 144, 0, 2, UINT64_C(0xe56fda84a764a7d7) },
    { TENSOR_Q5_K, 176, 0, 2, UINT64_C(0xdae393d7ba398f06) },
    { TENSOR_Q6_K, 210, 208, -1, UINT64_C(0x739bc4079fa2dbf4) },
};

static void values_are_those_of_the_reference(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof known / sizeof known[0]; n++) {
        uint8_t raw[BLOCKS * 256 + 1];
        uint32_t x = 12345;
        int size = known[n].bytes;
        for (int i = 0; i < BLOCKS * size; i++) {
            x = x * 1103515245u + 12345u;
            raw[i + 1] = (uint8_t)(x >> 16);
        }
        for (int k = 0; k < BLOCKS; k++) {   /* scales of a moderate exponent */
            uint8_t *high = raw + 1 + k * size + known[n].half_at + 1;
            *high = (uint8_t)((*high & 0x83) | 0x28);
            if (known[n].second_half_at < 0) continue;
            high = raw + 1 + k * size + known[n].second_half_at + 1;
            *high = (uint8_t)((*high & 0x83) | 0x28);
        }
        float out[BLOCKS * 256];
        size_t count = (size_t)BLOCKS * tensor_block_values(known[n].type);
        assert_int_equal(tensor_block_bytes(known[n].type), size);
        tensor_dequantize(known[n].type, raw + 1, out, count);   /* at an odd address */
        uint64_t digest = UINT64_C(0xcbf29ce484222325);
        const uint8_t *at = (const uint8_t *)out;
        for (size_t i = 0; i < count * 4; i++) digest = (digest ^ at[i]) * UINT64_C(0x100000001b3);
        if (digest != known[n].digest) fail_msg("%s differs", tensor_type_name(known[n].type));
    }
}

static void nibbles_and_scales_lie_as_the_format_says(void **state)
{
    (void)state;
    float out[32];
    struct block_q4_0 a = { .d = 0x4000 };               /* 2.0 */
    a.q[3] = 0xf1;
    tensor_dequantize(TENSOR_Q4_0, &a, out, 32);
    assert_float_equal(out[3], 2 * (1 - 8), 0);
    assert_float_equal(out[19], 2 * (15 - 8), 0);
    struct block_q4_1 b = { .d = 0x3c00, .m = 0xc000 };  /* 1, -2 */
    b.q[0] = 0x5a;
    tensor_dequantize(TENSOR_Q4_1, &b, out, 32);
    assert_float_equal(out[0], 10 - 2, 0);
    assert_float_equal(out[16], 5 - 2, 0);
    struct block_q8_0 c = { .d = 0x3800 };               /* 0.5 */
    c.q[31] = -128;
    tensor_dequantize(TENSOR_Q8_0, &c, out, 32);
    assert_float_equal(out[31], -64, 0);
}

static void plain_types_are_copied_or_widened(void **state)
{
    (void)state;
    float in[2] = { 1.5f, -0.0f }, out[2];
    uint16_t halves[2] = { 0x3c00, 0xfc00 }, brain[2] = { 0x3fc0, 0x0001 };
    tensor_dequantize(TENSOR_F32, in, out, 2);
    assert_memory_equal(in, out, sizeof in);
    tensor_dequantize(TENSOR_F16, halves, out, 2);
    assert_true(out[0] == 1 && isinf(out[1]) && out[1] < 0);
    tensor_dequantize(TENSOR_BF16, brain, out, 2);
    assert_true(out[0] == 1.5f && out[1] == 0x1p-133f);
    tensor_dequantize(TENSOR_F32, NULL, out, 0);
}

static void every_half_survives_the_way_to_float_and_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        float f = half_to_float((uint16_t)h);
        if (exponent == 31 && fraction) {
            assert_true(isnan(f));
            assert_int_equal(float_to_half(f), h | 0x200);       /* quiet, payload kept */
            continue;
        }
        double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        if (exponent == 31) value = INFINITY;
        assert_true(f == (float)(h & 0x8000 ? -value : value));
        assert_int_equal(!!signbit(f), h >> 15);
        assert_int_equal(float_to_half(f), h);
    }
}

static void floats_round_to_the_nearest_half_ties_to_even(void **state)
{
    (void)state;
    /* Between each two neighbours: the middle goes to the even one, beside it to the nearer. */
    for (uint16_t h = 0; h < 0x7bff; h++) {
        float low = half_to_float(h), high = half_to_float((uint16_t)(h + 1));
        float middle = low + (high - low) / 2;           /* exact */
        assert_int_equal(float_to_half(middle), h + (h & 1));
        assert_int_equal(float_to_half(nextafterf(middle, 0)), h);
        assert_int_equal(float_to_half(-nextafterf(middle, 1e9f)), 0x8000 | (h + 1));
    }
    assert_int_equal(float_to_half(65519.996f), 0x7bff);
    assert_int_equal(float_to_half(65520.0f), 0x7c00);
    assert_int_equal(float_to_half(3e38f), 0x7c00);
    assert_int_equal(float_to_half(-1e-30f), 0x8000);
    assert_int_equal(float_to_half(NAN) & 0x7e00, 0x7e00);
}

static void types_are_known_by_number(void **state)
{
    (void)state;
    assert_string_equal(tensor_type_name(TENSOR_Q4_1), "Q4_1");
    assert_string_equal(tensor_type_name((enum tensor_type)4), "?");
    assert_false(tensor_type_known(4));
    assert_false(tensor_type_known(UINT32_MAX));
    int computable = 0;
    for (uint32_t t = 0; t < 100; t++) {
        if (!tensor_type_known(t)) continue;
        computable += tensor_type_computable((enum tensor_type)t);
        assert_true(tensor_block_values((enum tensor_type)t) > 0);
        assert_true(tensor_block_bytes((enum tensor_type)t) > 0);
    }
    assert_int_equal(computable, 11);
    assert_false(tensor_type_computable((enum tensor_type)10));  /* Q2_K: read, not computed */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_those_of_the_reference),
        cmocka_unit_test(nibbles_and_scales_lie_as_the_format_says),
        cmocka_unit_test(plain_types_are_copied_or_widened),
        cmocka_unit_test(every_half_survives_the_way_to_float_and_back),
        cmocka_unit_test(floats_round_to_the_nearest_half_ties_to_even),
        cmocka_unit_test(types_are_known_by_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
