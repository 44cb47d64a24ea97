/* mpi/worker_seq.c - a sequence on this rank, from rank 0's message to REFUSE or GONE. */
#include <string.h>

#include "common/log.h"
#include "mpi/worker.h"

struct wseq *worker_find(struct worker *w, struct req_id req)
{
    if (req.slot >= REQ_COUNT_MAX || req.generation == 0) return NULL;
    struct wseq *s = &w->seqs[req.slot];
    return req_id_equal(s->req, req) ? s : NULL;
}

static void say_gone(struct worker *w, struct req_id req)
{
    if (w->gone_count == w->gone_room) {
        w->gone_room = w->gone_room ? 2 * w->gone_room : 64;
        w->gone = mem_resize(w->gone, w->gone_room, sizeof *w->gone);
    }
    w->gone[w->gone_count++] = req;
}

void worker_end(struct worker *w, struct wseq *s)
{
    if (s->push) push_close(w, s);
    if (s->pull) pull_close(w, s);
    if (s->in_engine) engine_drop(w->engine, s->req);
    say_gone(w, s->req);
    s->req.generation = 0;
    s->in_engine = false;
}

/* -- from rank 0 ------------------------------------------------------------------------------ */

static void refuse(struct worker *w, struct req_id req, enum err e)
{
    struct msg_refuse m = { .req = req, .err = (uint32_t)e };
    log_info("refused req=%u.%u err=\"%s\"", req.slot, req.generation, err_text(e));
    port_send_copy(w->port, 0, &m, MSG_REFUSE, sizeof m);
}

void worker_give_up(struct worker *w, struct wseq *s, enum err e)
{
    struct req_id req = s->req;
    worker_flush(w); /* its tokens come first */
    worker_end(w, s);
    w->gone_count--;
    refuse(w, req, e);
}

/* NULL: refused. */
static struct wseq *enter(struct worker *w, const struct msg_seq *m, enum seq_mode mode)
{
    struct wseq *s = &w->seqs[m->req.slot];
    if (s->req.generation) { /* rank 0 frees a slot only after GONE */
        w->stale++;
        refuse(w, m->req, ERR_STALE);
        return NULL;
    }
    s->req = m->req;
    s->mode = mode;
    s->peer = m->peer;
    s->in_engine = s->complete = false;
    return s;
}

static bool admit(struct worker *w, struct wseq *s, const struct msg_seq *m, uint32_t *held)
{
    struct seq_spec spec = {
        .req = m->req, .mode = s->mode, .ids = msg_seq_ids(m), .id_count = m->id_count,
        .prompt_count = m->prompt_count, .params = m->params, .bias = msg_seq_bias(m),
        .cache_salt = m->cache_salt, .priority = m->priority,
    };
    s->in_engine = true; /* tokens may come from inside */
    enum err e = engine_add(w->engine, &spec, held);
    if (e == OK) return true;
    if (s->push) push_close(w, s);
    if (s->pull) pull_close(w, s);
    s->req.generation = 0;
    s->in_engine = false;
    refuse(w, m->req, e);
    return false;
}

bool worker_admit(struct worker *w, struct wseq *s, const struct msg_seq *m)
{
    return admit(w, s, m, NULL);
}

void worker_on_run(struct worker *w, const struct msg_seq *m)
{
    struct wseq *s = enter(w, m, SEQ_LOCAL);
    if (s && !pull_open(w, s, m)) worker_admit(w, s, m);
}

static bool peer_fits(const struct worker *w, const struct msg_seq *m)
{
    return m->peer > 0 && m->peer < w->job->size && m->peer != w->job->rank;
}

void worker_on_expect(struct worker *w, const struct msg_seq *m)
{
    uint32_t held = 0;
    if (!peer_fits(w, m)) {
        refuse(w, m->req, ERR_FORMAT);
        return;
    }
    struct wseq *s = enter(w, m, SEQ_IMPORT);
    if (!s || !admit(w, s, m, &held)) return;
    struct msg_ready ready = { .req = m->req, .held_tokens = held };
    if (!push_ready_withheld(m->req))
        port_send_copy(w->port, m->peer, &ready, MSG_READY, sizeof ready);
    port_send_copy(w->port, 0, &ready, MSG_READY, sizeof ready);
}

void worker_on_prefill(struct worker *w, const struct msg_seq *m)
{
    if (!peer_fits(w, m)) {
        refuse(w, m->req, ERR_FORMAT);
        return;
    }
    struct wseq *s = enter(w, m, SEQ_PREFILL);
    if (!s) return;
    push_open(w, s, m->id_count);
    if (req_id_equal(s->ready, s->req)) push_ready(s, s->ready_held);
    s->ready.generation = 0;
    if (!pull_open(w, s, m)) worker_admit(w, s, m);
}

void worker_on_cancel(struct worker *w, struct req_id req)
{
    struct wseq *s = worker_find(w, req);
    if (s) worker_end(w, s); /* else it has gone by itself, and said so */
}

void worker_on_lost(struct worker *w, int rank)
{
    w->rank_lost = true;
    port_abandon(w->port, rank);
    ways_on_lost(w, rank);
    pulls_on_lost(w, rank);
    for (int i = 0; i < REQ_COUNT_MAX; i++) {
        struct wseq *s = &w->seqs[i];
        if (s->req.generation == 0 || s->peer != rank) continue;
        if (s->mode == SEQ_PREFILL || (s->mode == SEQ_IMPORT && !s->complete)) worker_end(w, s);
    }
}

