/* tests/unit/engine_stress_test.c - two engines under everything at once.
 *
 * A prefill and a decode engine with pools that are too small: local requests on both, pairs whose
 * KV is moved in pieces of any size while it is computed, recovered requests, prompt scores, shared
 * prefixes, preemptions, drops at any moment.  The mock checks each position of each step, the
 * worlds check each report; at the end every block must be home.
 */
#include "engine_world.h"

enum { SLOTS = 24, FINISHED_WANTED = 1000, PIECE_MAX = 40 };

struct pair {                         /* one request, under the same slot in both worlds */
    bool active, moves;               /* moves: prefill here, decode there */
    uint32_t sent[MOCK_LAYERS], ready[MOCK_LAYERS];
};

struct stress {
    struct world prefill, decode;
    struct pair pairs[SLOTS];
    uint32_t seed, finished, dropped, moved, full;
};

static uint32_t any(struct stress *s, uint32_t below)
{
    s->seed = s->seed * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)s->seed * below >> 32);
}

static struct sampling any_params(struct stress *s)
{
    struct sampling p = world_params(1 + any(s, 50));
    p.seed = any(s, 3);
    if (any(s, 3) == 0) {
        p.stop_id_count = 1;
        p.stop_ids[0] = (int32_t)any(s, MOCK_VOCAB);
        p.min_tokens = any(s, 4);
    }
    if (any(s, 5) == 0) p.flags |= SAMPLING_PROMPT_LOGPROBS;
    if (any(s, 3) == 0) p.flags |= SAMPLING_LOGPROBS;
    p.top_count = (uint16_t)any(s, 4);
    p.prompt_top_count = (uint16_t)any(s, 4);
    return p;
}

/* A prompt of few texts, so that prefixes are shared; sometimes with output already emitted. */
static void any_ids(struct stress *s, struct track *t)
{
    world_prompt(t, any(s, 3), 1 + any(s, 100));
    if (any(s, 4) == 0) t->ids[any(s, t->id_count)] = (int32_t)any(s, MOCK_VOCAB);
    uint32_t emitted = any(s, 4) == 0 ? any(s, t->params.max_tokens) : 0;
    while (emitted-- && t->id_count < 127) {
        t->ids[t->id_count] = mock_token(t->ids, t->id_count, t->params.seed);
        t->id_count++;
    }
}

static void start_local(struct stress *s, struct world *w, uint16_t slot)
{
    struct track *t = world_new(w, slot, SEQ_LOCAL, any_params(s));
    any_ids(s, t);
    assert_int_equal(world_add(w, t, (int32_t)any(s, 3), NULL), OK);
    s->pairs[slot] = (struct pair){ .active = true };
}

static void start_pair(struct stress *s, uint16_t slot)
{
    struct track *d = world_new(&s->decode, slot, SEQ_IMPORT, any_params(s));
    any_ids(s, d);
    uint32_t held;
    enum err err = world_add(&s->decode, d, 0, &held);
    if (err == ERR_FULL) {
        s->full++;
        memset(d, 0, sizeof *d);
        return;
    }
    assert_int_equal(err, OK);
    assert_true(held <= d->id_count - 1 && held % WORLD_BLOCK == 0);
    struct track *p = world_new(&s->prefill, slot, SEQ_PREFILL, d->params);
    memcpy(p->ids, d->ids, sizeof p->ids);
    p->prompt_count = d->prompt_count;
    p->id_count = d->id_count;
    assert_int_equal(world_add(&s->prefill, p, (int32_t)any(s, 3), NULL), OK);
    s->pairs[slot] = (struct pair){ .active = true, .moves = true };
    for (int l = 0; l < MOCK_LAYERS; l++) s->pairs[slot].sent[l] = held;
}

static void start_any(struct stress *s)
{
    uint16_t slot = (uint16_t)any(s, SLOTS);
    if (s->pairs[slot].active) return;
    memset(&s->prefill.tracks[slot], 0, sizeof s->prefill.tracks[slot]);
    memset(&s->decode.tracks[slot], 0, sizeof s->decode.tracks[slot]);
    uint32_t kind = any(s, 4);
    if (kind == 0)
        start_local(s, &s->prefill, slot);
    else if (kind == 1)
        start_local(s, &s->decode, slot);
    else
        start_pair(s, slot);
}

/* Sends some of what is complete and not sent; true when all is there. */
static bool send_some(struct stress *s, uint16_t slot)
{
    struct pair *pair = &s->pairs[slot];
    struct track *p = &s->prefill.tracks[slot], *d = &s->decode.tracks[slot];
    bool all = true;
    for (uint32_t l = 0; l < MOCK_LAYERS; l++) {
        uint32_t ready = engine_kv_tokens(s->prefill.e, p->req, l);
        assert_true(ready >= pair->ready[l]);
        pair->ready[l] = ready;
        if (ready > pair->sent[l]) {
            char bytes[PIECE_MAX * 2 * MOCK_CELL];
            uint32_t most = ready - pair->sent[l] < PIECE_MAX ? ready - pair->sent[l] : PIECE_MAX;
            uint32_t count = 1 + any(s, most);
            assert_true(engine_kv_read(s->prefill.e, p->req, l, 1, pair->sent[l], count, bytes));
            assert_int_equal(engine_import(s->decode.e, d->req, l, 1, pair->sent[l], count, bytes,
                                           count * 2ull * MOCK_CELL), OK);
            pair->sent[l] += count;
            s->moved += count;
        }
        all = all && pair->sent[l] == d->given;
    }
    return all;
}

