/* mpi/blocks.h - the stream of which blocks a worker stores and drops: both of its ends.
 *
 * Worker: every change gets the next number, and leaves in BLOCKS messages; STATS carries how far
 * the stream has come and what it leaves stored (count and xor of the keys).
 * Rank 0: puts the streams into the index, and compares at every STATS.  A stream that has a gap,
 * tells what cannot be, or leaves the index with other keys than the worker has, is not believed
 * any longer: rank 0 asks once for all keys (SNAPSHOT) and counts it.  Until they come, nothing
 * counts as cached there: a recompute, never a wrong answer.
 *
 * No MPI in here: messages come in and go out as memory, so that a unit test can break them.
 */
#ifndef RANKSERVE_MPI_BLOCKS_H
#define RANKSERVE_MPI_BLOCKS_H

#include "common/mem.h"
#include "kv/index.h"
#include "wire/msg.h"

/* -- a worker's end --------------------------------------------------------------------------- */

struct blocks_out {
    struct buf changes;               /* struct block_change, not sent yet from `sent` on    */
    size_t sent;                      /* bytes of them                                       */
    uint64_t next_seq;                /* of the first of them; from 1                        */
    uint64_t key_count;               /* stored now */
    struct hash128 keys_xored;
    bool all;                         /* the changes begin with a snapshot                   */
};
void blocks_out_open(struct blocks_out *o);
void blocks_out_release(struct blocks_out *o);
/* For engine_sink; `ctx` is the struct blocks_out. */
void blocks_out_stored(void *ctx, struct hash128 key, struct hash128 parent);
void blocks_out_dropped(void *ctx, struct hash128 key);
/* Before blocks_out_stored is called for every key there is. */
void blocks_out_restart(struct blocks_out *o);
/* How many changes the next message takes; false: none is to be sent. */
bool blocks_out_next(const struct blocks_out *o, uint32_t *count);
/* Fills everything behind the head and the `count` changes that follow it. */
void blocks_out_take(struct blocks_out *o, struct msg_blocks *m, uint32_t count);
void blocks_out_say(const struct blocks_out *o, struct msg_stats *m);

/* -- rank 0's end ----------------------------------------------------------------------------- */

struct blocks_in {
    struct kv_index *index;           /* NULL until every worker is up */
    uint32_t rank_count;
    struct blocks_worker {
        uint32_t epoch;
        bool up;
        bool asked;                   /* a snapshot is on its way                            */
    } *workers;                       /* by rank */
    uint64_t refused;                 /* messages not believed */
    uint64_t checks;                  /* STATS compared with the index                       */
    uint64_t mismatches;              /* of these, those that differ                         */
};
/* block_count: of all workers together. */
void blocks_in_open(struct blocks_in *b, uint64_t block_count, uint32_t rank_count);
void blocks_in_release(struct blocks_in *b);
/* A worker begins to tell, under this epoch. */
void blocks_in_up(struct blocks_in *b, uint32_t rank, uint32_t epoch);
void blocks_in_lost(struct blocks_in *b, uint32_t rank);
/* True: send that worker a SNAPSHOT now. */
bool blocks_in_changes(struct blocks_in *b, uint32_t rank, const struct msg_blocks *m);
bool blocks_in_check(struct blocks_in *b, uint32_t rank, const struct msg_stats *m);

#endif
