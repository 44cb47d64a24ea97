/* ctl/sim_world.c - virtual time, messages between rank 0 and workers, rank 0 itself.
 *
 * Messages on one edge keep their order, as MPI's do; different edges overtake each other.  Always
 * true, and checked: every request gets one END and one FREE; nobody holds a block at the end; the
 * scheduler's books are empty; the index equals what workers hold, at every count they send; a
 * worker that drains gets nothing, and holds nothing when its new role reaches it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/mem.h"
#include "common/sampling.h"
#include "common/splitmix.h"
#include "ctl/sim.h"

enum node_kind {
    NODE_ARRIVAL, NODE_CANCEL, NODE_WAKE, NODE_TURN, NODE_DEATH, NODE_LOST, NODE_RETURN,
    NODE_UP, NODE_BLOCKS, NODE_TRUTH,
    NODE_RUN, NODE_EXPECT, NODE_DROP, NODE_KV, NODE_PULLED, NODE_ROLE, NODE_WISH,
};
static const char *const node_names[] = {
    "arrival", "client-cancels", "wake", "turn", "death", "lost", "return", "up", "blocks",
    "truth", "run", "expect", "cancel", "kv", "pulled",
    "role", "wish",
};

struct node {
    uint64_t at_ns, order;
    uint8_t kind, type;
    uint16_t finish, err;
    uint32_t rank, life;              /* the worker concerned, and its incarnation              */
    uint32_t from, from_life;         /* KV: the sender; RUN: partner + 1; ROLE: the role        */
    uint32_t count;
    struct req_id req;
    uint64_t value;                   /* PULL, RUN: blocks */
    int32_t pull_from;
    void *data;
};

struct truth {
    uint64_t count;
    struct hash128 xored;
};

struct call {                         /* a job while and after it runs */
    struct req_id id;
    uint32_t ends, frees;
    enum sched_end end;
    uint64_t first_ns, last_ns, expect_ns;
    int32_t prefill, decode;
    uint32_t cached, held;            /* blocks: found by its prefill; known at placement       */
};

struct seat {                         /* a rank */
    struct sim_worker *worker;        /* NULL: dead */
    enum role role;
    uint32_t life;
    uint64_t up_ns, down_ns, turn_ns; /* last delivery on each edge; next turn                   */
    double busy_s, lived_s;
    uint64_t since_ns;
    bool known;                       /* rank 0 takes it for alive */
    bool drains;                      /* and wants it empty */
};

enum { LOG_LENGTH = 2048 };
#define PULL_PATIENCE_NS UINT64_C(50000000)   /* for a worker that turns out to be dead */

struct sim_world {
    const struct sim_load *load;
    const struct sim_options *o;
    struct node *heap;
    size_t heap_count, heap_room;
    uint64_t now_ns, order, random, wake_ns;
    struct sched *sched;
    struct kv_index *index;
    struct seat *seats;
    uint32_t rank_count, living;
    struct call *calls;
    uint32_t slot_call[REQ_COUNT_MAX];
    uint32_t slot_generation[REQ_COUNT_MAX];
    uint16_t free_slots[REQ_COUNT_MAX];
    uint32_t free_count, freed, refused_here;
    uint64_t deaths, events, mismatches;
    struct node log[LOG_LENGTH];
    uint64_t log_count;
};

static struct sim_world *running;     /* for the last words only */

/* -- last words ------------------------------------------------------------------------------- */

static void tell_story(void)
{
    struct sim_world *m = running;
    if (!m) return;
    uint64_t first = m->log_count > LOG_LENGTH ? m->log_count - LOG_LENGTH : 0;
    for (uint64_t i = first; i < m->log_count; i++) {
        const struct node *n = &m->log[i % LOG_LENGTH];
        fprintf(stderr, "%12.6f %-14s rank=%u life=%u req=%u.%u.%u type=%d from=%u count=%u\n",
                (double)n->at_ns / 1e9, node_names[n->kind], n->rank, n->life, n->req.slot,
                n->req.generation, n->req.attempt, n->type, n->from, n->count);
    }
    fprintf(stderr, "sim: broken with policy %s seed %llu after %llu events\n",
            sched_policy_name(m->o->policy), (unsigned long long)m->o->seed,
            (unsigned long long)m->events);
}

