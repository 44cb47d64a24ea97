/* mpi/worker_pull.c - a prefix's KV from a worker that holds it, instead of computing it again.
 *
 *   here:  the blocks are reserved, PULL says what is wanted, KV messages fill it, KVEND ends it.
 *          Then the blocks are stored in the cache, and the sequence, which waited for that, finds
 *          them there.  When KVEND is late the sequence starts without it: it computes, and takes
 *          over what arrives meanwhile (engine: a prompt looks again at each chunk).
 *   there: the cached blocks are held while they are sent; what is not there any more is not sent.
 *
 * A pull goes by the request's number with PULL_BIT in its attempt.  Ids go along, and both sides
 * compare them with their blocks, so nothing but this very prefix can come in.  Every end (KVEND,
 * late, cancelled, peer lost) drops what was reserved or held.
 */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "mpi/worker.h"

/* A pull that is so many times later than expected is given up. */
enum { GIVE_UP = 20 };

struct pull {
    struct pull *next;
    struct req_id id;
    struct wseq *seq;
    struct msg_seq *waits;            /* the sequence's message; NULL: it has started */
    int from;
    uint64_t late_ns, over_ns;
};

struct export {
    struct export *next;
    struct req_id id;
    int to;
    uint32_t begin, end;              /* tokens */
    uint32_t layer, first;            /* next to be sent */
};

static struct req_id pull_id(struct req_id req)
{
    req.attempt |= PULL_BIT;
    return req;
}

/* -- here ------------------------------------------------------------------------------------- */

static void unlink_pull(struct worker *w, struct pull *p)
{
    struct pull **at = &w->pulls;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    p->seq->pull = NULL;
    free(p->waits);
    free(p);
}

/* The sequence starts, with what is in the cache by now. */
static void start_waiting(struct worker *w, struct pull *p)
{
    struct msg_seq *m = p->waits;
    if (!m) return;
    p->waits = NULL;
    worker_admit(w, p->seq, m);       /* if refused, the pull is closed with it */
    free(m);
}

static void pull_over(struct worker *w, struct pull *p)
{
    struct wseq *s = p->seq;
    struct msg_seq *m = p->waits;
    p->waits = NULL;
    engine_drop(w->engine, p->id);
    unlink_pull(w, p);
    if (m) worker_admit(w, s, m);
    free(m);
}

void pull_close(struct worker *w, struct wseq *s)
{
    engine_drop(w->engine, s->pull->id);
    unlink_pull(w, s->pull);
}

static bool reserve(struct worker *w, const struct msg_seq *m, uint32_t *held)
{
    struct seq_spec spec = {
        .req = pull_id(m->req), .mode = SEQ_IMPORT, .ids = msg_seq_ids(m),
        .id_count = m->pull_tokens, .prompt_count = m->pull_tokens, .params = m->params,
        .cache_salt = m->cache_salt,
    };
    spec.params.max_tokens = 1;
    spec.params.bias_count = 0;
    return engine_add(w->engine, &spec, held) == OK;
}

static void ask(struct worker *w, const struct msg_seq *m, uint32_t held)
{
    uint32_t count = m->pull_tokens + 1; /* a prefix that can be found ends before the last id */
    struct msg_pull *ask = port_message(w->port, MSG_PULL, msg_pull_bytes(count));
    ask->req = pull_id(m->req);
    ask->cache_salt = m->cache_salt;
    ask->held_tokens = held;
    ask->id_count = count;
    memcpy(ask + 1, msg_seq_ids(m), count * sizeof(int32_t));
    port_send(w->port, m->pull_from, PORT_CONTROL, ask);
}

bool pull_open(struct worker *w, struct wseq *s, const struct msg_seq *m)
{
    uint32_t held = 0;
    bool fits = m->pull_tokens > 0 && m->pull_from > 0 && m->pull_from < w->job->size &&
                m->pull_from != w->job->rank && !port_is_dead(w->port, m->pull_from);
    if (!fits || !reserve(w, m, &held)) return false;
    if (held + engine_kv_shape(w->engine)->block_tokens >= m->pull_tokens) {
        engine_drop(w->engine, pull_id(m->req)); /* all but the last block is here already */
        return false;
    }
    uint64_t now = clock_now_ns(), patience = m->pull_late_us * UINT64_C(1000);
    struct pull *p = mem_alloc(sizeof *p);
    *p = (struct pull){ .next = w->pulls, .id = pull_id(m->req), .seq = s, .from = m->pull_from,
                        .late_ns = now + patience, .over_ns = now + GIVE_UP * patience };
    p->waits = mem_alloc(m->head.bytes);
    memcpy(p->waits, m, m->head.bytes);
    w->pulls = s->pull = p;
    ask(w, m, held);
    return true;
}

static struct pull *pulling(struct worker *w, struct req_id id, int from)
{
    struct pull *p = w->pulls;
    while (p && !(req_id_equal(p->id, id) && p->from == from)) p = p->next;
    if (!p) w->stale++;               /* it was too late, or cancelled */
    return p;
}

