/* tests/unit/gateway_stop_test.c - stop strings: the same answer however the text is cut. */
#include "gateway/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Feeds the text in pieces of `piece` bytes; returns the match, and the output in *out. */
static int scan(const struct stop_strings *s, const char *text, size_t piece, struct buf *out)
{
    struct stop_scan scan = { 0 };
    size_t bytes = strlen(text);
    int found = -1;
    buf_clear(out);
    for (size_t at = 0; at < bytes && found < 0; at += piece) {
        found = stop_scan_add(&scan, s, text + at, bytes - at < piece ? bytes - at : piece, out);
    }
    if (found < 0) stop_scan_end(&scan, out);
    stop_scan_release(&scan);
    return found;
}

static void expect(const char *const *strings, bool include, const char *text, int found,
                   const char *output)
{
    struct stop_strings s = { .include = include };
    for (int i = 0; strings[i]; i++) {
        assert_true(stop_strings_add(&s, strings[i], strlen(strings[i])));
    }
    struct buf out = { 0 };
    for (size_t piece = 1; piece <= strlen(text) + 1; piece++) {
        assert_int_equal(scan(&s, text, piece, &out), found);
        assert_string_equal(out.data ? out.data : "", output);
    }
    buf_release(&out);
    stop_strings_release(&s);
}

#define STRINGS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static void text_before_the_match_is_output_and_no_more(void **state)
{
    (void)state;
    expect(STRINGS("END"), false, "the END of it", 0, "the ");
    expect(STRINGS("END"), true, "the END of it", 0, "the END");
    expect(STRINGS("x"), false, "x", 0, "");
    expect(STRINGS("the"), false, "the", 0, "");
}

static void a_match_that_does_not_come_is_output(void **state)
{
    (void)state;
    expect(STRINGS("END"), false, "EN EEN", -1, "EN EEN");
    expect(STRINGS("aab"), false, "aaaaaac", -1, "aaaaaac");
}

static void overlapping_beginnings_are_found(void **state)
{
    (void)state;
    expect(STRINGS("aab"), false, "aaaab!", 0, "aa");
    expect(STRINGS("abab!"), false, "ababab!x", 0, "ab");
    expect(STRINGS("\n\nUser:"), false, "a\n\n\nUser: b", 0, "a\n");
}

static void the_match_that_ends_first_wins_and_then_the_longest(void **state)
{
    (void)state;
    expect(STRINGS("cde", "bc"), false, "abcde", 1, "a");
    expect(STRINGS("bc", "abc"), false, "xabcd", 1, "x");
    expect(STRINGS("abcdef", "d"), false, "abcdef", 1, "abc");
}

static void text_that_may_become_a_match_is_held_back_and_no_more(void **state)
{
    (void)state;
    struct stop_strings s = { 0 };
    struct stop_scan held = { 0 };
    struct buf out = { 0 };
    assert_true(stop_strings_add(&s, "<stop>", 6));
    assert_int_equal(stop_scan_add(&held, &s, "a<st", 4, &out), -1);
    assert_string_equal(out.data, "a");
    assert_int_equal(stop_scan_add(&held, &s, "<s", 2, &out), -1);
    assert_string_equal(out.data, "a<st");
    assert_int_equal(stop_scan_add(&held, &s, "x", 1, &out), -1);
    assert_string_equal(out.data, "a<st<sx");
    stop_scan_release(&held);
    buf_release(&out);
    stop_strings_release(&s);
}

static void limits_are_kept(void **state)
{
    (void)state;
    struct stop_strings s = { 0 };
    static char longest[STOP_STRING_BYTES_MAX + 1];
    memset(longest, 'a', sizeof longest);
    assert_false(stop_strings_add(&s, "", 0));
    assert_false(stop_strings_add(&s, longest, sizeof longest));
    for (int i = 0; i < STOP_STRINGS_MAX; i++) {
        assert_true(stop_strings_add(&s, longest, STOP_STRING_BYTES_MAX));
    }
    assert_false(stop_strings_add(&s, "a", 1));
    stop_strings_release(&s);
}

/* Against the definition itself, on short texts over two letters. */
static void random_texts_agree_with_the_definition(void **state)
{
    (void)state;
    srand(7);
    for (int round = 0; round < 3000; round++) {
        char text[20] = "", strings[3][5] = { "" };
        for (int i = 0; i < rand() % 19; i++) text[i] = "ab"[rand() % 2];
        for (int k = 0; k < 3; k++) {
            for (int i = 0; i < 1 + rand() % 4; i++) strings[k][i] = "ab"[rand() % 2];
        }
        size_t cut = strlen(text);
        int found = -1;
        for (size_t end = 1; end <= strlen(text) && found < 0; end++) {
            for (int k = 0; k < 3; k++) {
                size_t n = strlen(strings[k]);
                if (n > end || strncmp(text + end - n, strings[k], n) != 0) continue;
                if (found < 0 || n > strlen(strings[found])) found = k, cut = end - n;
            }
        }
        char output[20] = "";
        memcpy(output, text, cut);
        expect(STRINGS(strings[0], strings[1], strings[2]), false, text, found, output);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_before_the_match_is_output_and_no_more),
        cmocka_unit_test(a_match_that_does_not_come_is_output),
        cmocka_unit_test(overlapping_beginnings_are_found),
        cmocka_unit_test(the_match_that_ends_first_wins_and_then_the_longest),
        cmocka_unit_test(text_that_may_become_a_match_is_held_back_and_no_more),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(random_texts_agree_with_the_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
