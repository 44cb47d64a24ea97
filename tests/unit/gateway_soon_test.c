/* tests/unit/gateway_soon_test.c - waiting awake only for what has been coming soon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/clock.h"
#include "gateway/soon.h"

/* `count` answers, each `after_ns` after its question; what was asked for last, and when. */
static uint64_t answers(struct soon *s, uint64_t from, int count, uint64_t after_ns)
{
    for (int i = 0; i < count; i++) {
        soon_asked(s, from + 1, from * NS_PER_MS);
        soon_came(s, from + 1, from * NS_PER_MS + after_ns);
        from++;
    }
    return from;
}

static void who_always_answered_soon_is_waited_for_so_long(void **state)
{
    (void)state;
    struct soon s = { 0 };
    uint64_t at = answers(&s, 1, SOON_PROOFS - 1, SOON_NS);
    soon_asked(&s, 100, at * NS_PER_MS);
    assert_int_equal(soon_until_ns(&s), 0);
    soon_came(&s, 100, at * NS_PER_MS + SOON_NS);
    assert_int_equal(soon_until_ns(&s), 0); /* nothing is under way */
    soon_asked(&s, 101, 777 * NS_PER_MS);
    assert_int_equal(soon_until_ns(&s), 777 * NS_PER_MS + SOON_NS);
}

static void one_late_answer_ends_it(void **state)
{
    (void)state;
    struct soon s = { 0 };
    uint64_t at = answers(&s, 1, 3 * SOON_PROOFS, 1000);
    at = answers(&s, at, 1, SOON_NS + 1);
    at = answers(&s, at, SOON_PROOFS - 1, 1000);
    soon_asked(&s, 100, at * NS_PER_MS);
    assert_int_equal(soon_until_ns(&s), 0);
}

static void so_does_one_that_never_comes(void **state)
{
    (void)state;
    struct soon s = { 0 };
    uint64_t at = answers(&s, 1, SOON_PROOFS, 1000);
    soon_asked(&s, 100, at * NS_PER_MS);
    assert_true(soon_until_ns(&s) > 0);
    soon_asked(&s, 101, (at + 5) * NS_PER_MS);
    assert_int_equal(soon_until_ns(&s), 0);
}

static void what_was_not_asked_for_counts_for_nothing(void **state)
{
    (void)state;
    struct soon s = { 0 };
    uint64_t at = answers(&s, 1, SOON_PROOFS, 1000);
    soon_came(&s, 0, at * NS_PER_MS);
    soon_came(&s, 9, at * NS_PER_MS);
    soon_asked(&s, 100, at * NS_PER_MS);
    soon_came(&s, 99, at * NS_PER_MS + 10 * SOON_NS);
    assert_int_equal(soon_until_ns(&s), at * NS_PER_MS + SOON_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_always_answered_soon_is_waited_for_so_long),
        cmocka_unit_test(one_late_answer_ends_it),
        cmocka_unit_test(so_does_one_that_never_comes),
        cmocka_unit_test(what_was_not_asked_for_counts_for_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
