/* tests/unit/kv_index_test.c - the index against plain tables of what each worker holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv/index.h"
#include "kv/index_sets.h"

enum { RANKS = 70, CHAINS = 12, LENGTH = 40 };

struct world {
    struct kv_index *x;
    uint64_t random;
    struct hash128 keys[CHAINS][LENGTH];  /* chains share their first keys, as prompts do */
    uint32_t held[RANKS][CHAINS];         /* leading keys of a chain that a rank holds     */
    bool up[RANKS];
    uint32_t epoch[RANKS];
    uint64_t seq[RANKS], count[RANKS];
    struct hash128 sum[RANKS];
};

static uint64_t draw(struct world *w, uint64_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (w->random >> 33) % below;
}

static struct hash128 any_key(struct world *w)
{
    struct hash128 k;
    k.lo = draw(w, UINT32_MAX) << 32 | draw(w, UINT32_MAX);
    k.hi = draw(w, UINT32_MAX) << 32 | draw(w, UINT32_MAX);
    return k;
}

static void open_world(struct world *w, uint64_t seed, uint64_t blocks)
{
    memset(w, 0, sizeof *w);
    w->random = seed;
    w->x = kv_index_open(blocks, RANKS);
    for (uint32_t c = 0; c < CHAINS; c++) {
        uint32_t shared = c == 0 ? 0 : (uint32_t)draw(w, LENGTH);
        uint32_t with = c == 0 ? 0 : (uint32_t)draw(w, c);
        for (uint32_t i = 0; i < LENGTH; i++)
            w->keys[c][i] = i < shared ? w->keys[with][i] : any_key(w);
    }
}

static enum err tell(struct world *w, uint32_t rank, struct hash128 key, bool stored)
{
    struct kv_change c = { .key = key, .stored = stored };
    enum err e = kv_index_apply(w->x, rank, w->epoch[rank], w->seq[rank], &c, 1);
    w->seq[rank]++;
    w->count[rank] += stored ? 1 : (uint64_t)-1;
    w->sum[rank].lo ^= key.lo;
    w->sum[rank].hi ^= key.hi;
    return e;
}

/* Every chain of which this key is part is known that far: sharing makes lengths follow. */
static void set_length(struct world *w, uint32_t rank, uint32_t chain, uint32_t at, bool stored)
{
    for (uint32_t c = 0; c < CHAINS; c++)
        if (hash_equal(w->keys[c][at], w->keys[chain][at]))
            w->held[rank][c] = stored ? at + 1 : at;
}

static bool child_is_held(const struct world *w, uint32_t rank, uint32_t chain, uint32_t at)
{
    for (uint32_t c = 0; c < CHAINS; c++)
        if (hash_equal(w->keys[c][at], w->keys[chain][at]) && w->held[rank][c] > at + 1)
            return true;
    return false;
}

static void come_up(struct world *w, uint32_t rank)
{
    w->up[rank] = true;
    w->epoch[rank]++;
    w->seq[rank] = 1 + draw(w, 5);
    w->count[rank] = 0;
    w->sum[rank] = (struct hash128){ 0 };
    memset(w->held[rank], 0, sizeof w->held[rank]);
    kv_index_up(w->x, rank, w->epoch[rank], w->seq[rank]);
}

static void go_down(struct world *w, uint32_t rank)
{
    w->up[rank] = false;
    memset(w->held[rank], 0, sizeof w->held[rank]);
    kv_index_lost(w->x, rank);
}

static void compare(struct world *w)
{
    uint32_t got[RANKS];
    for (uint32_t c = 0; c < CHAINS; c++) {
        uint32_t length = 1 + (uint32_t)draw(w, LENGTH), most = 0;
        uint32_t best = kv_index_match(w->x, w->keys[c], length, got);
        for (uint32_t r = 0; r < RANKS; r++) {
            uint32_t want = w->held[r][c] < length ? w->held[r][c] : length;
            if (want > most) most = want;
            assert_int_equal(got[r], want);
        }
        assert_int_equal(best, most);
    }
    for (uint32_t r = 1; r < RANKS; r++)
        if (w->up[r]) assert_true(kv_index_agrees(w->x, r, w->count[r], w->sum[r]));
    kv_index_check(w->x);
}

