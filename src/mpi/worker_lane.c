/* mpi/worker_lane.c - how KV leaves this rank and comes in: over a lane from GPU to GPU where there
 * is one, else inside the message.
 *
 * A lane is opened when there is KV for a rank for the first time:
 *
 *   sender: OPEN (its name) -> receiver: ACCEPT or REFUSE -> both join -> heads, each announcing
 *   one transfer, in order, on the same edge as KVEND
 *
 * What was announced is sent, whatever becomes of its request; the receiver takes it off the lane
 * in the same order and drops what nobody waits for any more.  A head names its lane by a number
 * that is never used again, so one of a lane that has ended is refused.  When an end breaks, it
 * tells the other: what was announced is lost, the requests it was for fail here for want of it,
 * and are placed again; KV of this pair goes by MPI until RETRY_NS have passed.
 *
 * Until its lane is ready a pair's KV goes by MPI, unless the job was told to use NCCL.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "mpi/lane_book.h"
#include "mpi/worker.h"

#define DEADLINE_NS (15 * NS_PER_S)
#define RETRY_NS (30 * NS_PER_S)

struct way {                          /* one direction, one peer */
    struct lane *lane;                /* NULL: a free entry */
    int peer;
    bool sends;
    bool asked, ready;                /* of a sender: OPEN was sent; KV may go */
    uint32_t number;                  /* of a sender: the last transfer's */
    struct lane_book book;            /* a receiver's; of a sender only `lane` */
};

struct ways {
    const struct backend_lanes *table;
    void *self;
    bool wanted;                      /* --kv-connector nccl: wait for a lane rather than use MPI */
    bool rung;
    struct watch watch;
    struct way way[LANES_MAX];
    uint32_t lanes;                   /* opened from here so far */
    uint64_t *retry_ns;               /* by rank: no lane to it before */
    struct lane *taking;              /* what has arrived here is being handed on */
};

_Static_assert(sizeof ((struct msg_lane *)0)->name == LANE_NAME_BYTES, "a name fits its message");

static void on_event(struct watch *watch, uint32_t events)
{
    struct ways *a = watch->ctx;
    uint64_t count;
    (void)events;
    ssize_t got = read(watch->fd, &count, sizeof count);
    a->rung = got == sizeof count;
}

void ways_open(struct worker *w)
{
    struct ways *a = w->ways = mem_alloc(sizeof *a);
    a->table = engine_lanes(w->engine, &a->self);
    a->wanted = strcmp(w->job->config.kv_connector, "nccl") == 0;
    a->retry_ns = mem_array((size_t)w->job->size, sizeof *a->retry_ns);
    if (!a->table) return;
    a->watch = (struct watch){ .fd = a->table->event_fd(a->self), .call = on_event, .ctx = a };
    loop_add(w->loop, &a->watch, EPOLLIN);
}

int ways_version(const struct worker *w)
{
    return w->ways->table ? w->ways->table->version(w->ways->self) : 0;
}

/* -- ways ------------------------------------------------------------------------------------- */

static struct way *way_find(struct worker *w, int peer, bool sends)
{
    for (struct way *y = w->ways->way; y < w->ways->way + LANES_MAX; y++)
        if (y->lane && y->peer == peer && y->sends == sends) return y;
    return NULL;
}

/* NULL: no room for another one. */
static struct way *way_open(struct worker *w, int peer, uint32_t lane, const uint8_t *name)
{
    struct ways *a = w->ways;
    struct way *y = a->way;
    while (y < a->way + LANES_MAX && y->lane) y++;
    struct lane_spec spec = { .sends = !name, .name = name, .peer_id = peer, .size = 2,
                              .rank = name != NULL, .peer = name == NULL,
                              .deadline_ns = DEADLINE_NS };
    struct way made = { .peer = peer, .sends = !name };
    if (y == a->way + LANES_MAX || a->table->open(a->self, &spec, &made.lane)) return NULL;
    *y = made;
    lane_book_open(&y->book, lane);
    return y;
}

