/* ctl/launch.h - the command lines of the job and the gateway on this machine. */
#ifndef RANKSERVE_CTL_LAUNCH_H
#define RANKSERVE_CTL_LAUNCH_H

#include "common/check.h"
#include "common/config.h"
#include "ctl/child.h"

/* Are the programs and mpirun there? */
enum err launch_check(struct why *why);
/* out->out reads all that mpirun and the ranks print. */
enum err launch_job(const struct config *c, struct child *out, struct why *why);
/* Removes what Open MPI leaves in shared memory when ranks end without MPI_Finalize, as ours do:
 * this job's, and that of earlier ones whose `up` was killed. */
void launch_clean(void);
/* out->out reads its standard output. */
enum err launch_gateway(const struct config *c, struct child *out, struct why *why);

#endif
