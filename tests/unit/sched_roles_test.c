/* tests/unit/sched_roles_test.c - when a worker changes its role, and what happens meanwhile.
 *
 * Two prefill workers (ranks 1, 2) and three decode workers (3 to 5) of eight sequences each; a
 * prompt takes 0.2 s, a decode step 20 ms and 1 ms a sequence.
 */
#include "sched_world.h"

#define INTERVAL_NS UINT64_C(6000000000)
#define SECOND_NS UINT64_C(1000000000)
enum { SEQS = 8 };

static struct world *team(uint32_t prefill, uint32_t decode)
{
    struct world *w = world_make(true);
    w->s->config.switch_interval_ns = INTERVAL_NS;
    for (uint32_t i = 1; i <= prefill + decode; i++)
        up(w, (int32_t)i, i <= prefill ? ROLE_PREFILL : ROLE_DECODE, 2000, SEQS);
    return w;
}

/* Time passes; the first action of a role, if there is one. */
static struct sched_action pass(struct world *w, uint64_t ns)
{
    struct sched_action role = { 0 };
    for (uint64_t end = w->now_ns + ns; w->now_ns < end && role.worker == 0;) {
        wait_ns(w, 50000000);
        const struct sched_action *a = done(w, ACT_ROLE);
        if (a) role = *a;
    }
    return role;
}

/* Sequences that generate, spread evenly over the decode workers: slots first .. first+count-1. */
static void generate_of(struct world *w, uint16_t first, uint16_t count, uint32_t tokens)
{
    for (uint16_t slot = first; slot < first + count; slot++) {
        struct sched_event e = request(slot, 0);
        e.prompt_tokens = tokens;
        e.max_tokens = 1000;
        tell(w, e);
        for (int i = 0; i < 100 && w->s->requests[slot].state == REQ_QUEUED; i++)
            wait_ns(w, 10000000);
        int32_t prefill = w->s->requests[slot].prefill;
        if (prefill == NO_WORKER) return;             /* no room: from now on they wait */
        about(w, EV_FIRST, slot, prefill);
        if (prefill != w->s->requests[slot].decode) about(w, EV_GONE, slot, prefill);
    }
}

static void generate(struct world *w, uint16_t first, uint16_t count)
{
    generate_of(w, first, count, 100);
}

static void finish(struct world *w, uint16_t slot)
{
    int32_t rank = w->s->requests[slot].decode;
    about(w, EV_FINISHED, slot, rank);
    about(w, EV_GONE, slot, rank);
}

/* More want to generate than the decode workers have room for. */
static struct world *full_decode(void)
{
    struct world *w = team(2, 3);
    generate(w, 0, 3 * SEQS);
    for (uint16_t slot = 3 * SEQS; slot < 3 * SEQS + 12; slot++) {
        struct sched_event e = request(slot, 0);
        e.max_tokens = 1000;
        tell(w, e);
    }
    return w;
}

static void an_idle_prefill_worker_goes_where_room_to_generate_lacks(void **state)
{
    (void)state;
    struct world *w = full_decode();
    uint64_t since = w->now_ns;
    struct sched_action a = pass(w, 3 * INTERVAL_NS);
    assert_int_equal(a.role, ROLE_DECODE);
    assert_true(w->now_ns > since + INTERVAL_NS / 3);          /* it did not jump */
    assert_true(a.worker == 1 || a.worker == 2);
    /* It held nothing, so both stages came at once. */
    assert_int_equal(w->s->workers[a.worker].role, ROLE_DECODE);
    assert_int_equal(w->s->stats.role_switches, 1);
    wait_ns(w, 50000000);
    assert_true(w->s->workers[a.worker].seqs_charged > 0);
    /* The other one stays, whatever is wanted. */
    assert_int_equal(pass(w, 10 * INTERVAL_NS).worker, 0);
    world_free(w);
}

static void a_decode_worker_goes_where_prompts_wait_and_ends_what_it_has_first(void **state)
{
    (void)state;
    struct world *w = team(1, 3);
    generate(w, 0, 3);                /* one each */
    for (uint16_t slot = 10; slot < 60; slot++) {
        struct sched_event e = request(slot, 0);
        e.prompt_tokens = 3900, e.max_tokens = 1;
        tell(w, e);
    }
    struct sched_action a = pass(w, 3 * INTERVAL_NS);
    assert_int_equal(a.role, ROLE_PREFILL);
    assert_int_equal(a.stage, ROLE_DRAINS);
    const struct worker *leaves = &w->s->workers[a.worker];
    assert_int_equal(leaves->role, ROLE_DECODE);
    assert_int_equal(leaves->plan_count, 0);
    uint32_t seqs = leaves->seqs_charged;
    assert_true(seqs > 0);
    for (int i = 0; i < 20; i++) {    /* nothing new comes to it */
        tell(w, request((uint16_t)(100 + i), 0));
        wait_ns(w, 20000000);
        assert_true(leaves->seqs_charged <= seqs);
        assert_int_equal(leaves->plan_count, 0);
    }
    for (uint16_t slot = 0; slot < 60; slot++) {
        struct request *r = &w->s->requests[slot];
        if (r->decode != a.worker && r->prefill != a.worker) continue;
        assert_int_equal(leaves->role, ROLE_DECODE);
        if (r->state == REQ_PREFILLING) about(w, EV_FIRST, slot, r->prefill);
        if (r->prefill != NO_WORKER && r->prefill != r->decode) about(w, EV_GONE, slot, r->prefill);
        finish(w, slot);
    }
    assert_int_equal(leaves->role, ROLE_PREFILL);
    assert_int_equal(leaves->becomes, 0);
    world_free(w);
}

