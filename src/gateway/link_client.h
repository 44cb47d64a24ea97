/* gateway/link_client.h - the links to jobs, and the thread that serves all sockets.
 *
 * The thread connects to every job it was told of, proves who it is, reconnects when a job goes,
 * hands what arrives to the streams' owners, and tells them when their client's socket hung up
 * (gateway/watch.h).  There is one job for ever (--link), or a set that changes (gateway/jobs.h).
 * A request goes to the live job that was sent the longest beginning of its prompt, or that holds
 * it as the shared view says; when none has more than another, to the one started last.
 * All functions but start, stop and close are called with the gateway's lock held; the owner's
 * functions are called by the link's thread with it held.
 * Always true: every submitted stream gets `end` exactly once, unless it was forgotten before;
 * when its link is lost, with LINK_WORKER_LOST.
 */
#ifndef RANKSERVE_GATEWAY_LINK_CLIENT_H
#define RANKSERVE_GATEWAY_LINK_CLIENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "common/check.h"
#include "common/limits.h"
#include "gateway/gateway.h"
#include "kv/key.h"
#include "kv/shared_view.h"
#include "wire/link.h"

struct link_client;

struct link_owner {                   /* what calls are to the link */
    void (*tokens)(void *owner, uint32_t index, const struct link_tokens *t); /* TOKENS, SCORES */
    void (*end)(void *owner, uint32_t index, const struct link_end *e);
    void (*gone)(void *owner);        /* the watched socket hung up */
};

/* Where a job is.  The same job is the same (name, started). */
struct link_target {
    char name[64];                    /* for people */
    int64_t started, expires;         /* seconds since 1970; 0: not known */
    bool draining;                    /* it wants no new requests */
    char where[256];                  /* as it was written: a path or HOST:PORT */
    struct sockaddr_storage address;  /* of HOST:PORT; ss_family 0: look it up when connecting */
    socklen_t address_bytes;
    uint8_t secret[SECRET_BYTES];
};
/* Fills address_bytes and address from HOST:PORT; may wait for a name server. */
bool link_target_resolve(const char *where, struct sockaddr_storage *out, socklen_t *bytes);

/* What else the thread does. */
struct link_thread {
    int fd;                           /* when it is readable ...                             */
    uint64_t (*wait_ms)(void);        /* ... or this has passed, or anything has come ...    */
    void (*turn)(void);               /* ... this is called, without the lock                */
    void (*tick)(void);               /* under the lock, about once a second                 */
    void (*ready)(void);              /* without it, at the first LIVE                       */
};
/* With gw->config.link that is the one job; else link_client_jobs() names them. */
struct link_client *link_client_start(struct gateway *gw, const struct link_owner *functions,
                                      const struct link_thread *also);
/* Ends the thread; then, when no stream is open and the helpers have ended, frees everything. */
void link_client_stop(struct link_client *c);
void link_client_close(struct link_client *c);

/* All jobs there are now.  One that is not among them gets no new requests, and is left when its
 * last stream has ended.  At most JOBS_MAX: one line in the log about more. */
void link_client_jobs(struct link_client *c, const struct link_target *jobs, uint32_t count);

/* What the keys of KV blocks are made from (kv/key.h): a job's, as WELCOME and its secret say. */
struct link_keys {
    struct hash_secret secret;
    struct kv_scope scope;
};
/* Those of the newest live job; false when there is none that makes the same. */
bool link_client_keys(const struct link_client *c, struct link_keys *out);
/* The live jobs that make these keys, with the link's own number of each. */
uint32_t link_client_holders(const struct link_client *c, const struct link_keys *keys,
                             struct shared_view_job jobs[JOBS_MAX], uint32_t numbers[JOBS_MAX]);

/* Sends a request, whose head is filled in here, to a job not in `tried`, and adds that job to it.
 * The request's keys, if it has any, were made from `keys`: they are taken out of the frame when
 * the job's are others.  `held` (NULL: not known): tokens of the prompt that each job holds, by its
 * number.  Returns its stream, or 0: no such job is live, or there is no room. */
uint64_t link_client_submit(struct link_client *c, struct link_request *r,
                            const struct link_keys *keys, const uint32_t held[JOBS_MAX],
                            void *owner, uint32_t index,
                            uint32_t *tried);
void link_client_cancel(struct link_client *c, uint64_t stream);  /* `end` still comes */
void link_client_forget(struct link_client *c, uint64_t stream);  /* cancels; nothing comes */

/* Tells all connected jobs that read what they are sent their policy from now on; how many. */
uint32_t link_client_policy(struct link_client *c, const struct cache_policy *p);

uint64_t link_client_watch(struct link_client *c, int fd, void *owner);
void link_client_unwatch(struct link_client *c, uint64_t number);

/* The best state that a job is in, as last said; JOB_STARTING while there is no link. */
enum job_state link_client_state(const struct link_client *c);
/* What WELCOME said, the smallest of all jobs; false before the first one. */
bool link_client_job(const struct link_client *c, uint32_t *max_model_len, uint32_t *vocab);

#endif
