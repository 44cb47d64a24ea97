/* tests/unit/engine_engine_test.c - the engine's promises, one by one, on the mock backend.
 * engine_stress_test.c has them all at once. */
#include "common/clock.h"
#include "engine/null_backend.h"
#include "engine_world.h"

static void a_request_generates_until_max_tokens(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    struct track *t = world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(9));
    world_run(&w, 1);
    assert_int_equal(t->tokens, 9);
    assert_int_equal(t->finish, FINISH_LENGTH);
    assert_int_equal(t->cached, 0);
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_int_equal(s.output_tokens, 9);
    assert_int_equal(s.prompt_tokens, 20);
    assert_int_equal(s.steps, 9);
    assert_int_equal(s.blocks_cached, 28 / WORLD_BLOCK);   /* generated blocks too */
    world_close(&w);
}

static void a_stop_id_ends_it_unless_ignored_or_too_early(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    world_open(&w, &c);
    struct track *plain = world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(30));
    world_run(&w, 1);
    int32_t third = plain->ids[22];
    struct sampling p = world_params(30);
    p.stop_ids[0] = third;
    p.stop_id_count = p.eos_id_count = 1;
    struct track *stopped = world_request(&w, 1, SEQ_LOCAL, 1, 20, p);
    p.flags = SAMPLING_IGNORE_EOS;
    struct track *ignored = world_request(&w, 2, SEQ_LOCAL, 1, 20, p);
    p.flags = 0;
    p.min_tokens = 3;
    struct track *early = world_request(&w, 3, SEQ_LOCAL, 1, 20, p);
    p.eos_id_count = 0;               /* a stop id of the request: never ignored */
    p.min_tokens = 0;
    p.flags = SAMPLING_IGNORE_EOS;
    struct track *own = world_request(&w, 4, SEQ_LOCAL, 1, 20, p);
    world_run(&w, 5);
    assert_int_equal(stopped->finish, FINISH_STOP);
    assert_true(stopped->tokens <= 3);
    assert_int_equal(stopped->ids[stopped->id_count - 1], third);
    assert_int_equal(ignored->tokens, 30);
    assert_true(early->tokens > 3);
    assert_int_equal(own->finish, FINISH_STOP);
    world_close(&w);
}

static void the_context_ends_a_sequence_with_length(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(16);
    world_open(&w, &c);
    struct track *full = world_request(&w, 0, SEQ_LOCAL, 1, 127, world_params(100));
    struct track *near = world_request(&w, 1, SEQ_LOCAL, 2, 120, world_params(UINT32_MAX));
    world_run(&w, 2);
    assert_int_equal(full->tokens, 1);
    assert_int_equal(near->tokens, 8);
    assert_int_equal(near->finish, FINISH_LENGTH);
    world_close(&w);
}

static enum err add_changed(struct world *w, void (*change)(struct track *t))
{
    struct track *t = world_new(w, 9, SEQ_LOCAL, world_params(5));
    world_prompt(t, 1, 20);
    change(t);
    return world_add(w, t, 0, NULL);
}
static void too_long(struct track *t) { world_prompt(t, 1, 128); }
static void all_emitted(struct track *t) { t->prompt_count = 15; }
static void empty(struct track *t) { t->prompt_count = t->id_count = 0; }
static void prompt_past_ids(struct track *t) { t->prompt_count = 21; }
static void id_too_big(struct track *t) { t->ids[19] = MOCK_VOCAB; }
static void id_negative(struct track *t) { t->ids[0] = -1; }
static void no_tokens(struct track *t) { t->params.max_tokens = 0; }
static void stops_over(struct track *t) { t->params.stop_id_count = STOP_IDS_MAX + 1; }
static void eos_over(struct track *t) { t->params.eos_id_count = 1; }
static void tops_over(struct track *t) { t->params.top_count = TOP_LOGPROBS_MAX + 1; }
static void prompt_tops_over(struct track *t) { t->params.prompt_top_count = 21; }
static void bias_over(struct track *t) { t->params.bias_count = LOGIT_BIAS_MAX + 1; }
static void no_generation(struct track *t) { t->req.generation = 0; }

