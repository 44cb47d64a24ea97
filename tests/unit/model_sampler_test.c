/* tests/unit/model_sampler_test.c - the sampler: its random numbers, filters, penalties, ties. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/mem.h"
#include "model/sampler.h"

enum { V = 8 };

static struct sampling neutral(void)
{
    return (struct sampling){ .seed = 42, .temperature = 1, .top_p = 1, .repetition_penalty = 1,
                              .max_tokens = 100 };
}

static int32_t draw_v(const float *logits, uint32_t vocab, const struct sampling *p,
                      const int32_t *history, uint32_t prompt, uint32_t count,
                      const struct logit_bias *bias)
{
    struct sampler *s = sampler_open(vocab);
    struct token_record r;
    struct sample_input in = { .logits = logits, .params = p, .bias = bias, .history = history,
                               .prompt_count = prompt, .history_count = count };
    sampler_draw(s, &in, &r, NULL);
    assert_int_equal(r.position, count);
    assert_int_equal(r.finish, FINISH_NONE);
    sampler_close(s);
    return r.id;
}

static int32_t greedy_with(const float *logits, const struct sampling *p, const int32_t *history,
                           uint32_t prompt, uint32_t count)
{
    struct sampling g = *p;
    g.temperature = 0;
    return draw_v(logits, V, &g, history, prompt, count, NULL);
}

/* How often each of V tokens comes, over positions 0 .. n-1. */
static void tally(const float *logits, const struct sampling *p, int n, int *counts)
{
    struct sampler *s = sampler_open(V);
    int32_t *history = mem_array((size_t)n, sizeof *history);
    memset(counts, 0, V * sizeof *counts);
    for (int i = 0; i < n; i++) {
        struct token_record r;
        struct sample_input in = { .logits = logits, .params = p, .history = history,
                                   .prompt_count = (uint32_t)i, .history_count = (uint32_t)i };
        sampler_draw(s, &in, &r, NULL);
        assert_in_range(r.id, 0, V - 1);
        counts[r.id]++;
    }
    free(history);
    sampler_close(s);
}

static void philox_matches_the_published_vectors(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint32_t out[4];
        philox4x32(known[i].counter, known[i].key, out);
        assert_memory_equal(out, known[i].out, sizeof out);
    }
}

static const float spread[V] = { 1.0f, 3.0f, 2.0f, -1.0f, 2.5f, 0.0f, 2.0f, -4.0f };

static void draws_follow_the_softmax_of_the_logits(void **state)
{
    (void)state;
    for (int hot = 0; hot < 2; hot++) {
        struct sampling p = neutral();
        p.temperature = hot ? 1.7f : 0.8f;
        int counts[V], n = 20000;
        tally(spread, &p, n, counts);
        double total = 0, chi = 0;
        for (int i = 0; i < V; i++) total += exp((double)(spread[i] / p.temperature));
        for (int i = 0; i < V; i++) {
            double expected = n * exp((double)(spread[i] / p.temperature)) / total;
            chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        }
        assert_true(chi < 24.3);     /* 7 degrees of freedom: passed by chance once in 1000 */
    }
}

static void a_flat_vocabulary_is_drawn_from_evenly(void **state)
{
    (void)state;
    enum { N = 50000, PARTS = 10 };
    float *flat = mem_array(N, sizeof *flat);
    int counts[PARTS] = { 0 };
    struct sampling p = neutral();
    int32_t history[200] = { 0 };
    for (uint32_t i = 0; i < 200; i++) {
        counts[draw_v(flat, N, &p, history, i, i, NULL) / (N / PARTS)]++;
    }
    for (int i = 0; i < PARTS; i++) assert_in_range(counts[i], 5, 40);
    free(flat);
}

static void top_k_keeps_the_k_best_and_ties_go_to_the_lower_id(void **state)
{
    (void)state;
    struct sampling p = neutral();
    int counts[V];
    p.top_k = 3;                      /* ids 1, 4 and, of the equal 2 and 6, 2 */
    tally(spread, &p, 3000, counts);
    assert_true(counts[1] > 0 && counts[4] > 0 && counts[2] > 0);
    assert_int_equal(counts[1] + counts[4] + counts[2], 3000);
    p.top_k = 1;
    tally(spread, &p, 300, counts);
    assert_int_equal(counts[1], 300);
    p.top_k = V + 5;
    tally(spread, &p, 3000, counts);
    assert_true(counts[0] > 0);
}

