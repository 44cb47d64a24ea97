/* tests/unit/engine_kernels_test.c - each kernel against arithmetic in double, on odd shapes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "one_matrix.h"
#include "tiny_model.h"

static void floats(float *out, uint32_t count, float scale, uint64_t *seed)
{
    for (uint32_t i = 0; i < count; i++) out[i] = scale * tiny_float(seed);
}

/* --- products -------------------------------------------------------------------------------- */

enum { OUT = 43, ROWS = 70 };

#define LARGEST 3.0f

/* The activation that a kernel saw: the float, or what its 8 bits stand for. */
static double seen(const struct matrix *m, const struct acts *a, uint32_t row, uint32_t k)
{
    if (matrix_is_float(m) || a->wide) return (double)a->f[(uint64_t)row * a->k + k];
    const struct act_block *b = a->q + (uint64_t)(row / ROW_GROUP) * (a->k / 32) + k / 32;
    return (double)b->s.scale[row % ROW_GROUP] * b->q[row % ROW_GROUP][k % 32];
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
            double sum = column < OUT && !add ? 0 : 7, size = 1, rounding = 0;
            for (uint32_t i = 0; column < OUT && i < m->in; i++) {
                double weight = (double)weights[column * m->in + i];
                double term = weight * seen(m, a, row0 + r, i);
                sum += term;
                size += fabs(term);
                if (a->wide) rounding += fabs(weight) * (double)LARGEST / 65000;
            }
            if (fabs((double)out[r][o] - sum) > 2e-5 * size + rounding) {
                fail_msg("kind %d%s, row %u, output %u: %g, expected %g", (int)m->kind,
                         a->wide ? " wide" : "", r, column, (double)out[r][o], sum);
            }
        }
    }
}

static void check_rows(const struct kernels *k, const struct matrix *m, const float *weights,
                       struct acts *a)
{
    static const uint32_t rows[] = { 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 33, ROWS };
    if (!a->q && !a->wide && !matrix_is_float(m)) return;
    if (a->q || a->wide) k->quantize(a->f, a->k, ROWS, a->k, a, 0, 0);
    acts_finish(k, a, 0, 5);           /* in pieces, as rows of a step come */
    acts_finish(k, a, 5, ROWS - 5);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        check_product(k, m, weights, a, 0, rows[i], i % 2);
        if (rows[i] > 22) continue;
        check_product(k, m, weights, a, 48, rows[i], i % 2 == 0);
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
    struct one_matrix o;
    one_matrix_open(&o, isa, &t);
    struct acts a = { .k = in, .f = mem_array((size_t)ROWS * in, sizeof(float)) };
    floats(a.f, ROWS * in, LARGEST, &seed);
    memset(a.f + in, 0, 32 * sizeof(float));
    check_rows(kernels_of(isa), o.m, weights, &a);
    for (int width = ACTS_NARROW; width <= ACTS_WIDE; width++) {
        if (isa == ISA_PLAIN || matrix_is_float(o.m)) continue;
        struct acts whole = acts_open(o.m, ROWS, (enum acts_width)width);
        whole.f = a.f;
        check_rows(kernels_of(isa), o.m, weights, &whole);
        acts_close(&whole);
    }
    free(a.f);
    one_matrix_close(&o);
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
            products_of(isa, types[i], k_type ? 768 : 64 * 5, 3);
        }
    }
}

/* A block whose quants and scales are as large as they get (or all 0); d is 1, minimums are 0. */
static void fill_extreme(enum tensor_type type, bool zeros, uint8_t *block)
{
    memset(block, zeros ? 0 : type == TENSOR_Q8_0 ? 0x80 : 0xff, tensor_block_bytes(type));
    if (type == TENSOR_Q6_K) {
        struct block_q6_k k;
        memcpy(&k, block, sizeof k);
        memset(k.scales, 0x80, sizeof k.scales);
        memcpy(block, &k, sizeof k);
        tiny_half(block + offsetof(struct block_q6_k, d), 1);
        return;
    }
    bool k_type = type == TENSOR_Q4_K || type == TENSOR_Q5_K;
    tiny_half(block, 1);
    if (k_type || type == TENSOR_Q4_1 || type == TENSOR_Q5_1) tiny_half(block + 2, 0);
}

