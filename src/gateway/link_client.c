/* gateway/link_client.c - see link_client.h.  One connection is in link_conn.c. */
#include "gateway/link_client.h"

#include <errno.h>
#include <netdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "gateway/link_inside.h"
#include "gateway/metrics.h"
#include "gateway/watch.h"

enum { TICK_MS = 1000 };
enum { EVENT_WAKE = JOBS_MAX, EVENT_HUNG_UP, EVENT_ALSO };    /* below: a connection's */

void link_client_wake(struct link_client *c)
{
    uint64_t one = 1;
    ssize_t wrote = write(c->wake, &one, sizeof one);
    (void)wrote;                      /* full counter: it is awake already */
}

/* -- the jobs, under the lock ------------------------------------------------------------------ */

bool link_target_resolve(const char *where, struct sockaddr_storage *out, socklen_t *bytes)
{
    const char *colon = strrchr(where, ':');
    if (!colon) return false;
    size_t host_bytes = (size_t)(colon - where);
    bool bracket = host_bytes >= 2 && where[0] == '[' && colon[-1] == ']';
    char *host = mem_text_n(where + bracket, host_bytes - 2 * bracket);
    struct addrinfo *found = NULL, hints = { .ai_socktype = SOCK_STREAM };
    int rc = getaddrinfo(host, colon + 1, &hints, &found);
    free(host);
    if (rc != 0) return false;
    memcpy(out, found->ai_addr, found->ai_addrlen);
    *bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

static bool same_job(const struct link_target *a, const struct link_target *b)
{
    return strcmp(a->name, b->name) == 0 && a->started == b->started &&
           strcmp(a->where, b->where) == 0 && memcmp(a->secret, b->secret, SECRET_BYTES) == 0;
}

static bool add_job(struct link_client *c, const struct link_target *job)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct conn *conn = &c->conns[i];
        if (conn->used) continue;
        *conn = (struct conn){ .set = c, .index = i, .used = true, .socket = -1, .to = *job };
        overlap_forget(c->overlap, i);
        return true;
    }
    return false;
}

void link_client_jobs(struct link_client *c, const struct link_target *jobs, uint32_t count)
{
    bool there[JOBS_MAX] = { false };
    for (uint32_t k = 0; k < count; k++) {
        bool known = false;
        for (uint32_t i = 0; i < JOBS_MAX && !known; i++) {
            struct conn *conn = &c->conns[i];
            if (!conn->used || !same_job(&conn->to, &jobs[k])) continue;
            known = there[i] = true;
            conn->leaving = jobs[k].draining;
        }
        if (known || jobs[k].draining) continue;
        if (!add_job(c, &jobs[k])) {
            log_warn("job=%s is left out: at most %d jobs", jobs[k].name, JOBS_MAX);
            continue;
        }
        for (uint32_t i = 0; i < JOBS_MAX; i++) {
            there[i] |= c->conns[i].used && same_job(&c->conns[i].to, &jobs[k]);
        }
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (c->conns[i].used && !there[i]) c->conns[i].leaving = true;
    }
    link_client_wake(c);
}

static bool takes_requests(const struct conn *c)
{
    return c->used && c->up && !c->leaving && c->said.state == JOB_LIVE;
}

enum job_state link_client_state(const struct link_client *c)
{
    enum job_state best = JOB_STARTING;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct conn *conn = &c->conns[i];
        if (takes_requests(conn)) return JOB_LIVE;
        bool leaves = conn->used && conn->up && (conn->leaving || conn->said.state == JOB_DRAINING);
        if (leaves) best = JOB_DRAINING;
    }
    return best;
}

bool link_client_job(const struct link_client *c, uint32_t *max_model_len, uint32_t *vocab)
{
    bool known = false;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct conn *conn = &c->conns[i];
        if (!conn->used || !conn->known) continue;
        if (!known || conn->job.max_model_len < *max_model_len) {
            *max_model_len = conn->job.max_model_len;
        }
        if (!known || conn->job.vocab < *vocab) *vocab = conn->job.vocab;
        known = true;
    }
    return known;
}

