/* sched/plan.c - requests wait on rank 0, planned on a worker, until that worker needs them.
 *
 * A request is planned the moment it arrives: its work counts for every later decision.  It is
 * handed out only when its worker would otherwise run dry, so that until then shorter or more
 * urgent ones can pass it, it can be cancelled for nothing, and it can move to a worker that came
 * free earlier than thought (steal).
 *
 * The turn: by priority, then by arrival + AGING times the time its prompt takes.  Short prompts
 * pass long ones, and nobody is passed by what arrived AGING times its own length later.
 */
#include "sched/books.h"

#define AHEAD_NS UINT64_C(30000000)   /* a worker has at least this much work in hand          */
#define STEAL_GAIN_NS 5e6             /* less is not worth a move */
enum { AGING = 6, STEAL_LOOK = 8, STEAL_MAX = 4 };

uint64_t plan_key_of(const struct request *r, double own_ns)
{
    return r->arrived_ns + AGING * (uint64_t)own_ns;
}

static bool goes_before(const struct request *a, const struct request *b)
{
    if (a->priority != b->priority) return a->priority < b->priority;
    if (a->plan_key != b->plan_key) return a->plan_key < b->plan_key;
    return a->order < b->order;
}

static uint32_t plan_blocks_of(const struct sched *s, const struct request *r)
{
    return request_blocks(s, r->prompt_tokens + (r->max_tokens < 64 ? r->max_tokens : 64));
}

void plan_add(struct sched *s, struct request *r, int32_t rank)
{
    struct worker *w = &s->workers[rank];
    CHECK(r->plan == NO_WORKER && w->alive);
    double own_ns = cost_prefill_ns(s, r, (uint32_t)rank);
    r->plan = rank;
    r->work_ns = (uint64_t)own_ns;
    r->plan_key = plan_key_of(r, own_ns);
    uint16_t before = NO_SLOT, at = w->plan_head;
    while (at != NO_SLOT && !goes_before(r, &s->requests[at])) {
        before = at;
        at = s->requests[at].plan_next;
    }
    r->plan_previous = before;
    r->plan_next = at;
    if (before == NO_SLOT) w->plan_head = r->id.slot;
    else s->requests[before].plan_next = r->id.slot;
    if (at != NO_SLOT) s->requests[at].plan_previous = r->id.slot;
    w->plan_count++;
    w->plan_ns += r->work_ns;
    w->plan_blocks += plan_blocks_of(s, r);
    s->plan_count++;
}

void plan_remove(struct sched *s, struct request *r)
{
    if (r->plan == NO_WORKER) return;
    struct worker *w = &s->workers[r->plan];
    CHECK(w->plan_count > 0 && w->plan_ns >= r->work_ns);
    if (r->plan_previous == NO_SLOT) w->plan_head = r->plan_next;
    else s->requests[r->plan_previous].plan_next = r->plan_next;
    if (r->plan_next != NO_SLOT) s->requests[r->plan_next].plan_previous = r->plan_previous;
    w->plan_count--;
    w->plan_ns -= r->work_ns;
    w->plan_blocks -= plan_blocks_of(s, r);
    s->plan_count--;
    r->plan = NO_WORKER;
}

void plan_all_away(struct sched *s, int32_t rank)
{
    struct worker *w = &s->workers[rank];
    while (w->plan_head != NO_SLOT) plan_remove(s, &s->requests[w->plan_head]);
}

void plan_waiting(struct sched *s, uint64_t now_ns)
{
    if (s->plan_count == s->queue_count) return;
    for (uint16_t slot = s->queue_head; slot != NO_SLOT; slot = s->requests[slot].next) {
        struct request *r = &s->requests[slot];
        if (r->plan != NO_WORKER || r->not_before_ns > now_ns) continue;
        policy_match(s, r);
        int32_t rank = policy_plan(s, r, now_ns);
        if (rank != NO_WORKER) plan_add(s, r, rank);
    }
}

static bool needs_work(const struct worker *w, uint64_t now_ns)
{
    return w->alive && w->busy_until_ns <= now_ns + AHEAD_NS;
}

/* Takes from the worker with the most work ahead what would be served earlier here. */
static bool steal(struct sched *s, uint32_t rank, uint64_t now_ns)
{
    uint32_t from = 0;
    uint64_t most = 0;
    for (uint32_t i = 1; i < s->config.rank_count; i++) {
        const struct worker *w = &s->workers[i];
        uint64_t ends = w->busy_until_ns + w->plan_ns;
        if (w->plan_count == 0 || ends <= most) continue;
        most = ends;
        from = i;
    }
    if (from == 0 || from == rank) return false;
    struct request *best = NULL;
    double best_gain = STEAL_GAIN_NS, ahead = 0;
    const struct worker *w = &s->workers[from];
    if (w->busy_until_ns > now_ns) ahead = (double)(w->busy_until_ns - now_ns);
    uint16_t slot = w->plan_head;
    for (int i = 0; slot != NO_SLOT && i < STEAL_LOOK; i++, slot = s->requests[slot].plan_next) {
        struct request *r = &s->requests[slot];
        if (policy_can_plan(s, r, rank)) {
            policy_match(s, r);
            double more = cost_prefill_ns(s, r, rank) - (double)r->work_ns;
            double gain = ahead - (1 + COST_OTHERS) * more;
            if (gain > best_gain && policy_can_take(s, &s->workers[rank], r)) {
                best_gain = gain;
                best = r;
            }
        }
        ahead += (double)r->work_ns;
    }
    if (!best) return false;
    policy_match(s, best);
    plan_remove(s, best);
    plan_add(s, best, (int32_t)rank);
    return true;
}

static struct request *due_of(struct sched *s, uint32_t rank, uint64_t now_ns, int32_t *decode)
{
    const struct worker *w = &s->workers[rank];
    if (w->plan_head == NO_SLOT || !needs_work(w, now_ns)) return NULL;
    struct request *r = &s->requests[w->plan_head];
    if (!policy_can_take(s, w, r)) return NULL;
    policy_match(s, r);
    *decode = policy_partner(s, r, (int32_t)rank, now_ns);
    return *decode == NO_WORKER ? NULL : r;
}

struct request *plan_due(struct sched *s, uint64_t now_ns, int32_t *prefill, int32_t *decode)
{
    if (s->plan_count == 0) return NULL;
    int steals = 0;
    for (uint32_t rank = 1; rank < s->config.rank_count && s->plan_count > 0; rank++) {
        struct worker *w = &s->workers[rank];
        if (!needs_work(w, now_ns)) continue;
        if (w->plan_head == NO_SLOT && (steals++ >= STEAL_MAX || !steal(s, rank, now_ns))) continue;
        struct request *r = due_of(s, rank, now_ns, decode);
        if (!r) continue;
        *prefill = (int32_t)rank;
        return r;
    }
    return NULL;
}

uint64_t plan_wake_ns(const struct sched *s)
{
    uint64_t wake = UINT64_MAX;
    if (s->plan_count == 0) return wake;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        /* One that is due but lacks room waits for something to happen, not for time. */
        if (!w->alive || needs_work(w, s->now_ns)) continue;
        if (w->busy_until_ns - AHEAD_NS < wake) wake = w->busy_until_ns - AHEAD_NS;
    }
    return wake;
}
