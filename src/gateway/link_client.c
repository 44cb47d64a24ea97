/* gateway/link_client.c - see link_client.h. */
#include "gateway/link_client.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "gateway/metrics.h"
#include "gateway/slots.h"
#include "gateway/watch.h"

enum {
    RETRY_FIRST_MS = 20,
    RETRY_LAST_MS = 1000,
    HANDSHAKE_MS = 5000,
    SILENCE_MS = 20 * LINK_STATE_MS,  /* rank 0 says STATE every LINK_STATE_MS */
    REFUSED_MAX = 3,                  /* closed right after our proof: it is wrong */
    OUT_BYTES_MAX = 64 << 20,
    TICK_MS = 1000,
};

enum phase { PHASE_DOWN, PHASE_CONNECTING, PHASE_CHALLENGE, PHASE_WELCOME, PHASE_UP };

struct stream {
    void *owner;
    uint32_t index;
};

struct link_client {
    struct gateway *gw;
    const struct link_owner *on;
    void (*tick)(struct gateway *);
    void (*ready)(void *);
    void *ready_arg;
    uint8_t secret[SECRET_BYTES];

    /* The thread's own. */
    pthread_t thread;
    int epoll, socket;
    enum phase phase;
    uint64_t retry_at, deadline, tick_at;
    unsigned retry_ms, refused;
    uint8_t nonce[16];
    struct link_reader reader;
    bool was_live, writing;

    /* Under the gateway's lock. */
    int wake;
    bool stop, up;
    struct slots streams;
    struct watch *watch;
    struct buf out;                   /* not yet written to the socket, from out_at on */
    size_t out_at;
    bool known;
    struct link_welcome job;
    enum job_state state;
};

/* -- called by others, under the lock ---------------------------------------------------------- */

static void wake(struct link_client *c)
{
    uint64_t one = 1;
    ssize_t wrote = write(c->wake, &one, sizeof one);
    (void)wrote;                      /* full counter: it is awake already */
}

static bool send_frame(struct link_client *c, const struct link_head *h)
{
    if (c->out.size - c->out_at + h->bytes > OUT_BYTES_MAX) return false;
    bool idle = c->out.size == c->out_at;
    buf_add(&c->out, h, h->bytes);
    if (idle) wake(c);
    return true;
}

uint64_t link_client_submit(struct link_client *c, struct link_request *r, void *owner,
                            uint32_t index)
{
    if (!c->up) return 0;
    struct stream *s;
    uint64_t number = slots_take(&c->streams, (void **)&s);
    if (!number) return 0;
    *s = (struct stream){ owner, index };
    link_head_set(&r->head, LINK_REQUEST, number,
                  link_request_bytes(r->params.bias_count, r->key_count, r->id_count));
    if (send_frame(c, &r->head)) return number;
    slots_give(&c->streams, number);
    return 0;
}

void link_client_cancel(struct link_client *c, uint64_t stream)
{
    if (!slots_find(&c->streams, stream) || !c->up) return;
    struct link_head h;
    link_head_set(&h, LINK_CANCEL, stream, sizeof h);
    buf_add(&c->out, &h, sizeof h);   /* beyond the bound too: it only ever makes room */
    wake(c);
}

void link_client_forget(struct link_client *c, uint64_t stream)
{
    if (!slots_find(&c->streams, stream)) return;
    link_client_cancel(c, stream);
    slots_give(&c->streams, stream);
}

uint64_t link_client_watch(struct link_client *c, int fd, void *owner)
{
    return watch_add(c->watch, fd, owner);
}

void link_client_unwatch(struct link_client *c, uint64_t number)
{
    watch_remove(c->watch, number);
}

enum job_state link_client_state(const struct link_client *c)
{
    return c->up ? c->state : JOB_STARTING;
}

bool link_client_job(const struct link_client *c, uint32_t *max_model_len, uint32_t *vocab)
{
    if (!c->known) return false;
    *max_model_len = c->job.max_model_len;
    *vocab = c->job.vocab;
    return true;
}

/* -- the thread: connecting -------------------------------------------------------------------- */

static void want_write(struct link_client *c, bool want)
{
    if (c->socket < 0 || c->writing == want) return;
    struct epoll_event event = { .events = EPOLLIN | (want ? EPOLLOUT : 0) };
    epoll_ctl(c->epoll, EPOLL_CTL_MOD, c->socket, &event);
    c->writing = want;
}

