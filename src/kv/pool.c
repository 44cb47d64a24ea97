/* kv/pool.c - see pool.h.
 *
 * Two doubly linked rings through the blocks' own links: the free blocks, and the cached ones with
 * the oldest first.  Stored blocks are found through an open-addressing table at most half full;
 * keys come from a keyed hash, so their low bits are a good hash already.
 */
#include "kv/pool.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/limits.h"
#include "common/mem.h"

struct block {
    struct hash128 key;               /* valid while stored */
    uint32_t parent;                  /* stored: the block before it, or KV_BLOCK_NONE */
    uint32_t children;                /* stored blocks whose parent this is */
    uint32_t refs;
    uint32_t prev, next;              /* in the free or the cached ring; else unused */
    uint64_t idle_ns;                 /* cached: when its last holder let go */
    bool stored;
};

struct kv_pool {
    struct kv_pool_sink sink;
    uint32_t total, block_tokens;
    uint32_t free_count, cached_count, reached;
    struct kv_pool_limits limits;
    uint64_t now_ns;
    struct block *blocks;             /* (total + 2): the last two are the heads of the rings */
    int32_t *ids;                     /* (total, block_tokens): of stored blocks */
    uint32_t *table;                  /* (table_mask + 1): block + 1, 0 is empty */
    uint32_t table_mask;
};

static uint32_t free_head(const struct kv_pool *p) { return p->total; }
static uint32_t cached_head(const struct kv_pool *p) { return p->total + 1; }

static void ring_open(struct kv_pool *p, uint32_t head)
{
    p->blocks[head].prev = p->blocks[head].next = head;
}

static void ring_push_last(struct kv_pool *p, uint32_t head, uint32_t i)
{
    uint32_t last = p->blocks[head].prev;
    p->blocks[i].prev = last;
    p->blocks[i].next = head;
    p->blocks[last].next = i;
    p->blocks[head].prev = i;
}

static void ring_unlink(struct kv_pool *p, uint32_t i)
{
    struct block *b = &p->blocks[i];
    p->blocks[b->prev].next = b->next;
    p->blocks[b->next].prev = b->prev;
}

struct kv_pool *kv_pool_open(uint32_t block_count, uint32_t block_tokens,
                             const struct kv_pool_sink *sink)
{
    CHECK(block_count >= 1 && block_count <= KV_BLOCK_COUNT_MAX);
    CHECK(block_tokens >= 1 && block_tokens <= KV_BLOCK_TOKENS_MAX);
    struct kv_pool *p = mem_alloc(sizeof *p);
    p->sink = *sink;
    p->total = block_count;
    p->block_tokens = block_tokens;
    p->blocks = mem_array((size_t)block_count + 2, sizeof *p->blocks);
    p->ids = mem_array((size_t)block_count * block_tokens, sizeof *p->ids);
    uint32_t size = 2;
    while (size < 2 * block_count) size *= 2;
    p->table = mem_array(size, sizeof *p->table);
    p->table_mask = size - 1;
    ring_open(p, free_head(p));
    ring_open(p, cached_head(p));
    for (uint32_t i = 0; i < block_count; i++) ring_push_last(p, free_head(p), i);
    p->free_count = block_count;
    return p;
}

void kv_pool_close(struct kv_pool *p)
{
    if (!p) return;
    free(p->blocks);
    free(p->ids);
    free(p->table);
    free(p);
}

static int32_t *ids_of(const struct kv_pool *p, uint32_t block)
{
    return p->ids + (size_t)block * p->block_tokens;
}

/* The place of `key` in the table, or the empty place where it belongs. */
static uint32_t table_place(const struct kv_pool *p, struct hash128 key)
{
    uint32_t at = (uint32_t)key.lo & p->table_mask;
    while (p->table[at] && !hash_equal(p->blocks[p->table[at] - 1].key, key))
        at = (at + 1) & p->table_mask;
    return at;
}

