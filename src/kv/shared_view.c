/* kv/shared_view.c - see shared_view.h: the ring, the thread, and looking. */
#include "kv/shared_view.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "kv/shared_view_net.h"

#define CONNECT_NS (300 * NS_PER_MS)  /* all of connecting; a step is less (shared_view_net.c) */
#define CONNECT_TLS_NS (900 * NS_PER_MS)
#define BATCH_NS (300 * NS_PER_MS)
#define RETRY_FIRST_NS (250 * NS_PER_MS)
#define RETRY_MOST_NS (4 * NS_PER_S)
#define BREAK_NS NS_PER_S             /* after a failed look; between two maps of a cluster */
#define CLOSE_NS NS_PER_S
enum { PROBES = 16, KEY_BYTES = 96, VALUE_BYTES = 17 };

struct shared_view {
    struct view_address address;
    char job[32], epoch[VALUE_BYTES], ttl[12];
    bool announces;
    pthread_t thread;

    pthread_mutex_t lock;             /* what follows, up to net_lock; held for moments only */
    pthread_cond_t changed;
    bool stop, up;
    uint32_t said;                    /* a bit per kind of failure: in the log since it was up */
    uint64_t connect_at, pause_ns;    /* when the thread connects; UINT64_MAX: no need */
    struct hash128 *ring;             /* VIEW_RING_KEYS; NULL: only looks */
    uint32_t first, count;
    struct shared_view_stats stats;

    pthread_mutex_t net_lock;         /* taken before `lock`, never after it */
    struct view_net *net;             /* NULL: not connected */
};

const char *view_error_name(enum view_error e)
{
    static const char *const names[VIEW_ERROR_COUNT] = {
        [VIEW_CONNECTION] = "connection", [VIEW_TIMEOUT] = "timeout", [VIEW_TLS] = "tls",
        [VIEW_AUTH] = "auth", [VIEW_FULL] = "full", [VIEW_MOVED] = "moved", [VIEW_OTHER] = "other",
    };
    return names[e];
}

/* -- counters ---------------------------------------------------------------------------------- */

static void count_error(struct shared_view *v, enum view_error e)
{
    pthread_mutex_lock(&v->lock);
    v->stats.errors[e]++;
    pthread_mutex_unlock(&v->lock);
}

void shared_view_stats(struct shared_view *v, struct shared_view_stats *out)
{
    pthread_mutex_lock(&v->lock);
    *out = v->stats;
    out->connected = v->up;
    pthread_mutex_unlock(&v->lock);
}

/* -- the connection ---------------------------------------------------------------------------- */

static uint64_t jitter(uint64_t ns)
{
    uint64_t random;
    secret_random(&random, sizeof random);
    return ns / 2 + random % ns;
}

static void connect_at(struct shared_view *v, uint64_t ns)
{
    if (ns < v->connect_at) v->connect_at = ns;
    pthread_cond_signal(&v->changed);
}

/* With net_lock held, after every exchange.  A single server that fails is let go; of a cluster
 * the others go on until a new map is there. */
static void after_exchange(struct shared_view *v, bool whole, uint64_t pause_ns)
{
    bool any = false;
    for (uint32_t i = 0; i < v->net->node_count; i++) any |= v->net->nodes[i].link != NULL;
    if (whole && !v->net->stale) return;
    if (whole) pause_ns = BREAK_NS;   /* only its map is old */
    pthread_mutex_lock(&v->lock);
    v->stats.errors[v->net->why] += !whole;
    connect_at(v, clock_now_ns() + pause_ns);
    if (!any) v->up = false;
    if (!any) v->said |= 1u << v->net->why;
    pthread_mutex_unlock(&v->lock);
    if (any) return;
    log_warn("redis: %s; going on without", v->net->text);
    free(v->net);
    v->net = NULL;
}

/* With both locks held. */
static void take_net(struct shared_view *v, struct view_net *net)
{
    if (!v->up) {
        log_info("redis: connected to %u server%s", net->node_count,
                 net->node_count == 1 ? "" : "s");
    }
    if (v->net) view_net_close(v->net);
    free(v->net);
    v->net = net;
    v->up = true;
    v->pause_ns = RETRY_FIRST_NS;
    v->connect_at = net->stale ? clock_now_ns() + RETRY_MOST_NS : UINT64_MAX;
    net->stale = false;
}

