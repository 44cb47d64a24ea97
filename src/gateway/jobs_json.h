/* gateway/jobs_json.h - an endpoint file of `rankservectl up`, read as a job to connect to. */
#ifndef RANKSERVE_GATEWAY_JOBS_JSON_H
#define RANKSERVE_GATEWAY_JOBS_JSON_H

#include "gateway/link_client.h"

struct job_file {
    struct link_target job;
    char service[128];                /* the name of the service, which several jobs may share */
    bool starting;                    /* no link yet */
};

/* It says where prompts go: so it must be ours (or root's), and nobody else's to write.  HOST:PORT
 * is looked up, which may wait.  On failure `why` says what is wrong, without the file's name. */
enum err job_file_read(const char *path, struct job_file *out, struct why *why);

#endif
