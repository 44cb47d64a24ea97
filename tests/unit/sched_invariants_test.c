/* tests/unit/sched_invariants_test.c - the rules that keep a disaggregated server from wedging.
 *
 * Ten rules (L1 to L10) came out of the post-mortem of a server that hung for good under bursts of
 * cancels: any one of them broken is enough.  Those that the books keep are tests here, over random
 * storms in which workers refuse, die and return.  The others, where they are kept:
 *
 *   L1  every request is answered exactly once         here
 *   L2  a request outlives all that work on it         here
 *   L3  one cancel reaches it whatever it waits for    here; sched_flow_test walks the states
 *   L4  the main loop never waits for work to be done  test_job.py: a stopped worker
 *   L5  room comes back on every way out               here; settle() of every service test
 *   L6  a cancel ends the transfer as well             test_survive.py: test_l6_l9
 *   L7  what was handed over is not looked at again    here: an attempt's late events do nothing
 *   L8  seeing the same event again changes nothing    here
 *   L9  memory that a transfer may touch is not used   test_survive.py: test_l6_l9
 *   L10 exactly one owner cleans up                    here
 */
#include "sched_world.h"

enum { REQUESTS = 40, TURNS = 3000 };

struct storm {
    struct world *w;
    uint64_t random;
    struct req_id ids[REQUESTS];      /* of the attempt that workers know */
    bool live[REQUESTS], ended[REQUESTS];
    bool holds[REQUESTS][RANKS], alive[RANKS], drains[RANKS];
    uint32_t switches;
    uint32_t generation, ends, frees, asked;
};

static uint64_t draw(struct storm *m, uint64_t below)
{
    m->random = m->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (m->random >> 33) % below;
}

static void apply(struct storm *m, const struct sched_action *a)
{
    uint16_t slot = a->req.slot;
    int32_t first = a->type == ACT_RUN ? a->worker : a->prefill;
    int32_t second = a->type == ACT_RUN ? a->worker : a->decode;
    switch (a->type) {
    case ACT_RUN:
    case ACT_PAIR:
        assert_true(m->alive[first] && m->alive[second] && !m->ended[slot]);
        assert_false(m->drains[first] || m->drains[second]);
        m->ids[slot] = a->req;
        m->holds[slot][first] = m->holds[slot][second] = true;
        return;
    case ACT_CANCEL: return;
    case ACT_ROLE:
        for (int i = 0; a->stage == ROLE_SWITCHES && i < REQUESTS; i++)
            assert_false(m->holds[i][a->worker]);
        m->drains[a->worker] = a->stage == ROLE_DRAINS;
        m->switches += a->stage == ROLE_SWITCHES;
        return;
    case ACT_END:
        assert_false(m->ended[slot]);                                                   /* L1 */
        m->ended[slot] = true;
        m->ends++;
        return;
    case ACT_FREE:
        for (int i = 0; i < RANKS; i++) assert_false(m->holds[slot][i]);                /* L2 */
        assert_true(m->ended[slot] && m->live[slot]);                                   /* L10 */
        m->live[slot] = false;
        m->frees++;
        return;
    }
}

static void say(struct storm *m, struct sched_event e)
{
    tell(m->w, e);
    for (size_t i = 0; i < m->w->count; i++) apply(m, &m->w->out[i]);
}

static void check_books(const struct storm *m)
{
    uint32_t seqs[RANKS] = { 0 }, blocks[RANKS] = { 0 };
    for (uint16_t slot = 0; slot < REQUESTS; slot++) {
        const struct request *r = &m->w->s->requests[slot];
        if (r->prefill > 0 && r->prefill != r->decode) {
            seqs[r->prefill]++;
            blocks[r->prefill] += r->prefill_blocks;
        }
        if (r->decode > 0) {
            seqs[r->decode]++;
            blocks[r->decode] += r->decode_blocks;
        }
    }
    for (int i = 1; i < RANKS; i++) {
        assert_int_equal(m->w->s->workers[i].seqs_charged, seqs[i]);                    /* L5 */
        assert_int_equal(m->w->s->workers[i].blocks_charged, blocks[i]);
    }
}