/* 16 equal outputs of blocks that are all the same, and activations that are all `x`. */
static void check_extreme(const struct kernels *k, const struct matrix *m, double weight,
                          enum acts_width width, float x)
{
    struct acts a = acts_open(m, ROW_GROUP, width);
    float values[256], out[ROW_GROUP][PANEL];
    for (uint32_t i = 0; i < m->in; i++) values[i] = x;
    k->quantize(values, 0, ROW_GROUP, m->in, &a, 0, 0);
    acts_finish(k, &a, 0, ROW_GROUP);
    for (uint32_t rows = 1; rows <= ROW_GROUP; rows++) {
        k->gemm(m, &a, 0, rows, 0, 1, &out[0][0], PANEL, false);
        double expected = m->in * weight * (double)x;
        assert_true(fabs((double)out[rows - 1][5] - expected) <= 1e-5 * fabs(expected) + 1e-2);
    }
    acts_close(&a);
}

static void extremes_of(enum isa isa, enum tensor_type type, uint32_t in, bool zeros)
{
    uint32_t count = PANEL * in / tensor_block_values(type), block = tensor_block_bytes(type);
    uint8_t data[PANEL * sizeof(struct block_q6_k)];
    float weights[256];
    for (uint32_t i = 0; i < count; i++) fill_extreme(type, zeros, data + i * block);
    tensor_dequantize(type, data, weights, in);
    struct gguf_tensor t = { .type = type, .dims = { in, PANEL }, .data = data };
    struct one_matrix o;
    one_matrix_open(&o, isa, &t);
    for (int way = 0; way < 4; way++) {
        check_extreme(kernels_of(isa), o.m, (double)weights[0], (enum acts_width)(way / 2),
                      way % 2 ? 127 : -127);
    }
    one_matrix_close(&o);
}

/* The largest quants and activations must not overflow a kernel's sums. */
static void extreme_values_do_not_overflow(void **state)
{
    (void)state;
    static const enum tensor_type types[] = { TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1,
                                              TENSOR_Q8_0, TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K };
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
            uint32_t in = tensor_block_values(types[i]);
            for (int zeros = 0; zeros < 2; zeros++) {
                extremes_of(isa, types[i], in, zeros);
                if (in == 32) extremes_of(isa, types[i], 2 * in, zeros);
            }
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
        x[0] = 1e6f, x[1] = 1e-8f, x[2] = 2049, x[6] = NAN, x[7] = -INFINITY, x[8] = 65519;
        k->to_half(x, N, half);
        assert_true(isnan(half_to_float(half[6])));
        x[0] = 65504, x[6] = half_to_float(half[6]), x[7] = -65504;
        for (int i = 0; i < N; i++) assert_int_equal(half[i], float_to_half(x[i]));
    }
}

/* Pairs of (x, partner) turn by their angle; the transform is its own inverse and keeps lengths. */
static void heads_are_rotated_and_mixed(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 16, 48, 64, 80, 128 };
    uint64_t seed = 9;
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        const struct kernels *k = kernels_of(isa);
        for (uint32_t trial = 0; trial < 40; trial++) {
            uint32_t size = sizes[trial % 5], dims = trial % 3 ? size : size - 2 * (trial % 7);
            bool pairs = trial % 2;
            float x[2 * 128], y[2 * 128], cosines[128], sines[128];
            double before = 0, after = 0;
            floats(x, 2 * size, 2, &seed);
            for (uint32_t i = 0; i < dims / 2; i++) {
                uint32_t p = pairs ? 2 * i : i, q = pairs ? p + 1 : i + dims / 2;
                cosines[p] = cosines[q] = cosf((float)i + 0.3f);
                sines[q] = sinf((float)i + 0.3f);
                sines[p] = -sines[q];
            }
            memcpy(y, x, sizeof y);
            k->rotate(y, 2, cosines, sines, dims, size, pairs, 0.5f);
            for (uint32_t j = 0; j < 2 * size; j++) {
                uint32_t i = j % size, head = j - i;
                double c = i < dims ? (double)cosines[i] : 1, s = i < dims ? (double)sines[i] : 0;
                uint32_t other = pairs ? i ^ 1 : i < dims / 2 ? i + dims / 2 : i - dims / 2;
                double partner = i < dims ? (double)x[head + other] : 0;
                assert_true(fabs((double)y[j] - ((double)x[j] * c + partner * s) / 2) < 1e-6);
            }
            memcpy(y, x, sizeof y);
            k->mix(y, size);
            double sum = 0;           /* of the first part: its first value times sqrt(part) */
            for (uint32_t i = 0; i < (size & -size); i++) sum += (double)x[i];
            assert_true(fabs(sum / sqrt(size & -size) - (double)y[0]) < 1e-5);
            for (uint32_t i = 0; i < size; i++) {
                before += (double)x[i] * (double)x[i];
                after += (double)y[i] * (double)y[i];
            }
            assert_true(fabs(before - after) < 1e-5 * before);
            k->mix(y, size);
            for (uint32_t i = 0; i < size; i++) assert_true(fabsf(x[i] - y[i]) < 2e-6f);
        }
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
            kernels_of(isa)->quantize(x, 64, 1, 64, &a, row, 0);
            for (int i = 0; i < 64; i++) {
                double back = (double)b[i / 32].s.scale[row] * b[i / 32].q[row][i % 32];
                assert_true(fabs(back - (double)x[i]) <= 0.5001 * (double)b[i / 32].s.scale[row]);
            }
            int sum = 0;
            for (int i = 0; i < 32; i++) sum += b[1].q[row][i];
            assert_true(b[1].s.sum[row] == b[1].s.scale[row] * (float)sum);
        }
        free(b);
    }
}