static void end_all_streams(struct link_client *c)
{
    struct link_end end = { .code = LINK_WORKER_LOST, .finish = FINISH_ERROR, .prefill_rank = -1,
                            .decode_rank = -1 };
    uint32_t at = 0;
    for (uint64_t number; (number = slots_walk(&c->streams, &at));) {
        struct stream s = *(struct stream *)slots_find(&c->streams, number);
        slots_give(&c->streams, number);
        c->on->end(s.owner, s.index, &end);
    }
}

static void drop(struct link_client *c, const char *reason)
{
    if (c->phase == PHASE_UP) log_warn("link lost reason=\"%s\"", reason);
    else if (c->phase != PHASE_CONNECTING) log_warn("link refused reason=\"%s\"", reason);
    close(c->socket);
    c->socket = -1;
    c->phase = PHASE_DOWN;
    c->writing = false;
    link_reader_release(&c->reader);
    c->retry_at = clock_now_ns() + c->retry_ms * NS_PER_MS;
    c->retry_ms = c->retry_ms * 2 < RETRY_LAST_MS ? c->retry_ms * 2 : RETRY_LAST_MS;

    pthread_mutex_lock(&c->gw->lock);
    c->up = false;
    c->state = JOB_STARTING;
    buf_release(&c->out);
    c->out_at = 0;
    metrics_link_lost(c->gw->metrics);
    end_all_streams(c);
    pthread_mutex_unlock(&c->gw->lock);
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof address.sun_path) die("--link %s: path too long", path);
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

static int connect_tcp(const char *where)
{
    const char *colon = strrchr(where, ':');
    if (!colon) die("--link %s: neither a path nor HOST:PORT", where);
    size_t host_bytes = (size_t)(colon - where);
    bool bracket = host_bytes >= 2 && where[0] == '[' && colon[-1] == ']';
    char *host = mem_text_n(where + bracket, host_bytes - 2 * bracket);
    struct addrinfo *found = NULL, hints = { .ai_socktype = SOCK_STREAM };
    int rc = getaddrinfo(host, colon + 1, &hints, &found);
    free(host);
    if (rc != 0) return -1;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) != 0 && errno != EINPROGRESS) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

static void connect_start(struct link_client *c)
{
    const char *where = c->gw->config.link;
    c->socket = strchr(where, '/') ? connect_unix(where) : connect_tcp(where);
    uint64_t now = clock_now_ns();
    if (c->socket < 0) {
        c->retry_at = now + c->retry_ms * NS_PER_MS;
        c->retry_ms = c->retry_ms * 2 < RETRY_LAST_MS ? c->retry_ms * 2 : RETRY_LAST_MS;
        return;
    }
    struct epoll_event event = { .events = EPOLLIN | EPOLLOUT };
    c->writing = true;
    epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->socket, &event);
    c->phase = PHASE_CONNECTING;
    c->deadline = now + HANDSHAKE_MS * NS_PER_MS;
}

