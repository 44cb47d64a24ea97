/* gateway/http.c - connections, headers, bodies, limits; see http.h.
 *
 * libmicrohttpd has no thread: the link's calls http_turn.  So an answer that comes over the link
 * goes out on the thread that read it.  What takes long is a helper's (go_elsewhere).
 * A connection whose answer is not there yet is suspended: it costs no thread and no time.  The
 * call or the helper wakes it up.  libmicrohttpd's own timeout covers clients that neither send nor
 * take; and http_tick covers those who send their request drop by drop.
 */
#include "gateway/http.h"

#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"
#include "gateway/auth.h"
#include "gateway/call.h"
#include "gateway/helpers.h"
#include "gateway/listen.h"
#include "gateway/routes.h"

enum {
    IDLE_S = 30,                      /* a connection on which nothing moves */
    ASK_S = 30,                       /* from accept to the whole request ...  */
    ASK_BYTES_PER_S = 16384,          /* ... and longer for long bodies        */
    HERE_BYTES_MAX = 8 << 10,         /* bodies that hold up other clients for a moment only */
    WRITE_BYTES_MAX = 64 << 10,       /* what answers are made of, likewise                  */
    RUNS_MAX = 8,                     /* of the library in one turn: a head, chunks, an end  */
    CONNECTION_BYTES = 64 << 10,      /* headers; more of them: 431 */
    BLOCK_BYTES = 16 << 10,
    DISCARD_BYTES_MAX = 4 * HTTP_BODY_BYTES_MAX,
    OTHER_FILES = JOBS_MAX + VIEW_NODES_MAX + 64,  /* the program's, not of clients */
};

struct peer {                         /* a connection, from accept to close */
    struct peer *next, *before;
    int fd;
    uint64_t since_ns, received;
    bool busy;                        /* its request is here: it may wait for us */
};

struct http {
    struct gateway *gw;
    struct listener tcp, uds;
    struct MHD_Daemon *daemons[2];    /* NULL: no --uds */
    int epoll;                        /* of theirs */
    struct peer *peers;               /* under the gateway's lock */
};

struct exchange {                     /* a request and its answer */
    struct http *http;
    struct MHD_Connection *connection;
    const struct route *route;
    struct buf body;
    int fd;
    bool over_limit, holds_back;
    bool taken;                       /* what follows is there, or a helper's to write */
    bool elsewhere;
    struct task task;
    struct api_error error;
    struct answer answer;             /* of ROUTE_SMALL, or once it is written of a call */
    bool written;
    uint64_t received, since_ns;
    char request_id[72], path[192], method[16]; /* path: holds any model's name */
    struct call *call;
    int status;
};

/* -- answers ----------------------------------------------------------------------------------- */

static void header(struct MHD_Response *r, const char *name, const char *value)
{
    MHD_add_response_header(r, name, value);
}

static enum MHD_Result queue(struct exchange *x, int status, struct MHD_Response *r)
{
    header(r, "x-request-id", x->request_id);
    x->status = status;
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return result;
}

/* Takes the body's memory over. */
static struct MHD_Response *response_of(struct buf *body, const char *type)
{
    size_t bytes = body->size;
    struct MHD_Response *r = MHD_create_response_from_buffer(bytes, buf_take(body),
                                                             MHD_RESPMEM_MUST_FREE);
    CHECK(r);
    header(r, "content-type", type);
    return r;
}

static enum MHD_Result reply_error(struct exchange *x, const struct api_error *e)
{
    struct buf body = { 0 };
    api_error_write(e, &body);
    struct MHD_Response *r = response_of(&body, "application/json");
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%u", e->retry_after_s);
    if (e->retry_after_s) header(r, "retry-after", seconds);
    if (e->status == 401) header(r, "www-authenticate", "Bearer");
    if (e->status == 405) header(r, "allow", route_methods(x->path));
    return queue(x, e->status, r);
}

static enum MHD_Result refuse(struct exchange *x, int status, const char *text)
{
    struct api_error e;
    api_fail(&e, status, NULL, "%s", text);
    if (status == 401) e.code = "invalid_api_key";
    return reply_error(x, &e);
}

static void resume(void *connection)
{
    MHD_resume_connection(connection);
}

