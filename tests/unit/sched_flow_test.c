/* tests/unit/sched_flow_test.c - whose turn it is, what is charged, and the ways out of each state.
 *
 * One event at a time; each test looks at the actions that follow.
 */
#include "sched_world.h"

/* Serves one after another what waits for the one worker; slots in the order they were served. */
static void serve_all(struct world *w, uint16_t running, uint32_t count, uint16_t *order)
{
    for (uint32_t i = 0; i < count; i++) {
        order[i] = running;
        w->now_ns += 1000000;
        about(w, EV_FIRST, running, 1);
        about(w, EV_FINISHED, running, 1);
        about(w, EV_GONE, running, 1);
        const struct sched_action *next = done(w, ACT_RUN);
        if (i + 1 == count) return;
        assert_non_null(next);
        running = next->req.slot;
    }
}

/* Ten requests of one user, then three of another. */
static void two_users(bool rated, uint16_t order[13])
{
    struct world *w = world_make(rated);
    up(w, 1, ROLE_BOTH, 100, 1);
    for (uint16_t i = 0; i < 10; i++) tell(w, request(i, 7));
    for (uint16_t i = 10; i < 13; i++) tell(w, request(i, 8));
    serve_all(w, 0, 13, order);
    assert_true(sched_idle(w->s));
    assert_int_equal(w->s->flows_waiting, 0);
    world_free(w);
}

static void a_user_who_asks_much_does_not_keep_another_waiting(void **state)
{
    (void)state;
    for (int rated = 0; rated < 2; rated++) {
        uint16_t order[13];
        two_users(rated, order);
        static const uint16_t want[] = { 0, 10, 1, 11, 2, 12, 3, 4 };
        for (int i = 0; i < 8; i++) {
            bool other = (order[i] >= 10) == (want[i] >= 10);
            assert_true(other);
        }
    }
}

static void who_was_idle_has_saved_up_nothing(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    uint16_t order[20];
    up(w, 1, ROLE_BOTH, 100, 1);
    for (uint16_t i = 0; i < 6; i++) tell(w, request(i, 7));
    serve_all(w, 0, 5, order);        /* slot 5 runs now */
    for (uint16_t i = 6; i < 9; i++) tell(w, request(i, 7));
    for (uint16_t i = 9; i < 12; i++) tell(w, request(i, 8));
    uint16_t next[7];
    serve_all(w, done(w, ACT_RUN) ? done(w, ACT_RUN)->req.slot : 5, 7, next);
    /* Not all three of user 8 first, though user 7 was served six requests more. */
    assert_true(next[1] >= 9 && next[2] < 9);
    world_free(w);
}

static void a_priority_is_above_fairness(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    uint16_t order[4];
    up(w, 1, ROLE_BOTH, 100, 1);
    struct sched_event e = request(0, 7);
    tell(w, e);
    tell(w, request(1, 8));
    e = request(2, 7);
    e.priority = -1;
    tell(w, e);
    e = request(3, 9);
    e.priority = 1;
    tell(w, e);
    serve_all(w, 0, 4, order);
    assert_int_equal(order[1], 2);
    assert_int_equal(order[2], 1);
    assert_int_equal(order[3], 3);
    world_free(w);
}

static void a_first_token_that_is_due_earlier_comes_earlier(void **state)
{
    (void)state;
    for (int rated = 0; rated < 2; rated++) {
        struct world *w = world_make(rated);
        uint16_t order[4];
        up(w, 1, ROLE_BOTH, 100, 1);
        tell(w, request(0, 0));
        struct sched_event patient = request(1, 0), hurried = request(3, 0);
        patient.ttft_ns = UINT64_C(60000000000);
        hurried.ttft_ns = UINT64_C(300000000);
        tell(w, patient);
        tell(w, request(2, 0));
        tell(w, hurried);
        serve_all(w, 0, 4, order);
        assert_int_equal(order[1], 3);
        assert_int_equal(order[2], 2);
        assert_int_equal(order[3], 1);
        world_free(w);
    }
}

static void more_users_than_flows_are_all_served(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    enum { USERS = 60 };
    for (uint32_t i = 0; i < FLOW_COUNT_MAX; i++) w->s->flows[i].live = 1; /* the table is full */
    uint16_t order[USERS];
    up(w, 1, ROLE_BOTH, 100, 1);
    for (uint16_t i = 0; i < USERS; i++) tell(w, request(i, 1000u + i));
    serve_all(w, 0, USERS, order);
    assert_true(sched_idle(w->s));
    world_free(w);
}

