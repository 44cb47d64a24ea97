/* tests/unit/engine_world.h - an engine on the mock backend, and an owner that believes nothing.
 *
 * Every report is compared with what must come: tokens with the mock's pure function, positions
 * without gap or repeat, endings by the rules, scores in order, cache keys with a set of its own.
 */
#ifndef RANKSERVE_TESTS_ENGINE_WORLD_H
#define RANKSERVE_TESTS_ENGINE_WORLD_H

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/state.h"
#include "engine_mock.h"

enum { TRACKS_MAX = 64, TRACK_IDS_MAX = 512, LIVE_KEYS_MAX = 256, WORLD_BLOCK = 8 };

struct track {                        /* what the owner knows of one sequence; index == req.slot */
    struct req_id req;
    enum seq_mode mode;
    struct sampling params;
    int32_t ids[TRACK_IDS_MAX];
    uint32_t prompt_count, id_count, given, cached, score_next;
    uint32_t tokens;                  /* reported here */
    enum finish finish;
    bool live, dropped;
};

struct world {
    struct engine *e;
    struct engine_config config;
    struct track tracks[TRACKS_MAX];
    uint32_t generation, ended, progressed;
    uint16_t order[1024];             /* slots in the order of their tokens */
    uint32_t order_count;
    struct hash128 live_keys[LIVE_KEYS_MAX], live_parents[LIVE_KEYS_MAX];
    uint32_t live_count;
};

static struct model world_model;      /* only vocab and digest are looked at */

static inline enum finish world_finish(const struct world *w, const struct track *t, int32_t id)
{
    uint32_t made = t->id_count - t->prompt_count;
    bool stops = false;
    for (uint32_t i = 0; i < t->params.stop_id_count; i++)
        if (t->params.stop_ids[i] == id &&
            !(i < t->params.eos_id_count && t->params.flags & SAMPLING_IGNORE_EOS))
            stops = true;
    if (stops && made > t->params.min_tokens) return FINISH_STOP;
    if (made == t->params.max_tokens || t->id_count == w->config.max_model_len)
        return FINISH_LENGTH;
    return FINISH_NONE;
}

static inline struct track *world_track(struct world *w, struct req_id req)
{
    assert_true(req.slot < TRACKS_MAX);
    struct track *t = &w->tracks[req.slot];
    assert_true(req_id_equal(t->req, req));
    assert_true(t->live);
    assert_false(t->dropped);
    assert_int_equal(t->finish, FINISH_NONE);
    return t;
}

static inline void on_token(void *ctx, struct req_id req, const struct token_record *r,
                     const struct top_logprob *top, uint32_t cached)
{
    struct world *w = ctx;
    struct track *t = world_track(w, req);
    assert_int_equal(r->position, t->id_count);
    if (w->order_count < 1024) w->order[w->order_count++] = req.slot;
    t->tokens++;
    t->cached = cached;
    if (r->finish == FINISH_ERROR) {
        assert_int_equal(r->id, -1);
        assert_int_equal(r->top_count, 0);
        t->finish = FINISH_ERROR;
        w->ended++;
        return;
    }
    assert_int_equal(t->score_next, t->prompt_count);
    assert_int_equal(r->id, mock_token(t->ids, t->id_count, t->params.seed));
    t->ids[t->id_count++] = r->id;
    assert_int_equal(r->finish, world_finish(w, t, r->id));
    assert_int_equal(r->top_count,
                     t->params.flags & SAMPLING_LOGPROBS ? t->params.top_count : 0);
    for (uint32_t i = 0; i < r->top_count; i++)
        assert_true(top[i].id == (int32_t)i && top[i].logprob == (float)r->position);
    t->finish = r->finish;
    if (t->finish != FINISH_NONE || t->mode == SEQ_PREFILL) w->ended++;
}

static inline void on_scores(void *ctx, struct req_id req, const struct token_record *r,
                             uint32_t count, const struct top_logprob *tops)
{
    struct track *t = world_track(ctx, req);
    assert_true(count >= 1 && count <= SCORES_AT_ONCE);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(r[i].position, t->score_next);
        assert_int_equal(r[i].id, t->ids[t->score_next]);
        assert_true(r[i].logprob == mock_score(t->ids, t->score_next));
        assert_int_equal(r[i].top_count, t->params.prompt_top_count);
        for (uint32_t k = 0; k < r[i].top_count; k++, tops++)
            assert_true(tops->id == (int32_t)k && tops->logprob == (float)t->score_next);
        t->score_next++;
    }
}

static inline void on_progress(void *ctx)
{
    struct world *w = ctx;
    w->progressed++;
}

static inline uint32_t key_index(const struct world *w, struct hash128 key)
{
    uint32_t i = 0;
    while (i < w->live_count && !hash_equal(w->live_keys[i], key)) i++;
    return i;
}

static inline void on_stored(void *ctx, struct hash128 key, struct hash128 parent)
{
    struct world *w = ctx;
    assert_int_equal(key_index(w, key), w->live_count);
    assert_true(w->live_count < LIVE_KEYS_MAX);
    w->live_keys[w->live_count] = key;
    w->live_parents[w->live_count++] = parent;
}

