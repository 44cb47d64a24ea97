/* tests/unit/sched_sched_test.c - the scheduler against made-up workers, replayed from seeds.
 *
 * Workers answer late and out of order, refuse, or die.  Whatever happens, every request is ended
 * exactly once and freed exactly once, and at the end the books are empty.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/sampling.h"
#include "sched/books.h"

enum { RANKS = 6, REQUESTS = 300 };

struct fate {                         /* what the simulation knows of a request */
    struct req_id id;
    bool asked, ended, freed, has_first;
    uint8_t holding[RANKS];           /* that worker owes us a GONE   */
    int32_t prefill, decode;
};

struct sim {
    struct sched *s;
    struct fate fates[REQUESTS];
    bool alive[RANKS];
    uint64_t random, now_ns;
    int asked;
};

static uint64_t draw(struct sim *m, uint64_t below)
{
    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    m->random ^= m->random << 17;
    return m->random % below;
}

static struct fate *fate_of(struct sim *m, struct req_id id)
{
    for (int i = 0; i < m->asked; i++)
        if (m->fates[i].id.slot == id.slot && m->fates[i].id.generation == id.generation)
            return &m->fates[i];
    fail_msg("an action names a request that was never made");
    return NULL;
}

static void apply(struct sim *m, const struct sched_action *a)
{
    struct fate *f = fate_of(m, a->req);
    switch (a->type) {
    case ACT_ROLE: fail_msg("nobody asked for another role"); return;
    case ACT_RUN:
        assert_true(m->alive[a->worker] && !f->ended);
        f->holding[a->worker] = 1;
        f->id = a->req;
        f->prefill = f->decode = a->worker;
        break;
    case ACT_PAIR:
        assert_true(m->alive[a->prefill] && m->alive[a->decode] && !f->ended);
        f->holding[a->prefill] = f->holding[a->decode] = 1;
        f->id = a->req;
        f->prefill = a->prefill;
        f->decode = a->decode;
        break;
    case ACT_CANCEL:
        break;
    case ACT_END:
        assert_false(f->ended);
        f->ended = true;
        break;
    case ACT_FREE:
        assert_true(f->ended && !f->freed);
        for (int w = 0; w < RANKS; w++) assert_false(f->holding[w]);
        f->freed = true;
        break;
    }
}

static void step(struct sim *m, const struct sched_event *e, size_t count)
{
    struct sched_action out[3];       /* little room: the rest must wait inside */
    size_t got = sched_step(m->s, m->now_ns, e, count, out, 3);
    for (;;) {
        for (size_t i = 0; i < got; i++) apply(m, &out[i]);
        if (got < 3) break;
        got = sched_step(m->s, m->now_ns, NULL, 0, out, 3);
    }
}

static void ask(struct sim *m)
{
    struct fate *f = &m->fates[m->asked++];
    uint16_t slot = 0;
    while (m->s->requests[slot].state != REQ_FREE) slot++;
    f->id = (struct req_id){ .slot = slot, .generation = (uint32_t)m->asked };
    f->asked = true;
    struct sched_event e = {
        .type = EV_REQUEST, .req = f->id, .prompt_tokens = 1 + (uint32_t)draw(m, 1200),
        .max_tokens = 1 + (uint32_t)draw(m, 50), .priority = (int32_t)draw(m, 3) - 1,
        .deadline_ns = draw(m, 10) == 0 ? m->now_ns + draw(m, 100000000) : 0,
    };
    step(m, &e, 1);
}

/* Some worker says something about a request that it holds. */
static void answer(struct sim *m, struct fate *f)
{
    struct sched_event e = { .req = f->id };
    int32_t w = 1 + (int32_t)draw(m, RANKS - 1);
    if (!f->holding[w]) return;
    e.worker = w;
    switch (draw(m, 6)) {
    case 0: e.type = EV_FIRST; f->has_first = true; break;
    case 1: e.type = EV_FINISHED; e.finish = FINISH_STOP; break;
    case 2:
        e.type = EV_REFUSED;
        e.err = draw(m, 4) ? ERR_FULL : ERR_LIMIT;
        f->holding[w] = 0;
        break;
    default: e.type = EV_GONE; f->holding[w] = 0; break;
    }
    step(m, &e, 1);
}

static void lose(struct sim *m, int32_t w)
{
    m->alive[w] = false;
    for (int i = 0; i < m->asked; i++) m->fates[i].holding[w] = 0;
    struct sched_event e = { .type = EV_WORKER_LOST, .worker = w };
    step(m, &e, 1);
}

