/* tests/unit/kv_pool_test.c - the block pool: counts, sharing, eviction order, collisions, and a
 * random walk that checks every invariant after each operation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv/key.h"
#include "kv/pool.h"

enum { BLOCK_TOKENS = 4, EVENTS_MAX = 256 };

static const struct hash_secret SECRET = { 1, 2 };
static const struct hash128 ROOT = { 77, 88 };

struct log {                          /* what the sink was told */
    uint32_t count;
    struct { bool stored; struct hash128 key, parent; } events[EVENTS_MAX];
};

static void log_event(struct log *l, bool stored, struct hash128 key, struct hash128 parent)
{
    uint32_t i = l->count++ % EVENTS_MAX;
    l->events[i].stored = stored;
    l->events[i].key = key;
    l->events[i].parent = parent;
}

static void on_stored(void *ctx, struct hash128 key, struct hash128 parent)
{
    log_event(ctx, true, key, parent);
}

static void on_dropped(void *ctx, struct hash128 key)
{
    log_event(ctx, false, key, key);
}

static struct kv_pool *open_pool(uint32_t blocks, struct log *log)
{
    memset(log, 0, sizeof *log);
    struct kv_pool_sink sink = { log, on_stored, on_dropped };
    return kv_pool_open(blocks, BLOCK_TOKENS, &sink);
}

static void assert_counts(const struct kv_pool *p, uint32_t free_blocks, uint32_t held,
                          uint32_t cached)
{
    struct kv_pool_counts c = kv_pool_counts(p);
    assert_int_equal(c.free, free_blocks);
    assert_int_equal(c.held, held);
    assert_int_equal(c.cached, cached);
    assert_int_equal(c.free + c.held + c.cached, c.total);
    kv_pool_check(p);
}

/* A chain of `count` blocks whose ids are `first`, `first` + 1, ... */
struct chain {
    uint32_t count, blocks[16];
    struct hash128 keys[16];
    int32_t ids[16 * BLOCK_TOKENS];
};

static void chain_name(struct chain *c, uint32_t count, int32_t first)
{
    c->count = count;
    for (uint32_t i = 0; i < count * BLOCK_TOKENS; i++) c->ids[i] = first + (int32_t)i;
    for (uint32_t i = 0; i < count; i++)
        c->keys[i] = kv_key_next(SECRET, i ? c->keys[i - 1] : ROOT, c->ids + i * BLOCK_TOKENS,
                                 BLOCK_TOKENS);
}

static uint32_t chain_parent(const struct chain *c, uint32_t i)
{
    return i ? c->blocks[i - 1] : KV_BLOCK_NONE;
}

static uint32_t chain_store(struct kv_pool *p, struct chain *c, uint32_t i)
{
    return kv_pool_store(p, c->blocks[i], chain_parent(c, i), c->keys[i],
                         i ? c->keys[i - 1] : ROOT, c->ids + i * BLOCK_TOKENS);
}

static void chain_make(struct kv_pool *p, struct chain *c, uint32_t count, int32_t first)
{
    chain_name(c, count, first);
    for (uint32_t i = 0; i < count; i++) {
        c->blocks[i] = kv_pool_take(p);
        assert_int_not_equal(c->blocks[i], KV_BLOCK_NONE);
        c->blocks[i] = chain_store(p, c, i);
        assert_int_not_equal(c->blocks[i], KV_BLOCK_NONE);
    }
}

/* How many leading blocks can be found. */
static uint32_t chain_found(const struct kv_pool *p, const struct chain *c)
{
    uint32_t parent = KV_BLOCK_NONE;
    for (uint32_t i = 0; i < c->count; i++) {
        parent = kv_pool_find(p, c->keys[i], parent, c->ids + i * BLOCK_TOKENS);
        if (parent == KV_BLOCK_NONE) return i;
    }
    return c->count;
}

static void all_blocks_can_be_taken_once(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(5, &log);
    uint32_t got[5];
    bool seen[5] = { false };
    assert_counts(p, 5, 0, 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(kv_pool_reached(p), i);
        got[i] = kv_pool_take(p);
        assert_true(got[i] < 5 && !seen[got[i]]);
        seen[got[i]] = true;
    }
    assert_int_equal(kv_pool_take(p), KV_BLOCK_NONE);
    assert_counts(p, 0, 5, 0);
    assert_int_equal(kv_pool_reached(p), 5);
    kv_pool_release(p, got, 5);
    assert_counts(p, 5, 0, 0);
    assert_int_equal(log.count, 0);
    kv_pool_close(p);
}