/* `count` rows from `row` on in one call, and one after another. */
static void rounds_alike(const struct kernels *k, const float *x, uint32_t stride, uint32_t row,
                         uint32_t count)
{
    enum { GROUPS = 3, BLOCKS_EACH = 3 };
    struct act_block *together = mem_array(GROUPS * BLOCKS_EACH, sizeof *together);
    struct act_block *alone = mem_array(GROUPS * BLOCKS_EACH, sizeof *alone);
    struct acts a = { .k = 96, .q = together }, b = { .k = 96, .q = alone };
    k->quantize(x, stride, count, 64, &a, row, 32);
    for (uint32_t r = 0; r < count; r++) k->quantize(x + r * stride, 0, 1, 64, &b, row + r, 32);
    assert_memory_equal(together, alone, GROUPS * BLOCKS_EACH * sizeof *alone);
    free(together);
    free(alone);
}

static void rows_are_rounded_alike_together_and_alone(void **state)
{
    (void)state;
    enum { STRIDE = 70, MOST = 33 };
    uint64_t seed = 16;
    float x[MOST * STRIDE];
    floats(x, MOST * STRIDE, 5, &seed);
    x[3 * STRIDE + 40] = 3e38f;
    for (uint32_t i = 0; i < 64; i++) x[5 * STRIDE + i] = 0;
    for (uint32_t i = 0; i < 32; i++) x[7 * STRIDE + i] = 1e-42f * (float)(i % 3);
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        for (uint32_t row = 0; row < ROW_GROUP; row++) {
            for (uint32_t count = 1; count + row <= MOST; count++)
                rounds_alike(kernels_of(isa), x, STRIDE, row, count);
        }
    }
}

/* --- attention ------------------------------------------------------------------------------- */

enum { POSITIONS = 512, BLOCKS = POSITIONS / 8 };

struct heads {
    float *key, *value;               /* (POSITIONS, S), as stored */
    uint8_t *pool;
    uint32_t blocks[BLOCKS];
    struct kv_view kv;
    bool bfloat16;                    /* the kernel rounds what it multiplies                 */
    bool whole;                       /* ... queries and weights to 16 bits, in whole numbers */
};

/* Stores a key or value; what is read back replaces it. */
static void put_row(const struct kernels *k, enum kv_type type, float *x, uint32_t n, uint8_t *at,
                    uint32_t run, uint32_t step, uint8_t *scale_at)
{
    uint8_t row[128];
    float scale = kv_is_scaled(type) ? k->to_byte(type, x, n, NULL, 0, row) : 1;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *to = at + ((uint64_t)(i / run) * step + i % run) * kv_element_bytes(type);
        uint16_t half = type == KV_F16 ? float_to_half(x[i]) : 0;
        if (type == KV_INT8) x[i] = scale * (float)(int8_t)row[i];
        if (type == KV_FP8) half = (uint16_t)((row[i] & 0x7f) << 7 | (row[i] & 0x80) << 8);
        if (type == KV_FP8 || type == KV_F16) x[i] = scale * half_to_float(half);
        const void *from = &row[i];
        if (type == KV_F16) from = &half;
        if (type == KV_F32) from = &x[i];
        memcpy(to, from, kv_element_bytes(type));
    }
    if (kv_is_scaled(type)) memcpy(scale_at, &scale, sizeof scale);
}

