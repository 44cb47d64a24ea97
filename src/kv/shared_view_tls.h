/* kv/shared_view_tls.h - TLS under a connection to Redis, by OpenSSL.
 *
 * For shared_view_*.c only.  TLS 1.2 or newer.  The server's chain and its name are verified,
 * unless `insecure` says otherwise; the name is `sni`, else the host that was connected to.
 * Nothing here waits: sockets are non-blocking, and who calls polls for what a step wants.
 */
#ifndef RANKSERVE_KV_SHARED_VIEW_TLS_H
#define RANKSERVE_KV_SHARED_VIEW_TLS_H

#include "common/check.h"
#include "kv/shared_view.h"

struct ssl_st;                        /* OpenSSL's SSL, one connection */
struct view_tls;                      /* whom to believe, and who we are */

struct view_fault {                   /* of a connection; the address is the caller's to add */
    enum view_error kind;
    char text[200];
};

enum view_step {
    VIEW_DONE,
    VIEW_WANTS_READ, VIEW_WANTS_WRITE, /* again, when the socket is ready for it */
    VIEW_CLOSED,                      /* in order */
    VIEW_FAILED,                      /* the fault says why; only view_tls_end is left to do */
};

/* Reads the files.  ERR_IO, ERR_FORMAT, ERR_DENIED, ERR_LIMIT with a line that names the file. */
enum err view_tls_open(struct view_tls **out, const struct shared_view_tls *o, struct why *why);
void view_tls_close(struct view_tls *t);  /* sessions may outlive it; NULL: nothing to do */

/* A session on a connected, non-blocking socket, which stays the caller's.  NULL: the fault. */
struct ssl_st *view_tls_begin(const struct view_tls *t, int fd, const char *host,
                              struct view_fault *f);
enum view_step view_tls_shake(struct ssl_st *s, struct view_fault *f);
enum view_step view_tls_read(struct ssl_st *s, void *out, size_t room, size_t *got,
                             struct view_fault *f);
enum view_step view_tls_write(struct ssl_st *s, const void *data, size_t bytes, size_t *sent,
                              struct view_fault *f);
void view_tls_end(struct ssl_st *s);

#endif
