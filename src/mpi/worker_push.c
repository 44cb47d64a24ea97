/* mpi/worker_push.c - KV of a prompt goes to the decode rank layer by layer, while later layers and
 * later chunks compute.
 *
 * For each layer it remembers how many tokens are sent; the engine says how many are complete.
 * Neighbouring layers that stand at the same two numbers go in one message.  Bytes are copied out
 * of the pool into the message, so a block is never touched by a transfer after engine_drop.
 * A push begins with READY, and ends with KVEND behind the last byte; then the sequence goes.  When
 * the first token was also the last, nothing more is sent.  A peer that for READY_NS says no READY
 * costs this attempt: another one may have a better peer.  (One that is dead, or takes nothing, is
 * rank 0's to find out.)
 */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "mpi/worker.h"

#define READY_NS (10 * NS_PER_S)

/* RANKSERVE_FAKE_NO_READY=MS, for tests: first attempts get no READY, and wait for so long. */
static uint64_t patience_ns(void)
{
    const char *fake = getenv("RANKSERVE_FAKE_NO_READY");
    return fake ? strtoull(fake, NULL, 10) * NS_PER_MS : READY_NS;
}

bool push_ready_withheld(struct req_id req)
{
    return req.attempt == 1 && getenv("RANKSERVE_FAKE_NO_READY");
}

struct push {
    struct push *next;
    uint64_t since_ns;
    struct wseq *seq;
    uint32_t total;                   /* tokens whose KV must arrive */
    uint32_t layers;
    bool ready, token_known;
    bool over;                        /* the first token was the last: rank 0 tells decode */
    int32_t first_token;
    uint32_t sent[];                  /* by layer */
};

void push_open(struct worker *w, struct wseq *s, uint32_t total)
{
    uint32_t layers = engine_kv_shape(w->engine)->layers;
    struct push *p = mem_alloc(sizeof *p + layers * sizeof p->sent[0]);
    p->seq = s;
    p->total = total;
    p->layers = layers;
    p->since_ns = clock_now_ns();
    struct push **at = &w->pushes;
    while (*at) at = &(*at)->next;
    *at = p;
    s->push = p;
    kv_prepare(w, s->peer);
}

void push_close(struct worker *w, struct wseq *s)
{
    struct push **at = &w->pushes;
    while (*at != s->push) at = &(*at)->next;
    *at = s->push->next;
    free(s->push);
    s->push = NULL;
}

void push_ready(struct wseq *s, uint32_t held)
{
    struct push *p = s->push;
    if (p->ready || held > p->total) return;
    p->ready = true;
    for (uint32_t i = 0; i < p->layers; i++) p->sent[i] = held;
}

void push_first_token(struct wseq *s, const struct token_record *record)
{
    s->push->token_known = true;
    s->push->first_token = record->id;
    s->push->over = record->finish != FINISH_NONE;
}

/* The next range to send: *layers is 0 when there is none. */
static void next_range(struct worker *w, const struct push *p, uint32_t *layer,
                       uint32_t *layers, uint32_t *count)
{
    uint64_t token_bytes = engine_kv_shape(w->engine)->token_bytes;
    uint64_t room = kv_room_bytes(w, p->seq->peer);
    *layers = 0;
    for (uint32_t i = 0; i < p->layers; i++) {
        uint32_t have = engine_kv_tokens(w->engine, p->seq->req, i);
        if (have > p->total) have = p->total;
        if (*layers == 0) {
            if (have <= p->sent[i]) continue;
            *layer = i;
            *layers = 1;
            *count = have - p->sent[i];
            if (*count > room / token_bytes) *count = (uint32_t)(room / token_bytes);
            if (*count == 0) *count = 1;
        } else {
            bool same = p->sent[i] == p->sent[*layer] && have >= p->sent[i] + *count;
            if (!same || (*layers + 1) * token_bytes * *count > room) return;
            ++*layers;
        }
    }
}

static bool send_range(struct worker *w, struct push *p)
{
    uint32_t layer = 0, layers, count = 0;
    next_range(w, p, &layer, &layers, &count);
    if (layers == 0) return false;
    kv_send(w, p->seq->peer, &(struct msg_kv){
        .req = p->seq->req, .layer = layer, .layers = layers, .first = p->sent[layer],
        .count = count });
    for (uint32_t i = layer; i < layer + layers; i++) p->sent[i] += count;
    return true;
}

static void send_all(struct worker *w, struct push *p)
{
    bool room;
    while ((room = kv_has_room(w, p->seq->peer)) && send_range(w, p)) { }
    link_meter_look(&w->link, p->seq->peer, !room, clock_now_ns());
}

static bool sent_all(const struct push *p)
{
    for (uint32_t i = 0; i < p->layers; i++)
        if (p->sent[i] < p->total) return false;
    return p->token_known;
}

static void await_ready(struct worker *w, struct push *p)
{
    if (clock_now_ns() - p->since_ns < patience_ns()) return;
    log_warn("push req=%u.%u to=%d: no READY in %.1f s", p->seq->req.slot, p->seq->req.generation,
             p->seq->peer, (double)patience_ns() / NS_PER_S);
    worker_give_up(w, p->seq, ERR_TIMEOUT);
}

void push_all(struct worker *w)
{
    for (struct push *p = w->pushes, *next; p; p = next) {
        next = p->next;
        if (p->over) {
            worker_end(w, p->seq); /* not from inside the engine's call */
            continue;
        }
        if (!p->ready) {
            await_ready(w, p);
            continue;
        }
        send_all(w, p);
        if (!sent_all(p)) continue;
        struct msg_kvend *m = port_message(w->port, MSG_KVEND, sizeof *m);
        m->req = p->seq->req;
        m->first_token = p->first_token;
        port_send(w->port, p->seq->peer, PORT_DATA, m); /* behind the KV, on the same edge */
        worker_end(w, p->seq);
    }
}