static void fill_heads(struct heads *h, const struct kernels *k, uint32_t size, uint32_t block,
                       enum kv_type type, uint64_t *seed)
{
    uint32_t element = kv_element_bytes(type), lanes = block < 16 ? block : 16;
    uint64_t stride = 2ull * block * size * element + 8ull * block + 64;
    h->key = mem_array(POSITIONS * size, sizeof(float));
    h->value = mem_array(POSITIONS * size, sizeof(float));
    h->pool = mem_alloc(stride * BLOCKS);
    memset(h->pool, 0xff, stride * BLOCKS);          /* NaNs where nothing is written */
    floats(h->key, POSITIONS * size, 1, seed);
    floats(h->value, POSITIONS * size, 1, seed);
    for (uint32_t i = 0; i < BLOCKS; i++) h->blocks[i] = (i * 29 + 5) % BLOCKS;
    h->kv = (struct kv_view){ .pool = h->pool, .blocks = h->blocks, .block_stride = stride,
                              .block_tokens = block, .lanes = lanes, .head_dim = size,
                              .end = POSITIONS, .type = type };
    for (uint32_t t = 0; t < POSITIONS; t++) {
        uint8_t *at = h->pool + h->blocks[t / block] * stride;
        uint32_t in = t % block;
        uint8_t *scales = at + 2ull * block * size * element + 4ull * in;
        uint32_t n = type == KV_INT8 ? 4 : 1;        /* elements side by side */
        uint64_t key = (uint64_t)in / lanes * lanes * size + in % lanes * n;
        uint64_t value = (uint64_t)(block + in / n * n) * size + in % n;
        put_row(k, type, &h->key[t * size], size, at + key * element, n, lanes * n, scales);
        put_row(k, type, &h->value[t * size], size, at + value * element, 1, n,
                scales + 4ull * block);
    }
}

static void heads_free(struct heads *h)
{
    free(h->key);
    free(h->value);
    free(h->pool);
}

/* To the nearest bfloat16 (of two the even one). */
static double bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static double seen_of(const struct heads *h, float x)
{
    return h->bfloat16 ? bfloat16(x) : (double)x;
}

/* A query's rounding is of what softmax with powers of two takes. */
static double query_of(const struct heads *h, float x)
{
    const float log2_e = 1.44269504f;
    return h->bfloat16 ? bfloat16(x * log2_e) / (double)log2_e : (double)x;
}

/* A query as 16 bits: a signed byte of at most 127, 256 times, and another. */
static void whole_of(const float *q, uint32_t n, float *out)
{
    float top = 0, most = 127 * 256;
    for (uint32_t s = 0; s < n; s++) top = fmaxf(top, fabsf(q[s]));
    for (uint32_t s = 0; s < n; s++) out[s] = rintf(q[s] * (most / top)) * (top / most);
}

/* What a query's first `seen` positions give it. */
static void attend_exactly(const struct heads *h, const float *q, uint32_t seen, double *out)
{
    uint32_t size = h->kv.head_dim;
    double p[POSITIONS], max = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < seen; t++) {
        p[t] = 0;
        for (uint32_t s = 0; s < size; s++) {
            p[t] += query_of(h, q[s]) * seen_of(h, h->key[t * size + s]);
        }
        max = p[t] > max ? p[t] : max;
    }
    for (uint32_t t = 0; t < seen; t++) sum += p[t] = exp(p[t] - max);
    for (uint32_t s = 0; s < size; s++) {
        out[s] = 0;
        for (uint32_t t = 0; t < seen; t++) out[s] += p[t] * seen_of(h, h->value[t * size + s]);
        out[s] /= sum;
    }
}