/* Head, chunks and end of a stream are written one by one.  In between they stay in the socket, so
 * that what is there leaves as one packet and wakes the client once.  (Not so on Unix sockets, nor
 * for the first head on a connection, behind which the library sets TCP_NODELAY.) */
static void hold_back(struct exchange *x, bool hold)
{
    if (x->holds_back == hold) return;
    x->holds_back = hold;
    setsockopt(x->fd, IPPROTO_TCP, TCP_CORK, &(int){ hold }, sizeof(int));
}

static ssize_t read_stream(void *arg, uint64_t at, char *out, size_t room)
{
    struct exchange *x = arg;
    (void)at;
    pthread_mutex_lock(&x->http->gw->lock);
    long got = call_read(x->call, out, room);
    bool ends = got > 0 && call_ends(x->call);
    if (got == 0) {
        call_sleep(x->call, resume, x->connection);
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->http->gw->lock);
    if (got == 0) hold_back(x, false);
    if (ends) hold_back(x, true);
    if (got == -1) return MHD_CONTENT_READER_END_OF_STREAM;
    return got == -2 ? MHD_CONTENT_READER_END_WITH_ERROR : got;
}

static enum MHD_Result queue_events(struct exchange *x, struct MHD_Response *r)
{
    header(r, "cache-control", "no-cache");
    header(r, "x-accel-buffering", "no");
    return queue(x, 200, r);
}

static const char *events_type = "text/event-stream; charset=utf-8";

static enum MHD_Result reply_stream(struct exchange *x)
{
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES,
                                                               read_stream, x, NULL);
    CHECK(r);
    header(r, "content-type", events_type);
    hold_back(x, true);
    return queue_events(x, r);
}

/* One write in place of head, chunks and end, which take as long as the way from rank 0: a request
 * for one token, as for a prompt's KV, has no other. */
static enum MHD_Result reply_streamed(struct exchange *x, struct buf *events)
{
    return queue_events(x, response_of(events, events_type));
}

static void write_reply(struct exchange *x)
{
    x->answer.status = call_reply(x->call, &x->answer.body, &x->error);
    x->written = true;
}

static void write_elsewhere(void *arg)
{
    struct exchange *x = arg;
    write_reply(x);
    MHD_resume_connection(x->connection); /* from here on x is no longer ours */
}

static enum MHD_Result go_elsewhere(struct exchange *x, void (*run)(void *exchange))
{
    MHD_suspend_connection(x->connection);
    x->task = (struct task){ .run = run, .arg = x };
    helpers_do(x->http->gw->helpers, &x->task);
    return MHD_YES;
}

/* Of long answers, log-probabilities of a prompt above all, a helper makes the text. */
static enum MHD_Result reply_call(struct exchange *x)
{
    bool is_long = !x->written && call_reply_size(x->call) > WRITE_BYTES_MAX;
    if (is_long) return go_elsewhere(x, write_elsewhere);
    if (!x->written) write_reply(x);
    if (x->answer.status != 200) return reply_error(x, &x->error);
    struct MHD_Response *r = response_of(&x->answer.body, "application/json");
    int ranks[2];
    call_ranks(x->call, &ranks[0], &ranks[1]);
    for (int i = 0; i < 2 && x->http->gw->config.debug_headers; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", ranks[i]);
        header(r, i ? "x-rankserve-decode" : "x-rankserve-prefill", text);
    }
    return queue(x, 200, r);
}

/* The call is under way: answer if it can be answered, else sleep until it can. */
static enum MHD_Result go_on(struct exchange *x)
{
    pthread_mutex_lock(&x->http->gw->lock);
    enum call_step step = call_step(x->call);
    struct buf all = { 0 };
    if (step == CALL_STREAMED) all = call_take_stream(x->call);
    if (step == CALL_WAIT) {
        call_sleep(x->call, resume, x->connection);
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->http->gw->lock);
    switch (step) {
    case CALL_WAIT: return MHD_YES;
    case CALL_STREAM: return reply_stream(x);
    case CALL_STREAMED: return reply_streamed(x, &all);
    case CALL_REPLY: return reply_call(x);
    default: return MHD_NO;           /* the client is gone: close */
    }
}

/* -- requests ---------------------------------------------------------------------------------- */