/* One worker, busy for ever with users who each ask once: after how many of them is it 7's turn? */
static void a_user_is_not_passed_by_newcomers_for_ever(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_BOTH, 100, 1);
    tell(w, request(0, 7));
    tell(w, request(1, 7));
    uint16_t running = 0, next = 2, passed = 0;
    while (running != 1 && passed++ < 50) {
        for (; next % 4; next++) tell(w, request(next, 1000u + next));
        w->now_ns += 1000000;
        about(w, EV_FIRST, running, 1);
        about(w, EV_FINISHED, running, 1);
        about(w, EV_GONE, running, 1);
        running = done(w, ACT_RUN)->req.slot;
        tell(w, request(next, 1000u + next));
        next++;
    }
    assert_int_equal(running, 1);
    world_free(w);
}

/* -- what is charged -------------------------------------------------------------------------- */

static void output_is_charged_as_it_grows(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_BOTH, 40, 8);
    struct sched_event e = request(0, 0);
    e.max_tokens = 1000;
    tell(w, e);
    uint32_t before = w->s->workers[1].blocks_charged;
    about(w, EV_FIRST, 0, 1);
    for (uint32_t tokens = 1; tokens <= 480; tokens++) {
        w->emitted[0] = tokens;
        if ((100 + tokens) % 16 == 0) about(w, EV_GREW, 0, 1);
    }
    assert_true(w->s->workers[1].blocks_charged > before);
    assert_true(w->s->workers[1].blocks_charged >= (100 + 480) / 16);
    tell(w, request(1, 0));           /* needs ten blocks; three are left */
    assert_int_equal(w->count, 0);
    about(w, EV_FINISHED, 0, 1);
    about(w, EV_GONE, 0, 1);
    assert_non_null(done(w, ACT_RUN));
    about(w, EV_FINISHED, 1, 1);
    about(w, EV_GONE, 1, 1);
    assert_int_equal(w->s->workers[1].blocks_charged, 0);
    world_free(w);
}

static void who_had_no_room_is_asked_again_when_something_has_gone(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_BOTH, 100, 8);
    tell(w, request(0, 0));
    tell(w, request(1, 0));
    about(w, EV_REFUSED, 1, 1);
    for (int i = 0; i < 100; i++) {
        wait_ns(w, 50000000);
        assert_int_equal(w->count, 0);
    }
    struct sched_event small = request(2, 0);
    small.prompt_tokens = small.max_tokens = 1;
    small.priority = -1;
    tell(w, small);
    assert_non_null(done(w, ACT_RUN));
    about(w, EV_FINISHED, 0, 1);
    about(w, EV_GONE, 0, 1);
    assert_non_null(done(w, ACT_RUN));
    assert_int_equal(done(w, ACT_RUN)->req.slot, 1);
    world_free(w);
}

static void a_slow_decode_worker_keeps_a_part_of_prefills_blocks_at_most(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_PREFILL, 100, 20);
    up(w, 2, ROLE_DECODE, 1000, 20);
    up(w, 3, ROLE_DECODE, 1000, 20);
    uint32_t given[4] = { 0 };
    for (uint16_t i = 0; i < 14; i++) { /* seven blocks each; worker 2 never takes any */
        tell(w, request(i, 0));
        assert_non_null(done(w, ACT_PAIR));
        int32_t decode = done(w, ACT_PAIR)->decode;
        given[decode]++;
        about(w, EV_FIRST, i, 1);
        if (decode == 3) about(w, EV_GONE, i, 1);
    }
    assert_int_equal(given[2], 4);    /* 28 of 100 blocks */
    assert_int_equal(w->s->workers[2].handing_blocks, 28);
    tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = 2 });
    assert_int_equal(w->s->workers[2].handing_blocks, 0);
    world_free(w);
}

/* Nobody waits, nothing is cached: every worker would serve them alike. */
/* `count` requests of one client, whose first tokens take so long; then what waiting weighs. */
static double weight_after(uint64_t wanted_ns, uint64_t taken_ns, int count)
{
    struct world *w = world_make(true);
    up(w, 1, ROLE_BOTH, 1000, 8);
    for (int i = 0; i < count; i++) {
        struct sched_event e = request((uint16_t)i, 0);
        e.ttft_ns = wanted_ns;
        tell(w, e);
        assert_non_null(done(w, ACT_RUN));
        w->now_ns += taken_ns;
        about(w, EV_FIRST, (uint16_t)i, 1);
        about(w, EV_FINISHED, (uint16_t)i, 1);
        about(w, EV_GONE, (uint16_t)i, 1);
        wait_ns(w, UINT64_C(10000000000));
    }
    double weight = cost_weights(w->s).wait;
    world_free(w);
    return weight;
}

