/* mpi/rank0_link.c - rank 0's side of wire/link.h: a listener and up to GATEWAY_COUNT_MAX gateways.
 *
 * Nothing here blocks: what a gateway does not read is kept up to a limit, and beyond it that
 * gateway is disconnected.  A connection is only ever closed in links_turn, so that no caller of
 * links_send loses it under its feet.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "mpi/rank0.h"

enum { OUT_BYTES_MAX = 64 << 20, READ_BYTES = 65536 };
#define HANDSHAKE_NS (5 * NS_PER_S)

enum gateway_state { GATEWAY_NONE, GATEWAY_HELLO, GATEWAY_PROOF, GATEWAY_LIVE };

struct gateway {
    struct watch watch;               /* key: index */
    enum gateway_state state;
    bool broken, waits_to_write;
    struct link_reader reader;
    struct buf out;
    size_t out_sent;
    uint8_t its_nonce[16], our_nonce[16];
    uint64_t since_ns;
};

/* -- out -------------------------------------------------------------------------------------- */

void links_send(struct rank0 *z, int gateway, const void *frame, size_t bytes)
{
    if (gateway < 0) return;
    struct gateway *g = &z->gateways[gateway];
    if (g->state == GATEWAY_NONE || g->broken) return;
    if (buf_add(&g->out, frame, bytes)) return;
    log_warn("gateway=%d reads too slowly: disconnected", gateway);
    g->broken = true;
}

static void flush(struct rank0 *z, struct gateway *g)
{
    while (g->out_sent < g->out.size) {
        ssize_t n = send(g->watch.fd, g->out.data + g->out_sent, g->out.size - g->out_sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR) g->broken = true;
        if (n <= 0) break;
        g->out_sent += (size_t)n;
    }
    if (g->out_sent == g->out.size) {
        if (g->out.room > READ_BYTES) buf_release(&g->out);
        else buf_clear(&g->out);
        g->out.limit = OUT_BYTES_MAX;
        g->out_sent = 0;
    } else if (g->out_sent > OUT_BYTES_MAX / 4) {
        g->out.size -= g->out_sent;
        memmove(g->out.data, g->out.data + g->out_sent, g->out.size);
        g->out_sent = 0;
    }
    bool waits = g->out.size > 0;
    if (waits != g->waits_to_write)
        loop_change(z->loop, &g->watch, EPOLLIN | (waits ? EPOLLOUT : 0u));
    g->waits_to_write = waits;
}

static uint64_t blocks(const struct rank0 *z, size_t offset)
{
    uint64_t sum = 0;
    for (int i = 1; i < z->job->size; i++) {
        uint32_t one;
        memcpy(&one, (const char *)&z->workers[i].stats + offset, sizeof one);
        if (z->workers[i].alive) sum += one;
    }
    return sum;
}

static void fill_workers(struct rank0 *z, struct link_state *m)
{
    m->worker_count = (uint32_t)z->job->size - 1;
    m->wakeups = z->loop->wakeups + z->past.wakeups;
    m->prompt_tokens = z->past.prompt, m->prompt_tokens_cached = z->past.cached;
    m->output_tokens = z->past.output, m->preemptions = z->past.preemptions;
    m->kv_bytes_lanes = z->past.lanes;
    m->kv_bytes_sent = z->past.kv, m->step_ns_sum = z->past.step_ns;
    m->stale_refused += z->past.stale;
    for (int i = 1; i < z->job->size; i++) {
        const struct peer_worker *w = &z->workers[i];
        if (!w->alive) continue;
        const struct msg_stats *s = &w->stats;
        m->workers_alive++;
        if (w->spare) m->workers_spare++;
        else if (w->role == ROLE_PREFILL) m->workers_prefill++;
        else if (w->role == ROLE_DECODE) m->workers_decode++;
        else m->workers_both++;
        uint64_t block = w->about.block_tokens * w->about.kv_token_bytes;
        m->kv_bytes_total += w->about.blocks_total * block;
        m->kv_bytes_used += (uint64_t)(s->blocks_held + s->blocks_cached) * block;
        m->prompt_tokens += s->prompt_tokens;
        m->prompt_tokens_cached += s->prompt_tokens_cached;
        m->output_tokens += s->output_tokens;
        m->preemptions += s->preemptions;
        m->kv_bytes_sent += s->kv_bytes_sent;
        m->kv_bytes_lanes += s->kv_bytes_lanes;
        m->step_ns_sum += s->step_ns_sum;
        m->stale_refused += s->stale_refused;
        m->wakeups += s->wakeups;
    }
}