static void what_cannot_be_run_is_refused(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(16);
    world_open(&w, &c);
    assert_int_equal(add_changed(&w, too_long), ERR_LIMIT);
    assert_int_equal(add_changed(&w, all_emitted), ERR_LIMIT);
    void (*const bad[])(struct track *) = {
        empty, prompt_past_ids, id_too_big, id_negative, no_tokens, stops_over, eos_over,
        tops_over, prompt_tops_over, bias_over, no_generation,
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(add_changed(&w, bad[i]), ERR_FORMAT);
    struct track *t = world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(5));
    assert_int_equal(world_add(&w, t, 0, NULL), ERR_STALE);
    t->live = true;
    struct req_id other = t->req;
    other.attempt++;
    assert_false(engine_drop(w.e, other));
    world_run(&w, 1);
    assert_int_equal(t->tokens, 5);
    world_close(&w);
}

static void slots_run_out_with_full(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(16);
    world_open(&w, &c);
    int32_t ids[4] = { 1, 2, 3, 4 };
    struct seq_spec s = {
        .ids = ids, .id_count = 4, .prompt_count = 4, .params = world_params(1),
    };
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++) {
        s.req = (struct req_id){ .slot = (uint16_t)i, .generation = 1 };
        assert_int_equal(engine_add(w.e, &s, NULL), OK);
    }
    s.req.generation = 2;
    assert_int_equal(engine_add(w.e, &s, NULL), ERR_FULL);
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++)
        assert_true(engine_drop(w.e, (struct req_id){ .slot = (uint16_t)i, .generation = 1 }));
    world_close(&w);
}

static enum err open_with(struct engine_config c, struct why *why)
{
    struct engine *e;
    struct engine_sink sink = { .token = on_token };
    enum err err = engine_open(&e, &c, &sink, why);
    if (!err) engine_close(e);
    return err;
}

static void a_pool_too_small_for_one_sequence_is_refused_with_the_size_it_needs(void **state)
{
    (void)state;
    struct why why = { "" };
    struct engine_config c = world_config(15);
    assert_int_equal(open_with(c, &why), ERR_LIMIT);
    assert_non_null(strstr(why.text, "at least 6144"));    /* 128 * 3 * 16 */
    assert_int_equal(open_with(world_config(16), &why), OK);
    c = world_config(16);
    c.enable_chunked_prefill = false;
    assert_int_equal(open_with(c, &why), ERR_LIMIT);
    assert_non_null(strstr(why.text, "chunked"));
    c = world_config(16);
    c.max_num_batched_tokens = 7;
    assert_int_equal(open_with(c, &why), ERR_LIMIT);
}

static void a_known_prefix_is_shared_but_never_the_last_token(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    world_open(&w, &c);
    world_request(&w, 0, SEQ_LOCAL, 1, 32, world_params(1));
    world_run(&w, 1);
    struct track *same = world_request(&w, 1, SEQ_LOCAL, 1, 32, world_params(1));
    struct track *longer = world_request(&w, 2, SEQ_LOCAL, 1, 33, world_params(1));
    struct track *other = world_request(&w, 3, SEQ_LOCAL, 2, 32, world_params(1));
    world_run(&w, 4);
    assert_int_equal(same->cached, 24);
    assert_int_equal(longer->cached, 32);
    assert_int_equal(other->cached, 0);
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_int_equal(s.prompt_tokens_cached, 56);
    engine_cache_clear(w.e);
    struct track *cleared = world_request(&w, 4, SEQ_LOCAL, 1, 32, world_params(1));
    world_run(&w, 5);
    assert_int_equal(cleared->cached, 0);
    world_close(&w);
}

