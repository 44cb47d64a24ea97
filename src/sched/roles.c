/* sched/roles.c - a worker goes over from prefill to decode, or back, when the mix of work changes.
 *
 * Each role has a load, the share of what its workers can do in time; above 1 targets are missed:
 *
 *   prefill, of P workers   (workers that compute prompts + backlog / TTFT target) / P
 *   decode, of D workers    the larger of  sequences there or waiting for room / room of D workers
 *                                     and  time of a decode step / ITL target
 *
 * Both can be told for another P and D: as much work comes, and a decode worker holds its sequences
 * the longer, the more it has.  A worker goes over when one role's load is above 1 and has been the
 * larger one for a while; when the giver's load stays well below that, and below 1; and when what
 * all workers gain over the next interval is more than what draining one costs.  To go back the mix
 * must have changed by a third, so that a steady mix settles; when both roles lack workers none
 * moves.
 *
 * The worker is drained first: it gets nothing new and ends what it holds; what it has not ended in
 * time goes on elsewhere, as after a loss.  Then it has its new role at once, with all that is in
 * its cache.  One worker at a time; one of each role stays; none while workers come or go.
 */
#include <math.h>

#include "sched/books.h"

#define ITL_TARGET_NS UINT64_C(50000000)      /* unless the configuration says */
#define DRAIN_NS UINT64_C(10000000000)        /* when there is no interval */
#define GIVEN_MOST 0.8                /* of the larger load: what the giver's may become        */
/* And it must not be the next to lack: decode with so many more tokens, because its load is steep
 * near 1; prefill without a backlog that will be gone. */
#define DECODE_MORE 1.2
#define SWING 2.8                     /* two deviations of n sequences: 2 * sqrt(2 / n) of all  */
#define DECODE_LEFT 0.9
#define PREFILL_LEFT 1.0
#define GAIN_LEAST 0.2                /* of what one worker does */
#define OVER 100.0
#define LATER 2                       /* intervals that a rise of sequences goes on */
/* Parts of the interval: that the average looks back, that a lack must last, between two looks. */
enum { AVERAGE_PART = 3, LASTS_PART = 3, LOOK_PART = 30 };
enum { REST_TOKENS = 200 };           /* that a sequence still has to come, about */

struct team {                         /* of both roles; and a decode worker on average */
    uint32_t prefill, decode;
    double step_ns, step_seq_ns, seqs, blocks;
};

/* -- the mix ---------------------------------------------------------------------------------- */

/* Another sequence as large as those there. */
static bool has_room(const struct worker *w)
{
    uint32_t each = w->seqs_charged ? w->blocks_charged / w->seqs_charged : 0;
    return w->seqs_charged < w->seqs && w->blocks_charged + each < w->blocks;
}

static bool decode_is_full(const struct sched *s)
{
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (w->alive && w->role == ROLE_DECODE && !w->becomes && has_room(w)) return false;
    }
    return true;
}

static void add_worker(struct mix *m, const struct worker *w, bool full, uint64_t now_ns)
{
    m->decoding -= w->prompts_charged;    /* these have their place on a decode worker too */
    if (w->role == ROLE_DECODE) {
        m->held += w->seqs_charged;
        m->decoding += w->seqs_charged;
        m->blocks += w->blocks_charged;
    }
    /* The short rest of a prompt belongs where its beginning is: no work for a prefill worker. */
    if (w->role == ROLE_PREFILL || (double)w->work_charged_ns > w->rates.step_ns) {
        m->prompts += w->prompts_charged > 0;
        m->backlog_ns += (double)w->work_charged_ns;
    }
    /* What could start now, and was not handed out, waits for room to generate. */
    if (full || w->busy_until_ns <= now_ns) m->waiting += w->plan_count;
    else m->backlog_ns += (double)w->plan_ns;
}

/* What is planned nowhere (other policies): nobody overtakes, so the first one says why. */
static void add_queue(const struct sched *s, struct mix *m)
{
    if (s->queue_count == s->plan_count) return;
    bool room = false;
    double token_ns = 0;
    for (uint32_t rank = 1; rank < s->config.rank_count && !room; rank++) {
        const struct worker *w = &s->workers[rank];
        if (!w->alive || w->role != ROLE_PREFILL) continue;
        room = policy_can_take(s, w, &s->requests[s->queue_head]);
        token_ns = w->rates.prefill_token_ns;
    }
    for (uint16_t slot = s->queue_head; slot != NO_SLOT; slot = s->requests[slot].next) {
        const struct request *r = &s->requests[slot];
        if (r->plan != NO_WORKER) continue;
        if (room) m->waiting++;
        else m->backlog_ns += r->prompt_tokens * token_ns;
    }
}

