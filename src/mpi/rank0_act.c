/* mpi/rank0_act.c - between the scheduler, which only decides, and everything that acts. */
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/mem.h"
#include "mpi/rank0.h"

/* A pull may take so many times what is expected, and so much more, before it counts as late. */
enum { PULL_LATE = 3, PULL_LATE_US = 20000 };

void act_event(struct rank0 *z, struct sched_event e)
{
    if (z->event_count == z->event_room) {
        z->event_room = z->event_room ? 2 * z->event_room : SCHED_EVENTS_MAX;
        z->events = mem_resize(z->events, z->event_room, sizeof *z->events);
    }
    z->events[z->event_count++] = e;
}

/* -- to workers ------------------------------------------------------------------------------- */

static void send_seq(struct rank0 *z, const struct request *r, enum msg_type type, int to, int peer,
                     const struct sched_action *a)
{
    size_t bytes = msg_seq_bytes(r->params.bias_count, r->id_count);
    struct msg_seq *m = port_message(z->port, type, bytes);
    m->req = r->id;
    m->cache_salt = r->cache_salt;
    m->peer = peer;
    m->priority = r->priority;
    m->prompt_count = r->prompt_count;
    m->id_count = r->id_count;
    m->params = r->params;
    if (a->pull_tokens && type != MSG_EXPECT) {
        m->pull_from = a->pull_from;
        m->pull_tokens = a->pull_tokens;
        m->pull_late_us = PULL_LATE_US + (uint32_t)(PULL_LATE * a->pull_ns / 1000);
    }
    /* Scores that have all passed need no second computing: the prompt may come from the cache. */
    if (r->score_next >= r->prompt_count) m->params.flags &= (uint16_t)~SAMPLING_PROMPT_LOGPROBS;
    if (r->bias) memcpy(m + 1, r->bias, r->params.bias_count * sizeof *r->bias);
    memcpy((char *)(m + 1) + r->params.bias_count * sizeof *r->bias, r->ids,
           r->id_count * sizeof *r->ids);
    port_send(z->port, to, PORT_CONTROL, m);
}

void act_cancel(struct rank0 *z, const struct request *r, int worker)
{
    struct msg_req m = { .req = r->id };
    port_send_copy(z->port, worker, &m, MSG_CANCEL, sizeof m);
}

static void log_placed(const struct request *r, const struct sched_action *a)
{
    log_info("placed req=%u.%u attempt=%u prefill=%d decode=%d prompt=%u emitted=%u", r->id.slot,
             r->id.generation, r->id.attempt, r->prefill, r->decode, r->prompt_count,
             r->id_count - r->prompt_count);
    if (a->pull_tokens)
        log_info("pull req=%u.%u from=%d tokens=%u expected_ms=%.1f", r->id.slot, r->id.generation,
                 a->pull_from, a->pull_tokens, (double)a->pull_ns / 1e6);
}

static void place(struct rank0 *z, struct request *r, const struct sched_action *a)
{
    bool alone = a->type == ACT_RUN;
    request_restart(r, a->req, alone ? a->worker : a->prefill, alone ? a->worker : a->decode);
    r->cached_most = a->cached_most;
    if (alone) {
        send_seq(z, r, MSG_RUN, a->worker, -1, a);
    } else {
        send_seq(z, r, MSG_EXPECT, a->decode, a->prefill, a);
        send_seq(z, r, MSG_PREFILL, a->prefill, a->decode, a);
    }
    log_placed(r, a);
}

/* -- the log --------------------------------------------------------------------------------- */

void lines_write(struct rank0 *z)
{
    for (const struct line *l = z->lines; l < z->lines + z->line_count; l++) {
        double ms = (double)l->ns / 1e6;
        if (l->first)
            log_info("first req=%u.%u ttft_ms=%.1f cached=%u/%u", l->req.slot, l->req.generation,
                     ms, l->cached, l->prompt);
        else
            log_info("finished req=%u.%u code=%d finish=%d output=%u ms=%.1f", l->req.slot,
                     l->req.generation, l->code, l->finish, l->output, ms);
    }
    z->line_count = 0;
}

void lines_add(struct rank0 *z, const struct line *l)
{
    if (z->line_count == LINES_MAX) lines_write(z);
    z->lines[z->line_count++] = *l;
}

/* -- to gateways ------------------------------------------------------------------------------ */

void act_end(struct rank0 *z, struct request *r, enum link_code code, enum finish finish,
             uint32_t retry_after_s)
{
    struct link_end m = {
        .code = (uint16_t)code, .finish = (uint16_t)finish, .retry_after_s = retry_after_s,
        .prompt_tokens = r->prompt_count, .cached_tokens = r->cached,
        .output_tokens = r->id_count - r->prompt_count,
        .prefill_rank = r->prefill, .decode_rank = r->decode,
    };
    link_head_set(&m.head, LINK_END, r->stream, sizeof m);
    links_send(z, r->gateway, &m, sizeof m);
    r->ended = r->answered = true;
    if (code == LINK_OK) {
        z->reuse_possible += r->cached_most;
        z->reuse_captured += r->cached < r->cached_most ? r->cached : r->cached_most;
    }
    lines_add(z, &(struct line){ .req = r->id, .code = (uint16_t)code, .finish = (uint16_t)finish,
                                 .output = m.output_tokens,
                                 .ns = clock_now_ns() - r->arrived_ns });
}

static enum link_code link_code_of(enum sched_end end, uint16_t finish)
{
    switch (end) {
    case END_DONE: return finish == FINISH_ERROR ? LINK_WORKER_LOST : LINK_OK;
    case END_FULL: return LINK_REFUSED_FULL;
    case END_TOO_LONG: return LINK_REFUSED_LENGTH;
    case END_DRAINING: return LINK_REFUSED_STATE;
    case END_WORKER_LOST: return LINK_WORKER_LOST;
    case END_DEADLINE: return LINK_TIMEOUT;
    case END_CANCELLED: return LINK_CANCELLED;
    }
    CHECK(!"an end of a known kind");
    return LINK_WORKER_LOST;
}

static void carry_out(struct rank0 *z, const struct sched_action *a)
{
    if (a->type == ACT_ROLE) {
        roles_on_action(z, a);
        return;
    }
    struct request *r = &z->requests[a->req.slot];
    CHECK(r->used && r->id.generation == a->req.generation);
    switch (a->type) {
    case ACT_RUN:
    case ACT_PAIR: place(z, r, a); return;
    case ACT_CANCEL: act_cancel(z, r, a->worker); return;
    case ACT_END:
        act_end(z, r, link_code_of(a->end, a->finish), (enum finish)a->finish, a->retry_after_s);
        return;
    case ACT_FREE: request_free(z, r); return;
    case ACT_ROLE: return;
    }
}

void act_step(struct rank0 *z)
{
    struct sched_action actions[SCHED_ACTIONS_MAX];
    uint32_t at = 0;
    size_t count;
    do {
        uint32_t some = z->event_count - at;
        if (some > SCHED_EVENTS_MAX) some = SCHED_EVENTS_MAX;
        count = sched_step(z->sched, clock_now_ns(), z->events + at, some, actions,
                           SCHED_ACTIONS_MAX);
        at += some;
        for (size_t i = 0; i < count; i++) carry_out(z, &actions[i]);
    } while (at < z->event_count || count == SCHED_ACTIONS_MAX);
    z->event_count = 0;
}
