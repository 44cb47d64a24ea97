/* ctl/http_load.h - many streamed POSTs to one server at once, on one thread.
 *
 * For the load generator.  libcurl's multi interface stays inside http_load.c.  Connections are
 * kept and used again.  Callbacks come from inside http_load_poll; `done` may post again, `data`
 * may not.
 */
#ifndef RANKSERVE_CTL_HTTP_LOAD_H
#define RANKSERVE_CTL_HTTP_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"

struct http_load;

struct http_load_config {
    const char *base;                 /* "http://127.0.0.1:8000"                        */
    const char *uds;                  /* a Unix socket to connect to instead; or NULL   */
    const char *api_key;              /* or NULL                                        */
    uint32_t posts_max;               /* at once; posting more is a bug                 */
    /* A piece of a 200's body; false ends the transfer. */
    bool (*data)(void *context, const char *data, size_t bytes);
    /* The end of a post, once.  `error` is NULL when the answer was a whole 200; else it is one
     * line: "http 429", "timeout", libcurl's words.  `detail` is the start of a refusal's body. */
    void (*done)(void *context, const char *error, const char *detail);
};

/* Texts of the configuration must outlive it.  Dies when libcurl cannot start. */
struct http_load *http_load_open(const struct http_load_config *c);
/* Ends what still runs, without `done`. */
void http_load_close(struct http_load *l);

/* `body` is the caller's and stays until `done`. */
void http_load_post(struct http_load *l, const char *path, const char *body, void *context);
/* Waits at most `timeout_ms` for something to happen, and handles it. */
void http_load_poll(struct http_load *l, int timeout_ms);

#endif
