/* tests/unit/engine_pace_test.c - step times are learned, and what fits a target is found. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/pace.h"

static uint64_t noise_state;

/* A machine: the true costs, and noise of some percent. */
static double truth_ns(const struct pace_load *l, double slower)
{
    noise_state = noise_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    double noise = 1 + 0.1 * ((double)(noise_state >> 11) / (double)(UINT64_C(1) << 53) - 0.5);
    return slower * noise * (3e6 + 1.1e6 * l->decode_seqs + 500 * l->decode_context +
                             9e5 * l->prefill_tokens + 300 * l->prefill_context);
}

static struct pace_load load_of(uint32_t decodes, uint32_t context, uint32_t first, uint32_t count)
{
    struct pace_load l = { 0 };
    for (uint32_t i = 0; i < decodes; i++) pace_add_decode(&l, context);
    if (count) pace_add_prefill(&l, first, count);
    return l;
}

static void learn(struct pace *p, struct pace_load l, double slower)
{
    pace_learn(p, &l, truth_ns(&l, slower));
}

static void assert_near(const struct pace *p, struct pace_load l, double slower, double factor)
{
    double is = pace_predict_ns(p, &l), want = truth_ns(&l, slower);
    if (is < want / factor || is > want * factor) fail_msg("%.3g ns, not %.3g", is, want);
}

/* As a server lives: prompts alone, then decodes, then both. */
static void live(struct pace *p)
{
    pace_open(p);
    for (uint32_t i = 0; i < 4; i++) learn(p, load_of(0, 0, i * 512, 512), 1);
    for (uint32_t i = 0; i < 300; i++) learn(p, load_of(4, 100 + i, 0, 0), 1);
    for (uint32_t i = 0; i < 200; i++) learn(p, load_of(4, 400 + i, i * 16, 8 + i % 17), 1);
}

static void costs_of_a_machine_are_learned_from_its_steps(void **state)
{
    (void)state;
    struct pace p;
    live(&p);
    assert_near(&p, load_of(4, 600, 3000, 16), 1, 1.15);
    assert_near(&p, load_of(4, 600, 0, 0), 1, 1.3);
    assert_near(&p, load_of(4, 600, 1000, 64), 1, 1.4);
    for (int i = 0; i < PACE_COSTS; i++) assert_true(p.cost[i] > 0 && p.doubt[i][i] >= 0);
}

static void hours_of_the_same_step_teach_nothing_wrong(void **state)
{
    (void)state;
    struct pace p;
    live(&p);
    for (uint32_t i = 0; i < 200000; i++) learn(&p, load_of(4, 500, 2000, 16), 1);
    assert_near(&p, load_of(4, 500, 2000, 16), 1, 1.1);
    for (int i = 0; i < PACE_COSTS; i++) assert_true(isfinite(p.cost[i]) && p.cost[i] > 0);
    for (uint32_t i = 0; i < 30; i++) learn(&p, load_of(4, 500, 0, 0), 1);
    assert_near(&p, load_of(4, 500, 0, 0), 1, 1.15);
    for (uint32_t i = 0; i < 100; i++) learn(&p, load_of(4, 500, 2000, 16), 2);
    assert_near(&p, load_of(4, 500, 2000, 16), 2, 1.15);
}

static void one_step_that_hung_says_little_and_a_slower_machine_is_noticed(void **state)
{
    (void)state;
    struct pace p;
    live(&p);
    struct pace_load l = load_of(4, 600, 0, 0);
    double before = pace_predict_ns(&p, &l);
    pace_learn(&p, &l, 1000 * before);
    assert_true(pace_predict_ns(&p, &l) < 1.25 * before);
    pace_learn(&p, &l, 0);
    pace_learn(&p, &l, -1);
    for (uint32_t i = 0; i < 100; i++) learn(&p, load_of(4, 600, 0, 0), 2);
    assert_near(&p, load_of(4, 600, 0, 0), 2, 1.15);
}

/* The first step meets cold memory and is four times as long as it should be, and so may be some
 * behind it.  Four tokens at a time beside a stream must not be all that is dared afterwards. */
static void a_cold_start_is_forgotten_at_the_first_warm_step(void **state)
{
    (void)state;
    struct pace p;
    for (uint32_t cold = 1; cold <= 3; cold++) {
        pace_open(&p);
        for (uint32_t i = 0; i < cold; i++) learn(&p, load_of(0, 0, 0, 60), 4);
        learn(&p, load_of(2, 30, 0, 13), 1);
        assert_near(&p, load_of(2, 30, 0, 13), 1, 1.4);
        for (uint32_t i = 0; i < 5; i++) learn(&p, load_of(2, 35 + i, 13 + 9 * i, 9), 1);
        assert_near(&p, load_of(2, 40, 60, 13), 1, 1.2);
        assert_near(&p, load_of(1, 30, 0, 100), 1, 1.6);
    }
}

/* Steps of all kinds, which leave nothing in doubt. */
static struct pace_load any_load(uint32_t i)
{
    return load_of(i % 9, 37 * (i % 61), 53 * (i % 67), i % 3 ? i * 7 % 97 : i % 9 == 0);
}

/* What was certain for hours is doubted again: costs drift. */
static void a_machine_that_is_known_well_may_still_change(void **state)
{
    (void)state;
    struct pace p;
    pace_open(&p);
    for (uint32_t i = 0; i < 50000; i++) learn(&p, any_load(i), 1);
    for (uint32_t i = 0; i < 40; i++) assert_near(&p, any_load(i), 1, 1.15);
    for (uint32_t i = 0; i < 500; i++) learn(&p, any_load(i), 2);
    for (uint32_t i = 0; i < 40; i++) assert_near(&p, any_load(i), 2, 1.25);
}

static void the_longest_chunk_that_fits_is_found(void **state)
{
    (void)state;
    struct pace p;
    live(&p);
    struct pace_load l = load_of(4, 600, 0, 0);
    double alone = pace_predict_ns(&p, &l);
    uint32_t last = 0;
    for (double target = 0.5 * alone; target < 100 * alone; target *= 1.3) {
        uint32_t n = pace_fit(&p, &l, 1000, 512, target);
        struct pace_load with = l, more = l;
        pace_add_prefill(&with, 1000, n);
        pace_add_prefill(&more, 1000, n + 1);
        if (n > 0) assert_true(pace_predict_ns(&p, &with) <= target);
        if (n < 512) assert_true(pace_predict_ns(&p, &more) > target);
        assert_true(n >= last);
        last = n;
    }
    assert_int_equal(last, 512);
    assert_int_equal(pace_fit(&p, &l, 0, 512, alone), 0);
    assert_true(pace_fit(&p, &l, 0, 512, 3 * alone) > pace_fit(&p, &l, 4000, 512, 3 * alone));
}

static void before_anything_was_learned_all_fits(void **state)
{
    (void)state;
    struct pace p;
    pace_open(&p);
    struct pace_load l = load_of(4, 600, 0, 0);
    assert_true(pace_predict_ns(&p, &l) == 0);
    assert_int_equal(pace_fit(&p, &l, 0, 512, 1), 512);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_of_a_machine_are_learned_from_its_steps),
        cmocka_unit_test(hours_of_the_same_step_teach_nothing_wrong),
        cmocka_unit_test(one_step_that_hung_says_little_and_a_slower_machine_is_noticed),
        cmocka_unit_test(a_cold_start_is_forgotten_at_the_first_warm_step),
        cmocka_unit_test(a_machine_that_is_known_well_may_still_change),
        cmocka_unit_test(the_longest_chunk_that_fits_is_found),
        cmocka_unit_test(before_anything_was_learned_all_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
