/* tests/unit/gateway_overlap_test.c - which job was sent which beginning: exact while it fits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gateway/overlap.h"

enum { B = OVERLAP_BLOCK_TOKENS };

static int32_t ids[4096];

static void fill(int32_t first, uint32_t from)
{
    for (uint32_t i = from; i < 4096; i++) ids[i] = first + (int32_t)i;
}

static uint32_t look(const struct overlap *o, uint64_t salt, uint32_t count, uint32_t job)
{
    uint32_t tokens[JOBS_MAX];
    overlap_look(o, salt, ids, count, tokens);
    return tokens[job];
}

static void whole_blocks_from_the_beginning_count(void **state)
{
    (void)state;
    struct overlap *o = overlap_open();
    fill(1, 0);
    overlap_add(o, 0, ids, 5 * B + 3, 2);
    assert_int_equal(look(o, 0, 4096, 2), 5 * B);
    assert_int_equal(look(o, 0, 3 * B + 1, 2), 3 * B);
    assert_int_equal(look(o, 0, B - 1, 2), 0);
    assert_int_equal(look(o, 0, 4096, 1), 0);
    fill(7, 2 * B);                   /* another text from the third block on */
    assert_int_equal(look(o, 0, 4096, 2), 2 * B);
    fill(1, 0);
    ids[0]++;                         /* the blocks behind another first one are others */
    assert_int_equal(look(o, 0, 4096, 2), 0);
    overlap_close(o);
}

static void jobs_and_salts_are_apart(void **state)
{
    (void)state;
    struct overlap *o = overlap_open();
    fill(1, 0);
    overlap_add(o, 0, ids, 8 * B, 0);
    overlap_add(o, 0, ids, 3 * B, JOBS_MAX - 1);
    assert_int_equal(look(o, 0, 4096, 0), 8 * B);
    assert_int_equal(look(o, 0, 4096, JOBS_MAX - 1), 3 * B);
    assert_int_equal(look(o, 1, 4096, 0), 0);
    overlap_forget(o, 0);
    assert_int_equal(look(o, 0, 4096, 0), 0);
    assert_int_equal(look(o, 0, 4096, JOBS_MAX - 1), 3 * B);
    overlap_close(o);
}

static void it_never_says_more_than_was_sent_and_the_oldest_go(void **state)
{
    (void)state;
    struct overlap *o = overlap_open();
    uint32_t kept = 0, rounds = 4 * OVERLAP_KEYS / 8;
    for (uint32_t i = 0; i < rounds; i++) {
        fill((int32_t)i * 7919, 0);
        overlap_add(o, 0, ids, 8 * B, 3);
        assert_int_equal(look(o, 0, 4096, 3), 8 * B);
    }
    fill(0, 0);
    assert_true(look(o, 0, 4096, 3) < 8 * B);          /* four times what there is room for */
    for (uint32_t i = rounds - 1000; i < rounds; i++) {
        fill((int32_t)i * 7919, 0);
        uint32_t tokens = look(o, 0, 4096, 3);
        assert_true(tokens <= 8 * B);
        kept += tokens == 8 * B;
    }
    assert_true(kept > 900);
    overlap_close(o);
}

static void long_prompts_are_looked_at_up_to_a_bound(void **state)
{
    (void)state;
    static int32_t many[(OVERLAP_BLOCKS_MAX + 9) * B];
    uint32_t tokens[JOBS_MAX];
    struct overlap *o = overlap_open();
    overlap_add(o, 5, many, sizeof many / sizeof *many, 1);
    overlap_look(o, 5, many, sizeof many / sizeof *many, tokens);
    assert_int_equal(tokens[1], OVERLAP_BLOCKS_MAX * B);
    overlap_close(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_blocks_from_the_beginning_count),
        cmocka_unit_test(jobs_and_salts_are_apart),
        cmocka_unit_test(it_never_says_more_than_was_sent_and_the_oldest_go),
        cmocka_unit_test(long_prompts_are_looked_at_up_to_a_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
