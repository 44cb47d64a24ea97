/* mpi/job.h - who is in this job: ranks, roles, hosts, communicators.
 *
 * Rank 0 schedules and never computes.  Ranks 1 .. are the prefill workers, then the decode
 * workers, then those that do both, then the spares.  Collectives run at start only; from then on
 * ranks speak through port.h.
 * Here and in job.c, port.c, bell.c, shared.c, weights.c, main.c is all of MPI.
 */
#ifndef RANKSERVE_MPI_JOB_H
#define RANKSERVE_MPI_JOB_H

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "common/config.h"
#include "common/hash.h"
#include "common/ident.h"
#include "mpi/loop.h"

struct job {
    struct config config;
    int rank, size;
    MPI_Comm control, data;           /* duplicates of the world, one per kind of traffic        */
    MPI_Comm role_comm;               /* rank 0 alone, prefill, decode or both: as at the start  */
    MPI_Comm host_comm;               /* the ranks of this host                                  */
    int host_rank, host_size;
    int *host_of;                     /* by rank: the lowest rank on the same host               */
    int host_count;
    uint8_t nonce[16];                /* of this job, from rank 0: strangers do not know it      */
    struct hash_secret kv_secret;
    uint8_t link_secret[32];          /* rank 0 only */
    enum role role;                   /* now; 0: rank 0 */
    uint64_t started_ns;
    struct loop *loop;                /* of this rank's one control thread */
};

/* MPI_Init, communicators, roles.  A failure is told to every rank: all of them return it, so that
 * all of them can leave. */
enum err job_open(struct job *j, struct why *why);
/* The role of a rank (not 0) at the start, by its number. */
enum role job_role_of(const struct job *j, int rank);
/* The last ranks wait with their weights loaded, for the place of one that is lost. */
bool job_is_spare(const struct job *j, int rank);
/* Which of its host's GPUs a worker takes: they go by rank. */
int job_device(const struct job *j);
const char *role_name(enum role role);
/* Collective.  When any rank failed, all return its error and its line. */
enum err job_agree(const struct job *j, enum err mine, struct why *why);
/* Start-up only: collectives that sleep while they wait, and hear a bell that tells of a death. */
void job_barrier(const struct job *j, MPI_Comm comm);
void job_broadcast(const struct job *j, MPI_Comm comm, void *data, uint64_t bytes);
/* MPI_Finalize under an alarm, then exit(code).  Only while no rank was lost. */
_Noreturn void job_leave_together(int code);
/* At once, without a word to MPI: after any failure. */
_Noreturn void job_leave_alone(int code);

#endif