static void what_one_client_wants_does_not_change_how_others_are_placed(void **state)
{
    (void)state;
    static const uint64_t in_time = UINT64_C(1500000000), late = UINT64_C(6000000000);
    static const uint64_t wishes[] = { 0, 1000000, UINT64_C(3600000000000) };
    double weight = weight_after(0, late, 4);
    assert_true(weight_after(0, in_time, 40) == 1 && weight > 1.5);
    for (int i = 0; i < 3; i++) {     /* none, 1 ms, an hour: neither makes a debt nor pays one */
        assert_true(weight_after(wishes[i], in_time, 40) == 1);
        assert_true(weight_after(wishes[i], late, 4) == weight);
    }
}

static void idle_workers_fill_their_caches_alike(void **state)
{
    (void)state;
    for (int rated = 0; rated < 2; rated++) {
        struct world *w = world_make(rated);
        up(w, 1, ROLE_BOTH, 1000, 8);
        up(w, 2, ROLE_BOTH, 1000, 8);
        uint32_t given[4] = { 0 };
        for (uint16_t i = 0; i < 12; i++) {
            if (i == 6) up(w, 3, ROLE_BOTH, 1000, 8); /* its cache is empty */
            tell(w, request(i, 0));
            assert_non_null(done(w, ACT_RUN));
            int32_t worker = done(w, ACT_RUN)->worker;
            given[worker]++;
            about(w, EV_FIRST, i, worker);
            about(w, EV_FINISHED, i, worker);
            about(w, EV_GONE, i, worker);
            wait_ns(w, UINT64_C(10000000000));
        }
        assert_int_equal(given[1], 4);
        assert_int_equal(given[2], 4);
        assert_int_equal(given[3], 4);
        world_free(w);
    }
}

/* -- ways out of each state -------------------------------------------------------------------- */

enum where {
    QUEUED, PLANNED, REFUSED, EXPECTING, PUSHING, DECODING, ENDED, RECOVERING, WHERE_COUNT
};

/* Brings request 0 of workers 1 (prefill) and 2 (decode) there. */
static struct world *bring(enum where where)
{
    struct world *w = world_make(where == PLANNED);
    up(w, 1, ROLE_PREFILL, 30, 1);
    up(w, 2, ROLE_DECODE, 30, 8);
    if (where == QUEUED || where == PLANNED) { /* behind another */
        tell(w, request(1, 0));
        w->s->workers[1].busy_until_ns = w->s->workers[2].busy_until_ns = UINT64_MAX / 2;
    }
    tell(w, request(0, 0));
    if (where == QUEUED || where == PLANNED) return w;
    if (where == REFUSED) about(w, EV_REFUSED, 0, 2);
    if (where >= PUSHING) about(w, EV_FIRST, 0, 1);
    if (where == DECODING) about(w, EV_GONE, 0, 1);
    if (where == ENDED) about(w, EV_FINISHED, 0, 2);
    if (where == RECOVERING)
        tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = 2 });
    return w;
}

static const struct { enum req_state state; uint8_t holds, cancels; } expected[WHERE_COUNT] = {
    [QUEUED] = { REQ_QUEUED, 0, 0 },
    [PLANNED] = { REQ_QUEUED, 0, 0 },
    [REFUSED] = { REQ_RETRY, 1, 0 },             /* told when it was refused */
    [EXPECTING] = { REQ_PREFILLING, 3, 2 },
    [PUSHING] = { REQ_DECODING, 3, 2 },
    [DECODING] = { REQ_DECODING, 2, 1 },
    [ENDED] = { REQ_ENDED, 3, 0 },
    [RECOVERING] = { REQ_RETRY, 1, 0 },
};

static uint32_t cancels(const struct world *w)
{
    uint32_t n = 0;
    for (size_t i = 0; i < w->count; i++) n += w->out[i].type == ACT_CANCEL;
    return n;
}