void pull_on_kv(struct worker *w, int from, const struct msg_kv *m, const void *payload)
{
    struct pull *p = pulling(w, m->req, from);
    if (!p) return;
    enum err e = kv_import(w, m, payload);
    if (e == OK) return;
    log_error("pull req=%u.%u from=%d failed err=\"%s\"", m->req.slot, m->req.generation, from,
              err_text(e));
    pull_over(w, p);
}

void pull_on_kvend(struct worker *w, int from, const struct msg_kvend *m)
{
    struct pull *p = pulling(w, m->req, from);
    if (!p) return;
    uint32_t kept = engine_prefix_keep(w->engine, m->req);
    log_info("pulled req=%u.%u from=%d tokens=%u%s", m->req.slot, m->req.generation, from, kept,
             p->waits ? "" : " late");
    pull_over(w, p);
}

void pulls_turn(struct worker *w, uint64_t now_ns)
{
    for (struct pull *p = w->pulls, *next; p; p = next) {
        next = p->next;
        if (p->waits && now_ns >= p->late_ns) {
            w->pulls_late++;
            log_info("pull req=%u.%u from=%d is late: computing", p->id.slot, p->id.generation,
                     p->from);
            start_waiting(w, p);
            return;                   /* it may have closed any pull: the rest next time */
        }
        if (now_ns >= p->over_ns) pull_over(w, p);
    }
}

uint64_t pulls_wake_ns(const struct worker *w)
{
    uint64_t wake = UINT64_MAX;
    for (const struct pull *p = w->pulls; p; p = p->next) {
        uint64_t at = p->waits ? p->late_ns : p->over_ns;
        if (at < wake) wake = at;
    }
    return wake;
}

/* -- there ------------------------------------------------------------------------------------ */

static void say_end(struct worker *w, struct req_id id, int to)
{
    struct msg_kvend *m = port_message(w->port, MSG_KVEND, sizeof *m);
    m->req = id;
    port_send(w->port, to, PORT_DATA, m);
}

void worker_on_pull(struct worker *w, int from, const struct msg_pull *m)
{
    uint32_t tokens = 0;
    struct seq_spec spec = {
        .req = m->req, .mode = SEQ_PREFILL, .ids = msg_pull_ids(m), .id_count = m->id_count,
        .prompt_count = m->id_count, .cache_salt = m->cache_salt,
        .params = { .max_tokens = 1, .repetition_penalty = 1, .top_p = 1 },
    };
    enum err e = engine_prefix_hold(w->engine, &spec, &tokens);
    if (e == OK && tokens > m->held_tokens) {
        struct export *x = mem_alloc(sizeof *x);
        *x = (struct export){ .next = w->exports, .id = m->req, .to = from,
                              .begin = m->held_tokens, .first = m->held_tokens, .end = tokens };
        w->exports = x;
        return;
    }
    if (e == OK) engine_drop(w->engine, m->req);
    say_end(w, m->req, from);
}

/* As many layers as a message takes; a layer that is too long for one goes in pieces. */
static void send_some(struct worker *w, struct export *x)
{
    const struct kv_shape *shape = engine_kv_shape(w->engine);
    uint64_t most = kv_room_bytes(w, x->to) / shape->token_bytes;
    if (most == 0) most = 1;
    uint32_t count = x->end - x->first, layers = 1;
    if (count > most) count = (uint32_t)most;
    if (x->first == x->begin && count == x->end - x->begin) layers = (uint32_t)(most / count);
    if (layers > shape->layers - x->layer) layers = shape->layers - x->layer;
    kv_send(w, x->to, &(struct msg_kv){ .req = x->id, .layer = x->layer, .layers = layers,
                                        .first = x->first, .count = count });
    x->first += count;
    if (x->first < x->end) return;
    x->layer += layers;
    x->first = x->begin;
}

static void export_close(struct worker *w, struct export *x)
{
    struct export **at = &w->exports;
    while (*at != x) at = &(*at)->next;
    *at = x->next;
    engine_drop(w->engine, x->id);
    free(x);
}

void exports_turn(struct worker *w)
{
    uint32_t layers = engine_kv_shape(w->engine)->layers;
    for (struct export *x = w->exports, *next; x; x = next) {
        next = x->next;
        bool room = true;
        while (x->layer < layers && (room = kv_has_room(w, x->to))) send_some(w, x);
        link_meter_look(&w->link, x->to, !room, clock_now_ns());
        if (x->layer < layers) continue;
        say_end(w, x->id, x->to);
        export_close(w, x);
    }
}

void pulls_on_lost(struct worker *w, int rank)
{
    for (struct export *x = w->exports, *next; x; x = next) {
        next = x->next;
        if (x->to == rank) export_close(w, x);
    }
    for (struct pull *p = w->pulls; p;) {
        bool hit = p->from == rank;
        struct pull *next = p->next;
        if (hit) pull_over(w, p);
        p = hit ? w->pulls : next;
    }
}
