/* tests/unit/mpi_blocks_test.c - the stream of stored and dropped blocks.
 *
 * Exact while it is whole; not believed for one message longer when it is broken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "mpi/blocks.h"

enum { RANKS = 4, KEYS = 200, EPOCH = 7 };

struct end {                          /* a worker, with the truth about it */
    struct blocks_out out;
    bool has[KEYS];
};

struct world {
    struct blocks_in in;
    struct end ends[RANKS];
    uint64_t dice;
};

static uint32_t roll(struct world *w, uint32_t sides)
{
    w->dice = w->dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(w->dice >> 33) % sides;
}

static struct hash128 key_of(uint32_t i)
{
    return (struct hash128){ i * UINT64_C(0x9e3779b97f4a7c15) + 1, i + 1 };
}

static struct world *world_open(uint64_t seed)
{
    struct world *w = mem_alloc(sizeof *w);
    w->dice = seed;
    blocks_in_open(&w->in, RANKS * KEYS, RANKS);
    for (uint32_t r = 1; r < RANKS; r++) {
        blocks_out_open(&w->ends[r].out);
        blocks_in_up(&w->in, r, EPOCH);
    }
    return w;
}

static void world_close(struct world *w)
{
    for (uint32_t r = 1; r < RANKS; r++) blocks_out_release(&w->ends[r].out);
    blocks_in_release(&w->in);
    free(w);
}

static void change(struct world *w, uint32_t rank)
{
    struct end *e = &w->ends[rank];
    uint32_t i = roll(w, KEYS);
    if (e->has[i]) blocks_out_dropped(&e->out, key_of(i));
    else blocks_out_stored(&e->out, key_of(i), (struct hash128){ 0 });
    e->has[i] = !e->has[i];
}

static struct msg_blocks *take(struct world *w, uint32_t rank)
{
    uint32_t count;
    if (!blocks_out_next(&w->ends[rank].out, &count)) return NULL;
    size_t bytes = sizeof(struct msg_blocks) + count * sizeof(struct block_change);
    struct msg_blocks *m = mem_alloc(bytes);
    msg_head_set(&m->head, MSG_BLOCKS, bytes);
    m->head.epoch = EPOCH;
    blocks_out_take(&w->ends[rank].out, m, count);
    assert_non_null(msg_as_blocks(m, bytes));
    return m;
}

static void answer(struct world *w, uint32_t rank)
{
    free(take(w, rank));              /* on its way before the question came, and lost */
    struct end *e = &w->ends[rank];
    blocks_out_restart(&e->out);
    for (uint32_t i = 0; i < KEYS; i++)
        if (e->has[i]) blocks_out_stored(&e->out, key_of(i), (struct hash128){ 0 });
}

/* Sends what waits; true: rank 0 asks for all keys. */
static bool deliver(struct world *w, uint32_t rank)
{
    struct msg_blocks *m = take(w, rank);
    bool asks = m && blocks_in_changes(&w->in, rank, m);
    free(m);
    return asks;
}

static struct msg_stats stats_of(const struct world *w, uint32_t rank)
{
    struct msg_stats s = { 0 };
    blocks_out_say(&w->ends[rank].out, &s);
    return s;
}

static bool check(struct world *w, uint32_t rank)
{
    struct msg_stats s = stats_of(w, rank);
    return blocks_in_check(&w->in, rank, &s);
}

/* Nothing is believed cached that is not; everything is that is, when `exact`. */
static void compare(struct world *w, uint32_t rank, bool exact)
{
    kv_index_check(w->in.index);
    for (uint32_t i = 0; i < KEYS; i++) {
        uint32_t held[RANKS];
        struct hash128 key = key_of(i);
        kv_index_match(w->in.index, &key, 1, held);
        if (exact) assert_int_equal(held[rank], w->ends[rank].has[i]);
        else assert_int_equal(held[rank], 0);
    }
}

static void a_whole_stream_leaves_the_index_exact(void **state)
{
    (void)state;
    struct world *w = world_open(1);
    for (int round = 0; round < 2000; round++) {
        uint32_t rank = 1 + roll(w, RANKS - 1);
        for (uint32_t n = roll(w, 20); n > 0; n--) change(w, rank);
        assert_false(deliver(w, rank));
        assert_false(check(w, rank));
    }
    for (uint32_t r = 1; r < RANKS; r++) compare(w, r, true);
    assert_int_equal(w->in.refused + w->in.mismatches, 0);
    world_close(w);
}

static void many_changes_go_in_parts_that_fit_a_message(void **state)
{
    (void)state;
    struct world *w = world_open(2);
    int parts = 0;
    for (int i = 0; i < 60000; i++) change(w, 1);
    for (struct msg_blocks *m; (m = take(w, 1)); parts++) {
        assert_true(m->head.bytes <= MSG_BYTES_MAX);
        assert_false(blocks_in_changes(&w->in, 1, m));
        free(m);
    }
    assert_int_equal(parts, 3);
    assert_false(check(w, 1));
    compare(w, 1, true);
    world_close(w);
}

