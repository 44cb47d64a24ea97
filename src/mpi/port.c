/* mpi/port.c - packets, edges, and the order in which they move; see port.h.
 *
 * Two traps of the library shape this file.  A probe first matches and then makes progress, so one
 * that finds nothing may just have pulled a message in: two in a row must find nothing, and all
 * that a bell has counted must have come.  And a large message moves only while both ends poll: so
 * with one outstanding a rank naps instead of sleeping.  A small one for a rank of this host is in
 * the library's hands when MPI_Isend returns, though it may be done only when the other end has
 * read it: nobody polls for that.  (Over TCP it may still wait for its connection.)  Between ranks
 * of a host MPI would copy bulk twice more, 32 KiB at a time, with a nap of both ranks for each: so
 * that lies in an outbox, and MPI carries only where.
 */
#include "mpi/port.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"
#include "mpi/bell.h"
#include "mpi/outbox.h"
#include "mpi/shared.h"

enum {
    TAG = 1,
    SENDING_MAX = 16,                 /* posted and not finished, per rank and kind  */
    BULK_SENDING_MAX = 4,             /* the same, where port_has_room says no       */
    RECEIVING_MAX = 256,              /* matched and not complete, over all ranks    */
    SPARES_MAX = 8,                   /* bulk packets kept                           */
    SMALL_BYTES = 4000,               /* with the library's head at most 4096: eager everywhere */
    EPOCH = 1,
};
#define NAP_FIRST_NS UINT64_C(30000)
#define NAP_LATER_NS UINT64_C(250000)
#define NAP_LONG_NS UINT64_C(5000000)
#define NUDGE_NS UINT64_C(5000000)

struct packet {
    struct packet *next;
    MPI_Request request;
    uint32_t bytes;
    bool bulk, polled;
    _Alignas(16) uint8_t data[];
};

struct list { struct packet *first, *last; uint32_t count; };

struct edge {                         /* one rank, one kind */
    struct list queued, sending;      /* out */
    struct list receiving;            /* in, in the order they were matched */
    uint32_t sent, matched, rung, delivered;
};

struct peer {
    struct edge edges[PORT_KINDS];
    struct inbox inbox;               /* what it writes for us */
    int reader;                       /* of our outbox; -1: it does not see that */
    uint64_t heard_ns;
    bool dead;
    bool unrung;                      /* something was started that it was not rung for */
};

struct port {
    const struct job *job;
    struct port_sink sink;
    void (*died)(int rank);           /* before there is a sink */
    struct bells *bells;
    MPI_Comm comms[PORT_KINDS];
    struct peer *peers;
    struct outbox *outbox;            /* NULL: none sees what we could share */
    struct packet *spares;
    uint32_t spare_count;
    /* Over all living ranks; polled: of those being sent, what takes the polling of both ends. */
    uint32_t queued_count, sending_count, polled_count, receiving_count;
    uint64_t busy_since_ns, nudged_ns;
    struct port_stats stats;
};

/* -- packets ---------------------------------------------------------------------------------- */

static struct packet *packet_make(struct port *p, size_t bytes)
{
    CHECK(bytes <= KV_MSG_BYTES_MAX);
    bool bulk = bytes > 65536 && bytes <= PORT_BULK_BYTES;
    struct packet *k = bulk ? p->spares : NULL;
    if (k) {
        p->spares = k->next;
        p->spare_count--;
    } else {
        k = malloc(sizeof *k + (bulk ? PORT_BULK_BYTES : bytes));
        if (!k) die("out of memory for a message of %zu bytes", bytes);
    }
    k->next = NULL;
    k->request = MPI_REQUEST_NULL;
    k->bytes = (uint32_t)bytes;
    k->bulk = bulk;
    return k;
}

static void packet_free(struct port *p, struct packet *k)
{
    if (!k->bulk || p->spare_count == SPARES_MAX) {
        free(k);
        return;
    }
    k->next = p->spares;
    p->spares = k;
    p->spare_count++;
}

static void list_add(struct list *l, struct packet *k)
{
    if (l->last) l->last->next = k;
    else l->first = k;
    l->last = k;
    l->count++;
}

static struct packet *list_take(struct list *l)
{
    struct packet *k = l->first;
    l->first = k->next;
    if (!l->first) l->last = NULL;
    l->count--;
    k->next = NULL;
    return k;
}

/* -- sending ---------------------------------------------------------------------------------- */

static void ring(struct port *p, int to)
{
    struct peer *peer = &p->peers[to];
    peer->unrung = false;
    bell_ring(p->bells, to, (uint32_t[2]){ peer->edges[0].sent, peer->edges[1].sent });
}

static bool same_host(const struct port *p, int rank)
{
    return p->job->host_of[rank] == p->job->host_of[p->job->rank];
}

