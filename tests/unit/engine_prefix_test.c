/* tests/unit/engine_prefix_test.c - a prefix's KV goes from one engine's cache into another's. */
#include "engine_world.h"

enum { TOKEN_BYTES = 2 * MOCK_CELL, PREFIX = 32 };

static struct world from, to;
static uint8_t kv[MOCK_LAYERS * PREFIX * TOKEN_BYTES];

static enum err hold(struct world *w, struct track *t, uint32_t *tokens)
{
    struct seq_spec spec = {
        .req = t->req, .mode = SEQ_PREFILL, .ids = t->ids, .id_count = t->id_count,
        .prompt_count = t->prompt_count, .params = t->params,
    };
    return engine_prefix_hold(w->e, &spec, tokens);
}

/* `from` has computed 40 tokens; 33 of them name the four blocks that are wanted. */
static void open_both(void)
{
    struct engine_config c = world_config(16);
    uint32_t tokens = 0;
    world_open(&from, &c);
    world_open(&to, &c);
    assert_int_equal(engine_kv_shape(from.e)->token_bytes, TOKEN_BYTES);
    world_request(&from, 0, SEQ_LOCAL, 1, 40, world_params(1));
    world_run(&from, 1);
    struct track *t = world_new(&from, 1, SEQ_PREFILL, world_params(1));
    world_prompt(t, 1, PREFIX + 1);
    assert_int_equal(hold(&from, t, &tokens), OK);
    assert_int_equal(tokens, PREFIX);
    assert_int_equal(hold(&from, t, &tokens), ERR_STALE);
    assert_true(engine_kv_read(from.e, t->req, 0, MOCK_LAYERS, 0, PREFIX, kv));
    assert_false(engine_kv_read(from.e, t->req, 0, MOCK_LAYERS, 0, PREFIX + 1, kv));
}

static void close_both(void)
{
    world_drop(&from, &from.tracks[1]);
    world_close(&from);
    world_close(&to);
}

/* Brings the first `count` tokens of the last layer, and all of the others; what is kept. */
static uint32_t bring(uint32_t count)
{
    struct track *t = world_new(&to, 9, SEQ_IMPORT, world_params(1));
    uint32_t held = 99, last = MOCK_LAYERS - 1;
    world_prompt(t, 1, PREFIX);
    assert_int_equal(world_add(&to, t, 0, &held), OK);
    assert_int_equal(held, 0);
    const uint64_t layer = PREFIX * TOKEN_BYTES;
    assert_int_equal(engine_import(to.e, t->req, 0, last, 0, PREFIX, kv, last * layer), OK);
    if (count == PREFIX)
        assert_int_equal(engine_import(to.e, t->req, last, 1, 0, count, kv + last * layer, layer),
                         OK);
    uint32_t kept = engine_prefix_keep(to.e, t->req);
    assert_int_equal(engine_prefix_keep(to.e, t->req), 0);
    assert_false(engine_drop(to.e, t->req));
    world_check(&to);
    return kept;
}

static void what_was_brought_is_found_and_computes_the_same(void **state)
{
    (void)state;
    open_both();
    assert_int_equal(bring(PREFIX), PREFIX);
    assert_int_equal(to.live_count, PREFIX / WORLD_BLOCK);
    struct track *t = world_request(&to, 2, SEQ_LOCAL, 1, 40, world_params(6));
    world_run(&to, 1);                /* the mock looks at the history of every position */
    assert_int_equal(t->tokens, 6);
    assert_int_equal(t->cached, PREFIX);
    close_both();
}

static void what_has_not_arrived_in_every_layer_is_not_kept(void **state)
{
    (void)state;
    open_both();
    assert_int_equal(bring(0), 0);
    assert_int_equal(to.live_count, 0);
    struct track *t = world_request(&to, 2, SEQ_LOCAL, 1, 40, world_params(3));
    world_run(&to, 1);
    assert_int_equal(t->cached, 0);
    close_both();
}

static void a_held_prefix_is_not_evicted_and_an_unknown_one_cannot_be_held(void **state)
{
    (void)state;
    open_both();
    uint32_t tokens;
    struct track *t = world_new(&from, 3, SEQ_PREFILL, world_params(1));
    world_prompt(t, 5, 30);
    assert_int_equal(hold(&from, t, &tokens), ERR_GONE);
    assert_false(engine_drop(from.e, t->req));
    world_request(&from, 4, SEQ_LOCAL, 7, 80, world_params(1));
    world_run(&from, 2);              /* takes all blocks but those held */
    uint8_t again[sizeof kv];
    assert_true(engine_kv_read(from.e, from.tracks[1].req, 0, MOCK_LAYERS, 0, PREFIX, again));
    assert_memory_equal(again, kv, sizeof kv);
    close_both();
}

static void a_prefix_that_others_computed_meanwhile_is_kept_once(void **state)
{
    (void)state;
    open_both();
    struct track *t = world_new(&to, 9, SEQ_IMPORT, world_params(1));
    uint32_t held;
    world_prompt(t, 1, PREFIX);
    assert_int_equal(world_add(&to, t, 0, &held), OK);
    world_request(&to, 2, SEQ_LOCAL, 1, 40, world_params(2));
    world_run(&to, 1);                /* it was late: the sequence computed */
    assert_int_equal(engine_import(to.e, t->req, 0, MOCK_LAYERS, 0, PREFIX, kv, sizeof kv), OK);
    assert_int_equal(engine_prefix_keep(to.e, t->req), PREFIX);
    assert_int_equal(to.live_count, 5);
    close_both();
}

/* A share of less than one block is not "no limit". */
static void at_a_tiny_threshold_nothing_unused_is_kept(void **state)
{
    (void)state;
    open_both();
    assert_int_equal(bring(PREFIX), PREFIX);
    engine_cache_limit(to.e, &(struct engine_cache_limits){ .memory_threshold = 1e-6 });
    assert_true(to.live_count <= 1);
    close_both();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_brought_is_found_and_computes_the_same),
        cmocka_unit_test(what_has_not_arrived_in_every_layer_is_not_kept),
        cmocka_unit_test(a_held_prefix_is_not_evicted_and_an_unknown_one_cannot_be_held),
        cmocka_unit_test(a_prefix_that_others_computed_meanwhile_is_kept_once),
        cmocka_unit_test(at_a_tiny_threshold_nothing_unused_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
