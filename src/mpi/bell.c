/* mpi/bell.c - listening, connecting, proving, ringing; see bell.h. */
#include "mpi/bell.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

enum { ADDRESSES_MAX = 4, STRANGERS_MAX = 64, HELLO_MAGIC = 0x524b4231, CONNECT_S = 30 };

struct hello { uint32_t magic; int32_t rank; struct hash128 proof; };
struct ring { uint32_t counts[2]; };

struct address {                      /* how to reach one rank */
    int32_t count;
    struct sockaddr_storage at[ADDRESSES_MAX]; /* TCP; on the same host: the Unix name is known */
};

struct bell {                         /* one connection */
    struct watch watch;               /* key: the other rank, -1 while it has proved nothing */
    struct bells *all;
    struct bell *next;                /* strangers */
    uint8_t in[sizeof(struct hello)], out[sizeof(struct hello)];
    uint32_t in_size, out_size, out_sent;
    uint32_t counts[2];
    bool dirty, connecting;
    int address;                      /* the one being tried */
};

struct peer { struct bell *out, *in; };

struct bells {
    const struct job *job;
    struct loop *loop;
    struct bell_sink sink;
    struct address *addresses;
    struct peer *peers;
    struct bell *strangers;
    int stranger_count;
    struct watch unix_listener, tcp_listener;
    int connected;                    /* rank 0: workers that have */
};

static struct hash128 proof(const struct job *j, int from, int to)
{
    struct hash_secret key;
    memcpy(&key, j->nonce, sizeof key);
    int32_t text[4] = { HELLO_MAGIC, from, to, j->size };
    return hash_sip128(key, text, sizeof text);
}

static socklen_t unix_name(const struct job *j, int rank, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){ .sun_family = AF_UNIX };
    struct hash128 h = proof(j, rank, -1);
    int n = snprintf(out->sun_path + 1, sizeof out->sun_path - 1, "rankserve.%016llx.%d",
                     (unsigned long long)h.lo, rank);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* -- connections ------------------------------------------------------------------------------ */

static void bell_event(struct watch *w, uint32_t events);

static struct bell *bell_make(struct bells *b, int fd, int rank, uint32_t events)
{
    struct bell *c = mem_alloc(sizeof *c);
    c->all = b;
    c->watch = (struct watch){ .fd = fd, .call = bell_event, .ctx = c, .key = rank };
    loop_add(b->loop, &c->watch, events);
    return c;
}

static void forget_stranger(struct bells *b, const struct bell *c)
{
    for (struct bell **at = &b->strangers; *at; at = &(*at)->next) {
        if (*at != c) continue;
        *at = c->next;
        b->stranger_count--;
        return;
    }
}

static void bell_free(struct bell *c)
{
    struct bells *b = c->all;
    if (c->watch.key >= 0) {
        struct peer *p = &b->peers[c->watch.key];
        if (p->out == c) p->out = NULL;
        if (p->in == c) p->in = NULL;
    } else {
        forget_stranger(b, c);
    }
    loop_remove(b->loop, &c->watch);
    close(c->watch.fd);
    free(c);
}

static bool socket_try_address(struct bells *b, int rank, int index, int *fd_out)
{
    const struct address *a = &b->addresses[rank];
    bool same_host = b->job->host_of[rank] == b->job->host_of[b->job->rank];
    struct sockaddr_storage to;
    socklen_t bytes;
    if (same_host) {
        if (index > 0) return false;
        bytes = unix_name(b->job, rank, (struct sockaddr_un *)&to);
    } else {
        if (index >= a->count) return false;
        to = a->at[index];
        bytes = to.ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    }
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    if (!same_host) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
    if (connect(fd, (struct sockaddr *)&to, bytes) != 0 && errno != EINPROGRESS) {
        close(fd);
        return false;
    }
    *fd_out = fd;
    return true;
}

static void put_hello(struct bell *c, int rank)
{
    const struct job *j = c->all->job;
    struct hello h = { .magic = HELLO_MAGIC, .rank = j->rank, .proof = proof(j, j->rank, rank) };
    memcpy(c->out, &h, sizeof h);
    c->out_size = sizeof h;
    c->out_sent = 0;
}

/* Starts a connection with the first address from `index` on that does not fail at once. */
static struct bell *bell_connect(struct bells *b, int rank, int index)
{
    int fd = -1;
    const int tries = ADDRESSES_MAX;
    while (index < tries && !socket_try_address(b, rank, index, &fd)) index++;
    if (index == tries) return NULL;
    struct bell *c = bell_make(b, fd, rank, EPOLLIN | EPOLLOUT);
    c->connecting = true;
    c->address = index;
    put_hello(c, rank);
    b->peers[rank].out = c;
    return c;
}