static void add_state(struct link_state *sum, const struct link_state *s)
{
    sum->worker_count += s->worker_count;
    sum->workers_alive += s->workers_alive;
    sum->workers_prefill += s->workers_prefill;
    sum->workers_decode += s->workers_decode;
    sum->workers_both += s->workers_both;
    sum->workers_spare += s->workers_spare;
    sum->role_switches += s->role_switches;
    sum->requests_running += s->requests_running;
    sum->requests_waiting += s->requests_waiting;
    sum->prefill_queue_depth += s->prefill_queue_depth;
    sum->decode_active += s->decode_active;
    sum->blocks_total += s->blocks_total;
    sum->blocks_free += s->blocks_free;
    sum->blocks_held += s->blocks_held;
    sum->blocks_cached += s->blocks_cached;
    sum->kv_bytes_total += s->kv_bytes_total;
    sum->kv_bytes_used += s->kv_bytes_used;
    sum->decisions += s->decisions;
    sum->prompt_tokens += s->prompt_tokens;
    sum->prompt_tokens_cached += s->prompt_tokens_cached;
    sum->output_tokens += s->output_tokens;
    sum->preemptions += s->preemptions;
    sum->stale_refused += s->stale_refused;
    sum->kv_bytes_sent += s->kv_bytes_sent;
    sum->kv_bytes_lanes += s->kv_bytes_lanes;
    sum->step_ns_sum += s->step_ns_sum;
    sum->workers_lost += s->workers_lost;
    sum->requests_no_room += s->requests_no_room;
    sum->requests_replaced += s->requests_replaced;
    sum->wakeups += s->wakeups;
    sum->index_blocks += s->index_blocks;
    sum->index_bytes += s->index_bytes;
    sum->index_mismatches += s->index_mismatches;
    sum->index_lookups += s->index_lookups;
    sum->index_checks += s->index_checks;
    sum->reuse_possible += s->reuse_possible;
    sum->reuse_captured += s->reuse_captured;
    sum->redis_connected += s->redis_connected;
    sum->redis_announced += s->redis_announced;
    sum->redis_dropped += s->redis_dropped;
    sum->redis_errors += s->redis_errors;
    if (s->uptime_ns > sum->uptime_ns) sum->uptime_ns = s->uptime_ns;
}

void link_client_tell_metrics(struct link_client *c)
{
    struct link_state sum = { .state = (uint32_t)link_client_state(c) };
    bool any = false;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (!c->conns[i].used || !c->conns[i].up) continue;
        add_state(&sum, &c->conns[i].said);
        any = true;
    }
    if (any) metrics_state(c->gw->metrics, &sum, clock_now_ns());
    else metrics_link_lost(c->gw->metrics);
}

/* -- streams, under the lock ------------------------------------------------------------------- */

/* The better beginning; else the newer one. */
static struct conn *choose(struct link_client *c, const struct link_request *r,
                           const uint32_t held[JOBS_MAX], uint32_t tried)
{
    uint32_t overlap[JOBS_MAX] = { 0 }, live = 0;
    struct conn *best = NULL;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        live += takes_requests(&c->conns[i]) && !(tried >> i & 1);
    }
    if (live > 1) {
        overlap_look(c->overlap, r->cache_salt, link_request_ids(r), r->id_count, overlap);
    }
    for (uint32_t i = 0; held && i < JOBS_MAX; i++) {
        if (held[i] > overlap[i]) overlap[i] = held[i];
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct conn *conn = &c->conns[i];
        if (!takes_requests(conn) || (tried >> i & 1)) continue;
        bool better = !best || overlap[i] > overlap[best->index] ||
                      (overlap[i] == overlap[best->index] && conn->to.started > best->to.started);
        if (better) best = conn;
    }
    return best;
}

static bool send_frame(struct link_client *c, struct conn *conn, const struct link_head *h)
{
    bool idle = conn->out.size == conn->out_at;
    if (!conn_send(conn, h)) return false;
    if (idle && conn->out.size != conn->out_at) link_client_wake(c);
    return true;
}

bool link_client_keys(const struct link_client *c, struct link_keys *out)
{
    const struct conn *newest = NULL;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct conn *conn = &c->conns[i];
        if (!takes_requests(conn)) continue;
        if (!newest || conn->to.started > newest->to.started) newest = conn;
    }
    if (newest) *out = newest->keys;
    return newest && newest->keyed;
}

uint32_t link_client_holders(const struct link_client *c, const struct link_keys *keys,
                             struct shared_view_job jobs[JOBS_MAX], uint32_t numbers[JOBS_MAX])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct conn *conn = &c->conns[i];
        if (!takes_requests(conn) || !conn->keyed) continue;
        if (memcmp(keys, &conn->keys, sizeof *keys) != 0) continue;
        jobs[count] = (struct shared_view_job){ .epoch = conn->job.epoch };
        memcpy(jobs[count].name, conn->job.job_id, sizeof jobs[count].name);
        numbers[count++] = i;
    }
    return count;
}

static void drop_keys(struct link_request *r)
{
    memmove((void *)link_request_keys(r), link_request_ids(r), r->id_count * sizeof(int32_t));
    r->key_count = 0;
}

