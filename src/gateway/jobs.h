/* gateway/jobs.h - watches a directory of endpoint files; tells link_client which jobs there are.
 *
 * A thread of its own, since a shared file system may keep it waiting: requests never notice.  It
 * looks when the kernel says that something changed, and every two seconds, because changes made
 * on other hosts are not told.  What is wrong with an entry is said once, in one line, and that
 * entry is left out; a directory that cannot be read leaves the jobs as they were.
 */
#ifndef RANKSERVE_GATEWAY_JOBS_H
#define RANKSERVE_GATEWAY_JOBS_H

#include "gateway/gateway.h"

struct jobs;

/* Watches gw->config.jobs; gw->link is there already.  NULL: no such directory. */
struct jobs *jobs_start(struct gateway *gw, struct why *why);
/* False when the thread hangs in the file system: then nothing may be freed any more. */
bool jobs_stop(struct jobs *j);

#endif