static void check_way_out(enum where where, struct sched_event e, enum sched_end end)
{
    struct world *w = bring(where);
    struct request *r = &w->s->requests[0];
    assert_int_equal(r->state, expected[where].state);
    assert_int_equal((r->prefill == 1) + 2 * (r->decode == 2), expected[where].holds);
    assert_true((where == PLANNED) == (r->plan != NO_WORKER));
    struct req_id id = r->id;
    uint8_t holds = expected[where].holds;
    e.req = id;
    tell(w, e);
    assert_int_equal(cancels(w), expected[where].cancels);
    const struct sched_action *said = done(w, ACT_END);
    assert_true((said == NULL) == (where == ENDED));
    if (said) assert_int_equal(said->end, end);
    for (int32_t rank = 1; rank <= 2; rank++) {
        if (!(holds & rank)) continue;
        assert_null(done(w, ACT_FREE));
        tell(w, (struct sched_event){ .type = EV_GONE, .req = id, .worker = rank });
    }
    assert_non_null(done(w, ACT_FREE));
    assert_int_equal(r->state, REQ_FREE);
    tell(w, e);                       /* late, and once more */
    assert_int_equal(w->count, 0);
    for (uint32_t i = 0; i < FLOW_COUNT_MAX; i++)
        assert_int_equal(w->s->flows[i].live, where == QUEUED || where == PLANNED ? i == 0 : 0);
    world_free(w);
}

static void a_cancel_ends_it_in_every_state(void **state)
{
    (void)state;
    for (enum where i = 0; i < WHERE_COUNT; i++)
        check_way_out(i, (struct sched_event){ .type = EV_CANCEL }, END_CANCELLED);
}

/* -- lost workers ------------------------------------------------------------------------------ */

static void a_lost_decode_worker_means_another_attempt_behind_what_was_emitted(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_PREFILL, 100, 8);
    up(w, 2, ROLE_DECODE, 100, 8);
    up(w, 3, ROLE_DECODE, 100, 8);
    struct sched_event e = request(0, 0);
    tell(w, e);
    struct sched_action first = *done(w, ACT_PAIR);
    about(w, EV_FIRST, 0, 1);
    w->emitted[0] = 20;
    about(w, EV_GONE, 0, 1);
    tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = first.decode });
    const struct sched_action *again = done(w, ACT_PAIR);
    assert_non_null(again);
    assert_int_equal(again->decode, 5 - first.decode);
    assert_int_equal(again->req.attempt, first.req.attempt + 1);
    assert_int_equal(w->s->requests[0].prompt_tokens, 120);
    assert_int_equal(w->s->requests[0].max_tokens, 30);
    world_free(w);
}

static void what_kills_whoever_runs_it_is_ended(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    for (int32_t i = 1; i < RANKS; i++) up(w, i, ROLE_BOTH, 100, 8);
    tell(w, request(0, 0));
    for (int i = 0; i < 4; i++) {
        assert_non_null(done(w, ACT_RUN));
        tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = done(w, ACT_RUN)->worker });
    }
    assert_non_null(done(w, ACT_END));
    assert_int_equal(done(w, ACT_END)->end, END_WORKER_LOST);
    assert_non_null(done(w, ACT_FREE));
    world_free(w);
}

static void those_who_are_left_do_both(void **state)
{
    (void)state;
    for (int lost = 1; lost <= 2; lost++) {
        struct world *w = world_make(false);
        up(w, 1, ROLE_PREFILL, 100, 8);
        up(w, 2, ROLE_DECODE, 100, 8);
        tell(w, request(0, 0));
        tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = lost });
        about(w, EV_GONE, 0, 3 - lost);
        assert_non_null(done(w, ACT_RUN));
        assert_int_equal(done(w, ACT_RUN)->worker, 3 - lost);
        up(w, 3, lost == 1 ? ROLE_PREFILL : ROLE_DECODE, 100, 8);
        tell(w, request(1, 0));
        assert_non_null(done(w, ACT_PAIR));
        world_free(w);
    }
}

static void what_nobody_left_can_take_ends_after_a_while(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_BOTH, 100, 8);
    up(w, 2, ROLE_BOTH, 5, 8);
    tell(w, request(0, 0));
    assert_int_equal(done(w, ACT_RUN)->worker, 1);
    tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = 1 });
    assert_int_equal(w->count, 0);
    assert_true(sched_wake_ns(w->s) < UINT64_MAX);
    w->now_ns = sched_wake_ns(w->s);
    wait_ns(w, 0);
    assert_int_equal(done(w, ACT_END)->end, END_WORKER_LOST);
    assert_true(sched_idle(w->s));
    world_free(w);
}