/* Handshake messages are small: a socket that does not take one whole is not worth keeping. */
static bool send_now(struct link_client *c, const void *message, size_t bytes)
{
    return send(c->socket, message, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static void say_hello(struct link_client *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->socket, SOL_SOCKET, SO_ERROR, &error, &size);
    struct link_hello hello;
    link_head_set(&hello.head, LINK_HELLO, 0, sizeof hello);
    secret_random(c->nonce, sizeof c->nonce);
    memcpy(hello.nonce, c->nonce, sizeof hello.nonce);
    if (error || !send_now(c, &hello, sizeof hello)) {
        drop(c, "cannot connect");
        return;
    }
    c->phase = PHASE_CHALLENGE;
    want_write(c, false);
}

static const char *take_challenge(struct link_client *c, const struct link_head *h)
{
    const struct link_challenge *challenge = link_as_challenge(h);
    if (!challenge) return "bad challenge";
    struct hash128 expected = link_proof_of_job(c->secret, c->nonce, challenge->nonce);
    if (!secret_equal(&expected, &challenge->proof, sizeof expected)) {
        die("link %s: wrong secret: the job's differs from %s", c->gw->config.link,
            c->gw->config.secret_file);
    }
    struct link_proof proof;
    link_head_set(&proof.head, LINK_PROOF, 0, sizeof proof);
    proof.proof = link_proof_of_gateway(c->secret, challenge->nonce, c->nonce);
    if (!send_now(c, &proof, sizeof proof)) return "cannot send the proof";
    c->phase = PHASE_WELCOME;
    return NULL;
}

static const char *take_welcome(struct link_client *c, const struct link_head *h)
{
    const struct link_welcome *w = link_as_welcome(h);
    if (!w) return "bad welcome";
    struct gateway *gw = c->gw;
    if (gw->has_digest && !hash_equal(w->model_digest, gw->digest)) {
        die("the job serves another model than %s", gw->config.model);
    }
    if (w->vocab < tokenizer_vocab(gw->tokenizer)) {
        die("the job's vocabulary has %u tokens, that of %s %u", w->vocab, gw->config.model,
            tokenizer_vocab(gw->tokenizer));
    }
    c->phase = PHASE_UP;
    c->deadline = clock_now_ns() + SILENCE_MS * NS_PER_MS;
    c->retry_ms = RETRY_FIRST_MS;
    c->refused = 0;
    pthread_mutex_lock(&gw->lock);
    c->job = *w;
    c->known = c->up = true;
    pthread_mutex_unlock(&gw->lock);
    log_info("link up job=%s max_model_len=%u vocab=%u", w->job_id, w->max_model_len, w->vocab);
    return NULL;
}

/* -- the thread: frames ------------------------------------------------------------------------ */

static void take_state(struct link_client *c, const struct link_state *s)
{
    if (c->state != (enum job_state)s->state) {
        static const char *const names[] = { "?", "starting", "live", "draining" };
        log_info("job state=%s workers=%u/%u", names[s->state], s->workers_alive, s->worker_count);
    }
    c->state = (enum job_state)s->state;
    metrics_state(c->gw->metrics, s, clock_now_ns());
}

static const char *take_up(struct link_client *c, const struct link_head *h)
{
    const struct link_tokens *t = link_as_tokens(h);
    const struct link_end *e = link_as_end(h);
    const struct link_state *state = link_as_state(h);
    if (state) {
        take_state(c, state);
        return NULL;
    }
    if (!t && !e) return "unexpected or malformed frame";
    struct stream *s = slots_find(&c->streams, h->stream);
    if (!s) return NULL;              /* forgotten: its end was on the way */
    if (t) {
        c->on->tokens(s->owner, s->index, t);
        return NULL;
    }
    struct stream ended = *s;
    slots_give(&c->streams, h->stream);
    c->on->end(ended.owner, ended.index, e);
    return NULL;
}

static const char *take_frames(struct link_client *c)
{
    const struct link_head *h;
    for (;;) {
        if (link_reader_next(&c->reader, &h) != OK) return "not the link's protocol";
        if (!h) return NULL;
        const char *wrong = NULL;
        switch (c->phase) {
        case PHASE_CHALLENGE: wrong = take_challenge(c, h); break;
        case PHASE_WELCOME: wrong = take_welcome(c, h); break;
        default:
            pthread_mutex_lock(&c->gw->lock);
            wrong = take_up(c, h);
            pthread_mutex_unlock(&c->gw->lock);
        }
        if (wrong) return wrong;
    }
}

static void read_link(struct link_client *c)
{
    static _Thread_local char bytes[65536];
    for (int rounds = 0; rounds < 16; rounds++) {
        ssize_t got = recv(c->socket, bytes, sizeof bytes, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            if (c->phase == PHASE_WELCOME && ++c->refused >= REFUSED_MAX) {
                die("link %s: refused, wrong secret in %s", c->gw->config.link,
                    c->gw->config.secret_file);
            }
            drop(c, got < 0 ? strerror(errno) : "closed by rank 0");
            return;
        }
        if (c->phase == PHASE_UP) c->deadline = clock_now_ns() + SILENCE_MS * NS_PER_MS;
        const char *wrong = link_reader_feed(&c->reader, bytes, (size_t)got) == OK
                                ? take_frames(c) : "frame over its limit";
        if (wrong) {
            drop(c, wrong);
            return;
        }
        if (got < (ssize_t)sizeof bytes) return;
    }
}

/* Takes what is to be written from under the lock in pieces: nobody waits for a write. */
static void write_link(struct link_client *c)
{
    static _Thread_local char piece[65536];
    for (;;) {
        pthread_mutex_lock(&c->gw->lock);
        size_t bytes = c->out.size - c->out_at;
        if (bytes > sizeof piece) bytes = sizeof piece;
        if (bytes) memcpy(piece, c->out.data + c->out_at, bytes);
        pthread_mutex_unlock(&c->gw->lock);
        if (!bytes) break;
        ssize_t sent = send(c->socket, piece, bytes, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            want_write(c, true);
            return;
        }
        if (sent < 0) return;         /* reading will say why */
        pthread_mutex_lock(&c->gw->lock);
        c->out_at += (size_t)sent;
        if (c->out_at == c->out.size) {
            if (c->out.room > (1u << 20)) buf_release(&c->out);
            else buf_clear(&c->out);
            c->out_at = 0;
        } else if (c->out_at > (1u << 20)) {
            c->out.size -= c->out_at;
            memmove(c->out.data, c->out.data + c->out_at, c->out.size);
            c->out_at = 0;
        }
        pthread_mutex_unlock(&c->gw->lock);
    }
    want_write(c, false);
}

/* -- the thread: its loop ---------------------------------------------------------------------- */

static void drain_wake(struct link_client *c)
{
    uint64_t count;
    ssize_t got = read(c->wake, &count, sizeof count);
    (void)got;
}

static int wait_ms(const struct link_client *c, uint64_t now)
{
    uint64_t until = c->tick_at;
    if (c->phase == PHASE_DOWN && c->retry_at < until) until = c->retry_at;
    if (c->phase != PHASE_DOWN && c->deadline < until) until = c->deadline;
    return until <= now ? 0 : (int)((until - now) / NS_PER_MS + 1);
}

static void timers(struct link_client *c)
{
    uint64_t now = clock_now_ns();
    if (c->phase == PHASE_DOWN && now >= c->retry_at) connect_start(c);
    else if (c->phase != PHASE_DOWN && now >= c->deadline) drop(c, "timed out");
    if (now < c->tick_at) return;
    c->tick_at = now + TICK_MS * NS_PER_MS;
    pthread_mutex_lock(&c->gw->lock);
    c->tick(c->gw);
    pthread_mutex_unlock(&c->gw->lock);
}

static void socket_event(struct link_client *c, uint32_t events)
{
    if (c->phase == PHASE_CONNECTING) {
        say_hello(c);
        return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_link(c);
    if (c->phase == PHASE_UP && !c->was_live) {
        pthread_mutex_lock(&c->gw->lock);
        c->was_live = c->state == JOB_LIVE;
        pthread_mutex_unlock(&c->gw->lock);
        if (c->was_live) c->ready(c->ready_arg);
    }
}

static void *run(void *arg)
{
    struct link_client *c = arg;
    for (bool stop = false; !stop;) {
        struct epoll_event events[4];
        int count = epoll_wait(c->epoll, events, 4, wait_ms(c, clock_now_ns()));
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == 1) drain_wake(c);
            else if (events[i].data.u64 == 0 && c->socket >= 0) socket_event(c, events[i].events);
        }
        pthread_mutex_lock(&c->gw->lock);
        watch_poll(c->watch);
        stop = c->stop;
        pthread_mutex_unlock(&c->gw->lock);
        if (c->phase == PHASE_UP) write_link(c);
        timers(c);
    }
    return NULL;
}