static void another_salt_or_no_caching_shares_nothing(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    world_open(&w, &c);
    world_request(&w, 0, SEQ_LOCAL, 1, 32, world_params(1));
    world_run(&w, 1);
    struct track *t = world_new(&w, 1, SEQ_LOCAL, world_params(1));
    world_prompt(t, 1, 32);
    t->score_next = 32;
    t->live = true;
    struct seq_spec s = {
        .req = t->req, .ids = t->ids, .id_count = 32, .prompt_count = 32, .params = t->params,
        .cache_salt = 5,
    };
    assert_int_equal(engine_add(w.e, &s, NULL), OK);
    world_run(&w, 2);
    assert_int_equal(t->cached, 0);
    world_close(&w);
    c.enable_prefix_caching = false;
    world_open(&w, &c);
    for (uint16_t i = 0; i < 2; i++) {
        t = world_request(&w, i, SEQ_LOCAL, 1, 32, world_params(1));
        world_run(&w, i + 1u);
        assert_int_equal(t->cached, 0);
    }
    assert_int_equal(w.live_count, 0);
    world_close(&w);
}

static void prompts_are_cut_into_chunks_as_configured(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    c.long_prefill_token_threshold = 10;
    world_open(&w, &c);
    for (uint16_t i = 0; i < 3; i++) world_request(&w, i, SEQ_LOCAL, i, 100, world_params(3));
    world_run(&w, 3);
    assert_int_equal(mock.chunk_max, 10);
    assert_int_equal(mock.step_tokens_max, 30);
    world_close(&w);
    c.long_prefill_token_threshold = 0;
    world_open(&w, &c);
    for (uint16_t i = 0; i < 3; i++) world_request(&w, i, SEQ_LOCAL, i, 100, world_params(3));
    world_run(&w, 3);
    assert_int_equal(mock.step_tokens_max, 64);
    world_close(&w);
    c.enable_chunked_prefill = false;
    c.max_num_batched_tokens = 128;
    world_open(&w, &c);
    for (uint16_t i = 0; i < 4; i++)
        world_request(&w, i, SEQ_LOCAL, i, i % 2 ? 125 : 70, world_params(3));
    world_run(&w, 4);
    assert_int_equal(mock.chunk_max, 125);
    world_close(&w);
}

static void no_more_than_max_num_seqs_run_at_once(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    c.max_num_seqs = 3;
    world_open(&w, &c);
    for (uint16_t i = 0; i < 10; i++) world_request(&w, i, SEQ_LOCAL, i, 10, world_params(4));
    world_run(&w, 10);
    assert_int_equal(mock.seqs_max, 3);
    world_close(&w);
}

static void lower_priority_value_goes_first_and_ties_go_by_arrival(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    c.max_num_seqs = 1;
    world_open(&w, &c);
    static const int32_t priority[4] = { 2, 0, -1, 0 };
    for (uint16_t i = 0; i < 4; i++) {
        struct track *t = world_new(&w, i, SEQ_LOCAL, world_params(1));
        world_prompt(t, i, 10);
        assert_int_equal(world_add(&w, t, priority[i], NULL), OK);
    }
    world_run(&w, 4);
    static const uint16_t want[4] = { 2, 1, 3, 0 };
    assert_memory_equal(w.order, want, sizeof want);
    world_close(&w);
}

static void the_youngest_is_preempted_and_continues_where_it_was(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(17);
    world_open(&w, &c);
    for (uint16_t i = 0; i < 4; i++) world_request(&w, i, SEQ_LOCAL, i, 30, world_params(60));
    world_run(&w, 4);
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_true(s.preemptions > 0);
    assert_int_equal(s.output_tokens, 240);
    assert_int_equal(s.prompt_tokens, 120);
    for (int i = 0; i < 4; i++) assert_int_equal(w.tracks[i].tokens, 60);
    world_close(&w);
}

