/* kv/index.c - see index.h: the table of keys, the workers' streams, and forgetting the lost.
 *
 * Open addressing, at most two thirds full.  Keys come from a keyed hash, so their low half is a
 * good hash already.  An entry without holders does not exist, except those that only lost workers
 * held: sweep() removes them, from sweep_at on, a few slots a change.
 */
#include "kv/index.h"

#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/mem.h"
#include "kv/index_inside.h"

enum {
    SWEEP_SLOTS = 8,                  /* a change, while there is something to sweep */
    BITMAPS_MIN = 1024,
    BITMAPS_MAX = 1 << 16,
    KEYS_PER_BITMAP = 32,
};

struct kv_index *kv_index_open(uint64_t block_max, uint32_t rank_count)
{
    CHECK(block_max >= 1 && block_max <= UINT64_C(1) << 40);
    CHECK(rank_count >= 1 && rank_count <= WORKER_COUNT_MAX + 1);
    struct kv_index *x = mem_alloc(sizeof *x);
    x->block_max = block_max;
    x->slot_count = block_max + block_max / 2 + 2;
    x->rank_count = rank_count;
    x->slots = mem_array(x->slot_count, sizeof *x->slots);
    uint64_t bitmaps = BITMAPS_MIN + block_max / KEYS_PER_BITMAP;
    sets_open(&x->sets, bitmaps < BITMAPS_MAX ? (uint32_t)bitmaps : BITMAPS_MAX);
    return x;
}

void kv_index_close(struct kv_index *x)
{
    if (!x) return;
    sets_close(&x->sets);
    free(x->slots);
    free(x);
}

/* -- the table -------------------------------------------------------------------------------- */

static uint64_t after(const struct kv_index *x, uint64_t at)
{
    return at + 1 == x->slot_count ? 0 : at + 1;
}

static uint64_t distance(const struct kv_index *x, uint64_t from, uint64_t to)
{
    return to >= from ? to - from : to + x->slot_count - from;
}

/* Empties a slot and moves later entries of its run up, so that no search stops early. */
static void slot_remove(struct kv_index *x, uint64_t hole)
{
    uint64_t first = hole, at = after(x, hole);
    set_drop(&x->sets, x->slots[hole].holders);
    for (; x->slots[at].holders; at = after(x, at)) {
        uint64_t home = index_home(x, x->slots[at].key);
        if (distance(x, home, at) < distance(x, hole, at)) continue;
        x->slots[hole] = x->slots[at];
        hole = at;
    }
    x->slots[hole] = (struct slot){ 0 };
    x->keys--;
    /* What was not swept yet may have moved to where the sweep has been. */
    if (x->dirty && first < x->sweep_at && (at >= x->sweep_at || at < first)) x->sweep_at = first;
}

static void sweep(struct kv_index *x, uint64_t slots)
{
    while (x->dirty && slots--) {
        struct slot *e = &x->slots[x->sweep_at];
        if (e->holders && set_is_empty(&x->sets, e->holders)) {
            slot_remove(x, x->sweep_at);
            continue;                 /* another entry may be here now */
        }
        x->dirty = ++x->sweep_at < x->slot_count;
    }
}

/* Inline holders of lost incarnations that still have company stay until they are touched; their
 * tags may be used again only after this. */
static void scrub_all(struct kv_index *x)
{
    x->sweep_at = 0;
    x->dirty = true;
    sweep(x, UINT64_MAX);
    for (uint64_t i = 0; i < x->slot_count; i++) {
        if (x->slots[i].holders) set_scrub(&x->sets, &x->slots[i].holders);
    }
    for (uint32_t r = 0; r < x->rank_count; r++) x->workers[r].tags_used = 0;
}

/* -- workers ---------------------------------------------------------------------------------- */

static void forget(struct kv_index *x, uint32_t rank)
{
    struct index_worker *w = &x->workers[rank];
    if (!w->up) return;
    sets_forget(&x->sets, rank);
    if (w->count > 0) {
        x->dirty = true;
        x->sweep_at = 0;
    }
    w->up = false;
    w->count = w->refused = 0;
    w->xored = w->refused_xored = (struct hash128){ 0 };
}

void kv_index_up(struct kv_index *x, uint32_t rank, uint32_t epoch, uint64_t next_seq)
{
    CHECK(rank > 0 && rank < x->rank_count);
    struct index_worker *w = &x->workers[rank];
    forget(x, rank);
    if (++w->tags_used == TAG_COUNT) {
        scrub_all(x);
        w->tags_used = 1;
    }
    w->tag = (w->tag + 1) % TAG_COUNT;
    x->sets.live[rank] = (uint16_t)(w->tag << RANK_BITS | rank);
    w->up = true;
    w->epoch = epoch;
    w->next_seq = next_seq;
}

void kv_index_lost(struct kv_index *x, uint32_t rank)
{
    CHECK(rank < x->rank_count);
    forget(x, rank);
}

static void xor_into(struct hash128 *sum, struct hash128 key)
{
    sum->lo ^= key.lo;
    sum->hi ^= key.hi;
}

static void refuse(struct kv_index *x, struct index_worker *w, struct hash128 key)
{
    w->refused++;
    xor_into(&w->refused_xored, key);
    x->stats.refused++;
}

