/* tests/unit/engine_threads_test.c - the thread pool: each item once, nothing early, nothing late.
 *
 * Also what `make SAN=thread` runs: the items' plain memory is only safe if the pool orders it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/check.h"
#include "engine/cpu/threads.h"

enum { ITEMS_MAX = 300, THREADS = 4, OPERATIONS = 3000 };

/* Plain memory: what one operation writes, the next one reads on other threads. */
struct field {
    uint32_t value[ITEMS_MAX], turn;
    uint32_t busy[THREADS], calls[THREADS];
    bool dawdle;
};

static void add_turn(void *ctx, uint32_t item, uint32_t worker)
{
    struct field *f = ctx;
    CHECK(worker < THREADS && f->busy[worker]++ == 0);
    f->value[item] = f->value[item] * 31 + f->turn;
    if (f->dawdle && item % 7 == 3) usleep(50);
    f->calls[worker]++;
    f->busy[worker]--;
}

/* Some operations follow at once, before which a thread may find nothing or wake late; others come
 * when all threads sleep. */
static void every_item_runs_once_and_before_the_end(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= THREADS; threads++) {
        struct field f = { .turn = 0 };
        uint32_t expected[ITEMS_MAX] = { 0 }, total = 0, calls = 0;
        struct pool *p = pool_open(threads, 0);
        assert_int_equal(pool_threads(p), threads);
        for (uint32_t turn = 0; turn < OPERATIONS; turn++) {
            uint32_t count = turn * 2654435761u % (turn % 3 ? 5 : ITEMS_MAX);
            f.turn = turn;
            f.dawdle = turn % 100 == 0;
            pool_run(p, add_turn, &f, count);
            for (uint32_t i = 0; i < count; i++) expected[i] = expected[i] * 31 + turn;
            total += count;
            if (turn % 500 == 0) usleep(2000);
        }
        assert_memory_equal(f.value, expected, sizeof expected);
        for (uint32_t i = 0; i < THREADS; i++) calls += f.calls[i];
        assert_int_equal(calls, total);
        pool_close(p);
    }
}

static void a_pool_closes_at_any_moment_after_an_operation(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        struct field f = { .turn = 1 };
        struct pool *p = pool_open(THREADS, 0);
        for (int j = 0; j < i % 4; j++) pool_run(p, add_turn, &f, 20);
        if (i % 3 == 0) usleep(100);
        pool_close(p);
        assert_int_equal(f.value[19], i % 4 == 0 ? 0 : i % 4 == 1 ? 1 : i % 4 == 2 ? 32 : 993);
    }
    pool_close(NULL);
}

/* Item 0 ends after all others: whoever has it holds up nothing else. */
static void item_0_last(void *ctx, uint32_t item, uint32_t worker)
{
    _Atomic uint32_t *others = ctx;
    (void)worker;
    if (item) atomic_fetch_add(others, 1);
    for (int turns = 0; item == 0 && atomic_load(others) < 99; turns++) {
        CHECK(turns < 100000);
        usleep(100);
    }
}

static void a_thread_that_is_held_up_delays_its_own_item_only(void **state)
{
    (void)state;
    struct pool *p = pool_open(2, 0);
    for (int round = 0; round < 20; round++) {
        _Atomic uint32_t others = 0;
        pool_run(p, item_0_last, &others, 100);
        assert_int_equal(others, 99);
    }
    pool_close(p);
}

static void idle_threads_sleep(void **state)
{
    (void)state;
    struct field f = { .turn = 1 };
    struct pool *p = pool_open(THREADS, 0);
    pool_run(p, add_turn, &f, ITEMS_MAX);
    clock_t before = clock();
    usleep(200000);
    assert_true(clock() - before < CLOCKS_PER_SEC / 20);
    pool_run(p, add_turn, &f, ITEMS_MAX);
    pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_once_and_before_the_end),
        cmocka_unit_test(a_pool_closes_at_any_moment_after_an_operation),
        cmocka_unit_test(a_thread_that_is_held_up_delays_its_own_item_only),
        cmocka_unit_test(idle_threads_sleep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
