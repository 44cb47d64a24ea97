/* tests/unit/common_mem_test.c - growing buffers and nearest names. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/mem.h"
#include "common/suggest.h"
#include "populate.h"

static void a_buffer_grows_and_stays_terminated(void **state)
{
    (void)state;
    struct buf b = { 0 };
    for (int i = 0; i < 1000; i++) {
        assert_true(buf_print(&b, "%d,", i));
        assert_int_equal(b.data[b.size], '\0');
    }
    assert_int_equal(b.size, 10 * 2 + 90 * 3 + 900 * 4);
    assert_true(strncmp(b.data, "0,1,2,", 6) == 0);
    buf_clear(&b);
    assert_string_equal(b.data, "");
    assert_true(buf_add(&b, "a\0b", 3));
    char *text = buf_take(&b);
    assert_memory_equal(text, "a\0b", 4);
    assert_null(b.data);
    free(text);
}

static void a_full_buffer_takes_nothing_more_and_says_so(void **state)
{
    (void)state;
    struct buf b = { .limit = 10 };
    assert_true(buf_text(&b, "12345"));
    assert_true(buf_print(&b, "%s", "67890"));
    assert_false(buf_char(&b, 'x'));
    assert_true(b.overflowed);
    assert_false(buf_text(&b, ""));
    assert_string_equal(b.data, "1234567890");
    buf_clear(&b);
    assert_false(b.overflowed);
    assert_false(buf_print(&b, "%s", "longer than ten bytes"));
    buf_release(&b);
    assert_int_equal(b.limit, 10);
}

static void an_empty_buffer_can_be_taken(void **state)
{
    (void)state;
    struct buf b = { 0 };
    char *text = buf_take(&b);
    assert_string_equal(text, "");
    free(text);
}

static void new_memory_is_zero_and_copies_are_whole(void **state)
{
    (void)state;
    unsigned char *at = mem_array(100, 3);
    for (int i = 0; i < 300; i++) assert_int_equal(at[i], 0);
    free(at);
    assert_null(mem_text(NULL));
    char *text = mem_text_n("abcdef", 3);
    assert_string_equal(text, "abc");
    free(text);
}

/* A file of two pages, mapped as three. */
static void memory_that_is_not_there_is_an_error_and_no_signal(void **state)
{
    (void)state;
    if (!kernel_populates()) skip();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int fd = memfd_create("mem", MFD_CLOEXEC);
    struct stat st;
    assert_int_equal(ftruncate(fd, (off_t)(2 * page)), 0);
    uint8_t *at = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(at != MAP_FAILED);
    assert_true(mem_populate(at, 2 * page));
    assert_int_equal(fstat(fd, &st), 0);
    assert_true((size_t)st.st_blocks * 512 >= 2 * page);
    errno = 0;
    assert_false(mem_populate(at + page, 2 * page));
    assert_int_equal(errno, ENOMEM);
    munmap(at, 3 * page);
    close(fd);
}

static void the_nearest_name_is_offered_and_far_ones_are_not(void **state)
{
    (void)state;
    struct suggest s = { .wrong = "stauts" };
    suggest_offer(&s, "start");
    suggest_offer(&s, "status");
    suggest_offer(&s, "inspect");
    assert_string_equal(s.best, "status");
    s = (struct suggest){ .wrong = "xyz" };
    suggest_offer(&s, "status");
    suggest_offer(&s, "up");
    assert_null(s.best);
    s = (struct suggest){ .wrong = "max_model" };
    suggest_offer(&s, "max-model-len");
    assert_string_equal(s.best, "max-model-len");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_buffer_grows_and_stays_terminated),
        cmocka_unit_test(a_full_buffer_takes_nothing_more_and_says_so),
        cmocka_unit_test(an_empty_buffer_can_be_taken),
        cmocka_unit_test(new_memory_is_zero_and_copies_are_whole),
        cmocka_unit_test(memory_that_is_not_there_is_an_error_and_no_signal),
        cmocka_unit_test(the_nearest_name_is_offered_and_far_ones_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