static _Noreturn void broken(int code)
{
    tell_story();
    exit(code);
}

/* -- time ------------------------------------------------------------------------------------- */

static uint64_t roll(struct sim_world *m)
{
    return splitmix_next(&m->random);
}

static double chance(struct sim_world *m)
{
    return splitmix_unit(&m->random);
}

static bool earlier(const struct node *a, const struct node *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void push(struct sim_world *m, struct node n)
{
    if (m->heap_count == m->heap_room) {
        m->heap_room = m->heap_room ? 2 * m->heap_room : 4096;
        m->heap = mem_resize(m->heap, m->heap_room, sizeof *m->heap);
    }
    n.order = m->order++;
    size_t at = m->heap_count++;
    for (; at > 0 && earlier(&n, &m->heap[(at - 1) / 2]); at = (at - 1) / 2)
        m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = n;
}

static struct node pop(struct sim_world *m)
{
    struct node first = m->heap[0], last = m->heap[--m->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < m->heap_count; at = child) {
        if (child + 1 < m->heap_count && earlier(&m->heap[child + 1], &m->heap[child])) child++;
        if (!earlier(&m->heap[child], &last)) break;
        m->heap[at] = m->heap[child];
    }
    m->heap[at] = last;
    return first;
}

uint64_t world_now(const struct sim_world *m)
{
    return m->now_ns;
}

/* When a message that is sent now arrives, after those before it on its edge. */
static uint64_t delivery(struct sim_world *m, uint64_t *edge_ns)
{
    uint64_t at = m->now_ns + 50000 + roll(m) % 50000;
    if (m->o->chaos.delay_ns) at += roll(m) % m->o->chaos.delay_ns;
    if (at < *edge_ns) at = *edge_ns;
    *edge_ns = at;
    return at;
}

/* -- what workers say ------------------------------------------------------------------------- */

static void say(struct sim_world *m, uint32_t rank, struct node n)
{
    struct seat *s = &m->seats[rank];
    n.rank = rank;
    n.life = s->life;
    n.at_ns = delivery(m, &s->up_ns);
    push(m, n);
}

void world_say(struct sim_world *m, uint32_t rank, struct sched_event e)
{
    say(m, rank, (struct node){ .kind = NODE_UP, .type = (uint8_t)e.type, .req = e.req,
                                .finish = e.finish, .err = (uint16_t)e.err });
}

void world_say_blocks(struct sim_world *m, uint32_t rank, const struct kv_change *c, size_t count)
{
    struct kv_change *copy = mem_array(count, sizeof *copy);
    memcpy(copy, c, count * sizeof *c);
    say(m, rank, (struct node){ .kind = NODE_BLOCKS, .count = (uint32_t)count, .data = copy });
}

void world_say_truth(struct sim_world *m, uint32_t rank, uint64_t count, struct hash128 xored)
{
    struct truth *t = mem_alloc(sizeof *t);
    *t = (struct truth){ count, xored };
    say(m, rank, (struct node){ .kind = NODE_TRUTH, .data = t });
}

void world_say_kv(struct sim_world *m, uint32_t from, uint32_t rank, uint64_t at_ns,
                  struct req_id req)
{
    uint64_t expected = m->calls[m->slot_call[req.slot]].expect_ns;
    push(m, (struct node){ .kind = NODE_KV, .at_ns = at_ns > expected ? at_ns : expected + 1,
                           .rank = rank, .life = m->seats[rank].life, .from = from,
                           .from_life = m->seats[from].life, .req = req });
}

void world_wake(struct sim_world *m, uint32_t rank, uint64_t at_ns)
{
    m->seats[rank].turn_ns = at_ns;
    push(m, (struct node){ .kind = NODE_TURN, .at_ns = at_ns, .rank = rank,
                           .life = m->seats[rank].life });
}

const struct sim_job *world_job(const struct sim_world *m, struct req_id req)
{
    CHECK(m->slot_generation[req.slot] == req.generation);
    return &m->load->jobs[m->slot_call[req.slot]];
}

void world_note_cached(struct sim_world *m, struct req_id req, uint32_t blocks)
{
    m->calls[m->slot_call[req.slot]].cached = blocks;
}

/* -- rank 0 ----------------------------------------------------------------------------------- */

static uint64_t order_to(struct sim_world *m, uint32_t rank, struct node n)
{
    struct seat *s = &m->seats[rank];
    n.rank = rank;
    n.life = s->life;
    n.at_ns = delivery(m, &s->down_ns);
    push(m, n);
    return n.at_ns;
}

static void place(struct sim_world *m, const struct sched_action *a)
{
    struct call *c = &m->calls[m->slot_call[a->req.slot]];
    const struct sim_job *job = world_job(m, a->req);
    bool alone = a->type == ACT_RUN;
    uint32_t held[WORKER_COUNT_MAX + 1];
    uint32_t cacheable = (job->prompt_tokens - 1) / m->load->block_tokens;
    CHECK(c->ends == 0);
    c->id = a->req;
    c->prefill = alone ? a->worker : a->prefill;
    c->decode = alone ? a->worker : a->decode;
    CHECK(!m->seats[c->prefill].drains && !m->seats[c->decode].drains);
    c->held = kv_index_match(m->index, job->keys,
                             job->block_count < cacheable ? job->block_count : cacheable, held);
    struct node n = { .kind = NODE_EXPECT, .req = a->req };
    if (!alone) c->expect_ns = order_to(m, (uint32_t)c->decode, n);
    n.kind = NODE_RUN;
    n.from = alone ? 0 : (uint32_t)c->decode + 1;
    n.value = a->pull_tokens / m->load->block_tokens;
    n.pull_from = a->pull_from;
    order_to(m, (uint32_t)c->prefill, n);
}

/* The seat's role, which a worker that comes back has again, is rank 0's; the worker obeys. */
static void on_role_action(struct sim_world *m, const struct sched_action *a)
{
    struct seat *s = &m->seats[a->worker];
    CHECK(s->known && (a->stage == ROLE_DRAINS) == (a->role != s->role && !s->drains));
    s->drains = a->stage == ROLE_DRAINS;
    if (a->stage != ROLE_SWITCHES) return;
    s->role = a->role;
    order_to(m, (uint32_t)a->worker, (struct node){ .kind = NODE_ROLE, .from = a->role });
}

static void carry_out(struct sim_world *m, const struct sched_action *a)
{
    if (a->type == ACT_ROLE) {
        on_role_action(m, a);
        return;
    }
    uint32_t number = m->slot_call[a->req.slot];
    struct call *c = &m->calls[number];
    CHECK(m->slot_generation[a->req.slot] == a->req.generation);
    switch (a->type) {
    case ACT_RUN:
    case ACT_PAIR: place(m, a); return;
    case ACT_CANCEL:
        order_to(m, (uint32_t)a->worker, (struct node){ .kind = NODE_DROP, .req = a->req });
        return;
    case ACT_END:
        CHECK(c->ends++ == 0);
        c->end = a->end;
        c->last_ns = m->now_ns;
        return;
    case ACT_FREE:
        CHECK(c->ends == 1 && c->frees++ == 0);
        m->free_slots[m->free_count++] = a->req.slot;
        m->freed++;
        return;
    case ACT_ROLE: return;
    }
}

static void tell_sched(struct sim_world *m, const struct sched_event *e)
{
    struct sched_action out[64];
    size_t count, in = e ? 1 : 0;
    do {
        count = sched_step(m->sched, m->now_ns, e, in, out, 64);
        in = 0;
        for (size_t i = 0; i < count; i++) carry_out(m, &out[i]);
    } while (count == 64);
    uint64_t wake = sched_wake_ns(m->sched);
    if (wake < m->wake_ns) {
        m->wake_ns = wake > m->now_ns ? wake : m->now_ns + 1;
        push(m, (struct node){ .kind = NODE_WAKE, .at_ns = m->wake_ns });
    }
}

static void on_arrival(struct sim_world *m, uint32_t number)
{
    const struct sim_job *job = &m->load->jobs[number];
    struct call *c = &m->calls[number];
    if (m->free_count == 0) {         /* as rank 0 answers 429 before it asks the scheduler */
        c->ends = c->frees = 1;
        c->end = END_FULL;
        m->freed++;
        return;
    }
    uint16_t slot = m->free_slots[--m->free_count];
    m->slot_call[slot] = number;
    c->id = (struct req_id){ .slot = slot, .generation = ++m->slot_generation[slot] };
    const struct sim_chaos *x = &m->o->chaos;
    struct sched_event e = {
        .type = EV_REQUEST, .req = c->id, .prompt_tokens = job->prompt_tokens,
        .max_tokens = 2048, .keys = job->keys, .key_count = job->block_count,
    };
    if (x->deadline_share > 0 && chance(m) < x->deadline_share)
        e.deadline_ns = m->now_ns + 500000000 + roll(m) % UINT64_C(10000000000);
    if (x->cancel_share > 0 && chance(m) < x->cancel_share)
        push(m, (struct node){ .kind = NODE_CANCEL, .value = number,
                               .at_ns = m->now_ns + roll(m) % UINT64_C(5000000000) });
    tell_sched(m, &e);
}

static void on_up(struct sim_world *m, const struct node *n)
{
    struct call *c = &m->calls[m->slot_call[n->req.slot]];
    struct sched_event e = { .type = n->type, .req = n->req, .worker = (int32_t)n->rank,
                             .finish = n->finish, .err = n->err };
    bool mine = req_id_equal(c->id, n->req) && c->ends == 0;
    if (mine && e.type == EV_FIRST && c->first_ns == 0) c->first_ns = m->now_ns;
    /* Over with the prefill's token: decode has reserved for nothing. */
    if (mine && e.type == EV_FINISHED && c->decode != c->prefill && (int32_t)n->rank == c->prefill)
        order_to(m, (uint32_t)c->decode, (struct node){ .kind = NODE_DROP, .req = n->req });
    tell_sched(m, &e);
}

static void on_blocks(struct sim_world *m, const struct node *n)
{
    uint64_t seq = kv_index_next_seq(m->index, n->rank);
    CHECK(kv_index_apply(m->index, n->rank, n->life, seq, n->data, n->count) == OK);
}

static void on_truth(struct sim_world *m, const struct node *n)
{
    const struct truth *t = n->data;
    if (!kv_index_agrees(m->index, n->rank, t->count, t->xored)) m->mismatches++;
    CHECK(m->mismatches == 0);
}

/* -- workers come and go ---------------------------------------------------------------------- */

static struct sim_engine engine_of(struct sim_world *m)
{
    struct sim_engine e = m->o->engine;
    if (m->o->chaos.slow_share > 0 && chance(m) < m->o->chaos.slow_share) {
        e.prefill_token_ns *= 2;
        e.step_ns *= 2;
    }
    return e;
}

static void bring_up(struct sim_world *m, uint32_t rank)
{
    struct seat *s = &m->seats[rank];
    const struct sim_engine *e = &m->o->engine;
    struct sim_engine own = engine_of(m);
    s->life++;
    s->known = true;
    s->since_ns = m->now_ns;
    s->worker = worker_open(m, rank, &own, m->load->block_tokens);
    m->living++;
    kv_index_up(m->index, rank, s->life, 1);
    struct sched_event up = {
        .type = EV_WORKER_UP, .worker = (int32_t)rank, .role = s->role, .seqs = e->seqs,
        .blocks = e->cache_tokens / m->load->block_tokens, .max_tokens = 1 << 20,
    };
    struct sched_rates rates = {
        .prefill_token_ns = e->prefill_token_ns + e->step_ns / e->chunk_tokens,
        .prefill_context_ns = e->prefill_context_ns, .step_ns = e->step_ns,
        .step_seq_ns = e->step_seq_ns, .kv_token_bytes = e->kv_token_bytes,
        .link_bytes_s = e->link_bytes_s,
    };
    struct sched_event measured = { .type = EV_RATES, .worker = (int32_t)rank, .rates = &rates };
    tell_sched(m, &up);
    tell_sched(m, &measured);
}

static void retire(struct sim_world *m, struct seat *s, bool dead)
{
    s->busy_s += worker_busy_s(s->worker);
    s->lived_s += (double)(m->now_ns - s->since_ns) / 1e9;
    worker_close(s->worker, dead);
    s->worker = NULL;
    m->living--;
}

static void schedule_death(struct sim_world *m)
{
    if (m->o->chaos.deaths_per_s <= 0) return;
    double wait = 2 * chance(m) / m->o->chaos.deaths_per_s;
    push(m, (struct node){ .kind = NODE_DEATH, .at_ns = m->now_ns + (uint64_t)(wait * 1e9) });
}

static void on_death(struct sim_world *m)
{
    if (m->freed == m->load->count) return;
    schedule_death(m);
    uint32_t rank = 1 + (uint32_t)(roll(m) % (m->rank_count - 1));
    struct seat *s = &m->seats[rank];
    if (!s->worker || !s->known) return;
    m->deaths++;
    retire(m, s, true);
    uint64_t found = m->now_ns + 1000000 + roll(m) % 4000000;
    push(m, (struct node){ .kind = NODE_LOST, .at_ns = found, .rank = rank, .life = s->life });
    push(m, (struct node){ .kind = NODE_RETURN, .rank = rank, .life = s->life,
                           .at_ns = found + 1 + roll(m) % UINT64_C(4000000000) });
}

static void schedule_wish(struct sim_world *m)
{
    if (m->o->chaos.switches_per_s <= 0) return;
    double wait = 2 * chance(m) / m->o->chaos.switches_per_s;
    push(m, (struct node){ .kind = NODE_WISH, .at_ns = m->now_ns + (uint64_t)(wait * 1e9) });
}

static void on_wish(struct sim_world *m)
{
    if (m->freed == m->load->count) return;
    schedule_wish(m);
    int32_t rank = 1 + (int32_t)(roll(m) % (m->rank_count - 1));
    struct sched_event e = { .type = EV_ROLE, .worker = rank,
                             .role = roll(m) % 2 ? ROLE_PREFILL : ROLE_DECODE };
    tell_sched(m, &e);
}

static void on_lost(struct sim_world *m, uint32_t rank)
{
    struct sched_event e = { .type = EV_WORKER_LOST, .worker = (int32_t)rank };
    m->seats[rank].known = m->seats[rank].drains = false;
    kv_index_lost(m->index, rank);
    tell_sched(m, &e);
}

static void on_kv(struct sim_world *m, const struct node *n)
{
    struct seat *to = &m->seats[n->rank], *from = &m->seats[n->from];
    bool sent = from->worker && from->life == n->from_life;
    if (sent && to->worker && to->life == n->life) worker_kv(to->worker, n->req);
    if (sent) worker_sent(from->worker, n->req);
}

/* A worker is told to compute a prompt, and maybe to fetch a part of it first. */
static void on_run(struct sim_world *m, const struct node *n)
{
    struct seat *to = &m->seats[n->rank], *from = &m->seats[n->pull_from];
    uint32_t blocks = (uint32_t)n->value;
    worker_run(to->worker, n->req, (int32_t)n->from - 1, blocks);
    if (blocks == 0) return;
    const struct sim_engine *e = &m->o->engine;
    uint64_t at = m->now_ns + PULL_PATIENCE_NS;
    double bytes = (double)blocks * m->load->block_tokens * e->kv_token_bytes;
    if (from->worker) at = worker_send(from->worker, m->now_ns, bytes);
    push(m, (struct node){ .kind = NODE_PULLED, .at_ns = at, .rank = n->rank, .life = n->life,
                           .from = (uint32_t)n->pull_from, .from_life = from->life,
                           .req = n->req, .value = blocks });
}

/* What the other one has dropped meanwhile, or all of it when it died, is computed. */
static void on_pulled(struct sim_world *m, const struct node *n)
{
    struct seat *from = &m->seats[n->from], *to = &m->seats[n->rank];
    const struct sim_job *job = worker_pulls(to->worker, n->req);
    uint32_t blocks = 0;
    if (!job) return;                 /* cancelled */
    if (from->worker && from->life == n->from_life) blocks = worker_holds(from->worker, job);
    if (blocks > n->value) blocks = (uint32_t)n->value;
    worker_pulled(to->worker, n->req, blocks);
}

static void happen(struct sim_world *m, const struct node *n)
{
    struct seat *s = &m->seats[n->rank];
    bool here = s->worker && s->life == n->life, known = s->known && s->life == n->life;
    switch ((enum node_kind)n->kind) {
    case NODE_ARRIVAL: on_arrival(m, (uint32_t)n->value); return;
    case NODE_CANCEL: {
        struct sched_event e = { .type = EV_CANCEL, .req = m->calls[n->value].id };
        tell_sched(m, &e);
        return;
    }
    case NODE_WAKE:
        if (n->at_ns != m->wake_ns) return;
        m->wake_ns = UINT64_MAX;
        tell_sched(m, NULL);
        return;
    case NODE_TURN: if (here && s->turn_ns == n->at_ns) worker_turn(s->worker); return;
    case NODE_DEATH: on_death(m); return;
    case NODE_LOST: on_lost(m, n->rank); return;
    case NODE_RETURN: bring_up(m, n->rank); return;
    case NODE_UP: if (known) on_up(m, n); return;
    case NODE_BLOCKS: if (known) on_blocks(m, n); return;
    case NODE_TRUTH: if (known) on_truth(m, n); return;
    case NODE_RUN: if (here) on_run(m, n); return;
    case NODE_PULLED: if (here) on_pulled(m, n); return;
    case NODE_EXPECT: if (here) worker_expect(s->worker, n->req); return;
    case NODE_DROP: if (here) worker_cancel(s->worker, n->req); return;
    case NODE_KV: on_kv(m, n); return;
    case NODE_ROLE: CHECK(!here || worker_is_empty(s->worker)); return;
    case NODE_WISH: on_wish(m); return;
    }
}

/* -- the run ---------------------------------------------------------------------------------- */

static void open_world(struct sim_world *m, const struct sim_load *load,
                       const struct sim_options *o)
{
    *m = (struct sim_world){ .load = load, .o = o, .random = o->seed, .wake_ns = UINT64_MAX };
    m->rank_count = 1 + o->prefill + o->decode + o->both;
    CHECK(m->rank_count <= WORKER_COUNT_MAX + 1);
    uint64_t blocks = (uint64_t)m->rank_count * (o->engine.cache_tokens / load->block_tokens);
    m->index = kv_index_open(blocks, m->rank_count);
    struct sched_config c = {
        .rank_count = m->rank_count, .queue_max = o->max_queue, .block_tokens = load->block_tokens,
        .policy = o->policy, .decode_policy = o->decode_policy, .seed = o->seed,
        .index = m->index, .pull = !o->no_pull, .metrics_ns = o->metrics_ns,
        .switch_interval_ns = o->switch_interval_ns,
    };
    m->sched = sched_init(mem_alloc(sched_bytes(&c)), &c);
    m->seats = mem_array(m->rank_count, sizeof *m->seats);
    m->calls = mem_array(load->count, sizeof *m->calls);
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++)
        m->free_slots[i] = (uint16_t)(REQ_COUNT_MAX - 1 - i);
    m->free_count = REQ_COUNT_MAX;
    running = m;
    fatal_hook = broken;
    for (uint32_t rank = 1; rank < m->rank_count; rank++) {
        m->seats[rank].role = rank <= o->prefill               ? ROLE_PREFILL
                              : rank <= o->prefill + o->decode ? ROLE_DECODE
                                                               : ROLE_BOTH;
        bring_up(m, rank);
    }
    for (uint32_t i = 0; i < load->count; i++)
        push(m, (struct node){ .kind = NODE_ARRIVAL, .value = i,
                               .at_ns = (uint64_t)((double)load->jobs[i].arrives_ns / o->speed) });
    schedule_death(m);
    schedule_wish(m);
}