static void fill_state(struct rank0 *z, struct link_state *m)
{
    struct sched_stats s;
    sched_stats(z->sched, &s);
    *m = (struct link_state){
        .state = z->state,
        .requests_running = s.prefilling + s.decoding + s.ending, .requests_waiting = s.waiting,
        .prefill_queue_depth = s.waiting + s.prefilling, .decode_active = s.decoding,
        .decisions = s.decisions, .workers_lost = z->workers_lost,
        .requests_no_room = (uint32_t)s.no_room, .requests_replaced = s.recovered,
        .role_switches = s.role_switches,
        .stale_refused = z->stale,
        .uptime_ns = clock_now_ns() - z->job->started_ns,
        .blocks_total = (uint32_t)blocks(z, offsetof(struct msg_stats, blocks_total)),
        .blocks_free = (uint32_t)blocks(z, offsetof(struct msg_stats, blocks_free)),
        .blocks_held = (uint32_t)blocks(z, offsetof(struct msg_stats, blocks_held)),
        .blocks_cached = (uint32_t)blocks(z, offsetof(struct msg_stats, blocks_cached)),
    };
    fill_workers(z, m);
    index_fill_state(z, m);
    m->index_lookups = s.lookups;
    link_head_set(&m->head, LINK_STATE, 0, sizeof *m);
}

void links_state(struct rank0 *z)
{
    struct link_state m;
    fill_state(z, &m);
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++)
        if (z->gateways[i].state == GATEWAY_LIVE) links_send(z, i, &m, sizeof m);
}

/* -- in --------------------------------------------------------------------------------------- */

static void broke(struct gateway *g, const char *what)
{
    if (!g->broken) log_warn("gateway=%d %s: disconnected", (int)g->watch.key, what);
    g->broken = true;
}

static void on_hello(struct rank0 *z, struct gateway *g, const struct link_hello *m)
{
    struct link_challenge c;
    link_head_set(&c.head, LINK_CHALLENGE, 0, sizeof c);
    memcpy(g->its_nonce, m->nonce, sizeof g->its_nonce);
    secret_random(g->our_nonce, sizeof g->our_nonce);
    memcpy(c.nonce, g->our_nonce, sizeof c.nonce);
    c.proof = link_proof_of_job(z->job->link_secret, g->its_nonce, g->our_nonce);
    g->state = GATEWAY_PROOF;
    links_send(z, (int)g->watch.key, &c, sizeof c);
}

static void on_proof(struct rank0 *z, struct gateway *g, const struct link_proof *m)
{
    struct hash128 want = link_proof_of_gateway(z->job->link_secret, g->our_nonce, g->its_nonce);
    if (!secret_equal(&want, &m->proof, sizeof want)) {
        broke(g, "does not know the secret");
        return;
    }
    struct link_welcome w = {
        .model_digest = z->weights.model->digest, .max_model_len = z->max_model_len,
        .block_tokens = (uint32_t)z->job->config.block_size, .vocab = z->weights.model->h.vocab,
        .kv_type = index_scope(z).kv_type, .epoch = z->epoch,
        .keys_proof = link_keys_proof(z->job->kv_secret),
    };
    link_head_set(&w.head, LINK_WELCOME, 0, sizeof w);
    strncpy(w.job_id, z->job->config.job_id, sizeof w.job_id - 1);
    g->state = GATEWAY_LIVE;
    links_send(z, (int)g->watch.key, &w, sizeof w);
    struct link_state s;
    fill_state(z, &s);
    links_send(z, (int)g->watch.key, &s, sizeof s);
    log_info("gateway=%d connected", (int)g->watch.key);
}