static const char *request_header(struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

static bool sane_id(const char *id)
{
    size_t bytes = id ? strlen(id) : 0;
    if (!bytes || bytes > 64) return false;
    return strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                      "0123456789-_.:") == bytes;
}

static void name_request(struct exchange *x)
{
    const char *given = request_header(x, "X-Request-Id");
    if (sane_id(given)) {
        snprintf(x->request_id, sizeof x->request_id, "%s", given);
        return;
    }
    uint64_t random;
    secret_random(&random, sizeof random);
    snprintf(x->request_id, sizeof x->request_id, "req-%016llx", (unsigned long long)random);
}

static bool json_type(const char *type)
{
    if (!type) return true;
    size_t bytes = strcspn(type, "; ");
    return bytes == strlen("application/json") && strncasecmp(type, "application/json", bytes) == 0;
}

static enum MHD_Result count_header(void *arg, enum MHD_ValueKind kind, const char *name,
                                    const char *value)
{
    (void)kind, (void)value;
    *(int *)arg += strcasecmp(name, "Content-Length") == 0 ||
                   strcasecmp(name, "Transfer-Encoding") == 0;
    return MHD_YES;
}

/* A proxy before us may see another end of the body, and let a second request hide in it. */
static bool length_is_doubtful(struct exchange *x)
{
    int count = 0;
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, count_header, &count);
    return count > 1;
}

/* What can be refused before the body is here.  MHD_YES: read on. */
static enum MHD_Result check_head(struct exchange *x)
{
    struct gateway *gw = x->http->gw;
    struct api_error e;
    x->route = route_find(x->method, x->path, &e);
    bool secret = !x->route || !x->route->open;
    if (secret && !auth_allows(gw->auth, request_header(x, "Authorization"))) {
        return refuse(x, 401, "the API key is missing or wrong: send Authorization: Bearer KEY");
    }
    if (!x->route) return reply_error(x, &e);
    if (length_is_doubtful(x)) {
        return refuse(x, 400, "give the body's length once: Content-Length or Transfer-Encoding");
    }
    const char *coding = request_header(x, "Content-Encoding");
    if (coding && strcasecmp(coding, "identity") != 0) {
        return refuse(x, 415, "compressed bodies are not supported: send no Content-Encoding");
    }
    const char *length = request_header(x, "Content-Length");
    if (length && strtoull(length, NULL, 10) > HTTP_BODY_BYTES_MAX) {
        return refuse(x, 413, "the body is larger than 32 MiB");
    }
    if (strcmp(x->method, "POST") == 0 && !json_type(request_header(x, "Content-Type"))) {
        return refuse(x, 415, "the Content-Type must be application/json");
    }
    return MHD_YES;
}

static enum MHD_Result take_body(struct exchange *x, const char *data, size_t *bytes)
{
    x->received += *bytes;
    if (x->received > HTTP_BODY_BYTES_MAX) {
        x->over_limit = true;         /* read it to its end, so that the client hears the answer */
        buf_release(&x->body);
        if (x->received > DISCARD_BYTES_MAX) return MHD_NO;
    } else {
        buf_add(&x->body, data, *bytes);
    }
    *bytes = 0;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct peer *peer = info ? info->socket_context : NULL;
    if (!peer) return MHD_YES;
    pthread_mutex_lock(&x->http->gw->lock);
    peer->received = x->received;
    pthread_mutex_unlock(&x->http->gw->lock);
    return MHD_YES;
}

static enum MHD_Result reply_small(struct exchange *x)
{
    struct answer *a = &x->answer;
    if (!a->error.status) return queue(x, a->status, response_of(&a->body, a->type));
    buf_release(&a->body);
    return reply_error(x, &a->error);
}

static void set_busy(struct exchange *x, bool busy)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct peer *peer = info ? info->socket_context : NULL;
    if (!peer) return;
    pthread_mutex_lock(&x->http->gw->lock);
    peer->busy = busy;
    peer->since_ns = clock_now_ns();
    peer->received = 0;
    pthread_mutex_unlock(&x->http->gw->lock);
}

