/* sched/sched.c - one step: take events into the books, place what waits, hand actions out. */
#include "sched/sched.h"

#include <string.h>

#include "common/sampling.h"
#include "sched/books.h"

/* How long a request that a worker refused waits before it is placed again. */
#define RETRY_NS UINT64_C(20000000)
/* How long a request waits for somebody who could take it, when a loss left nobody. */
#define LOST_WAIT_NS UINT64_C(10000000000)
/* Attempts of one request that may fail: in a row without a token, and altogether.  A request that
 * kills whoever runs it takes no more workers than this. */
enum { FRUITLESS_MAX = 3, FAILURES_MAX = 16 };

size_t sched_bytes(const struct sched_config *c)
{
    (void)c;
    return sizeof(struct sched) + sizeof(struct sched_action) * ACTION_ROOM;
}

struct sched *sched_init(void *memory, const struct sched_config *c)
{
    struct sched *s = memory;
    CHECK(c->rank_count >= 1 && c->rank_count <= WORKER_COUNT_MAX + 1);
    CHECK(c->block_tokens > 0 && c->queue_max <= REQ_COUNT_MAX);
    memset(s, 0, sched_bytes(c));
    s->config = *c;
    s->queue_head = s->queue_tail = NO_SLOT;
    s->random_state = c->seed;
    s->wake_ns = s->timed_ns = s->lost_wait_ns = UINT64_MAX;
    s->no_prefill = s->no_decode = true;
    CHECK(c->policy < POLICY_COUNT && c->decode_policy <= POLICY_COUNT);
    for (uint32_t i = 0; i <= WORKER_COUNT_MAX; i++) {
        s->cores_next[i] = i;
        s->workers[i].plan_head = NO_SLOT;
        s->workers[i].rates = cost_rates_guess;
    }
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++) {
        s->requests[i].prefill = s->requests[i].decode = s->requests[i].plan = NO_WORKER;
        s->requests[i].next = s->requests[i].previous = NO_SLOT;
    }
    return s;
}

void sched_index(struct sched *s, const struct kv_index *index)
{
    s->config.index = index;
}

void act(struct sched *s, struct sched_action a)
{
    CHECK(s->action_count < ACTION_ROOM);
    s->actions[(s->action_first + s->action_count) % ACTION_ROOM] = a;
    s->action_count++;
}

/* The request, whatever its attempt; NULL when it has been freed. */
static struct request *find_any_attempt(struct sched *s, struct req_id id)
{
    if (id.slot >= REQ_COUNT_MAX) return NULL;
    struct request *r = &s->requests[id.slot];
    return r->state != REQ_FREE && r->id.generation == id.generation ? r : NULL;
}

/* The request an event speaks of, or NULL when it is stale. */
static struct request *find(struct sched *s, struct req_id id)
{
    struct request *r = find_any_attempt(s, id);
    return r && r->id.attempt == id.attempt ? r : NULL;
}

static bool held(const struct request *r)
{
    return r->prefill != NO_WORKER || r->decode != NO_WORKER;
}

static bool timed(const struct request *r)
{
    return r->deadline_ns != 0 || r->not_before_ns != 0;
}

static void free_if_gone(struct sched *s, struct request *r)
{
    if (r->state != REQ_ENDED || held(r)) return;
    act(s, (struct sched_action){ .type = ACT_FREE, .req = r->id });
    request_move(r, REQ_FREE);
}

static void cancel_holders(struct sched *s, const struct request *r)
{
    if (r->prefill != NO_WORKER)
        act(s, (struct sched_action){ .type = ACT_CANCEL, .req = r->id, .worker = r->prefill });
    if (r->decode != NO_WORKER && r->decode != r->prefill)
        act(s, (struct sched_action){ .type = ACT_CANCEL, .req = r->id, .worker = r->decode });
}

static uint32_t retry_after_s(const struct sched *s)
{
    return 1 + s->queue_count / 256;
}

