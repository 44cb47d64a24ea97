/* gateway/overlap.c - see overlap.h.
 *
 * A table of sets of WAYS entries; within a set the one used longest ago is replaced.
 */
#include "gateway/overlap.h"

#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/mem.h"

enum { WAYS = 4, SETS = OVERLAP_KEYS / WAYS };
_Static_assert(JOBS_MAX <= 16, "a job is a bit of `jobs`");

struct entry {
    uint64_t key;                     /* 0: free */
    uint32_t used;
    uint16_t jobs;
};

struct overlap {
    struct hash_secret secret;
    uint32_t clock;
    struct entry entries[SETS][WAYS];
};

struct overlap *overlap_open(void)
{
    struct overlap *o = mem_alloc(sizeof *o);
    secret_random(&o->secret, sizeof o->secret);
    return o;
}

void overlap_close(struct overlap *o)
{
    free(o);
}

/* The key of the block after `before`. */
static uint64_t next_key(const struct overlap *o, uint64_t before, const int32_t *ids)
{
    struct { uint64_t before; int32_t ids[OVERLAP_BLOCK_TOKENS]; } block;
    block.before = before;
    memcpy(block.ids, ids, sizeof block.ids);
    uint64_t key = hash_sip128(o->secret, &block, sizeof block).lo;
    return key ? key : 1;
}

static uint32_t block_count(uint32_t tokens)
{
    uint32_t count = tokens / OVERLAP_BLOCK_TOKENS;
    return count < OVERLAP_BLOCKS_MAX ? count : OVERLAP_BLOCKS_MAX;
}

static const struct entry *find(const struct overlap *o, uint64_t key)
{
    const struct entry *set = o->entries[key % SETS];
    for (int i = 0; i < WAYS; i++) {
        if (set[i].key == key) return &set[i];
    }
    return NULL;
}

void overlap_look(const struct overlap *o, uint64_t salt, const int32_t *ids, uint32_t count,
                  uint32_t tokens_out[JOBS_MAX])
{
    uint64_t key = salt;
    uint16_t alive = UINT16_MAX;
    memset(tokens_out, 0, JOBS_MAX * sizeof *tokens_out);
    for (uint32_t i = 0; i < block_count(count) && alive; i++) {
        key = next_key(o, key, ids + i * OVERLAP_BLOCK_TOKENS);
        const struct entry *e = find(o, key);
        alive &= e ? e->jobs : 0;
        for (uint32_t job = 0; job < JOBS_MAX; job++) {
            if (alive >> job & 1) tokens_out[job] += OVERLAP_BLOCK_TOKENS;
        }
    }
}

static struct entry *take(struct overlap *o, uint64_t key)
{
    struct entry *set = o->entries[key % SETS], *oldest = set;
    for (int i = 0; i < WAYS; i++) {
        if (set[i].key == key) return &set[i];
        if (o->clock - set[i].used > o->clock - oldest->used) oldest = &set[i];
    }
    *oldest = (struct entry){ .key = key };
    return oldest;
}

void overlap_add(struct overlap *o, uint64_t salt, const int32_t *ids, uint32_t count, uint32_t job)
{
    uint64_t key = salt;
    o->clock++;
    for (uint32_t i = 0; i < block_count(count); i++) {
        key = next_key(o, key, ids + i * OVERLAP_BLOCK_TOKENS);
        struct entry *e = take(o, key);
        e->used = o->clock;
        e->jobs |= (uint16_t)(1u << job);
    }
}

void overlap_forget(struct overlap *o, uint32_t job)
{
    for (int i = 0; i < SETS; i++) {
        for (int k = 0; k < WAYS; k++) o->entries[i][k].jobs &= (uint16_t)~(1u << job);
    }
}