static void a_stored_block_stays_findable_after_release_and_is_shared(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(8, &log);
    struct chain c;
    chain_make(p, &c, 3, 100);
    assert_int_equal(log.count, 3);
    assert_true(hash_equal(log.events[0].parent, ROOT));
    assert_true(hash_equal(log.events[2].parent, c.keys[1]));
    kv_pool_release(p, c.blocks, 3);
    assert_counts(p, 5, 0, 3);
    assert_int_equal(chain_found(p, &c), 3);
    for (int i = 0; i < 3; i++) kv_pool_hold(p, c.blocks[i]);
    for (int i = 0; i < 3; i++) kv_pool_hold(p, c.blocks[i]);
    assert_counts(p, 5, 3, 0);
    kv_pool_release(p, c.blocks, 3);
    assert_counts(p, 5, 3, 0);
    assert_true(kv_pool_is_held(p, c.blocks[0]));
    kv_pool_release(p, c.blocks, 3);
    assert_counts(p, 5, 0, 3);
    kv_pool_close(p);
}

static void eviction_takes_the_oldest_chain_from_its_tail(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(6, &log);
    struct chain old, young;
    chain_make(p, &old, 3, 0);
    chain_make(p, &young, 3, 1000);
    kv_pool_release(p, old.blocks, 3);
    kv_pool_release(p, young.blocks, 3);
    assert_counts(p, 0, 0, 6);
    for (uint32_t left = 3; left--;) {
        uint32_t first_event = log.count;
        assert_int_equal(kv_pool_take(p), old.blocks[left]);
        assert_int_equal(log.count, first_event + 1);
        assert_false(log.events[first_event].stored);
        assert_true(hash_equal(log.events[first_event].key, old.keys[left]));
        assert_int_equal(chain_found(p, &old), left);
        assert_int_equal(chain_found(p, &young), 3);
    }
    assert_int_equal(kv_pool_take(p), young.blocks[2]);
    assert_int_equal(chain_found(p, &young), 2);
    kv_pool_check(p);
    kv_pool_close(p);
}

static void use_makes_a_chain_young_again(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(4, &log);
    struct chain a, b;
    chain_make(p, &a, 2, 0);
    chain_make(p, &b, 2, 1000);
    kv_pool_release(p, a.blocks, 2);
    kv_pool_release(p, b.blocks, 2);
    kv_pool_hold(p, a.blocks[0]);
    kv_pool_hold(p, a.blocks[1]);
    kv_pool_release(p, a.blocks, 2);
    kv_pool_take(p);
    kv_pool_take(p);
    assert_int_equal(chain_found(p, &a), 2);
    assert_int_equal(chain_found(p, &b), 0);
    kv_pool_close(p);
}

static void equal_contents_are_kept_once(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(8, &log);
    struct chain a, b;
    chain_make(p, &a, 2, 0);
    chain_make(p, &b, 3, 0);          /* the same prefix, computed a second time */
    assert_int_equal(b.blocks[0], a.blocks[0]);
    assert_int_equal(b.blocks[1], a.blocks[1]);
    assert_int_equal(log.count, 3);
    assert_counts(p, 5, 3, 0);
    /* The first goes away; the second still holds the whole chain. */
    kv_pool_release(p, a.blocks, 2);
    assert_counts(p, 5, 3, 0);
    kv_pool_release(p, b.blocks, 3);
    assert_counts(p, 5, 0, 3);
    kv_pool_close(p);
}

static void an_equal_key_with_other_ids_or_another_parent_is_not_the_block(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(8, &log);
    struct chain a, b;
    chain_make(p, &a, 2, 0);
    int32_t other[BLOCK_TOKENS] = { 9, 9, 9, 9 };
    assert_int_equal(kv_pool_find(p, a.keys[0], KV_BLOCK_NONE, other), KV_BLOCK_NONE);
    assert_int_equal(kv_pool_find(p, a.keys[1], KV_BLOCK_NONE, a.ids + BLOCK_TOKENS),
                     KV_BLOCK_NONE);
    chain_name(&b, 1, 500);
    b.keys[0] = a.keys[0];            /* a collision */
    b.blocks[0] = kv_pool_take(p);
    assert_int_equal(chain_store(p, &b, 0), KV_BLOCK_NONE);
    assert_int_equal(chain_found(p, &a), 2);
    kv_pool_release(p, b.blocks, 1);
    assert_counts(p, 6, 2, 0);
    kv_pool_close(p);
}

