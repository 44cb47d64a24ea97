/* tests/cusim/stream.h - streams, events, and the thread that does the devices' work.
 *
 * An operation is enqueued with a clock that says what happened before it; one thread of the
 * process runs the heads of the streams in a random legal order.  While a stream is captured,
 * operations go into a graph instead (graph.c), and are enqueued anew at each launch of it.
 */
#ifndef CUSIM_STREAM_H
#define CUSIM_STREAM_H

#include <cuda_runtime_api.h>

#include "clock.h"
#include "memory.h"
#include "shadow.h"

struct op;

struct op_type {
    size_t bytes;                       /* of the struct that begins with struct op */
    void (*prepare)(struct op *op);     /* it was enqueued: id and clock are known; or NULL */
    bool (*run)(struct op *op);         /* true when done; false: ask again later */
    void (*release)(struct op *op);     /* frees what it points to; or NULL */
};

struct op {
    const struct op_type *type;
    struct op *next;
    cudaStream_t stream;                /* where it was enqueued or captured */
    op_id id;
    struct clock clock;
    bool waits;                         /* it was run, and asked to be run again */
    bool copied;                        /* of a graph's node: what it points to belongs to that */
    char what[96];
};

struct CUstream_st {
    bool live;
    int device, slot;
    struct clock clock;                 /* of the last operation enqueued */
    struct op *head, **tail;
    uint64_t enqueued, done;
    struct CUgraph_st *capture;         /* what it captures now, or NULL */
    struct CUstream_st *next;           /* of all streams */
};

/* What an event holds of one recording. */
struct mark {
    int users;                          /* the event, operations, hosts that wait */
    bool done;
    struct clock clock;
};

struct CUevent_st {
    bool live;
    int device;
    struct mark *mark;                  /* NULL: never recorded */
};

/* One lock for everything that host threads and the device thread share. */
extern pthread_mutex_t sim_mutex;
/* First call of any API: reads the settings, takes the address space, starts the device thread. */
void sim_open(void);
int sim_devices(void);
int device_capability(int device);      /* 10 * major + minor */
bool sim_no_driver(void);
double seconds_now(void);

/* The stream may be used by this thread: not the default one, alive, on the current device. */
void stream_check(cudaStream_t s, const char *call);
/* The handle was created, and not destroyed. */
#define check_alive(handle, what, call)                                                          \
    report_if(!(handle) || !(handle)->live, DEAD_HANDLE, "%s on " what " that was destroyed", call)
/* Takes `op` (of op_new); `fmt` says what it is, for messages. */
void stream_add(cudaStream_t s, struct op *op, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void *op_new(const struct op_type *type);
void op_free(struct op *op);
/* With the lock held: enqueues it after all that the stream's clock and the host's hold; stream_add
 * asks first whether the stream is captured. */
op_id stream_push(cudaStream_t s, struct op *op);
struct toucher op_toucher(const struct op *op);

/* The host waits, or asks; then it knows what the clock holds. */
bool host_wait(cudaStream_t s, const struct mark *mark, const char *call);
bool host_ask(cudaStream_t s, const struct mark *mark);
void device_wait(const char *call);     /* for every stream of the current device */
extern struct clock host_clock;

/* A rank of NCCL may see here whether its device can still move: hosts that wait, and no stream
 * whose head does not wait. */
bool device_is_stuck(int device);
extern const struct op_type nccl_op_type;
/* Something outside moved: look again at once. */
void stream_poke(void);
void stream_list(void);

/* Errors. */
cudaError_t sim_error(cudaError_t e);           /* what a call returns: e, or the device's end */
void sim_fault(cudaError_t e);                  /* the device ended */
bool sim_faulted(void);
int current_device(void);
extern _Thread_local const char *unchecked_launch;
void launches_checked(const char *call);        /* a finding if one was not */

/* Captures (graph.c), with the lock held. */
void capture_add(cudaStream_t s, struct op *op);
/* Begin calls that a capture forbids: of s, or of any stream. */
void capture_forbids(cudaStream_t s, const char *call);     /* stream_check too */
void capture_forbids_any(const char *call);                 /* sim_open too */

#endif
