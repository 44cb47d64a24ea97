/* tests/cusim/nccl_world.h - the memory in which the ranks of one communicator meet.
 *
 * A file in /dev/shm named by the unique id, mapped by every rank, be it a process or a thread.
 * All counters only grow, each has one writer, and a reader that sees a count sees what came
 * before it.
 */
#ifndef CUSIM_NCCL_WORLD_H
#define CUSIM_NCCL_WORLD_H

#include <stdatomic.h>

#include "report.h"

enum { RANKS_MAX = 16, CHUNK_BYTES = 64 * 1024 };

/* What one side says about an operation; the other must say the same. */
struct nccl_terms {
    uint64_t count;
    int32_t type;
};

/* A rank's part in one meeting place: operations posted, and chunks that it wrote and has read,
 * over all operations there. */
enum { POSTED, WROTE, READ };
struct nccl_part {
    _Atomic uint64_t count[READ + 1];
    struct nccl_terms terms;
    uint8_t chunk[CHUNK_BYTES];
};

struct nccl_world {
    _Atomic uint32_t size, joined;
    _Atomic uint64_t progress;                      /* any counter that moved */
    _Atomic uint64_t stuck[RANKS_MAX];              /* progress + 1 at which a rank saw no way on */
    _Atomic int32_t pid[RANKS_MAX];
    struct nccl_part pairs[RANKS_MAX][RANKS_MAX][2];    /* from, to; both ends */
};

/* Maps the world of this id; `rank` joins it.  NULL if the file cannot be made. */
struct nccl_world *world_join(const char *id, int size, int rank, int *lock_file);
/* True when the process of `rank` has ended: a process holds a lock on its byte while it lives. */
bool world_rank_gone(const struct nccl_world *w, int lock_file, int rank);
void world_leave(struct nccl_world *w);

#endif
