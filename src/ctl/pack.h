/* ctl/pack.h - workers onto equal hosts: nodes of a Slurm job, pods of an MPIJob.
 *
 * Workers are taken in the order of their ranks (prefill, decode, both) and each goes to the last
 * host while it fits there, so that a host's workers have consecutive ranks.  Rank 0 computes
 * nothing and is not packed: the first node has it too on Slurm, a pod of its own on Kubernetes.
 */
#ifndef RANKSERVE_CTL_PACK_H
#define RANKSERVE_CTL_PACK_H

#include "common/limits.h"
#include "ctl/spec.h"

struct packing {
    struct need host;                 /* what each host must have; 0: nobody said */
    struct need idle;                 /* over all hosts, what no worker uses      */
    uint64_t hosts;
    uint64_t most;                    /* workers of the fullest host              */
    uint16_t workers[WORKER_COUNT_MAX];
};

/* `host`: what a host has, 0 where nobody said.  When it says nothing at all, a host is as large as
 * the largest worker.  Fails with the field's path when a worker fits no host. */
enum err pack(const struct spec *s, const struct need *host, struct packing *out, struct why *why);

/* "1 1 2": workers of each host, in order. */
void pack_list(const struct packing *p, struct buf *out);
/* "3 hosts of 2 GPUs, 64Gi; unused: 1 GPU", one line for comments. */
void pack_text(const struct packing *p, const char *noun, struct buf *out);

#endif