static void end(struct sched *s, struct request *r, enum sched_end why, uint16_t finish)
{
    if (r->state == REQ_ENDED) return;
    if (r->state == REQ_QUEUED) {
        plan_remove(s, r);
        queue_remove(s, r);
    }
    if (timed(r)) s->timed_count--;
    if (why != END_DONE && r->state != REQ_RETRY) cancel_holders(s, r);
    act(s, (struct sched_action){ .type = ACT_END, .req = r->id, .end = why, .finish = finish,
                                  .prefill = r->prefill, .decode = r->decode,
                                  .retry_after_s = why == END_FULL ? retry_after_s(s) : 0 });
    if (why == END_FULL || why == END_TOO_LONG || why == END_DRAINING) s->stats.refused++;
    s->stats.ended++;
    fair_leave(s, r);
    request_move(r, REQ_ENDED);
    free_if_gone(s, r);
}

static void on_request(struct sched *s, const struct sched_event *e)
{
    CHECK(e->req.slot < REQ_COUNT_MAX);
    struct request *r = &s->requests[e->req.slot];
    CHECK(r->state == REQ_FREE);
    *r = (struct request){
        .state = REQ_FREE, .id = e->req, .prompt_tokens = e->prompt_tokens,
        .max_tokens = e->max_tokens, .priority = e->priority, .order = s->order_next++,
        .deadline_ns = e->deadline_ns, .prefill = NO_WORKER, .decode = NO_WORKER,
        .next = NO_SLOT, .previous = NO_SLOT, .plan = NO_WORKER, .arrived_ns = s->now_ns,
        .keys = e->keys, .key_count = e->keys ? e->key_count : 0,
        .ttft_ns = e->ttft_ns, .tpot_ns = e->tpot_ns,
    };
    CHECK(r->prompt_tokens > 0);
    r->due_ns = s->now_ns + (r->ttft_ns ? r->ttft_ns : ttft_target_ns(s));
    request_measure(s, r);
    fair_join(s, r, e->user);
    if (timed(r)) s->timed_count++;
    if (r->deadline_ns && r->deadline_ns < s->timed_ns) s->timed_ns = r->deadline_ns;
    bool full = s->queue_count >= s->config.queue_max;
    request_move(r, REQ_QUEUED);
    queue_insert(s, r);
    if (s->draining) end(s, r, END_DRAINING, FINISH_ERROR);
    else if (!policy_fits(s, r->prompt_tokens)) end(s, r, END_TOO_LONG, FINISH_ERROR);
    else if (full) end(s, r, END_FULL, FINISH_ERROR);
}

/* What was emitted is prompt to the next attempt. */
static void count_emitted(const struct sched *s, struct request *r)
{
    if (!s->config.emitted) return;
    uint32_t more = s->config.emitted[r->id.slot] - r->emitted;
    r->emitted += more;
    r->prompt_tokens += more;
    r->max_tokens = r->max_tokens > more ? r->max_tokens - more : 1;
    request_measure(s, r);
}

/* Back to the queue, once no worker holds anything of the attempt that failed. */
static void requeue_if_gone(struct sched *s, struct request *r)
{
    if (r->state != REQ_RETRY || held(r)) return;
    if (r->id.attempt == ATTEMPT_MAX) {
        end(s, r, END_FULL, FINISH_ERROR);
        return;
    }
    count_emitted(s, r);
    request_move(r, REQ_QUEUED);
    queue_insert(s, r);
    if (r->not_before_ns && r->not_before_ns < s->timed_ns) s->timed_ns = r->not_before_ns;
}

static bool running(const struct request *r)
{
    return r->state == REQ_PREFILLING || r->state == REQ_DECODING;
}

/* This attempt failed, and not for want of room. */
static void recover(struct sched *s, struct request *r)
{
    if (++r->fruitless > FRUITLESS_MAX || ++r->failures > FAILURES_MAX) {
        end(s, r, END_WORKER_LOST, FINISH_ERROR);
        return;
    }
    cancel_holders(s, r);
    request_move(r, REQ_RETRY);
    s->stats.recovered++;
}

void request_resume(struct sched *s, struct request *r)
{
    cancel_holders(s, r);
    request_move(r, REQ_RETRY);
}

/* A prefill worker lets go when its KV has left, after the first token; whoever else lets go before
 * the last token has failed. */
