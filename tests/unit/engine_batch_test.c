/* tests/unit/engine_batch_test.c - what a step is made of: decodes, prompts in time, shared blocks.
 *
 * Step times are not measured here: before each step the engine is told what steps cost, as if
 * it had learned that on some other machine.
 */
#include "common/clock.h"
#include "engine_world.h"

#define STRETCH 2.0                   /* of batch.c: steps with prompts against decodes alone */
enum { LEAST = 4, PROBE = 16 };       /* of batch.c: least chunk; steps until one without any   */

/* `ms`, as much for a decode, a quarter of it for a prompt token. */
static struct pace taught(double ms)
{
    struct pace p;
    pace_open(&p);
    for (uint32_t i = 0; i < 400; i++) {
        struct pace_load l = { 0 };
        for (uint32_t d = 0; d < i % 5; d++) pace_add_decode(&l, 50 + i % 7);
        if (i % 3) pace_add_prefill(&l, i % 64, 1 + i % 29);
        pace_learn(&p, &l, ms * 1e6 * (1 + l.decode_seqs + 0.25 * l.prefill_tokens));
    }
    memset(p.doubt, 0, sizeof p.doubt);   /* what steps take here changes next to nothing */
    return p;
}

/* Polls once with known costs; true when a step is running, which may then be looked at.  A mock's
 * step takes no time, and would show how wrong these costs are; one that hangs shows nothing. */
static bool turn(struct world *w, const struct pace *p)
{
    w->e->pace = *p;
    w->e->step.started_ns = clock_now_ns() - UINT64_C(3600000000000);
    assert_true(world_turn(w, 5000));
    return w->e->step_running;
}

static double decodes_alone_ns(const struct world *w, const struct pace *p)
{
    struct pace_load l = w->e->step.load;
    l.prefill_tokens = 0;
    l.prefill_context = 0;
    return pace_predict_ns(p, &l);
}

static void decode_some(struct world *w, uint16_t count, uint32_t tokens)
{
    for (uint16_t i = 0; i < count; i++)
        world_request(w, i, SEQ_LOCAL, 40u + i, 5, world_params(tokens));
    for (uint16_t i = 0; i < count; i++)
        while (!w->tracks[i].tokens) assert_true(world_turn(w, 5000));
}

/* Prompts of 120 tokens beside 4 decodes, with this target; the largest chunk that was seen. */
static uint32_t largest_chunk_beside_decodes(uint64_t target_ns, uint32_t *steps)
{
    static struct world w;
    struct engine_config c = world_config(200);
    struct pace p = taught(10);       /* 300 ms for a prompt: no short one */
    c.step_time_target_ns = target_ns;
    world_open(&w, &c);
    decode_some(&w, 4, 110);
    for (uint16_t i = 4; i < 7; i++) world_request(&w, i, SEQ_LOCAL, i, 120, world_params(2));
    uint32_t largest = 0, since_probe = 0;
    *steps = 0;
    while (w.ended < 3) {
        if (!turn(&w, &p)) continue;
        const struct pace_load *l = &w.e->step.load;
        bool waits = w.e->lists[SEQ_WAITING].count > 0;
        assert_true(++since_probe <= PROBE || !waits);
        if (!l->prefill_tokens) {
            if (waits) assert_true(since_probe == PROBE || *steps == 0);
            since_probe = 0;
        }
        if (l->decode_seqs < 4 || !l->prefill_tokens) continue;
        double target = target_ns ? (double)target_ns : STRETCH * decodes_alone_ns(&w, &p);
        if (l->prefill_tokens > LEAST) assert_true(pace_predict_ns(&p, l) <= target * 1.01);
        if (l->prefill_tokens > largest) largest = l->prefill_tokens;
        ++*steps;
    }
    world_run(&w, 7);
    assert_true(*steps > 0);
    world_close(&w);
    return largest;
}

static void beside_decodes_a_prompt_takes_what_ends_in_time_and_always_some(void **state)
{
    (void)state;
    uint32_t steps;
    uint32_t largest = largest_chunk_beside_decodes(0, &steps);   /* 50 ms of 2.5 ms each */
    assert_in_range(largest, 14, 26);
    largest = largest_chunk_beside_decodes(90000000, &steps);     /* 40 ms are left */
    assert_in_range(largest, 11, 21);
    largest = largest_chunk_beside_decodes(1, &steps);            /* no time at all */
    assert_int_equal(largest, LEAST);
    assert_true(steps >= 3 * 119 / LEAST);
    largest = largest_chunk_beside_decodes(1000000000, &steps);   /* no end of time: 64 - 4 */
    assert_int_equal(largest, 60);
}

/* The chunks of two prompts, a long one and then a short one, in the first step beside a decode;
 * the last `emitted` of the long one's tokens were generated before. */
