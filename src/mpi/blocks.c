/* mpi/blocks.c - changes into messages on one side, messages into the index on the other. */
#include "mpi/blocks.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct block_change) == sizeof(struct kv_change) &&
               offsetof(struct block_change, parent) == offsetof(struct kv_change, parent) &&
               offsetof(struct block_change, stored) == offsetof(struct kv_change, stored),
               "the index reads changes as they came");

enum { CHANGES_MAX = (MSG_BYTES_MAX - sizeof(struct msg_blocks)) / sizeof(struct block_change) };

void blocks_out_open(struct blocks_out *o)
{
    *o = (struct blocks_out){ .next_seq = 1 };
}

void blocks_out_release(struct blocks_out *o)
{
    buf_release(&o->changes);
}

static void change(struct blocks_out *o, struct hash128 key, struct hash128 parent, bool stored)
{
    struct block_change c = { .key = key, .parent = parent, .stored = stored };
    buf_add(&o->changes, &c, sizeof c);
    o->key_count += stored ? 1 : (uint64_t)-1;
    o->keys_xored.lo ^= key.lo;
    o->keys_xored.hi ^= key.hi;
}

void blocks_out_stored(void *ctx, struct hash128 key, struct hash128 parent)
{
    change(ctx, key, parent, true);
}

void blocks_out_dropped(void *ctx, struct hash128 key)
{
    change(ctx, key, (struct hash128){ 0 }, false);
}

void blocks_out_restart(struct blocks_out *o)
{
    buf_clear(&o->changes);
    o->sent = 0;
    o->key_count = 0;
    o->keys_xored = (struct hash128){ 0 };
    o->all = true;
}

static uint64_t waiting(const struct blocks_out *o)
{
    return (o->changes.size - o->sent) / sizeof(struct block_change);
}

bool blocks_out_next(const struct blocks_out *o, uint32_t *count)
{
    uint64_t n = waiting(o);
    *count = n < CHANGES_MAX ? (uint32_t)n : CHANGES_MAX;
    return n > 0 || o->all;
}

void blocks_out_take(struct blocks_out *o, struct msg_blocks *m, uint32_t count)
{
    size_t bytes = count * sizeof(struct block_change);
    m->stream_seq = o->next_seq;
    m->count = count;
    m->flags = o->all ? BLOCKS_ALL : 0;
    if (count) memcpy(m + 1, o->changes.data + o->sent, bytes);
    o->next_seq += count;
    o->all = false;
    o->sent += bytes;
    if (o->sent < o->changes.size) return;
    if (o->changes.room > MSG_BYTES_MAX) buf_release(&o->changes);
    else buf_clear(&o->changes);
    o->sent = 0;
}

void blocks_out_say(const struct blocks_out *o, struct msg_stats *m)
{
    m->stream_seq = o->next_seq + waiting(o);
    m->key_count = o->key_count;
    m->keys_xored = o->keys_xored;
}

/* -- rank 0's end ----------------------------------------------------------------------------- */

void blocks_in_open(struct blocks_in *b, uint64_t block_count, uint32_t rank_count)
{
    if (block_count > INDEX_BLOCK_COUNT_MAX) block_count = INDEX_BLOCK_COUNT_MAX;
    *b = (struct blocks_in){ .index = kv_index_open(block_count, rank_count),
                             .rank_count = rank_count };
    b->workers = mem_array(rank_count, sizeof *b->workers);
}

void blocks_in_release(struct blocks_in *b)
{
    kv_index_close(b->index);
    free(b->workers);
    *b = (struct blocks_in){ 0 };
}

void blocks_in_up(struct blocks_in *b, uint32_t rank, uint32_t epoch)
{
    CHECK(rank > 0 && rank < b->rank_count);
    kv_index_up(b->index, rank, epoch, 1);
    b->workers[rank] = (struct blocks_worker){ .epoch = epoch, .up = true };
}

void blocks_in_lost(struct blocks_in *b, uint32_t rank)
{
    if (!b->index) return;
    kv_index_lost(b->index, rank);
    b->workers[rank].up = false;
}

/* Not believed any more: forget it all, and ask, once. */
static bool distrust(struct blocks_in *b, uint32_t rank)
{
    kv_index_lost(b->index, rank);
    if (b->workers[rank].asked) return false;
    b->workers[rank].asked = true;
    return true;
}

static struct blocks_worker *speaker(const struct blocks_in *b, uint32_t rank)
{
    bool known = b->index && rank > 0 && rank < b->rank_count && b->workers[rank].up;
    return known ? &b->workers[rank] : NULL;
}

bool blocks_in_changes(struct blocks_in *b, uint32_t rank, const struct msg_blocks *m)
{
    struct blocks_worker *w = speaker(b, rank);
    if (!w) return false;
    bool fits = m->head.epoch == w->epoch;
    if (fits && m->flags & BLOCKS_ALL) {
        kv_index_up(b->index, rank, w->epoch, m->stream_seq);
        w->asked = false;
    } else if (w->asked) {
        return false;                 /* all of it comes again */
    }
    enum err e = kv_index_apply(b->index, rank, m->head.epoch, m->stream_seq,
                                (const struct kv_change *)(m + 1), m->count);
    if (e == OK) return false;
    b->refused++;
    return distrust(b, rank);
}

bool blocks_in_check(struct blocks_in *b, uint32_t rank, const struct msg_stats *m)
{
    const struct blocks_worker *w = speaker(b, rank);
    if (!w || w->asked) return false;
    b->checks++;
    if (kv_index_next_seq(b->index, rank) == m->stream_seq &&
        kv_index_agrees(b->index, rank, m->key_count, m->keys_xored))
        return false;
    b->mismatches++;
    return distrust(b, rank);
}