static void keys_that_fall_on_one_place_are_all_found(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(8, &log);
    struct chain c[6];
    for (int i = 0; i < 6; i++) {
        chain_name(&c[i], 1, 100 * i);
        c[i].keys[0] = (struct hash128){ i < 4 ? 15 : 0, (uint64_t)i };
        c[i].blocks[0] = kv_pool_take(p);
        assert_int_equal(chain_store(p, &c[i], 0), c[i].blocks[0]);
    }
    for (int i = 0; i < 6; i++) kv_pool_release(p, c[i].blocks, 1);
    for (int gone = 0; gone < 8; gone++) {
        kv_pool_take(p);
        kv_pool_check(p);
        for (int i = 0; i < 6; i++)
            assert_int_equal(chain_found(p, &c[i]), gone >= 2 && i <= gone - 2 ? 0 : 1);
    }
    kv_pool_close(p);
}

struct tally { uint32_t count, firsts; uint64_t xored; };

static void tally_key(void *ctx, struct hash128 key, struct hash128 parent)
{
    struct tally *t = ctx;
    t->count++;
    t->firsts += parent.lo == 0 && parent.hi == 0;
    t->xored ^= key.lo;
}

static void each_names_what_stored_and_dropped_have_told(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(16, &log);
    struct chain a, b, c;
    chain_make(p, &a, 5, 0);
    chain_make(p, &b, 4, 100);
    kv_pool_release(p, a.blocks, a.count);
    chain_make(p, &c, 9, 200);        /* two of a's go */
    struct tally told = { 0 }, named = { 0 };
    for (uint32_t i = 0; i < log.count; i++) {
        told.count += log.events[i].stored ? 1 : (uint32_t)-1;
        told.xored ^= log.events[i].key.lo;
    }
    kv_pool_each(p, &named, tally_key);
    assert_int_equal(named.count, 16);
    assert_int_equal(named.count, told.count);
    assert_int_equal(named.xored, told.xored);
    assert_int_equal(named.firsts, 3);
    kv_pool_release(p, b.blocks, b.count);
    kv_pool_release(p, c.blocks, c.count);
    kv_pool_clear(p);
    named = (struct tally){ 0 };
    kv_pool_each(p, &named, tally_key);
    assert_int_equal(named.count, 0);
    kv_pool_close(p);
}

static void clear_forgets_cached_blocks_and_no_others(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(8, &log);
    struct chain a, b;
    chain_make(p, &a, 3, 0);
    chain_make(p, &b, 2, 1000);
    kv_pool_release(p, a.blocks, 3);
    kv_pool_clear(p);
    assert_counts(p, 6, 2, 0);
    assert_int_equal(chain_found(p, &a), 0);
    assert_int_equal(chain_found(p, &b), 2);
    kv_pool_close(p);
}

static void a_limit_on_cached_blocks_drops_the_oldest_tail_first(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(12, &log);
    struct chain a, b;
    chain_make(p, &a, 3, 0);
    chain_make(p, &b, 4, 1000);
    kv_pool_release(p, a.blocks, 3);
    kv_pool_limit(p, &(struct kv_pool_limits){ .cached_max = 2 });
    assert_counts(p, 6, 4, 2);
    assert_int_equal(chain_found(p, &a), 2);
    kv_pool_release(p, b.blocks, 4);  /* a limit also holds for what comes later */
    assert_counts(p, 10, 0, 2);
    assert_int_equal(chain_found(p, &a), 0);
    assert_int_equal(chain_found(p, &b), 2);
    kv_pool_close(p);
}

static void above_the_threshold_only_what_is_held_stays(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(10, &log);
    struct chain a, b;
    chain_make(p, &a, 3, 0);
    chain_make(p, &b, 5, 1000);
    kv_pool_limit(p, &(struct kv_pool_limits){ .used_max = 4 });
    kv_pool_release(p, a.blocks, 3);  /* 5 are held: more than 4 are in use without them */
    assert_counts(p, 5, 5, 0);
    kv_pool_release(p, b.blocks, 5);
    assert_counts(p, 6, 0, 4);
    assert_int_equal(chain_found(p, &b), 4);
    kv_pool_close(p);
}

