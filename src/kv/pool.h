/* kv/pool.h - the books of one rank's KV blocks: who holds what, and what can be found again.
 *
 * A block is free (nobody's), held (referenced by sequences) or cached (nobody's, but its contents
 * can be found by key and used again).  The bytes themselves are the backend's; a block here is a
 * number.  A full block is *stored* under its key once its KV is complete; then it may be shared.
 *
 *            kv_pool_take          kv_pool_release, not stored
 *     free --------------> held --------------------------------> free
 *                          |  ^                                     ^
 *       release, stored    v  | kv_pool_hold                        |
 *                         cached ------- taken as the oldest --------
 *
 * Always true: free + held + cached == total.  Whoever holds a stored block holds its parent too
 * (kv_pool_store sees to it by handing back the block that is already known), and releases children
 * first.  So the oldest cached block never has a stored child, eviction takes chains from their
 * tail, and when a block of a prompt is not found none after it is.
 * A key is a hint: kv_pool_find compares parent and ids as well, so by induction the whole prefix.
 * Not here: which ids and keys a sequence has (engine/seq.c), the index of all ranks (sched).
 */
#ifndef RANKSERVE_KV_POOL_H
#define RANKSERVE_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"

#define KV_BLOCK_NONE UINT32_MAX      /* no block; as a parent: the chain begins here */

struct kv_pool;

/* Told of every block that can now be found, or no longer, in order.  Either may be NULL. */
struct kv_pool_sink {
    void *ctx;
    void (*stored)(void *ctx, struct hash128 key, struct hash128 parent);
    void (*dropped)(void *ctx, struct hash128 key);
};

struct kv_pool_counts {
    uint32_t total, free, held, cached;
};

/* All blocks free.  Takes all memory it will ever need. */
struct kv_pool *kv_pool_open(uint32_t block_count, uint32_t block_tokens,
                             const struct kv_pool_sink *sink);
void kv_pool_close(struct kv_pool *p);

/* A block for the caller alone: a free one, else the oldest cached one, which is forgotten.
 * KV_BLOCK_NONE when every block is held. */
uint32_t kv_pool_take(struct kv_pool *p);
/* One more holder of a stored block. */
void kv_pool_hold(struct kv_pool *p, uint32_t block);
/* One holder less, for each of blocks[0..count), which is a chain: the last goes first. */
void kv_pool_release(struct kv_pool *p, const uint32_t *blocks, uint32_t count);

/* The stored block with this key, this parent block and these block_tokens ids, or NONE. */
uint32_t kv_pool_find(const struct kv_pool *p, struct hash128 key, uint32_t parent,
                      const int32_t *ids);
bool kv_pool_is_held(const struct kv_pool *p, uint32_t block);

/* Makes a held, full block findable.  `parent` is stored and held by the caller, or KV_BLOCK_NONE.
 * Returns the block to use from now on: `block`; or the one already stored with equal contents
 * (the caller's reference has moved to it, `block` was released); or KV_BLOCK_NONE when another
 * block has this key: nothing changed, and this sequence stores no more. */
uint32_t kv_pool_store(struct kv_pool *p, uint32_t block, uint32_t parent, struct hash128 key,
                       struct hash128 parent_key, const int32_t *ids);

/* Every stored block's key and its parent's (zero where the chain begins), in no order. */
void kv_pool_each(const struct kv_pool *p, void *ctx,
                  void (*call)(void *ctx, struct hash128 key, struct hash128 parent));

/* What may stay cached, as a CachePolicy says it; 0: no limit.  Takes effect at once and from then
 * on; of what is too much the oldest goes. */
struct kv_pool_limits {
    uint64_t ttl_ns;                  /* since its last holder let go */
    uint32_t cached_max;              /* cached blocks */
    uint32_t used_max;                /* held and cached blocks: above it none stays cached */
};
void kv_pool_limit(struct kv_pool *p, const struct kv_pool_limits *limits);
/* The time, for ttl_ns: blocks let go from now on are that old; drops what is too old.  Returns
 * when the next one will be, UINT64_MAX: never. */
uint64_t kv_pool_tick(struct kv_pool *p, uint64_t now_ns);

/* Forgets every cached block. */
void kv_pool_clear(struct kv_pool *p);

struct kv_pool_counts kv_pool_counts(const struct kv_pool *p);
/* Blocks from 0 up to here have been taken once; the others come next, and in order. */
uint32_t kv_pool_reached(const struct kv_pool *p);
/* CHECKs every invariant; walks the whole pool. */
void kv_pool_check(const struct kv_pool *p);

#endif
