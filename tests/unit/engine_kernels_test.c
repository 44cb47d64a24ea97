/* tests/unit/engine_kernels_test.c - each kernel against arithmetic in double, on odd shapes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/cpu/kernels.h"
#include "tiny_model.h"

static const struct kernels *kernels_of(enum isa isa)
{
    return isa == ISA_PLAIN ? &kernels_plain : isa == ISA_AVX2 ? &kernels_avx2 : &kernels_avx512;
}

static void floats(float *out, uint32_t count, float scale, uint64_t *seed)
{
    for (uint32_t i = 0; i < count; i++) out[i] = scale * tiny_float(seed);
}

/* --- products -------------------------------------------------------------------------------- */

enum { OUT = 43, ROWS = 70 };

/* The activation that a kernel saw: the float, or what its 8 bits stand for. */
static double seen(const struct matrix *m, const struct acts *a, uint32_t row, uint32_t k)
{
    if (matrix_is_float(m)) return (double)a->f[(uint64_t)row * a->k + k];
    const struct act_block *b = a->q + (uint64_t)(row / ROW_GROUP) * (a->k / 32) + k / 32;
    return (double)b->scale[row % ROW_GROUP] * b->q[row % ROW_GROUP][k % 32];
}

static void check_product(const struct kernels *k, const struct matrix *m, const float *weights,
                          const struct acts *a, uint32_t row0, uint32_t rows, bool add)
{
    static float out[ROWS][OUT + 5];
    uint32_t panel = rows % 3 ? 0 : 1, panels = matrix_panels(m) - panel;
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t o = 0; o < OUT + 5; o++) out[r][o] = 7;
    }
    k->gemm(m, a, row0, rows, panel, panels, &out[0][0], OUT + 5, add);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t o = 0; o < OUT + 5; o++) {
            uint32_t column = panel * PANEL + o;
            double sum = column < OUT && !add ? 0 : 7, size = 1;
            for (uint32_t i = 0; column < OUT && i < m->in; i++) {
                double term = (double)weights[column * m->in + i] * seen(m, a, row0 + r, i);
                sum += term;
                size += fabs(term);
            }
            if (fabs((double)out[r][o] - sum) > 2e-5 * size) {
                fail_msg("kind %d, row %u, output %u: %g, expected %g", (int)m->kind, r, column,
                         (double)out[r][o], sum);
            }
        }
    }
}

static void products_of(enum isa isa, enum tensor_type type, uint32_t in, uint64_t seed)
{
    struct gguf_tensor t = { .name = "w", .type = type, .dim_count = 2, .dims = { in, OUT } };
    size_t bytes = (size_t)in * OUT / tensor_block_values(type) * tensor_block_bytes(type);
    uint8_t *data = mem_alloc(bytes);
    float *weights = mem_array((size_t)in * OUT, sizeof *weights);
    tiny_fill(type, data, bytes, 1, &seed);
    tensor_dequantize(type, data, weights, (size_t)in * OUT);
    t.data = data;
    /* A model of one matrix: the head. */
    struct model m = { .h = { .dim = in, .ffn_dim = 32, .heads = 1, .head_dim = 32 },
                       .output = &t };
    struct layout *l = mem_alloc(sizeof *l);
    layout_make(l, &m, isa == ISA_PLAIN);
    uint8_t *image = aligned_alloc(64, (l->bytes + 63) / 64 * 64);
    layout_pack(l, &m, image, 0, 1);
    assert_int_equal(layout_use(l, &m, image, NULL), OK);
    struct acts a = { .k = in, .f = mem_array((size_t)ROWS * in, sizeof(float)),
                      .q = mem_array((ROWS / ROW_GROUP + 1) * (in / 32), sizeof *a.q) };
    floats(a.f, ROWS * in, 3, &seed);
    memset(a.f + in, 0, 32 * sizeof(float));
    for (uint32_t r = 0; r < ROWS && isa != ISA_PLAIN; r++) {
        kernels_of(isa)->quantize(a.f + (uint64_t)r * in, in, &a, r, 0);
    }
    static const uint32_t rows[] = { 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 33, ROWS };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        check_product(kernels_of(isa), &l->head, weights, &a, 0, rows[i], i % 2);
        if (rows[i] > 22) continue;
        check_product(kernels_of(isa), &l->head, weights, &a, 48, rows[i], i % 2 == 0);
    }
    free(a.f);
    free(a.q);
    free(image);
    free(l);
    free(weights);
    free(data);
}

static void products_of_every_type_are_exact(void **state)
{
    (void)state;
    static const enum tensor_type types[] = { TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q4_0,
        TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_Q8_0, TENSOR_Q4_K, TENSOR_Q5_K,
        TENSOR_Q6_K };
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
            bool k_type = tensor_block_values(types[i]) == 256;
            products_of(isa, types[i], k_type ? 256 : 32, 1);
            products_of(isa, types[i], k_type ? 512 : 32 * 9, 2);
        }
    }
}