static void bring_up(struct sim *m, int32_t w, enum role role)
{
    m->alive[w] = true;
    struct sched_event e = { .type = EV_WORKER_UP, .worker = w, .role = role, .blocks = 100,
                             .seqs = 8, .max_tokens = 1000 };
    step(m, &e, 1);
}

static void run_seed(uint64_t seed, enum sched_policy policy)
{
    struct sim m = { .random = seed * 2654435761u + 1, .now_ns = 1 };
    struct sched_config c = { .rank_count = RANKS, .queue_max = 20, .block_tokens = 16,
                              .policy = policy, .seed = seed };
    void *memory = malloc(sched_bytes(&c));
    m.s = sched_init(memory, &c);
    for (int32_t w = 1; w < RANKS; w++)
        bring_up(&m, w, w < 3 ? ROLE_PREFILL : w < 5 ? ROLE_DECODE : ROLE_BOTH);
    while (m.asked < REQUESTS) {
        m.now_ns += draw(&m, 5000000);
        uint64_t what = draw(&m, 100);
        if (what < 10) ask(&m);
        else if (what < 12 && m.asked > 0) {
            struct fate *f = &m.fates[draw(&m, (uint64_t)m.asked)];
            struct sched_event e = { .type = EV_CANCEL, .req = f->id };
            if (draw(&m, 2)) e.req.attempt = 0;
            step(&m, &e, 1);
        } else if (what == 12 && draw(&m, 30) == 0) {
            int32_t w = 1 + (int32_t)draw(&m, RANKS - 1);
            enum role role = w < 3 ? ROLE_PREFILL : w < 5 ? ROLE_DECODE : ROLE_BOTH;
            if (m.alive[w]) lose(&m, w);
            else bring_up(&m, w, role);
        } else if (m.asked > 0) answer(&m, &m.fates[draw(&m, (uint64_t)m.asked)]);
    }
    for (int32_t w = 1; w < RANKS; w++)
        if (m.alive[w]) lose(&m, w);
    for (int i = 0; i < m.asked; i++) {
        struct sched_event e = { .type = EV_CANCEL, .req = m.fates[i].id };
        m.now_ns += 1000000000;
        step(&m, &e, 1);
    }
    for (int i = 0; i < m.asked; i++) assert_true(m.fates[i].ended && m.fates[i].freed);
    assert_true(sched_idle(m.s));
    assert_int_equal(m.s->timed_count, 0);
    free(memory);
}

static void every_request_ends_once_and_is_freed_once(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++)
        run_seed(seed, (enum sched_policy)(seed % POLICY_COUNT));
}

static struct sched *small(struct sim *m, uint32_t queue_max)
{
    struct sched_config c = { .rank_count = RANKS, .queue_max = queue_max, .block_tokens = 16 };
    *m = (struct sim){ .random = 7, .now_ns = 1 };
    m->s = sched_init(malloc(sched_bytes(&c)), &c);
    return m->s;
}

static struct sched_action one_action(struct sched *s, struct sched_event e)
{
    struct sched_action out[8] = { 0 };
    size_t got = sched_step(s, 1, &e, 1, out, 8);
    assert_true(got >= 1);
    return out[0];
}

static struct sched_event request(uint16_t slot, uint32_t prompt, uint32_t max_tokens)
{
    return (struct sched_event){ .type = EV_REQUEST, .req = { .slot = slot, .generation = 1 },
                                 .prompt_tokens = prompt, .max_tokens = max_tokens };
}

static void two_requests_in_a_row_go_to_different_workers(void **state)
{
    (void)state;
    struct sim m;
    struct sched *s = small(&m, 10);
    bring_up(&m, 1, ROLE_PREFILL);
    bring_up(&m, 2, ROLE_PREFILL);
    bring_up(&m, 3, ROLE_DECODE);
    bring_up(&m, 4, ROLE_DECODE);
    struct sched_action a = one_action(s, request(0, 100, 10));
    struct sched_action b = one_action(s, request(1, 100, 10));
    assert_int_equal(a.type, ACT_PAIR);
    assert_int_equal(b.type, ACT_PAIR);
    assert_int_not_equal(a.prefill, b.prefill);
    assert_int_not_equal(a.decode, b.decode);
    free(s);
}