/* Empties a place and moves later entries of its run up, so that no search stops early. */
static void table_remove(struct kv_pool *p, uint32_t hole)
{
    for (uint32_t at = (hole + 1) & p->table_mask; p->table[at]; at = (at + 1) & p->table_mask) {
        uint32_t home = (uint32_t)p->blocks[p->table[at] - 1].key.lo & p->table_mask;
        if (((at - home) & p->table_mask) < ((at - hole) & p->table_mask)) continue;
        p->table[hole] = p->table[at];
        hole = at;
    }
    p->table[hole] = 0;
}

static void forget(struct kv_pool *p, uint32_t i)
{
    struct block *b = &p->blocks[i];
    CHECK(b->stored && b->refs == 0 && b->children == 0);
    table_remove(p, table_place(p, b->key));
    if (b->parent != KV_BLOCK_NONE) p->blocks[b->parent].children--;
    b->stored = false;
    ring_unlink(p, i);
    p->cached_count--;
    if (p->sink.dropped) p->sink.dropped(p->sink.ctx, b->key);
}

uint32_t kv_pool_take(struct kv_pool *p)
{
    uint32_t i;
    if (p->free_count) {
        i = p->blocks[free_head(p)].next;
        ring_unlink(p, i);
        p->free_count--;
    } else if (p->cached_count) {
        i = p->blocks[cached_head(p)].next;
        forget(p, i);
    } else {
        return KV_BLOCK_NONE;
    }
    p->blocks[i].refs = 1;
    if (i >= p->reached) p->reached = i + 1;
    return i;
}

void kv_pool_hold(struct kv_pool *p, uint32_t block)
{
    CHECK(block < p->total && p->blocks[block].stored);
    if (p->blocks[block].refs++ == 0) {
        ring_unlink(p, block);
        p->cached_count--;
    }
}

uint32_t kv_pool_reached(const struct kv_pool *p)
{
    return p->reached;
}

static void free_oldest(struct kv_pool *p)
{
    uint32_t i = p->blocks[cached_head(p)].next;
    forget(p, i);
    ring_push_last(p, free_head(p), i);
    p->free_count++;
}

static void trim(struct kv_pool *p)
{
    const struct kv_pool_limits *l = &p->limits;
    while (p->cached_count && l->cached_max && p->cached_count > l->cached_max) free_oldest(p);
    while (p->cached_count && l->used_max && p->total - p->free_count > l->used_max)
        free_oldest(p);
}

void kv_pool_limit(struct kv_pool *p, const struct kv_pool_limits *limits)
{
    p->limits = *limits;
    trim(p);
    kv_pool_tick(p, p->now_ns);
}

uint64_t kv_pool_tick(struct kv_pool *p, uint64_t now_ns)
{
    p->now_ns = now_ns;
    uint64_t ttl = p->limits.ttl_ns;
    while (ttl && p->cached_count) {
        uint64_t idle = p->blocks[p->blocks[cached_head(p)].next].idle_ns;
        if (idle + ttl > now_ns) return idle + ttl;
        free_oldest(p);
    }
    return UINT64_MAX;
}

void kv_pool_release(struct kv_pool *p, const uint32_t *blocks, uint32_t count)
{
    while (count--) {
        uint32_t i = blocks[count];
        CHECK(i < p->total && p->blocks[i].refs > 0);
        if (--p->blocks[i].refs > 0) continue;
        if (p->blocks[i].stored) {
            ring_push_last(p, cached_head(p), i);
            p->blocks[i].idle_ns = p->now_ns;
            p->cached_count++;
        } else {
            ring_push_last(p, free_head(p), i);
            p->free_count++;
        }
    }
    trim(p);
}

static bool same_contents(const struct kv_pool *p, uint32_t i, uint32_t parent, const int32_t *ids)
{
    return p->blocks[i].parent == parent &&
           memcmp(ids_of(p, i), ids, p->block_tokens * sizeof *ids) == 0;
}

uint32_t kv_pool_find(const struct kv_pool *p, struct hash128 key, uint32_t parent,
                      const int32_t *ids)
{
    uint32_t entry = p->table[table_place(p, key)];
    if (!entry || !same_contents(p, entry - 1, parent, ids)) return KV_BLOCK_NONE;
    return entry - 1;
}

bool kv_pool_is_held(const struct kv_pool *p, uint32_t block)
{
    CHECK(block < p->total);
    return p->blocks[block].refs > 0;
}

