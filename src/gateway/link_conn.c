/* gateway/link_conn.c - one connection of link_client: connecting, proving, frames; link_inside.h.
 *
 * With one job for ever, a job that does not fit (another model, a wrong secret) ends the program;
 * one of several is refused with a line in the log, until its entry changes.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "gateway/link_inside.h"

enum {
    RETRY_FIRST_MS = 20,
    RETRY_LAST_MS = 1000,
    HANDSHAKE_MS = 5000,
    SILENCE_MS = 20 * LINK_STATE_MS,  /* rank 0 says STATE every LINK_STATE_MS */
    REFUSED_MAX = 3,                  /* closed right after our proof: it is wrong */
    FAILURES_SAID = 5,                /* tries in vain before a line about it */
    OUT_BYTES_MAX = 64 << 20,
    AT_ONCE_BYTES_MAX = 16 << 10,     /* larger frames take longer than the lock is to be held */
};

/* What nothing waits before goes out from here, without waking the thread.  The thread writes only
 * what is in `out`, and takes it out of there when it is written: so frames keep their order. */
static size_t send_at_once(struct conn *c, const struct link_head *h)
{
    if (!c->up || c->out.size != c->out_at || h->bytes > AT_ONCE_BYTES_MAX) return 0;
    ssize_t sent = send(c->socket, h, h->bytes, MSG_NOSIGNAL);
    return sent > 0 ? (size_t)sent : 0; /* a broken socket is the thread's to find */
}

bool conn_send(struct conn *c, const struct link_head *h)
{
    if (c->out.size - c->out_at + h->bytes > OUT_BYTES_MAX) return false;
    size_t sent = send_at_once(c, h);
    return sent == h->bytes || buf_add(&c->out, (const char *)h + sent, h->bytes - sent);
}

/* -- connecting -------------------------------------------------------------------------------- */

static void want_write(struct conn *c, bool want)
{
    if (c->socket < 0 || c->writing == want) return;
    struct epoll_event event = { .events = EPOLLIN | (want ? EPOLLOUT : 0),
                                 .data.u64 = c->index };
    epoll_ctl(c->set->epoll, EPOLL_CTL_MOD, c->socket, &event);
    c->writing = want;
}

static void end_streams(struct conn *c)
{
    struct link_end end = { .code = LINK_WORKER_LOST, .finish = FINISH_ERROR, .prefill_rank = -1,
                            .decode_rank = -1 };
    struct link_client *set = c->set;
    uint32_t at = 0;
    for (uint64_t number; c->stream_count && (number = slots_walk(&set->streams, &at));) {
        struct stream s = *(struct stream *)slots_find(&set->streams, number);
        if (s.conn != c->index) continue;
        slots_give(&set->streams, number);
        c->stream_count--;
        set->on->end(s.owner, s.index, &end);
    }
}

static void retry_later(struct conn *c)
{
    c->retry_at = clock_now_ns() + c->retry_ms * NS_PER_MS;
    c->retry_ms = c->retry_ms * 2 < RETRY_LAST_MS ? c->retry_ms * 2 : RETRY_LAST_MS;
    if (c->set->fixed || c->leaving || ++c->failures != FAILURES_SAID) return;
    log_warn("job=%s does not answer at %s: its endpoint file may be stale", c->to.name,
             c->to.where);
}

void conn_drop(struct conn *c, const char *reason)
{
    struct link_client *set = c->set;
    pthread_mutex_lock(&set->gw->lock);
    bool drained = !set->fixed && c->said.state == JOB_DRAINING && c->stream_count == 0;
    bool left = c->leaving || drained;
    c->up = false;                    /* before the socket is closed: nobody sends on it */
    pthread_mutex_unlock(&set->gw->lock);
    if (c->phase == PHASE_UP && left) log_info("job=%s left", c->to.name);
    else if (c->phase == PHASE_UP) log_warn("link lost job=%s reason=\"%s\"", c->to.name, reason);
    else if (c->phase > PHASE_CONNECTING) {
        log_warn("link refused job=%s reason=\"%s\"", c->to.name, reason);
    }
    if (c->socket >= 0) close(c->socket);
    c->socket = -1;
    c->phase = PHASE_DOWN;
    c->writing = false;
    link_reader_release(&c->reader);
    retry_later(c);

    pthread_mutex_lock(&set->gw->lock);
    c->said = (struct link_state){ 0 };
    buf_release(&c->out);
    c->out_at = 0;
    link_client_tell_metrics(set);
    end_streams(c);
    pthread_mutex_unlock(&set->gw->lock);
}

