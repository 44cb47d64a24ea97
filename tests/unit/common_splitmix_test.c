/* tests/unit/common_splitmix_test.c - the sequences that simulations and measurements rest on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/splitmix.h"

static void the_sequence_is_that_of_the_authors(void **state)
{
    (void)state;
    /* The first five of seed 1234567 by the authors' program. */
    static const uint64_t known[] = {
        UINT64_C(6457827717110365317), UINT64_C(3203168211198807973),
        UINT64_C(9817491932198370423), UINT64_C(4593380528125082431),
        UINT64_C(16408922859458223821),
    };
    uint64_t seed = 1234567;
    for (int i = 0; i < 5; i++) assert_true(splitmix_next(&seed) == known[i]);
}

static void units_are_the_upper_bits_of_the_same_sequence(void **state)
{
    (void)state;
    uint64_t a = 99, b = 99;
    double least = 1, most = 0;
    for (int i = 0; i < 10000; i++) {
        double x = splitmix_unit(&a);
        assert_true(x >= 0 && x < 1 && x == (double)(splitmix_next(&b) >> 11) / 0x1p53);
        if (x < least) least = x;
        if (x > most) most = x;
    }
    assert_true(least < 0.001 && most > 0.999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_sequence_is_that_of_the_authors),
        cmocka_unit_test(units_are_the_upper_bits_of_the_same_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
