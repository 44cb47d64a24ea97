/* ctl/http_client.h - one HTTP request, whole or streamed; libcurl stays inside http_client.c. */
#ifndef RANKSERVE_CTL_HTTP_CLIENT_H
#define RANKSERVE_CTL_HTTP_CLIENT_H

#include <signal.h>
#include <stddef.h>

#include "common/check.h"
#include "common/mem.h"

struct http_request {
    const char *base;                 /* "http://127.0.0.1:8000"                        */
    const char *uds;                  /* a Unix socket to connect to instead; or NULL   */
    const char *path;                 /* "/v1/models"                                   */
    const char *api_key;              /* or NULL                                        */
    const char *body;                 /* JSON to POST; NULL: GET                        */
    long timeout_s;                   /* for all of it; 0: only silence is bounded      */
    /* Sees each piece of a 200's body as it comes; false ends the transfer.  NULL: kept. */
    bool (*on_data)(void *context, const char *data, size_t bytes);
    void *context;
    const volatile sig_atomic_t *stop;    /* becomes non-zero: the transfer ends; or NULL */
};

struct http_answer {
    long status;
    struct buf body;                  /* what on_data did not take; the caller releases it */
};

/* OK whatever the status; ERR_GONE when nobody answers, ERR_AGAIN when stopped. */
enum err http_ask(const struct http_request *r, struct http_answer *a, struct why *why);

#endif
