/* engine/lanes.h - KV from one device straight to another's, without the host's memory.
 *
 * A lane goes one way between two ranks and keeps order: the n-th `receive` takes the n-th `send`.
 * A send copies out of the KV pool first, a receive lands beside it and is copied in by `take`;
 * both copies are in order with all steps that start later.  So a block is never touched by a
 * transfer after the call that began the copy, and whoever drops a sequence waits for nothing.
 *
 *   sender:    open -> STARTING -> NAMED -> join -> JOINING -> READY
 *   receiver:  open (with that name)     ->       JOINING -> READY
 *
 * What fails, or takes longer than the deadline, makes the lane BROKEN at this end: all that is
 * under way on it is lost, and nothing else is.  The other end finds out by its own deadline, or is
 * told (mpi/worker_lane.c).
 *
 * Threads: everything is called by the control thread, returns at once, and is answered through
 * event_fd.  Not here: who wants a lane, what goes over it (mpi/worker_lane.c).
 */
#ifndef RANKSERVE_ENGINE_LANES_H
#define RANKSERVE_ENGINE_LANES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"

enum { LANE_NAME_BYTES = 128 };

enum lane_state { LANE_STARTING, LANE_NAMED, LANE_JOINING, LANE_READY, LANE_BROKEN };

struct lane;                          /* the backend's */

struct lane_spec {
    bool sends;
    int peer_id;                      /* who is there, for the log                               */
    const uint8_t *name;              /* (LANE_NAME_BYTES) of a receiver: what the sender got    */
    int size, rank, peer;             /* ranks of the communicator, ours and theirs in it; two
                                         now, more when a worker is a group of GPUs              */
    uint64_t deadline_ns;             /* for each stage of opening, and for each transfer        */
};

/* Tokens first .. first+count-1 of a sequence in layers layer .. layer+layers-1. */
struct lane_part {
    const uint32_t *blocks;
    uint32_t layer, layers, first, count;
};

struct backend_lanes {
    /* Of the library, which must be the same at both ends; 0: there are no lanes here. */
    int (*version)(const void *self);
    /* Readable (read it) when some lane's state, room or arrivals have changed. */
    int (*event_fd)(const void *self);
    /* The most bytes of one transfer. */
    uint64_t (*part_bytes)(const void *self);

    /* ERR_FULL: LANES_MAX are open. */
    enum err (*open)(void *self, const struct lane_spec *spec, struct lane **out);
    enum lane_state (*state)(struct lane *lane);
    /* A sender's, once NAMED: the name, and later that the receiver has opened by it. */
    void (*name)(struct lane *lane, uint8_t out[LANE_NAME_BYTES]);
    void (*join)(struct lane *lane);
    /* Ends it, whatever is under way.  The pointer is dead at once. */
    void (*close)(struct lane *lane);

    /* Sender.  Room for one more part; `send` may be called only then. */
    bool (*has_room)(struct lane *lane);
    void (*send)(struct lane *lane, const struct lane_part *part);
    /* Receiver.  Announces the next transfer's size, part_bytes at most. */
    void (*receive)(struct lane *lane, uint64_t bytes);
    /* True when the oldest one announced has arrived and was not taken. */
    bool (*arrived)(struct lane *lane);
    /* Puts it into the pool; NULL: drops it. */
    void (*take)(struct lane *lane, const struct lane_part *part);
};

#endif