static struct wishes wishes_of(struct exchange *x)
{
    return (struct wishes){
        .priority = request_header(x, "Priority"),
        .fairness_id = request_header(x, "x-llm-d-inference-fairness-id"),
        .ttft = request_header(x, "x-llm-d-slo-ttft-ms"),
        .tpot = request_header(x, "x-llm-d-slo-tpot-ms"),
        .timeout = request_header(x, "x-envoy-upstream-rq-timeout-ms"),
        .api_key = auth_asks(x->http->gw->auth) ? request_header(x, "Authorization") : NULL,
    };
}

/* The request itself.  Nothing of the connection changes meanwhile: it is suspended, or this is the
 * thread that serves it. */
static void take_up(struct exchange *x)
{
    const char *body = x->body.data ? x->body.data : "";
    if (x->route->kind == ROUTE_SMALL) {
        x->answer = (struct answer){ .status = 200, .type = "application/json" };
        x->route->run(x->http->gw, x->path, body, x->body.size, &x->answer);
    } else {
        struct call_origin origin = { x->request_id, wishes_of(x), x->fd, x->since_ns };
        enum api_kind kind = x->route->kind == ROUTE_CHAT ? API_CHAT : API_COMPLETION;
        x->call = call_open(x->http->gw, kind, body, x->body.size, &origin, &x->error);
    }
    buf_release(&x->body);
}

static void take_elsewhere(void *arg)
{
    struct exchange *x = arg;
    take_up(x);
    MHD_resume_connection(x->connection); /* from here on x is no longer ours */
}

static enum MHD_Result reply(struct exchange *x)
{
    if (x->route->kind == ROUTE_SMALL) return reply_small(x);
    return x->call ? go_on(x) : reply_error(x, &x->error);
}

/* A drain waits for those that are not calls yet, too. */
static void count_open(struct exchange *x, int more)
{
    pthread_mutex_lock(&x->http->gw->lock);
    x->http->gw->calls_open += (uint64_t)more;
    pthread_mutex_unlock(&x->http->gw->lock);
}

static enum MHD_Result run(struct exchange *x)
{
    const struct gateway *gw = x->http->gw;
    set_busy(x, true);
    if (x->over_limit) return refuse(x, 413, "the body is larger than 32 MiB");
    bool asks_redis = gw->view && x->route->kind != ROUTE_SMALL;
    x->taken = true;
    if (x->body.size <= HERE_BYTES_MAX && !asks_redis) {
        take_up(x);
        return reply(x);
    }
    count_open(x, 1);
    x->elsewhere = true;
    return go_elsewhere(x, take_elsewhere);
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *bytes, void **state)
{
    (void)version;
    struct exchange *x = *state;
    if (!x) {
        *state = x = mem_alloc(sizeof *x);
        x->http = arg;
        x->connection = connection;
        x->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        x->since_ns = clock_now_ns();
        snprintf(x->path, sizeof x->path, "%s", path);
        snprintf(x->method, sizeof x->method, "%s", method);
        name_request(x);
        return check_head(x);
    }
    if (*bytes) return take_body(x, data, bytes);
    if (x->status) return MHD_YES;    /* answered before its body came */
    return x->taken ? reply(x) : run(x);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code)
{
    (void)arg, (void)connection, (void)code;
    struct exchange *x = *state;
    if (!x) return;
    *state = NULL;
    hold_back(x, false);
    set_busy(x, false);
    if (x->elsewhere) count_open(x, -1);
    if (x->call) call_close(x->call);
    else if (x->status != 200 || x->route->kind != ROUTE_SMALL) {
        log_info("request=%s status=%d method=%s path=%s", x->request_id, x->status, x->method,
                 x->path);
    }
    buf_release(&x->body);
    buf_release(&x->answer.body);     /* of one that nobody waited for */
    free(x);
}

/* -- connections ------------------------------------------------------------------------------- */

static void on_connection(void *arg, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *h = arg;
    pthread_mutex_lock(&h->gw->lock);
    struct peer *p = *context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = p = mem_alloc(sizeof *p);
        p->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        p->since_ns = clock_now_ns();
        p->next = h->peers;
        if (p->next) p->next->before = p;
        h->peers = p;
    } else if (p) {
        if (p->before) p->before->next = p->next;
        else h->peers = p->next;
        if (p->next) p->next->before = p->before;
        free(p);
        *context = NULL;
    }
    pthread_mutex_unlock(&h->gw->lock);
}

