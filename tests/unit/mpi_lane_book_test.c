/* tests/unit/mpi_lane_book_test.c - what is announced on a lane is received in that order, whatever
 * becomes of its request, and nothing of another lane counts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "mpi/lane_book.h"

static struct msg_kv head(uint32_t lane, uint32_t number, uint16_t slot)
{
    return (struct msg_kv){ .req = { .slot = slot, .generation = 1 }, .layers = 1, .count = 1,
                            .lane = lane, .number = number };
}

static struct msg_kvend end(uint16_t slot)
{
    return (struct msg_kvend){ .req = { .slot = slot, .generation = 1 } };
}

static enum err announce(struct lane_book *b, uint32_t lane, uint32_t number, uint16_t slot)
{
    struct msg_kv m = head(lane, number, slot);
    return lane_book_announce(b, &m);
}

static bool hold(struct lane_book *b, uint16_t slot)
{
    struct msg_kvend m = end(slot);
    return lane_book_hold(b, &m);
}

/* The slot of the next entry; -1: none. */
static int next(struct lane_book *b, bool arrived, bool is_end)
{
    struct lane_entry *e = lane_book_next(b, arrived);
    if (!e) return -1;
    int slot = e->is_end ? e->end.req.slot : e->kv.req.slot;
    assert_int_equal(e->is_end, is_end);
    free(e);
    return slot;
}

static void several_requests_keep_the_order_of_their_heads(void **state)
{
    struct lane_book b;
    (void)state;
    lane_book_open(&b, 7);
    assert_false(hold(&b, 5));        /* nothing is in front of it */
    assert_int_equal(announce(&b, 7, 1, 1), OK);
    assert_int_equal(announce(&b, 7, 2, 2), OK);
    assert_true(hold(&b, 1));
    assert_int_equal(announce(&b, 7, 3, 3), OK);
    assert_true(hold(&b, 2));
    assert_int_equal(next(&b, false, false), -1);
    assert_int_equal(next(&b, true, false), 1);
    assert_int_equal(next(&b, false, false), -1); /* the end of 1 is behind the KV of 2 */
    assert_int_equal(next(&b, true, false), 2);
    assert_int_equal(next(&b, false, true), 1);
    assert_int_equal(next(&b, false, false), -1);
    assert_int_equal(next(&b, true, false), 3);
    assert_int_equal(next(&b, true, true), 2);
    assert_int_equal(next(&b, true, false), -1);
    assert_false(hold(&b, 3));
    lane_book_close(&b);
}

static void a_late_head_of_an_old_lane_is_refused(void **state)
{
    struct lane_book b;
    (void)state;
    lane_book_open(&b, 2);
    assert_int_equal(announce(&b, 1, 1, 1), ERR_STALE);
    assert_int_equal(announce(&b, 3, 1, 1), ERR_STALE);
    assert_int_equal(b.number, 0);
    assert_int_equal(announce(&b, 2, 1, 1), OK);
    lane_book_close(&b);
}

static void a_gap_or_a_repeat_breaks_the_lane(void **state)
{
    struct lane_book b;
    (void)state;
    lane_book_open(&b, 2);
    assert_int_equal(announce(&b, 2, 2, 1), ERR_FORMAT);
    assert_int_equal(announce(&b, 2, 1, 1), OK);
    assert_int_equal(announce(&b, 2, 1, 1), ERR_FORMAT);
    lane_book_close(&b);
}

static void only_so_many_wait(void **state)
{
    struct lane_book b;
    (void)state;
    lane_book_open(&b, 1);
    for (uint32_t i = 1; i <= LANE_QUEUE_MAX; i++) assert_int_equal(announce(&b, 1, i, 1), OK);
    assert_int_equal(announce(&b, 1, LANE_QUEUE_MAX + 1, 1), ERR_FULL);
    assert_int_equal(next(&b, true, false), 1);
    assert_int_equal(announce(&b, 1, LANE_QUEUE_MAX + 1, 1), OK);
    lane_book_close(&b);
    assert_null(lane_book_next(&b, true));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_requests_keep_the_order_of_their_heads),
        cmocka_unit_test(a_late_head_of_an_old_lane_is_refused),
        cmocka_unit_test(a_gap_or_a_repeat_breaks_the_lane),
        cmocka_unit_test(only_so_many_wait),
    };
    return cmocka_run_group_tests_name("lane book", tests, NULL, NULL);
}