uint64_t link_client_submit(struct link_client *c, struct link_request *r,
                            const struct link_keys *keys, const uint32_t held[JOBS_MAX],
                            void *owner, uint32_t index, uint32_t *tried)
{
    struct conn *conn = choose(c, r, held, *tried);
    if (!conn) return 0;
    struct stream *s;
    uint64_t number = slots_take(&c->streams, (void **)&s);
    if (!number) return 0;
    *s = (struct stream){ owner, index, conn->index };
    bool theirs = conn->keyed && memcmp(keys, &conn->keys, sizeof *keys) == 0;
    if (r->key_count && !theirs) drop_keys(r);
    link_head_set(&r->head, LINK_REQUEST, number,
                  link_request_bytes(r->params.bias_count, r->key_count, r->id_count));
    if (!send_frame(c, conn, &r->head)) {
        slots_give(&c->streams, number);
        return 0;
    }
    if (conn->stream_count++ == 0) soon_asked(&c->soon, number, clock_now_ns());
    *tried |= 1u << conn->index;
    if (!c->fixed) {
        overlap_add(c->overlap, r->cache_salt, link_request_ids(r), r->id_count, conn->index);
    }
    return number;
}

void link_client_cancel(struct link_client *c, uint64_t stream)
{
    const struct stream *s = slots_find(&c->streams, stream);
    if (!s || !c->conns[s->conn].up) return;
    struct link_head h;
    link_head_set(&h, LINK_CANCEL, stream, sizeof h);
    buf_add(&c->conns[s->conn].out, &h, sizeof h); /* beyond the bound too: it only makes room */
    link_client_wake(c);
}

void link_client_forget(struct link_client *c, uint64_t stream)
{
    const struct stream *s = slots_find(&c->streams, stream);
    if (!s) return;
    link_client_cancel(c, stream);
    c->conns[s->conn].stream_count--;
    slots_give(&c->streams, stream);
}

uint32_t link_client_policy(struct link_client *c, const struct cache_policy *p)
{
    struct link_policy m = { .policy = *p };
    uint32_t told = 0;
    link_head_set(&m.head, LINK_POLICY, 0, sizeof m);
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct conn *conn = &c->conns[i];
        if (!conn->up || conn->out.size - conn->out_at > POLICY_WAITING_MAX) continue;
        buf_add(&conn->out, &m, sizeof m);
        told++;
    }
    link_client_wake(c);
    return told;
}

uint64_t link_client_watch(struct link_client *c, int fd, void *owner)
{
    return watch_add(c->watch, fd, owner);
}

void link_client_unwatch(struct link_client *c, uint64_t number)
{
    watch_remove(c->watch, number);
}

/* -- the thread -------------------------------------------------------------------------------- */

static void drain_wake(struct link_client *c)
{
    uint64_t count;
    ssize_t got = read(c->wake, &count, sizeof count);
    (void)got;
}

/* *awake_ns: until when to look awake. */
static int wait_ms(const struct link_client *c, uint64_t now, uint64_t *awake_ns)
{
    uint64_t until = c->tick_at;
    pthread_mutex_lock(&c->gw->lock);
    *awake_ns = c->alone ? 0 : soon_until_ns(&c->soon);
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct conn *conn = &c->conns[i];
        uint64_t at = conn->used && !conn->leaving ? conn_wakes_at(conn) : UINT64_MAX;
        if (at < until) until = at;
    }
    pthread_mutex_unlock(&c->gw->lock);
    uint64_t ms = until <= now ? 0 : (until - now) / NS_PER_MS + 1, also = c->also.wait_ms();
    return (int)(also < ms ? also : ms);
}

/* Written: all it was told; not up: nothing to wait for. */
static bool may_leave(const struct conn *c)
{
    return c->leaving && c->stream_count == 0 && !c->looking &&
           (!c->up || c->out.size == c->out_at);
}

static void leave(struct link_client *c, struct conn *conn)
{
    conn_drop(conn, "left");
    pthread_mutex_lock(&c->gw->lock);
    conn->used = false;
    pthread_mutex_unlock(&c->gw->lock);
}

/* What each connection needs is seen under one lock, and done without it. */
static void serve_all(struct link_client *c, uint64_t now_ns)
{
    bool used[JOBS_MAX], leaves[JOBS_MAX], writes[JOBS_MAX];
    pthread_mutex_lock(&c->gw->lock);
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct conn *conn = &c->conns[i];
        used[i] = conn->used;
        writes[i] = conn->out.size != conn->out_at || conn->writing;
        leaves[i] = used[i] && may_leave(conn);
        if (leaves[i]) conn->up = false; /* its entry may come back now: nothing is sent any more */
    }
    pthread_mutex_unlock(&c->gw->lock);
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct conn *conn = &c->conns[i];
        if (!used[i]) continue;
        if (leaves[i]) {
            leave(c, conn);
            continue;
        }
        if (writes[i] && conn->phase == PHASE_UP) conn_write(conn);
        conn_timers(conn, now_ns);
    }
}