static void hand_over(struct stress *s, uint16_t slot)
{
    struct track *p = &s->prefill.tracks[slot], *d = &s->decode.tracks[slot];
    if (p->finish == FINISH_NONE) {
        d->ids[d->id_count++] = p->ids[p->id_count - 1];
        assert_int_equal(engine_import_done(s->decode.e, d->req, d->ids[d->id_count - 1]), OK);
    } else {
        world_drop(&s->decode, d);
        d->finish = p->finish;
    }
    world_drop(&s->prefill, p);
}

static void end_pair(struct stress *s, uint16_t slot)
{
    s->pairs[slot].active = false;
    s->finished++;
}

static void advance(struct stress *s, uint16_t slot)
{
    struct pair *pair = &s->pairs[slot];
    struct track *p = &s->prefill.tracks[slot], *d = &s->decode.tracks[slot];
    if (!pair->active) return;
    if (pair->moves) {
        if (send_some(s, slot) && p->tokens) {
            hand_over(s, slot);
            pair->moves = false;
        }
        return;
    }
    if (p->finish != FINISH_NONE || d->finish != FINISH_NONE) end_pair(s, slot);
}

static void drop_any(struct stress *s)
{
    uint16_t slot = (uint16_t)any(s, SLOTS);
    if (!s->pairs[slot].active) return;
    struct world *worlds[2] = { &s->prefill, &s->decode };
    for (int i = 0; i < 2; i++) {
        struct track *t = &worlds[i]->tracks[slot];
        bool ended = t->finish != FINISH_NONE && t->mode != SEQ_PREFILL;
        if (t->live && !t->dropped && !ended) world_drop(worlds[i], t);
    }
    s->dropped++;
    end_pair(s, slot);
}

static void turn_both(struct stress *s)
{
    struct pollfd p[2] = {
        { .fd = engine_event_fd(s->prefill.e), .events = POLLIN },
        { .fd = engine_event_fd(s->decode.e), .events = POLLIN },
    };
    bool work[2] = { engine_has_work(s->prefill.e), engine_has_work(s->decode.e) };
    poll(p, 2, work[0] || work[1] ? 0 : 1);
    if (work[0] || p[0].revents) engine_poll(s->prefill.e);
    if (work[1] || p[1].revents) engine_poll(s->decode.e);
    if (any(s, 10) == 0) {
        world_check(&s->prefill);
        world_check(&s->decode);
    }
    if (any(s, 200) == 0) engine_cache_clear(s->decode.e);
}

static bool any_active(const struct stress *s)
{
    for (int i = 0; i < SLOTS; i++)
        if (s->pairs[i].active) return true;
    return false;
}

static void run_stress(struct stress *s, const struct engine_config *prefill,
                       const struct engine_config *decode, uint32_t seed)
{
    memset(s, 0, sizeof *s);
    s->seed = seed;
    world_open(&s->prefill, prefill);
    world_open(&s->decode, decode);
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (s->finished < FINISHED_WANTED || any_active(s)) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        assert_true(now.tv_sec - begin.tv_sec < 60);      /* stuck */
        if (s->finished < FINISHED_WANTED) start_any(s);
        if (any(s, 40) == 0) drop_any(s);
        turn_both(s);
        for (uint16_t i = 0; i < SLOTS; i++) advance(s, i);
    }
    while (engine_poll(s->prefill.e)) world_turn(&s->prefill, 5000);
    while (engine_poll(s->decode.e)) world_turn(&s->decode, 5000);
}

static void close_stress(struct stress *s)
{
    world_close(&s->prefill);
    world_close(&s->decode);
}

static void tiny_pools_and_small_chunks_lose_nothing(void **state)
{
    (void)state;
    static struct stress s;
    struct engine_config p = world_config(30), d = world_config(20);
    p.max_num_batched_tokens = 24;
    d.long_prefill_token_threshold = 7;
    run_stress(&s, &p, &d, 1);
    struct engine_stats ps, ds;
    engine_stats(s.prefill.e, &ps);
    engine_stats(s.decode.e, &ds);
    assert_true(ds.preemptions > 0);
    assert_true(ps.prompt_tokens_cached > 0);
    assert_true(s.full > 0 && s.moved > 0 && s.dropped > 0);
    close_stress(&s);
}

static void whole_prompts_and_no_cache_lose_nothing(void **state)
{
    (void)state;
    static struct stress s;
    struct engine_config p = world_config(24), d = world_config(24);
    p.enable_chunked_prefill = d.enable_chunked_prefill = false;
    p.max_num_batched_tokens = d.max_num_batched_tokens = 128;
    d.enable_prefix_caching = false;
    run_stress(&s, &p, &d, 2);
    close_stress(&s);
}

static void roomy_pools_share_and_lose_nothing(void **state)
{
    (void)state;
    static struct stress s;
    struct engine_config p = world_config(200), d = world_config(200);
    p.max_num_seqs = 2;
    d.max_num_seqs = 16;
    p.at_once_ns = d.at_once_ns = 20000; /* some steps are shorter */
    run_stress(&s, &p, &d, 3);
    struct engine_stats ps;
    engine_stats(s.prefill.e, &ps);
    assert_int_equal(ps.preemptions, 0);
    close_stress(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_pools_and_small_chunks_lose_nothing),
        cmocka_unit_test(whole_prompts_and_no_cache_lose_nothing),
        cmocka_unit_test(roomy_pools_share_and_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
