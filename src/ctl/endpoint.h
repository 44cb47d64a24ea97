/* ctl/endpoint.h - the endpoint file (how a service is reached), and finding a running service. */
#ifndef RANKSERVE_CTL_ENDPOINT_H
#define RANKSERVE_CTL_ENDPOINT_H

#include "common/check.h"
#include "common/config.h"

/* With --link-listen: puts the link's secret beside the endpoint file, for gateways elsewhere. */
enum err endpoint_open(const struct config *c, struct why *why);
void endpoint_close(const struct config *c);         /* removes both */
/* Writes it atomically, mode 0600; nothing when config.endpoint_file is "". */
enum err endpoint_write(const struct config *c, const char *url, const char *model,
                        const char *state, long long started, struct why *why);

/* A service as a client sees it. */
struct endpoint {
    const char *url, *uds, *api_key, *model;   /* uds, api_key, model may be NULL */
};
/* From --url, else the endpoint file, else 127.0.0.1:8000; dies with one line. */
void endpoint_find(struct endpoint *out, const char *url, const char *file, const char *key_file);
/* The first model that the service names, or NULL; `why` when it does not answer. */
const char *endpoint_model(const struct endpoint *at, struct why *why);

#endif
