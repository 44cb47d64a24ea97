/* gateway/http.h - the HTTP server; its inside is libmicrohttpd, which no other file includes. */
#ifndef RANKSERVE_GATEWAY_HTTP_H
#define RANKSERVE_GATEWAY_HTTP_H

#include "common/check.h"
#include "gateway/gateway.h"

struct http;

/* Binds --listen and --uds.  The address is in use: ERR_IO and one line. */
enum err http_bind(struct http **out, struct gateway *gw, struct why *why);
const char *http_url(const struct http *h);   /* with the port that was really bound */
enum err http_start(struct http *h, struct why *why);
/* One thread serves it, the link's: whenever http_fd is readable, http_wait_ms have passed
 * (UINT64_MAX: for ever), or a call was woken on that thread, http_turn, without the lock. */
int http_fd(const struct http *h);
uint64_t http_wait_ms(const struct http *h);
void http_turn(struct http *h);
/* Under the gateway's lock, about once a second: cuts off clients that are slow to ask. */
void http_tick(struct http *h);
/* No call may be open, and the thread and the helpers have ended. */
void http_stop(struct http *h);

#endif
