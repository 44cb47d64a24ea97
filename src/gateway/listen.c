/* gateway/listen.c - see listen.h. */
#include "gateway/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/mem.h"

enum { BACKLOG = 1024 };

static void set_url(struct listener *l)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    char host[NI_MAXHOST] = "", port[NI_MAXSERV] = "";
    getsockname(l->fd, (struct sockaddr *)&address, &bytes);
    getnameinfo((struct sockaddr *)&address, bytes, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    bool six = strchr(host, ':') != NULL;
    snprintf(l->url, sizeof l->url, "http://%s%.255s%s:%.20s", six ? "[" : "", host, six ? "]" : "",
             port);
}

static enum err bind_to(struct listener *l, const struct addrinfo *a, const char *where,
                        struct why *why)
{
    int one = 1;
    l->fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0) return why_set(why, ERR_IO, "--listen %s: %s", where, strerror(errno));
    setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(l->fd, a->ai_addr, a->ai_addrlen) == 0 && listen(l->fd, BACKLOG) == 0) {
        set_url(l);
        return OK;
    }
    why_set(why, ERR_IO, "--listen %s: %s", where, strerror(errno));
    close(l->fd);
    l->fd = -1;
    return ERR_IO;
}

enum err listen_tcp(struct listener *l, const char *where, struct why *why)
{
    const char *colon = strrchr(where, ':');
    l->fd = -1;
    if (!colon) return why_set(why, ERR_FORMAT, "--listen %s: HOST:PORT is expected", where);
    size_t bytes = (size_t)(colon - where);
    bool bracket = bytes >= 2 && where[0] == '[' && colon[-1] == ']';
    char *host = mem_text_n(where + bracket, bytes - 2 * bracket);
    struct addrinfo *found = NULL;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
    int rc = getaddrinfo(host[0] ? host : NULL, colon + 1, &hints, &found);
    free(host);
    if (rc != 0) return why_set(why, ERR_IO, "--listen %s: %s", where, gai_strerror(rc));
    enum err e = bind_to(l, found, where, why);
    freeaddrinfo(found);
    return e;
}

enum err listen_unix(struct listener *l, const char *path, struct why *why)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    l->fd = -1;
    if (strlen(path) >= sizeof address.sun_path) {
        return why_set(why, ERR_LIMIT, "--uds %s: path too long", path);
    }
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    struct stat st;
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) unlink(path); /* of an earlier run */
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd >= 0 && bind(l->fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        chmod(path, 0600) == 0 && listen(l->fd, BACKLOG) == 0) {
        snprintf(l->path, sizeof l->path, "%s", path);
        return OK;
    }
    return why_set(why, ERR_IO, "--uds %s: %s", path, strerror(errno));
}

void listener_close(struct listener *l)
{
    if (l->path[0]) unlink(l->path);
    l->path[0] = '\0';
}