static void ask(struct storm *m, uint16_t slot)
{
    struct sched_event e = request(slot, draw(m, 4));
    e.req.generation = ++m->generation;
    e.prompt_tokens = 1 + (uint32_t)draw(m, 400);
    m->ids[slot] = e.req;
    m->live[slot] = true;
    m->ended[slot] = false;
    m->w->emitted[slot] = 0;
    m->asked++;
    say(m, e);
}

static void come_or_go(struct storm *m, int32_t rank)
{
    if (!m->alive[rank]) {
        m->alive[rank] = true;
        up(m->w, rank, rank < 3 ? ROLE_PREFILL : ROLE_DECODE, 60, 6);
        for (size_t i = 0; i < m->w->count; i++) apply(m, &m->w->out[i]);
        return;
    }
    m->alive[rank] = m->drains[rank] = false;
    for (int i = 0; i < REQUESTS; i++) m->holds[i][rank] = false;
    say(m, (struct sched_event){ .type = EV_WORKER_LOST, .worker = rank });
}

/* A worker says something of a request that it holds; then the same once more, late. */
static void speak(struct storm *m, uint16_t slot, int32_t rank)
{
    static const enum sched_event_type types[] = { EV_FIRST, EV_GREW, EV_FINISHED, EV_GONE,
                                                   EV_GONE, EV_REFUSED };
    struct sched_event e = { .type = types[draw(m, 6)], .req = m->ids[slot], .worker = rank,
                             .finish = FINISH_STOP, .err = draw(m, 3) ? ERR_FULL : ERR_GONE };
    if (!m->holds[slot][rank]) return;
    if (e.type == EV_GREW) m->w->emitted[slot] += 16;
    if (e.type == EV_GONE || e.type == EV_REFUSED) m->holds[slot][rank] = false;
    say(m, e);
    if (e.type == EV_GREW) return;
    bool moved = !req_id_equal(m->ids[slot], e.req);
    struct request before = m->w->s->requests[slot];
    say(m, e);                                                                      /* L7, L8 */
    if (moved || e.type == EV_FIRST || e.type == EV_FINISHED || e.type == EV_GONE)
        assert_memory_equal(&before.state, &m->w->s->requests[slot].state, sizeof before.state);
}

static void storm(uint64_t seed, uint32_t *switches)
{
    struct storm m = { .w = world_make(seed % 2), .random = seed };
    for (int32_t i = 1; i < RANKS; i++) come_or_go(&m, i);
    for (int turn = 0; turn < TURNS; turn++) {
        uint16_t slot = (uint16_t)draw(&m, REQUESTS);
        uint64_t what = draw(&m, 100);
        m.w->now_ns += draw(&m, 20000000);
        if (!m.live[slot]) ask(&m, slot);
        else if (what < 5) say(&m, (struct sched_event){ .type = EV_CANCEL, .req = m.ids[slot] });
        else if (what == 5) come_or_go(&m, 1 + (int32_t)draw(&m, RANKS - 1));
        else if (what < 9)
            say(&m, (struct sched_event){ .type = EV_ROLE,
                                          .worker = 1 + (int32_t)draw(&m, RANKS - 1),
                                          .role = draw(&m, 2) ? ROLE_PREFILL : ROLE_DECODE });
        else speak(&m, slot, 1 + (int32_t)draw(&m, RANKS - 1));
        check_books(&m);
    }
    for (uint16_t slot = 0; slot < REQUESTS; slot++) {                                  /* L3 */
        if (!m.live[slot]) continue;
        say(&m, (struct sched_event){ .type = EV_CANCEL, .req = m.ids[slot] });
        assert_true(m.ended[slot]);
        for (int32_t rank = 1; rank < RANKS; rank++) {
            if (!m.holds[slot][rank]) continue;
            m.holds[slot][rank] = false;
            say(&m, (struct sched_event){ .type = EV_GONE, .req = m.ids[slot], .worker = rank });
        }
    }
    assert_int_equal(m.ends, m.asked);
    assert_int_equal(m.frees, m.asked);
    *switches += m.switches;
    assert_true(sched_idle(m.w->s));
    world_free(m.w);
}

static void l1_l2_l3_l5_l7_l8_l10_hold_in_a_storm_of_deaths_refusals_and_cancels(void **state)
{
    (void)state;
    uint32_t switches = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) storm(seed, &switches);
    assert_true(switches > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(l1_l2_l3_l5_l7_l8_l10_hold_in_a_storm_of_deaths_refusals_and_cancels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