struct link_client *link_client_start(struct gateway *gw, const struct link_owner *functions,
                                      void (*tick)(struct gateway *), void (*ready)(void *),
                                      void *ready_arg)
{
    struct link_client *c = mem_alloc(sizeof *c);
    c->gw = gw;
    c->on = functions;
    c->tick = tick;
    c->ready = ready;
    c->ready_arg = ready_arg;
    c->socket = -1;
    c->retry_ms = RETRY_FIRST_MS;
    c->state = JOB_STARTING;
    struct why why;
    if (link_secret_read(gw->config.secret_file, c->secret, &why) != OK) die("%s", why.text);
    slots_open(&c->streams, sizeof(struct stream));
    c->watch = watch_open(functions->gone);
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = 1 };
    struct epoll_event hung_up = { .events = EPOLLIN, .data.u64 = 2 };
    if (c->epoll < 0 || c->wake < 0 || epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->wake, &event) != 0 ||
        epoll_ctl(c->epoll, EPOLL_CTL_ADD, watch_fd(c->watch), &hung_up) != 0) {
        die("cannot make an epoll: %s", strerror(errno));
    }
    gw->link = c;                     /* before the thread can look */
    if (pthread_create(&c->thread, NULL, run, c) != 0) die("cannot start a thread");
    return c;
}

void link_client_stop(struct link_client *c)
{
    pthread_mutex_lock(&c->gw->lock);
    c->stop = true;
    wake(c);
    pthread_mutex_unlock(&c->gw->lock);
    pthread_join(c->thread, NULL);
    if (c->socket >= 0) close(c->socket);
    close(c->epoll);
    close(c->wake);
    link_reader_release(&c->reader);
    watch_close(c->watch);
    slots_close(&c->streams);
    buf_release(&c->out);
    free(c);
}
