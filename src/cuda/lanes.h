/* cuda/lanes.h - what the two files of the lanes share; see engine/lanes.h.
 *
 *   lanes.c   the control thread's side: slots, and the copies between them and the pool
 *   nccl.c    a thread for each lane, which alone speaks to NCCL: its calls may wait for the peer
 *
 * A slot is memory for one transfer on the device.  Sends and receives have slots of their own: a
 * receive that holds one always ends, since its send is on the way, so neither ever waits for the
 * other.  No lane holds more than LANE_FLIGHT of them, so one dead peer does not stop the others.
 *
 * Under `lock`: all of struct lane but what its thread alone uses (stream, comm).
 */
#ifndef RANKSERVE_CUDA_LANES_H
#define RANKSERVE_CUDA_LANES_H

#include <pthread.h>

#include "common/limits.h"
#include "cuda/cuda.h"

enum { LANE_SLOTS = 12, LANE_FLIGHT = 3 };

struct slot {
    bool taken;
    uint8_t *wire;                    /* device (part_bytes)                                  */
    int32_t *table, *table_host;      /* the sequence's blocks that the part lies in          */
    cudaEvent_t pool;                 /* the copy from the pool, or into it, is done          */
    cudaEvent_t moved;                /* it was sent, or received                             */
};

struct job {
    struct slot *slot;                /* of a receive: when it is its turn                    */
    uint64_t bytes, since_ns;
};

struct jobs {
    struct job at[LANE_QUEUE_MAX];
    uint32_t first, count;
};

struct lane {
    struct lanes *all;
    bool used, joined, closing;
    bool sends;
    int size, rank, peer, peer_id;
    uint64_t deadline_ns;
    enum lane_state state;
    uint8_t name[LANE_NAME_BYTES];
    struct jobs queued, flying, arrived;
    cudaStream_t stream;
    struct ncclComm *comm;
};

struct lanes {
    struct cuda *u;
    pthread_mutex_t lock;
    pthread_cond_t moved;             /* something below has changed                          */
    int event_fd, version;
    uint64_t part_bytes;
    uint32_t table_blocks;            /* of a slot's table                                    */
    int32_t *tables_host;             /* pinned, of all slots                                 */
    struct slot out[LANE_SLOTS], in[LANE_SLOTS];
    struct lane lane[LANES_MAX];
};

void lanes_ring(const struct lanes *a);
void jobs_add(struct jobs *q, struct job j);
struct job jobs_take(struct jobs *q);
/* A free one, taken; NULL: none. */
struct slot *slot_take(struct slot *slots);

/* Loads the library, once.  0: it cannot be used, and why. */
int nccl_version(struct why *why);
/* A lane's thread. */
void *nccl_lane(void *lane);

#endif
