/* engine/prefix.c - prefixes by themselves: held here to be read, or brought here to be found.
 *
 * Both are sequences that never run.  What is held is a HOLDING sequence of cached blocks; what is
 * brought comes as to an IMPORT sequence, whose blocks are stored and left in the cache.
 */
#include "engine/state.h"

enum err engine_prefix_hold(struct engine *e, const struct seq_spec *spec, uint32_t *tokens)
{
    struct seq *s;
    CHECK(spec->mode == SEQ_PREFILL);
    enum err err = seq_new(e, spec, &s);
    if (err) return err;
    *tokens = seq_hold_cached(e, s);
    if (*tokens == 0) {
        seq_free(e, s);
        return ERR_GONE;
    }
    seq_move(e, s, SEQ_HOLDING);
    return OK;
}

uint32_t engine_prefix_keep(struct engine *e, struct req_id req)
{
    struct seq *s = seq_find(e, req);
    if (!s || s->state != SEQ_LOADING) return 0;
    uint32_t least = s->fill_count;
    for (uint32_t i = 0; i < e->shape.layers; i++)
        if (s->arrived[i] < least) least = s->arrived[i];
    s->computed = least;
    seq_store(e, s);
    uint32_t kept = s->stored_count * e->shape.block_tokens;
    engine_drop(e, req);
    return kept;
}
