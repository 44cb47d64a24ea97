/* mpi/rank0_rates.c - how fast workers are, from what they learned of their own steps.
 *
 * Workers report with every STATS what the engine's model of step time says (engine/pace.h), and
 * how many steps it is made from.  Those of one host share its cores or have the same devices: they
 * are taken to be equally fast, each weighing as much as it has seen, so that noise between equals
 * decides nothing.  Until a host has computed prompts the scheduler uses what it knows of another.
 */
#include <math.h>

#include "mpi/rank0.h"

#define NEAR 0.05                     /* a smaller change decides nothing */
#define NS_MAX 1e12
#define LINK_GUESS 2e8                /* bytes a second, until a push was long enough to tell */
enum { STEPS_LEAST = 3, STEPS_ENOUGH = 64 };

static bool within(double x, double least)
{
    return isfinite(x) && x >= least && x <= NS_MAX;
}

static bool sane(const struct msg_rates *m)
{
    return within(m->prefill_token_ns, 1e-3) && within(m->prefill_context_ns, 0) &&
           within(m->step_ns, 1e-3) && within(m->step_seq_ns, 1e-3);
}

static double weight_of(uint64_t steps)
{
    return steps < STEPS_ENOUGH ? (double)steps : STEPS_ENOUGH;
}

/* The mean over one host; false: it has not computed enough prompts yet. */
static bool host_rates(const struct rank0 *z, int host, struct sched_rates *out)
{
    struct sched_rates sum = { 0 };
    double prompts = 0, decodes = 0;
    for (int i = 1; i < z->job->size; i++) {
        const struct msg_rates *m = &z->workers[i].stats.rates;
        if (!z->workers[i].alive || z->job->host_of[i] != host || !sane(m)) continue;
        double p = weight_of(m->prefill_steps);
        double d = 1e-6 + weight_of(m->decode_steps); /* a guess, when nobody knows better */
        prompts += p, decodes += d;
        sum.prefill_token_ns += p * m->prefill_token_ns;
        sum.prefill_context_ns += p * m->prefill_context_ns;
        sum.step_ns += d * m->step_ns;
        sum.step_seq_ns += d * m->step_seq_ns;
    }
    if (prompts < STEPS_LEAST) return false;
    *out = (struct sched_rates){
        .prefill_token_ns = sum.prefill_token_ns / prompts,
        .prefill_context_ns = sum.prefill_context_ns / prompts,
        .step_ns = sum.step_ns / decodes, .step_seq_ns = sum.step_seq_ns / decodes,
    };
    return true;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= NEAR * fmax(fabs(a), fabs(b));
}

static bool all_near(const struct sched_rates *a, const struct sched_rates *b)
{
    return near(a->prefill_token_ns, b->prefill_token_ns) && near(a->step_ns, b->step_ns) &&
           near(a->step_seq_ns, b->step_seq_ns) && near(a->link_bytes_s, b->link_bytes_s) &&
           near(a->prefill_token_ns + a->prefill_context_ns,
                b->prefill_token_ns + b->prefill_context_ns);
}

/* The lowest rank of those that compute on the same cores; 0: it has its own. */
static uint32_t cores_of(const struct rank0 *z, int rank)
{
    uint32_t cores = z->workers[rank].about.cores;
    int i = 1;
    while (z->job->host_of[i] != z->job->host_of[rank] || z->workers[i].about.cores != cores) i++;
    return cores ? (uint32_t)i : 0;
}

void rates_learn(struct rank0 *z, int from)
{
    struct sched_rates r;
    if (!host_rates(z, z->job->host_of[from], &r)) return;
    for (int i = 1; i < z->job->size; i++) {
        struct peer_worker *w = &z->workers[i];
        if (!w->alive || z->job->host_of[i] != z->job->host_of[from]) continue;
        r.kv_token_bytes = (double)w->about.kv_token_bytes;
        r.link_bytes_s = w->link_bytes_s > 0 ? w->link_bytes_s : LINK_GUESS;
        r.cores = cores_of(z, i);
        if (all_near(&r, &w->rates)) continue;
        w->rates = r;
        act_event(z, (struct sched_event){ .type = EV_RATES, .worker = i, .rates = &w->rates });
    }
}

void rates_learn_link(struct rank0 *z, int to, double bytes_s)
{
    if (to <= 0 || to >= z->job->size || !(bytes_s > 1 && bytes_s < 1e15)) return;
    struct peer_worker *w = &z->workers[to];
    double before = w->link_bytes_s;
    w->link_bytes_s = before > 0 ? before + 0.2 * (bytes_s - before) : bytes_s;
}