/* Sends what waits.  False: the connection is broken. */
static bool bell_flush(struct bell *c)
{
    for (;;) {
        if (c->out_sent == c->out_size) {
            if (!c->dirty) break;
            struct ring r = { { c->counts[0], c->counts[1] } };
            memcpy(c->out, &r, sizeof r);
            c->out_size = sizeof r;
            c->out_sent = 0;
            c->dirty = false;
        }
        ssize_t n = send(c->watch.fd, c->out + c->out_sent, c->out_size - c->out_sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) {
            loop_change(c->all->loop, &c->watch, EPOLLIN | EPOLLOUT);
            return true;
        }
        if (n < 0) return false;
        c->out_sent += (uint32_t)n;
    }
    return true;
}

void bell_ring(struct bells *b, int rank, const uint32_t counts[2])
{
    struct peer *p = &b->peers[rank];
    bool with_zero = rank == 0 || b->job->rank == 0;
    if (!p->out && !with_zero) bell_connect(b, rank, 0);
    struct bell *c = p->out;
    if (!c) return; /* dead: rank 0 will say so */
    c->counts[0] = counts[0], c->counts[1] = counts[1];
    c->dirty = true;
    if (!c->connecting) bell_flush(c); /* a broken one is seen as end-of-file */
}

/* -- what comes in ---------------------------------------------------------------------------- */

static void accept_hello(struct bell *c)
{
    struct bells *b = c->all;
    const struct job *j = b->job;
    struct hello h;
    memcpy(&h, c->in, sizeof h);
    bool fits = h.magic == HELLO_MAGIC && h.rank > 0 && h.rank < j->size && h.rank != j->rank;
    struct hash128 want = proof(j, fits ? h.rank : 0, j->rank);
    if (!fits || !secret_equal(&want, &h.proof, sizeof want)) {
        log_warn("bell: refused a connection that does not belong to the job");
        bell_free(c);
        return;
    }
    forget_stranger(b, c);
    struct peer *p = &b->peers[h.rank];
    c->watch.key = h.rank;
    if (p->in) bell_free(p->in);
    p->in = c;
    if (j->rank == 0) {
        p->out = c;
        b->connected++;
    }
    c->in_size = 0;
}

static void bell_ended(struct bell *c)
{
    struct bells *b = c->all;
    int rank = (int)c->watch.key, address = c->address;
    bool was_connecting = c->connecting;
    uint32_t counts[2] = { c->counts[0], c->counts[1] };
    bool with_zero = rank == 0 || b->job->rank == 0;
    bell_free(c);
    if (rank < 0) return;
    if (was_connecting) {
        struct bell *next = bell_connect(b, rank, address + 1);
        if (next) {
            next->counts[0] = counts[0], next->counts[1] = counts[1];
            next->dirty = true;
            return;
        }
    }
    if (with_zero) b->sink.ended(b->sink.ctx, rank);
}

/* False when the connection ended. */
static bool bell_read(struct bell *c)
{
    for (;;) {
        uint32_t want = c->watch.key < 0 ? sizeof(struct hello) : sizeof(struct ring);
        ssize_t n = recv(c->watch.fd, c->in + c->in_size, want - c->in_size, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
        if (n <= 0) return false;
        c->in_size += (uint32_t)n;
        if (c->in_size < want) continue;
        if (c->watch.key < 0) {
            accept_hello(c);
            return true; /* c may be gone; level-triggered: what is left comes again */
        }
        struct ring r;
        memcpy(&r, c->in, sizeof r);
        c->in_size = 0;
        c->all->sink.rung(c->all->sink.ctx, (int)c->watch.key, r.counts);
    }
}

static void bell_event(struct watch *w, uint32_t events)
{
    struct bell *c = w->ctx;
    if (c->connecting && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(w->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            bell_ended(c);
            return;
        }
        c->connecting = false;
    }
    if (events & EPOLLOUT) {
        loop_change(c->all->loop, w, EPOLLIN);
        if (!bell_flush(c)) {
            bell_ended(c);
            return;
        }
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !bell_read(c)) bell_ended(c);
}

static void listener_event(struct watch *w, uint32_t events)
{
    (void)events;
    struct bells *b = w->ctx;
    int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    if (w == &b->unix_listener) {
        struct ucred who;
        socklen_t size = sizeof who;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 || who.uid != getuid()) {
            close(fd);
            return;
        }
    } else {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
    }
    if (b->stranger_count == STRANGERS_MAX) { /* the one that waited longest goes */
        struct bell *oldest = b->strangers;
        while (oldest->next) oldest = oldest->next;
        bell_free(oldest);
    }
    struct bell *c = bell_make(b, fd, -1, EPOLLIN);
    c->next = b->strangers;
    b->strangers = c;
    b->stranger_count++;
}