static void refuse(struct rank0 *z, int gateway, const struct link_request *m, enum link_code code)
{
    struct link_end end = { .code = (uint16_t)code, .finish = FINISH_ERROR,
                            .retry_after_s = code == LINK_REFUSED_FULL ? 1 : 0,
                            .prompt_tokens = m->id_count, .prefill_rank = -1, .decode_rank = -1 };
    link_head_set(&end.head, LINK_END, m->head.stream, sizeof end);
    links_send(z, gateway, &end, sizeof end);
}

static bool ids_fit(const struct link_request *m, uint32_t vocab)
{
    const int32_t *ids = link_request_ids(m);
    for (uint32_t i = 0; i < m->id_count; i++)
        if ((uint32_t)ids[i] >= vocab) return false;
    const struct logit_bias *bias = link_request_bias(m);
    for (uint32_t i = 0; i < m->params.bias_count; i++)
        if ((uint32_t)bias[i].id >= vocab) return false;
    return true;
}

static void on_request(struct rank0 *z, struct gateway *g, const struct link_request *m)
{
    int gateway = (int)g->watch.key;
    if (request_of_stream(z, gateway, m->head.stream)) {
        broke(g, "uses a stream twice");
        return;
    }
    if (m->timeout_ms > TIMEOUT_MS_MAX || !ids_fit(m, z->weights.model->h.vocab) ||
        !index_keys_fit(z, m)) {
        refuse(z, gateway, m, LINK_BAD_REQUEST);
        return;
    }
    if (m->id_count >= z->max_model_len) {
        refuse(z, gateway, m, LINK_REFUSED_LENGTH);
        return;
    }
    struct request *r = request_add(z, gateway, m);
    if (!r) {
        refuse(z, gateway, m, LINK_REFUSED_FULL);
        return;
    }
    act_event(z, (struct sched_event){
        .type = EV_REQUEST, .req = r->id, .prompt_tokens = m->id_count,
        .max_tokens = m->params.max_tokens, .priority = m->priority,
        .keys = r->keys, .key_count = r->key_count,
        .user = m->user_hash, .ttft_ns = m->ttft_slo_ms * NS_PER_MS,
        .tpot_ns = m->tpot_slo_ms * NS_PER_MS,
        .deadline_ns = m->timeout_ms ? r->arrived_ns + m->timeout_ms * NS_PER_MS : 0 });
}

static void on_cancel(struct rank0 *z, const struct gateway *g, uint64_t stream)
{
    struct request *r = request_of_stream(z, (int)g->watch.key, stream);
    if (r) act_event(z, (struct sched_event){ .type = EV_CANCEL, .req = r->id });
}

static void on_frame(struct rank0 *z, struct gateway *g, const struct link_head *h)
{
    if (g->state == GATEWAY_HELLO && link_as_hello(h)) {
        on_hello(z, g, link_as_hello(h));
    } else if (g->state == GATEWAY_PROOF && link_as_proof(h)) {
        on_proof(z, g, link_as_proof(h));
    } else if (g->state == GATEWAY_LIVE && link_as_request(h)) {
        on_request(z, g, link_as_request(h));
    } else if (g->state == GATEWAY_LIVE && link_as_policy(h)) {
        policy_change(z, &link_as_policy(h)->policy);
    } else if (g->state == GATEWAY_LIVE && h->type == LINK_CANCEL && h->bytes == sizeof *h) {
        on_cancel(z, g, h->stream);
    } else {
        broke(g, "sent a frame that does not fit");
    }
}

