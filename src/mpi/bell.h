/* mpi/bell.h - doorbells: stream sockets that wake a rank which sleeps, and tell of its death.
 *
 * A ring is two counters: how many control and how many data messages its sender has posted to this
 * rank so far.  Rings may merge; only the last one counts.  Rank 0 and each worker share one
 * connection from start to end; its end-of-file is a death notice.  Two workers connect when one
 * first rings the other.  Unix sockets on one host, TCP between hosts.  A connection shows
 * first that it knows the job's nonce; one that does not is closed.
 */
#ifndef RANKSERVE_MPI_BELL_H
#define RANKSERVE_MPI_BELL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "mpi/job.h"
#include "mpi/loop.h"

struct bells;

struct bell_sink {
    void *ctx;
    void (*rung)(void *ctx, int rank, const uint32_t counts[2]);
    void (*ended)(void *ctx, int rank); /* between rank 0 and a worker only */
};

/* Collective: exchanges addresses, connects every worker with rank 0. */
enum err bells_open(struct bells **out, const struct job *j, struct loop *l,
                    const struct bell_sink *sink, struct why *why);
void bell_ring(struct bells *b, int rank, const uint32_t counts[2]);
/* Closes what connects us with a rank; `ended` is not called. */
void bell_cut(struct bells *b, int rank);
bool bell_connected(const struct bells *b, int rank);

#endif