static bool start_queued(struct port *p, int to, enum port_kind kind)
{
    struct edge *e = &p->peers[to].edges[kind];
    bool started = false;
    while (e->queued.count && e->sending.count < SENDING_MAX) {
        struct packet *k = list_take(&e->queued);
        p->queued_count--;
        struct msg_head *h = (void *)k->data;
        h->seq = ++e->sent;
        h->epoch = EPOCH;
        int rc = MPI_Isend(k->data, (int)k->bytes, MPI_BYTE, to, TAG, p->comms[kind], &k->request);
        if (rc != MPI_SUCCESS) { /* the bell's end will tell */
            log_warn("send to=%d failed mpi_error=%d", to, rc);
            packet_free(p, k);
            return started;
        }
        list_add(&e->sending, k);
        p->sending_count++;
        k->polled = k->bytes > SMALL_BYTES || !same_host(p, to);
        p->polled_count += k->polled;
        started = true;
    }
    return started;
}

static void finish_sends(struct port *p, struct edge *e)
{
    while (e->sending.count) {
        int done = 0;
        if (MPI_Test(&e->sending.first->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
        if (!done) return;
        struct packet *k = list_take(&e->sending);
        p->sending_count--;
        p->polled_count -= k->polled;
        packet_free(p, k);
    }
}

static void *begin(void *message, enum msg_type type, size_t bytes)
{
    memset(message, 0, bytes < 4096 ? bytes : 4096); /* every struct, not every payload */
    msg_head_set(message, type, bytes);
    return message;
}

void *port_message(struct port *p, enum msg_type type, size_t bytes)
{
    return begin(packet_make(p, bytes)->data, type, bytes);
}

void *port_bulk(struct port *p, int to, enum msg_type type, size_t bytes)
{
    const struct peer *peer = &p->peers[to];
    bool slot = !peer->dead && peer->reader >= 0 && bytes <= PORT_BULK_BYTES;
    void *place = slot ? outbox_take(p->outbox, (uint32_t)peer->reader) : NULL;
    return place ? begin(place, type, bytes) : port_message(p, type, bytes);
}

/* What goes over MPI for a message that may lie in the outbox. */
static struct packet *packet_of(struct port *p, void *message)
{
    int slot = p->outbox ? outbox_slot(p->outbox, message) : -1;
    if (slot >= 0) {
        uint32_t bytes = ((const struct msg_head *)message)->bytes;
        struct msg_slot *m = port_message(p, MSG_SLOT, sizeof *m);
        m->slot = (uint32_t)slot;
        m->bytes = bytes;
        p->stats.sent += bytes;
        message = m;
    }
    return (void *)((uint8_t *)message - offsetof(struct packet, data));
}

static void post(struct port *p, int to, enum port_kind kind, void *message)
{
    CHECK(to >= 0 && to < p->job->size && to != p->job->rank);
    struct packet *k = packet_of(p, message);
    struct peer *peer = &p->peers[to];
    if (peer->dead) {
        packet_free(p, k);
        return;
    }
    p->stats.sent += k->bytes;
    list_add(&peer->edges[kind].queued, k);
    p->queued_count++;
    if (start_queued(p, to, kind)) peer->unrung = true;
}

void port_send(struct port *p, int to, enum port_kind kind, void *message)
{
    post(p, to, kind, message);
    if (p->peers[to].unrung) ring(p, to);
    finish_sends(p, &p->peers[to].edges[kind]); /* most are done at once: no nap for them */
}

void port_send_more(struct port *p, int to, enum port_kind kind, void *message)
{
    post(p, to, kind, message);
}

void port_ring(struct port *p, int to)
{
    struct peer *peer = &p->peers[to];
    if (peer->dead) return;
    if (peer->unrung) ring(p, to);
    for (int kind = 0; kind < PORT_KINDS; kind++) finish_sends(p, &peer->edges[kind]);
}

void port_send_copy(struct port *p, int to, const void *message, enum msg_type type, size_t bytes)
{
    void *m = port_message(p, type, bytes);
    memcpy((uint8_t *)m + sizeof(struct msg_head),
           (const uint8_t *)message + sizeof(struct msg_head), bytes - sizeof(struct msg_head));
    port_send(p, to, PORT_CONTROL, m);
}

static bool bulk_full(const struct edge *e)
{
    return e->queued.count + e->sending.count >= BULK_SENDING_MAX;
}

bool port_has_room(struct port *p, int to)
{
    struct peer *peer = &p->peers[to];
    struct edge *e = &peer->edges[PORT_DATA];
    if (peer->dead) return true;
    if (bulk_full(e)) {
        /* Sends of places are small, so not polled: it says when it has read, or has already. */
        if (peer->reader >= 0) outbox_ask(p->outbox, (uint32_t)peer->reader);
        finish_sends(p, e);
        if (bulk_full(e)) return false;
    }
    return peer->reader < 0 || outbox_has_room(p->outbox, (uint32_t)peer->reader);
}

bool port_sent_all(const struct port *p)
{
    return p->sending_count == 0 && p->queued_count == 0;
}

/* -- receiving -------------------------------------------------------------------------------- */

static bool match_one(struct port *p, enum port_kind kind)
{
    if (p->receiving_count >= RECEIVING_MAX) return false;
    int found = 0, bytes = 0;
    MPI_Message message;
    MPI_Status status;
    int rc = MPI_Improbe(MPI_ANY_SOURCE, TAG, p->comms[kind], &found, &message, &status);
    if (rc != MPI_SUCCESS || !found) return false;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    CHECK(bytes >= 0 && bytes <= KV_MSG_BYTES_MAX);
    struct peer *peer = &p->peers[status.MPI_SOURCE];
    struct packet *k = packet_make(p, (size_t)bytes);
    rc = MPI_Imrecv(k->data, bytes, MPI_BYTE, &message, &k->request);
    if (rc != MPI_SUCCESS || peer->dead) return true; /* abandoned, memory and all */
    peer->edges[kind].matched++;
    list_add(&peer->edges[kind].receiving, k);
    p->receiving_count++;
    return true;
}

/* A message that lies in the peer's outbox; false: there is no such, and the peer is given up.
 * What names a place counts as read, whatever lay there. */
static bool deliver_slot(struct port *p, int from, const struct msg_slot *m)
{
    const struct inbox *in = &p->peers[from].inbox;
    struct msg_kv head;
    const void *payload;
    if (!m || !in->at || !p->sink.kv) return false;
    bool fits = inbox_look(in, m->slot, m->bytes, &head, &payload);
    if (fits) {
        p->stats.received += m->bytes;
        p->sink.kv(p->sink.ctx, from, &head, payload);
    }
    if (inbox_done(in)) ring(p, from);
    return fits;
}

static bool deliver_data(struct port *p, int from, const void *data, size_t bytes)
{
    enum msg_type type = msg_type_of(data, bytes);
    if (type == MSG_SLOT) return deliver_slot(p, from, msg_as_slot(data, bytes));
    if (type) p->sink.message(p->sink.ctx, from, data, bytes);
    return type != 0;
}

static void deliver(struct port *p, int from, struct edge *e, struct packet *k)
{
    struct peer *peer = &p->peers[from];
    const struct msg_head *h = (void *)k->data;
    bool fits = k->bytes >= sizeof *h && h->seq == ++e->delivered && h->epoch == EPOCH;
    peer->heard_ns = clock_now_ns();
    p->stats.received += k->bytes;
    if (!fits || !deliver_data(p, from, k->data, k->bytes)) {
        p->stats.refused++;
        log_error("message from=%d breaks the protocol bytes=%u", from, k->bytes);
        p->sink.ended(p->sink.ctx, from);
    }
    packet_free(p, k);
}

static void deliver_complete(struct port *p, int from, struct edge *e)
{
    while (e->receiving.count) {
        int done = 0;
        if (MPI_Test(&e->receiving.first->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return;
        if (!done) return;
        struct packet *k = list_take(&e->receiving);
        p->receiving_count--;
        deliver(p, from, e, k);
    }
}

static void on_rung(void *ctx, int rank, const uint32_t counts[2])
{
    struct port *p = ctx;
    struct peer *peer = &p->peers[rank];
    peer->heard_ns = clock_now_ns();
    for (int kind = 0; kind < PORT_KINDS; kind++)
        if ((int32_t)(counts[kind] - peer->edges[kind].rung) > 0)
            peer->edges[kind].rung = counts[kind];
}

static void on_ended(void *ctx, int rank)
{
    struct port *p = ctx;
    if (p->sink.ended) p->sink.ended(p->sink.ctx, rank);
    else p->died(rank);
}

void port_poll(struct port *p)
{
    for (int misses = 0; misses < 2;) {
        bool got = match_one(p, PORT_CONTROL);
        if (match_one(p, PORT_DATA)) got = true;
        misses = got ? 0 : misses + 1;
    }
    for (int i = 0; i < p->job->size; i++) {
        for (int kind = 0; kind < PORT_KINDS; kind++) {
            struct edge *e = &p->peers[i].edges[kind];
            if (e->receiving.count) deliver_complete(p, i, e);
            if (e->sending.count) finish_sends(p, e);
            if (e->queued.count && start_queued(p, i, (enum port_kind)kind)) ring(p, i);
        }
    }
}

/* A rung message that does not come may be stuck at its sender, which sleeps: wake it. */
static bool waits_for_rung(struct port *p, uint64_t now_ns)
{
    bool due = false;
    bool nudge = now_ns - p->nudged_ns > NUDGE_NS && p->busy_since_ns &&
                 now_ns - p->busy_since_ns > NUDGE_NS;
    for (int i = 0; i < p->job->size; i++) {
        const struct peer *peer = &p->peers[i];
        if (peer->dead) continue;
        bool here = false;
        for (int kind = 0; kind < PORT_KINDS; kind++)
            if ((int32_t)(peer->edges[kind].rung - peer->edges[kind].matched) > 0) here = true;
        if (here && nudge) ring(p, i);
        due = due || here;
    }
    if (due && nudge) p->nudged_ns = now_ns;
    return due;
}

uint64_t port_nap_ns(struct port *p, uint64_t now_ns)
{
    bool due = waits_for_rung(p, now_ns);
    if (!due && p->sending_count == 0 && p->receiving_count == 0) {
        p->busy_since_ns = 0;
        return UINT64_MAX;
    }
    if (!due && p->queued_count + p->polled_count + p->receiving_count == 0) {
        p->busy_since_ns = 0;
        return NAP_LONG_NS; /* the library may have been full */
    }
    if (p->busy_since_ns == 0) p->busy_since_ns = now_ns;
    uint64_t busy = now_ns - p->busy_since_ns;
    return busy < 2 * NS_PER_MS ? NAP_FIRST_NS : busy < 50 * NS_PER_MS ? NAP_LATER_NS : NAP_LONG_NS;
}

/* -- the dead --------------------------------------------------------------------------------- */

void port_abandon(struct port *p, int rank)
{
    struct peer *peer = &p->peers[rank];
    if (peer->dead) return;
    peer->dead = true;
    for (int kind = 0; kind < PORT_KINDS; kind++) {
        struct edge *e = &peer->edges[kind];
        for (struct packet *k = e->sending.first; k; k = k->next)
            p->polled_count -= k->polled;
        p->queued_count -= e->queued.count;
        p->sending_count -= e->sending.count;
        p->receiving_count -= e->receiving.count;
        e->sending = e->receiving = (struct list){ 0 }; /* MPI may still touch these: never freed */
        while (e->queued.count) packet_free(p, list_take(&e->queued));
    }
    if (peer->reader >= 0) outbox_forget(p->outbox, (uint32_t)peer->reader);
    bell_cut(p->bells, rank);
}

bool port_is_dead(const struct port *p, int rank)
{
    return p->peers[rank].dead;
}

uint64_t port_heard_ns(const struct port *p, int rank)
{
    return p->peers[rank].heard_ns;
}

void port_stats(const struct port *p, struct port_stats *out)
{
    *out = p->stats;
}

void port_serve(struct port *p, const struct port_sink *sink)
{
    p->sink = *sink;
}

/* Where the host's workers see each other's memory they write bulk there; else MPI carries it. */
static void open_outbox(struct port *p)
{
    const struct job *j = p->job;
    uint32_t readers = (uint32_t)j->host_size;
    struct shared_with *with = mem_array(readers, sizeof *with);
    int *ranks = mem_array(readers, sizeof *ranks);
    size_t bytes = outbox_bytes(readers, PORT_BULK_BYTES);
    void *at = shared_each(j, "rankserve-outbox", j->rank == 0 ? 0 : bytes, with);
    MPI_Allgather(&j->rank, 1, MPI_INT, ranks, 1, MPI_INT, j->host_comm);
    if (at) p->outbox = outbox_open(at, readers, PORT_BULK_BYTES);
    for (uint32_t i = 0; i < readers; i++) {
        struct peer *peer = &p->peers[ranks[i]];
        if (p->outbox && with[i].sees_ours) peer->reader = (int)i;
        peer->inbox = (struct inbox){ .at = with[i].theirs, .readers = readers,
                                      .reader = (uint32_t)j->host_rank,
                                      .slot_bytes = PORT_BULK_BYTES };
    }
    free(ranks);
    free(with);
}

enum err port_open(struct port **out, const struct job *j, void (*died)(int rank), struct why *why)
{
    struct port *p = mem_alloc(sizeof *p);
    *p = (struct port){ .job = j, .died = died, .comms = { j->control, j->data } };
    p->peers = mem_array((size_t)j->size, sizeof *p->peers);
    for (int i = 0; i < j->size; i++) p->peers[i].reader = -1;
    open_outbox(p);
    struct bell_sink bell = { .ctx = p, .rung = on_rung, .ended = on_ended };
    *out = p;
    return bells_open(&p->bells, j, j->loop, &bell, why);
}
