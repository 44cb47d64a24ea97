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
    bool whole;                       /* the scales were whole numbers                        */
};

/* `out` from `data` and `x`; the activations that were used stay in `a`. */
static void multiply(struct work *w, enum isa isa, enum tensor_type type)
{
    const struct kernels *k = kernels_of(isa);
    struct gguf_tensor t = { .type = type, .dims = { IN, PANEL }, .data = w->data };
    struct one_matrix o;
    one_matrix_open(&o, isa, &t);
    w->a = acts_open(o.m, ROWS, ACTS_NARROW);
    k->quantize(w->x[0], IN, ROWS, IN, &w->a, 0, 0);
    acts_finish(k, &w->a, 0, ROWS);
    k->gemm(o.m, &w->a, 0, ROWS, 0, 1, &w->out[0][0], PANEL, false);
    w->whole = panel_form(o.m, o.m->data) >= SCALES_PAIR;
    one_matrix_close(&o);
}

/* 0.5 .. 1 of either sign. */
static float away_from_zero(uint64_t *seed)
{
    float x = tiny_float(seed);
    return x < 0 ? x / 2 - 0.5f : x / 2 + 0.5f;
}

/* Scales of either sign; `range`: those of a block are up to 2^range times another's, and those of
 * activations the other way round, `times` as many powers of two; output 2's are 1000 times the
 * others'. */
static void fill(struct work *w, enum tensor_type type, uint32_t range, int times, uint64_t *seed)
{
    uint32_t bytes = tensor_block_bytes(type);
    for (uint32_t b = 0; b < BLOCKS; b++) {
        int power = (int)(tiny_random(seed) % (range + 1)) - (int)range / 2;
        for (uint32_t o = 0; o < PANEL; o++) {
            uint8_t *at = w->data + (o * BLOCKS + b) * bytes;
            float size = ldexpf(o == 2 ? 100 : 0.1f, power);
            for (uint32_t i = 0; i < bytes; i++) at[i] = (uint8_t)tiny_random(seed);
            tiny_half(at, 0.1f * size * away_from_zero(seed));
            if (type == TENSOR_Q4_1) tiny_half(at + 2, size * tiny_float(seed));
        }
        for (uint32_t i = 0; i < ROWS * 32; i++) {
            w->x[i / 32][32 * b + i % 32] = ldexpf(tiny_float(seed), -power * times);
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
    double may = 1e-5 * size + (w->whole ? units / (double)(PAIR_MOST - 1) : 0);
    assert_true(fabs((double)w->out[row][o] - sum) <= may);
}

/* Are all blocks of an output within PAIR_RANGE of each other, for all outputs? */
static bool whole_fits(const struct work *w, enum tensor_type type)
{
    bool fits = true;
    for (uint32_t o = 0; o < PANEL; o++) {
        double least = INFINITY, most = 0;
        for (uint32_t b = 0; b < BLOCKS; b++) {
            const uint8_t *block = w->data + (o * BLOCKS + b) * tensor_block_bytes(type);
            struct block_part p = block_part(type, block, w->a.q + b, 0);
            least = fmin(least, 8 * fabs(p.d) + fabs(p.m));
            most = fmax(most, 8 * fabs(p.d) + fabs(p.m));
        }
        fits = fits && most <= (double)PAIR_RANGE * least;
    }
    return fits;
}

static void scales_of_a_wide_range_keep_their_bound(void **state)
{
    (void)state;
    struct work *w = mem_alloc(sizeof *w);
    uint64_t seed = 3;
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        for (uint32_t trial = 0; trial < 104; trial++) {
            enum tensor_type type = types[trial % 2];
            fill(w, type, trial / 4 % 13, 1 + trial % 4 / 2 * 3, &seed);
            multiply(w, isa, type);
            if (isa >= ISA_AVX512) assert_int_equal(w->whole, whole_fits(w, type));
            for (uint32_t i = 0; i < ROWS * PANEL; i++) {
                check_product(w, type, i / PANEL, i % PANEL);
            }
            acts_close(&w->a);
        }
    }
    free(w);
}

/* Squares of a result's error beyond that of 8-bit activations, and of that one. */
static void add_errors(const struct work *w, enum tensor_type type, uint32_t row, uint32_t o,
                       double errors[2])
{
    uint32_t bytes = tensor_block_bytes(type);
    double rounded = 0, real = 0, most = 0;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        const uint8_t *block = w->data + (o * BLOCKS + b) * bytes, *q = block + bytes - 16;
        const float *x = w->x[row] + 32 * b;
        struct block_part p = block_part(type, block, w->a.q + b, row);
        rounded += p.whole * p.d * p.x + p.m * p.sum;
        most = fmax(most, fabs(p.d));
        for (int i = 0; i < 16; i++) {
            real += (((q[i] & 15) - 8) * p.d + p.m) * (double)x[i];
            real += (((q[i] >> 4) - 8) * p.d + p.m) * (double)x[i + 16];
        }
    }
    errors[0] += pow(((double)w->out[row][o] - rounded) / most, 2);
    errors[1] += pow((rounded - real) / most, 2);
}

/* However wide the blocks of weights and of activations range, and against each other: what scales
 * as whole numbers add to the error of 8-bit activations is less than half of it. */
static void scales_err_less_than_activations(void **state)
{
    (void)state;
    struct work *w = mem_alloc(sizeof *w);
    uint64_t seed = 6;
    for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
        for (uint32_t trial = 0; trial < 104; trial++) {
            double errors[2] = { 0 };
            enum tensor_type type = types[trial % 2];
            fill(w, type, trial / 4 % 13, 1 + trial % 4 / 2 * 3, &seed);
            multiply(w, isa, type);
            for (uint32_t i = 0; i < ROWS * PANEL; i++) {
                add_errors(w, type, i / PANEL, i % PANEL, errors);
            }
            assert_true(errors[0] <= errors[1] / 4);
            acts_close(&w->a);
        }
    }
    free(w);
}

/* Quants of any value, wherever in a panel they lie, are not taken for the mark of a panel whose
 * scales stay as they are. */
static void quants_are_never_taken_for_a_mark(void **state)
{
    (void)state;
    static const float mark = PAIR_NOT;
    struct work *w = mem_alloc(sizeof *w);
    uint64_t seed = 8;
    for (enum isa isa = ISA_AVX512; isa <= isa_best(); isa++) {
        for (uint32_t trial = 0; trial < 4; trial++) {
            enum tensor_type type = types[trial % 2];
            uint32_t bytes = tensor_block_bytes(type);
            fill(w, type, trial / 2 * 12, 1, &seed);
            for (uint32_t i = 0; i < PANEL * BLOCKS * 4; i++) {
                memcpy(w->data + (i / 4 + 1) * bytes - 16 + 4 * (i % 4), &mark, sizeof mark);
            }
            multiply(w, isa, type);
            assert_int_equal(w->whole, whole_fits(w, type));
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
            fill(w, type, 0, 1, &seed);
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
            fill(w, types[trial % 2], 0, 1, &seed);
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
        cmocka_unit_test(scales_err_less_than_activations),
        cmocka_unit_test(quants_are_never_taken_for_a_mark),
        cmocka_unit_test(a_scale_that_is_no_number_shows),
        cmocka_unit_test(an_activation_that_is_no_number_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
