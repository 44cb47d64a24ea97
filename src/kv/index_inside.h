/* kv/index_inside.h - the index's own layout, shared by index.c and index_match.c only. */
#ifndef RANKSERVE_KV_INDEX_INSIDE_H
#define RANKSERVE_KV_INDEX_INSIDE_H

#include "kv/index.h"
#include "kv/index_sets.h"

struct slot {
    struct hash128 key;
    uint64_t holders;                 /* a set's word; 0: the slot is empty */
};

struct index_worker {
    bool up;
    uint32_t tag, tags_used;          /* of its incarnation; how many since the last scrub_all  */
    uint32_t epoch;
    uint64_t next_seq;
    uint64_t count, refused;          /* keys it holds: known here; without room here           */
    struct hash128 xored, refused_xored;
};

struct kv_index {
    uint64_t block_max, slot_count, keys;
    uint64_t sweep_at;
    bool dirty;                       /* entries from sweep_at on may have no live holder       */
    uint32_t rank_count;
    struct slot *slots;
    struct sets sets;
    struct kv_index_stats stats;
    struct index_worker workers[WORKER_COUNT_MAX + 1];
};

static inline uint64_t index_home(const struct kv_index *x, struct hash128 key)
{
    return (uint64_t)(((unsigned __int128)key.lo * x->slot_count) >> 64);
}

/* The slot of `key`, or the empty slot where it belongs. */
static inline uint64_t index_find(const struct kv_index *x, struct hash128 key)
{
    uint64_t at = index_home(x, key);
    while (x->slots[at].holders && !hash_equal(x->slots[at].key, key))
        at = at + 1 == x->slot_count ? 0 : at + 1;
    return at;
}

#endif