void http_tick(struct http *h)
{
    uint64_t now = clock_now_ns();
    for (struct peer *p = h->peers; p; p = p->next) {
        uint64_t allowed_s = ASK_S + p->received / ASK_BYTES_PER_S;
        if (!p->busy && now - p->since_ns > allowed_s * NS_PER_S) shutdown(p->fd, SHUT_RDWR);
    }
}

static void on_log(void *arg, const char *fmt, va_list ap)
{
    char line[256];
    (void)arg;
    vsnprintf(line, sizeof line, fmt, ap);
    line[strcspn(line, "\r\n")] = '\0';
    log_debug("http %s", line);
}

enum err http_bind(struct http **out, struct gateway *gw, struct why *why)
{
    struct http *h = mem_alloc(sizeof *h);
    h->gw = gw;
    h->tcp.fd = h->uds.fd = -1;
    enum err e = listen_tcp(&h->tcp, gw->config.listen, why);
    if (e == OK && gw->config.uds[0]) e = listen_unix(&h->uds, gw->config.uds, why);
    if (e == OK) {
        *out = h;
        return OK;
    }
    listener_close(&h->tcp);
    free(h);
    return e;
}

const char *http_url(const struct http *h)
{
    return h->tcp.url;
}

/* Clients of one socket shall not take the files that links, or those of the other, need: where
 * accept fails libmicrohttpd would try again and again. */
static unsigned connections_max(const struct http *h)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return HTTP_CONNECTIONS_MAX;
    rlim_t spare = files.rlim_cur > 2 * OTHER_FILES ? OTHER_FILES : files.rlim_cur / 2;
    rlim_t each = (files.rlim_cur - spare) / (h->uds.fd >= 0 ? 2 : 1);
    return each < HTTP_CONNECTIONS_MAX ? (unsigned)each : HTTP_CONNECTIONS_MAX;
}

/* Libmicrohttpd waits with an epoll, which is one descriptor for ours. */
static struct MHD_Daemon *start(struct http *h, int fd)
{
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
        MHD_OPTION_CONNECTION_LIMIT, connections_max(h),
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES, MHD_OPTION_END);
    if (!d) return NULL;
    struct epoll_event event = { .events = EPOLLIN };
    int inner = MHD_get_daemon_info(d, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    if (epoll_ctl(h->epoll, EPOLL_CTL_ADD, inner, &event) == 0) return d;
    MHD_stop_daemon(d);
    return NULL;
}

enum err http_start(struct http *h, struct why *why)
{
    h->epoll = epoll_create1(EPOLL_CLOEXEC);
    h->daemons[0] = h->epoll >= 0 ? start(h, h->tcp.fd) : NULL;
    if (h->daemons[0] && h->uds.fd >= 0) h->daemons[1] = start(h, h->uds.fd);
    if (!h->daemons[0] || (h->uds.fd >= 0 && !h->daemons[1])) {
        return why_set(why, ERR_IO, "cannot start the HTTP server");
    }
    return OK;
}

int http_fd(const struct http *h)
{
    return h->epoll;
}

/* Milliseconds; UINT64_MAX: there is no connection. */
static uint64_t wait_of(struct MHD_Daemon *d)
{
    MHD_UNSIGNED_LONG_LONG ms;
    return d && MHD_get_timeout(d, &ms) == MHD_YES ? ms : UINT64_MAX;
}

uint64_t http_wait_ms(const struct http *h)
{
    uint64_t first = wait_of(h->daemons[0]), second = wait_of(h->daemons[1]);
    return first < second ? first : second;
}

/* Each run takes a connection one state further. */
void http_turn(struct http *h)
{
    for (int i = 0; i < 2; i++) {
        struct MHD_Daemon *d = h->daemons[i];
        for (int runs = 0; d && runs < RUNS_MAX && (runs == 0 || wait_of(d) == 0); runs++) {
            MHD_run(d);
        }
    }
}

void http_stop(struct http *h)
{
    for (int i = 0; i < 2; i++) {
        if (h->daemons[i]) MHD_stop_daemon(h->daemons[i]);
        h->daemons[i] = NULL;
    }
    close(h->epoll);
    listener_close(&h->uds);
}