static void a_prefill_sequence_keeps_its_blocks_when_they_run_out(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(17);
    c.max_num_seqs = 4;
    c.max_num_batched_tokens = 8;
    world_open(&w, &c);
    struct track *grows = world_request(&w, 0, SEQ_LOCAL, 1, 7, world_params(60));
    struct track *held = world_request(&w, 1, SEQ_PREFILL, 2, 120, world_params(5));
    uint32_t before = 0;
    while (!held->tokens) {
        assert_true(world_turn(&w, 5000));
        uint32_t now = engine_kv_tokens(w.e, held->req, MOCK_LAYERS - 1);
        assert_true(now >= before);
        before = now;
    }
    while (engine_poll(w.e)) world_turn(&w, 5000);
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_true(s.preemptions > 0);
    assert_int_equal(s.seqs_waiting, 1);
    world_drop(&w, held);
    world_run(&w, 2);
    assert_int_equal(grows->tokens, 60);
    world_close(&w);
}

static void prompt_scores_come_in_order_and_skip_the_cache(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(64);
    world_open(&w, &c);
    world_request(&w, 0, SEQ_LOCAL, 1, 100, world_params(3));
    world_run(&w, 1);
    struct sampling p = world_params(3);
    p.flags = SAMPLING_PROMPT_LOGPROBS | SAMPLING_LOGPROBS;
    p.prompt_top_count = TOP_LOGPROBS_MAX;
    p.top_count = 5;
    struct track *scored = world_request(&w, 1, SEQ_LOCAL, 1, 100, p);
    world_request(&w, 2, SEQ_LOCAL, 2, 90, p);
    world_request(&w, 3, SEQ_LOCAL, 3, 50, world_params(5));
    world_request(&w, 4, SEQ_LOCAL, 3, 1, p);
    world_run(&w, 5);
    assert_int_equal(scored->cached, 0);
    world_close(&w);
    c.max_num_seqs = 64;
    c.max_num_batched_tokens = 512;
    world_open(&w, &c);
    world_request(&w, 0, SEQ_PREFILL, 1, 127, p);
    world_run(&w, 1);
    world_drop(&w, &w.tracks[0]);
    world_close(&w);
}

static void an_already_emitted_output_is_continued(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    struct track *t = world_new(&w, 0, SEQ_LOCAL, world_params(20));
    world_prompt(t, 1, 20);
    for (; t->id_count < 33; t->id_count++)
        t->ids[t->id_count] = mock_token(t->ids, t->id_count, t->params.seed);
    assert_int_equal(world_add(&w, t, 0, NULL), OK);
    world_run(&w, 1);
    assert_int_equal(t->tokens, 7);
    world_close(&w);
}

static void a_dropped_sequence_says_nothing_more_and_gives_its_blocks_back(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    struct track *t = world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(9));
    struct track *stays = world_request(&w, 1, SEQ_LOCAL, 2, 20, world_params(9));
    mock_hold(1);
    engine_poll(w.e);
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_int_equal(s.blocks_held, 6);
    assert_true(s.step_started_ns > 0);
    world_drop(&w, t);
    engine_stats(w.e, &s);
    assert_int_equal(s.blocks_held, 6);   /* the step still writes there */
    mock_hold(0);
    world_run(&w, 1);
    assert_int_equal(t->tokens, 0);
    assert_int_equal(stays->tokens, 9);
    world_close(&w);
}

static void another_priority_waits_for_the_step_and_changes_no_token(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    struct track *t = world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(9));
    uint32_t before = mock.priorities;
    mock_hold(1);
    engine_poll(w.e);
    engine_low_priority(w.e, 1);
    assert_true(engine_poll(w.e));
    assert_int_equal(mock.priorities, before);    /* the step runs */
    mock_hold(0);
    world_run(&w, 1);
    assert_int_equal(mock.priorities, before + 1);
    assert_int_equal(t->tokens, 9);
    engine_low_priority(w.e, 1);                  /* it has that one */
    engine_poll(w.e);
    assert_int_equal(mock.priorities, before + 1);
    engine_low_priority(w.e, 0);
    engine_poll(w.e);
    assert_int_equal(mock.priorities, before + 2);
    world_close(&w);
}

