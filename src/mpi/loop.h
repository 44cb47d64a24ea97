/* mpi/loop.h - one thread waiting for many descriptors.
 *
 * A watch is the caller's memory and must stay where it is while it is added.  A watch that is
 * removed from inside a call is not called any more, also when its event was already fetched.
 */
#ifndef RANKSERVE_MPI_LOOP_H
#define RANKSERVE_MPI_LOOP_H

#include <stdint.h>
#include <sys/epoll.h>

struct watch {
    int fd;
    void (*call)(struct watch *w, uint32_t events);
    void *ctx;
    int64_t key;                      /* the owner's */
};

struct loop {
    int epoll;
    struct epoll_event batch[64];
    int batch_count;
    uint64_t wakeups;
};

void loop_open(struct loop *l);
void loop_add(struct loop *l, struct watch *w, uint32_t events);
void loop_change(struct loop *l, struct watch *w, uint32_t events);
void loop_remove(struct loop *l, struct watch *w);            /* does not close the descriptor */
/* Sleeps until something is readable or `timeout_ns` has passed (UINT64_MAX: for ever), calls. */
void loop_wait(struct loop *l, uint64_t timeout_ns);

#endif
