/* cuda/lanes.c - lanes as the control thread sees them: slots, and copies to and from the pool.
 *
 * Both copies run on the copy stream, which nothing from outside can hold up, and are followed by
 * the event that each step waits for: so they are in order with steps, and blocks need no holding.
 */
#include "cuda/lanes.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"

#define CLOSE_NS (3 * NS_PER_S)

void lanes_ring(const struct lanes *a)
{
    uint64_t one = 1;
    ssize_t wrote = write(a->event_fd, &one, sizeof one);
    (void)wrote;                      /* full: it is readable anyway */
}

void jobs_add(struct jobs *q, struct job j)
{
    CHECK(q->count < LANE_QUEUE_MAX);
    q->at[(q->first + q->count++) % LANE_QUEUE_MAX] = j;
}

struct job jobs_take(struct jobs *q)
{
    CHECK(q->count);
    struct job j = q->at[q->first];
    q->first = (q->first + 1) % LANE_QUEUE_MAX;
    q->count--;
    return j;
}

struct slot *slot_take(struct slot *slots)
{
    for (int i = 0; i < LANE_SLOTS; i++) {
        if (slots[i].taken) continue;
        slots[i].taken = true;
        return &slots[i];
    }
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

enum err lanes_open(struct cuda *u, struct why *why)
{
    struct why what = { "" };
    if (u->c.lanes == LANES_NONE) return OK;
    int version = nccl_version(&what);
    if (!version && u->c.lanes == LANES_MUST)
        return why_set(why, ERR_UNSUPPORTED, "kv-connector nccl: %.400s", what.text);
    if (!version) {
        log_info("kv goes through the host: %s", what.text);
        return OK;
    }
    struct lanes *a = u->lanes = mem_alloc(sizeof *a);
    pthread_condattr_t clock;
    a->u = u;
    a->version = version;
    pthread_mutex_init(&a->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&a->moved, &clock);
    pthread_condattr_destroy(&clock);
    a->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (a->event_fd < 0) return why_set(why, ERR_IO, "eventfd for lanes");
    uint64_t layer = u->c.step_tokens_max * u->shape.token_bytes;
    a->part_bytes = layer < LANE_PART_BYTES_MAX ? layer : LANE_PART_BYTES_MAX;
    CHECK(a->part_bytes >= u->shape.token_bytes);
    a->table_blocks = (uint32_t)(a->part_bytes / u->shape.token_bytes) / u->c.block_tokens + 2;
    return OK;
}

void lanes_carve(struct cuda *u)
{
    struct lanes *a = u->lanes;
    for (int i = 0; a && i < 2 * LANE_SLOTS; i++) {
        struct slot *s = i < LANE_SLOTS ? &a->out[i] : &a->in[i - LANE_SLOTS];
        s->wire = arena_take(&u->arena, a->part_bytes);
        s->table = arena_take(&u->arena, a->table_blocks * sizeof *s->table);
    }
}

cudaError_t lanes_host(struct cuda *u)
{
    struct lanes *a = u->lanes;
    if (!a) return cudaSuccess;
    uint64_t bytes = 2ull * LANE_SLOTS * a->table_blocks * sizeof(int32_t);
    unsigned flags = cudaEventDisableTiming;
    cudaError_t e = cudaMallocHost((void **)&a->tables_host, bytes);
    for (int i = 0; !e && i < 2 * LANE_SLOTS; i++) {
        struct slot *s = i < LANE_SLOTS ? &a->out[i] : &a->in[i - LANE_SLOTS];
        s->table_host = a->tables_host + (uint64_t)i * a->table_blocks;
        e = cudaEventCreateWithFlags(&s->pool, flags);
        if (!e) e = cudaEventCreateWithFlags(&s->moved, flags);
    }
    return e;
}

static bool all_closed(const struct lanes *a)
{
    for (int i = 0; i < LANES_MAX; i++)
        if (a->lane[i].used) return false;
    return true;
}

/* A thread that the library holds for ever stays behind, with the memory that it may touch. */
static bool end_threads(struct lanes *a)
{
    uint64_t until = clock_now_ns() + CLOSE_NS;
    struct timespec t = { .tv_sec = (time_t)(until / NS_PER_S),
                          .tv_nsec = (long)(until % NS_PER_S) };
    pthread_mutex_lock(&a->lock);
    for (int i = 0; i < LANES_MAX; i++) a->lane[i].closing = true;
    pthread_cond_broadcast(&a->moved);
    while (!all_closed(a) && clock_now_ns() < until)
        pthread_cond_timedwait(&a->moved, &a->lock, &t);
    bool ended = all_closed(a);
    pthread_mutex_unlock(&a->lock);
    return ended;
}

bool lanes_close(struct cuda *u)
{
    struct lanes *a = u->lanes;
    if (!a) return true;
    if (!end_threads(a)) return false;
    for (int i = 0; i < 2 * LANE_SLOTS; i++) {
        struct slot *s = i < LANE_SLOTS ? &a->out[i] : &a->in[i - LANE_SLOTS];
        if (s->pool) cudaEventDestroy(s->pool);
        if (s->moved) cudaEventDestroy(s->moved);
    }
    cudaFreeHost(a->tables_host);
    if (a->event_fd >= 0) close(a->event_fd);
    pthread_cond_destroy(&a->moved);
    pthread_mutex_destroy(&a->lock);
    free(a);
    return true;
}

static bool thread_start(struct lane *l)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, NULL, nccl_lane, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(thread);
    return !failed;
}