static inline void on_dropped(void *ctx, struct hash128 key)
{
    struct world *w = ctx;
    uint32_t i = key_index(w, key);
    assert_true(i < w->live_count);
    for (uint32_t k = 0; k < w->live_count; k++)
        assert_false(hash_equal(w->live_parents[k], key));
    w->live_keys[i] = w->live_keys[--w->live_count];
    w->live_parents[i] = w->live_parents[w->live_count];
}

static inline struct engine_config world_config(uint32_t blocks)
{
    world_model.h.vocab = MOCK_VOCAB;
    return (struct engine_config){
        .backend = {
            .model = &world_model,
            .block_tokens = WORLD_BLOCK,
            .kv_bytes = (uint64_t)blocks * WORLD_BLOCK * MOCK_LAYERS * 2 * MOCK_CELL,
        },
        .table = &backend_mock,
        .kv_secret = { 3, 4 },
        .max_model_len = 128,
        .max_num_seqs = 8,
        .max_num_batched_tokens = 64,
        .enable_chunked_prefill = true,
        .enable_prefix_caching = true,
    };
}

static inline void world_open(struct world *w, const struct engine_config *c)
{
    memset(w, 0, sizeof *w);
    mock.step_tokens_max = mock.chunk_max = mock.seqs_max = 0;
    w->config = *c;
    struct engine_sink sink = {
        w, on_token, on_scores, on_progress, on_stored, on_dropped,
    };
    struct why why = { "" };
    enum err err = engine_open(&w->e, c, &sink, &why);
    if (err) fail_msg("%s", why.text);
}

/* The invariants that hold at any time. */
static inline void world_check(struct world *w)
{
    struct engine_stats s;
    engine_stats(w->e, &s);
    assert_int_equal(s.blocks_free + s.blocks_held + s.blocks_cached, s.blocks_total);
    kv_pool_check(w->e->pool);
}

static inline void world_close(struct world *w)
{
    struct engine_stats s;
    world_check(w);
    engine_stats(w->e, &s);
    assert_int_equal(s.blocks_held, 0);
    assert_int_equal(s.blocks_cached, w->live_count);
    assert_int_equal(s.seqs_waiting + s.seqs_running + s.seqs_holding + s.seqs_loading, 0);
    assert_int_equal(s.step_started_ns, 0);
    engine_close(w->e);
}

/* Waits for work or the event and polls once; false when nothing happened in time. */
static inline bool world_turn(struct world *w, int timeout_ms)
{
    struct pollfd p = { .fd = engine_event_fd(w->e), .events = POLLIN };
    if (!engine_has_work(w->e) && poll(&p, 1, timeout_ms) != 1) return false;
    engine_poll(w->e);
    return true;
}

static inline void world_run(struct world *w, uint32_t ended)
{
    for (int turns = 0; w->ended < ended; turns++) {
        assert_true(turns < 100000);
        assert_true(world_turn(w, 5000));
    }
    while (engine_poll(w->e)) assert_true(world_turn(w, 5000));
}

static struct sampling world_params(uint32_t max_tokens)
{
    return (struct sampling){ .max_tokens = max_tokens, .seed = 11 };
}

/* A prompt of `count` ids; equal `text` means equal ids at equal positions. */
static inline void world_prompt(struct track *t, uint32_t text, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        t->ids[i] = (int32_t)((i * 7 + text * 13 + i * i * text) % MOCK_VOCAB);
    t->prompt_count = t->id_count = count;
}

/* Makes the track at `slot`; ids are filled by the caller before world_add. */
static inline struct track *world_new(struct world *w, uint16_t slot, enum seq_mode mode,
                               struct sampling params)
{
    struct track *t = &w->tracks[slot];
    memset(t, 0, sizeof *t);
    t->req = (struct req_id){ .slot = slot, .generation = ++w->generation };
    t->mode = mode;
    t->params = params;
    return t;
}

static inline enum err world_add(struct world *w, struct track *t, int32_t priority, uint32_t *held)
{
    bool scores = t->params.flags & SAMPLING_PROMPT_LOGPROBS && t->mode != SEQ_IMPORT;
    t->given = t->id_count;
    t->score_next = scores ? 1 : t->prompt_count;
    t->live = true;
    struct seq_spec spec = {
        .req = t->req, .mode = t->mode, .ids = t->ids, .id_count = t->id_count,
        .prompt_count = t->prompt_count, .params = t->params, .priority = priority,
    };
    enum err err = engine_add(w->e, &spec, held);
    if (err) t->live = false;
    return err;
}

static inline struct track *world_request(struct world *w, uint16_t slot, enum seq_mode mode,
                                   uint32_t text, uint32_t count, struct sampling params)
{
    struct track *t = world_new(w, slot, mode, params);
    world_prompt(t, text, count);
    assert_int_equal(world_add(w, t, 0, NULL), OK);
    return t;
}

static inline void world_drop(struct world *w, struct track *t)
{
    assert_true(engine_drop(w->e, t->req));
    t->dropped = true;
    assert_false(engine_drop(w->e, t->req));
}

#endif