static struct mix mix_now(const struct sched *s, uint64_t now_ns)
{
    struct mix m = { 0 };
    bool full = decode_is_full(s);
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (w->alive && w->role != ROLE_BOTH) add_worker(&m, w, full, now_ns);
    }
    add_queue(s, &m);
    if (m.decoding < 0) m.decoding = 0;
    return m;
}

static void approach(struct mix *m, const struct mix *to, double part)
{
    double *const now[] = { &m->prompts, &m->backlog_ns, &m->decoding, &m->held, &m->waiting,
                            &m->blocks, &m->rising };
    const double seen[] = { to->prompts, to->backlog_ns, to->decoding, to->held, to->waiting,
                            to->blocks, to->rising };
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) *now[i] += part * (seen[i] - *now[i]);
}

static uint64_t look_every_ns(const struct sched *s)
{
    return s->config.switch_interval_ns / LOOK_PART + 1;
}

/* While nothing was there to do nobody looked. */
static void look(struct sched *s, uint64_t now_ns)
{
    struct roles *o = &s->roles;
    uint64_t every = look_every_ns(s), gone = now_ns - o->looked_ns;
    double average = (double)(s->config.switch_interval_ns / AVERAGE_PART + 1);
    if (gone > 2 * every) {
        struct mix nothing = { 0 };
        double idle = (double)(gone - every);
        approach(&o->mix, &nothing, idle / (idle + average));
        gone = every;
    }
    struct mix m = mix_now(s, now_ns);
    m.rising = (m.held - o->held) / ((double)gone / 1e9 + 1e-9);
    o->held = m.held;
    double rising = o->mix.rising;
    approach(&o->mix, &m, (double)gone / ((double)gone + average));
    double longer = (double)gone + average * AVERAGE_PART;    /* a difference has more noise */
    o->mix.rising = rising + (double)gone / longer * (m.rising - rising);
    o->looked_ns = now_ns;
    o->look_ns = now_ns + every;
}

/* -- loads ------------------------------------------------------------------------------------ */

static struct team team_of(const struct sched *s)
{
    struct team t = { 0 };
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (!w->alive) continue;
        t.prefill += w->role == ROLE_PREFILL;
        if (w->role != ROLE_DECODE) continue;
        t.decode++;
        t.step_ns += (w->rates.step_ns - t.step_ns) / t.decode;
        t.step_seq_ns += (w->rates.step_seq_ns - t.step_seq_ns) / t.decode;
        t.seqs += (w->seqs - t.seqs) / t.decode;
        t.blocks += (w->blocks - t.blocks) / t.decode;
    }
    return t;
}

static double load_prefill(const struct sched *s, const struct mix *m, uint32_t prefill)
{
    return (m->prompts + m->backlog_ns / (double)ttft_target_ns(s)) / prefill;
}

/* How many times as many sequences a worker has when `more` times as many tokens as now shall come
 * from another number of workers, whose steps take longer with more of them; at most OVER. */
static double growth(const struct mix *m, const struct team *t, uint32_t decode, double more)
{
    double now = m->decoding / t->decode;
    double tokens = more * now / (t->step_ns + t->step_seq_ns * now) * t->decode / decode;
    double rest = 1 - tokens * t->step_seq_ns;
    if (now <= 0) return more * t->decode / decode;
    if (rest <= 0) return OVER;
    double then = tokens * t->step_ns / rest / now;
    return then < OVER ? then : OVER;
}

static double step_ns(const struct mix *m, const struct team *t, uint32_t decode)
{
    return t->step_ns + t->step_seq_ns * m->decoding / t->decode * growth(m, t, decode, 1);
}

static double load_decode(const struct sched *s, const struct mix *m, const struct team *t,
                          uint32_t decode, double more)
{
    uint64_t target = s->config.itl_target_ns ? s->config.itl_target_ns : ITL_TARGET_NS;
    double each = t->seqs, slow = step_ns(m, t, decode) / (double)target;
    if (m->blocks * each > t->blocks * m->held) each = t->blocks * m->held / m->blocks;
    double full = each > 0 ? (m->held + m->waiting) / (t->decode * each) : 0;
    full *= growth(m, t, decode, more);
    return full > slow ? full : slow;
}