static void one_token_needs_no_decode_rank(void **state)
{
    (void)state;
    struct sim m;
    struct sched *s = small(&m, 10);
    bring_up(&m, 1, ROLE_PREFILL);
    bring_up(&m, 2, ROLE_DECODE);
    struct sched_action a = one_action(s, request(0, 100, 1));
    assert_int_equal(a.type, ACT_RUN);
    assert_int_equal(a.worker, 1);
    free(s);
}

static void a_full_queue_and_a_long_prompt_are_refused(void **state)
{
    (void)state;
    struct sim m;
    struct sched *s = small(&m, 1);
    struct sched_action out[8];
    struct sched_event waiting = request(0, 10, 10);
    assert_int_equal(sched_step(s, 1, &waiting, 1, out, 8), 0);      /* nobody is up: it waits */
    struct sched_action a = one_action(s, request(1, 10, 10));
    assert_int_equal(a.type, ACT_END);
    assert_int_equal(a.end, END_FULL);
    assert_true(a.retry_after_s > 0);
    struct sched_event up = { .type = EV_WORKER_UP, .worker = 1, .role = ROLE_BOTH, .blocks = 100,
                              .seqs = 8, .max_tokens = 1000 };
    assert_int_equal(one_action(s, up).type, ACT_RUN);
    a = one_action(s, request(2, 1000, 10));
    assert_int_equal(a.type, ACT_END);
    assert_int_equal(a.end, END_TOO_LONG);
    free(s);
}

/* A pair on workers 1 and 2, whose decode worker has no room after all. */
static struct sched_action refused_pair(struct sim *m, bool after_first)
{
    struct sched *s = small(m, 10);
    bring_up(m, 1, ROLE_PREFILL);
    bring_up(m, 2, ROLE_DECODE);
    struct sched_action pair = one_action(s, request(0, 100, 10)), out[8];
    struct sched_event first = { .type = EV_FIRST, .req = pair.req };
    if (after_first) assert_int_equal(sched_step(s, 1, &first, 1, out, 8), 0);
    struct sched_event no = { .type = EV_REFUSED, .req = pair.req, .worker = 2, .err = ERR_FULL };
    assert_int_equal(one_action(s, no).type, ACT_CANCEL);
    return pair;
}

static void a_refusal_after_the_first_token_is_another_attempt(void **state)
{
    (void)state;
    struct sim m;
    struct sched_action pair = refused_pair(&m, true), again;
    struct sched_event gone = { .type = EV_GONE, .req = pair.req, .worker = 1 };
    assert_int_equal(sched_step(m.s, 1, &gone, 1, &again, 1), 0);
    assert_int_equal(sched_step(m.s, sched_wake_ns(m.s), NULL, 0, &again, 1), 1);
    assert_int_equal(again.type, ACT_PAIR);
    assert_int_equal(again.req.attempt, pair.req.attempt + 1);
    free(m.s);
}

static void a_first_token_that_is_the_last_ends_it_also_when_decode_had_no_room(void **state)
{
    (void)state;
    struct sim m;
    struct sched_action pair = refused_pair(&m, false);
    struct sched_event last = { .type = EV_FINISHED, .req = pair.req, .finish = FINISH_STOP };
    struct sched_action a = one_action(m.s, last);
    assert_int_equal(a.type, ACT_END);
    assert_int_equal(a.end, END_DONE);
    struct sched_event gone = { .type = EV_GONE, .req = pair.req, .worker = 1 };
    assert_int_equal(one_action(m.s, gone).type, ACT_FREE);
    free(m.s);
}

static void a_cancel_from_before_it_was_placed_is_not_lost(void **state)
{
    (void)state;
    struct sim m;
    struct sched *s = small(&m, 10);
    bring_up(&m, 1, ROLE_BOTH);
    assert_int_equal(one_action(s, request(0, 100, 10)).type, ACT_RUN);
    struct sched_event cancel = { .type = EV_CANCEL, .req = request(0, 100, 10).req };
    assert_int_equal(one_action(s, cancel).type, ACT_CANCEL);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_request_ends_once_and_is_freed_once),
        cmocka_unit_test(two_requests_in_a_row_go_to_different_workers),
        cmocka_unit_test(one_token_needs_no_decode_rank),
        cmocka_unit_test(a_full_queue_and_a_long_prompt_are_refused),
        cmocka_unit_test(a_refusal_after_the_first_token_is_another_attempt),
        cmocka_unit_test(a_first_token_that_is_the_last_ends_it_also_when_decode_had_no_room),
        cmocka_unit_test(a_cancel_from_before_it_was_placed_is_not_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
