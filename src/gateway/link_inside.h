/* gateway/link_inside.h - the parts of link_client, for link_*.c only: the set and its connections.
 *
 * A connection is one job's.  Its socket, phase and timers are the link thread's own; what calls
 * look at (up, state, out, ...) is under the gateway's lock, as are all streams of the set.
 */
#ifndef RANKSERVE_GATEWAY_LINK_INSIDE_H
#define RANKSERVE_GATEWAY_LINK_INSIDE_H

#include "common/mem.h"
#include "gateway/helpers.h"
#include "gateway/link_client.h"
#include "gateway/overlap.h"
#include "gateway/slots.h"
#include "gateway/soon.h"

enum phase {
    PHASE_DOWN, PHASE_LOOKING, PHASE_CONNECTING, PHASE_CHALLENGE, PHASE_WELCOME, PHASE_UP,
    PHASE_REFUSED,                    /* for good: another model, a wrong secret */
};

struct stream {
    void *owner;
    uint32_t index, conn;
};

struct conn {
    struct link_client *set;
    uint32_t index;
    bool used;

    /* The thread's own. */
    int socket;
    enum phase phase;
    uint64_t retry_at, deadline;
    unsigned retry_ms, refused, failures;
    uint8_t nonce[16];
    struct link_reader reader;
    bool writing;
    struct task lookup;

    /* Under the gateway's lock. */
    struct link_target to;
    bool up, leaving;                 /* leaving: its entry is gone or says draining */
    bool looking;                     /* a helper asks for its address: */
    struct sockaddr_storage found;
    socklen_t found_bytes;            /* 0: there is none */
    uint32_t stream_count;
    struct buf out;                   /* not yet written to the socket, from out_at on */
    size_t out_at;
    struct link_welcome job;
    struct link_keys keys;            /* that follow from it */
    bool known;                       /* `job` was said */
    bool keyed;                       /* the job makes the same keys */
    struct link_state said;
};

struct link_client {
    struct gateway *gw;
    const struct link_owner *on;
    struct link_thread also;
    bool fixed;                       /* one job for ever: what does not fit ends the program */

    /* The thread's own. */
    pthread_t thread;
    int epoll;
    uint64_t tick_at;
    bool was_live;
    bool alone;                       /* one processor: who waits awake holds up who answers */

    /* Under the gateway's lock. */
    int wake;
    bool stop;
    struct slots streams;
    struct watch *watch;
    struct conn conns[JOBS_MAX];
    struct overlap *overlap;
    struct soon soon;
};

/* Of the thread, without the lock. */
void conn_timers(struct conn *c, uint64_t now_ns);
uint64_t conn_wakes_at(const struct conn *c);         /* UINT64_MAX: never by itself */
void conn_event(struct conn *c, uint32_t events);
void conn_write(struct conn *c);
/* Ends all its streams with WORKER_LOST, and closes its socket. */
void conn_drop(struct conn *c, const char *reason);

/* Under the lock: false when too much is waiting to be written. */
bool conn_send(struct conn *c, const struct link_head *h);
/* From any thread: the thread looks at all connections. */
void link_client_wake(struct link_client *set);
/* Under the lock: state and numbers of all jobs that are up, as one. */
void link_client_tell_metrics(struct link_client *set);

#endif
