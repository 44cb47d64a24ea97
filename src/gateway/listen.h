/* gateway/listen.h - bound sockets: HOST:PORT (port 0: any free one), or a Unix path. */
#ifndef RANKSERVE_GATEWAY_LISTEN_H
#define RANKSERVE_GATEWAY_LISTEN_H

#include "common/check.h"

struct listener {
    int fd;                           /* -1: none */
    char url[300];                    /* http://HOST:PORT as bound */
    char path[108];                   /* of a Unix socket, removed at close */
};

enum err listen_tcp(struct listener *l, const char *where, struct why *why);
enum err listen_unix(struct listener *l, const char *path, struct why *why);
/* Removes a Unix socket's path; the descriptor may already have been closed by who served it. */
void listener_close(struct listener *l);

#endif
