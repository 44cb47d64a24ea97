/* tests/unit/sched_lost_test.c - what was placed before and goes on after a loss: whose turn it is,
 * and where it is computed.
 *
 * A token of a prompt takes 1 ms everywhere, a step 6; nothing is cached.
 */
#include "sched_world.h"

#define MS UINT64_C(1000000)
enum { OURS = 7, OTHERS = 8 };

static struct world *lost_world(const enum role *roles, int32_t count)
{
    static const struct sched_rates rates = { .prefill_token_ns = 1e6, .step_ns = 6e6,
                                              .step_seq_ns = 1e5, .kv_token_bytes = 2e4,
                                              .link_bytes_s = 1e9 };
    struct world *w = world_make(false);
    w->now_ns = 1000 * MS;
    for (int32_t rank = 1; rank <= count; rank++) {
        up(w, rank, roles[rank - 1], 2000, 64);
        tell(w, (struct sched_event){ .type = EV_RATES, .worker = rank, .rates = &rates });
    }
    return w;
}

static void ask(struct world *w, uint16_t slot, uint64_t user, uint32_t tokens, int32_t priority)
{
    struct sched_event e = request(slot, user);
    e.prompt_tokens = tokens;
    e.priority = priority;
    tell(w, e);
}

static void lose(struct world *w, int32_t rank)
{
    tell(w, (struct sched_event){ .type = EV_WORKER_LOST, .worker = rank });
}

/* Slot 0 generates on worker 2, then only worker 1 is left; it computes slot 1 and has planned:
 * slot 2, a short prompt of one who was never served, and slot 3, which is more urgent. */
static void stream_is_lost(struct world *w, uint32_t emitted)
{
    up(w, 2, ROLE_BOTH, 2000, 64);
    ask(w, 1, OTHERS, 800, 0);
    assert_int_equal(done(w, ACT_RUN)->worker, 1);
    ask(w, 0, OURS, 400, 0);
    assert_int_equal(done(w, ACT_RUN)->worker, 2);
    if (emitted) about(w, EV_FIRST, 0, 2);
    w->emitted[0] = emitted;
    lose(w, 2);
    assert_null(done(w, ACT_RUN));
    ask(w, 2, 9, 10, 0);
    ask(w, 3, 9, 10, -1);
}

/* Takes note of who was handed out last, in order. */
static size_t note(const struct world *w, uint16_t *order, size_t count)
{
    for (size_t i = 0; i < w->count; i++)
        if (w->out[i].type == ACT_RUN) order[count++] = w->out[i].req.slot;
    return count;
}

static void what_goes_on_comes_before_new_prompts_of_its_priority(void **state)
{
    (void)state;
    static const uint16_t want[] = { 3, 0, 2 };
    for (uint32_t emitted = 0; emitted <= 40; emitted += 20) {
        struct world *w = lost_world((enum role[]){ ROLE_BOTH }, 1);
        uint16_t order[ACTIONS] = { 0 };
        stream_is_lost(w, emitted);
        about(w, EV_FIRST, 1, 1);
        for (size_t i = 0, count = 0; i < 3; i++) {
            count = note(w, order, count);
            assert_true(count > i);
            assert_int_equal(order[i], want[i]);
            about(w, EV_FIRST, order[i], 1);
        }
        world_free(w);
    }
}

/* Three are lost with their worker: two prompts without a token, and a longer one with one. */
static void a_stream_goes_on_before_prompts_that_had_no_token(void **state)
{
    (void)state;
    struct world *w = lost_world((enum role[]){ ROLE_BOTH, ROLE_BOTH }, 2);
    uint16_t order[ACTIONS] = { 0 };
    size_t count = 0;
    ask(w, 9, OURS, 900, 0);
    int32_t living = done(w, ACT_RUN)->worker, dies = 3 - living;
    ask(w, 0, OURS, 400, 0);
    assert_int_equal(done(w, ACT_RUN)->worker, dies);
    about(w, EV_FIRST, 0, dies);
    w->emitted[0] = 1;
    for (uint16_t slot = 1; slot < 3; slot++) {
        ask(w, slot, OURS, 28, 0);
        assert_int_equal(done(w, ACT_RUN)->worker, dies);
    }
    lose(w, dies);
    about(w, EV_FIRST, 9, living);
    while ((count = note(w, order, count)) < 3) about(w, EV_FIRST, order[count - 1], living);
    assert_int_equal(order[0], 0);
    world_free(w);
}

/* Before rates are known nothing is planned, and the queue has the same order: before somebody who
 * was never served, and before what is due at once. */