static bool is_rung(const struct world *w)
{
    struct pollfd p = { .fd = engine_event_fd(w->e), .events = POLLIN };
    return engine_has_work(w->e) || poll(&p, 1, 0) == 1;
}

/* One that is held, so that it cannot be over before it is looked at. */
static void step_elsewhere(struct world *w)
{
    mock_hold(1);
    assert_true(engine_poll(w->e));
    mock_hold(0);
    world_run(w, w->ended + 1);
    assert_false(pthread_equal(mock.stepped_by, pthread_self()));
}

static void a_short_step_is_computed_by_the_caller_and_is_over_with_the_call(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    c.at_once_ns = 60 * NS_PER_S;
    world_open(&w, &c);
    world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(1));
    step_elsewhere(&w);               /* nothing was known of steps */
    assert_false(engine_poll(w.e));
    struct track *t = world_request(&w, 1, SEQ_LOCAL, 2, 20, world_params(9));
    for (uint32_t tokens = 1; tokens <= 9; tokens++) {
        assert_true(is_rung(&w));
        assert_false(engine_poll(w.e));
        assert_int_equal(t->tokens, tokens);      /* one step a call: the owner looks around */
        assert_true(pthread_equal(mock.stepped_by, pthread_self()));
    }
    assert_false(is_rung(&w));
    engine_low_priority(w.e, 1);      /* which this thread cannot take and give back */
    engine_poll(w.e);
    world_request(&w, 2, SEQ_LOCAL, 3, 20, world_params(1));
    step_elsewhere(&w);
    world_close(&w);
}

static void closing_waits_for_the_step_and_frees_all(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    for (uint16_t i = 0; i < 4; i++) world_request(&w, i, SEQ_LOCAL, i, 20, world_params(9));
    engine_poll(w.e);
    world_drop(&w, &w.tracks[1]);
    engine_close(w.e);
}

static void a_failed_step_ends_its_sequences_and_no_others(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    c.max_num_seqs = 2;
    world_open(&w, &c);
    mock.fail_steps = 1;
    for (uint16_t i = 0; i < 3; i++)
        world_request(&w, i, i == 1 ? SEQ_PREFILL : SEQ_LOCAL, i, 20, world_params(4));
    world_run(&w, 3);
    assert_int_equal(w.tracks[0].finish, FINISH_ERROR);
    assert_int_equal(w.tracks[1].finish, FINISH_ERROR);
    assert_int_equal(w.tracks[2].finish, FINISH_LENGTH);
    mock.fail_samples = 1;
    world_request(&w, 3, SEQ_LOCAL, 3, 20, world_params(4));
    world_run(&w, 4);
    assert_int_equal(w.tracks[3].finish, FINISH_ERROR);
    world_drop(&w, &w.tracks[1]);
    world_close(&w);
}

static void an_idle_engine_never_wakes_its_owner(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    assert_false(world_turn(&w, 0));
    world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(3));
    world_run(&w, 1);
    world_turn(&w, 0);
    assert_false(world_turn(&w, 30));
    struct track *held = world_request(&w, 1, SEQ_PREFILL, 1, 20, world_params(3));
    world_run(&w, 2);
    world_turn(&w, 0);
    assert_false(world_turn(&w, 30));
    world_drop(&w, held);
    world_close(&w);
}

