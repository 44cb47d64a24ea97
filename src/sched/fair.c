/* sched/fair.c - whose turn it is: within a priority, the user who was served least.
 *
 * A flow is what one user (the key of EV_REQUEST) has here.  It has attained the prompt tokens that
 * were computed for it, and twice its output tokens, which cost more.  A user who comes back starts
 * at the floor: where the one who was served last stood, and a share of what was served since.  So
 * nobody saves up, nobody is in debt for what was served while the workers had nothing else to do,
 * and who is ahead is caught up with, even when all others ask once and are never seen again.
 * (Virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", 2024.)
 *
 * Flows live in a table of fixed size.  When more users than it holds are waiting at once, some
 * share a flow; they still get their turns, only together.
 * Always true: flow.live counts its requests that are not ended, flows_live the flows that have
 * one; flows_waiting, the flows that have one in the queue.
 */
#include "sched/books.h"

enum { LOOK = 8, OUTPUT_WEIGHT = 2 };

static struct flow *flow_of(struct sched *s, const struct request *r)
{
    return &s->flows[r->flow];
}

void fair_join(struct sched *s, struct request *r, uint64_t user)
{
    uint64_t hash = user * UINT64_C(0x9e3779b97f4a7c15) >> 32;
    uint32_t first = (uint32_t)(hash % FLOW_COUNT_MAX), at = first, idle = FLOW_COUNT_MAX;
    for (uint32_t i = 0; i < LOOK; i++) {
        at = (first + i) % FLOW_COUNT_MAX;
        if (s->flows[at].user == user && (s->flows[at].live > 0 || s->flows[at].attained > 0)) {
            idle = at;
            break;
        }
        bool better = s->flows[at].live == 0 &&
                      (idle == FLOW_COUNT_MAX || s->flows[at].attained < s->flows[idle].attained);
        if (better) idle = at;
    }
    if (idle == FLOW_COUNT_MAX) idle = first;
    struct flow *f = &s->flows[idle];
    r->flow = (uint16_t)idle;
    if (f->live == 0) {
        if (f->user != user) *f = (struct flow){ .user = user };
        if (f->attained < s->fair_floor) f->attained = s->fair_floor;
        s->flows_live++;
    }
    f->live++;
}

void fair_leave(struct sched *s, const struct request *r)
{
    struct flow *f = flow_of(s, r);
    CHECK(f->live > 0);
    if (--f->live == 0) s->flows_live--;
}

void fair_queued(struct sched *s, const struct request *r)
{
    if (flow_of(s, r)->waiting++ == 0) s->flows_waiting++;
}

void fair_unqueued(struct sched *s, const struct request *r)
{
    struct flow *f = flow_of(s, r);
    CHECK(f->waiting > 0 && s->flows_waiting > 0);
    if (--f->waiting == 0) s->flows_waiting--;
}

static void pay(struct sched *s, struct flow *f, uint64_t tokens)
{
    f->attained += tokens;
    s->fair_floor += (tokens + s->flows_live) / (s->flows_live + 1);
}

/* Paid once: another attempt is not the user's doing. */
void fair_placed(struct sched *s, struct request *r)
{
    struct flow *f = flow_of(s, r);
    if (s->fair_floor < f->attained) s->fair_floor = f->attained;
    if (!r->paid) pay(s, f, r->work_tokens);
    r->paid = true;
}

void fair_grew(struct sched *s, const struct request *r)
{
    pay(s, flow_of(s, r), OUTPUT_WEIGHT * (uint64_t)s->config.block_tokens);
}

bool fair_before(const struct sched *s, const struct request *a, const struct request *b)
{
    return s->flows[a->flow].attained < s->flows[b->flow].attained;
}

/* After a loss: it waits for a worker to come, and nobody has to wait for it. */
static bool is_stranded(const struct sched *s, const struct request *r)
{
    return s->lost_wait_ns != UINT64_MAX && !policy_anybody_ever(s, r);
}

struct request *fair_first(struct sched *s, uint64_t now_ns)
{
    struct request *best = NULL;
    for (uint16_t slot = s->queue_head; slot != NO_SLOT; slot = s->requests[slot].next) {
        struct request *r = &s->requests[slot];
        if (best && (r->priority != best->priority || s->flows_waiting == 1)) break;
        if (r->not_before_ns > now_ns || is_stranded(s, r)) continue;
        if (goes_on(r)) return r;     /* its turn had come: ahead of all of its priority */
        if (!best || fair_before(s, r, best)) best = r;
    }
    return best;
}

struct request *fair_planned(struct sched *s, const struct worker *w)
{
    struct request *best = &s->requests[w->plan_head];
    if (s->flows_waiting == 1 || goes_on(best)) return best;
    for (uint16_t slot = best->plan_next; slot != NO_SLOT; slot = s->requests[slot].plan_next) {
        struct request *r = &s->requests[slot];
        if (r->priority != best->priority) break;
        if (fair_before(s, r, best)) best = r;
    }
    return best;
}