/* It will never do. */
static const char *refuse(struct conn *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static const char *refuse(struct conn *c, const char *fmt, ...)
{
    static char text[400];            /* one thread */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (c->set->fixed) die("%s", text);
    c->refused = REFUSED_MAX;
    return text;
}

static void drop(struct conn *c, const char *reason)
{
    conn_drop(c, reason);
    if (c->refused >= REFUSED_MAX) c->phase = PHASE_REFUSED;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof address.sun_path) return -1;
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

static int connect_to(const struct sockaddr *address, socklen_t bytes)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd >= 0 && connect(fd, address, bytes) != 0 && errno != EINPROGRESS) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* A name server may take its time: on a helper. */
static void look_up(void *arg)
{
    struct conn *c = arg;
    struct sockaddr_storage address;
    socklen_t bytes = 0;
    if (!link_target_resolve(c->to.where, &address, &bytes)) bytes = 0;
    pthread_mutex_lock(&c->set->gw->lock);
    if (bytes) c->found = address;
    c->found_bytes = bytes;
    c->looking = false;
    link_client_wake(c->set);
    pthread_mutex_unlock(&c->set->gw->lock);
}

static void look_start(struct conn *c)
{
    c->phase = PHASE_LOOKING;
    pthread_mutex_lock(&c->set->gw->lock);
    c->looking = true;
    pthread_mutex_unlock(&c->set->gw->lock);
    c->lookup = (struct task){ .run = look_up, .arg = c };
    helpers_do(c->set->gw->helpers, &c->lookup);
}

/* -1: not that way, or not now. */
static void connect_with(struct conn *c, int fd)
{
    c->socket = fd;
    c->phase = PHASE_DOWN;
    if (fd < 0) {
        retry_later(c);
        return;
    }
    struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.u64 = c->index };
    c->writing = true;
    epoll_ctl(c->set->epoll, EPOLL_CTL_ADD, c->socket, &event);
    c->phase = PHASE_CONNECTING;
    c->deadline = clock_now_ns() + HANDSHAKE_MS * NS_PER_MS;
}

static void connect_start(struct conn *c)
{
    const struct link_target *to = &c->to;
    if (strchr(to->where, '/')) {
        connect_with(c, connect_unix(to->where));
    } else if (to->address_bytes) {
        connect_with(c, connect_to((const struct sockaddr *)&to->address, to->address_bytes));
    } else {
        look_start(c);
    }
}

static void connect_found(struct conn *c)
{
    pthread_mutex_lock(&c->set->gw->lock);
    bool looking = c->looking;
    struct sockaddr_storage address = c->found;
    socklen_t bytes = c->found_bytes;
    pthread_mutex_unlock(&c->set->gw->lock);
    if (looking) return;
    connect_with(c, bytes ? connect_to((const struct sockaddr *)&address, bytes) : -1);
}