static void tick(struct link_client *c)
{
    uint64_t now = clock_now_ns();
    if (now < c->tick_at) return;
    c->tick_at = now + TICK_MS * NS_PER_MS;
    pthread_mutex_lock(&c->gw->lock);
    c->also.tick();
    pthread_mutex_unlock(&c->gw->lock);
}

static void say_ready(struct link_client *c)
{
    if (c->was_live) return;
    pthread_mutex_lock(&c->gw->lock);
    c->was_live = link_client_state(c) == JOB_LIVE;
    pthread_mutex_unlock(&c->gw->lock);
    if (c->was_live) c->also.ready();
}

/* As epoll_wait.  Awake, any other thread that wants this processor has it. */
static int wait_for(struct link_client *c, struct epoll_event *events, uint64_t now)
{
    uint64_t awake_ns;
    int ms = wait_ms(c, now, &awake_ns);
    while (now < awake_ns) {
        int count = epoll_wait(c->epoll, events, JOBS_MAX, 0);
        if (count != 0) return count;
        sched_yield();
        now = clock_now_ns();
    }
    return epoll_wait(c->epoll, events, JOBS_MAX, ms);
}

/* A job is late at a time after which its socket was looked at once more: it may be us who were
 * stopped, or busy, while it spoke. */
static void *run(void *arg)
{
    struct link_client *c = arg;
    for (bool stop = false; !stop;) {
        struct epoll_event events[JOBS_MAX];
        uint64_t now = clock_now_ns();
        int count = wait_for(c, events, now);
        bool hung_up = false;
        for (int i = 0; i < count; i++) {
            uint64_t of = events[i].data.u64;
            hung_up |= of == EVENT_HUNG_UP;
            if (of == EVENT_WAKE) drain_wake(c);
            else if (of < JOBS_MAX) conn_event(&c->conns[of], events[i].events);
        }
        pthread_mutex_lock(&c->gw->lock);
        if (hung_up) watch_poll(c->watch);
        stop = c->stop;
        pthread_mutex_unlock(&c->gw->lock);
        c->also.turn();               /* first: what has just come is what somebody waits for */
        serve_all(c, now);
        say_ready(c);
        tick(c);
    }
    return NULL;
}

/* The one job of --link. */
static void add_fixed(struct link_client *c)
{
    const struct config *config = &c->gw->config;
    struct link_target job = { 0 };
    struct why why;
    if (strlen(config->link) >= sizeof job.where) die("--link %s: too long", config->link);
    if (!strchr(config->link, '/') && !strchr(config->link, ':')) {
        die("--link %s: neither a path nor HOST:PORT", config->link);
    }
    snprintf(job.where, sizeof job.where, "%s", config->link);
    snprintf(job.name, sizeof job.name, "%.60s", *config->job_id ? config->job_id : "-");
    if (link_secret_read(config->secret_file, job.secret, &why) != OK) die("%s", why.text);
    add_job(c, &job);
}

static void listen_to(struct link_client *c, int fd, uint64_t event)
{
    struct epoll_event e = { .events = EPOLLIN, .data.u64 = event };
    if (epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &e) != 0) {
        die("cannot watch a descriptor: %s", strerror(errno));
    }
}

struct link_client *link_client_start(struct gateway *gw, const struct link_owner *functions,
                                      const struct link_thread *also)
{
    struct link_client *c = mem_alloc(sizeof *c);
    c->gw = gw;
    c->on = functions;
    c->also = *also;
    c->fixed = !*gw->config.jobs;
    cpu_set_t cpus;
    c->alone = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) == 1;
    c->overlap = overlap_open();
    slots_open(&c->streams, sizeof(struct stream));
    c->watch = watch_open(functions->gone);
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->epoll < 0 || c->wake < 0) die("cannot make an epoll: %s", strerror(errno));
    listen_to(c, c->wake, EVENT_WAKE);
    listen_to(c, watch_fd(c->watch), EVENT_HUNG_UP);
    listen_to(c, also->fd, EVENT_ALSO);
    if (c->fixed) add_fixed(c);
    gw->link = c;                     /* before the thread can look */
    if (pthread_create(&c->thread, NULL, run, c) != 0) die("cannot start a thread");
    return c;
}

void link_client_stop(struct link_client *c)
{
    pthread_mutex_lock(&c->gw->lock);
    c->stop = true;
    link_client_wake(c);
    pthread_mutex_unlock(&c->gw->lock);
    pthread_join(c->thread, NULL);
}

void link_client_close(struct link_client *c)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (!c->conns[i].used) continue;
        if (c->conns[i].socket >= 0) close(c->conns[i].socket);
        link_reader_release(&c->conns[i].reader);
        buf_release(&c->conns[i].out);
    }
    close(c->epoll);
    close(c->wake);
    watch_close(c->watch);
    slots_close(&c->streams);
    overlap_close(c->overlap);
    free(c);
}
