/* ctl/run_dir.h - the private directory of one job: its socket, secret and status file.
 *
 * Mode 0700, in XDG_RUNTIME_DIR or /tmp, removed at the end; with --run-dir the given one, of
 * which only our own files are removed.  A lock in it says that its owner lives: what a killed
 * `rankservectl up` left is removed by the next one.
 */
#ifndef RANKSERVE_CTL_RUN_DIR_H
#define RANKSERVE_CTL_RUN_DIR_H

#include "common/check.h"
#include "common/config.h"

/* Makes it, writes the secret, and points run_dir, link, secret_file, status_file and job_id of the
 * settings at it.  `given`: it was there before, or somebody else named it. */
enum err run_dir_make(struct config *c, bool *given, struct why *why);
void run_dir_remove(const struct config *c, bool given);

/* How rank 0 says the job ended: its line in `out`, its code as the result; -1: it said nothing. */
int run_dir_status(const struct config *c, char *out, size_t bytes);

#endif
