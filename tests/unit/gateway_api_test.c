/* tests/unit/gateway_api_test.c - JSON out: strings, errors, numbers; metrics' text; slots. */
#include "gateway/api.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/clock.h"
#include "gateway/api_json.h"
#include "gateway/metrics.h"
#include "gateway/slots.h"

static void any_bytes_become_a_string_that_a_parser_accepts(void **state)
{
    (void)state;
    srand(5);
    for (int round = 0; round < 20000; round++) {
        char bytes[12];
        size_t count = (size_t)rand() % sizeof bytes;
        for (size_t i = 0; i < count; i++) {
            bytes[i] = (char)(rand() % 3 ? "\"\\\n\x7f\xc3\xa9\xed\xa0\xf4\x90\xe2\xf0"[rand() % 12]
                                         : rand());
        }
        struct buf out = { 0 };
        write_string(&out, bytes, count);
        json_error_t error;
        json_t *v = json_loadb(out.data, out.size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        if (!v) fail_msg("%s: %s", error.text, out.data);
        json_decref(v);
        buf_release(&out);
    }
}

static void strings_are_escaped_exactly(void **state)
{
    (void)state;
    struct buf out = { 0 };
    write_string(&out, "a\"\\\b\t\n\v\f\r\0\x1f\x7f/\xc3\xa9\xff", 16);
    assert_string_equal(out.data, "\"a\\\"\\\\\\b\\t\\n\\u000b\\f\\r\\u0000\\u001f\x7f/\xc3\xa9"
                                  "\xef\xbf\xbd\"");
    buf_release(&out);
}

static void errors_have_openais_shape(void **state)
{
    (void)state;
    struct api_error e;
    struct buf out = { 0 };
    assert_false(api_fail(&e, 400, "n", "n is %d", 0));
    api_error_write(&e, &out);
    assert_string_equal(out.data, "{\"error\":{\"message\":\"n is 0\",\"type\":"
                                  "\"invalid_request_error\",\"param\":\"n\",\"code\":400}}");
    buf_clear(&out);
    api_fail(&e, 404, NULL, "x");
    e.code = "model_not_found";
    api_error_write(&e, &out);
    assert_string_equal(out.data, "{\"error\":{\"message\":\"x\",\"type\":\"not_found_error\","
                                  "\"param\":null,\"code\":\"model_not_found\"}}");
    buf_release(&out);
}

static void depth_is_counted_outside_strings_only(void **state)
{
    (void)state;
    char text[2 * JSON_DEPTH_MAX + 8];
    memset(text, '[', sizeof text);
    assert_false(json_too_deep(text, JSON_DEPTH_MAX));
    assert_true(json_too_deep(text, JSON_DEPTH_MAX + 1));
    text[0] = '"';
    assert_false(json_too_deep(text, sizeof text));
    text[1] = '\\';
    text[2] = '"';
    assert_false(json_too_deep(text, sizeof text));
    text[1] = '[';
    assert_true(json_too_deep(text, sizeof text));
    assert_false(json_too_deep("]]]]", 4));
    assert_false(json_too_deep("\"\\", 2));
}

static void histograms_are_cumulative_and_labels_are_escaped(void **state)
{
    (void)state;
    struct metrics *m = metrics_open();
    struct buf out = { 0 };
    metrics_request(m, 200, FINISH_STOP, 0.3);
    metrics_request(m, 200, FINISH_LENGTH, 1e9);
    metrics_request(m, 429, FINISH_NONE, 0);
    metrics_write(m, "a\"\\\n", clock_now_ns(), &out);
    assert_non_null(strstr(out.data, "_bucket{model_name=\"a\\\"\\\\\\n\",le=\"0.25\"} 0\n"));
    assert_non_null(strstr(out.data, "le=\"0.5\"} 1\n"));
    assert_non_null(strstr(out.data, "le=\"600\"} 1\n"));
    assert_non_null(strstr(out.data, "le=\"+Inf\"} 2\n"));
    assert_non_null(strstr(out.data, "status=\"429\",finish_reason=\"none\"} 1\n"));
    assert_non_null(strstr(out.data, "llm_d_token_latency_p95{model_name=\"a\\\"\\\\\\n\"} 0\n"));
    buf_release(&out);
    metrics_close(m);
}

static void rates_come_from_two_states_and_go_with_the_link(void **state)
{
    (void)state;
    struct metrics *m = metrics_open();
    struct buf out = { 0 };
    struct link_state s = { .workers_alive = 2, .uptime_ns = 1 };
    metrics_state(m, &s, NS_PER_S);
    s.output_tokens = 100;
    s.step_ns_sum = NS_PER_S;
    s.uptime_ns = NS_PER_S;
    metrics_state(m, &s, 2 * NS_PER_S);
    metrics_write(m, "x", 2 * NS_PER_S, &out);
    assert_non_null(strstr(out.data, "llm_d_tokens_per_second{model_name=\"x\"} 100\n"));
    assert_non_null(strstr(out.data, "llm_d_gpu_utilization{model_name=\"x\"} 0.5\n"));
    metrics_link_lost(m);
    buf_clear(&out);
    metrics_write(m, "x", 3 * NS_PER_S, &out);
    assert_non_null(strstr(out.data, "llm_d_tokens_per_second{model_name=\"x\"} 0\n"));
    for (int i = 1; i <= 100; i++) metrics_next_token(m, i, 3 * NS_PER_S);
    buf_clear(&out);
    metrics_write(m, "x", 3 * NS_PER_S, &out);
    assert_non_null(strstr(out.data, "llm_d_token_latency_p95{model_name=\"x\"} 95\n"));
    buf_release(&out);
    metrics_close(m);
}

static void a_slots_number_is_never_reused(void **state)
{
    (void)state;
    struct slots s;
    void *entry;
    slots_open(&s, sizeof(int));
    uint64_t first = slots_take(&s, &entry), seen = 0;
    *(int *)entry = 5;
    slots_give(&s, first);
    assert_null(slots_find(&s, first));
    for (int i = 0; i < SLOTS_CHUNK * SLOTS_CHUNKS; i++) {
        uint64_t number = slots_take(&s, &entry);
        assert_true(number && number != first);
        assert_int_equal(*(int *)entry, 0);
        seen = number;
    }
    assert_int_equal(slots_take(&s, &entry), 0);
    assert_non_null(slots_find(&s, seen));
    assert_null(slots_find(&s, UINT64_MAX));
    assert_null(slots_find(&s, 0));
    slots_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bytes_become_a_string_that_a_parser_accepts),
        cmocka_unit_test(strings_are_escaped_exactly),
        cmocka_unit_test(errors_have_openais_shape),
        cmocka_unit_test(depth_is_counted_outside_strings_only),
        cmocka_unit_test(histograms_are_cumulative_and_labels_are_escaped),
        cmocka_unit_test(rates_come_from_two_states_and_go_with_the_link),
        cmocka_unit_test(a_slots_number_is_never_reused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