static void on_gone(struct sched *s, struct request *r, int32_t worker)
{
    bool normal = r->state == REQ_DECODING && r->prefill == worker && r->decode != worker &&
                  r->decode != NO_WORKER;
    bool holds = r->prefill == worker || r->decode == worker;
    discharge(s, r, worker, s->now_ns);
    if (holds && running(r) && !normal) recover(s, r);
    free_if_gone(s, r);
    requeue_if_gone(s, r);
}

static void on_refused(struct sched *s, struct request *r, const struct sched_event *e,
                       uint64_t now_ns)
{
    discharge(s, r, e->worker, s->now_ns);
    if (e->err == ERR_FULL) {
        s->workers[e->worker].refused_blocks = r->blocks_soon;
        s->stats.no_room++;
    }
    /* Also after its first token: then the next attempt continues behind it. */
    if (running(r) && e->err == ERR_FULL) {
        if (!timed(r)) s->timed_count++;
        r->not_before_ns = now_ns + RETRY_NS;
        cancel_holders(s, r);
        request_move(r, REQ_RETRY);
    } else if (running(r) && e->err == ERR_LIMIT) {
        end(s, r, END_TOO_LONG, FINISH_ERROR);
        return;
    } else if (running(r)) {
        recover(s, r);
    }
    free_if_gone(s, r);
    requeue_if_gone(s, r);
}

static void on_lost(struct sched *s, int32_t rank)
{
    struct worker *w = &s->workers[rank];
    if (!w->alive) return;
    s->stats.workers_lost++;
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++) {
        struct request *r = &s->requests[i];
        if (r->state == REQ_FREE || (r->prefill != rank && r->decode != rank)) continue;
        /* The first token has come, so its KV may all be with decode: that one knows, and says
         * GONE when it is not. */
        bool only_prefill = r->state == REQ_DECODING && r->decode != rank &&
                            r->decode != NO_WORKER;
        discharge(s, r, rank, s->now_ns);
        if (running(r) && !only_prefill) recover(s, r);
        free_if_gone(s, r);
        requeue_if_gone(s, r);
    }
    plan_all_away(s, rank);
    CHECK(w->seqs_charged == 0 && w->blocks_charged == 0 && w->prompt_tokens_charged == 0);
    CHECK(w->prompts_charged == 0 && w->work_charged_ns == 0 && w->plan_blocks == 0);
    CHECK(w->handing_blocks == 0);
    w->alive = false;
    if (s->kept_rank == (uint32_t)rank) s->kept_rank = 0;
    roles_disturbed(s);
    policy_roles(s);
    s->lost_wait_ns = s->now_ns + LOST_WAIT_NS;
}

/* Long after a loss: ends what nobody who is left could ever take. */
static void end_stranded(struct sched *s)
{
    if (s->now_ns < s->lost_wait_ns) return;
    s->lost_wait_ns = UINT64_MAX;
    for (uint16_t slot = s->queue_head; slot != NO_SLOT;) {
        struct request *r = &s->requests[slot];
        slot = r->next;
        if (!policy_anybody_ever(s, r)) end(s, r, END_WORKER_LOST, FINISH_ERROR);
    }
}

/* Where a worker with an empty cache of so many blocks starts: behind the others by just that. */
static uint64_t filled_of_empty(const struct sched *s, uint32_t blocks)
{
    uint64_t least = UINT64_MAX;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (w->alive && w->filled < least) least = w->filled;
    }
    return least == UINT64_MAX || least < blocks ? 0 : least - blocks;
}

static void on_up(struct sched *s, const struct sched_event *e)
{
    CHECK(e->worker > 0 && (uint32_t)e->worker < s->config.rank_count);
    CHECK(!s->workers[e->worker].alive && e->blocks > 0);
    uint64_t filled = filled_of_empty(s, e->blocks);
    s->workers[e->worker] = (struct worker){
        .alive = true, .role = e->role, .blocks = e->blocks, .seqs = e->seqs,
        .tokens_max = e->max_tokens, .rates = s->workers[e->worker].rates, .plan_head = NO_SLOT,
        .filled = filled,
    };
    roles_disturbed(s);
    policy_roles(s);
}

