/* gateway/call.h - the life of one request for generation, from its body to its last byte.
 *
 * A call has prompts x n choices; each choice is a stream on the link.  The link's thread feeds
 * tokens in and, in libmicrohttpd, takes bytes out; in between the connection sleeps.
 *   WAIT --first token or error--> STREAM or REPLY --all choices ended--> done
 * Always true: a call that is closed has no stream open on the link: what ran is cancelled.
 * Choice i of a request samples with seed + i.
 */
#ifndef RANKSERVE_GATEWAY_CALL_H
#define RANKSERVE_GATEWAY_CALL_H

#include "gateway/api.h"
#include "gateway/link_client.h"
#include "gateway/wishes.h"

enum { CALL_QUEUE_BYTES_MAX = 8 << 20 };   /* a client that reads slower than this is cut off */

struct call;
extern const struct link_owner call_link_owner;

struct call_origin {
    const char *request_id;
    struct wishes wishes;
    int fd;                           /* the client's socket */
    uint64_t since_ns;
};

enum call_step { CALL_WAIT, CALL_STREAM, CALL_STREAMED, CALL_REPLY, CALL_GONE };

/* Parses, tokenizes and submits.  NULL: *e says why. */
struct call *call_open(struct gateway *gw, enum api_kind kind, const char *body, size_t bytes,
                       const struct call_origin *origin, struct api_error *e);
/* The client has its answer or is gone. Takes the lock. */
void call_close(struct call *c);

/* Under the lock: what to do next, and whom to call when CALL_WAIT (or a read of 0) is over. */
enum call_step call_step(const struct call *c);
void call_sleep(struct call *c, void (*wake)(void *arg), void *arg);
/* Bytes of the stream: > 0 copied; 0 none yet; -1 the end; -2 broken off. */
long call_read(struct call *c, char *out, size_t room);
bool call_ends(const struct call *c);                 /* the next read will be the end */
/* After CALL_STREAMED: all of the stream, which is over before its head was written. */
struct buf call_take_stream(struct call *c);

/* After CALL_REPLY, no lock needed: of how many bytes the body is made, of records mostly; its text
 * is several times longer. */
size_t call_reply_size(const struct call *c);
/* Likewise: the status, and the body or *e. */
int call_reply(struct call *c, struct buf *body, struct api_error *e);
/* After CALL_REPLY: the ranks that served choice 0; -1: none. */
void call_ranks(const struct call *c, int *prefill, int *decode);

/* Under the lock: ends everything that still runs, with an error; at the end of a drain. */
void call_abort_all(struct gateway *gw);

#endif