/* -- from the other rank of a pair ------------------------------------------------------------ */

/* READYs of one slot come over several edges, in any order. */
static bool is_newer(struct req_id a, struct req_id b)
{
    return a.generation != b.generation ? a.generation > b.generation : a.attempt > b.attempt;
}

void worker_on_ready(struct worker *w, int from, const struct msg_ready *m)
{
    struct wseq *s = &w->seqs[m->req.slot];
    if (req_id_equal(s->req, m->req)) {
        if (s->push && s->peer == from) push_ready(s, m->held_tokens);
        return;
    }
    if (s->ready.generation && !is_newer(m->req, s->ready)) return;
    s->ready = m->req; /* it may have overtaken our PREFILL */
    s->ready_held = m->held_tokens;
}

static struct wseq *importing(struct worker *w, struct req_id req, int from)
{
    struct wseq *s = worker_find(w, req);
    if (s && s->mode == SEQ_IMPORT && !s->complete && s->peer == from) return s;
    w->stale++; /* cancelled meanwhile */
    return NULL;
}

static void import_failed(struct worker *w, struct wseq *s, enum err e)
{
    log_error("import req=%u.%u from=%d failed err=\"%s\"", s->req.slot, s->req.generation,
              s->peer, err_text(e));
    worker_give_up(w, s, e);
}

void worker_on_kv(struct worker *w, int from, const struct msg_kv *m, const void *payload)
{
    if (m->req.attempt & PULL_BIT) {
        pull_on_kv(w, from, m, payload);
        return;
    }
    struct wseq *s = importing(w, m->req, from);
    if (!s) return;
    enum err e = kv_import(w, m, payload);
    if (e) import_failed(w, s, e);
}

void worker_on_kvend(struct worker *w, int from, const struct msg_kvend *m)
{
    if (m->req.attempt & PULL_BIT) {
        pull_on_kvend(w, from, m);
        return;
    }
    struct wseq *s = importing(w, m->req, from);
    if (!s) return;
    if (m->finish != FINISH_NONE) {
        worker_end(w, s);
        return;
    }
    enum err e = engine_import_done(w->engine, m->req, m->first_token);
    if (e) import_failed(w, s, e);
    else s->complete = true;
}

/* -- from the engine -------------------------------------------------------------------------- */

/* A batch that may not take one more record goes out first. */
static void make_room(struct worker *w)
{
    size_t one = sizeof(struct msg_token) + TOP_LOGPROBS_MAX * sizeof(struct top_logprob);
    if (w->tokens.size + one > MSG_BYTES_MAX - sizeof(struct msg_tokens)) worker_flush(w);
}

void worker_token(void *ctx, struct req_id req, const struct token_record *record,
                  const struct top_logprob *top, uint32_t cached)
{
    struct worker *w = ctx;
    struct wseq *s = worker_find(w, req);
    if (!s) return; /* ended while the step ran */
    struct msg_token out = { .req = req, .cached = cached, .record = *record };
    make_room(w);
    buf_add(&w->tokens, &out, sizeof out);
    buf_add(&w->tokens, top, record->top_count * sizeof *top);
    w->token_count++;
    if (s->mode == SEQ_PREFILL) {
        push_first_token(s, record);
    } else if (record->finish != FINISH_NONE) {
        s->in_engine = false;
        worker_end(w, s);
    }
}

void worker_scores(void *ctx, struct req_id req, const struct token_record *records,
                   uint32_t count, const struct top_logprob *tops)
{
    struct worker *w = ctx;
    size_t at = 0;
    if (!worker_find(w, req)) return;
    for (uint32_t i = 0; i < count;) {
        size_t bytes = sizeof(struct msg_tokens);
        uint32_t end = i;
        for (; end < count && bytes < MSG_BYTES_MAX / 2; end++)
            bytes += sizeof(struct msg_token) + records[end].top_count * sizeof *tops;
        struct msg_tokens *m = port_message(w->port, MSG_SCORES, bytes);
        m->count = end - i;
        char *to = (char *)(m + 1);
        for (; i < end; i++) {
            struct msg_token one = { .req = req, .record = records[i] };
            memcpy(to, &one, sizeof one);
            memcpy(to + sizeof one, tops + at, records[i].top_count * sizeof *tops);
            to += sizeof one + records[i].top_count * sizeof *tops;
            at += records[i].top_count;
        }
        port_send(w->port, 0, PORT_CONTROL, m);
    }
}

/* GONE and a few BLOCKS behind the tokens, under one ring: rank 0 wakes up once, and answers before
 * it keeps the books. */
void worker_flush(struct worker *w)
{
    if (w->token_count + w->gone_count == 0) return;
    if (w->token_count) {
        struct msg_tokens *m = port_message(w->port, MSG_TOKENS, sizeof *m + w->tokens.size);
        m->count = w->token_count;
        memcpy(m + 1, w->tokens.data, w->tokens.size);
        port_send_more(w->port, 0, PORT_CONTROL, m);
    }
    for (uint32_t i = 0; i < w->gone_count; i++) {
        struct msg_req *m = port_message(w->port, MSG_GONE, sizeof *m);
        m->req = w->gone[i];
        port_send_more(w->port, 0, PORT_CONTROL, m);
    }
    buf_clear(&w->tokens);
    w->token_count = w->gone_count = 0;
    worker_blocks_few(w);
    port_ring(w->port, 0);
}