static void it_comes_first_in_the_queue_as_well(void **state)
{
    (void)state;
    for (uint64_t user = OURS; user <= OTHERS; user++) {
        struct world *w = world_make(false);
        struct sched_event urgent = request(2, user);
        urgent.ttft_ns = 1;
        w->now_ns = 1000 * MS;
        up(w, 1, ROLE_BOTH, 100, 1);
        up(w, 2, ROLE_BOTH, 100, 1);
        for (uint16_t slot = 0; slot < 2; slot++) ask(w, slot, OURS, 100, 0);
        tell(w, urgent);
        int32_t dies = w->s->requests[1].prefill;
        about(w, EV_FIRST, 1, dies);
        w->emitted[1] = 20;
        lose(w, dies);
        assert_int_equal(w->s->queue_count, 2);
        about(w, EV_FIRST, 0, 3 - dies);
        about(w, EV_FINISHED, 0, 3 - dies);
        about(w, EV_GONE, 0, 3 - dies);
        assert_non_null(done(w, ACT_RUN));
        assert_int_equal(done(w, ACT_RUN)->req.slot, 1);
        world_free(w);
    }
}

/* A stream of 1,000 tokens loses the one worker that could hold it.  It waits for another, and what
 * the small one can take does not wait for it. */
static void nobody_waits_for_what_nobody_can_take(void **state)
{
    (void)state;
    struct world *w = world_make(false);
    w->now_ns = 1000 * MS;
    up(w, 1, ROLE_BOTH, 100, 64);
    ask(w, 0, OURS, 1000, 0);
    assert_int_equal(done(w, ACT_RUN)->worker, 1);
    up(w, 2, ROLE_BOTH, 20, 64);
    about(w, EV_FIRST, 0, 1);
    w->emitted[0] = 20;
    lose(w, 1);
    assert_null(done(w, ACT_RUN));
    ask(w, 1, OTHERS, 10, 0);
    assert_non_null(done(w, ACT_RUN));
    assert_int_equal(done(w, ACT_RUN)->req.slot, 1);
    assert_int_equal(w->s->queue_count, 1);
    up(w, 1, ROLE_BOTH, 100, 64);
    assert_int_equal(done(w, ACT_RUN)->req.slot, 0);
    world_free(w);
}

/* Two prompts of a lost prefill worker: the one that is left computes the first, and the second
 * would stand still for just as long; a decode worker computes it meanwhile. */
static void two_lost_prompts_are_computed_side_by_side(void **state)
{
    (void)state;
    static const enum role roles[] = { ROLE_PREFILL, ROLE_PREFILL, ROLE_DECODE, ROLE_DECODE };
    struct world *w = lost_world(roles, 4);
    ask(w, 9, OURS, 300, 0);
    int32_t living = done(w, ACT_PAIR)->prefill;
    for (uint16_t slot = 0; slot < 2; slot++) ask(w, slot, OURS, 300, 0);
    about(w, EV_FIRST, 9, living);
    about(w, EV_GONE, 9, living);
    lose(w, 3 - living);
    uint16_t lost = w->s->requests[0].state == REQ_RETRY ? 0 : 1;
    about(w, EV_GONE, lost, w->s->requests[lost].decode);
    const struct request *a = &w->s->requests[0], *b = &w->s->requests[1];
    assert_int_equal(a->state, REQ_PREFILLING);
    assert_int_equal(b->state, REQ_PREFILLING);
    assert_true((a->prefill == living) != (b->prefill == living));
    assert_true(a->prefill >= 3 || b->prefill >= 3);
    world_free(w);
}

/* The same two prompts, new: they wait for the prefill worker, for decodes shall not be slowed. */
static void two_new_prompts_wait_for_the_prefill_worker(void **state)
{
    (void)state;
    static const enum role roles[] = { ROLE_PREFILL, ROLE_DECODE, ROLE_DECODE };
    struct world *w = lost_world(roles, 3);
    for (uint16_t slot = 0; slot < 2; slot++) ask(w, slot, OURS, 300, 0);
    assert_int_equal(w->s->requests[0].prefill, 1);
    assert_int_equal(w->s->requests[1].state, REQ_QUEUED);
    assert_int_equal(w->s->requests[1].plan, 1);
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_on_comes_before_new_prompts_of_its_priority),
        cmocka_unit_test(a_stream_goes_on_before_prompts_that_had_no_token),
        cmocka_unit_test(it_comes_first_in_the_queue_as_well),
        cmocka_unit_test(nobody_waits_for_what_nobody_can_take),
        cmocka_unit_test(two_lost_prompts_are_computed_side_by_side),
        cmocka_unit_test(two_new_prompts_wait_for_the_prefill_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
