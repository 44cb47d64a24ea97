/* mpi/shared.h - memory that ranks of one host share.
 *
 * It is a memfd, and others find it through /proc/PID/fd: no name in a file system, nothing to
 * clean up, no /dev/shm, which a pod may have 64 MiB of.
 */
#ifndef RANKSERVE_MPI_SHARED_H
#define RANKSERVE_MPI_SHARED_H

#include <stdbool.h>
#include <stdint.h>

#include "mpi/job.h"

/* What others need to find a file by: plain bytes, which go over MPI. */
struct shared_name {
    uint64_t device, inode;           /* the file's own: PIDs may mean others elsewhere */
    int pid, fd;                      /* where it is open; fd -1: there is none */
};

/* A file of so many zeros in memory, which stays as long as that; -1 and errno.  It has no memory
 * yet: mem_populate, before it is written. */
int shared_file(const char *name, uint64_t bytes, struct shared_name *out);
/* The same one, which another process of this host made; -1 and errno, ESTALE when what is found
 * is not that: in a PID namespace of its own a rank would find itself. */
int shared_find(const struct shared_name *n);

/* One of these for each rank of the host. */
struct shared_with {
    void *theirs;                     /* NULL: it has none, or it cannot be seen from here */
    bool sees_ours;
};
/* Collective over the host, which needs not succeed: every rank makes `bytes` for itself, the same
 * everywhere (0: none, and it sees nobody's), and maps what the others made.  Returns its own (NULL
 * when there is none) and fills out (host_size). */
void *shared_each(const struct job *j, const char *name, uint64_t bytes, struct shared_with *out);

#endif
