/* engine/seq.c - sequences: making them, finding them, their lists and their blocks.
 *
 * A sequence's arrays are taken once, for the longest it can get, so nothing grows while it runs.
 * blocks[0 .. stored_count) are findable in the pool, one chain from its root.
 */
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "engine/state.h"

static uint32_t blocks_for(const struct engine *e, uint32_t tokens)
{
    return (tokens + e->shape.block_tokens - 1) / e->shape.block_tokens;
}

static bool params_valid(const struct engine *e, const struct sampling *p,
                         const struct logit_bias *bias)
{
    if (p->max_tokens < 1 || p->stop_id_count > STOP_IDS_MAX ||
        p->eos_id_count > p->stop_id_count || p->bias_count > LOGIT_BIAS_MAX ||
        p->top_count > TOP_LOGPROBS_MAX || p->prompt_top_count > TOP_LOGPROBS_MAX)
        return false;
    for (uint32_t i = 0; i < p->bias_count; i++)
        if (bias[i].id < 0 || (uint32_t)bias[i].id >= e->vocab) return false;
    return true;
}

static enum err spec_check(const struct engine *e, const struct seq_spec *s)
{
    if (s->req.generation == 0 || s->prompt_count < 1 || s->prompt_count > s->id_count)
        return ERR_FORMAT;
    if (!params_valid(e, &s->params, s->bias)) return ERR_FORMAT;
    /* At least one new token must have room. */
    if (s->id_count >= e->config.max_model_len) return ERR_LIMIT;
    if (s->id_count - s->prompt_count >= s->params.max_tokens) return ERR_LIMIT;
    for (uint32_t i = 0; i < s->id_count; i++)
        if (s->ids[i] < 0 || (uint32_t)s->ids[i] >= e->vocab) return ERR_FORMAT;
    if (seq_find(e, s->req)) return ERR_STALE;
    return e->seq_count < REQ_COUNT_MAX ? OK : ERR_FULL;
}

static void copy_spec(struct engine *e, struct seq *s, const struct seq_spec *spec)
{
    uint32_t room = e->config.max_model_len - spec->prompt_count;
    bool scores = spec->params.flags & SAMPLING_PROMPT_LOGPROBS && spec->mode != SEQ_IMPORT;
    *s = (struct seq){
        .req = spec->req,
        .mode = spec->mode,
        .priority = spec->priority,
        .arrival = ++e->arrivals,
        .params = spec->params,
        .limit = spec->prompt_count +
                 (spec->params.max_tokens < room ? spec->params.max_tokens : room),
        .prompt_count = spec->prompt_count,
        .fill_count = spec->id_count,
        .id_count = spec->id_count,
        .target = spec->id_count,
        .score_next = scores ? 1 : spec->prompt_count,
        .root = kv_key_root(e->config.kv_secret, &e->scope, spec->cache_salt),
    };
    /* Not zeroed: most sequences end long before their limit, and never touch the rest. */
    s->ids = mem_resize(NULL, s->limit, sizeof *s->ids);
    memcpy(s->ids, spec->ids, spec->id_count * sizeof *s->ids);
    s->bias = mem_array(spec->params.bias_count, sizeof *s->bias);
    if (spec->params.bias_count)
        memcpy(s->bias, spec->bias, spec->params.bias_count * sizeof *s->bias);
    s->blocks = mem_resize(NULL, blocks_for(e, s->limit), sizeof *s->blocks);
    s->keys = mem_resize(NULL, s->limit / e->shape.block_tokens, sizeof *s->keys);
    if (s->mode == SEQ_IMPORT) s->arrived = mem_array(e->shape.layers, sizeof *s->arrived);
}

static void list_unlink(struct seq_list *l, struct seq *s)
{
    *(s->prev ? &s->prev->next : &l->head) = s->next;
    *(s->next ? &s->next->prev : &l->tail) = s->prev;
    s->prev = s->next = NULL;
    l->count--;
}

/* In order of priority, then arrival; searched from the end, where nearly all belong. */
static void list_insert(struct seq_list *l, struct seq *s)
{
    struct seq *after = l->tail;
    while (after && seq_before(s, after)) after = after->prev;
    s->prev = after;
    s->next = after ? after->next : l->head;
    *(s->next ? &s->next->prev : &l->tail) = s;
    *(after ? &after->next : &l->head) = s;
    l->count++;
}

bool seq_before(const struct seq *a, const struct seq *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
}

void seq_move(struct engine *e, struct seq *s, enum seq_state state)
{
    list_unlink(&e->lists[s->state], s);
    s->state = state;
    list_insert(&e->lists[state], s);
}

enum err seq_new(struct engine *e, const struct seq_spec *spec, struct seq **out)
{
    enum err err = spec_check(e, spec);
    if (err) return err;
    struct seq *s = mem_alloc(sizeof *s);
    copy_spec(e, s, spec);
    struct seq **slot = &e->slots[s->req.slot % REQ_COUNT_MAX];
    s->slot_next = *slot;
    *slot = s;
    s->state = spec->mode == SEQ_IMPORT ? SEQ_LOADING : SEQ_WAITING;
    list_insert(&e->lists[s->state], s);
    e->seq_count++;
    *out = s;
    return OK;
}

struct seq *seq_find(const struct engine *e, struct req_id req)
{
    struct seq *s = e->slots[req.slot % REQ_COUNT_MAX];
    while (s && !req_id_equal(s->req, req)) s = s->slot_next;
    return s;
}

