/* tests/unit/gateway_json_test.c - json_load gives what json_loadb gives, values and errors. */
#include "gateway/api_json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/mem.h"

static uint64_t dice = 1;

static uint32_t roll(uint32_t sides)
{
    dice = dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(dice >> 33) % sides;
}

/* What may stand in a string ... */
static const char *const good[] = {
    "a", "word ", "\\n", "\\\"", "\\\\", "\\/", "\\b\\f\\r\\t", "\\u0000", "\\u00e9", "\\u20AC",
    "\\ud83D\\uDE00", "\xC3\xA9", "\xE4\xBA\xBA", "\xF0\x9F\x98\x80", "\x7f", "{[", "]}", ":,",
    "\\u0022",
};
/* ... and what may not. */
static const char *const bad[] = {
    "\n", "\x01", "\x1f", "\\x", "\\u12g4", "\\ud800", "\\udc00", "\\ud800\\u0041", "\\u12",
    "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF", "\xE4\xBA", "\\ud800\\", "\"", "\\",
};
enum { GOOD = sizeof good / sizeof good[0], BAD = sizeof bad / sizeof bad[0] };

static bool faulty;

static void add_string(struct buf *out)
{
    uint32_t parts = roll(3) ? roll(20) : 100 + roll(600);
    uint32_t wrong = faulty && roll(4) == 0 ? roll(parts + 1) : UINT32_MAX;
    bool plain = roll(3) == 0;
    buf_char(out, '"');
    for (uint32_t i = 0; i < parts; i++)
        buf_text(out, i == wrong ? bad[roll(BAD)] : good[plain ? roll(2) : roll(GOOD)]);
    buf_char(out, '"');
}

static void add_white(struct buf *out)
{
    buf_text(out, roll(4) ? "" : roll(2) ? " " : "\r\n\t");
}

static void add_value(struct buf *out, uint32_t depth)
{
    uint32_t kind = roll(depth ? 6 : 4), count = roll(4);
    if (kind < 3) {
        add_string(out);
    } else if (kind == 3) {
        buf_text(out, faulty && roll(8) == 0 ? "nul" : "17");
    } else {
        buf_char(out, kind == 4 ? '[' : '{');
        for (uint32_t i = 0; i < count; i++) {
            buf_text(out, i ? "," : "");
            add_white(out);
            if (kind == 5 && roll(2)) buf_text(out, "\"twice\":");
            else if (kind == 5) add_string(out), add_white(out), buf_char(out, ':');
            add_white(out);
            add_value(out, depth - 1);
            add_white(out);
        }
        buf_char(out, faulty && roll(20) == 0 ? ' ' : kind == 4 ? ']' : '}');
    }
}

/* Returns whether jansson took it. */
static bool compare(const char *text, size_t bytes)
{
    json_error_t want_error, got_error;
    json_t *want = json_loadb(text, bytes, JSON_ALLOW_NUL, &want_error);
    json_t *got = json_load(text, bytes, NULL, &got_error);
    bool loaded = want;
    if (!want != !got || (want && !json_equal(want, got))) fail_msg("%.*s", (int)bytes, text);
    if (!want) {
        assert_string_equal(got_error.text, want_error.text);
        assert_int_equal(got_error.line, want_error.line);
        assert_int_equal(got_error.column, want_error.column);
        assert_int_equal(got_error.position, want_error.position);
    }
    json_decref(want);
    json_decref(got);
    return loaded;
}

static void random_texts_load_as_jansson_loads_them(void **state)
{
    (void)state;
    uint32_t loaded = 0, refused = 0;
    for (int i = 0; i < 6000; i++) {
        struct buf text = { 0 };
        faulty = i % 2;
        buf_text(&text, "{\"prompt\":");
        add_value(&text, 3);
        buf_char(&text, '}');
        if (compare(text.data, text.size)) loaded++;
        else refused++;
        compare(text.data, roll((uint32_t)text.size)); /* cut off anywhere */
        buf_release(&text);
    }
    assert_true(loaded > 3000 && refused > 500);
}