static void all_rated(struct world *w, double prefill_token_ns)
{
    struct sched_rates rates = cost_rates_guess;
    rates.prefill_token_ns = prefill_token_ns;
    rates.step_seq_ns = 1e4;
    for (int32_t rank = 1; rank <= 3; rank++)
        tell(w, (struct sched_event){ .type = EV_RATES, .worker = rank, .rates = &rates });
}

/* Who goes over when prompts wait, while two decode workers hold `count` sequences of this size. */
static int32_t giver_beside(uint16_t count, uint32_t tokens)
{
    struct world *w = world_make(true);
    w->s->config.switch_interval_ns = INTERVAL_NS;
    for (int32_t rank = 1; rank <= 3; rank++)
        up(w, rank, rank == 1 ? ROLE_PREFILL : ROLE_DECODE, 4000, 200);
    all_rated(w, 2e5);
    generate_of(w, 0, count, tokens);
    assert_int_equal(pass(w, 4 * INTERVAL_NS).worker, 0);
    all_rated(w, 2e7);
    for (uint16_t slot = count; slot < count + 30; slot++) {
        struct sched_event e = request(slot, 0);
        e.max_tokens = 1;
        e.prompt_tokens = 300;
        tell(w, e);
    }
    int32_t rank = pass(w, 2 * INTERVAL_NS).worker;
    world_free(w);
    return rank;
}

/* Both times they hold 2,500 of 8,000 blocks, which one worker has room for, on average. */
static void large_sequences_keep_a_worker_that_many_small_ones_spare(void **state)
{
    (void)state;
    assert_int_not_equal(giver_beside(100, 336), 0);
    assert_int_equal(giver_beside(30, 1248), 0);
}

static void what_is_not_ended_in_time_goes_on_elsewhere(void **state)
{
    (void)state;
    struct world *w = team(2, 3);
    generate(w, 0, 9);
    int32_t rank = w->s->requests[4].decode;
    w->emitted[4] = 7;
    tell(w, (struct sched_event){ .type = EV_ROLE, .worker = rank, .role = ROLE_PREFILL });
    assert_non_null(done(w, ACT_ROLE));
    w->now_ns += INTERVAL_NS - 1;
    wait_ns(w, 0);
    assert_null(done(w, ACT_CANCEL));
    wait_ns(w, 1);
    uint32_t cancels = 0;
    for (size_t i = 0; i < w->count; i++) {
        assert_int_equal(w->out[i].type, ACT_CANCEL);
        assert_int_equal(w->out[i].worker, rank);
        cancels++;
    }
    assert_int_equal(cancels, 3);
    for (uint16_t slot = 0; slot < 9; slot++)
        if (w->s->requests[slot].state == REQ_RETRY) about(w, EV_GONE, slot, rank);
    const struct request *r = &w->s->requests[4];
    for (int i = 0; i < 100 && r->state != REQ_PREFILLING; i++) wait_ns(w, 20000000);
    assert_int_equal(r->id.attempt, 2);
    assert_int_equal(r->prompt_tokens, 107);       /* behind what was emitted */
    assert_int_equal(r->failures, 0);
    assert_true(r->decode != rank);
    assert_int_equal(w->s->workers[rank].role, ROLE_PREFILL);
    assert_int_equal(w->s->stats.resumed, 3);
    world_free(w);
}

static void a_worker_that_never_lets_go_keeps_its_role(void **state)
{
    (void)state;
    struct world *w = team(2, 3);
    generate(w, 0, 3);
    int32_t rank = w->s->requests[0].decode;
    tell(w, (struct sched_event){ .type = EV_ROLE, .worker = rank, .role = ROLE_PREFILL });
    wait_ns(w, INTERVAL_NS);
    wait_ns(w, INTERVAL_NS);
    const struct sched_action *a = done(w, ACT_ROLE);
    assert_non_null(a);
    assert_int_equal(a->stage, ROLE_STAYS);
    assert_int_equal(w->s->workers[rank].role, ROLE_DECODE);
    assert_int_equal(w->s->workers[rank].becomes, 0);
    world_free(w);
}

