/* gateway/link_client.h - the gateway's end of the link to rank 0: one thread, many streams.
 *
 * The thread connects, proves who it is, reconnects when the job goes, hands what arrives to the
 * streams' owners, and tells them when their client's socket hung up (gateway/watch.h).
 * All functions but start and stop are called with the gateway's lock held; the owner's functions
 * are called by the link's thread with it held.
 * Always true: every submitted stream gets `end` exactly once, unless it was forgotten before;
 * when the link is lost, with LINK_WORKER_LOST.
 */
#ifndef RANKSERVE_GATEWAY_LINK_CLIENT_H
#define RANKSERVE_GATEWAY_LINK_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "gateway/gateway.h"
#include "wire/link.h"

struct link_client;

struct link_owner {                   /* what calls are to the link */
    void (*tokens)(void *owner, uint32_t index, const struct link_tokens *t); /* TOKENS, SCORES */
    void (*end)(void *owner, uint32_t index, const struct link_end *e);
    void (*gone)(void *owner);        /* the watched socket hung up */
};

/* `tick` is called under the lock about once a second; `ready` without it, at the first LIVE. */
struct link_client *link_client_start(struct gateway *gw, const struct link_owner *functions,
                                      void (*tick)(struct gateway *), void (*ready)(void *),
                                      void *ready_arg);
/* Ends the thread and frees everything; no stream may be open. */
void link_client_stop(struct link_client *c);

/* Sends a request, whose head is filled in here.  Returns its stream, or 0: no link, or no room. */
uint64_t link_client_submit(struct link_client *c, struct link_request *r, void *owner,
                            uint32_t index);
void link_client_cancel(struct link_client *c, uint64_t stream);  /* `end` still comes */
void link_client_forget(struct link_client *c, uint64_t stream);  /* cancels; nothing comes */

uint64_t link_client_watch(struct link_client *c, int fd, void *owner);
void link_client_unwatch(struct link_client *c, uint64_t number);

/* The job's state as last said, JOB_STARTING while there is no link. */
enum job_state link_client_state(const struct link_client *c);
/* What WELCOME said; false before the first one. */
bool link_client_job(const struct link_client *c, uint32_t *max_model_len, uint32_t *vocab);

#endif