static void long_strings_are_found_wherever_they_stand(void **state)
{
    (void)state;
    static char text[5000], string[2000];
    memset(string, 'x', sizeof string - 1);
    static const char *const forms[] = {
        "{\"a\":\"%s\"}", "{\"a\":[1,\"%s\",{\"b\":\"%s\"}]}", "[\"%s\",\"%s\"]", "\"%s\"",
        "{\"a\":\"%s\",\"a\":\"%s\"}", "{\"%s\":1}", "{\"%s\" \n:\"%s\"}", "{\"a\":\"%s\"", "\"%s",
        "{\"a\":\"%s\\\"}", "{\"a\":\"%s\\\\\"}", "[\"%s\"] \"%s\"", "[\"%s\" 1]",
    };
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        for (size_t bytes = 500; bytes < 530; bytes++) {
            string[bytes] = '\0';
            int size = snprintf(text, sizeof text, forms[i], string, string);
            compare(text, (size_t)size);
            string[bytes] = 'x';
        }
    }
}

static void a_name_that_a_client_guesses_is_its_own_text(void **state)
{
    (void)state;
    static char text[3000], string[1000];
    memset(string, 'x', sizeof string - 1);
    int size = snprintf(text, sizeof text, "[\"%s\",\"%040d\",\"%s\"]", string, 0, string);
    compare(text, (size_t)size);
}

/* What is lifted, put back into the value, gives what json_loadb gives. */
static void compare_ids(const char *text, size_t count)
{
    struct json_ids ids = { 0 };
    json_error_t error;
    json_t *want = json_loadb(text, strlen(text), JSON_ALLOW_NUL, NULL), *member;
    json_t *got = json_load(text, strlen(text), &ids, &error);
    const char *key;
    void *next;
    size_t found = 0;
    assert_true(!want == !got);
    json_object_foreach_safe(got, next, key, member) {
        const struct token_list *list = json_ids_at(&ids, member);
        if (!list) continue;
        json_t *values = json_array();
        found = list->count;
        for (size_t i = 0; i < found; i++)
            json_array_append_new(values, json_integer(list->ids[i]));
        json_object_set_new(got, key, values);
    }
    if (found != count || (want && !json_equal(want, got))) fail_msg("%zu in %s", found, text);
    json_decref(want);
    json_decref(got);
    token_list_release(&ids.list);
}

#define SIXTEEN "0,1,22, 333 ,4444,\n55555,666666,7777777,88888888,999999999,10,11,12,13,14,15"

static void a_prompts_ids_are_lifted_and_nothing_else(void **state)
{
    (void)state;
    compare_ids("{\"prompt\":[" SIXTEEN "]}", 16);
    compare_ids("{\"a\":1, \"tokens\" : [ " SIXTEEN " ] , \"b\":[1]}", 16);
    compare_ids("{\"prompt\":[1,2,3]}", 0);
    compare_ids("{\"prompt\":[]}", 0);
    compare_ids("{\"prompts\":[" SIXTEEN "]}", 0);
    compare_ids("{\"a\":{\"prompt\":[" SIXTEEN "]}}", 0);
    compare_ids("{\"prompt\":[[" SIXTEEN "]]}", 0);
    compare_ids("[\"prompt\",[" SIXTEEN "]]", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",1000000000]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",-1]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",1.0]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",\"a\"]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",1 2]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",01]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN ",]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN, 0);
    compare_ids("{\"prompt\":[" SIXTEEN "]", 0);
    compare_ids("{\"prompt\":1,\"x\"[" SIXTEEN "]}", 0);
    compare_ids("{\"prompt\":[" SIXTEEN "],\"prompt\":[" SIXTEEN "]}", 0); /* the last one counts */
    compare_ids("{\"prompt\":\"0123456789abcdef0123456789abcdef\",\"tokens\":[" SIXTEEN "]}", 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_texts_load_as_jansson_loads_them),
        cmocka_unit_test(long_strings_are_found_wherever_they_stand),
        cmocka_unit_test(a_prompts_ids_are_lifted_and_nothing_else),
        cmocka_unit_test(a_name_that_a_client_guesses_is_its_own_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