/* -- a switch --------------------------------------------------------------------------------- */

static void say(struct sched *s, uint32_t rank, enum role role, enum sched_role_stage stage)
{
    act(s, (struct sched_action){ .type = ACT_ROLE, .worker = (int32_t)rank, .role = role,
                                  .stage = stage });
}

static uint64_t drain_limit_ns(const struct sched *s)
{
    return s->config.switch_interval_ns ? s->config.switch_interval_ns : DRAIN_NS;
}

/* The worker of this role with the least to end; 0: it is needed where it is. */
static uint32_t giver(const struct sched *s, enum role from)
{
    uint32_t best = 0, count = 0;
    for (uint32_t rank = 1; rank < s->config.rank_count; rank++) {
        const struct worker *w = &s->workers[rank];
        if (!w->alive || w->role != from) continue;
        count++;
        if (!best || w->seqs_charged < s->workers[best].seqs_charged) best = rank;
    }
    return count > 1 ? best : 0;
}

static void begin(struct sched *s, uint32_t rank, enum role role, uint64_t now_ns)
{
    struct roles *o = &s->roles;
    CHECK(o->moving == 0 && s->workers[rank].alive);
    s->workers[rank].becomes = role;
    o->moving = rank;
    o->resumed = false;
    o->drain_end_ns = now_ns + drain_limit_ns(s);
    plan_all_away(s, (int32_t)rank);
    if (s->kept_rank == rank) s->kept_rank = 0;
    say(s, rank, role, ROLE_DRAINS);
}

/* Of a worker that is alive: it has its new role, or stays. */
static void finish(struct sched *s, bool switched)
{
    struct roles *o = &s->roles;
    struct worker *w = &s->workers[o->moving];
    if (switched) {
        CHECK(w->seqs_charged == 0 && w->blocks_charged == 0 && w->plan_count == 0);
        o->last = w->role = w->becomes;
        s->stats.role_switches++;
        policy_roles(s);
    }
    say(s, o->moving, w->role, switched ? ROLE_SWITCHES : ROLE_STAYS);
    w->becomes = 0;
    o->moving = 0;
    o->wanted = 0;
    o->free_ns = s->now_ns + s->config.switch_interval_ns;
}

static void resume_elsewhere(struct sched *s, int32_t rank)
{
    for (uint32_t i = 0; i < REQ_COUNT_MAX; i++) {
        struct request *r = &s->requests[i];
        if (r->state != REQ_PREFILLING && r->state != REQ_DECODING) continue;
        if (r->prefill != rank && r->decode != rank) continue;
        request_resume(s, r);
        s->stats.resumed++;
    }
}

static bool drain(struct sched *s, uint64_t now_ns)
{
    struct roles *o = &s->roles;
    bool empty = s->workers[o->moving].seqs_charged == 0;
    if (!empty && now_ns < o->drain_end_ns) return false;
    if (!empty && !o->resumed) {
        resume_elsewhere(s, (int32_t)o->moving);
        o->resumed = true;
        o->drain_end_ns = now_ns + drain_limit_ns(s);
        return false;
    }
    finish(s, empty);
    return true;
}

/* What draining the next giver takes. */
static double drain_ns(const struct sched *s, const struct team *t, uint32_t rank)
{
    const struct worker *w = &s->workers[rank];
    double limit = (double)drain_limit_ns(s), ns = (double)w->work_charged_ns;
    if (w->role == ROLE_DECODE && w->seqs_charged > 0)
        ns += REST_TOKENS * step_ns(&s->roles.mix, t, t->decode);
    return ns < limit ? ns : limit;
}

/* A sequence lives for long: the mix when as many more have come as do now. */
static struct mix later(const struct sched *s)
{
    struct mix m = s->roles.mix;
    double more = m.rising * LATER * (double)s->config.switch_interval_ns / 1e9;
    if (more <= 0 || m.held <= 0) return m;
    m.blocks *= (m.held + more) / m.held;
    m.held += more;
    m.decoding += more;
    return m;
}

/* How many times as much as on average decode holds now and then: sequences come by themselves, and
 * their sizes vary as much as their mean; so a few are at times many, and large. */
static double swing(const struct mix *m)
{
    return 1 + SWING / sqrt(m->held + 1);
}

