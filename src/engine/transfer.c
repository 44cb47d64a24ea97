/* engine/transfer.c - KV that leaves a PREFILL sequence and KV that enters an IMPORT sequence.
 *
 * What is read is complete in its layer; what is written goes only to blocks that are the
 * sequence's own.  So both may run beside a step: no position is touched that the step writes.
 * What is moved is the KV of all ids that engine_add was given (recovery: prompt and output).
 */
#include "engine/state.h"

uint32_t engine_kv_tokens(const struct engine *e, struct req_id req, uint32_t layer)
{
    const struct seq *s = seq_find(e, req);
    if (!s || s->mode != SEQ_PREFILL || layer >= e->shape.layers) return 0;
    uint32_t tokens = s->computed;
    if (e->step_running && s->in_step &&
        atomic_load_explicit(&e->layers_done, memory_order_acquire) > layer)
        tokens += s->step_count;
    return tokens;
}

static bool range_valid(uint32_t first, uint32_t count, uint32_t end)
{
    return count >= 1 && first <= end && count <= end - first;
}

static bool readable(const struct engine *e, struct req_id req, uint32_t layer, uint32_t layers,
                     uint32_t first, uint32_t count)
{
    if (!range_valid(layer, layers, e->shape.layers)) return false;
    /* Layers complete in order, so the last one of the range has the fewest tokens. */
    return range_valid(first, count, engine_kv_tokens(e, req, layer + layers - 1));
}

bool engine_kv_read(struct engine *e, struct req_id req, uint32_t layer, uint32_t layers,
                    uint32_t first, uint32_t count, void *out)
{
    if (!readable(e, req, layer, layers, first, count)) return false;
    const struct seq *s = seq_find(e, req);
    e->config.table->kv_read(e->backend, s->blocks, layer, layers, first, count, out);
    return true;
}

/* Is this what the sequence waits for next? */
static enum err next_of(const struct engine *e, struct req_id req, uint32_t layer, uint32_t layers,
                        uint32_t first, uint32_t count, struct seq **out)
{
    struct seq *s = *out = seq_find(e, req);
    if (!s || s->state != SEQ_LOADING) return ERR_STALE;
    if (!range_valid(layer, layers, e->shape.layers) ||
        !range_valid(first, count, s->fill_count))
        return ERR_FORMAT;
    for (uint32_t i = layer; i < layer + layers; i++)
        if (s->arrived[i] != first) return ERR_FORMAT;   /* in order, none twice */
    return OK;
}

enum err engine_import(struct engine *e, struct req_id req, uint32_t layer, uint32_t layers,
                       uint32_t first, uint32_t count, const void *bytes, uint64_t byte_count)
{
    struct seq *s;
    enum err err = next_of(e, req, layer, layers, first, count, &s);
    if (err) return err;
    if (byte_count != (uint64_t)layers * count * e->shape.token_bytes) return ERR_FORMAT;
    e->config.table->kv_write(e->backend, s->blocks, layer, layers, first, count, bytes);
    for (uint32_t i = layer; i < layer + layers; i++) s->arrived[i] = first + count;
    return OK;
}

const struct backend_lanes *engine_lanes(const struct engine *e, void **self)
{
    const struct backend_lanes *lanes = e->config.table->lanes;
    *self = e->backend;
    return lanes && lanes->version(e->backend) ? lanes : NULL;
}

bool engine_lane_send(struct engine *e, struct req_id req, struct lane *lane, uint32_t layer,
                      uint32_t layers, uint32_t first, uint32_t count)
{
    if (!readable(e, req, layer, layers, first, count)) return false;
    struct lane_part part = { .blocks = seq_find(e, req)->blocks, .layer = layer,
                              .layers = layers, .first = first, .count = count };
    e->config.table->lanes->send(lane, &part);
    return true;
}

enum err engine_lane_take(struct engine *e, struct req_id req, struct lane *lane, uint32_t layer,
                          uint32_t layers, uint32_t first, uint32_t count)
{
    struct seq *s = NULL;
    enum err err = next_of(e, req, layer, layers, first, count, &s);
    struct lane_part part = { .blocks = s ? s->blocks : NULL, .layer = layer, .layers = layers,
                              .first = first, .count = count };
    e->config.table->lanes->take(lane, err ? NULL : &part);
    for (uint32_t i = layer; err == OK && i < layer + layers; i++) s->arrived[i] = first + count;
    return err;
}

enum err engine_import_done(struct engine *e, struct req_id req, int32_t first_token)
{
    struct seq *s = seq_find(e, req);
    if (!s || s->state != SEQ_LOADING) return ERR_STALE;
    if (first_token < 0 || (uint32_t)first_token >= e->vocab) return ERR_FORMAT;
    for (uint32_t i = 0; i < e->shape.layers; i++)
        if (s->arrived[i] != s->fill_count) return ERR_FORMAT;
    if (s->id_count + 1 >= s->limit) return ERR_LIMIT;   /* nothing left to generate */
    s->computed = s->fill_count;
    s->ids[s->id_count++] = first_token;
    seq_store(e, s);
    seq_move(e, s, SEQ_RUNNING);
    if (!e->step_running) e->work = true;
    return OK;
}