static void nap(void)
{
    nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* The calls that touch memory, once there are at least so many. */
static uint32_t touches_reach(uint32_t count)
{
    for (int i = 0; mock.touches < count && i < 10000; i++) nap();
    assert_true(mock.touches >= count);
    return mock.touches;
}

static void an_idle_engine_takes_memory_for_the_next_prompts(void **state)
{
    (void)state;
    static struct world w;
    enum { AHEAD = KV_AHEAD_TOKENS / WORLD_BLOCK };
    struct engine_config c = world_config(AHEAD + 40);
    c.enable_prefix_caching = false;
    world_open(&w, &c);
    mock.touches = 0;
    mock.pieces = 5;
    engine_poll(w.e);
    nap();
    assert_int_equal(mock.touches, 0);        /* nothing has come yet */
    world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(3));
    world_run(&w, 1);
    assert_int_equal(touches_reach(6), 6);
    assert_int_equal(mock.touch_blocks, kv_pool_reached(w.e->pool) + AHEAD);
    engine_poll(w.e);
    nap();
    assert_int_equal(mock.touches, 6);        /* all was done */
    for (uint16_t i = 1; i < 4; i++) world_request(&w, i, SEQ_LOCAL, i, 120, world_params(3));
    world_run(&w, 4);
    touches_reach(7);
    assert_int_equal(mock.touch_blocks, AHEAD + 40);   /* there are no more */
    world_close(&w);
}

static void an_idle_engine_takes_as_much_memory_again_as_it_has_used(void **state)
{
    (void)state;
    static struct world w;
    enum { USED = KV_AHEAD_TOKENS / WORLD_BLOCK + 3 };
    uint32_t used[USED];
    struct engine_config c = world_config(4 * USED);
    world_open(&w, &c);
    for (int i = 0; i < USED; i++) used[i] = kv_pool_take(w.e->pool);
    for (int i = 0; i < USED; i++) kv_pool_release(w.e->pool, used + i, 1);
    mock.touches = 0;
    mock.pieces = 1;
    world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(3));
    world_run(&w, 1);
    touches_reach(1);
    assert_true(kv_pool_reached(w.e->pool) >= USED);
    assert_int_equal(mock.touch_blocks, 2 * kv_pool_reached(w.e->pool));
    world_close(&w);
}

static void touching_memory_ends_when_a_request_comes_and_goes_on_after_it(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    mock.touches = 0;
    mock.pieces = UINT32_MAX;
    world_request(&w, 0, SEQ_LOCAL, 1, 20, world_params(3));
    world_run(&w, 1);
    touches_reach(100);
    struct track *held = world_request(&w, 1, SEQ_PREFILL, 2, 20, world_params(3));
    world_run(&w, 2);
    uint32_t before = mock.touches;
    nap();
    assert_true(mock.touches <= before + 1);
    world_drop(&w, held);
    engine_poll(w.e);
    touches_reach(before + 100);
    world_close(&w);                          /* does not wait for the end of it */
    mock.pieces = 0;
}

static void prefill_tells_each_layer_as_it_completes_and_holds_until_dropped(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(32);
    world_open(&w, &c);
    world_request(&w, 0, SEQ_LOCAL, 1, 17, world_params(1));
    world_run(&w, 1);
    struct track *t = world_request(&w, 1, SEQ_PREFILL, 1, 60, world_params(5));
    char bytes[MOCK_LAYERS * 60 * 2 * MOCK_CELL];
    mock_hold(2);
    engine_poll(w.e);
    while (engine_kv_tokens(w.e, t->req, 1) < 60) assert_true(world_turn(&w, 5000));
    assert_true(w.progressed > 0);
    assert_int_equal(engine_kv_tokens(w.e, t->req, 0), 60);
    assert_int_equal(engine_kv_tokens(w.e, t->req, 2), 16);   /* what the cache had */
    assert_int_equal(engine_kv_tokens(w.e, t->req, MOCK_LAYERS), 0);
    assert_true(engine_kv_read(w.e, t->req, 0, 2, 0, 60, bytes));
    assert_false(engine_kv_read(w.e, t->req, 0, 3, 0, 60, bytes));
    assert_true(engine_kv_read(w.e, t->req, 0, 3, 10, 6, bytes));
    assert_false(engine_kv_read(w.e, t->req, 0, 2, 1, 60, bytes));
    assert_false(engine_kv_read(w.e, t->req, 0, 2, 60, 1, bytes));
    assert_false(engine_kv_read(w.e, t->req, 0, 2, 5, UINT32_MAX, bytes));
    assert_false(engine_kv_read(w.e, t->req, 1, UINT32_MAX, 0, 1, bytes));
    mock_hold(0);
    world_run(&w, 2);
    assert_int_equal(t->tokens, 1);
    assert_int_equal(engine_kv_tokens(w.e, t->req, 2), 60);
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_int_equal(s.seqs_holding, 1);
    assert_int_equal(s.blocks_held, 8);
    world_drop(&w, t);
    assert_int_equal(engine_kv_tokens(w.e, t->req, 0), 0);
    world_close(&w);
}