enum breaking { GAP, AGAIN, EPOCH_WRONG, STORED_TWICE, NEVER_STORED, NO_CHANGE, BREAKINGS };

/* One message of rank 1 arrives broken; true: rank 0 asks. */
static bool deliver_broken(struct world *w, enum breaking how)
{
    struct msg_blocks *m = take(w, 1);
    struct block_change *c = (struct block_change *)(m + 1);
    switch (how) {
    case GAP: m->stream_seq += 3; break;
    case AGAIN: assert_false(blocks_in_changes(&w->in, 1, m)); break;
    case EPOCH_WRONG: m->head.epoch = EPOCH + 1; break;
    case STORED_TWICE: c[1] = c[0]; break;
    case NEVER_STORED: c[0] = (struct block_change){ .key = key_of(KEYS + 5) }; break;
    case NO_CHANGE: c[0].stored = 2; break;
    case BREAKINGS: break;
    }
    bool asks = blocks_in_changes(&w->in, 1, m);
    free(m);
    return asks;
}

static void a_broken_stream_is_forgotten_and_asked_for_once_until_all_keys_come(void **state)
{
    (void)state;
    for (int how = 0; how < BREAKINGS; how++) {
        struct world *w = world_open(3);
        for (int i = 0; i < 300; i++) change(w, 1 + roll(w, RANKS - 1));
        for (uint32_t r = 1; r < RANKS; r++) assert_false(deliver(w, r));
        change(w, 1), change(w, 1);
        assert_true(deliver_broken(w, (enum breaking)how));
        assert_int_equal(w->in.refused, 1);
        compare(w, 1, false);
        compare(w, 2, true);
        change(w, 1);
        assert_false(deliver(w, 1));  /* asked already; and not believed */
        assert_false(check(w, 1));
        compare(w, 1, false);
        answer(w, 1);
        assert_false(deliver(w, 1));
        assert_false(check(w, 1));
        compare(w, 1, true);
        change(w, 1);
        assert_false(deliver(w, 1));  /* and on it goes */
        assert_false(check(w, 1));
        compare(w, 1, true);
        world_close(w);
    }
}

static void keys_that_differ_in_number_or_in_kind_are_found_at_the_next_check(void **state)
{
    (void)state;
    for (int what = 0; what < 3; what++) {
        struct world *w = world_open(4);
        for (int i = 0; i < 100; i++) change(w, 1);
        assert_false(deliver(w, 1));
        struct msg_stats s = stats_of(w, 1);
        if (what == 0) s.key_count++;
        if (what == 1) s.keys_xored.hi ^= 1;
        if (what == 2) s.stream_seq++;
        assert_true(blocks_in_check(&w->in, 1, &s));
        assert_int_equal(w->in.mismatches, 1);
        compare(w, 1, false);
        assert_false(check(w, 1));    /* asked once */
        answer(w, 1);
        assert_false(deliver(w, 1));
        compare(w, 1, true);
        world_close(w);
    }
}

static void an_empty_worker_can_say_so(void **state)
{
    (void)state;
    struct world *w = world_open(5);
    struct msg_stats s = { .stream_seq = 9 };
    assert_true(blocks_in_check(&w->in, 1, &s));
    answer(w, 1);
    assert_false(deliver(w, 1));
    assert_false(check(w, 1));
    world_close(w);
}

static void the_lost_and_those_that_never_came_up_are_not_listened_to(void **state)
{
    (void)state;
    struct world *w = world_open(6);
    for (int i = 0; i < 50; i++) change(w, 1);
    assert_false(deliver(w, 1));
    blocks_in_lost(&w->in, 1);
    compare(w, 1, false);
    change(w, 1);
    assert_false(deliver(w, 1));
    assert_false(check(w, 1));
    compare(w, 1, false);
    struct blocks_in unopened = { 0 };
    struct msg_stats s = { .stream_seq = 1 };
    assert_false(blocks_in_check(&unopened, 1, &s));
    assert_false(blocks_in_check(&w->in, RANKS, &s));
    blocks_in_lost(&unopened, 1);
    world_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_stream_leaves_the_index_exact),
        cmocka_unit_test(many_changes_go_in_parts_that_fit_a_message),
        cmocka_unit_test(a_broken_stream_is_forgotten_and_asked_for_once_until_all_keys_come),
        cmocka_unit_test(keys_that_differ_in_number_or_in_kind_are_found_at_the_next_check),
        cmocka_unit_test(an_empty_worker_can_say_so),
        cmocka_unit_test(the_lost_and_those_that_never_came_up_are_not_listened_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