/* The largest quants and activations must not overflow a kernel's 16-bit sums. */
static void extreme_values_do_not_overflow(void **state)
{
    (void)state;
    static const enum tensor_type types[] = { TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1,
                                              TENSOR_Q8_0 };
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
            uint32_t block = tensor_block_bytes(types[i]);
            uint8_t data[PANEL * 34];
            float weights[PANEL * 32], x[32], out[PANEL];
            memset(data, types[i] == TENSOR_Q8_0 ? 0x80 : 0xff, sizeof data);
            for (uint32_t o = 0; o < PANEL; o++) {
                tiny_half(data + o * block, 1);
                if (types[i] == TENSOR_Q4_1 || types[i] == TENSOR_Q5_1) {
                    tiny_half(data + o * block + 2, 0);
                }
            }
            tensor_dequantize(types[i], data, weights, PANEL * 32);
            struct gguf_tensor t = { .type = types[i], .dims = { 32, PANEL }, .data = data };
            struct model m = { .h = { .dim = 32, .ffn_dim = 32, .heads = 1, .head_dim = 32 },
                               .output = &t };
            struct layout *l = mem_alloc(sizeof *l);
            layout_make(l, &m, false);
            uint8_t *image = aligned_alloc(64, (l->bytes + 63) / 64 * 64);
            layout_pack(l, &m, image, 0, 1);
            assert_int_equal(layout_use(l, &m, image, NULL), OK);
            struct act_block *q = mem_array(1, sizeof *q);
            struct acts a = { .k = 32, .q = q };
            for (int sign = -1; sign <= 1; sign += 2) {
                for (int j = 0; j < 32; j++) x[j] = (float)sign * 127;
                kernels_of(isa)->quantize(x, 32, &a, 0, 0);
                kernels_of(isa)->gemm(&l->head, &a, 0, 1, 0, 1, out, PANEL, false);
                double expected = 32.0 * 127 * sign * (double)weights[0];
                assert_true(fabs((double)out[5] - expected) <= 1e-5 * fabs(expected));
            }
            free(q);
            free(image);
            free(l);
        }
    }
}

/* --- rows ------------------------------------------------------------------------------------ */

static void rows_are_normed_gated_and_rounded(void **state)
{
    (void)state;
    enum { N = 96 };
    uint64_t seed = 5;
    float x[N], w[N], out[N];
    uint16_t half[N];
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        const struct kernels *k = kernels_of(isa);
        double squares = 0;
        floats(x, N, 30, &seed);
        floats(w, N, 2, &seed);
        x[3] = -100, x[4] = 100, x[5] = -1000, x[6] = 0;
        for (int i = 0; i < N; i++) squares += (double)x[i] * (double)x[i];
        k->norm(x, w, 1e-5f, N, out);
        for (int i = 0; i < N; i++) {
            double expected = (double)x[i] / sqrt(squares / N + 1e-5) * (double)w[i];
            assert_true(fabs((double)out[i] - expected) <= 1e-6 * fabs(expected));
        }
        k->swiglu(x, w, N, out);
        for (int i = 0; i < N; i++) {
            double expected = (double)x[i] / (1 + exp(-(double)x[i])) * (double)w[i];
            assert_true(fabs((double)out[i] - expected) <= 5e-7 * fabs(expected) + 1e-30);
        }
        x[0] = 1e6f, x[1] = 1e-8f, x[2] = 2049;
        k->to_half(x, N, half);
        for (int i = 0; i < N; i++) assert_int_equal(half[i], float_to_half(x[i]));
    }
}

static void activations_are_rounded_to_the_nearest(void **state)
{
    (void)state;
    uint64_t seed = 6;
    float x[64];
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        struct act_block *b = mem_array(2, sizeof *b);
        struct acts a = { .k = 64, .q = b };
        for (uint32_t row = 0; row < ROW_GROUP; row++) {
            floats(x, 64, 5, &seed);
            kernels_of(isa)->quantize(x, 64, &a, row, 0);
            for (int i = 0; i < 64; i++) {
                double back = (double)b[i / 32].scale[row] * b[i / 32].q[row][i % 32];
                assert_true(fabs(back - (double)x[i]) <= 0.5001 * (double)b[i / 32].scale[row]);
            }
            int sum = 0;
            for (int i = 0; i < 32; i++) sum += b[1].q[row][i];
            assert_true(b[1].sum[row] == b[1].scale[row] * (float)sum);
        }
        free(b);
    }
}

/* --- attention ------------------------------------------------------------------------------- */

enum { POSITIONS = 512, BLOCKS = POSITIONS / 8 };

struct heads {
    float *key, *value;               /* (POSITIONS, S), as stored */
    uint8_t *pool;
    uint32_t blocks[BLOCKS];
    struct kv_view kv;
};