/* Makes the KV that a prefill rank would send for ids[first .. first + count), all layers. */
static uint64_t kv_of(const struct track *t, uint32_t first, uint32_t count, uint32_t *out)
{
    uint32_t at = 0;
    for (uint32_t l = 0; l < MOCK_LAYERS; l++)
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t p = first; p < first + count; p++) {
                uint32_t id = (uint32_t)t->ids[p];
                out[at++] = half ? ~id : id;
                out[at++] = half ? l : p + 1;
            }
    return at * sizeof *out;
}

static void an_import_takes_only_what_is_missing_in_order_and_then_generates(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(16);
    world_open(&w, &c);
    world_request(&w, 0, SEQ_LOCAL, 1, 17, world_params(1));
    world_run(&w, 1);
    struct track *t = world_new(&w, 1, SEQ_IMPORT, world_params(5));
    world_prompt(t, 1, 40);
    uint32_t held = 99, kv[4 * 64 * MOCK_LAYERS];
    assert_int_equal(world_add(&w, t, 0, &held), OK);
    assert_int_equal(held, 16);
    uint64_t bytes = kv_of(t, 16, 24, kv);
    struct engine *e = w.e;
    assert_int_equal(engine_import(e, t->req, 0, 3, 15, 25, kv, bytes), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 0, 3, 17, 23, kv, bytes), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 0, 3, 16, 25, kv, 25 * 48), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 0, 3, 16, 24, kv, bytes - 1), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 0, 4, 16, 24, kv, 4 * bytes / 3), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 3, 1, 16, 24, kv, bytes / 3), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, UINT32_MAX, 2, 16, 24, kv, bytes), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 0, 3, 16, 0, kv, 0), ERR_FORMAT);
    assert_int_equal(engine_import_done(e, t->req, 5), ERR_FORMAT);
    assert_int_equal(engine_import(e, t->req, 0, 3, 16, 24, kv, bytes), OK);
    assert_int_equal(engine_import(e, t->req, 0, 3, 16, 24, kv, bytes), ERR_FORMAT);
    assert_int_equal(engine_import_done(e, t->req, MOCK_VOCAB), ERR_FORMAT);
    struct req_id stale = t->req;
    stale.generation++;
    assert_int_equal(engine_import(e, stale, 0, 3, 16, 24, kv, bytes), ERR_STALE);
    assert_int_equal(engine_import_done(e, stale, 1), ERR_STALE);
    t->ids[t->id_count] = mock_token(t->ids, t->id_count, t->params.seed);
    t->id_count++;
    assert_int_equal(engine_import_done(e, t->req, t->ids[40]), OK);
    assert_int_equal(engine_import_done(e, t->req, t->ids[40]), ERR_STALE);
    assert_int_equal(w.live_count, 5);
    world_run(&w, 2);
    assert_int_equal(t->tokens, 4);
    assert_int_equal(t->cached, 16);
    struct track *again = world_new(&w, 2, SEQ_IMPORT, world_params(5));
    world_prompt(again, 1, 40);
    assert_int_equal(world_add(&w, again, 0, &held), OK);
    assert_int_equal(held, 32);
    struct track *big = world_new(&w, 3, SEQ_IMPORT, world_params(5));
    world_prompt(big, 4, 88);
    assert_int_equal(world_add(&w, big, 0, &held), ERR_FULL);
    world_prompt(big, 4, 79);
    assert_int_equal(world_add(&w, big, 0, &held), OK);
    world_drop(&w, again);
    world_drop(&w, big);
    world_close(&w);
}