static void top_p_keeps_the_fewest_that_reach_it(void **state)
{
    (void)state;
    /* 0.5 0.25 0.125 0.125 */
    float logits[V] = { logf(0.125f), logf(0.5f), logf(0.125f), logf(0.25f),
                        -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    struct sampling p = neutral();
    int counts[V];
    p.top_p = 0.49f;
    tally(logits, &p, 500, counts);
    assert_int_equal(counts[1], 500);
    p.top_p = 0.6f;
    tally(logits, &p, 2000, counts);
    assert_true(counts[3] > 0);
    assert_int_equal(counts[1] + counts[3], 2000);
    assert_in_range(counts[1], 1250, 1420);     /* two thirds: what is left is scaled up */
    p.top_p = 0.8f;                             /* of two equal ones the lower id is kept */
    tally(logits, &p, 2000, counts);
    assert_true(counts[0] > 0 && counts[2] == 0);
    p.top_p = 1e-9f;
    tally(logits, &p, 100, counts);
    assert_int_equal(counts[1], 100);
}

static void top_p_counts_what_top_k_left(void **state)
{
    (void)state;
    /* After top_k 2, the first has 2/3: enough for 0.6, though it is only 0.5 of all. */
    float logits[V] = { logf(0.5f), logf(0.25f), logf(0.125f), logf(0.125f),
                        -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    struct sampling p = neutral();
    int counts[V];
    p.top_p = 0.6f;
    p.top_k = 2;
    tally(logits, &p, 500, counts);
    assert_int_equal(counts[0], 500);
}

static void min_p_drops_what_is_far_below_the_best_after_temperature(void **state)
{
    (void)state;
    float logits[V] = { 0, logf(0.5f), logf(0.3f), logf(0.1f),
                        -INFINITY, -INFINITY, -INFINITY, -INFINITY };
    struct sampling p = neutral();
    int counts[V];
    p.min_p = 0.25f;
    tally(logits, &p, 2000, counts);
    assert_true(counts[2] > 0 && counts[3] == 0);
    p.temperature = 2;                /* the ratios become 0.71 0.55 0.32: all stay */
    tally(logits, &p, 2000, counts);
    assert_true(counts[3] > 0);
    p.min_p = 1;
    tally(logits, &p, 100, counts);
    assert_int_equal(counts[0], 100);
}

static void greedy_takes_the_best_and_of_equals_the_first(void **state)
{
    (void)state;
    struct sampling p = neutral();
    float ties[V] = { 0, 5, 1, 5, 5, 0, 0, 0 };
    assert_int_equal(greedy_with(ties, &p, NULL, 0, 0), 1);
    p.temperature = 1e-6f;            /* below the bound */
    assert_int_equal(draw_v(ties, V, &p, NULL, 0, 0, NULL), 1);
}

static void logits_that_are_no_numbers_are_survived(void **state)
{
    (void)state;
    struct sampling p = neutral();
    float nans[V] = { NAN, NAN, 1, NAN, -INFINITY, NAN, NAN, NAN }, none[V];
    for (int i = 0; i < V; i++) none[i] = i % 2 ? -INFINITY : NAN;
    float infinite[V] = { 1, 2, INFINITY, 3, 4, INFINITY, NAN, -INFINITY };
    int counts[V];
    tally(nans, &p, 50, counts);
    assert_int_equal(counts[2], 50);
    tally(none, &p, 50, counts);
    assert_int_equal(counts[0], 50);
    tally(infinite, &p, 200, counts);
    assert_true(counts[2] > 0 && counts[5] > 0);
    assert_int_equal(counts[2] + counts[5], 200);
    assert_int_equal(greedy_with(none, &p, NULL, 0, 0), 0);
    assert_int_equal(greedy_with(infinite, &p, NULL, 0, 0), 2);
    struct sampler *s = sampler_open(V);
    struct token_record r;
    struct top_logprob top[4];
    sampler_score(s, none, 3, 0, 4, &r, top);
    assert_float_equal(r.logprob, -9999, 0);
    sampler_score(s, infinite, 2, 0, 4, &r, top);
    assert_float_equal(r.logprob, -logf(2), 1e-6);
    sampler_close(s);
}

static void repetition_penalty_covers_prompt_and_output(void **state)
{
    (void)state;
    float logits[V] = { 4, 3, 0, -2, -3, -9, -9, -9 };
    int32_t history[2] = { 0, 3 };
    struct sampling p = neutral();
    p.repetition_penalty = 2;         /* 4 -> 2 */
    assert_int_equal(greedy_with(logits, &p, history, 2, 2), 1);
    assert_int_equal(greedy_with(logits, &p, history, 0, 2), 1);
    assert_int_equal(greedy_with(logits, &p, history + 1, 1, 1), 0);
    float negative[V] = { -9, -9, -9, -2, -3, -9, -9, -9 };
    assert_int_equal(greedy_with(negative, &p, history, 2, 2), 4);  /* -2 -> -4 */
    int32_t repeated[3] = { 0, 0, 0 };
    float once[V] = { 8, 3, 0, 0, 0, 0, 0, 0 };
    assert_int_equal(greedy_with(once, &p, repeated, 3, 3), 0);     /* 8 -> 4, not 1 */
}

static void presence_and_frequency_count_only_the_output(void **state)
{
    (void)state;
    float logits[V] = { 3, 2.6f, 1.2f, 0, 0, 0, 0, 0 };
    int32_t history[4] = { 0, 0, 0, 1 };
    struct sampling p = neutral();
    p.presence_penalty = 0.5f;
    assert_int_equal(greedy_with(logits, &p, history, 4, 4), 0);    /* all prompt */
    assert_int_equal(greedy_with(logits, &p, history, 2, 3), 1);    /* 3 - 0.5 */
    assert_int_equal(greedy_with(logits, &p, history, 0, 4), 0);    /* both lose 0.5 */
    p.presence_penalty = 0;
    p.frequency_penalty = 0.5f;
    assert_int_equal(greedy_with(logits, &p, history, 0, 4), 1);    /* 3 - 1.5, 2.6 - 0.5 */
    p.frequency_penalty = -1;
    assert_int_equal(greedy_with(logits, &p, history + 3, 0, 1), 1);
}

static void ids_outside_the_vocabulary_are_passed_over(void **state)
{
    (void)state;
    int32_t history[3] = { -1, V, INT32_MAX };
    struct logit_bias bias[2] = { { -5, 100 }, { V, 100 } };
    struct sampling p = neutral();
    p.repetition_penalty = 1.5f;
    p.bias_count = 2;
    p.temperature = 0;
    p.min_tokens = 9;
    p.stop_id_count = 2;
    p.stop_ids[0] = -1;
    p.stop_ids[1] = V;
    assert_int_equal(draw_v(spread, V, &p, history, 0, 3, bias), 1);
}

static void bias_is_added_and_comes_before_penalties(void **state)
{
    (void)state;
    struct sampling p = neutral();
    struct logit_bias bias[1] = { { 5, 4 } };
    int32_t history[1] = { 5 };
    p.bias_count = 1;
    p.temperature = 0;
    assert_int_equal(draw_v(spread, V, &p, history, 1, 1, bias), 5);
    p.repetition_penalty = 2;         /* (0 + 4) / 2 = 2, below 3; 0/2 + 4 would win */
    assert_int_equal(draw_v(spread, V, &p, history, 1, 1, bias), 1);
}

static void stop_ids_wait_for_min_tokens(void **state)
{
    (void)state;
    struct sampling p = neutral();
    int32_t history[5] = { 7, 7, 7, 7, 7 };
    p.min_tokens = 2;
    p.stop_id_count = 2;
    p.stop_ids[0] = 1;
    p.stop_ids[1] = 4;
    assert_int_equal(greedy_with(spread, &p, history, 3, 3), 2);
    assert_int_equal(greedy_with(spread, &p, history, 3, 4), 2);
    assert_int_equal(greedy_with(spread, &p, history, 3, 5), 1);
}

static void the_same_question_has_the_same_answer(void **state)
{
    (void)state;
    enum { N = 3000 };
    float *logits = mem_array(N, sizeof *logits);
    srand(7);
    for (int i = 0; i < N; i++) logits[i] = (float)(rand() % 4000) / 400.0f;
    struct sampling p = neutral();
    int32_t history[64] = { 0 };
    struct sampler *used = sampler_open(N);
    int differ = 0;
    for (uint32_t i = 0; i < 64; i++) {
        p.top_k = i % 3 ? 0 : 40;
        p.top_p = i % 2 ? 1.0f : 0.9f;
        struct token_record r;
        struct sample_input in = { .logits = logits, .params = &p, .history = history,
                                   .prompt_count = 1, .history_count = i + 1 > 63 ? 63 : i + 1 };
        sampler_draw(used, &in, &r, NULL);
        assert_int_equal(r.id, draw_v(logits, N, &p, history, 1, in.history_count, NULL));
        p.seed++;
        sampler_draw(used, &in, &r, NULL);
        differ += r.id != draw_v(logits, N, &p, history, 1, in.history_count + 1 > 63 ? 62 :
                                 in.history_count + 1, NULL);
    }
    assert_true(differ > 32);         /* seed and position both matter */
    sampler_close(used);
    free(logits);
}

struct plain {
    double p;
    int32_t id;
};
static int plain_order(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->id < y->id ? -1 : 1;
}

/* The definition, with a full sort: temperature, min_p, top_k, top_p, draw. */
static int32_t draw_plainly(const float *logits, int n, const struct sampling *p, uint32_t position)
{
    struct plain *all = mem_array((size_t)n, sizeof *all);
    double best = -INFINITY, total = 0, sum = 0;
    for (int i = 0; i < n; i++) best = fmax(best, (double)logits[i]);
    int count = 0;
    for (int i = 0; i < n; i++) {
        double weight = exp(((double)logits[i] - best) / (double)p->temperature);
        if (weight >= (double)p->min_p) all[count++] = (struct plain){ weight, i };
    }
    qsort(all, (size_t)count, sizeof *all, plain_order);
    if (p->top_k > 0 && p->top_k < count) count = p->top_k;
    for (int i = 0; i < count; i++) total += all[i].p;
    int kept = 0;
    while (kept < count && (kept == 0 || sum < (double)p->top_p * total)) sum += all[kept++].p;
    uint32_t counter[4] = { position, 0, 0, 0 }, out[4];
    uint32_t key[2] = { (uint32_t)p->seed, (uint32_t)(p->seed >> 32) };
    philox4x32(counter, key, out);
    double target = ((out[0] >> 5) * 67108864.0 + (out[1] >> 6)) / 9007199254740992.0 * sum;
    int at = 0;
    for (double run = all[0].p; at < kept - 1 && run <= target; run += all[at].p) at++;
    int32_t id = all[at].id;
    free(all);
    return id;
}

static void draws_agree_with_a_full_sort(void **state)
{
    (void)state;
    enum { N = 2000 };
    static float logits[N];
    static int32_t history[8];
    srand(11);
    for (int round = 0; round < 400; round++) {
        double scale = round % 5 ? 3.0 : 0.02;
        for (int i = 0; i < N; i++) logits[i] = (float)((rand() % 10000) / 1000.0 * scale);
        struct sampling p = neutral();
        p.seed = (uint64_t)round << 33 | 5;
        p.temperature = round % 2 ? 0.7f : 1.5f;
        p.top_k = round % 3 == 0 ? 1 + rand() % 100 : 0;
        p.top_p = round % 4 == 1 ? 0.95f : 1;
        p.min_p = round % 7 == 2 ? 0.05f : 0;
        assert_int_equal(draw_v(logits, N, &p, history, 8, 8, NULL),
                         draw_plainly(logits, N, &p, 8));
    }
}

static void log_probabilities_are_those_of_the_raw_logits(void **state)
{
    (void)state;
    struct sampler *s = sampler_open(V);
    struct sampling p = neutral();
    p.temperature = 0;
    p.repetition_penalty = 3;
    p.flags = SAMPLING_LOGPROBS;
    p.top_count = 3;
    int32_t history[1] = { 1 };
    struct token_record r;
    struct top_logprob top[3];
    struct sample_input in = { .logits = spread, .params = &p, .history = history,
                               .prompt_count = 1, .history_count = 1 };
    sampler_draw(s, &in, &r, top);
    double total = 0;
    for (int i = 0; i < V; i++) total += exp((double)spread[i]);
    assert_int_equal(r.id, 4);        /* 1 was penalised */
    assert_int_equal(r.rank, 2);
    assert_int_equal(r.top_count, 3);
    assert_float_equal(r.logprob, 2.5 - log(total), 1e-6);
    int32_t order[3] = { 1, 4, 2 };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(top[i].id, order[i]);
        assert_float_equal(top[i].logprob, (double)spread[order[i]] - log(total), 1e-6);
    }
    sampler_score(s, spread, 6, 9, 0, &r, NULL);    /* 2 and 6 are equal: 6 is behind */
    assert_int_equal(r.rank, 4);
    assert_int_equal(r.position, 9);
    sampler_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_matches_the_published_vectors),
        cmocka_unit_test(draws_follow_the_softmax_of_the_logits),
        cmocka_unit_test(a_flat_vocabulary_is_drawn_from_evenly),
        cmocka_unit_test(top_k_keeps_the_k_best_and_ties_go_to_the_lower_id),
        cmocka_unit_test(top_p_keeps_the_fewest_that_reach_it),
        cmocka_unit_test(top_p_counts_what_top_k_left),
        cmocka_unit_test(min_p_drops_what_is_far_below_the_best_after_temperature),
        cmocka_unit_test(greedy_takes_the_best_and_of_equals_the_first),
        cmocka_unit_test(logits_that_are_no_numbers_are_survived),
        cmocka_unit_test(repetition_penalty_covers_prompt_and_output),
        cmocka_unit_test(presence_and_frequency_count_only_the_output),
        cmocka_unit_test(ids_outside_the_vocabulary_are_passed_over),
        cmocka_unit_test(bias_is_added_and_comes_before_penalties),
        cmocka_unit_test(stop_ids_wait_for_min_tokens),
        cmocka_unit_test(the_same_question_has_the_same_answer),
        cmocka_unit_test(draws_agree_with_a_full_sort),
        cmocka_unit_test(log_probabilities_are_those_of_the_raw_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