static void read_some(struct rank0 *z, struct gateway *g)
{
    char bytes[READ_BYTES];
    ssize_t n = recv(g->watch.fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        g->broken = true; /* it left */
        return;
    }
    if (link_reader_feed(&g->reader, bytes, (size_t)n) != OK) broke(g, "sends too much");
    while (!g->broken) {
        const struct link_head *h;
        if (link_reader_next(&g->reader, &h) != OK) broke(g, "speaks another protocol");
        if (g->broken || !h) return;
        on_frame(z, g, h);
    }
}

static void gateway_event(struct watch *w, uint32_t events)
{
    struct rank0 *z = w->ctx;
    struct gateway *g = &z->gateways[w->key];
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_some(z, g);
}

/* -- connections ------------------------------------------------------------------------------ */

static void gateway_close(struct rank0 *z, struct gateway *g)
{
    int index = (int)g->watch.key, cancelled = 0;
    for (int i = 0; i < REQ_COUNT_MAX; i++) {
        struct request *r = &z->requests[i];
        if (!r->used || r->gateway != index) continue;
        r->gateway = -1;
        if (r->answered) continue;
        act_event(z, (struct sched_event){ .type = EV_CANCEL, .req = r->id });
        cancelled++;
    }
    if (g->state == GATEWAY_LIVE) log_info("gateway=%d left cancelled=%d", index, cancelled);
    loop_remove(z->loop, &g->watch);
    close(g->watch.fd);
    link_reader_release(&g->reader);
    buf_release(&g->out);
    *g = (struct gateway){ 0 };
}

/* A free place; else that of the connection that has been proving itself for longest. */
static struct gateway *find_place(struct rank0 *z)
{
    struct gateway *oldest = NULL;
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++) {
        struct gateway *g = &z->gateways[i];
        if (g->state == GATEWAY_NONE) return g;
        if (g->state == GATEWAY_LIVE) continue;
        if (!oldest || g->since_ns < oldest->since_ns) oldest = g;
    }
    if (oldest) gateway_close(z, oldest);
    return oldest;
}

static void on_connect(struct watch *w, uint32_t events)
{
    (void)events;
    struct rank0 *z = w->ctx;
    int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    struct gateway *g = find_place(z);
    if (!g) {
        log_warn("refused a gateway: %d are connected", GATEWAY_COUNT_MAX);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)); /* no effect on Unix */
    *g = (struct gateway){ .state = GATEWAY_HELLO, .since_ns = clock_now_ns() };
    g->out.limit = OUT_BYTES_MAX;
    g->watch = (struct watch){ .fd = fd, .call = gateway_event, .ctx = z, .key = g - z->gateways };
    loop_add(z->loop, &g->watch, EPOLLIN);
}

void links_turn(struct rank0 *z)
{
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++) {
        struct gateway *g = &z->gateways[i];
        if (g->state == GATEWAY_NONE) continue;
        if (!g->broken && (g->out.size || g->waits_to_write)) flush(z, g);
        if (g->broken) gateway_close(z, g);
    }
}

void links_tick(struct rank0 *z, uint64_t now_ns)
{
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++) {
        struct gateway *g = &z->gateways[i];
        if (g->state != GATEWAY_HELLO && g->state != GATEWAY_PROOF) continue;
        if (now_ns - g->since_ns > HANDSHAKE_NS) broke(g, "did not finish its handshake");
    }
}

bool links_connected(const struct rank0 *z)
{
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++)
        if (z->gateways[i].state == GATEWAY_LIVE) return true;
    return false;
}

bool links_sent_all(const struct rank0 *z)
{
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++)
        if (z->gateways[i].out.size) return false;
    return true;
}

/* -- the listener ----------------------------------------------------------------------------- */

static bool nobody_listens(const struct sockaddr_un *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool dead = fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof *a) != 0 &&
                errno == ECONNREFUSED;
    if (fd >= 0) close(fd);
    return dead;
}