void bell_cut(struct bells *b, int rank)
{
    struct peer *p = &b->peers[rank];
    if (p->out) bell_free(p->out); /* clears `in` too when it is the same */
    if (p->in) bell_free(p->in);
}

bool bell_connected(const struct bells *b, int rank)
{
    return b->peers[rank].out || b->peers[rank].in;
}

/* -- start ------------------------------------------------------------------------------------ */

static bool listen_unix(struct bells *b)
{
    struct sockaddr_un a;
    socklen_t bytes = unix_name(b->job, b->job->rank, &a);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, bytes) != 0) return false;
    if (listen(fd, 4096) != 0) return false;
    b->unix_listener = (struct watch){ .fd = fd, .call = listener_event, .ctx = b };
    loop_add(b->loop, &b->unix_listener, EPOLLIN);
    return true;
}

static void own_addresses(struct address *out, uint16_t port)
{
    struct ifaddrs *list;
    if (getifaddrs(&list) != 0) return;
    for (int loopback = 0; loopback < 2 && out->count == 0; loopback++) {
        for (struct ifaddrs *i = list; i && out->count < ADDRESSES_MAX; i = i->ifa_next) {
            if (!i->ifa_addr || !(i->ifa_flags & IFF_UP)) continue;
            if (i->ifa_addr->sa_family != AF_INET) continue;
            if (!(i->ifa_flags & IFF_LOOPBACK) != !loopback) continue;
            struct sockaddr_in *a = (struct sockaddr_in *)&out->at[out->count++];
            memcpy(a, i->ifa_addr, sizeof *a);
            a->sin_port = port;
        }
    }
    freeifaddrs(list);
}

static bool listen_tcp(struct bells *b, struct address *mine)
{
    struct sockaddr_in a = { .sin_family = AF_INET };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t bytes = sizeof a;
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 4096) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &bytes) != 0)
        return false;
    own_addresses(mine, a.sin_port);
    b->tcp_listener = (struct watch){ .fd = fd, .call = listener_event, .ctx = b };
    loop_add(b->loop, &b->tcp_listener, EPOLLIN);
    return true;
}

static enum err connect_all(struct bells *b, struct why *why)
{
    const struct job *j = b->job;
    uint64_t end = clock_now_ns() + CONNECT_S * NS_PER_S;
    if (j->rank != 0 && !bell_connect(b, 0, 0))
        return why_set(why, ERR_IO, "rank %d cannot connect to rank 0", j->rank);
    for (;;) {
        bool done = j->rank == 0 ? b->connected == j->size - 1
                                 : b->peers[0].out && !b->peers[0].out->connecting &&
                                       b->peers[0].out->out_sent == b->peers[0].out->out_size;
        if (done) return OK;
        if (clock_now_ns() > end || (j->rank != 0 && !b->peers[0].out))
            return why_set(why, ERR_TIMEOUT, "rank %d: no doorbell connection %s rank 0", j->rank,
                           j->rank == 0 ? "from every worker to" : "to");
        loop_wait(b->loop, 10 * NS_PER_MS);
    }
}

enum err bells_open(struct bells **out, const struct job *j, struct loop *l,
                    const struct bell_sink *sink, struct why *why)
{
    struct bells *b = mem_alloc(sizeof *b);
    *b = (struct bells){ .job = j, .loop = l, .sink = *sink };
    b->peers = mem_array((size_t)j->size, sizeof *b->peers);
    b->addresses = mem_array((size_t)j->size, sizeof *b->addresses);
    struct address mine = { 0 };
    bool listening = listen_unix(b) && (j->host_count == 1 || listen_tcp(b, &mine));
    enum err e = OK;
    if (!listening) e = why_set(why, ERR_IO, "rank %d cannot listen: %s", j->rank, strerror(errno));
    e = job_agree(j, e, why);
    if (e) return e;
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, b->addresses, sizeof mine, MPI_BYTE, j->control);
    *out = b;
    return job_agree(j, connect_all(b, why), why);
}
