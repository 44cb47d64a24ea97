/* tests/unit/mpi_link_meter_test.c - a link's speed is what it took while it held us up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/clock.h"
#include "mpi/link_meter.h"

enum { MIB = 1 << 20 };

static bool near(double x, double wanted)
{
    return x > wanted * 0.9 && x < wanted * 1.1;
}

/* `ms` milliseconds at a MiB each, then there is room. */
static void burst(struct link_meter *m, int peer, uint64_t begin_ns, int ms, bool to_its_end)
{
    for (int i = 0; i < ms; i++) {
        link_meter_look(m, peer, true, begin_ns + i * NS_PER_MS);
        link_meter_sent(m, peer, MIB);
    }
    if (to_its_end) link_meter_look(m, peer, false, begin_ns + ms * NS_PER_MS);
}

static void what_a_link_takes_while_it_holds_us_up_is_its_speed(void **state)
{
    (void)state;
    struct link_meter m = { 0 };
    burst(&m, 3, 1000, 1, true);      /* too little */
    assert_true(m.bytes_s == 0);
    burst(&m, 3, NS_PER_S, 50, true);
    assert_true(near(m.bytes_s, 1000. * MIB));
    assert_int_equal(m.measured, 3);
}

static void what_goes_to_others_does_not_count(void **state)
{
    (void)state;
    struct link_meter m = { 0 };
    link_meter_look(&m, 3, true, NS_PER_S);
    link_meter_look(&m, 4, true, NS_PER_S);
    link_meter_sent(&m, 4, 100 * MIB);
    link_meter_sent(&m, 3, 10 * MIB);
    link_meter_look(&m, 4, false, NS_PER_S + 5 * NS_PER_MS);
    assert_true(m.bytes_s == 0);
    link_meter_look(&m, 3, false, NS_PER_S + 10 * NS_PER_MS);
    assert_true(near(m.bytes_s, 1000. * MIB));
}

static void an_idle_time_is_not_a_slow_link(void **state)
{
    (void)state;
    struct link_meter m = { 0 };
    burst(&m, 3, NS_PER_S, 50, false); /* its last bytes just fitted; nobody looks any more */
    link_meter_look(&m, 3, false, 61 * NS_PER_S);
    assert_true(m.bytes_s == 0);
    burst(&m, 3, 62 * NS_PER_S, 50, false);
    burst(&m, 4, 120 * NS_PER_S, 50, true); /* nor does it keep another from being measured */
    assert_true(near(m.bytes_s, 1000. * MIB));
    assert_int_equal(m.measured, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_link_takes_while_it_holds_us_up_is_its_speed),
        cmocka_unit_test(what_goes_to_others_does_not_count),
        cmocka_unit_test(an_idle_time_is_not_a_slow_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