static void put_element(const struct heads *h, uint8_t *block, uint64_t at, float *value)
{
    if (h->kv.half) {
        uint16_t half = float_to_half(*value);
        *value = half_to_float(half);
        memcpy(block + 2 * at, &half, 2);
    } else {
        memcpy(block + 4 * at, value, 4);
    }
}

static void fill_heads(struct heads *h, uint32_t size, uint32_t block, bool half, uint64_t *seed)
{
    uint64_t stride = 2ull * block * size * (half ? 2 : 4) + 64;
    h->key = mem_array(POSITIONS * size, sizeof(float));
    h->value = mem_array(POSITIONS * size, sizeof(float));
    h->pool = mem_alloc(stride * BLOCKS);
    memset(h->pool, 0xff, stride * BLOCKS);          /* NaNs where nothing is written */
    floats(h->key, POSITIONS * size, 1, seed);
    floats(h->value, POSITIONS * size, 1, seed);
    for (uint32_t i = 0; i < BLOCKS; i++) h->blocks[i] = (i * 29 + 5) % BLOCKS;
    h->kv = (struct kv_view){ .pool = h->pool, .blocks = h->blocks, .block_stride = stride,
                              .block_tokens = block, .lanes = block < 16 ? block : 16,
                              .head_dim = size, .half = half };
    for (uint32_t t = 0; t < POSITIONS; t++) {
        uint8_t *at = h->pool + h->blocks[t / block] * stride;
        uint32_t in = t % block, lanes = h->kv.lanes;
        for (uint32_t s = 0; s < size; s++) {
            put_element(h, at, (uint64_t)in / lanes * lanes * size + s * lanes + in % lanes,
                        &h->key[t * size + s]);
            put_element(h, at, (uint64_t)(block + in) * size + s, &h->value[t * size + s]);
        }
    }
}

static void expect(const struct heads *h, const float *q, uint32_t seen_count,
                   const struct partial *got)
{
    uint32_t size = h->kv.head_dim;
    double p[POSITIONS], max = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < seen_count; t++) {
        p[t] = 0;
        for (uint32_t s = 0; s < size; s++) p[t] += (double)q[s] * (double)h->key[t * size + s];
        max = p[t] > max ? p[t] : max;
    }
    for (uint32_t t = 0; t < seen_count; t++) sum += p[t] = exp(p[t] - max);
    for (uint32_t s = 0; s < size; s++) {
        double out = 0;
        for (uint32_t t = 0; t < seen_count; t++) out += p[t] * (double)h->value[t * size + s];
        assert_true(fabs((double)(got->out[s] / got->sum) - out / sum) < 2e-5);
    }
}

static void check_heads(enum isa isa, uint32_t size, uint32_t block, bool half, uint64_t seed)
{
    struct heads h;
    const struct kernels *k = kernels_of(isa);
    fill_heads(&h, size, block, half, &seed);
    float q[QUERY_SET][128], outs[2][QUERY_SET][128];
    for (uint32_t count = 1; count <= QUERY_SET; count++) {
        const float *queries[QUERY_SET];
        uint32_t first[QUERY_SET], second[QUERY_SET];
        struct partial a[QUERY_SET], b[QUERY_SET];
        for (uint32_t i = 0; i < count; i++) {
            floats(q[i], size, 1, &seed);
            queries[i] = q[i];
            first[i] = KV_TILE_TOKENS;
            second[i] = 1 + (uint32_t)(tiny_random(&seed) % KV_TILE_TOKENS);
            a[i].out = outs[0][i], b[i].out = outs[1][i];
        }
        k->tile(&h.kv, 0, queries, second, count, a);
        for (uint32_t i = 0; i < count; i++) expect(&h, q[i], second[i], &a[i]);
        k->tile(&h.kv, 0, queries, first, count, a);
        k->tile(&h.kv, 1, queries, second, count, b);
        for (uint32_t i = 0; i < count; i++) {
            k->merge(&a[i], &b[i], size);
            expect(&h, q[i], KV_TILE_TOKENS + second[i], &a[i]);
        }
    }
    free(h.key);
    free(h.value);
    free(h.pool);
}

static void attention_agrees_with_double(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 16, 64, 80, 96, 128 };
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        for (uint32_t i = 0; i < 5; i++) {
            for (uint32_t block = 8; block <= 256; block *= 2) {
                check_heads(isa, sizes[i], block, (block + i) % 2 || block % 32 == 0, block + i);
            }
            check_heads(isa, sizes[i], 16, false, i);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_type_are_exact),
        cmocka_unit_test(extreme_values_do_not_overflow),
        cmocka_unit_test(rows_are_normed_gated_and_rounded),
        cmocka_unit_test(activations_are_rounded_to_the_nearest),
        cmocka_unit_test(attention_agrees_with_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