static void a_loss_calls_a_switch_off(void **state)
{
    (void)state;
    for (int own = 0; own < 2; own++) {
        struct world *w = team(2, 3);
        generate(w, 0, 3);
        int32_t rank = w->s->requests[0].decode;
        tell(w, (struct sched_event){ .type = EV_ROLE, .worker = rank, .role = ROLE_PREFILL });
        assert_int_equal(w->s->workers[rank].becomes, ROLE_PREFILL);
        tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = own ? rank : 1 });
        const struct sched_action *a = done(w, ACT_ROLE);
        assert_true(own ? !a : a && a->stage == ROLE_STAYS && a->worker == rank);
        assert_int_equal(w->s->workers[rank].becomes, 0);
        assert_int_equal(w->s->roles.moving, 0);
        if (own) {                    /* and when it comes back it has nothing of that */
            up(w, rank, ROLE_DECODE, 2000, SEQS);
            assert_int_equal(w->s->workers[rank].becomes, 0);
        }
        world_free(w);
    }
}

static void the_last_one_of_a_role_stays(void **state)
{
    (void)state;
    struct world *w = team(1, 2);
    tell(w, (struct sched_event){ .type = EV_ROLE, .worker = 1, .role = ROLE_DECODE });
    assert_null(done(w, ACT_ROLE));
    tell(w, (struct sched_event){ .type = EV_ROLE, .worker = 3, .role = ROLE_DECODE });
    assert_null(done(w, ACT_ROLE));   /* it has that role */
    tell(w, (struct sched_event){ .type = EV_ROLE, .worker = 3, .role = ROLE_PREFILL });
    assert_non_null(done(w, ACT_ROLE));
    tell(w, (struct sched_event){ .type = EV_ROLE, .worker = 2, .role = ROLE_PREFILL });
    assert_null(done(w, ACT_ROLE));
    generate(w, 0, SEQS);
    for (uint16_t slot = SEQS; slot < 3 * SEQS; slot++) tell(w, request(slot, 0));
    tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = 1 });
    struct sched_action a = pass(w, INTERVAL_NS);
    assert_int_equal(a.worker, 0);    /* nothing begins soon after a loss */
    world_free(w);
}

static void no_worker_moves_when_both_roles_lack_some_or_neither(void **state)
{
    (void)state;
    struct world *w = team(2, 3);
    generate(w, 0, 3 * SEQS - 5);
    for (uint16_t slot = 50; slot < 90; slot++) {    /* and prompts without end */
        struct sched_event e = request(slot, 0);
        e.prompt_tokens = 3000, e.max_tokens = 1;
        tell(w, e);
    }
    wait_ns(w, SECOND_NS);
    struct sched_stats now;
    sched_stats(w->s, &now);
    assert_true(now.prefill_load > 1);
    assert_int_equal(pass(w, 5 * INTERVAL_NS).worker, 0);
    world_free(w);
    w = team(2, 3);
    generate(w, 0, 12);
    assert_int_equal(pass(w, 5 * INTERVAL_NS).worker, 0);
    world_free(w);
}

static void slow_steps_that_no_worker_makes_shorter_move_nobody(void **state)
{
    (void)state;
    struct world *w = team(2, 3);
    struct sched_rates slow = cost_rates_guess;
    slow.step_ns = 2e8;               /* four times the target, with or without others */
    for (int32_t rank = 1; rank < RANKS; rank++)
        tell(w, (struct sched_event){ .type = EV_RATES, .worker = rank, .rates = &slow });
    generate(w, 0, 9);
    assert_int_equal(pass(w, 5 * INTERVAL_NS).worker, 0);
    world_free(w);
}

static void without_an_interval_nobody_moves(void **state)
{
    (void)state;
    struct world *w = full_decode();
    w->s->config.switch_interval_ns = 0;
    assert_int_equal(pass(w, 5 * INTERVAL_NS).worker, 0);
    world_free(w);
}

static void nobody_looks_while_nothing_is_to_do(void **state)
{
    (void)state;
    struct world *w = team(2, 3);
    wait_ns(w, SECOND_NS);
    assert_true(sched_wake_ns(w->s) == UINT64_MAX);
    generate(w, 0, 3);
    assert_true(sched_wake_ns(w->s) <= w->now_ns + INTERVAL_NS);
    for (uint16_t slot = 0; slot < 3; slot++) finish(w, slot);
    assert_true(sched_wake_ns(w->s) == UINT64_MAX);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_prefill_worker_goes_where_room_to_generate_lacks),
        cmocka_unit_test(a_decode_worker_goes_where_prompts_wait_and_ends_what_it_has_first),
        cmocka_unit_test(large_sequences_keep_a_worker_that_many_small_ones_spare),
        cmocka_unit_test(what_is_not_ended_in_time_goes_on_elsewhere),
        cmocka_unit_test(a_worker_that_never_lets_go_keeps_its_role),
        cmocka_unit_test(a_loss_calls_a_switch_off),
        cmocka_unit_test(the_last_one_of_a_role_stays),
        cmocka_unit_test(no_worker_moves_when_both_roles_lack_some_or_neither),
        cmocka_unit_test(slow_steps_that_no_worker_makes_shorter_move_nobody),
        cmocka_unit_test(without_an_interval_nobody_moves),
        cmocka_unit_test(nobody_looks_while_nothing_is_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