static void some_change(struct world *w, int deaths_in_1000)
{
    uint32_t rank = 1 + (uint32_t)draw(w, RANKS - 1), chain = (uint32_t)draw(w, CHAINS);
    if (!w->up[rank]) {
        come_up(w, rank);
    } else if (draw(w, 1000) < (uint64_t)deaths_in_1000) {
        go_down(w, rank);
    } else if (draw(w, 3) && w->held[rank][chain] < LENGTH) {
        uint32_t at = w->held[rank][chain];
        assert_int_equal(tell(w, rank, w->keys[chain][at], true), OK);
        set_length(w, rank, chain, at, true);
    } else if (w->held[rank][chain] > 0) {
        uint32_t at = w->held[rank][chain] - 1;
        if (child_is_held(w, rank, chain, at)) return;
        assert_int_equal(tell(w, rank, w->keys[chain][at], false), OK);
        set_length(w, rank, chain, at, false);
    }
}

static void a_lookup_finds_what_each_worker_holds(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct world w;
        open_world(&w, seed, CHAINS * LENGTH);
        for (int i = 0; i < 12000; i++) {
            some_change(&w, seed % 2 ? 20 : 1);
            if (i % 400 == 0) compare(&w);
        }
        compare(&w);
        struct kv_index_stats s;
        kv_index_stats(w.x, &s);
        assert_int_equal(s.refused + s.stale + s.broken + s.mismatches, 0);
        kv_index_close(w.x);
    }
}

static void a_worker_that_returns_often_is_never_taken_for_an_earlier_self(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 9, CHAINS * LENGTH);
    for (int life = 0; life < 200; life++) {
        come_up(&w, 1);
        for (uint32_t r = 2; r < 4; r++)
            if (!w.up[r]) come_up(&w, r);
        uint32_t chain = (uint32_t)(life % CHAINS), at = w.held[2][chain];
        if (at < LENGTH) {
            assert_int_equal(tell(&w, 2, w.keys[chain][at], true), OK);
            set_length(&w, 2, chain, at, true);
        }
        for (uint32_t i = w.held[1][chain]; i < 5; i++) {
            assert_int_equal(tell(&w, 1, w.keys[chain][i], true), OK);
            set_length(&w, 1, chain, i, true);
        }
        compare(&w);
    }
    kv_index_close(w.x);
}

static void entries_of_the_lost_make_room(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 3, LENGTH);
    come_up(&w, 1);
    for (uint32_t i = 0; i < LENGTH; i++) assert_int_equal(tell(&w, 1, w.keys[0][i], true), OK);
    go_down(&w, 1);
    come_up(&w, 2);
    struct hash128 other[LENGTH];
    for (uint32_t i = 0; i < LENGTH; i++) {
        other[i] = any_key(&w);
        assert_int_equal(tell(&w, 2, other[i], true), OK);
    }
    uint32_t held[RANKS];
    assert_int_equal(kv_index_match(w.x, other, LENGTH, held), LENGTH);
    struct kv_index_stats s;
    kv_index_stats(w.x, &s);
    assert_int_equal(s.refused, 0);
    assert_int_equal(s.keys, LENGTH);
    kv_index_check(w.x);
    kv_index_close(w.x);
}

static void a_full_index_refuses_counts_and_still_agrees(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 4, 10);
    come_up(&w, 1);
    for (uint32_t i = 0; i < LENGTH; i++) assert_int_equal(tell(&w, 1, w.keys[0][i], true), OK);
    struct kv_index_stats s;
    kv_index_stats(w.x, &s);
    assert_int_equal(s.keys, 10);
    assert_int_equal(s.refused, LENGTH - 10);
    uint32_t held[RANKS];
    assert_int_equal(kv_index_match(w.x, w.keys[0], LENGTH, held), 10);
    assert_true(kv_index_agrees(w.x, 1, w.count[1], w.sum[1]));
    for (uint32_t i = LENGTH; i-- > 0;)
        assert_int_equal(tell(&w, 1, w.keys[0][i], false), OK);
    assert_true(kv_index_agrees(w.x, 1, 0, (struct hash128){ 0 }));
    kv_index_check(w.x);
    kv_index_close(w.x);
}