/* Its number has one bit for something else (wire/msg.h). */
static void attempts_end_before_their_numbers_do(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    up(w, 1, ROLE_BOTH, 100, 8);
    tell(w, request(0, 0));
    w->s->requests[0].id.attempt = ATTEMPT_MAX - 1;
    about(w, EV_REFUSED, 0, 1);
    wait_ns(w, UINT64_C(1000000000));
    assert_int_equal(done(w, ACT_RUN)->req.attempt, ATTEMPT_MAX);
    about(w, EV_REFUSED, 0, 1);
    assert_int_equal(done(w, ACT_END)->end, END_FULL);
    assert_non_null(done(w, ACT_FREE));
    assert_true(sched_idle(w->s));
    world_free(w);
}

struct running { uint16_t slots[16], count; };

/* Notes what the last step placed; was `slot` among it? */
static bool placed(const struct world *w, struct running *run, uint16_t slot)
{
    bool found = false;
    for (size_t i = 0; i < w->count; i++) {
        if (w->out[i].type != ACT_RUN && w->out[i].type != ACT_PAIR) continue;
        found |= w->out[i].req.slot == slot;
        run->slots[run->count++] = w->out[i].req.slot;
    }
    return found;
}

static void end_oldest(struct world *w, struct running *run)
{
    uint16_t slot = run->slots[0];
    int32_t prefill = w->s->requests[slot].prefill, decode = w->s->requests[slot].decode;
    memmove(run->slots, run->slots + 1, --run->count * sizeof *run->slots);
    about(w, EV_FIRST, slot, 0);
    about(w, EV_FINISHED, slot, 0);
    about(w, EV_GONE, slot, prefill);
    if (decode != prefill) about(w, EV_GONE, slot, decode);
}

/* Small requests follow one another through the other prefill worker, and take what room there is
 * for decoding as soon as there is some: a large one must come to its turn all the same. */
static void a_large_request_is_not_kept_from_decoding_by_small_ones(void **state)
{
    (void)state;
    enum { LARGE = 100, ROUNDS = 90 };
    struct world *w = world_make(true);
    struct running run = { .count = 0 };
    for (int32_t rank = 1; rank < 3; rank++) up(w, rank, ROLE_PREFILL, 1000, 64);
    up(w, 3, ROLE_DECODE, 60, 64);
    bool found = false;
    for (uint16_t round = 0; round < ROUNDS && !found; round++) {
        struct sched_event e = request(round == 4 ? LARGE : round, 0);
        if (round == 4) e.prompt_tokens = 800; /* 54 blocks of the 60; a small one takes ten */
        tell(w, e);
        found = placed(w, &run, LARGE);
        wait_ns(w, UINT64_C(1000000000));
        found = placed(w, &run, LARGE) || found;
        if (found || round < 5 || run.count == 0) continue;
        end_oldest(w, &run);
        found = placed(w, &run, LARGE);
    }
    assert_true(found);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_user_who_asks_much_does_not_keep_another_waiting),
        cmocka_unit_test(who_was_idle_has_saved_up_nothing),
        cmocka_unit_test(a_priority_is_above_fairness),
        cmocka_unit_test(a_first_token_that_is_due_earlier_comes_earlier),
        cmocka_unit_test(more_users_than_flows_are_all_served),
        cmocka_unit_test(a_user_is_not_passed_by_newcomers_for_ever),
        cmocka_unit_test(output_is_charged_as_it_grows),
        cmocka_unit_test(who_had_no_room_is_asked_again_when_something_has_gone),
        cmocka_unit_test(a_slow_decode_worker_keeps_a_part_of_prefills_blocks_at_most),
        cmocka_unit_test(what_one_client_wants_does_not_change_how_others_are_placed),
        cmocka_unit_test(idle_workers_fill_their_caches_alike),
        cmocka_unit_test(a_cancel_ends_it_in_every_state),
        cmocka_unit_test(a_lost_decode_worker_means_another_attempt_behind_what_was_emitted),
        cmocka_unit_test(what_kills_whoever_runs_it_is_ended),
        cmocka_unit_test(those_who_are_left_do_both),
        cmocka_unit_test(what_nobody_left_can_take_ends_after_a_while),
        cmocka_unit_test(a_large_request_is_not_kept_from_decoding_by_small_ones),
        cmocka_unit_test(attempts_end_before_their_numbers_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