/* Handshake messages are small: a socket that does not take one whole is not worth keeping. */
static bool send_now(struct conn *c, const void *message, size_t bytes)
{
    return send(c->socket, message, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static void say_hello(struct conn *c)
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

static const char *take_challenge(struct conn *c, const struct link_head *h)
{
    const struct link_challenge *challenge = link_as_challenge(h);
    if (!challenge) return "bad challenge";
    struct hash128 expected = link_proof_of_job(c->to.secret, c->nonce, challenge->nonce);
    if (!secret_equal(&expected, &challenge->proof, sizeof expected)) {
        return refuse(c, "link %s: wrong secret: the job's differs from ours", c->to.where);
    }
    struct link_proof proof;
    link_head_set(&proof.head, LINK_PROOF, 0, sizeof proof);
    proof.proof = link_proof_of_gateway(c->to.secret, challenge->nonce, c->nonce);
    if (!send_now(c, &proof, sizeof proof)) return "cannot send the proof";
    c->phase = PHASE_WELCOME;
    return NULL;
}

static const char *take_welcome(struct conn *c, const struct link_head *h)
{
    const struct link_welcome *w = link_as_welcome(h);
    if (!w) return "bad welcome";
    struct gateway *gw = c->set->gw;
    if (gw->has_digest && !hash_equal(w->model_digest, gw->digest)) {
        return refuse(c, "the job serves another model than %s", gw->config.model);
    }
    if (w->vocab < tokenizer_vocab(gw->tokenizer)) {
        return refuse(c, "the job's vocabulary has %u tokens, that of %s %u", w->vocab,
                      gw->config.model, tokenizer_vocab(gw->tokenizer));
    }
    c->phase = PHASE_UP;
    c->deadline = clock_now_ns() + SILENCE_MS * NS_PER_MS;
    c->retry_ms = RETRY_FIRST_MS;
    c->refused = c->failures = 0;
    pthread_mutex_lock(&gw->lock);
    c->job = *w;
    c->keys = (struct link_keys){
        .secret = *gw->config.kv_secret_file ? gw->kv_secret : link_kv_secret(c->to.secret),
        .scope = { .model_digest = w->model_digest, .kv_type = w->kv_type,
                   .block_tokens = w->block_tokens },
    };
    c->known = c->up = true;
    c->keyed = hash_equal(w->keys_proof, link_keys_proof(c->keys.secret));
    pthread_mutex_unlock(&gw->lock);
    if (!c->keyed) log_warn("job=%s: another --kv-secret-file: it makes its own keys", c->to.name);
    log_info("link up job=%s max_model_len=%u vocab=%u", c->to.name, w->max_model_len, w->vocab);
    return NULL;
}

/* -- frames ------------------------------------------------------------------------------------ */

static void take_state(struct conn *c, const struct link_state *s)
{
    if (c->said.state != s->state) {
        static const char *const names[] = { "?", "starting", "live", "draining" };
        log_info("job=%s state=%s workers=%u/%u", c->to.name, names[s->state], s->workers_alive,
                 s->worker_count);
    }
    c->said = *s;
    link_client_tell_metrics(c->set);
}

static const char *take_up(struct conn *c, const struct link_head *h)
{
    const struct link_tokens *t = link_as_tokens(h);
    const struct link_end *e = link_as_end(h);
    const struct link_state *state = link_as_state(h);
    if (state) {
        take_state(c, state);
        return NULL;
    }
    if (!t && !e) return "unexpected or malformed frame";
    struct link_client *set = c->set;
    soon_came(&set->soon, h->stream, clock_now_ns());
    struct stream *s = slots_find(&set->streams, h->stream);
    if (!s || s->conn != c->index) return NULL; /* forgotten: its end was on the way */
    if (t) {
        set->on->tokens(s->owner, s->index, t);
        return NULL;
    }
    struct stream ended = *s;
    slots_give(&set->streams, h->stream);
    c->stream_count--;
    set->on->end(ended.owner, ended.index, e);
    return NULL;
}

static const char *not_ours = "not the link's protocol";

/* All that have come under one lock: whom they wake does not wait for the next one. */
static const char *take_all_up(struct conn *c)
{
    const struct link_head *h = NULL;
    const char *wrong = NULL;
    pthread_mutex_lock(&c->set->gw->lock);
    do {
        if (link_reader_next(&c->reader, &h) != OK) wrong = not_ours;
        else if (h) wrong = take_up(c, h);
    } while (h && !wrong);
    pthread_mutex_unlock(&c->set->gw->lock);
    return wrong;
}

static const char *take_frames(struct conn *c)
{
    const struct link_head *h;
    while (c->phase != PHASE_UP) {
        if (link_reader_next(&c->reader, &h) != OK) return not_ours;
        if (!h) return NULL;
        const char *wrong = c->phase == PHASE_CHALLENGE ? take_challenge(c, h)
                                                        : take_welcome(c, h);
        if (wrong) return wrong;
    }
    return take_all_up(c);
}

static void read_link(struct conn *c)
{
    static _Thread_local char bytes[65536];
    for (int rounds = 0; rounds < 16; rounds++) {
        ssize_t got = recv(c->socket, bytes, sizeof bytes, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            if (c->phase == PHASE_WELCOME && ++c->refused >= REFUSED_MAX) {
                refuse(c, "link %s: refused, wrong secret", c->to.where);
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
void conn_write(struct conn *c)
{
    static _Thread_local char piece[65536];
    for (;;) {
        pthread_mutex_lock(&c->set->gw->lock);
        size_t bytes = c->out.size - c->out_at;
        if (bytes > sizeof piece) bytes = sizeof piece;
        if (bytes) memcpy(piece, c->out.data + c->out_at, bytes);
        pthread_mutex_unlock(&c->set->gw->lock);
        if (!bytes) break;
        ssize_t sent = send(c->socket, piece, bytes, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            want_write(c, true);
            return;
        }
        if (sent < 0) return;         /* reading will say why */
        pthread_mutex_lock(&c->set->gw->lock);
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
        pthread_mutex_unlock(&c->set->gw->lock);
    }
    want_write(c, false);
}

/* -- what the loop calls ----------------------------------------------------------------------- */

void conn_event(struct conn *c, uint32_t events)
{
    if (c->socket < 0) return;
    if (c->phase == PHASE_CONNECTING) say_hello(c);
    else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_link(c);
}

uint64_t conn_wakes_at(const struct conn *c)
{
    if (c->phase == PHASE_REFUSED || c->phase == PHASE_LOOKING) return UINT64_MAX;
    return c->phase == PHASE_DOWN ? c->retry_at : c->deadline;
}

void conn_timers(struct conn *c, uint64_t now_ns)
{
    if (c->phase == PHASE_LOOKING) connect_found(c);
    if (now_ns < conn_wakes_at(c)) return;
    if (c->phase == PHASE_DOWN && !c->leaving) {
        if (!c->retry_ms) c->retry_ms = RETRY_FIRST_MS;
        connect_start(c);
    } else if (c->phase != PHASE_DOWN) {
        drop(c, "timed out");
    }
}