/* Out of the ring it was in, and into that of the workers with these cores. */
static void share_cores(struct sched *s, uint32_t rank, uint32_t cores)
{
    uint32_t before = rank, other = 1;
    while (s->cores_next[before] != rank) before = s->cores_next[before];
    s->cores_next[before] = s->cores_next[rank];
    s->cores_next[rank] = rank;
    while (other < s->config.rank_count && s->workers[other].rates.cores != cores) other++;
    if (cores == 0 || other == s->config.rank_count) return;
    s->cores_next[rank] = s->cores_next[other];
    s->cores_next[other] = rank;
}

static void on_rates(struct sched *s, const struct sched_event *e)
{
    CHECK(e->worker > 0 && (uint32_t)e->worker < s->config.rank_count);
    CHECK(e->rates->prefill_token_ns > 0 && e->rates->step_ns > 0 && e->rates->step_seq_ns > 0);
    /* The others are taken to be like the first one until they say. */
    for (uint32_t i = 0; !s->rated && i < s->config.rank_count; i++) {
        s->workers[i].rates = *e->rates;
        s->workers[i].rates.cores = 0;
    }
    if (s->workers[e->worker].rates.cores != e->rates->cores)
        share_cores(s, (uint32_t)e->worker, e->rates->cores);
    s->workers[e->worker].rates = *e->rates;
    s->rated = true;
}

static void on_policy(struct sched *s, const struct sched_event *e)
{
    CHECK(e->policy < POLICY_COUNT && e->decode_policy <= POLICY_COUNT);
    s->config.policy = e->policy;
    s->config.decode_policy = e->decode_policy;
    s->config.cache_locality_weight = e->cache_locality_weight;
    s->config.latency_weight = e->latency_weight;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) plan_all_away(s, (int32_t)rank);
}

static void on_event(struct sched *s, const struct sched_event *e, uint64_t now_ns)
{
    struct request *r = find(s, e->req);
    switch (e->type) {
    case EV_WORKER_UP: on_up(s, e); return;
    case EV_WORKER_LOST: on_lost(s, e->worker); return;
    case EV_REQUEST: on_request(s, e); return;
    case EV_DRAIN:
        s->draining = true;
        roles_disturbed(s);
        return;
    case EV_ROLE: roles_ask(s, e->worker, e->role); return;
    case EV_RATES: on_rates(s, e); return;
    case EV_POLICY: on_policy(s, e); return;
    case EV_CANCEL:                   /* it may have been placed since the client left */
        r = find_any_attempt(s, e->req);
        if (r) end(s, r, END_CANCELLED, FINISH_ABORT);
        return;
    case EV_FIRST:
        if (!r || r->state != REQ_PREFILLING) return;
        if (r->emitted == 0) cost_learn(s, r, s->now_ns);
        r->fruitless = 0;
        discharge_prompt(s, r, s->now_ns);
        handing_begin(s, r);
        request_move(r, REQ_DECODING);
        return;
    case EV_GREW:
        if (!r || !running(r)) return;
        charge_grown(s, r);
        fair_grew(s, r);
        return;
    case EV_FINISHED:
        if (r && r->state != REQ_QUEUED) /* in RETRY: its first token was also the last */
            end(s, r, END_DONE, e->finish);
        return;
    case EV_GONE:
        if (r) on_gone(s, r, e->worker);
        return;
    case EV_REFUSED:
        if (r) on_refused(s, r, e, now_ns);
        return;
    }
    CHECK(!"an event of a known type");
}

/* Ends what is past its deadline, and finds when to look again. */
static void expire(struct sched *s, uint64_t now_ns)
{
    if (s->timed_count == 0) s->timed_ns = UINT64_MAX;
    s->wake_ns = s->timed_ns;
    if (now_ns < s->timed_ns) return;
    s->wake_ns = UINT64_MAX;
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++) {
        struct request *r = &s->requests[i];
        if (r->state == REQ_FREE || r->state == REQ_ENDED || !timed(r)) continue;
        if (r->deadline_ns && r->deadline_ns <= now_ns) {
            end(s, r, END_DEADLINE, FINISH_ABORT);
            continue;
        }
        if (r->deadline_ns && r->deadline_ns < s->wake_ns) s->wake_ns = r->deadline_ns;
        if (r->state == REQ_QUEUED && r->not_before_ns > now_ns && r->not_before_ns < s->wake_ns)
            s->wake_ns = r->not_before_ns;
    }
    s->timed_ns = s->wake_ns;
}

