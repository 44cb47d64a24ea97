/* sched/req.c - the life of a request on rank 0, the queue it waits in, and what it is charged.
 *
 *   FREE --> QUEUED --> PREFILLING --> DECODING --> ENDED --> FREE
 *              ^ |          | |            | |        ^
 *              | `----------|-+------------|-+--------'     (refused, cancelled, lost, done)
 *              `-- RETRY <--+--------------'                (a worker had no room after all)
 */
#include "sched/books.h"

#define TO(state) (1u << (state))

static const uint8_t next_ok[REQ_STATE_COUNT] = {
    [REQ_FREE] = TO(REQ_QUEUED),
    [REQ_QUEUED] = TO(REQ_PREFILLING) | TO(REQ_ENDED),
    [REQ_PREFILLING] = TO(REQ_DECODING) | TO(REQ_RETRY) | TO(REQ_ENDED),
    [REQ_DECODING] = TO(REQ_RETRY) | TO(REQ_ENDED),
    [REQ_RETRY] = TO(REQ_QUEUED) | TO(REQ_ENDED),
    [REQ_ENDED] = TO(REQ_FREE),
};

static void request_check(const struct request *r)
{
    bool held = r->prefill != NO_WORKER || r->decode != NO_WORKER;
    CHECK(r->state < REQ_STATE_COUNT);
    if (r->state == REQ_FREE || r->state == REQ_QUEUED) CHECK(!held);
    if (r->state != REQ_QUEUED) CHECK(r->plan == NO_WORKER);
    if (r->state == REQ_PREFILLING) CHECK(held);
    CHECK(r->prefill != 0 && r->decode != 0);       /* rank 0 never runs the model */
}

void request_move(struct request *r, enum req_state to)
{
    CHECK(next_ok[r->state] & TO(to));
    r->state = to;
    request_check(r);
}

uint32_t request_blocks(const struct sched *s, uint32_t tokens)
{
    return (tokens + s->config.block_tokens - 1) / s->config.block_tokens;
}

uint32_t request_growth(const struct request *r)
{
    return r->max_tokens < 64 ? r->max_tokens : 64;
}

void request_measure(const struct sched *s, struct request *r)
{
    r->blocks_least = request_blocks(s, r->prompt_tokens + 1);
    r->blocks_soon = request_blocks(s, r->prompt_tokens + request_growth(r));
}

static bool goes_before(const struct request *a, const struct request *b)
{
    if (a->priority != b->priority) return a->priority < b->priority;
    if (turn_class(a) != turn_class(b)) return turn_class(a) < turn_class(b);
    if (a->due_ns != b->due_ns) return a->due_ns < b->due_ns;
    return a->order < b->order;
}

void queue_insert(struct sched *s, struct request *r)
{
    uint16_t slot = r->id.slot, after = s->queue_tail;
    while (after != NO_SLOT && goes_before(r, &s->requests[after]))
        after = s->requests[after].previous;
    r->previous = after;
    r->next = after == NO_SLOT ? s->queue_head : s->requests[after].next;
    if (r->previous == NO_SLOT) s->queue_head = slot;
    else s->requests[r->previous].next = slot;
    if (r->next == NO_SLOT) s->queue_tail = slot;
    else s->requests[r->next].previous = slot;
    s->queue_count++;
    fair_queued(s, r);
}

void queue_remove(struct sched *s, struct request *r)
{
    CHECK(s->queue_count > 0);
    if (r->previous == NO_SLOT) s->queue_head = r->next;
    else s->requests[r->previous].next = r->next;
    if (r->next == NO_SLOT) s->queue_tail = r->previous;
    else s->requests[r->next].previous = r->previous;
    r->next = r->previous = NO_SLOT;
    s->queue_count--;
    fair_unqueued(s, r);
}

