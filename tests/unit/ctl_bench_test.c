/* tests/unit/ctl_bench_test.c - the load generator's arithmetic: percentiles, goodput, the times of
 * a stream, arrivals and prompts.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/clock.h"
#include "ctl/bench.h"

static void about(double value, double wanted, double tolerance)
{
    if (!(fabs(value - wanted) <= tolerance)) {
        fail_msg("%g is not within %g of %g", value, tolerance, wanted);
    }
}

static void percentiles_are_those_of_numpy(void **state)
{
    (void)state;
    struct samples s = { 0 };
    assert_true(samples_percentile(&s, 50) == 0);
    for (int i = 100; i >= 1; i--) samples_add(&s, i);   /* 1..100, backwards */
    about(samples_percentile(&s, 0), 1, 0);
    about(samples_percentile(&s, 50), 50.5, 1e-4);
    about(samples_percentile(&s, 90), 90.1, 1e-4);
    about(samples_percentile(&s, 99), 99.01, 1e-4);
    about(samples_percentile(&s, 100), 100, 0);
    about(samples_mean(&s), 50.5, 1e-9);
    samples_add(&s, 0);                                  /* sorted again after more came */
    about(samples_percentile(&s, 0), 0, 0);
    assert_int_equal(s.count, 101);
    samples_release(&s);
    assert_null(s.at);
}

static void goodput_limits_are_parsed_and_applied(void **state)
{
    (void)state;
    struct bench_slo slo = { 0 };
    struct bench_times t = { .ttft = 200, .tpot = 20, .e2el = 1000, .itl_max = 90 };
    assert_true(slo_met(&slo, &t));
    assert_true(slo_parse(&slo, "ttft:200") && slo_parse(&slo, "itl:90.5"));
    assert_true(slo_parse(&slo, "e2el:1000") && slo_parse(&slo, "tpot:20"));
    assert_true(slo_met(&slo, &t));
    for (int i = 0; i < 4; i++) {
        struct bench_times late = t;
        double *at[] = { &late.ttft, &late.tpot, &late.e2el, &late.itl_max };
        *at[i] += 1;
        assert_false(slo_met(&slo, &late));
    }
    const char *const wrong[] = { "", "ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:0", "ttft:1x",
                                  "ttft:inf", "ttft:nan", "p99:5" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_false(slo_parse(&slo, wrong[i]));
    }
}

struct gaps {
    double ms[16];
    int count;
};

static void keep_gap(void *context, uint64_t from_ns, uint64_t to_ns)
{
    struct gaps *g = context;
    assert_true(g->count < 16);
    g->ms[g->count++] = (double)(to_ns - from_ns) / (double)NS_PER_MS;
}

static bool take(struct stream *s, const char *text, uint64_t ms)
{
    return stream_take(s, text, strlen(text), ms * NS_PER_MS);
}

static void a_chat_stream_gives_its_times(void **state)
{
    (void)state;
    struct gaps g = { .count = 0 };
    struct stream s = { .gap = keep_gap, .context = &g };
    stream_start(&s, 1000 * NS_PER_MS);
    take(&s, "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}"
             "\n\n", 1010);
    assert_int_equal(s.chunks, 0);
    take(&s, ": a comment\r\n\r\n"
             "data:{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n", 1100);
    take(&s, "data: {\"choices\":[{\"delta\":{\"cont", 1110);
    take(&s, "ent\":\"b\"}}]}\n\n", 1120);
    take(&s, "data: {\"choices\":[{\"delta\":{\"content\":\"cd\"}}]}\n\n", 1170);
    take(&s, "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n", 1175);
    take(&s, "data: {\"choices\":[],"
             "\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":4}}\n\n", 1180);
    assert_false(s.done);
    take(&s, "data: [DONE]\n\n", 1190);
    assert_true(s.done);
    assert_string_equal(s.error, "");
    assert_int_equal(s.chunks, 3);
    assert_int_equal(stream_tokens(&s), 4);
    assert_int_equal(s.prompt_tokens, 7);
    assert_int_equal(g.count, 2);
    about(g.ms[0], 20, 1e-6);
    about(g.ms[1], 50, 1e-6);
    struct bench_times t = stream_times(&s, 1190 * NS_PER_MS);
    about(t.ttft, 100, 1e-6);
    about(t.e2el, 170, 1e-6);
    about(t.tpot, 70.0 / 3, 1e-6);
    about(t.itl_max, 50, 1e-6);
    buf_release(&s.line);
}