static bool stored(struct kv_index *x, uint32_t rank, struct hash128 key)
{
    struct index_worker *w = &x->workers[rank];
    uint64_t at = index_find(x, key);
    struct slot *e = &x->slots[at];
    if (!e->holders && x->keys == x->block_max && x->dirty) {
        sweep(x, UINT64_MAX);
        at = index_find(x, key);
        e = &x->slots[at];
    }
    if (e->holders && set_has(&x->sets, e->holders, rank)) return false;
    bool fresh = e->holders == 0;
    if ((fresh && x->keys == x->block_max) || !set_add(&x->sets, &e->holders, rank)) {
        refuse(x, w, key);
        return true;
    }
    e->key = key;
    x->keys += fresh;
    w->count++;
    xor_into(&w->xored, key);
    return true;
}

/* No bitmap is left for the set without `rank`: nobody is known to hold the key from now on. */
static void refuse_all(struct kv_index *x, uint64_t at)
{
    uint64_t bits[SET_WORDS];
    struct hash128 key = x->slots[at].key;
    set_members(&x->sets, x->slots[at].holders, bits);
    for (uint32_t rank = 0; rank < x->rank_count; rank++) {
        if (!(bits[rank / 64] >> (rank % 64) & 1)) continue;
        struct index_worker *w = &x->workers[rank];
        w->count--;
        xor_into(&w->xored, key);
        refuse(x, w, key);
    }
    slot_remove(x, at);
}

static bool dropped(struct kv_index *x, uint32_t rank, struct hash128 key)
{
    struct index_worker *w = &x->workers[rank];
    uint64_t at = index_find(x, key);
    struct slot *e = &x->slots[at];
    if (e->holders && set_has(&x->sets, e->holders, rank)) {
        if (!set_remove(&x->sets, &e->holders, rank)) {
            refuse_all(x, at);
        } else {
            w->count--;
            xor_into(&w->xored, key);
            if (!e->holders) {
                e->holders = 1;       /* a word that names no bitmap, for slot_remove */
                slot_remove(x, at);
            }
            return true;
        }
    }
    if (w->refused == 0) return false;
    w->refused--;
    xor_into(&w->refused_xored, key);
    return true;
}

static enum err broken(struct kv_index *x, uint32_t rank)
{
    x->stats.broken++;
    forget(x, rank);
    return ERR_FORMAT;
}

enum err kv_index_apply(struct kv_index *x, uint32_t rank, uint32_t epoch, uint64_t seq,
                        const struct kv_change *changes, size_t count)
{
    struct index_worker *w = rank < x->rank_count ? &x->workers[rank] : NULL;
    if (!w || !w->up || w->epoch != epoch || seq < w->next_seq) {
        x->stats.stale++;
        return ERR_STALE;
    }
    if (seq > w->next_seq) return broken(x, rank);
    for (size_t i = 0; i < count; i++) {
        if (x->dirty) sweep(x, SWEEP_SLOTS);
        if (i + 4 < count) __builtin_prefetch(&x->slots[index_home(x, changes[i + 4].key)]);
        bool possible = changes[i].stored == 1   ? stored(x, rank, changes[i].key)
                        : changes[i].stored == 0 ? dropped(x, rank, changes[i].key)
                                                 : false;
        if (!possible) return broken(x, rank);
        x->stats.changes++;
        w->next_seq++;
    }
    return OK;
}

bool kv_index_agrees(struct kv_index *x, uint32_t rank, uint64_t count, struct hash128 xored)
{
    CHECK(rank < x->rank_count);
    const struct index_worker *w = &x->workers[rank];
    xor_into(&xored, w->xored);
    xor_into(&xored, w->refused_xored);
    bool same = w->up && count == w->count + w->refused && !xored.lo && !xored.hi;
    x->stats.mismatches += !same;
    return same;
}

uint64_t kv_index_next_seq(const struct kv_index *x, uint32_t rank)
{
    return rank < x->rank_count && x->workers[rank].up ? x->workers[rank].next_seq : 0;
}

void kv_index_stats(const struct kv_index *x, struct kv_index_stats *out)
{
    *out = x->stats;
    out->keys = x->keys;
    out->sets = x->sets.used;
    out->bytes = sizeof *x + x->slot_count * sizeof *x->slots + sets_bytes(&x->sets);
}

void kv_index_check(const struct kv_index *x)
{
    uint64_t keys = 0, refs = 0, map_refs = 0;
    struct index_worker *seen = mem_array(x->rank_count, sizeof *seen);
    for (uint64_t i = 0; i < x->slot_count; i++) {
        const struct slot *e = &x->slots[i];
        if (!e->holders) continue;
        keys++;
        CHECK(index_find(x, e->key) == i);
        CHECK(x->dirty || !set_is_empty(&x->sets, e->holders));
        uint64_t bits[SET_WORDS];
        set_members(&x->sets, e->holders, bits);
        refs += (e->holders & 0xffff) == SET_MARK;
        for (uint32_t r = 0; r < x->rank_count; r++) {
            if (!(bits[r / 64] >> (r % 64) & 1)) continue;
            seen[r].count++;
            xor_into(&seen[r].xored, e->key);
        }
    }
    CHECK(keys == x->keys && keys <= x->block_max);
    for (uint32_t r = 0; r < x->rank_count; r++) {
        CHECK(seen[r].count == x->workers[r].count);
        CHECK(hash_equal(seen[r].xored, x->workers[r].xored));
    }
    for (uint32_t i = 0; i < x->sets.max; i++) map_refs += x->sets.maps[i].refs;
    CHECK(refs == map_refs);
    free(seen);
}