/* Of the thread; the new net is made without any lock. */
static void connect_net(struct shared_view *v)
{
    struct view_net *net = mem_alloc(sizeof *net);
    uint64_t most = v->address.secure ? CONNECT_TLS_NS : CONNECT_NS;
    bool good = view_net_connect(net, &v->address, clock_now_ns() + most);
    pthread_mutex_lock(&v->net_lock);
    pthread_mutex_lock(&v->lock);
    if (good) {
        take_net(v, net);
    } else {
        if (!v->up && !(v->said >> net->why & 1)) {
            log_warn("redis: %s; going on without", net->text);
        }
        v->said |= 1u << net->why;
        v->stats.errors[net->why]++;
        v->connect_at = clock_now_ns() + jitter(v->pause_ns);
        v->pause_ns = 2 * v->pause_ns < RETRY_MOST_NS ? 2 * v->pause_ns : RETRY_MOST_NS;
    }
    if (good) v->said = 0;
    pthread_mutex_unlock(&v->lock);
    pthread_mutex_unlock(&v->net_lock);
    if (!good) free(net);
}

/* -- announcing -------------------------------------------------------------------------------- */

void shared_view_announce(struct shared_view *v, const struct hash128 *keys, uint32_t count)
{
    if (!v || !v->ring || count == 0) return;
    pthread_mutex_lock(&v->lock);
    uint32_t room = VIEW_RING_KEYS - v->count, taken = count < room ? count : room;
    for (uint32_t i = 0; i < taken; i++) {
        v->ring[(v->first + v->count + i) % VIEW_RING_KEYS] = keys[i];
    }
    v->count += taken;
    v->stats.dropped += count - taken;
    pthread_cond_signal(&v->changed);
    pthread_mutex_unlock(&v->lock);
}

static uint32_t name_entry(char *out, struct hash128 key, const char *job)
{
    int bytes = snprintf(out, KEY_BYTES, "rankserve:{%016llx%016llx}:%.31s",
                         (unsigned long long)key.lo, (unsigned long long)key.hi, job);
    return (uint32_t)bytes;
}

static void add_argument(struct view_command *c, const char *text, size_t bytes)
{
    c->argv[c->argc] = text;
    c->bytes[c->argc++] = bytes;
}

struct batch {
    struct shared_view *view;
    uint64_t taken;
    struct hash128 keys[VIEW_BATCH_KEYS];
    char names[VIEW_BATCH_KEYS][KEY_BYTES];
    struct view_command commands[VIEW_BATCH_KEYS];
};

static void take_set(void *ctx, uint32_t index, const redisReply *r)
{
    struct batch *b = ctx;
    (void)index;
    if (r->type == REDIS_REPLY_ERROR) count_error(b->view, view_error_of(r->str));
    else b->taken++;
}

static void send_batch(struct shared_view *v, struct batch *b, uint32_t count)
{
    b->view = v;
    b->taken = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct view_command *c = &b->commands[i];
        size_t bytes = name_entry(b->names[i], b->keys[i], v->job);
        *c = (struct view_command){ .slot = view_slot(b->names[i], bytes) };
        add_argument(c, "SET", 3);
        add_argument(c, b->names[i], bytes);
        add_argument(c, v->epoch, strlen(v->epoch));
        add_argument(c, "EX", 2);
        add_argument(c, v->ttl, strlen(v->ttl));
    }
    pthread_mutex_lock(&v->net_lock);
    if (v->net) {
        uint64_t until = clock_now_ns() + BATCH_NS;
        bool whole = view_net_run(v->net, b->commands, count, until, take_set, b);
        after_exchange(v, whole, jitter(RETRY_FIRST_NS));
    }
    pthread_mutex_unlock(&v->net_lock);
    pthread_mutex_lock(&v->lock);
    v->stats.announced += b->taken;
    v->stats.dropped += count - b->taken;
    pthread_mutex_unlock(&v->lock);
}

