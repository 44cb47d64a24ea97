/* tests/unit/engine_scales_test.c - scales of 4-bit blocks that a form of weights might lose: of a
 * wide range, or no numbers.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "one_matrix.h"
#include "tiny_model.h"

enum { IN = 64 * 5, BLOCKS = IN / 32, ROWS = 9 };

static const enum tensor_type types[] = { TENSOR_Q4_0, TENSOR_Q4_1 };

struct work {
    uint8_t data[PANEL * BLOCKS * sizeof(struct block_q4_1)];
    float x[ROWS][IN], out[ROWS][PANEL];
    struct acts a;
};

/* `out` from `data` and `x`; the activations that were used stay in `a`. */
static void multiply(struct work *w, enum isa isa, enum tensor_type type)
{
    const struct kernels *k = kernels_of(isa);
    struct gguf_tensor t = { .type = type, .dims = { IN, PANEL }, .data = w->data };
    struct one_matrix o;
    one_matrix_open(&o, isa, &t);
    w->a = acts_open(o.m, ROWS, ACTS_NARROW);
    for (uint32_t r = 0; r < ROWS; r++) k->quantize(w->x[r], IN, &w->a, r, 0);
    acts_finish(k, &w->a, 0, ROWS);
    k->gemm(o.m, &w->a, 0, ROWS, 0, 1, &w->out[0][0], PANEL, false);
    one_matrix_close(&o);
}

/* Scales of either sign; `range`: those of a block are up to 2^range times another's, and those of
 * activations the other way round; output 2's are 1000 times the others'. */
static void fill(struct work *w, enum tensor_type type, uint32_t range, uint64_t *seed)
{
    uint32_t bytes = tensor_block_bytes(type);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        int power = (int)(tiny_random(seed) % (range + 1)) - (int)range / 2;
        for (uint32_t o = 0; o < PANEL; o++) {
            uint8_t *at = w->data + (o * BLOCKS + b) * bytes;
            float size = ldexpf(o == 2 ? 100 : 0.1f, power);
            for (uint32_t i = 0; i < bytes; i++) at[i] = (uint8_t)tiny_random(seed);
            tiny_half(at, 0.1f * size * tiny_float(seed));
            if (type == TENSOR_Q4_1) tiny_half(at + 2, size * tiny_float(seed));
        }
        for (uint32_t i = 0; i < ROWS * 32; i++) {
            w->x[i / 32][32 * b + i % 32] = ldexpf(tiny_float(seed), -power);
        }
    }
}

/* What a block adds to a product, in the parts that have scales of their own. */
struct block_part {
    double d, x, m, sum;              /* of weights, of activations; m = minimum + 8 * d      */
    double whole;                     /* of (q - 8) * v                                       */
};

static struct block_part block_part(enum tensor_type type, const uint8_t *block,
                                    const struct act_block *b, uint32_t row)
{
    uint16_t d, m = 0;
    memcpy(&d, block, 2);
    if (type == TENSOR_Q4_1) memcpy(&m, block + 2, 2);
    const uint8_t *q = block + tensor_block_bytes(type) - 16;
    struct block_part p = { .d = (double)half_to_float(d), .x = (double)b->s.scale[row],
                            .sum = (double)b->s.sum[row] };
    if (type == TENSOR_Q4_1) p.m = (double)half_to_float(m) + 8 * p.d;
    for (int i = 0; i < 16; i++) {
        p.whole += ((q[i] & 15) - 8) * b->q[row][i] + ((q[i] >> 4) - 8) * b->q[row][i + 16];
    }
    return p;
}

/* Whole-number scales are off by half a unit each, their product by half of one: so far, and no
 * further, may a result be off beside the rounding of floats. */
static void check_product(const struct work *w, enum tensor_type type, uint32_t row, uint32_t o)
{
    struct block_part most = { 0 };
    uint32_t bytes = tensor_block_bytes(type);
    double sum = 0, size = 0, wholes = 0;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        const uint8_t *block = w->data + (o * BLOCKS + b) * bytes;
        struct block_part p = block_part(type, block, w->a.q + b, row);
        sum += p.whole * p.d * p.x + p.m * p.sum;
        size += fabs(p.whole * p.d * p.x) + fabs(p.m * p.sum);
        wholes += fabs(p.whole);
        most.d = fmax(most.d, fabs(p.d)), most.x = fmax(most.x, p.x);
        most.m = fmax(most.m, fabs(p.m)), most.sum = fmax(most.sum, fabs(p.sum));
    }
    double units = 1.5 * most.d * most.x * wholes + BLOCKS * most.m * most.sum;
    double may = 1e-5 * size + (w->a.pairs ? units / (double)(PAIR_MOST - 1) : 0);
    assert_true(fabs((double)w->out[row][o] - sum) <= may);
}

static void scales_of_a_wide_range_keep_their_bound(void **state)
{
    (void)state;
    struct work *w = mem_alloc(sizeof *w);
    uint64_t seed = 3;
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        for (uint32_t trial = 0; trial < 52; trial++) {
            enum tensor_type type = types[trial % 2];
            fill(w, type, trial / 4, &seed);
            multiply(w, isa, type);
            for (uint32_t i = 0; i < ROWS * PANEL; i++) {
                check_product(w, type, i / PANEL, i % PANEL);
            }
            acts_close(&w->a);
        }
    }
    free(w);
}

/* An output with one shows it; its neighbours do not. */
static void a_scale_that_is_no_number_shows(void **state)
{
    (void)state;
    static const uint16_t odd[] = { 0x7c00, 0xfc00, 0x7e00 };     /* infinities, NaN */
    struct work *w = mem_alloc(sizeof *w);
    uint64_t seed = 4;
    for (uint32_t trial = 0; trial < 12; trial++) {
        enum tensor_type type = types[trial % 4 != 0];
        uint32_t at = trial % 4 < 2 ? 0 : 2;                      /* d, or the minimum */
        for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
            fill(w, type, 0, &seed);
            memcpy(w->data + (5 * BLOCKS + 3) * tensor_block_bytes(type) + at, &odd[trial / 4], 2);
            multiply(w, isa, type);
            for (uint32_t i = 0; i < ROWS * PANEL; i++) {
                assert_true(!isfinite(w->out[i / PANEL][i % PANEL]) == (i % PANEL == 5));
            }
            acts_close(&w->a);
        }
    }
    free(w);
}

/* Nor does an activation that is none hide behind others: its row shows it, and no other row. */
static void an_activation_that_is_no_number_shows(void **state)
{
    (void)state;
    static const float odd[] = { NAN, -NAN, INFINITY, -INFINITY };
    struct work *w = mem_alloc(sizeof *w);
    uint64_t seed = 5;
    for (uint32_t trial = 0; trial < 32; trial++) {
        for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
            fill(w, types[trial % 2], 0, &seed);
            w->x[6][tiny_random(&seed) % IN] = odd[trial / 2 % 4];
            multiply(w, isa, types[trial % 2]);
            for (uint32_t i = 0; i < ROWS * PANEL; i++) {
                assert_true(!isfinite(w->out[i / PANEL][i % PANEL]) == (i / PANEL == 6));
            }
            acts_close(&w->a);
        }
    }
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_of_a_wide_range_keep_their_bound),
        cmocka_unit_test(a_scale_that_is_no_number_shows),
        cmocka_unit_test(an_activation_that_is_no_number_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