static enum err lane_open(void *self, const struct lane_spec *spec, struct lane **out)
{
    struct lanes *a = ((struct cuda *)self)->lanes;
    struct lane *l = a->lane;
    pthread_mutex_lock(&a->lock);
    while (l < a->lane + LANES_MAX && l->used) l++;
    if (l == a->lane + LANES_MAX) {
        pthread_mutex_unlock(&a->lock);
        return ERR_FULL;
    }
    *l = (struct lane){ .all = a, .used = true, .sends = spec->sends, .size = spec->size,
                        .rank = spec->rank, .peer = spec->peer, .peer_id = spec->peer_id,
                        .deadline_ns = spec->deadline_ns };
    if (!spec->sends) {
        memcpy(l->name, spec->name, sizeof l->name);
        l->state = LANE_JOINING;
    }
    bool started = l->used = thread_start(l);
    pthread_mutex_unlock(&a->lock);
    *out = l;
    return started ? OK : ERR_FULL;
}

/* --- from the control thread ------------------------------------------------------------------ */

static enum lane_state lane_state(struct lane *l)
{
    pthread_mutex_lock(&l->all->lock);
    enum lane_state state = l->state;
    pthread_mutex_unlock(&l->all->lock);
    return state;
}

static void lane_name(struct lane *l, uint8_t out[LANE_NAME_BYTES])
{
    CHECK(lane_state(l) != LANE_STARTING);
    memcpy(out, l->name, LANE_NAME_BYTES);
}

/* Tells the lane's thread. */
static void tell(struct lane *l, bool *what)
{
    struct lanes *a = l->all;
    pthread_mutex_lock(&a->lock);
    *what = true;
    pthread_cond_broadcast(&a->moved);
    pthread_mutex_unlock(&a->lock);
}

static void lane_join(struct lane *l)
{
    tell(l, &l->joined);
}

static void lane_close(struct lane *l)
{
    tell(l, &l->closing);
}

static void add(struct lane *l, struct jobs *q, struct job j)
{
    struct lanes *a = l->all;
    pthread_mutex_lock(&a->lock);
    jobs_add(q, j);
    pthread_cond_broadcast(&a->moved);
    pthread_mutex_unlock(&a->lock);
}

static bool lane_has_room(struct lane *l)
{
    const struct lanes *a = l->all;
    bool room = false;
    pthread_mutex_lock(&l->all->lock);
    for (int i = 0; i < LANE_SLOTS; i++) room |= !a->out[i].taken;
    room &= l->queued.count + l->flying.count < LANE_FLIGHT;
    pthread_mutex_unlock(&l->all->lock);
    return room;
}