static void blocks_unused_for_too_long_are_dropped(void **state)
{
    (void)state;
    struct log log;
    struct kv_pool *p = open_pool(10, &log);
    struct chain a, b;
    kv_pool_limit(p, &(struct kv_pool_limits){ .ttl_ns = 100 });
    assert_true(kv_pool_tick(p, 1000) == UINT64_MAX);
    chain_make(p, &a, 3, 0);
    chain_make(p, &b, 2, 1000);
    kv_pool_release(p, a.blocks, 3);
    assert_true(kv_pool_tick(p, 1060) == 1100);
    kv_pool_release(p, b.blocks, 2);
    assert_true(kv_pool_tick(p, 1100) == 1160);
    assert_counts(p, 8, 0, 2);
    assert_int_equal(chain_found(p, &a), 0);
    assert_int_equal(log.count, 8);   /* 5 stored, 3 dropped */
    kv_pool_tick(p, 1160);
    assert_counts(p, 10, 0, 0);
    kv_pool_close(p);
}

/* Sequences that share prefixes come, grow and go in random order in a pool that is too small. */
static void any_order_of_operations_keeps_the_books_right(void **state)
{
    (void)state;
    enum { HOLDERS = 6, ROUNDS = 20000 };
    struct log log;
    struct kv_pool *p = open_pool(24, &log);
    struct chain live[HOLDERS] = { { 0 } };
    uint32_t held[HOLDERS] = { 0 };
    srand(7);
    for (int round = 0; round < ROUNDS; round++) {
        int h = rand() % HOLDERS;
        struct chain *c = &live[h];
        if (c->count == 0) {
            chain_name(c, 1 + (uint32_t)rand() % 6, rand() % 3 * 1000);
            if (rand() % 2) c->ids[4] = 5000 + rand() % 3;     /* branches after one block */
            for (uint32_t i = 1; i < c->count; i++)
                c->keys[i] = kv_key_next(SECRET, c->keys[i - 1], c->ids + i * BLOCK_TOKENS,
                                         BLOCK_TOKENS);
            for (uint32_t i = 0, n = chain_found(p, c); i < n; i++) {
                c->blocks[i] = kv_pool_find(p, c->keys[i], chain_parent(c, i),
                                            c->ids + i * BLOCK_TOKENS);
                kv_pool_hold(p, c->blocks[i]);
                held[h]++;
            }
        } else if (held[h] < c->count && rand() % 3) {
            uint32_t i = held[h], block = kv_pool_take(p);
            if (block == KV_BLOCK_NONE) continue;
            c->blocks[i] = block;
            c->blocks[i] = chain_store(p, c, i);
            assert_int_not_equal(c->blocks[i], KV_BLOCK_NONE);
            held[h]++;
        } else {
            kv_pool_release(p, c->blocks, held[h]);
            c->count = held[h] = 0;
        }
        if (rand() % 500 == 0) kv_pool_clear(p);
        kv_pool_tick(p, (uint64_t)round);
        if (rand() % 200 == 0)
            kv_pool_limit(p, &(struct kv_pool_limits){
                .ttl_ns = (uint64_t)rand() % 300, .cached_max = (uint32_t)rand() % 12,
                .used_max = rand() % 2 ? (uint32_t)rand() % 24 : 0 });
        kv_pool_check(p);
    }
    for (int h = 0; h < HOLDERS; h++) kv_pool_release(p, live[h].blocks, held[h]);
    struct kv_pool_counts c = kv_pool_counts(p);
    assert_int_equal(c.held, 0);
    kv_pool_check(p);
    kv_pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_blocks_can_be_taken_once),
        cmocka_unit_test(a_stored_block_stays_findable_after_release_and_is_shared),
        cmocka_unit_test(eviction_takes_the_oldest_chain_from_its_tail),
        cmocka_unit_test(use_makes_a_chain_young_again),
        cmocka_unit_test(equal_contents_are_kept_once),
        cmocka_unit_test(an_equal_key_with_other_ids_or_another_parent_is_not_the_block),
        cmocka_unit_test(keys_that_fall_on_one_place_are_all_found),
        cmocka_unit_test(each_names_what_stored_and_dropped_have_told),
        cmocka_unit_test(clear_forgets_cached_blocks_and_no_others),
        cmocka_unit_test(a_limit_on_cached_blocks_drops_the_oldest_tail_first),
        cmocka_unit_test(above_the_threshold_only_what_is_held_stays),
        cmocka_unit_test(blocks_unused_for_too_long_are_dropped),
        cmocka_unit_test(any_order_of_operations_keeps_the_books_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