static void say(struct worker *w, int to, uint32_t lane, enum lane_word word)
{
    struct msg_lane *m = port_message(w->port, MSG_LANE, sizeof *m);
    m->lane = lane;
    m->word = word;
    port_send(w->port, to, word == LANE_END ? PORT_DATA : PORT_CONTROL, m);
}

/* What was announced will not come: the ends find that KV is missing, and end what waits. */
static void forget_announced(struct worker *w, struct way *y)
{
    for (struct lane_entry *e; (e = lane_book_next(&y->book, true)); free(e))
        if (e->is_end) worker_on_kvend(w, y->peer, &e->end);
}

static void way_close(struct worker *w, struct way *y, bool tell)
{
    struct way was = *y;
    if (!was.book.first) was.book.last = &was.book.first;
    *y = (struct way){ 0 };
    w->ways->table->close(was.lane);
    if (tell) say(w, was.peer, was.book.lane, was.sends ? LANE_END : LANE_REFUSE);
    if (was.sends) w->ways->retry_ns[was.peer] = clock_now_ns() + RETRY_NS;
    else forget_announced(w, &was);
}

/* -- out -------------------------------------------------------------------------------------- */

static struct way *way_to(struct worker *w, int to)
{
    struct ways *a = w->ways;
    if (!a->table) return NULL;
    struct way *y = way_find(w, to, true);
    if (y || port_is_dead(w->port, to) || clock_now_ns() < a->retry_ns[to]) return y;
    y = way_open(w, to, ++a->lanes, NULL);
    if (y) return y;
    a->retry_ns[to] = clock_now_ns() + RETRY_NS;
    log_warn("lane to=%d: %d are open, KV goes by MPI", to, LANES_MAX);
    return NULL;
}

void kv_prepare(struct worker *w, int to)
{
    way_to(w, to);
}

bool kv_has_room(struct worker *w, int to)
{
    const struct way *y = way_to(w, to);
    if (y && y->ready) return w->ways->table->has_room(y->lane);
    return !(y && w->ways->wanted) && port_has_room(w->port, to);
}

uint64_t kv_room_bytes(struct worker *w, int to)
{
    const struct way *y = way_to(w, to);
    if (y && y->ready) return w->ways->table->part_bytes(w->ways->self);
    return PORT_BULK_BYTES - sizeof(struct msg_kv);
}

uint64_t kv_send(struct worker *w, int to, const struct msg_kv *range)
{
    uint64_t bytes = range->layers * range->count * engine_kv_shape(w->engine)->token_bytes;
    struct way *y = way_find(w, to, true);
    bool over_lane = y && y->ready;
    size_t message = sizeof *range + (over_lane ? 0 : bytes);
    struct msg_kv *m = port_bulk(w->port, to, MSG_KV, message), head = *range;
    head.head = m->head;
    if (over_lane) {
        head.lane = y->book.lane;
        head.number = ++y->number;
        CHECK(engine_lane_send(w->engine, range->req, y->lane, range->layer, range->layers,
                               range->first, range->count));
        w->kv_lanes += bytes;
    } else {
        CHECK(engine_kv_read(w->engine, range->req, range->layer, range->layers, range->first,
                             range->count, m + 1));
    }
    *m = head;
    w->kv_sent += bytes;
    link_meter_sent(&w->link, to, bytes);
    port_send(w->port, to, PORT_DATA, m);
    return bytes;
}

static void ask(struct worker *w, struct way *y)
{
    struct msg_lane *m = port_message(w->port, MSG_LANE, sizeof *m);
    m->lane = y->book.lane;
    m->word = LANE_OPEN;
    m->version = ways_version(w);
    w->ways->table->name(y->lane, m->name);
    port_send(w->port, y->peer, PORT_DATA, m);
    y->asked = true;
}

/* -- in --------------------------------------------------------------------------------------- */

