/* mpi/weights.h - the model in memory, once per host.
 *
 * Rank 0's host reads the file; every other host receives its bytes.  The ranks of a host share one
 * copy, and one copy of what the backend packs from it.
 * Owner: main.c, until the process ends.
 */
#ifndef RANKSERVE_MPI_WEIGHTS_H
#define RANKSERVE_MPI_WEIGHTS_H

#include "engine/backend.h"
#include "model/hparams.h"
#include "mpi/job.h"

struct weights {
    struct gguf *file;
    struct model *model;
    const struct backend *table;
    enum isa isa;                     /* the lowest best of all workers */
    const void *packed;               /* NULL: nothing to pack */
};

/* Collective.  A failure is returned, with one line, on every rank. */
enum err weights_open(struct weights *w, const struct job *j, struct why *why);

#endif