static void chunks_beside_a_decode(uint64_t target_ns, uint32_t emitted, uint32_t chunks[2])
{
    static struct world w;
    struct engine_config c = world_config(200);
    struct pace p = taught(10);
    c.step_time_target_ns = target_ns;
    world_open(&w, &c);
    decode_some(&w, 1, 110);
    struct track *t = world_new(&w, 1, SEQ_LOCAL, world_params(emitted + 1));
    world_prompt(t, 1, 120);
    t->prompt_count -= emitted;
    assert_int_equal(world_add(&w, t, 0, NULL), OK);
    world_request(&w, 2, SEQ_LOCAL, 2, 40, world_params(1));
    chunks[0] = chunks[1] = 0;
    do {
        turn(&w, &p);
    } while (!w.e->step.load.prefill_tokens);
    for (uint32_t i = 1; i < w.e->step.step.seq_count; i++)
        chunks[w.e->step.parts[i].seq->req.slot - 1] = w.e->step.seqs[i].count;
    world_run(&w, 3);
    world_close(&w);
}

static void a_short_prompt_may_take_more_of_a_step_even_behind_a_long_one(void **state)
{
    (void)state;
    uint32_t chunks[2];
    chunks_beside_a_decode(0, 0, chunks);         /* 20 ms alone; 40 for long, 70 for short ones */
    assert_in_range(chunks[0], 5, 11);
    assert_in_range(chunks[1], 9, 15);
    chunks_beside_a_decode(40000000, 0, chunks);  /* what is given counts for all */
    assert_in_range(chunks[0], 5, 11);
    assert_int_equal(chunks[1], 0);
}

/* A stream whose worker was lost stands still until it is computed again. */
static void what_goes_on_behind_tokens_may_take_as_much_as_a_short_prompt(void **state)
{
    (void)state;
    uint32_t chunks[2];
    chunks_beside_a_decode(0, 1, chunks);
    assert_in_range(chunks[0], 17, 23);
    assert_int_equal(chunks[1], 0);
}

/* Tokens of prompts, all long, in the first step beside a decode when so many wait. */
static uint32_t taken_of_long_prompts(uint16_t waiting)
{
    static struct world w;
    struct engine_config c = world_config(200);
    struct pace p = taught(10);
    world_open(&w, &c);
    decode_some(&w, 1, 110);
    for (uint16_t i = 1; i <= waiting; i++)
        world_request(&w, i, SEQ_LOCAL, i, 120, world_params(1));
    do {
        turn(&w, &p);
    } while (!w.e->step.load.prefill_tokens);
    uint32_t taken = w.e->step.load.prefill_tokens;
    world_run(&w, waiting + 1u);
    world_close(&w);
    return taken;
}

static void when_many_wait_for_each_that_decodes_long_prompts_may_take_as_much(void **state)
{
    (void)state;
    assert_in_range(taken_of_long_prompts(2), 5, 11);
    assert_in_range(taken_of_long_prompts(3), 17, 23);
}

/* Beside a decode 20 tokens of short prompts have time.  The second prompt fits as a whole; of the
 * third two would, and keep the others' tokens waiting for nothing. */
static void a_step_that_ends_a_prompt_takes_no_part_of_another(void **state)
{
    (void)state;
    static struct world w;
    static const uint32_t lengths[] = { 14, 4, 14 };
    struct engine_config c = world_config(200);
    struct pace p = taught(10);
    uint32_t chunks[3] = { 0 };
    world_open(&w, &c);
    decode_some(&w, 1, 110);
    for (uint16_t i = 0; i < 3; i++)
        world_request(&w, i + 1, SEQ_LOCAL, i + 1, lengths[i], world_params(1));
    do {
        turn(&w, &p);
    } while (!w.e->step.load.prefill_tokens);
    for (uint32_t i = 1; i < w.e->step.step.seq_count; i++)
        chunks[w.e->step.parts[i].seq->req.slot - 1] = w.e->step.seqs[i].count;
    assert_int_equal(chunks[0], 14);
    assert_int_equal(chunks[1], 4);
    assert_int_equal(chunks[2], 0);
    world_run(&w, 4);
    world_close(&w);
}

/* Three prompts, nobody decodes: steps of 64 tokens, and with several prompts. */
static void count_steps(double ms, uint32_t length, uint32_t *full, uint32_t *mixed)
{
    static struct world w;
    struct engine_config c = world_config(64);
    struct pace p = taught(ms);
    c.step_time_target_ns = 1;
    world_open(&w, &c);
    for (uint16_t i = 0; i < 3; i++) world_request(&w, i, SEQ_LOCAL, i, length, world_params(1));
    *full = *mixed = 0;
    while (w.ended < 3) {
        if (!turn(&w, &p)) continue;
        *full += w.e->step.step.token_count == 64;
        *mixed += w.e->step.step.seq_count > 1;
    }
    world_close(&w);
}

