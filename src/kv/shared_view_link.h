/* kv/shared_view_link.h - one connection to a Redis server, in the clear or in TLS.
 *
 * For shared_view_*.c only.  hiredis formats commands and parses replies; its connections are not
 * used, because before 1.0 they know no TLS.  The socket is non-blocking, and every wait has the
 * caller's deadline.  After a false or a NULL the connection is only good to be closed.
 */
#ifndef RANKSERVE_KV_SHARED_VIEW_LINK_H
#define RANKSERVE_KV_SHARED_VIEW_LINK_H

#include <stdint.h>

#include <hiredis/hiredis.h>

#include "kv/shared_view_tls.h"

enum { VIEW_HOST_BYTES = 256 };

struct view_place { char host[VIEW_HOST_BYTES]; uint16_t port; };
struct view_link;

/* To a Unix socket when `path` is not "", else to `at`, in TLS when `tls` is not NULL.  A name
 * server that hangs may keep it longer than the deadline.  NULL: the fault. */
struct view_link *view_link_open(const struct view_place *at, const char *path,
                                 const struct view_tls *tls, uint64_t deadline_ns,
                                 struct view_fault *f);
void view_link_close(struct view_link *l); /* NULL: nothing to do */

/* Commands are gathered, then sent together.  bytes NULL: all are texts. */
void view_link_put(struct view_link *l, int argc, const char *const *argv, const size_t *bytes);
bool view_link_flush(struct view_link *l, uint64_t deadline_ns, struct view_fault *f);
/* The next reply, which the caller frees. */
redisReply *view_link_take(struct view_link *l, uint64_t deadline_ns, struct view_fault *f);

#endif