/* -- the thread -------------------------------------------------------------------------------- */

static void wait_until(struct shared_view *v, uint64_t ns)
{
    struct timespec t = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
    if (ns == UINT64_MAX) pthread_cond_wait(&v->changed, &v->lock);
    else pthread_cond_timedwait(&v->changed, &v->lock, &t);
}

/* The next keys to be sent; 0: it is time to connect, or to stop. */
static uint32_t wait_work(struct shared_view *v, struct batch *b, bool *stop)
{
    uint32_t count = 0;
    pthread_mutex_lock(&v->lock);
    while (!v->stop && clock_now_ns() < v->connect_at && !(v->up && v->count)) {
        wait_until(v, v->connect_at);
    }
    bool connect = clock_now_ns() >= v->connect_at;
    while (!connect && v->count && count < VIEW_BATCH_KEYS) {
        b->keys[count++] = v->ring[v->first];
        v->first = (v->first + 1) % VIEW_RING_KEYS;
        v->count--;
    }
    *stop = v->stop;
    pthread_mutex_unlock(&v->lock);
    return count;
}

static void *run(void *arg)
{
    struct shared_view *v = arg;
    struct batch *b = mem_alloc(sizeof *b);
    for (bool stop = false; !stop;) {
        uint32_t count = wait_work(v, b, &stop);
        if (stop) break;
        if (count) send_batch(v, b, count);
        else connect_net(v);
    }
    free(b);
    return NULL;
}

enum err shared_view_open(struct shared_view **out, const struct shared_view_config *c,
                          struct why *why)
{
    struct shared_view *v = mem_alloc(sizeof *v);
    enum err e = view_address_read(&v->address, c, why);
    if (e) {
        free(v);
        return e;
    }
    if (c->job) {
        snprintf(v->job, sizeof v->job, "%s", c->job);
        snprintf(v->epoch, sizeof v->epoch, "%016llx", (unsigned long long)c->epoch);
        snprintf(v->ttl, sizeof v->ttl, "%u", c->ttl_s);
        v->ring = mem_array(VIEW_RING_KEYS, sizeof *v->ring);
    }
    if (c->tls.insecure) log_warn("--redis-insecure: whoever answers is believed to be Redis");
    v->pause_ns = RETRY_FIRST_NS;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&v->lock, NULL);
    pthread_mutex_init(&v->net_lock, NULL);
    pthread_cond_init(&v->changed, &monotonic);
    if (pthread_create(&v->thread, NULL, run, v) != 0) die("cannot start a thread");
    *out = v;
    return OK;
}

void shared_view_close(struct shared_view *v)
{
    if (!v) return;
    pthread_mutex_lock(&v->lock);
    v->stop = true;
    pthread_cond_signal(&v->changed);
    pthread_mutex_unlock(&v->lock);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(CLOSE_NS / NS_PER_S);
    if (pthread_timedjoin_np(v->thread, NULL, &until) != 0) return;
    if (v->net) view_net_close(v->net);
    free(v->net);
    free(v->ring);
    free(v);
}

/* -- looking ----------------------------------------------------------------------------------- */

struct look {
    struct shared_view *view;
    const struct hash128 *keys;
    const struct shared_view_job *jobs;
    uint32_t job_count;
    uint32_t at[PROBES], probe_count; /* positions asked about, ascending */
    uint32_t held[PROBES];            /* bit per job */
    char epochs[JOBS_MAX][VALUE_BYTES];
};

static void take_holders(void *ctx, uint32_t index, const redisReply *r)
{
    struct look *l = ctx;
    if (r->type == REDIS_REPLY_ERROR) count_error(l->view, view_error_of(r->str));
    if (r->type != REDIS_REPLY_ARRAY) return;
    for (uint32_t j = 0; j < l->job_count && j < r->elements; j++) {
        const redisReply *value = r->element[j];
        bool same = value->type == REDIS_REPLY_STRING && value->len == VALUE_BYTES - 1 &&
                    memcmp(value->str, l->epochs[j], VALUE_BYTES - 1) == 0;
        if (same) l->held[index] |= 1u << j;
    }
}