uint32_t kv_pool_store(struct kv_pool *p, uint32_t block, uint32_t parent, struct hash128 key,
                       struct hash128 parent_key, const int32_t *ids)
{
    CHECK(block < p->total && p->blocks[block].refs == 1 && !p->blocks[block].stored);
    CHECK(parent == KV_BLOCK_NONE ||
          (parent < p->total && p->blocks[parent].stored && p->blocks[parent].refs > 0));
    uint32_t at = table_place(p, key);
    if (p->table[at]) {
        uint32_t known = p->table[at] - 1;
        if (!same_contents(p, known, parent, ids)) return KV_BLOCK_NONE;
        kv_pool_hold(p, known);
        kv_pool_release(p, &block, 1);
        return known;
    }
    p->table[at] = block + 1;
    struct block *b = &p->blocks[block];
    b->key = key;
    b->parent = parent;
    b->children = 0;
    b->stored = true;
    memcpy(ids_of(p, block), ids, p->block_tokens * sizeof *ids);
    if (parent != KV_BLOCK_NONE) p->blocks[parent].children++;
    if (p->sink.stored) p->sink.stored(p->sink.ctx, key, parent_key);
    return block;
}

void kv_pool_each(const struct kv_pool *p, void *ctx,
                  void (*call)(void *ctx, struct hash128 key, struct hash128 parent))
{
    for (uint32_t i = 0; i < p->total; i++) {
        const struct block *b = &p->blocks[i];
        if (!b->stored) continue;
        bool first = b->parent == KV_BLOCK_NONE;
        call(ctx, b->key, first ? (struct hash128){ 0 } : p->blocks[b->parent].key);
    }
}

void kv_pool_clear(struct kv_pool *p)
{
    while (p->cached_count) free_oldest(p);
}

struct kv_pool_counts kv_pool_counts(const struct kv_pool *p)
{
    return (struct kv_pool_counts){
        .total = p->total,
        .free = p->free_count,
        .held = p->total - p->free_count - p->cached_count,
        .cached = p->cached_count,
    };
}

/* Walks one ring: its length, its links, and that its blocks belong in it. */
static void check_ring(const struct kv_pool *p, uint32_t head, uint32_t count, bool stored,
                       bool *seen)
{
    uint32_t length = 0;
    for (uint32_t i = p->blocks[head].next; i != head; i = p->blocks[i].next) {
        CHECK(i < p->total && length++ < count && !seen[i]);
        CHECK(p->blocks[p->blocks[i].next].prev == i);
        CHECK(p->blocks[i].refs == 0 && p->blocks[i].stored == stored);
        /* Oldest first: a cached child is met before its parent. */
        if (stored && p->blocks[i].parent != KV_BLOCK_NONE) CHECK(!seen[p->blocks[i].parent]);
        seen[i] = true;
    }
    CHECK(length == count);
}

void kv_pool_check(const struct kv_pool *p)
{
    bool *seen = mem_array(p->total, sizeof *seen);
    uint32_t *children = mem_array(p->total, sizeof *children);
    check_ring(p, free_head(p), p->free_count, false, seen);
    check_ring(p, cached_head(p), p->cached_count, true, seen);
    uint32_t held = 0, stored = 0, entries = 0;
    for (uint32_t i = 0; i < p->total; i++) {
        const struct block *b = &p->blocks[i];
        CHECK(seen[i] == (b->refs == 0));
        held += b->refs > 0;
        if (!b->stored) continue;
        stored++;
        CHECK(p->table[table_place(p, b->key)] == i + 1);
        if (b->parent == KV_BLOCK_NONE) continue;
        CHECK(b->parent < p->total && p->blocks[b->parent].stored);
        CHECK(b->refs == 0 || p->blocks[b->parent].refs > 0);
        children[b->parent]++;
    }
    for (uint32_t i = 0; i < p->total; i++)
        CHECK(!p->blocks[i].stored || p->blocks[i].children == children[i]);
    for (uint32_t at = 0; at <= p->table_mask; at++) entries += p->table[at] != 0;
    CHECK(entries == stored);
    CHECK(p->free_count + p->cached_count + held == p->total);
    free(seen);
    free(children);
}