void seq_forget(struct engine *e, struct seq *s)
{
    struct seq **at = &e->slots[s->req.slot % REQ_COUNT_MAX];
    while (*at != s) at = &(*at)->slot_next;
    *at = s->slot_next;
    list_unlink(&e->lists[s->state], s);
    s->dropped = true;
}

void seq_free(struct engine *e, struct seq *s)
{
    if (!s->dropped) seq_forget(e, s);
    seq_release(e, s);
    e->seq_count--;
    free(s->ids);
    free(s->bias);
    free(s->blocks);
    free(s->keys);
    free(s->arrived);
    free(s);
}

static struct hash128 key_parent(const struct seq *s, uint32_t block)
{
    return block ? s->keys[block - 1] : s->root;
}

static struct hash128 key_of(struct engine *e, struct seq *s, uint32_t block)
{
    uint32_t size = e->shape.block_tokens;
    for (; s->key_count <= block; s->key_count++)
        s->keys[s->key_count] = kv_key_next(e->config.kv_secret, key_parent(s, s->key_count),
                                            s->ids + s->key_count * size, size);
    return s->keys[block];
}

static uint32_t block_before(const struct seq *s, uint32_t block)
{
    return block ? s->blocks[block - 1] : KV_BLOCK_NONE;
}

/* Puts the cached blocks of the longest known prefix into s->blocks, without holding them. */
static uint32_t match_prefix(struct engine *e, struct seq *s)
{
    if (!e->config.enable_prefix_caching || seq_scores(s)) return 0;
    uint32_t size = e->shape.block_tokens;
    uint32_t most = (s->id_count - 1) / size;   /* the last token is always computed */
    for (uint32_t i = 0; i < most; i++) {
        uint32_t block = kv_pool_find(e->pool, key_of(e, s, i), block_before(s, i),
                                      s->ids + i * size);
        if (block == KV_BLOCK_NONE) return i;
        s->blocks[i] = block;
    }
    return most;
}

uint32_t seq_adopt(struct engine *e, struct seq *s)
{
    uint32_t size = e->shape.block_tokens, found = 0;
    if (!e->config.enable_prefix_caching || seq_scores(s) || s->store_ended) return 0;
    while (s->computed == s->stored_count * size && s->computed + size < s->id_count) {
        uint32_t i = s->stored_count;
        uint32_t block = kv_pool_find(e->pool, key_of(e, s, i), block_before(s, i),
                                      s->ids + i * size);
        if (block == KV_BLOCK_NONE) break;
        kv_pool_hold(e->pool, block);
        kv_pool_release(e->pool, &s->blocks[i], 1);
        s->blocks[i] = block;
        s->stored_count++;
        s->computed += size;
        found += size;
    }
    return found;
}

bool seq_same_block(struct engine *e, struct seq *s, struct seq *other, uint32_t block)
{
    return hash_equal(key_of(e, s, block), key_of(e, other, block));
}

uint32_t seq_cached(struct engine *e, struct seq *s)
{
    CHECK(s->block_count == 0);
    return match_prefix(e, s) * e->shape.block_tokens;
}

bool seq_reserve(struct engine *e, struct seq *s, uint32_t tokens)
{
    CHECK(s->block_count == 0 && tokens <= s->limit);
    uint32_t want = blocks_for(e, tokens), matched = match_prefix(e, s);
    struct kv_pool_counts c = kv_pool_counts(e->pool);
    uint32_t room = c.free + c.cached;
    for (uint32_t i = 0; i < matched; i++) room -= !kv_pool_is_held(e->pool, s->blocks[i]);
    if (want - matched > room) return false;
    for (uint32_t i = 0; i < matched; i++) kv_pool_hold(e->pool, s->blocks[i]);
    for (uint32_t i = matched; i < want; i++) {
        s->blocks[i] = kv_pool_take(e->pool);
        CHECK(s->blocks[i] != KV_BLOCK_NONE);
    }
    s->block_count = want;
    s->stored_count = matched;
    s->store_ended = false;
    s->computed = matched * e->shape.block_tokens;
    return true;
}

uint32_t seq_hold_cached(struct engine *e, struct seq *s)
{
    uint32_t matched = match_prefix(e, s);
    CHECK(s->block_count == 0);
    for (uint32_t i = 0; i < matched; i++) kv_pool_hold(e->pool, s->blocks[i]);
    s->block_count = s->stored_count = matched;
    s->computed = matched * e->shape.block_tokens;
    return s->computed;
}

void seq_release(struct engine *e, struct seq *s)
{
    kv_pool_release(e->pool, s->blocks, s->block_count);
    s->block_count = s->stored_count = s->computed = 0;
}

void seq_store(struct engine *e, struct seq *s)
{
    if (!e->config.enable_prefix_caching) return;
    uint32_t size = e->shape.block_tokens;
    while (!s->store_ended && s->stored_count < s->computed / size &&
           s->stored_count < e->prefix_blocks_max) {
        uint32_t i = s->stored_count;
        uint32_t block = kv_pool_store(e->pool, s->blocks[i], block_before(s, i), key_of(e, s, i),
                                       key_parent(s, i), s->ids + i * size);
        if (block == KV_BLOCK_NONE) {
            s->store_ended = true;
            return;
        }
        s->blocks[i] = block;
        s->stored_count++;
    }
}