void charge(struct sched *s, struct request *r, int32_t prefill, int32_t decode, uint64_t now_ns)
{
    struct worker *p = &s->workers[prefill], *d = &s->workers[decode];
    CHECK(p->alive && d->alive);
    r->prefill = prefill;
    r->decode = decode;
    r->prefill_blocks = prefill == decode ? 0 : request_blocks(s, r->prompt_tokens);
    r->decode_blocks = r->blocks_soon;
    r->prompt_charged = true;
    struct prompt_cost cost = cost_of_prompt(s, r, (uint32_t)prefill);
    uint32_t cached = cost_cached_tokens(s, r, (uint32_t)prefill);
    r->work_tokens = r->prompt_tokens - (cost.pull_tokens ? cost.pull_tokens : cached);
    r->work_ns = (uint64_t)cost.compute_ns;
    p->prompt_tokens_charged += r->work_tokens;
    p->work_charged_ns += r->work_ns;
    p->prompts_charged++;
    if (p->busy_until_ns < now_ns) p->busy_until_ns = now_ns;
    p->busy_until_ns += r->work_ns;
    d->blocks_charged += r->decode_blocks;
    d->seqs_charged++;
    d->filled += request_blocks(s, r->prompt_tokens) - s->held[decode];
    if (prefill == decode) return;
    p->filled += r->prefill_blocks - s->held[prefill];
    p->blocks_charged += r->prefill_blocks;
    p->seqs_charged++;
}

void charge_grown(struct sched *s, struct request *r)
{
    if (r->decode == NO_WORKER || !s->config.emitted) return;
    uint32_t held = r->prompt_tokens + s->config.emitted[r->id.slot] - r->emitted;
    uint32_t need = request_blocks(s, held + 1);
    if (need <= r->decode_blocks) return;
    s->workers[r->decode].blocks_charged += need - r->decode_blocks;
    s->workers[r->decode].filled += need - r->decode_blocks;
    r->decode_blocks = need;
}

void discharge_prompt(struct sched *s, struct request *r, uint64_t now_ns)
{
    if (!r->prompt_charged) return;
    struct worker *p = &s->workers[r->prefill];
    CHECK(p->prompt_tokens_charged >= r->work_tokens && p->work_charged_ns >= r->work_ns);
    CHECK(p->prompts_charged > 0);
    p->prompt_tokens_charged -= r->work_tokens;
    p->work_charged_ns -= r->work_ns;
    p->prompts_charged--;
    p->busy_until_ns = now_ns + p->work_charged_ns;
    r->prompt_charged = false;
}

static void discharge_seq(struct worker *w, uint32_t blocks)
{
    CHECK(w->seqs_charged > 0 && w->blocks_charged >= blocks);
    w->seqs_charged--;
    w->blocks_charged -= blocks;
    w->refused_blocks = 0;            /* it has room again: who knows how much */
}

void handing_begin(struct sched *s, struct request *r)
{
    if (r->prefill == r->decode || r->prefill == NO_WORKER || r->decode == NO_WORKER) return;
    r->handing = true;
    s->workers[r->decode].handing_blocks += r->prefill_blocks;
}

static void handing_end(struct sched *s, struct request *r)
{
    if (!r->handing) return;
    struct worker *d = &s->workers[r->decode];
    CHECK(d->handing_blocks >= r->prefill_blocks);
    d->handing_blocks -= r->prefill_blocks;
    r->handing = false;
}

void discharge(struct sched *s, struct request *r, int32_t worker, uint64_t now_ns)
{
    if (r->prefill == worker || r->decode == worker) handing_end(s, r);
    if (r->prefill == worker) {
        discharge_prompt(s, r, now_ns);
        if (r->prefill != r->decode) discharge_seq(&s->workers[worker], r->prefill_blocks);
        r->prefill = NO_WORKER;
    }
    if (r->decode == worker) {
        discharge_seq(&s->workers[worker], r->decode_blocks);
        r->decode = NO_WORKER;
    }
}