static void close_world(struct sim_world *m)
{
    CHECK(m->freed == m->load->count);
    for (uint32_t i = 0; i < m->load->count; i++)
        CHECK(m->calls[i].ends == 1 && m->calls[i].frees == 1);
    CHECK(sched_idle(m->sched) && m->free_count == REQ_COUNT_MAX);
    kv_index_check(m->index);
    for (uint32_t rank = 1; rank < m->rank_count; rank++) {
        struct seat *s = &m->seats[rank];
        if (!s->worker) continue;
        uint64_t count;
        struct hash128 xored;
        worker_truth(s->worker, &count, &xored);
        CHECK(kv_index_agrees(m->index, rank, count, xored));
        retire(m, s, false);
    }
    kv_index_close(m->index);
    free(m->sched);
    free(m->seats);
    free(m->calls);
    free(m->heap);
    running = NULL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void spread_of(double *values, uint32_t count, double out[4])
{
    memset(out, 0, 4 * sizeof *out);
    if (count == 0) return;
    qsort(values, count, sizeof *values, ascending);
    for (uint32_t i = 0; i < count; i++) out[0] += values[i] / count;
    static const double at[] = { 0, 0.5, 0.9, 0.99 };
    for (int i = 1; i < 4; i++) out[i] = values[(uint32_t)(at[i] * (count - 1) + 0.5)];
}

static void measure_balance(struct sim_world *m, struct sim_result *r)
{
    double sum = 0, squares = 0;
    uint32_t count = 0;
    for (uint32_t rank = 1; rank < m->rank_count; rank++) {
        const struct seat *s = &m->seats[rank];
        double busy = s->busy_s, lived = s->lived_s;
        if (s->role == ROLE_DECODE) continue;
        if (s->worker) {
            busy += worker_busy_s(s->worker);
            lived += (double)(m->now_ns - s->since_ns) / 1e9;
        }
        double share = lived > 0 ? busy / lived : 0;
        sum += share;
        squares += share * share;
        count++;
    }
    double mean = sum / count, variance = squares / count - mean * mean;
    r->busy = mean;
    r->imbalance = mean > 0 && variance > 0 ? __builtin_sqrt(variance) / mean : 0;
}

static void measure(struct sim_world *m, struct sim_result *r)
{
    uint32_t n = m->load->count, good = 0, steps = 0;
    double *ttft = mem_array(n, sizeof *ttft), *itl = mem_array(n, sizeof *itl);
    double *e2e = mem_array(n, sizeof *e2e);
    uint64_t possible = 0, got = 0, held = 0, got_held = 0, endless = 0, blocks = 0, tokens = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct call *c = &m->calls[i];
        const struct sim_job *job = &m->load->jobs[i];
        uint64_t start = (uint64_t)((double)job->arrives_ns / m->o->speed);
        r->refused += c->end == END_FULL || c->end == END_TOO_LONG;
        r->lost += c->end == END_WORKER_LOST;
        r->cancelled += c->end == END_CANCELLED;
        r->expired += c->end == END_DEADLINE;
        if (c->end != END_DONE) continue;
        double first = (double)(c->first_ns - start) / 1e6, step = 0;
        ttft[r->done] = first;
        e2e[r->done++] = (double)(c->last_ns - start) / 1e6;
        if (job->output_tokens > 1) {
            step = (double)(c->last_ns - c->first_ns) / 1e6 / (job->output_tokens - 1);
            itl[steps++] = step;
        }
        good += first <= 2000 && step <= 50;
        possible += job->possible;
        got += c->cached < job->possible ? c->cached : job->possible;
        held += c->held;
        got_held += c->cached < c->held ? c->cached : c->held;
        tokens += job->prompt_tokens;
        blocks += c->cached;
        endless += job->endless;
    }
    spread_of(ttft, r->done, r->ttft_ms);
    spread_of(itl, steps, r->itl_ms);
    spread_of(e2e, r->done, r->e2e_ms);
    r->requests = n;
    r->seconds = (double)m->now_ns / 1e9;
    r->goodput = (double)good / n;
    r->attained_per_s = good / ((double)m->load->jobs[n - 1].arrives_ns / m->o->speed / 1e9 + 1e-9);
    r->reuse_possible = possible ? (double)got / (double)possible : 1;
    r->reuse_held = held ? (double)got_held / (double)held : 1;
    r->reuse_endless = endless ? (double)blocks / (double)endless : 1;
    r->hit_share = tokens ? (double)blocks * m->load->block_tokens / (double)tokens : 0;
    measure_balance(m, r);
    struct sched_stats s;
    sched_stats(m->sched, &s);
    r->decisions = s.decisions;
    r->switches = s.role_switches;
    r->resumed = s.resumed;
    r->deaths = m->deaths;
    r->events = m->events;
    r->mismatches = m->mismatches;
    free(ttft);
    free(itl);
    free(e2e);
}

