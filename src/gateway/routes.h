/* gateway/routes.h - answers that need no generation: models, tokenize, health, metrics. */
#ifndef RANKSERVE_GATEWAY_ROUTES_H
#define RANKSERVE_GATEWAY_ROUTES_H

#include <stdbool.h>

#include "gateway/api.h"
#include "gateway/gateway.h"

struct answer {
    int status;
    const char *type;                 /* Content-Type */
    struct buf body;
    struct api_error error;           /* status not 0: this is the answer */
};

enum route_kind { ROUTE_SMALL, ROUTE_CHAT, ROUTE_COMPLETION };

struct route {
    const char *path;                 /* ends in '*': a prefix */
    const char *method;               /* "GET" or "POST" */
    enum route_kind kind;
    bool open;                        /* needs no API key */
    void (*run)(struct gateway *gw, const char *path, const char *body, size_t bytes,
                struct answer *out);
};

/* NULL: *e is 404, or 405 when only the method is wrong. */
const struct route *route_find(const char *method, const char *path, struct api_error *e);
/* The methods of a path, as the Allow header of a 405 lists them. */
const char *route_methods(const char *path);

#endif