static int listen_unix(struct rank0 *z, const char *path, struct why *why)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof a.sun_path) {
        why_set(why, ERR_LIMIT, "link: the path %s is too long for a socket", path);
        return -1;
    }
    memcpy(a.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t before = umask(0177);
    int rc = bind(fd, (struct sockaddr *)&a, sizeof a);
    if (rc != 0 && errno == EADDRINUSE && nobody_listens(&a) && unlink(path) == 0)
        rc = bind(fd, (struct sockaddr *)&a, sizeof a); /* a crashed job left it */
    umask(before);
    if (rc != 0 || listen(fd, 64) != 0) {
        why_set(why, ERR_IO, "link: cannot listen on %s: %s", path, strerror(errno));
        close(fd);
        return -1;
    }
    z->link_path = mem_text(path);
    return fd;
}

static int listen_tcp(const char *text, struct why *why)
{
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text) {
        why_set(why, ERR_FORMAT, "link: %s is neither a path nor HOST:PORT", text);
        return -1;
    }
    char *host = mem_text_n(text, (size_t)(colon - text));
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *found;
    int rc = getaddrinfo(host, colon + 1, &hints, &found);
    free(host);
    if (rc != 0) {
        why_set(why, ERR_IO, "link: %s: %s", text, gai_strerror(rc));
        return -1;
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
    bool bound = fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 &&
                 listen(fd, 64) == 0;
    freeaddrinfo(found);
    if (bound) return fd;
    why_set(why, ERR_IO, "link: cannot listen on %s: %s", text, strerror(errno));
    if (fd >= 0) close(fd);
    return -1;
}

/* The port of --link-listen, which may have been 0, into LINK.port for whoever started us. */
static enum err say_port(const struct rank0 *z, int fd, struct why *why)
{
    struct sockaddr_storage a;
    socklen_t bytes = sizeof a;
    char port[16] = "";
    struct buf path = { 0 };
    if (!z->link_path) return OK;
    getsockname(fd, (struct sockaddr *)&a, &bytes);
    getnameinfo((struct sockaddr *)&a, bytes, NULL, 0, port, sizeof port, NI_NUMERICSERV);
    buf_print(&path, "%s.port", z->link_path);
    unlink(path.data);
    int out = open(path.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool written = out >= 0 && write(out, port, strlen(port)) == (ssize_t)strlen(port);
    int error = errno;
    if (out >= 0) close(out);
    if (!written) why_set(why, ERR_IO, "link: %s: %s", path.data, strerror(error));
    buf_release(&path);
    return written ? OK : ERR_IO;
}

enum err links_open(struct rank0 *z, struct why *why)
{
    const char *where = z->job->config.link;
    z->gateways = mem_array(GATEWAY_COUNT_MAX, sizeof *z->gateways);
    int fd = strchr(where, '/') ? listen_unix(z, where, why) : listen_tcp(where, why);
    if (fd < 0) return ERR_IO;
    z->listener = (struct watch){ .fd = fd, .call = on_connect, .ctx = z };
    const char *far = z->job->config.link_listen;
    if (!*far) return OK;
    fd = listen_tcp(far, why);
    if (fd < 0) return ERR_IO;
    z->far_listener = (struct watch){ .fd = fd, .call = on_connect, .ctx = z };
    return say_port(z, fd, why);
}

void links_listen(struct rank0 *z)
{
    loop_add(z->loop, &z->listener, EPOLLIN);
    if (z->far_listener.ctx) loop_add(z->loop, &z->far_listener, EPOLLIN);
}

void links_close(struct rank0 *z)
{
    if (z->link_path) unlink(z->link_path);
    if (z->listener.ctx) close(z->listener.fd);
    if (z->far_listener.ctx) close(z->far_listener.fd);
    /* Not close: with unread bytes that would be a reset, which may overtake the last END. */
    for (int i = 0; i < GATEWAY_COUNT_MAX; i++)
        if (z->gateways[i].state != GATEWAY_NONE) shutdown(z->gateways[i].watch.fd, SHUT_WR);
}