/* In bfloat16 weights are rounded once more, each by 2^-9 of it at most, and so is their sum.  As
 * whole numbers each of a tile's 256 weights errs by at most 2^-17 of the largest; times values of
 * -1 to 1 that is a standard deviation of 2^-13 / 3 if that one has nearly all the weight: 2^-12 is
 * six of them. */
static void expect(const struct heads *h, const float *q, uint32_t seen,
                   const struct partial *got)
{
    double most = h->bfloat16 ? 0x1p-8 : h->whole ? 0x1p-12 : 2e-5, want[128];
    float whole[128];
    if (h->whole) whole_of(q, h->kv.head_dim, whole);
    attend_exactly(h, h->whole ? whole : q, seen, want);
    for (uint32_t s = 0; s < h->kv.head_dim; s++) {
        assert_true(fabs((double)(got->out[s] / got->sum) - want[s]) < most);
    }
}

/* Counts on both sides of every border: sets of queries, few and many. */
static const uint32_t query_counts[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 17, QUERIES_MAX };
enum { COUNTS = sizeof query_counts / sizeof query_counts[0] };

struct tile_case {
    const float *queries[QUERIES_MAX];
    uint32_t all[QUERIES_MAX], some[QUERIES_MAX];
    struct partial a[QUERIES_MAX], b[QUERIES_MAX];
    float q[QUERIES_MAX][128], outs[2][QUERIES_MAX][128];
};

static void check_count(const struct kernels *k, const struct heads *h, struct tile_case *c,
                        uint32_t count, float *room, uint64_t *seed)
{
    uint32_t size = h->kv.head_dim;
    for (uint32_t i = 0; i < count; i++) {
        floats(c->q[i], size, 1, seed);
        c->queries[i] = c->q[i];
        c->all[i] = KV_TILE_TOKENS;
        c->some[i] = 1 + (uint32_t)(tiny_random(seed) % KV_TILE_TOKENS);
        if (count < 8) c->some[i] = 1 + c->some[i] % 70;
        c->a[i].out = c->outs[0][i], c->b[i].out = c->outs[1][i];
    }
    k->tile(&h->kv, 0, c->queries, c->some, count, c->a, room);
    for (uint32_t i = 0; i < count; i++) expect(h, c->q[i], c->some[i], &c->a[i]);
    k->tile(&h->kv, 0, c->queries, c->all, count, c->a, room);
    k->tile(&h->kv, 1, c->queries, c->some, count, c->b, room);
    for (uint32_t i = 0; i < count; i++) {
        /* Alone: the same bits. */
        struct partial one = { .out = c->outs[0][QUERIES_MAX - 1] };
        if (count < QUERIES_MAX) {
            k->tile(&h->kv, 1, &c->queries[i], &c->some[i], 1, &one, room);
            assert_memory_equal(&one.max, &c->b[i].max, 2 * sizeof(float));
            assert_memory_equal(one.out, c->b[i].out, size * sizeof(float));
        }
        k->merge(&c->a[i], &c->b[i], size);
        expect(h, c->q[i], KV_TILE_TOKENS + c->some[i], &c->a[i]);
    }
}

static void check_heads(enum isa isa, uint32_t size, uint32_t block, enum kv_type type,
                        uint64_t seed)
{
    struct heads h;
    struct tile_case *c = mem_alloc(sizeof *c);
    float *room = mem_array(tile_room(size), sizeof *room);
    fill_heads(&h, kernels_of(isa), size, block, type, &seed);
    h.bfloat16 = isa == ISA_AVX512_BF16 && type == KV_F16 && h.kv.lanes == 16;
    h.whole = isa >= ISA_AVX512 && type == KV_INT8 && h.kv.lanes == 16;
    for (uint32_t i = 0; i < COUNTS; i++) {
        check_count(kernels_of(isa), &h, c, query_counts[i], room, &seed);
    }
    free(room);
    free(c);
    heads_free(&h);
}

static void attention_agrees_with_double(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 16, 64, 80, 96, 128 };
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        uint32_t trial = 0;
        for (uint32_t i = 0; i < 5; i++) {
            for (uint32_t block = 8; block <= 256; block *= 2, trial++) {
                check_heads(isa, sizes[i], block, trial % 4, block + i);
            }
        }
    }
}