/* The role that should have one worker more, and who gives it; 0: all is well as it is. */
static enum role lacking(const struct sched *s, uint32_t *rank)
{
    struct team t = team_of(s);
    if (t.prefill == 0 || t.decode == 0) return 0;
    const struct mix *m = &s->roles.mix;
    double prefill = load_prefill(s, m, t.prefill), decode = load_decode(s, m, &t, t.decode, 1);
    bool more_prefill = prefill > decode;
    uint32_t p = more_prefill ? t.prefill + 1 : t.prefill - 1;
    uint32_t d = more_prefill ? t.decode - 1 : t.decode + 1;
    double most = more_prefill ? prefill : decode;
    if (most < 1 || p == 0 || d == 0) return 0;
    struct mix then = later(s);
    if (!more_prefill) then = *m;
    double prefill_then = load_prefill(s, m, p), decode_then = load_decode(s, &then, &t, d, 1);
    double most_then = prefill_then > decode_then ? prefill_then : decode_then;
    double given = more_prefill ? decode_then : prefill_then;
    if (given > GIVEN_MOST * most) return 0;
    if (more_prefill && load_decode(s, &then, &t, d, DECODE_MORE) > DECODE_LEFT) return 0;
    if (more_prefill && load_decode(s, m, &t, d, swing(m)) > DECODE_LEFT) return 0;
    if (!more_prefill && m->prompts / p > PREFILL_LEFT) return 0;
    *rank = giver(s, more_prefill ? ROLE_DECODE : ROLE_PREFILL);
    double gain = (1 - most_then / most) * (t.prefill + t.decode);
    double gain_ns = gain * (double)s->config.switch_interval_ns;
    if (gain < GAIN_LEAST || gain_ns <= drain_ns(s, &t, *rank)) return 0;
    return more_prefill ? ROLE_PREFILL : ROLE_DECODE;
}

bool roles_turn(struct sched *s, uint64_t now_ns)
{
    struct roles *o = &s->roles;
    bool due = s->config.switch_interval_ns && now_ns >= o->look_ns;
    if (due) look(s, now_ns);
    if (o->moving) return drain(s, now_ns);
    if (!due || !s->rated || s->draining) return false;
    uint32_t rank = 0;
    enum role wanted = lacking(s, &rank);
    if (wanted != o->wanted) o->wanted_ns = now_ns;
    o->wanted = wanted;
    uint64_t lasts = s->config.switch_interval_ns / LASTS_PART;
    if (!wanted || now_ns < o->wanted_ns + lasts) return false;
    if (now_ns < o->free_ns && wanted != o->last) return false;
    begin(s, rank, wanted, now_ns);
    drain(s, now_ns);
    return true;
}

void roles_ask(struct sched *s, int32_t worker, enum role role)
{
    CHECK(worker > 0 && (uint32_t)worker < s->config.rank_count);
    const struct worker *w = &s->workers[worker];
    bool other = (w->role == ROLE_PREFILL && role == ROLE_DECODE)
              || (w->role == ROLE_DECODE && role == ROLE_PREFILL);
    if (!w->alive || !other || s->roles.moving || s->draining || !giver(s, w->role)) return;
    begin(s, (uint32_t)worker, role, s->now_ns);
}

void roles_disturbed(struct sched *s)
{
    struct roles *o = &s->roles;
    if (o->moving && s->workers[o->moving].alive) finish(s, false);
    s->workers[o->moving].becomes = 0;
    o->moving = 0;
    o->wanted = o->last = 0;
    o->free_ns = s->now_ns + s->config.switch_interval_ns;
}

uint64_t roles_wake_ns(const struct sched *s)
{
    const struct roles *o = &s->roles;
    uint64_t wake = UINT64_MAX;
    if (o->moving) wake = o->drain_end_ns;
    bool looks = s->config.switch_interval_ns && s->flows_live > 0;
    return looks && o->look_ns < wake ? o->look_ns : wake;
}

void roles_stats(const struct sched *s, struct sched_stats *out)
{
    struct team t = team_of(s);
    bool known = s->config.switch_interval_ns && s->rated && t.prefill && t.decode;
    out->prefill_load = known ? load_prefill(s, &s->roles.mix, t.prefill) : 0;
    out->decode_load = known ? load_decode(s, &s->roles.mix, &t, t.decode, 1) : 0;
}