static void without_decodes_a_prompt_takes_the_budget_and_others_join_short_steps(void **state)
{
    (void)state;
    uint32_t full, mixed;
    count_steps(1, 30, &full, &mixed);      /* 15 ms for two */
    assert_int_equal(full, 0);
    assert_int_equal(mixed, 1);
    count_steps(10, 30, &full, &mixed);     /* 75 ms for one */
    assert_int_equal(mixed, 0);
    for (double ms = 1; ms < 20; ms *= 10) {    /* 64 and 56, not 64, 56 and 8, and so on */
        count_steps(ms, 120, &full, &mixed);
        assert_int_equal(full, 3);
        assert_int_equal(mixed, 0);
    }
}

static void time_goes_to_the_prompt_of_the_best_priority_first(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(200);
    struct pace p = taught(10);
    c.step_time_target_ns = 1;
    world_open(&w, &c);
    decode_some(&w, 2, 110);
    static const int32_t priority[3] = { 3, 2, 1 };
    for (uint16_t i = 0; i < 3; i++) {
        struct track *t = world_new(&w, i + 2, SEQ_LOCAL, world_params(1));
        world_prompt(t, i + 2u, 60);
        assert_int_equal(world_add(&w, t, priority[i], NULL), OK);
    }
    while (w.ended < 3) turn(&w, &p);
    uint16_t seen[3], count = 0;
    for (uint32_t i = 0; i < w.order_count && count < 3; i++)
        if (w.order[i] >= 2) seen[count++] = w.order[i];
    static const uint16_t want[3] = { 4, 3, 2 };
    assert_memory_equal(seen, want, sizeof want);
    world_run(&w, 5);
    world_close(&w);
}

/* `count` equal prompts of 100 tokens at once; the tokens that were computed for them. */
static uint32_t computed_for_equal_prompts(struct engine_config *c, uint16_t count)
{
    static struct world w;
    uint32_t computed = 0, cached = 0;
    world_open(&w, c);
    for (uint16_t i = 0; i < count; i++)
        world_request(&w, i, SEQ_LOCAL, 1, 100, world_params(1));
    while (w.ended < count) {
        assert_true(world_turn(&w, 5000));
        if (w.e->step_running) computed += w.e->step.step.token_count;
    }
    for (uint16_t i = 0; i < count; i++) cached += w.tracks[i].cached;
    struct engine_stats s;
    engine_stats(w.e, &s);
    assert_int_equal(s.prompt_tokens, 100 * count);
    assert_int_equal(s.prompt_tokens_cached, cached);
    assert_int_equal(computed + cached, 100 * count);
    world_close(&w);
    return computed;
}

static void a_prefix_that_is_being_computed_is_waited_for_not_computed_again(void **state)
{
    (void)state;
    struct engine_config c = world_config(200);
    assert_int_equal(computed_for_equal_prompts(&c, 4), 100 + 3 * 4);
    c.max_num_batched_tokens = 512;   /* all four would fit one step */
    assert_int_equal(computed_for_equal_prompts(&c, 4), 100 + 3 * 4);
    c.max_num_batched_tokens = 24;
    assert_int_equal(computed_for_equal_prompts(&c, 4), 100 + 3 * 4);
    c.enable_prefix_caching = false;
    assert_int_equal(computed_for_equal_prompts(&c, 4), 400);
}

static void who_waits_for_blocks_of_a_dropped_sequence_computes_them(void **state)
{
    (void)state;
    static struct world w;
    struct engine_config c = world_config(200);
    c.max_num_batched_tokens = 512;
    world_open(&w, &c);
    mock_hold(1);
    struct track *first = world_request(&w, 0, SEQ_LOCAL, 1, 100, world_params(1));
    struct track *second = world_request(&w, 1, SEQ_LOCAL, 1, 100, world_params(1));
    struct track *other = world_request(&w, 2, SEQ_LOCAL, 2, 100, world_params(1));
    assert_true(world_turn(&w, 5000));
    assert_int_equal(w.e->step.step.token_count, 200);    /* second waits, other does not */
    world_drop(&w, first);
    mock_hold(0);
    world_run(&w, 2);
    assert_int_equal(second->tokens, 1);
    assert_int_equal(second->cached, 0);
    assert_int_equal(other->tokens, 1);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(beside_decodes_a_prompt_takes_what_ends_in_time_and_always_some),
        cmocka_unit_test(a_short_prompt_may_take_more_of_a_step_even_behind_a_long_one),
        cmocka_unit_test(what_goes_on_behind_tokens_may_take_as_much_as_a_short_prompt),
        cmocka_unit_test(when_many_wait_for_each_that_decodes_long_prompts_may_take_as_much),
        cmocka_unit_test(a_step_that_ends_a_prompt_takes_no_part_of_another),
        cmocka_unit_test(without_decodes_a_prompt_takes_the_budget_and_others_join_short_steps),
        cmocka_unit_test(time_goes_to_the_prompt_of_the_best_priority_first),
        cmocka_unit_test(a_prefix_that_is_being_computed_is_waited_for_not_computed_again),
        cmocka_unit_test(who_waits_for_blocks_of_a_dropped_sequence_computes_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