static uint64_t part_bytes_of(const struct cuda *u, const struct lane_part *p)
{
    return (uint64_t)p->layers * p->count * u->shape.token_bytes;
}

/* Copies between slot and pool, behind all copies before and in front of all later steps.  What is
 * read is complete: the caller has seen the end of its step, or of its layer. */
static void copy(struct cuda *u, struct slot *s, const struct lane_part *p,
                 cudaError_t (*kernel)(const struct move_call *, cudaStream_t))
{
    uint32_t size = u->c.block_tokens, before = p->first / size;
    uint32_t blocks = (p->first + p->count - 1) / size - before + 1;
    CHECK(blocks <= u->lanes->table_blocks && part_bytes_of(u, p) <= u->lanes->part_bytes);
    CHECK(p->layers && p->layer < u->shape.layers && p->layers <= u->shape.layers - p->layer);
    MUST(u, cudaSetDevice(u->device));
    memcpy(s->table_host, p->blocks + before, blocks * sizeof *p->blocks);
    MUST(u, cudaMemcpyAsync(s->table, s->table_host, blocks * sizeof *p->blocks,
                            cudaMemcpyHostToDevice, u->copy));
    struct move_call m = {
        .kv = kv_layer_of(u, p->layer), .layer_bytes = (int64_t)u->layer_bytes,
        .blocks = s->table, .first = (int)(p->first % size), .count = (int)p->count,
        .layers = (int)p->layers, .wire = s->wire,
    };
    MUST(u, kernel(&m, u->copy));
    MUST(u, cudaEventRecord(s->pool, u->copy));
    MUST(u, cudaEventRecord(u->written, u->copy));
}

static void lane_send(struct lane *l, const struct lane_part *part)
{
    struct lanes *a = l->all;
    pthread_mutex_lock(&a->lock);
    struct slot *s = slot_take(a->out);
    pthread_mutex_unlock(&a->lock);
    CHECK(s);
    copy(a->u, s, part, k_kv_gather);
    add(l, &l->queued, (struct job){ .slot = s, .bytes = part_bytes_of(a->u, part) });
}

static void lane_receive(struct lane *l, uint64_t bytes)
{
    CHECK(bytes <= l->all->part_bytes);
    add(l, &l->queued, (struct job){ .bytes = bytes });
}

static bool lane_arrived(struct lane *l)
{
    pthread_mutex_lock(&l->all->lock);
    bool arrived = l->arrived.count > 0;
    pthread_mutex_unlock(&l->all->lock);
    return arrived;
}

static void lane_take(struct lane *l, const struct lane_part *part)
{
    struct lanes *a = l->all;
    pthread_mutex_lock(&a->lock);
    struct job j = jobs_take(&l->arrived);
    pthread_mutex_unlock(&a->lock);
    CHECK(!part || part_bytes_of(a->u, part) == j.bytes);
    if (part) copy(a->u, j.slot, part, k_kv_scatter);
    pthread_mutex_lock(&a->lock);
    j.slot->taken = false;
    pthread_cond_broadcast(&a->moved);
    pthread_mutex_unlock(&a->lock);
}

static int lanes_version(const void *self)
{
    const struct lanes *a = ((const struct cuda *)self)->lanes;
    return a ? a->version : 0;
}

static int lanes_event_fd(const void *self)
{
    return ((const struct cuda *)self)->lanes->event_fd;
}

static uint64_t lanes_part_bytes(const void *self)
{
    return ((const struct cuda *)self)->lanes->part_bytes;
}

const struct backend_lanes cuda_lanes = {
    .version = lanes_version, .event_fd = lanes_event_fd, .part_bytes = lanes_part_bytes,
    .open = lane_open, .state = lane_state, .name = lane_name, .join = lane_join,
    .close = lane_close, .has_room = lane_has_room, .send = lane_send, .receive = lane_receive,
    .arrived = lane_arrived, .take = lane_take,
};
