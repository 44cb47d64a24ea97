/* kv/shared_view_link.c - see shared_view_link.h: connecting, and bytes in both directions. */
#include "kv/shared_view_link.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/mem.h"

enum { READ_BYTES = 16384 };

struct view_link {
    int fd;
    struct ssl_st *tls;               /* NULL: in the clear */
    redisReader *reader;
    struct buf out;
    bool heard;                       /* the server has said something */
};

static bool fail(struct view_fault *f, enum view_error kind, const char *text)
{
    f->kind = kind;
    snprintf(f->text, sizeof f->text, "%s", text);
    return false;
}

static bool wait_for(int fd, enum view_step step, uint64_t deadline, const char *late,
                     struct view_fault *f)
{
    struct pollfd p = { .fd = fd, .events = step == VIEW_WANTS_READ ? POLLIN : POLLOUT };
    for (;;) {
        uint64_t now = clock_now_ns();
        struct timespec rest = { 0 };
        if (now < deadline) {
            rest.tv_sec = (time_t)((deadline - now) / NS_PER_S);
            rest.tv_nsec = (long)((deadline - now) % NS_PER_S);
        }
        int ready = ppoll(&p, 1, &rest, NULL);
        if (ready > 0) return true;
        if (ready < 0 && errno == EINTR && now < deadline) continue;
        return fail(f, VIEW_TIMEOUT, late);
    }
}

/* -- connecting -------------------------------------------------------------------------------- */

/* Connects and closes what it cannot. */
static bool dial(struct view_link *l, const struct sockaddr *a, socklen_t bytes, uint64_t deadline,
                 struct view_fault *f)
{
    int error = 0;
    socklen_t size = sizeof error;
    l->fd = socket(a->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0) return fail(f, VIEW_CONNECTION, strerror(errno));
    bool good = connect(l->fd, a, bytes) == 0;
    if (!good && errno == EINPROGRESS) {
        good = wait_for(l->fd, VIEW_WANTS_WRITE, deadline, "no connection in time", f);
        if (good && getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error) {
            good = fail(f, VIEW_CONNECTION, strerror(error));
        }
    } else if (!good) {
        fail(f, VIEW_CONNECTION, strerror(errno));
    }
    if (good) return true;
    close(l->fd);
    l->fd = -1;
    return false;
}

static bool dial_path(struct view_link *l, const char *path, uint64_t deadline,
                      struct view_fault *f)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    memcpy(a.sun_path, path, strlen(path) + 1);
    return dial(l, (struct sockaddr *)&a, sizeof a, deadline, f);
}

static void keep_alive(int fd)
{
    static const int on = 1, idle_s = 15, interval_s = 5, count = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

/* Each of a name's addresses gets an equal part of the time that is left. */
static bool dial_place(struct view_link *l, const struct view_place *at, uint64_t deadline,
                       struct view_fault *f)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *all;
    char port[8];
    uint32_t left = 0;
    snprintf(port, sizeof port, "%u", at->port);
    int e = getaddrinfo(at->host, port, &hints, &all);
    if (e) return fail(f, VIEW_CONNECTION, gai_strerror(e));
    for (const struct addrinfo *a = all; a; a = a->ai_next) left++;
    bool good = false;
    for (const struct addrinfo *a = all; a && !good; a = a->ai_next, left--) {
        uint64_t now = clock_now_ns(), rest = now < deadline ? deadline - now : 0;
        good = dial(l, a->ai_addr, a->ai_addrlen, now + rest / left, f);
    }
    freeaddrinfo(all);
    if (good) keep_alive(l->fd);
    return good;
}

static bool shake(struct view_link *l, const struct view_tls *tls, const char *host,
                  uint64_t deadline, struct view_fault *f)
{
    l->tls = view_tls_begin(tls, l->fd, host, f);
    if (!l->tls) return false;
    for (;;) {
        enum view_step step = view_tls_shake(l->tls, f);
        if (step == VIEW_DONE) return true;
        if (step == VIEW_CLOSED) return fail(f, VIEW_CONNECTION, "TLS: it closed the connection");
        if (step == VIEW_FAILED) return false;
        if (!wait_for(l->fd, step, deadline, "TLS: no answer in time; is it a TLS port?", f)) {
            return false;
        }
    }
}