/* Everything of the tile behind its first `seen` positions becomes NaN. */
static void spoil_behind(const struct heads *h, uint32_t tile, uint32_t seen)
{
    const struct kv_view *kv = &h->kv;
    uint32_t element = kv_element_bytes(kv->type), block = kv->block_tokens;
    for (uint32_t t = tile * KV_TILE_TOKENS + seen; t < (tile + 1) * KV_TILE_TOKENS; t++) {
        uint8_t *at = h->pool + h->blocks[t / block] * kv->block_stride;
        for (uint32_t s = 0; s < kv->head_dim; s++) {
            memset(at + kv_key_at(kv, t % block, s) * element, 0xff, element);
            memset(at + kv_value_at(kv, t % block, s) * element, 0xff, element);
        }
        if (!kv_is_scaled(kv->type)) continue;
        float *scales = (float *)(void *)(at + 2ull * block * kv->head_dim * element);
        scales[t % block] = scales[block + t % block] = NAN;
    }
}

/* A query that is no number spoils itself; what lies in the pool behind a sequence, nobody. */
static void check_strangers(enum isa isa, uint32_t block, enum kv_type type, uint32_t seen)
{
    enum { SIZE = 80, COUNT = 9, BAD = 7 };
    const struct kernels *k = kernels_of(isa);
    struct heads h;
    struct tile_case *c = mem_alloc(sizeof *c);
    float *room = mem_array(tile_room(SIZE), sizeof *room);
    uint64_t seed = seen;
    fill_heads(&h, k, SIZE, block, type, &seed);
    for (uint32_t i = 0; i < COUNT; i++) {
        floats(c->q[i], SIZE, 1, &seed);
        c->queries[i] = c->q[i], c->all[i] = seen;
        c->a[i].out = c->outs[0][i], c->b[i].out = c->outs[1][i];
    }
    k->tile(&h.kv, 1, c->queries, c->all, COUNT, c->a, room);
    spoil_behind(&h, 1, seen);
    c->q[BAD][3] = NAN;
    k->tile(&h.kv, 1, c->queries, c->all, COUNT, c->b, room);
    for (uint32_t i = 0; i < COUNT; i++) {
        for (uint32_t first = 0; first < 2 && i != BAD; first++) {
            if (first) k->tile(&h.kv, 1, &c->queries[i], &seen, 1, &c->b[i], room);
            assert_memory_equal(&c->a[i].max, &c->b[i].max, 2 * sizeof(float));
            assert_memory_equal(c->a[i].out, c->b[i].out, SIZE * sizeof(float));
        }
    }
    free(room);
    free(c);
    heads_free(&h);
}

static void what_is_not_seen_does_not_count(void **state)
{
    (void)state;
    static const uint32_t seen[] = { 1, 16, 37, 131, 255 };
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        for (uint32_t trial = 0; trial < 20; trial++) {
            check_strangers(isa, 16u << trial % 3, trial / 5, seen[trial % 5]);
        }
    }
}

/* A tile's results beside those of exact arithmetic on the same bytes, and what these are beside
 * those of the keys and values that became bytes: sums of squared differences. */
static void whole_errors(enum isa isa, uint32_t size, uint64_t seed, double *ours, double *bytes)
{
    struct heads h, as_were;
    struct tile_case *c = mem_alloc(sizeof *c);
    float *room = mem_array(tile_room(size), sizeof *room);
    uint64_t again = seed;
    fill_heads(&h, kernels_of(isa), size, 16, KV_INT8, &seed);
    fill_heads(&as_were, kernels_of(isa), size, 16, KV_F32, &again);
    h.bfloat16 = h.whole = as_were.bfloat16 = false;
    for (uint32_t i = 0; i < 3; i++) {
        floats(c->q[i], size, 1, &seed);
        c->queries[i] = c->q[i], c->all[i] = KV_TILE_TOKENS, c->a[i].out = c->outs[0][i];
    }
    kernels_of(isa)->tile(&h.kv, 0, c->queries, c->all, 3, c->a, room);
    for (uint32_t i = 0; i < 3; i++) {
        double exact[128], before[128];
        attend_exactly(&h, c->q[i], KV_TILE_TOKENS, exact);
        attend_exactly(&as_were, c->q[i], KV_TILE_TOKENS, before);
        for (uint32_t s = 0; s < size; s++) {
            double got = (double)(c->outs[0][i][s] / c->a[i].sum);
            *ours += (got - exact[s]) * (got - exact[s]);
            *bytes += (exact[s] - before[s]) * (exact[s] - before[s]);
        }
    }
    heads_free(&h);
    heads_free(&as_were);
    free(room);
    free(c);
}