static void tokens_without_usage_are_chunks_and_without_text_still_count(void **state)
{
    (void)state;
    struct stream s = { 0 };
    stream_start(&s, 0);
    take(&s, "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":null}]}\n\n", 5);
    take(&s, "data: {\"choices\":[{\"text\":\"x\",\"finish_reason\":null}]}\n\n"
             "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n", 9);
    assert_int_equal(stream_tokens(&s), 2);
    assert_string_equal(s.error, "");
    stream_start(&s, 20 * NS_PER_MS);                    /* nothing is left of the last answer */
    assert_int_equal(s.chunks, 0);
    struct bench_times t = stream_times(&s, 30 * NS_PER_MS);
    about(t.ttft, 10, 1e-6);
    assert_true(t.tpot == 0);
    buf_release(&s.line);
}

static void what_is_no_answer_is_an_error(void **state)
{
    (void)state;
    struct stream s = { 0 };
    stream_start(&s, 0);
    take(&s, "data: {\"error\":{\"message\":\"no room\"}}\n\n", 1);
    assert_string_equal(s.error, "error event: no room");
    stream_start(&s, 0);
    take(&s, "data: {nonsense\n\n", 1);
    assert_string_equal(s.error, "event is not JSON");
    stream_start(&s, 0);
    take(&s, "data: [DONE]", 1);
    assert_false(s.done);
    stream_end(&s);
    assert_true(s.done);
    stream_start(&s, 0);
    char *junk = malloc(BENCH_LINE_BYTES_MAX + 1);
    memset(junk, 'x', BENCH_LINE_BYTES_MAX + 1);
    assert_false(stream_take(&s, junk, BENCH_LINE_BYTES_MAX + 1, 1));
    assert_string_equal(s.error, "event over 4 MiB");
    free(junk);
    buf_release(&s.line);
}

static void moments(double rate, double burstiness, double *mean, double *deviation)
{
    enum { DRAWS = 200000 };
    uint64_t random = 42;
    double sum = 0, squares = 0;
    for (int i = 0; i < DRAWS; i++) {
        double x = draw_interval(&random, rate, burstiness);
        assert_true(x > 0 && isfinite(x));
        sum += x;
        squares += x * x;
    }
    *mean = sum / DRAWS;
    *deviation = sqrt(squares / DRAWS - *mean * *mean);
}

static void arrivals_have_the_mean_and_the_spread_of_their_distribution(void **state)
{
    (void)state;
    double mean, deviation;
    const double shapes[] = { 1, 0.25, 4, 100 };
    for (int i = 0; i < 4; i++) {
        moments(5, shapes[i], &mean, &deviation);
        about(mean, 0.2, 0.2 * 0.02);
        about(deviation, 0.2 / sqrt(shapes[i]), 0.2 / sqrt(shapes[i]) * 0.04);
    }
}

static void poisson_arrivals_are_exponential(void **state)
{
    (void)state;
    enum { DRAWS = 100000 };
    uint64_t random = 7;
    int late = 0;
    for (int i = 0; i < DRAWS; i++) late += draw_interval(&random, 1, 1) > 2;
    about((double)late / DRAWS, exp(-2), 0.005);
}

static struct bench_options options(void)
{
    return (struct bench_options){ .model = "m \"x\"", .input_len = 20, .output_len = 8,
                                   .shared_prefix_len = 30, .token_first = 100, .token_last = 199,
                                   .long_input_len = 500, .long_output_len = 3, .seed = 1 };
}