static void the_null_backend_says_the_same_for_the_same_request(void **state)
{
    (void)state;
    setenv("RANKSERVE_NULL_STEP_US", "100", 1);
    assert_ptr_equal(backend_find("null"), &backend_null);
    assert_null(backend_find("abacus"));
    assert_null(backend_find("cuda"));
    const struct backend *b = &backend_null;
    struct backend_config c = { .block_tokens = 16, .kv_bytes = 1 << 20 };
    struct kv_shape shape;
    struct why why;
    void *self;
    assert_int_equal(b->open(&self, &c, &shape, &why), OK);
    int32_t history[3] = { 5, 6, 7 };
    struct sampling p = { .seed = 4, .flags = SAMPLING_LOGPROBS, .top_count = 2 };
    struct sample_job jobs[3] = {
        { .params = &p, .history = history, .history_count = 3 },
        { .params = &p, .history = history, .history_count = 3 },
        { .params = &p, .history = history, .history_count = 2 },
    };
    assert_int_equal(b->sample(self, jobs, 3), OK);
    assert_int_equal(jobs[0].record.id, jobs[1].record.id);
    assert_int_not_equal(jobs[0].record.id, jobs[2].record.id);
    assert_int_equal(jobs[0].record.position, 3);
    assert_int_equal(jobs[0].record.top_count, 2);
    b->close(self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_generates_until_max_tokens),
        cmocka_unit_test(a_stop_id_ends_it_unless_ignored_or_too_early),
        cmocka_unit_test(the_context_ends_a_sequence_with_length),
        cmocka_unit_test(what_cannot_be_run_is_refused),
        cmocka_unit_test(slots_run_out_with_full),
        cmocka_unit_test(a_pool_too_small_for_one_sequence_is_refused_with_the_size_it_needs),
        cmocka_unit_test(a_known_prefix_is_shared_but_never_the_last_token),
        cmocka_unit_test(another_salt_or_no_caching_shares_nothing),
        cmocka_unit_test(prompts_are_cut_into_chunks_as_configured),
        cmocka_unit_test(no_more_than_max_num_seqs_run_at_once),
        cmocka_unit_test(lower_priority_value_goes_first_and_ties_go_by_arrival),
        cmocka_unit_test(the_youngest_is_preempted_and_continues_where_it_was),
        cmocka_unit_test(a_prefill_sequence_keeps_its_blocks_when_they_run_out),
        cmocka_unit_test(prompt_scores_come_in_order_and_skip_the_cache),
        cmocka_unit_test(an_already_emitted_output_is_continued),
        cmocka_unit_test(a_dropped_sequence_says_nothing_more_and_gives_its_blocks_back),
        cmocka_unit_test(another_priority_waits_for_the_step_and_changes_no_token),
        cmocka_unit_test(a_short_step_is_computed_by_the_caller_and_is_over_with_the_call),
        cmocka_unit_test(closing_waits_for_the_step_and_frees_all),
        cmocka_unit_test(a_failed_step_ends_its_sequences_and_no_others),
        cmocka_unit_test(an_idle_engine_never_wakes_its_owner),
        cmocka_unit_test(an_idle_engine_takes_memory_for_the_next_prompts),
        cmocka_unit_test(an_idle_engine_takes_as_much_memory_again_as_it_has_used),
        cmocka_unit_test(touching_memory_ends_when_a_request_comes_and_goes_on_after_it),
        cmocka_unit_test(prefill_tells_each_layer_as_it_completes_and_holds_until_dropped),
        cmocka_unit_test(an_import_takes_only_what_is_missing_in_order_and_then_generates),
        cmocka_unit_test(the_null_backend_says_the_same_for_the_same_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