static void a_stream_that_cannot_be_is_not_believed(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 5, 1000);
    const struct hash128 *k = w.keys[0];
    struct kv_change twice[2] = { { .key = k[0], .stored = 1 }, { .key = k[0], .stored = 1 } };
    struct kv_change good = { .key = k[0], .stored = 1 };
    struct kv_change odd = { .key = k[0], .stored = 2 };
    struct kv_change unknown = { .key = k[1], .stored = 0 };
    uint32_t held[RANKS];
    assert_int_equal(kv_index_apply(w.x, 1, 1, 1, &good, 1), ERR_STALE);     /* not up     */
    assert_int_equal(kv_index_apply(w.x, RANKS, 1, 1, &good, 1), ERR_STALE); /* no rank    */
    kv_index_up(w.x, 1, 7, 1);
    assert_int_equal(kv_index_apply(w.x, 1, 6, 1, &good, 1), ERR_STALE);     /* epoch      */
    assert_int_equal(kv_index_apply(w.x, 1, 7, 1, &good, 1), OK);
    assert_int_equal(kv_index_apply(w.x, 1, 7, 1, &good, 1), ERR_STALE);     /* seen       */
    assert_int_equal(kv_index_match(w.x, k, 2, held), 1);
    assert_int_equal(kv_index_apply(w.x, 1, 7, 3, &good, 1), ERR_FORMAT);    /* a gap      */
    assert_int_equal(kv_index_match(w.x, k, 2, held), 0);
    assert_int_equal(kv_index_apply(w.x, 1, 7, 2, &good, 1), ERR_STALE);
    assert_false(kv_index_agrees(w.x, 1, 0, (struct hash128){ 0 }));
    kv_index_up(w.x, 1, 7, 1);
    assert_int_equal(kv_index_apply(w.x, 1, 7, 1, twice, 2), ERR_FORMAT);
    kv_index_up(w.x, 1, 7, 1);
    assert_int_equal(kv_index_apply(w.x, 1, 7, 1, &odd, 1), ERR_FORMAT);
    kv_index_up(w.x, 1, 7, 1);
    assert_int_equal(kv_index_apply(w.x, 1, 7, 1, &unknown, 1), ERR_FORMAT);
    struct kv_index_stats s;
    kv_index_stats(w.x, &s);
    assert_int_equal(s.broken, 4);
    assert_int_equal(s.stale, 5);
    assert_int_equal(s.mismatches, 1);
    kv_index_check(w.x);
    kv_index_close(w.x);
}

static void count_and_xor_show_a_difference(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 6, 1000);
    come_up(&w, 1);
    assert_int_equal(tell(&w, 1, w.keys[0][0], true), OK);
    assert_true(kv_index_agrees(w.x, 1, 1, w.keys[0][0]));
    assert_false(kv_index_agrees(w.x, 1, 1, w.keys[1][LENGTH - 1]));
    assert_false(kv_index_agrees(w.x, 1, 2, w.keys[0][0]));
    kv_index_close(w.x);
}

static void without_room_for_sets_everybody_is_still_accounted_for(void **state)
{
    (void)state;
    struct sets s;
    uint64_t words[3] = { 0 };
    sets_open(&s, 2);
    for (uint32_t r = 1; r <= 8; r++) s.live[r] = (uint16_t)r;
    for (uint32_t r = 1; r <= 5; r++) assert_true(set_add(&s, &words[0], r));
    for (uint32_t r = 2; r <= 6; r++) assert_true(set_add(&s, &words[1], r));
    for (uint32_t r = 3; r <= 6; r++) assert_true(set_add(&s, &words[2], r));
    assert_false(set_add(&s, &words[2], 7));
    assert_true(set_add(&s, &words[2], 2));
    assert_true(words[2] == words[1]);       /* equal sets are one */
    assert_true(set_remove(&s, &words[0], 1));
    assert_true(set_remove(&s, &words[1], 2));
    assert_true(set_remove(&s, &words[2], 2));
    assert_int_equal(s.used, 0);
    sets_close(&s);
}

static void ten_million_blocks_take_at_most_64_bytes_each(void **state)
{
    (void)state;
    struct kv_index *x = kv_index_open(10000000, 1025);
    struct kv_index_stats s;
    kv_index_stats(x, &s);
    assert_true(s.bytes <= UINT64_C(640000000));
    kv_index_close(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lookup_finds_what_each_worker_holds),
        cmocka_unit_test(a_worker_that_returns_often_is_never_taken_for_an_earlier_self),
        cmocka_unit_test(entries_of_the_lost_make_room),
        cmocka_unit_test(a_full_index_refuses_counts_and_still_agrees),
        cmocka_unit_test(a_stream_that_cannot_be_is_not_believed),
        cmocka_unit_test(count_and_xor_show_a_difference),
        cmocka_unit_test(without_room_for_sets_everybody_is_still_accounted_for),
        cmocka_unit_test(ten_million_blocks_take_at_most_64_bytes_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