struct view_link *view_link_open(const struct view_place *at, const char *path,
                                 const struct view_tls *tls, uint64_t deadline,
                                 struct view_fault *f)
{
    struct view_link *l = mem_alloc(sizeof *l);
    l->fd = -1;
    l->reader = redisReaderCreate();
    bool good = l->reader ? true : fail(f, VIEW_CONNECTION, "no memory");
    good = good && (*path ? dial_path(l, path, deadline, f) : dial_place(l, at, deadline, f));
    if (good && (!tls || shake(l, tls, at->host, deadline, f))) return l;
    view_link_close(l);
    return NULL;
}

void view_link_close(struct view_link *l)
{
    if (!l) return;
    if (l->tls) view_tls_end(l->tls);
    if (l->fd >= 0) close(l->fd);
    if (l->reader) redisReaderFree(l->reader);
    buf_release(&l->out);
    free(l);
}

/* -- commands ---------------------------------------------------------------------------------- */

void view_link_put(struct view_link *l, int argc, const char *const *argv, const size_t *bytes)
{
    char *text;
    long long size = redisFormatCommandArgv(&text, argc, (const char **)argv, bytes);
    if (size < 0) die("out of memory");
    buf_add(&l->out, text, (size_t)size);
    redisFreeCommand(text);
}

static enum view_step wanted(bool reading, struct view_fault *f)
{
    if (errno == EINTR || errno == EAGAIN) return reading ? VIEW_WANTS_READ : VIEW_WANTS_WRITE;
    fail(f, VIEW_CONNECTION, strerror(errno));
    return VIEW_FAILED;
}

static enum view_step write_some(struct view_link *l, const void *data, size_t bytes, size_t *sent,
                                 struct view_fault *f)
{
    if (l->tls) return view_tls_write(l->tls, data, bytes, sent, f);
    ssize_t n = send(l->fd, data, bytes, MSG_NOSIGNAL);
    if (n < 0) return wanted(false, f);
    *sent = (size_t)n;
    return VIEW_DONE;
}

bool view_link_flush(struct view_link *l, uint64_t deadline, struct view_fault *f)
{
    for (size_t done = 0; done < l->out.size;) {
        size_t sent = 0;
        enum view_step step = write_some(l, l->out.data + done, l->out.size - done, &sent, f);
        if (step == VIEW_FAILED) return false;
        if (step == VIEW_CLOSED) return fail(f, VIEW_CONNECTION, "it closed the connection");
        if (step == VIEW_DONE) done += sent;
        else if (!wait_for(l->fd, step, deadline, "nothing taken in time", f)) return false;
    }
    buf_clear(&l->out);
    return true;
}

/* -- replies ----------------------------------------------------------------------------------- */

static enum view_step read_some(struct view_link *l, void *out, size_t room, size_t *got,
                                struct view_fault *f)
{
    if (l->tls) return view_tls_read(l->tls, out, room, got, f);
    ssize_t n = recv(l->fd, out, room, 0);
    if (n < 0) return wanted(true, f);
    *got = (size_t)n;
    return n ? VIEW_DONE : VIEW_CLOSED;
}

/* Reads what is there, or waits for it. */
static bool fill(struct view_link *l, uint64_t deadline, struct view_fault *f)
{
    char in[READ_BYTES];
    size_t got = 0;
    enum view_step step = read_some(l, in, sizeof in, &got, f);
    if (step == VIEW_FAILED) return false;
    if (step == VIEW_CLOSED) {
        bool strange = !l->heard && !l->tls;
        return fail(f, VIEW_CONNECTION, strange ? "it closed the connection; a TLS port needs "
                                                  "rediss://" : "it closed the connection");
    }
    if (step != VIEW_DONE) return wait_for(l->fd, step, deadline, "no answer in time", f);
    l->heard = true;
    redisReaderFeed(l->reader, in, got);
    return l->reader->len <= VIEW_REPLY_BYTES_MAX ||
           fail(f, VIEW_OTHER, "an answer over the limit");
}

redisReply *view_link_take(struct view_link *l, uint64_t deadline, struct view_fault *f)
{
    for (bool late = false;; late = clock_now_ns() >= deadline) {
        void *reply = NULL;
        if (redisReaderGetReply(l->reader, &reply) != REDIS_OK) {
            fail(f, VIEW_CONNECTION, l->reader->errstr);
            return NULL;
        }
        if (reply) return reply;
        if (late) {
            fail(f, VIEW_TIMEOUT, "no answer in time");
            return NULL;
        }
        if (!fill(l, deadline, f)) return NULL;
    }
}