static void on_open(struct worker *w, int from, const struct msg_lane *m)
{
    struct way *y = way_find(w, from, false);
    if (y) way_close(w, y, false);
    bool fits = w->ways->table && m->version == ways_version(w);
    y = fits ? way_open(w, from, m->lane, m->name) : NULL;
    if (!y) log_warn("lane from=%d refused: %s", from,
                     fits ? "too many" : "not the same NCCL here");
    say(w, from, m->lane, y ? LANE_ACCEPT : LANE_REFUSE);
}

void worker_on_lane(struct worker *w, int from, const struct msg_lane *m)
{
    if (m->word == LANE_OPEN) {
        on_open(w, from, m);
        return;
    }
    struct way *y = way_find(w, from, m->word != LANE_END);
    if (!y || y->book.lane != m->lane) return; /* both have ended it */
    if (m->word == LANE_ACCEPT) w->ways->table->join(y->lane);
    else way_close(w, y, false);
}

void ways_announced(struct worker *w, int from, const struct msg_kv *m)
{
    struct way *y = way_find(w, from, false);
    uint64_t bytes = m->layers * m->count * engine_kv_shape(w->engine)->token_bytes;
    enum err e = y ? lane_book_announce(&y->book, m) : ERR_STALE;
    if (e == OK && bytes > w->ways->table->part_bytes(w->ways->self)) e = ERR_LIMIT;
    if (e == OK) {
        w->ways->table->receive(y->lane, bytes);
        return;
    }
    w->stale++;
    log_warn("kv req=%u.%u from=%d lane=%u.%u refused err=\"%s\"", m->req.slot,
             m->req.generation, from, m->lane, m->number, err_text(e));
    if (e != ERR_STALE) way_close(w, y, true);
}

bool ways_hold_end(struct worker *w, int from, const struct msg_kvend *m)
{
    struct way *y = way_find(w, from, false);
    return y && lane_book_hold(&y->book, m);
}

enum err kv_import(struct worker *w, const struct msg_kv *m, const void *payload)
{
    struct lane *lane = w->ways->taking;
    uint64_t bytes = m->head.bytes - sizeof *m;
    if (m->lane == 0) {
        w->kv_received += bytes;
        return engine_import(w->engine, m->req, m->layer, m->layers, m->first, m->count, payload,
                             bytes);
    }
    CHECK(lane);
    w->ways->taking = NULL;
    w->kv_received += m->layers * m->count * engine_kv_shape(w->engine)->token_bytes;
    return engine_lane_take(w->engine, m->req, lane, m->layer, m->layers, m->first, m->count);
}

/* Hands on what has arrived; what is not taken is dropped. */
static void deliver(struct worker *w, struct way *y)
{
    struct ways *a = w->ways;
    struct lane *lane = y->lane;
    for (struct lane_entry *e; (e = lane_book_next(&y->book, a->table->arrived(lane))); free(e)) {
        if (e->is_end) {
            worker_on_kvend(w, y->peer, &e->end);
            continue;
        }
        a->taking = lane;
        worker_on_kv(w, y->peer, &e->kv, NULL);
        if (a->taking) a->table->take(lane, NULL);
        a->taking = NULL;
    }
}

/* -- all -------------------------------------------------------------------------------------- */

static void turn(struct worker *w, struct way *y)
{
    enum lane_state state = w->ways->table->state(y->lane);
    if (!y->sends) deliver(w, y);
    else if (state == LANE_NAMED && !y->asked) ask(w, y);
    y->ready = state == LANE_READY;
    if (state == LANE_BROKEN) way_close(w, y, true);
}

void ways_turn(struct worker *w)
{
    struct ways *a = w->ways;
    if (!a->rung) return;
    a->rung = false;
    for (struct way *y = a->way; y < a->way + LANES_MAX; y++)
        if (y->lane) turn(w, y);
}

void ways_on_lost(struct worker *w, int rank)
{
    struct way *in = way_find(w, rank, false), *out = way_find(w, rank, true);
    if (in) {
        deliver(w, in);
        lane_book_close(&in->book);   /* the requests end for a better reason */
        way_close(w, in, false);
    }
    if (out) way_close(w, out, false);
}