void sim_run(const struct sim_load *load, const struct sim_options *o, struct sim_result *out)
{
    struct sim_world *m = mem_alloc(sizeof *m);
    uint64_t wall = clock_now_ns();
    void (*hook)(int) = fatal_hook;
    open_world(m, load, o);
    while (m->heap_count > 0) {
        struct node n = pop(m);
        m->log[m->log_count++ % LOG_LENGTH] = n;
        CHECK(n.at_ns >= m->now_ns);
        m->now_ns = n.at_ns;
        m->events++;
        happen(m, &n);
        free(n.data);
    }
    *out = (struct sim_result){ 0 };
    measure(m, out);
    close_world(m);
    out->wall_s = (double)(clock_now_ns() - wall) / 1e9;
    fatal_hook = hook;
    free(m);
}

uint32_t sim_cache_blocks(const struct sim_load *load, const struct sim_options *o)
{
    uint64_t blocks = (uint64_t)(o->prefill + o->decode + o->both)
                    * (o->engine.cache_tokens / load->block_tokens);
    return blocks < KV_BLOCK_COUNT_MAX ? (uint32_t)blocks : KV_BLOCK_COUNT_MAX;
}

double sim_speed_of_load(const struct sim_load *load, const struct sim_options *o, double share)
{
    const struct sim_engine *e = &o->engine;
    double work_ns = 0;
    for (uint32_t i = 0; i < load->count; i++) {
        const struct sim_job *job = &load->jobs[i];
        double cached = (double)job->possible * load->block_tokens;
        double left = job->prompt_tokens - cached;
        work_ns += left * (e->prefill_token_ns + e->step_ns / e->chunk_tokens
                           + e->prefill_context_ns * (cached + left / 2) / 1024);
    }
    double span_ns = (double)load->jobs[load->count - 1].arrives_ns;
    return share * (o->prefill + o->both) * span_ns / work_ns;
}