/* Arithmetic on int8 keys and values may err, but only by what nobody can see beside the rounding
 * of these: 1 % of it.  (In 16 bits 0.8 %, in floats 0.01 %.) */
static void int8_arithmetic_hides_behind_its_rounding(void **state)
{
    (void)state;
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        for (uint32_t size = 64; size <= 128; size += 64) {
            double ours = 0, bytes = 0;
            for (uint64_t seed = 1; seed <= 8; seed++) whole_errors(isa, size, seed, &ours, &bytes);
            assert_true(sqrt(ours) < 0.01 * sqrt(bytes));
        }
    }
}

static double code_value(enum kv_type type, uint8_t b)
{
    if (type == KV_INT8) return (double)(int8_t)b;
    return (double)half_to_float((uint16_t)((b & 0x7f) << 7 | (b & 0x80) << 8));
}

/* Of an element of a row whose largest is `top`: fp8's least exponent, and the scales above. */
static double code_step(enum kv_type type, float x, float top)
{
    if (type == KV_INT8) return (double)top / 127;
    return fmax(fabs((double)x) / 8, 2 * (double)top / 448 / 512);
}

static double squared_error(enum kv_type type, const float *x, uint32_t n, float scale,
                            const uint8_t *bytes)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double error = code_value(type, bytes[i]) * (double)scale - (double)x[i];
        sum += error * error;
    }
    return sum;
}

/* The least squared error that any codes have with one of fp8's scales. */
static double least_fp8_error(const float *x, uint32_t n, float top)
{
    double least = INFINITY;
    for (int s = 0; s < FP8_SCALES; s++) {
        double scale = (double)top / (double)KV_FP8_MOST * exp2((double)s / FP8_SCALES), sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            double nearest = INFINITY;
            for (uint8_t b = 0; b < 0x7f; b++) {
                double back = code_value(KV_FP8, b) * scale;
                nearest = fmin(nearest, fabs(back - fabs((double)x[i])));
            }
            sum += nearest * nearest;
        }
        least = fmin(least, sum);
    }
    return least;
}

/* Every path gives equally good bytes (the same ones, but for scales that come out even), each
 * within half a step of what it stands for. */
static void keys_and_values_are_rounded_to_bytes(void **state)
{
    (void)state;
    enum { N = 80 };
    uint64_t seed = 12;
    for (uint32_t trial = 0; trial < 400; trial++) {
        enum kv_type type = trial % 2 ? KV_INT8 : KV_FP8;
        float x[N], top = 0, scales[ISA_COUNT];
        uint8_t bytes[ISA_COUNT][N];
        floats(x, N, ldexpf(1, (int)(trial % 90) - 40), &seed);
        for (int i = 0; i < N / 4; i++) x[i] *= ldexpf(1, -i);
        if (trial == 8 || trial == 9) memset(x, 0, sizeof x);
        for (int i = 0; i < N; i++) top = fmaxf(top, fabsf(x[i]));
        for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
            scales[isa] = kernels_of(isa)->to_byte(type, x, N, NULL, 0, bytes[isa]);
            if (scales[isa] == scales[0]) assert_memory_equal(bytes[isa], bytes[0], N);
            double error = squared_error(type, x, N, scales[isa], bytes[isa]);
            assert_true(error <= 1.001 * squared_error(type, x, N, scales[0], bytes[0]));
            assert_true(type == KV_FP8 || scales[isa] == scales[0]);
        }
        if (type == KV_FP8 && top > 0) {
            double error = squared_error(type, x, N, scales[0], bytes[0]);
            assert_true(error <= 1.01 * least_fp8_error(x, N, top));
        }
        for (int i = 0; i < N; i++) {
            uint8_t b = bytes[0][i];
            double back = code_value(type, b) * (double)scales[0];
            assert_true(fabs(back - (double)x[i]) <= 0.505 * code_step(type, x[i], top));
            assert_true(type == KV_INT8 || (b & 0x7f) < 0x7f);
        }
    }
    /* What is no number may not become one that traps or spreads by surprise. */
    float odd[16] = { NAN, INFINITY, -INFINITY, 1, 3e38f };
    uint8_t out[16];
    for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
        kernels_of(isa)->to_byte(KV_INT8, odd, 16, odd, 1, out);
        kernels_of(isa)->to_byte(KV_FP8, odd, 16, odd, 1, out);
        for (int i = 0; i < 16; i++) assert_true((out[i] & 0x7f) < 0x7f);
    }
}

