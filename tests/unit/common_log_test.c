/* tests/unit/common_log_test.c - lines come out in order, gathered ones when they should. */
#include "common/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"

static int out, stderr_was;
static char text[65536];

static int open_pipe(void **state)
{
    int ends[2];
    (void)state;
    if (pipe(ends) != 0) return -1;
    stderr_was = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    out = ends[0];
    return 0;
}

static int close_pipe(void **state)
{
    (void)state;
    dup2(stderr_was, STDERR_FILENO);
    close(stderr_was);
    return close(out);
}

/* What has been written, without blocking: a mark is written behind it. */
static const char *written(void)
{
    if (write(STDERR_FILENO, "|", 1) != 1) abort();
    size_t bytes = 0;
    while (!bytes || text[bytes - 1] != '|') {
        ssize_t got = read(out, text + bytes, sizeof text - 1 - bytes);
        assert_true(got > 0);
        bytes += (size_t)got;
    }
    text[bytes - 1] = '\0';
    return text;
}

static void a_line_is_written_at_once(void **state)
{
    (void)state;
    log_info("one");
    assert_non_null(strstr(written(), " info rankserve one\n"));
    log_debug("not asked for");
    assert_string_equal(written(), "");
}

static void nobody_else_writes_a_line(void **state)
{
    (void)state;
    log_info("path=%s", "/\n2026-01-01T00:00:00.000Z error forged\r\x1b[31m\x7f\t\xc3\xa9");
    const char *line = written();
    assert_non_null(strstr(line, "=/?2026-01-01T00:00:00.000Z error forged??[31m??\xc3\xa9\n"));
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void gathered_lines_wait_for_the_flush(void **state)
{
    (void)state;
    log_gather(true);
    log_info("one");
    log_info("two");
    assert_string_equal(written(), "");
    log_flush();
    const char *one = strstr(written(), "one\n");
    assert_non_null(one);
    assert_non_null(strstr(one, "two\n"));
    log_flush();
    assert_string_equal(written(), "");
    log_info("three");
    log_gather(false);
    assert_non_null(strstr(written(), "three\n"));
    log_info("four");
    assert_non_null(strstr(written(), "four\n"));
}

static void gathered_lines_are_due_soon_and_then_no_more(void **state)
{
    (void)state;
    assert_true(log_due_ns() == UINT64_MAX);
    log_gather(true);
    assert_true(log_due_ns() == UINT64_MAX);
    uint64_t before = clock_now_ns();
    log_info("one");
    uint64_t due = log_due_ns(), after = clock_now_ns();
    assert_in_range(due, before + 20 * NS_PER_MS, after + 20 * NS_PER_MS);
    log_info("two");                  /* waits with the first, not for longer */
    assert_true(log_due_ns() == due);
    log_flush();
    assert_true(log_due_ns() == UINT64_MAX);
    log_gather(false);
    written();
}

static void a_warning_comes_behind_what_was_gathered(void **state)
{
    (void)state;
    log_gather(true);
    log_info("before");
    log_warn("now");
    const char *before = strstr(written(), "before\n");
    assert_non_null(before);
    assert_non_null(strstr(before, "now\n"));
    log_gather(false);
}

static void many_lines_are_written_before_they_are_too_many(void **state)
{
    (void)state;
    log_gather(true);
    for (int i = 0; i < 200; i++) log_info("line %d of some length", i);
    size_t early = strlen(written());
    assert_true(early > 4096);
    char *first = strdup(text);
    log_gather(false);
    assert_true(strlen(first) + strlen(written()) > 200 * 40);
    assert_non_null(strstr(first, "line 0 of"));
    assert_non_null(strstr(text, "line 199 of"));
    free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_line_is_written_at_once, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(nobody_else_writes_a_line, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(gathered_lines_wait_for_the_flush, open_pipe, close_pipe),
        cmocka_unit_test_setup_teardown(gathered_lines_are_due_soon_and_then_no_more, open_pipe,
                                        close_pipe),
        cmocka_unit_test_setup_teardown(a_warning_comes_behind_what_was_gathered, open_pipe,
                                        close_pipe),
        cmocka_unit_test_setup_teardown(many_lines_are_written_before_they_are_too_many, open_pipe,
                                        close_pipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