/* Asks about up to PROBES positions of [from, to), evenly, the last one among them. */
static bool probe(struct view_net *net, struct look *l, uint32_t from, uint32_t to, uint64_t until)
{
    static const uint32_t most = PROBES;
    uint32_t wide = to - from;
    char names[PROBES][JOBS_MAX][KEY_BYTES];
    struct view_command commands[PROBES] = { 0 };
    l->probe_count = wide < most ? wide : most;
    for (uint32_t p = 0; p < l->probe_count; p++) {
        struct view_command *c = &commands[p];
        l->held[p] = 0;
        l->at[p] = from + (uint32_t)((uint64_t)(p + 1) * wide / l->probe_count) - 1;
        add_argument(c, "MGET", 4);
        for (uint32_t j = 0; j < l->job_count; j++) {
            size_t bytes = name_entry(names[p][j], l->keys[l->at[p]], l->jobs[j].name);
            add_argument(c, names[p][j], bytes);
            c->slot = view_slot(names[p][j], bytes);
        }
    }
    return view_net_run(net, commands, l->probe_count, until, take_holders, l);
}

/* Raises the jobs' blocks; returns the most. */
static uint32_t raise(const struct look *l, uint32_t *blocks)
{
    uint32_t most = 0;
    for (uint32_t j = 0; j < l->job_count; j++) {
        for (uint32_t p = 0; p < l->probe_count; p++) {
            if (l->held[p] >> j & 1 && l->at[p] + 1 > blocks[j]) blocks[j] = l->at[p] + 1;
        }
        if (blocks[j] > most) most = blocks[j];
    }
    return most;
}

static bool look(struct shared_view *v, struct look *l, uint32_t count, uint64_t until,
                 uint32_t *blocks)
{
    if (!probe(v->net, l, 0, count, until)) return false;
    uint32_t most = raise(l, blocks), next = count;
    for (uint32_t p = l->probe_count; p-- > 0;) {
        if (l->at[p] >= most) next = l->at[p];
    }
    if (most >= count || next <= most) return true;
    if (!probe(v->net, l, most, next, until)) return false;
    raise(l, blocks);
    return true;
}

static bool lock_net(struct shared_view *v, uint64_t until)
{
    struct timespec t = { .tv_sec = (time_t)(until / NS_PER_S),
                          .tv_nsec = (long)(until % NS_PER_S) };
    if (pthread_mutex_clocklock(&v->net_lock, CLOCK_MONOTONIC, &t) != 0) return false;
    if (v->net) return true;
    pthread_mutex_unlock(&v->net_lock);
    return false;
}

bool shared_view_look(struct shared_view *v, const struct hash128 *keys, uint32_t count,
                      const struct shared_view_job *jobs, uint32_t job_count, uint64_t budget_ns,
                      uint32_t *blocks_out)
{
    uint64_t until = clock_now_ns() + budget_ns;
    memset(blocks_out, 0, job_count * sizeof *blocks_out);
    if (!v || count == 0 || job_count == 0 || job_count > JOBS_MAX) return false;
    struct look l = { .view = v, .keys = keys, .jobs = jobs, .job_count = job_count };
    for (uint32_t j = 0; j < job_count; j++) {
        snprintf(l.epochs[j], VALUE_BYTES, "%016llx", (unsigned long long)jobs[j].epoch);
    }
    bool known = false, found = false;
    if (lock_net(v, until)) {
        known = look(v, &l, count, until, blocks_out);
        after_exchange(v, known, BREAK_NS);
        pthread_mutex_unlock(&v->net_lock);
    }
    if (!known) memset(blocks_out, 0, job_count * sizeof *blocks_out);
    for (uint32_t j = 0; j < job_count; j++) found |= blocks_out[j] > 0;
    pthread_mutex_lock(&v->lock);
    v->stats.looks += known;
    v->stats.found += found;
    v->stats.skipped += !known;
    pthread_mutex_unlock(&v->lock);
    return known;
}