/* Keys as heads have them, and queries with a direction of their own, theirs and later ones. */
struct shaped {
    enum kv_type type;
    uint32_t n, count;
    double seen, later, error;        /* sums over keys of (q . error)^2, and error . error */
};

static double squared_dot(const float *q, const float *x, uint32_t n, float scale,
                          enum kv_type type, const uint8_t *bytes)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double error = code_value(type, bytes[i]) * (double)scale - (double)x[i];
        sum += error * (double)q[i];
    }
    return sum * sum;
}

static void shape_keys(const struct kernels *k, struct shaped *s, bool with_queries)
{
    enum { KEYS = 200, N_MAX = 128 };
    static float x[N_MAX], own[KEY_QUERIES_MAX * N_MAX], common[N_MAX];
    uint8_t bytes[N_MAX];
    uint64_t seed = s->n + s->count;
    floats(common, s->n, 1, &seed);
    s->seen = s->later = s->error = 0;
    for (int key = 0; key < KEYS; key++) {
        floats(x, s->n, 1, &seed);
        floats(own, s->n * s->count, 0.7f, &seed);
        for (uint32_t i = 0; i < s->n * s->count; i++) own[i] += common[i % s->n];
        float scale = k->to_byte(s->type, x, s->n, own, with_queries ? s->count : 0, bytes);
        for (uint32_t i = 0; i < s->n; i++) {
            double back = code_value(s->type, bytes[i]) * (double)scale;
            assert_true(fabs(back - (double)x[i]) <= 1.1 * code_step(s->type, x[i], 2));
        }
        for (uint32_t h = 0; h < s->count; h++) {
            s->seen += squared_dot(own + h * s->n, x, s->n, scale, s->type, bytes);
        }
        s->later += squared_dot(common, x, s->n, scale, s->type, bytes);
        s->error += squared_error(s->type, x, s->n, scale, bytes);
    }
}

static void keys_are_rounded_for_their_queries(void **state)
{
    (void)state;
    static const uint32_t sizes[] = { 64, 80, 128 }, counts[] = { 1, 2, 3, 4, 7, 16 };
    for (uint32_t trial = 0; trial < 36; trial++) {
        struct shaped oracle = { .type = trial % 2 ? KV_INT8 : KV_FP8, .n = sizes[trial / 2 % 3],
                                 .count = counts[trial / 6] };
        shape_keys(&kernels_plain, &oracle, true);
        for (enum isa isa = ISA_PLAIN; isa <= isa_best(); isa++) {
            struct shaped with = oracle, without = oracle;
            shape_keys(kernels_of(isa), &with, true);
            shape_keys(kernels_of(isa), &without, false);
            assert_true(with.later < 0.45 * without.later);
            assert_true(with.seen < 0.3 * without.seen);
            assert_true(with.error < 1.1 * without.error);
            assert_true(fabs(with.seen - oracle.seen) < 0.01 * without.seen);
            assert_true(fabs(with.error - oracle.error) < 0.01 * without.error);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_type_are_exact),
        cmocka_unit_test(extreme_values_do_not_overflow),
        cmocka_unit_test(rows_are_normed_gated_and_rounded),
        cmocka_unit_test(heads_are_rotated_and_mixed),
        cmocka_unit_test(activations_are_rounded_to_the_nearest),
        cmocka_unit_test(rows_are_rounded_alike_together_and_alone),
        cmocka_unit_test(attention_agrees_with_double),
        cmocka_unit_test(what_is_not_seen_does_not_count),
        cmocka_unit_test(int8_arithmetic_hides_behind_its_rounding),
        cmocka_unit_test(keys_and_values_are_rounded_to_bytes),
        cmocka_unit_test(keys_are_rounded_for_their_queries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
