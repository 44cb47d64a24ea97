/* kv/index_sets.h - sets of workers as one word; private to the index.
 *
 *   0                           nobody
 *   up to four 16-bit holders   ascending from the low end, then zeros
 *   SET_MARK in the low 16 bits: the number of a kept bitmap in the high 32
 *
 * A holder is (tag of the incarnation << 11 | rank); it counts while sets.live[rank] equals it.
 * Bitmaps hold live ranks only.  Equal words are equal sets.
 */
#ifndef RANKSERVE_KV_INDEX_SETS_H
#define RANKSERVE_KV_INDEX_SETS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/limits.h"

enum {
    RANK_BITS = 11,
    RANK_MASK = (1 << RANK_BITS) - 1,
    TAG_COUNT = 1 << (16 - RANK_BITS),
    SET_MARK = 0xffff,
    SET_INLINE_MAX = 4,
    SET_WORDS = (WORKER_COUNT_MAX + 1 + 63) / 64,
};
_Static_assert((int)WORKER_COUNT_MAX < (int)RANK_MASK, "a rank fits; the mark is no rank");

struct bitmap {
    uint64_t bits[SET_WORDS];
    uint64_t hash;                    /* xor of its members' */
    uint32_t refs;                    /* entries that name it; 0: free */
    uint32_t next;                    /* in its bucket, or the free list; UINT32_MAX ends      */
};

struct sets {
    uint16_t live[WORKER_COUNT_MAX + 1];  /* the holder that counts now; 0: none */
    uint32_t max, used, free;
    uint32_t bucket_mask;
    uint32_t *buckets;
    struct bitmap *maps;
};

void sets_open(struct sets *s, uint32_t max);
void sets_close(struct sets *s);
uint64_t sets_bytes(const struct sets *s);

bool set_has(const struct sets *s, uint64_t word, uint32_t rank);
/* True when no live worker is in it. */
bool set_is_empty(const struct sets *s, uint64_t word);
/* The word with `rank` (not in it) added, or (in it) removed; takes over the reference that `word`
 * was.  False: no bitmap is free, nothing changed. */
bool set_add(struct sets *s, uint64_t *word, uint32_t rank);
bool set_remove(struct sets *s, uint64_t *word, uint32_t rank);
/* Takes holders of lost incarnations out of an inline word. */
void set_scrub(const struct sets *s, uint64_t *word);
/* Gives up the reference that `word` is. */
void set_drop(struct sets *s, uint64_t word);
/* The live members. */
void set_members(const struct sets *s, uint64_t word, uint64_t bits[SET_WORDS]);
/* The worker's present incarnation ends: out of every bitmap; inline holders stop counting. */
void sets_forget(struct sets *s, uint32_t rank);

#endif