static void place(struct sched *s, struct request *r, int32_t prefill, int32_t decode)
{
    uint32_t cached = cost_cached_tokens(s, r, (uint32_t)prefill);
    struct prompt_cost cost = cost_of_prompt(s, r, (uint32_t)prefill);
    uint32_t pull = cost.pull_tokens;
    plan_remove(s, r);
    queue_remove(s, r);
    if (r->not_before_ns && !r->deadline_ns) s->timed_count--;
    r->not_before_ns = 0;
    charge(s, r, prefill, decode, s->now_ns);
    fair_placed(s, r);
    r->id.attempt++;                                         /* 0 until first placed */
    request_move(r, REQ_PREFILLING);
    s->stats.decisions++;
    act(s, (struct sched_action){ .type = prefill == decode ? ACT_RUN : ACT_PAIR, .req = r->id,
                                  .worker = prefill, .prefill = prefill, .decode = decode,
                                  .cached = cached, .pull_tokens = pull,
                                  .pull_from = pull ? s->held_by : 0,
                                  .pull_ns = (uint64_t)cost.fetch_ns,
                                  .cached_most = s->held_most * s->config.block_tokens });
}

static void place_waiting(struct sched *s, uint64_t now_ns)
{
    int32_t prefill, decode;
    if (s->rated && s->config.policy == POLICY_COST) {
        plan_waiting(s, now_ns);
        for (struct request *r; (r = plan_due(s, now_ns, &prefill, &decode)) != NULL;)
            place(s, r, prefill, decode);
        uint64_t wake = plan_wake_ns(s);
        if (wake < s->wake_ns) s->wake_ns = wake;
        return;
    }
    for (struct request *r; (r = fair_first(s, now_ns)) != NULL;) {
        policy_match(s, r);
        if (!policy_place(s, r, now_ns, &prefill, &decode)) return;  /* nobody overtakes */
        place(s, r, prefill, decode);
    }
}

size_t sched_step(struct sched *s, uint64_t now_ns, const struct sched_event *in, size_t in_count,
                  struct sched_action *out, size_t out_max)
{
    CHECK(in_count <= SCHED_EVENTS_MAX);
    s->now_ns = now_ns;
    s->matched = NULL;                /* the index may have changed, and requests do below */
    for (size_t i = 0; i < in_count; i++) on_event(s, &in[i], now_ns);
    expire(s, now_ns);
    end_stranded(s);
    if (s->lost_wait_ns < s->wake_ns) s->wake_ns = s->lost_wait_ns;
    place_waiting(s, now_ns);
    if (roles_turn(s, now_ns)) place_waiting(s, now_ns);
    uint64_t look = roles_wake_ns(s);
    if (look < s->wake_ns) s->wake_ns = look;
    size_t count = 0;
    while (count < out_max && s->action_count > 0) {
        out[count++] = s->actions[s->action_first];
        s->action_first = (s->action_first + 1) % ACTION_ROOM;
        s->action_count--;
    }
    return count;
}

uint64_t sched_wake_ns(const struct sched *s)
{
    return s->wake_ns;
}

void sched_stats(const struct sched *s, struct sched_stats *out)
{
    *out = s->stats;
    out->waiting = s->queue_count;
    out->prefilling = out->decoding = out->ending = out->prefill_alive = out->decode_alive = 0;
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++) {
        enum req_state state = s->requests[i].state;
        if (state == REQ_PREFILLING || state == REQ_RETRY) out->prefilling++;
        if (state == REQ_DECODING) out->decoding++;
        if (state == REQ_ENDED) out->ending++;
    }
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (!w->alive) continue;
        if (w->role != ROLE_DECODE) out->prefill_alive++;
        if (w->role != ROLE_PREFILL) out->decode_alive++;
    }
    roles_stats(s, out);
}

bool sched_idle(const struct sched *s)
{
    struct sched_stats now;
    sched_stats(s, &now);
    return now.waiting + now.prefilling + now.decoding + now.ending == 0 && s->action_count == 0;
}