static json_t *body_of(const struct bench_options *o, uint32_t index)
{
    struct work w = { .o = o, .words_per_token = 0.5 };
    char *text = work_body(&w, index);
    json_t *body = json_loads(text, 0, NULL);
    assert_non_null(body);
    free(text);
    return body;
}

static json_int_t id_at(const json_t *body, size_t i)
{
    return json_integer_value(json_array_get(json_object_get(body, "prompt"), i));
}

static void prompts_share_their_prefix_and_nothing_else(void **state)
{
    (void)state;
    struct bench_options o = options();
    json_t *a = body_of(&o, 0), *b = body_of(&o, 1), *again = body_of(&o, 0);
    assert_true(json_equal(a, again));
    assert_int_equal(json_array_size(json_object_get(a, "prompt")), 50);
    int same = 0;
    for (size_t i = 0; i < 50; i++) {
        assert_in_range(id_at(a, i), 100, 199);
        if (i < 30) assert_int_equal(id_at(a, i), id_at(b, i));
        else same += id_at(a, i) == id_at(b, i);
    }
    assert_in_range(same, 0, 4);
    o.seed = 2;
    json_t *other = body_of(&o, 0);
    assert_false(json_equal(a, other));
    assert_string_equal(json_string_value(json_object_get(a, "model")), "m \"x\"");
    assert_int_equal(json_integer_value(json_object_get(a, "max_tokens")), 8);
    assert_true(json_is_true(json_object_get(a, "stream")));
    assert_null(json_object_get(a, "ignore_eos"));
    json_t *all[] = { a, b, again, other };
    for (int i = 0; i < 4; i++) json_decref(all[i]);
}

static void long_prompts_and_chats_have_their_own_lengths(void **state)
{
    (void)state;
    struct bench_options o = options();
    json_t *body = body_of(&o, WORK_LONG + 1);
    assert_int_equal(json_array_size(json_object_get(body, "prompt")), 500);
    assert_int_equal(json_integer_value(json_object_get(body, "max_tokens")), 3);
    json_decref(body);
    o.chat = o.ignore_eos = true;
    body = body_of(&o, 3);
    assert_true(json_is_true(json_object_get(body, "ignore_eos")));
    const char *text = json_string_value(json_object_get(
        json_array_get(json_object_get(body, "messages"), 0), "content"));
    int blanks = 0;
    for (; *text; text++) blanks += *text == ' ';
    assert_int_equal(blanks, 25);                        /* half a word a token */
    json_decref(body);
}

static void errors_are_counted_by_kind_and_the_kinds_are_bounded(void **state)
{
    (void)state;
    struct bench_result r = { 0 };
    bench_count_error(&r, "http 429", "{\"error\":\n1}");
    bench_count_error(&r, "http 429", "later");
    assert_int_equal(r.error_kinds, 1);
    assert_int_equal(r.errors[0].count, 2);
    assert_string_equal(r.first_error, "http 429: {\"error\": 1}");
    for (int i = 0; i < 100; i++) {
        char kind[32];
        snprintf(kind, sizeof kind, "kind %d", i);
        bench_count_error(&r, kind, "");
    }
    assert_int_equal(r.error_kinds, BENCH_ERROR_KINDS_MAX);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < r.error_kinds; i++) sum += r.errors[i].count;
    assert_int_equal(sum, 102);
    assert_string_equal(r.errors[BENCH_ERROR_KINDS_MAX - 1].text, "other");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_those_of_numpy),
        cmocka_unit_test(goodput_limits_are_parsed_and_applied),
        cmocka_unit_test(a_chat_stream_gives_its_times),
        cmocka_unit_test(tokens_without_usage_are_chunks_and_without_text_still_count),
        cmocka_unit_test(what_is_no_answer_is_an_error),
        cmocka_unit_test(arrivals_have_the_mean_and_the_spread_of_their_distribution),
        cmocka_unit_test(poisson_arrivals_are_exponential),
        cmocka_unit_test(prompts_share_their_prefix_and_nothing_else),
        cmocka_unit_test(long_prompts_and_chats_have_their_own_lengths),
        cmocka_unit_test(errors_are_counted_by_kind_and_the_kinds_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
