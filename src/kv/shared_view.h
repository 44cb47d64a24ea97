/* kv/shared_view.h - what jobs hold, shared through Redis: hints that expire, never needed.
 *
 * A job announces the keys of blocks (kv/key.h) that it now holds; a gateway asks which of the jobs
 * it knows hold how much of a prompt.  One entry is one string with a time to live:
 *
 *   SET rankserve:{KEYHEX}:JOB EPOCH EX ttl        MGET rankserve:{KEYHEX}:JOB1 ...:JOBn
 *
 * The braces are Redis Cluster's hash tag: what is said of one block is in one slot.  A job's entry
 * goes by itself when the job stops repeating it, whatever other jobs say of the same block.
 * One thread of a view connects, and sends what was announced.  Callers never wait for it:
 * announcements go into a bounded ring, a look has a budget and is left out while there is no
 * connection.  Whatever Redis does is counted, and never fatal; of a run of failures the first of
 * each kind, and its end, are a line in the log.  shared_view_url.c reads the address,
 * shared_view_net.c keeps the nodes of a cluster, shared_view_link.c is one connection and
 * shared_view_tls.c its TLS.
 */
#ifndef RANKSERVE_KV_SHARED_VIEW_H
#define RANKSERVE_KV_SHARED_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "common/config.h"
#include "common/hash.h"

enum view_error {                     /* what went wrong, for the counters */
    VIEW_CONNECTION, VIEW_TIMEOUT, VIEW_TLS, VIEW_AUTH, VIEW_FULL, VIEW_MOVED, VIEW_OTHER,
    VIEW_ERROR_COUNT,
};
const char *view_error_name(enum view_error e);

struct shared_view_tls {              /* for rediss://; texts, "" where nothing is given */
    const char *cacert;               /* file of whom to believe; "": whom the system does */
    const char *cert, *key;           /* files of who we are, both or none; the key's mode 0600 */
    const char *sni;                  /* the name that every server proves; "": its host's */
    bool insecure;                    /* believe whoever answers */
};

struct shared_view_config {           /* its texts stay where they are while the view is open */
    const char *url;                  /* [redis[s]://][USER@]HOST[:PORT][,HOST[:PORT]...][/DB], or
                                         unix:PATH; several hosts are seeds of one cluster */
    const char *password_file;        /* mode 0600, one line; "": no AUTH */
    struct shared_view_tls tls;
    const char *job;                  /* who announces; NULL: only looks */
    uint64_t epoch;                   /* of this run of the job: entries of others are ignored */
    uint32_t ttl_s;
};

struct shared_view_job {              /* whom a gateway asks about */
    char name[32];
    uint64_t epoch;
};

struct shared_view_stats {
    bool connected;
    uint64_t announced, dropped;      /* keys: taken by Redis; lost to a full ring or a failure */
    uint64_t looks, found, skipped;   /* looks that were answered; that found something; that
                                         found no connection or ran out of time */
    uint64_t errors[VIEW_ERROR_COUNT];
};

struct shared_view;

/* Where Redis is and what proves it, as the settings say; the rest is the caller's to fill in. */
struct shared_view_config shared_view_settings(const struct config *c);
/* Starts the thread.  Errors are of what was given (address, file), never of Redis. */
enum err shared_view_open(struct shared_view **out, const struct shared_view_config *c,
                          struct why *why);
/* Waits shortly for the thread; when that hangs in a name server, its memory stays. */
void shared_view_close(struct shared_view *v);

/* The job holds these blocks, root first.  Never waits; v may be NULL. */
void shared_view_announce(struct shared_view *v, const struct hash128 *keys, uint32_t count);

/* How many of the chain's first blocks each job holds, as far as is known: two round trips, within
 * budget_ns.  False, and all 0: not known.  A few positions are asked for, so the figure may be too
 * low by a 256th of the chain. */
bool shared_view_look(struct shared_view *v, const struct hash128 *keys, uint32_t count,
                      const struct shared_view_job *jobs, uint32_t job_count, uint64_t budget_ns,
                      uint32_t *blocks_out);

void shared_view_stats(struct shared_view *v, struct shared_view_stats *out);

#endif
