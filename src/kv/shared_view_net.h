/* kv/shared_view_net.h - connections to one Redis server or to the nodes of a cluster.
 *
 * For shared_view*.c only; one connection is in shared_view_link.h.  A net is used by one thread at
 * a time.  It asks CLUSTER SLOTS when it connects: a server that knows no cluster has all slots.
 */
#ifndef RANKSERVE_KV_SHARED_VIEW_NET_H
#define RANKSERVE_KV_SHARED_VIEW_NET_H

#include "common/limits.h"
#include "kv/shared_view_link.h"

enum { VIEW_SLOTS = 16384, VIEW_ARGS_MAX = JOBS_MAX + 1 };

struct view_address {
    struct view_place seeds[VIEW_SEEDS_MAX];
    uint32_t seed_count;
    char path[108];                   /* of a Unix socket; "": TCP */
    char user[128], password[256];
    uint32_t db;
    bool secure;                      /* rediss: every connection is in TLS */
    struct shared_view_tls tls;       /* the caller's texts */
};

struct view_node {
    struct view_place at;
    struct view_link *link;           /* NULL: not connected */
};

struct view_net {
    const struct view_address *address;
    struct view_tls *tls;             /* while connecting; NULL: in the clear */
    struct view_node nodes[VIEW_NODES_MAX];
    uint32_t node_count;
    uint8_t slots[VIEW_SLOTS];        /* node of each slot */
    bool stale;                       /* a node said MOVED: connect again when there is time */
    enum view_error why;              /* of the last failure */
    char text[320];
};

struct view_command {
    uint16_t slot;
    uint32_t argc;
    const char *argv[VIEW_ARGS_MAX];
    size_t bytes[VIEW_ARGS_MAX];
};

/* Of url, password_file and tls.  ERR_FORMAT, ERR_IO, ERR_DENIED, ERR_LIMIT with a line. */
enum err view_address_read(struct view_address *a, const struct shared_view_config *c,
                           struct why *why);
/* CRC16 (XMODEM) modulo 16384 of what is between the first braces, else of all. */
uint16_t view_slot(const char *key, size_t bytes);

/* Reads the files of TLS anew (certificates are renewed while we run), connects to a seed, logs in,
 * learns the slots.  False: net->why and net->text say it. */
bool view_net_connect(struct view_net *n, const struct view_address *a, uint64_t deadline_ns);
void view_net_close(struct view_net *n);
/* Sends all, then hands each reply to `take`: in order, but for those that MOVED or ASK sent to
 * another node, which is followed once.  A command of a node that is away has no reply.  False: a
 * connection failed; the replies that were not handed over never will be. */
bool view_net_run(struct view_net *n, const struct view_command *c, uint32_t count,
                  uint64_t deadline_ns,
                  void (*take)(void *ctx, uint32_t index, const redisReply *r), void *ctx);
enum view_error view_error_of(const char *text);

#endif
