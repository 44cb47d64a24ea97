/* kv/index.h - which worker holds which block: the exact index that rank 0 keeps of all workers.
 *
 * Key of a full block -> set of workers.  Each worker tells, in order, what its pool stored and
 * dropped; its stream is numbered, and belongs to one incarnation of the worker (epoch).  A stream
 * with a gap, or with a change that cannot be (stored twice, dropped but never stored), is not
 * believed any longer: everything of that worker is forgotten until it starts again
 * (kv_index_up) with a snapshot.  At any time the worker's own count and xor of its keys can be
 * compared with the index's (kv_index_agrees).
 *
 * A set of up to four workers is the eight bytes of an entry; larger ones are bitmaps, each kept
 * once and counted.  A worker is named in an entry together with a tag of its incarnation, so that
 * losing it is one change of the tag: its entries stop counting at once and are removed later, as
 * the index is used (a few slots a change).
 *
 * A rank never drops a block whose child it holds (kv/pool.h).  So along the keys of one prompt the
 * set of holders only shrinks, two equal sets have only equal ones between them, and a lookup over
 * the whole chain for all workers probes few keys.
 *
 * All memory is taken at open.  When the index is full a new key is refused and counted; what a
 * worker holds beyond the index is still part of its count and xor.  Entries are hints: a worker
 * checks the ids itself, so a wrong one costs a recompute and never an answer.
 */
#ifndef RANKSERVE_KV_INDEX_H
#define RANKSERVE_KV_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/hash.h"

struct kv_index;

/* One change of a worker's pool.  Same layout as struct block_change of wire/msg.h. */
struct kv_change {
    struct hash128 key, parent;
    uint64_t stored;                  /* 1: stored; 0: dropped */
};

struct kv_index_stats {
    uint64_t keys;                    /* in the table; those of lost workers leave by and by    */
    uint64_t changes;                 /* applied */
    uint64_t refused;                 /* keys not taken: no room                                */
    uint64_t stale;                   /* messages of another epoch or of the past, ignored      */
    uint64_t broken;                  /* streams not believed: a gap, or what cannot be         */
    uint64_t mismatches;              /* kv_index_agrees said no                                */
    uint64_t sets;                    /* bitmaps in use */
    uint64_t bytes;                   /* memory of the whole index                              */
};

/* Room for block_max keys held by ranks 1 .. rank_count-1. */
struct kv_index *kv_index_open(uint64_t block_max, uint32_t rank_count);
void kv_index_close(struct kv_index *x);

/* A worker starts a stream: it holds nothing, and its next change has number next_seq.  Also after
 * a mismatch, before a snapshot: what was known of it is forgotten. */
void kv_index_up(struct kv_index *x, uint32_t rank, uint32_t epoch, uint64_t next_seq);
/* It holds nothing any more. */
void kv_index_lost(struct kv_index *x, uint32_t rank);

/* Changes number seq, seq + 1, ...  ERR_STALE: not up, another epoch, or numbers already seen:
 * ignored.  ERR_FORMAT: a gap or an impossible change: the worker's entries are forgotten, and
 * nothing is taken from it until kv_index_up. */
enum err kv_index_apply(struct kv_index *x, uint32_t rank, uint32_t epoch, uint64_t seq,
                        const struct kv_change *changes, size_t count);

/* Is this what the index believes of the worker: how many keys it holds, and all of them xored? */
bool kv_index_agrees(struct kv_index *x, uint32_t rank, uint64_t count, struct hash128 xored);
/* Number of the change expected next; 0: not up. */
uint64_t kv_index_next_seq(const struct kv_index *x, uint32_t rank);

/* held[rank] = how many leading keys of the chain that worker holds, for ranks 0 .. rank_count-1;
 * returns the most.  Exact up to about 500 different lengths in one prompt; beyond that some are
 * given too short, never too long. */
uint32_t kv_index_match(const struct kv_index *x, const struct hash128 *keys, uint32_t key_count,
                        uint32_t *held);

void kv_index_stats(const struct kv_index *x, struct kv_index_stats *out);
/* CHECKs every invariant; walks everything. */
void kv_index_check(const struct kv_index *x);

#endif
