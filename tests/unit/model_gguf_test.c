/* tests/unit/model_gguf_test.c - reading GGUF: what is there, and refusing what is wrong. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gguf_writer.h"
#include "model/inspect.h"
#include "model/quant.h"

/* Some of everything. */
static void write_sample(struct gguf_writer *w)
{
    static const char *const words[] = { "alpha", "", "be\"ta\n", "gamma", "delta" };
    static const int32_t kinds[] = { 1, 3, 6 };
    static const float scores[] = { 0.5f, -1.25f };
    static const float values[64] = { 1, 2, 3 };
    writer_key_text(w, "general.architecture", "llama");
    writer_key_u32(w, "llama.block_count", 30);
    writer_key_f32(w, "llama.eps", 1e-5f);
    writer_key_bool(w, "yes", true);
    writer_key(w, "small", 1, &(int8_t){ -3 }, 1);
    writer_key(w, "wide", 10, &(uint64_t){ 1ull << 40 }, 8);
    writer_key(w, "double", 12, &(double){ 2.5 }, 8);
    writer_key_texts(w, "words", words, 5);
    writer_key_i32s(w, "kinds", kinds, 3);
    writer_key_f32s(w, "scores", scores, 2);
    writer_tensor(w, "a.weight", TENSOR_F32, 2, (uint64_t[]){ 32, 2 }, values, sizeof values);
    writer_tensor(w, "b.weight", TENSOR_Q4_1, 2, (uint64_t[]){ 64, 3 }, NULL, 120);
    writer_tensor(w, "c.bias", TENSOR_F16, 1, (uint64_t[]){ 5 }, NULL, 10);
}

/* The bytes of a file, exactly as long as their heap block so that a sanitizer sees any overrun. */
static enum err open_copy(const void *data, size_t bytes, struct why *why)
{
    void *copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    if (bytes) memcpy(copy, data, bytes);
    struct gguf *g;
    *why = (struct why){ "" };
    enum err e = gguf_open_image(&g, copy, bytes, "t.gguf", why);
    if (e == OK) {
        struct buf b = { .limit = 1 << 20 };
        model_inspect(g, &b);         /* touches every key */
        for (uint32_t i = 0; i < gguf_tensor_count(g); i++) {
            const struct gguf_tensor *t = gguf_tensor_at(g, i);
            const volatile uint8_t *at = t->data;
            (void)at[0];
            (void)at[t->bytes - 1];
        }
        buf_release(&b);
        gguf_close(g);
    }
    free(copy);
    return e;
}

static void assert_refused(struct gguf_writer *w, const char *expected)
{
    struct why why;
    writer_finish(w);
    assert_int_not_equal(open_copy(w->image.data, w->image.size, &why), OK);
    if (!strstr(why.text, expected)) fail_msg("'%s' is not in '%s'", expected, why.text);
    writer_release(w);
}

static void keys_and_tensors_are_found(void **state)
{
    (void)state;
    struct gguf_writer w = { 0 };
    write_sample(&w);
    writer_finish(&w);
    struct gguf *g;
    struct why why;
    assert_int_equal(gguf_open_image(&g, w.image.data, w.image.size, "t", &why), OK);
    uint32_t u, kinds[3];
    float f, scores[2];
    bool b;
    struct gguf_text text, words[5];
    assert_true(gguf_get_u32(g, "llama.block_count", &u) && u == 30);
    assert_true(gguf_get_f32(g, "llama.eps", &f) && f == 1e-5f);
    assert_true(gguf_get_f32(g, "double", &f) && f == 2.5f);
    assert_true(gguf_get_bool(g, "yes", &b) && b);
    assert_true(gguf_get_text(g, "general.architecture", &text) && text.bytes == 5);
    assert_memory_equal(text.data, "llama", 5);
    assert_false(gguf_get_u32(g, "small", &u));      /* -3 */
    assert_false(gguf_get_u32(g, "wide", &u));
    assert_false(gguf_get_u32(g, "yes", &u));
    assert_false(gguf_get_u32(g, "kinds", &u));
    assert_false(gguf_get_u32(g, "absent", &u));
    assert_true(gguf_has_key(g, "wide") && !gguf_has_key(g, "absent"));
    assert_int_equal(gguf_array_count(g, "words"), 5);
    assert_int_equal(gguf_array_count(g, "yes"), 0);
    assert_true(gguf_array_texts(g, "words", words));
    assert_memory_equal(words[4].data, "delta", 5);
    assert_int_equal(words[1].bytes, 0);
    assert_true(gguf_array_u32(g, "kinds", kinds) && kinds[2] == 6);
    assert_true(gguf_array_f32(g, "scores", scores) && scores[1] == -1.25f);
    assert_false(gguf_array_u32(g, "words", kinds));
    const struct gguf_tensor *t = gguf_tensor_find(g, "b.weight");
    assert_non_null(t);
    assert_int_equal(t->bytes, 120);
    assert_int_equal(t->dims[0], 64);
    assert_int_equal((uintptr_t)((const char *)t->data - w.image.data) % 32, 0);
    assert_float_equal(((const float *)gguf_tensor_find(g, "a.weight")->data)[2], 3, 0);
    assert_null(gguf_tensor_find(g, "d"));
    assert_int_equal(gguf_tensor_count(g), 3);
    gguf_close(g);
    writer_release(&w);
}

static void inspect_lists_keys_tensors_and_totals(void **state)
{
    (void)state;
    struct gguf_writer w = { 0 };
    struct gguf *g;
    struct why why;
    struct buf b = { 0 };
    write_sample(&w);
    writer_finish(&w);
    assert_int_equal(gguf_open_image(&g, w.image.data, w.image.size, "t", &why), OK);
    model_inspect(g, &b);
    static const char *const expected[] = {
        "llama.block_count", " 30\n", "\"be\\\"ta\\n\"", "5 values: \"alpha\", \"\"", ", ...\n",
        "b.weight", "Q4_1", "(3, 64)", "120", "F16", "true\n", "-3\n", "3 tensors",
    };
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        if (!strstr(b.data, expected[i])) fail_msg("no %s in\n%s", expected[i], b.data);
    }
    buf_release(&b);
    gguf_close(g);
    writer_release(&w);
}

static void a_file_cut_anywhere_is_refused_in_one_line(void **state)
{
    (void)state;
    struct gguf_writer w = { 0 };
    struct why why;
    write_sample(&w);
    writer_finish(&w);
    assert_int_equal(open_copy(w.image.data, w.image.size, &why), OK);
    for (size_t n = 0; n < w.image.size; n++) {
        assert_int_not_equal(open_copy(w.image.data, n, &why), OK);
        assert_non_null(strstr(why.text, n < 4 ? "not a GGUF file" : "t.gguf: truncated: "));
        assert_null(strchr(why.text, '\n'));
    }
    writer_release(&w);
}

static void a_truncated_tensor_is_named_with_its_bytes(void **state)
{
    (void)state;
    struct gguf_writer w = { 0 };
    struct why why;
    char expected[128];
    writer_tensor(&w, "blk.3.ffn_up.weight", TENSOR_F32, 1, (uint64_t[]){ 8 }, NULL, 32);
    writer_finish(&w);
    size_t whole = w.image.size;
    assert_int_equal(open_copy(w.image.data, whole - 1, &why), ERR_FORMAT);
    snprintf(expected, sizeof expected,
             "t.gguf: truncated: tensor 'blk.3.ffn_up.weight' needs bytes %zu..%zu of %zu",
             whole - 32, whole, whole - 1);
    assert_string_equal(why.text, expected);
    writer_release(&w);
}

static void flipped_bytes_never_crash_and_always_say_why(void **state)
{
    (void)state;
    struct gguf_writer w = { 0 };
    struct why why;
    uint64_t random = 88172645463325252ull;
    int refused = 0;
    write_sample(&w);
    writer_finish(&w);
    char *copy = mem_alloc(w.image.size);
    for (int round = 0; round < 6000; round++) {
        memcpy(copy, w.image.data, w.image.size);
        for (int flips = 1 + round % 3; flips > 0; flips--) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            copy[random % w.image.size] = (char)(random >> 40);
        }
        if (open_copy(copy, w.image.size, &why) == OK) continue;
        assert_int_not_equal(why.text[0], '\0');
        assert_null(strpbrk(why.text, "\n\r\033"));
        refused++;
    }
    assert_true(refused > 1000);
    free(copy);
    writer_release(&w);
}

static void headers_that_are_wrong_are_refused(void **state)
{
    (void)state;
    struct why why;
    assert_refused(&(struct gguf_writer){ .version = 1 }, "version 1; 2 and 3");
    assert_refused(&(struct gguf_writer){ .version = 0x03000000 }, "big-endian");
    assert_refused(&(struct gguf_writer){ .key_count = 1ull << 33 }, "at most");
    assert_refused(&(struct gguf_writer){ .tensor_count = UINT64_MAX }, "at most");
    assert_refused(&(struct gguf_writer){ .tensor_count = 65536 }, "truncated");
    assert_int_equal(open_copy("GGML----------------------", 26, &why), ERR_FORMAT);
    struct gguf_writer empty = { .version = 2 };
    writer_finish(&empty);
    assert_int_equal(open_copy(empty.image.data, empty.image.size, &why), OK);
    writer_release(&empty);
}

static void keys_that_are_wrong_are_refused(void **state)
{
    (void)state;
    struct gguf_writer w = { 0 };
    writer_key_u32(&w, "twin", 1);
    writer_key_u32(&w, "twin", 2);
    assert_refused(&w, "key 'twin': is there twice");
    w = (struct gguf_writer){ 0 };
    writer_key(&w, "odd", 13, NULL, 0);
    assert_refused(&w, "unknown kind 13");
    w = (struct gguf_writer){ 0 };
    writer_key_array(&w, "nested", WRITER_ARRAY, 1);
    writer_u64(&w.keys, 0);
    assert_refused(&w, "arrays of arrays");
    w = (struct gguf_writer){ 0 };
    writer_key_array(&w, "huge", 10, 1ull << 61);       /* times 8 is 0 */
    assert_refused(&w, "truncated: key 'huge'");
    w = (struct gguf_writer){ 0 };
    writer_key_array(&w, "huge", WRITER_TEXT, UINT64_MAX);
    assert_refused(&w, "truncated: key 'huge'");
    w = (struct gguf_writer){ 0 };
    writer_key_u32(&w, "bell\a", 1);
    assert_refused(&w, "control bytes");
    w = (struct gguf_writer){ 0 };
    writer_key_u32(&w, "", 1);
    assert_refused(&w, "0 bytes");
    static const uint32_t alignments[] = { 3, 131072, 48 };
    for (int i = 0; i < 3; i++) {
        w = (struct gguf_writer){ .alignment = alignments[i] };
        assert_refused(&w, "power of two");
    }
    w = (struct gguf_writer){ 0 };
    writer_key_u32(&w, "general.alignment", 0);
    assert_refused(&w, "power of two");
}

static void refuse_tensor(const char *expected, uint32_t type, uint32_t count,
                          const uint64_t *dims, uint64_t offset)
{
    struct gguf_writer w = { 0 };
    writer_tensor_entry(&w, "t", type, count, dims, offset);
    for (int i = 0; i < 4096; i++) buf_char(&w.data, 0);
    assert_refused(&w, expected);
}

static void tensors_that_are_wrong_are_refused(void **state)
{
    (void)state;
    const uint64_t huge = 1ull << 63;
    refuse_tensor("unknown type 4", 4, 1, (uint64_t[]){ 32 }, 0);
    refuse_tensor("unknown type 4000000000", 4000000000u, 1, (uint64_t[]){ 32 }, 0);
    refuse_tensor("not whole Q4_0 blocks of 32", TENSOR_Q4_0, 1, (uint64_t[]){ 33 }, 0);
    refuse_tensor("not whole Q6_K blocks of 256", TENSOR_Q6_K, 2, (uint64_t[]){ 32, 8 }, 0);
    refuse_tensor("0 dimensions", TENSOR_F32, 0, NULL, 0);
    refuse_tensor("5 dimensions", TENSOR_F32, 5, (uint64_t[]){ 1, 1, 1, 1, 1 }, 0);
    refuse_tensor("dimension 1 is 0", TENSOR_F32, 2, (uint64_t[]){ 32, 0 }, 0);
    refuse_tensor("be counted", TENSOR_F32, 2, (uint64_t[]){ huge, 4 }, 0);
    refuse_tensor("be counted", TENSOR_F32, 1, (uint64_t[]){ huge }, 0);
    refuse_tensor("truncated: tensor 't'", TENSOR_F32, 1, (uint64_t[]){ 1ull << 60 }, 0);
    refuse_tensor("not a multiple of 32", TENSOR_F32, 1, (uint64_t[]){ 32 }, 16);
    refuse_tensor("beyond any file", TENSOR_F32, 1, (uint64_t[]){ 32 }, UINT64_MAX - 31);
    refuse_tensor("truncated: tensor 't'", TENSOR_F32, 1, (uint64_t[]){ 32 }, huge);
    struct gguf_writer w = { 0 };
    writer_tensor(&w, "twin", TENSOR_F32, 1, (uint64_t[]){ 1 }, NULL, 4);
    writer_tensor(&w, "twin", TENSOR_F32, 1, (uint64_t[]){ 1 }, NULL, 4);
    assert_refused(&w, "tensor 'twin': is there twice");
}

static void other_alignments_and_known_types_are_read(void **state)
{
    (void)state;
    static const uint32_t alignments[] = { 1, 8, 64, 65536 };
    for (int i = 0; i < 4; i++) {
        struct gguf_writer w = { .alignment = alignments[i], .version = 2 };
        struct why why;
        writer_tensor(&w, "x", 11 /* Q3_K */, 1, (uint64_t[]){ 256 }, NULL, 110);
        writer_tensor(&w, "y", TENSOR_F32, 1, (uint64_t[]){ 3 }, NULL, 12);
        writer_finish(&w);
        if (open_copy(w.image.data, w.image.size, &why) != OK) fail_msg("%s", why.text);
        writer_release(&w);
    }
}

static void files_are_mapped_and_missing_ones_named(void **state)
{
    (void)state;
    char path[] = "/tmp/gguf_test_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    struct gguf *g;
    struct why why;
    assert_int_equal(gguf_open(&g, path, &why), ERR_FORMAT);
    assert_non_null(strstr(why.text, "empty"));
    struct gguf_writer w = { 0 };
    write_sample(&w);
    writer_finish(&w);
    assert_int_equal(write(fd, w.image.data, w.image.size), (ssize_t)w.image.size);
    close(fd);
    assert_int_equal(gguf_open(&g, path, &why), OK);
    uint64_t bytes;
    const void *image = gguf_image(g, &bytes);
    assert_int_equal(bytes, w.image.size);
    assert_memory_equal(image, w.image.data, bytes);
    gguf_close(g);
    unlink(path);
    assert_int_equal(gguf_open(&g, path, &why), ERR_IO);
    assert_non_null(strstr(why.text, path));
    assert_int_equal(gguf_open(&g, "/", &why), ERR_IO);
    writer_release(&w);
}

static void the_real_model_cut_at_each_percent_is_refused(void **state)
{
    (void)state;
    const char *path = getenv("RANKSERVE_TEST_MODEL");
    if (!path) skip();
    struct gguf *g, *cut;
    struct why why;
    assert_int_equal(gguf_open(&g, path, &why), OK);
    uint64_t bytes;
    const uint8_t *image = gguf_image(g, &bytes);
    for (uint64_t i = 0; i < 100; i++) {
        why.text[0] = '\0';
        enum err e = gguf_open_image(&cut, image, bytes / 100 * i, "m.gguf", &why);
        assert_int_not_equal(e, OK);
        assert_non_null(strstr(why.text, i ? "m.gguf: truncated: " : "not a GGUF file"));
        assert_null(strchr(why.text, '\n'));
    }
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_and_tensors_are_found),
        cmocka_unit_test(inspect_lists_keys_tensors_and_totals),
        cmocka_unit_test(a_file_cut_anywhere_is_refused_in_one_line),
        cmocka_unit_test(a_truncated_tensor_is_named_with_its_bytes),
        cmocka_unit_test(flipped_bytes_never_crash_and_always_say_why),
        cmocka_unit_test(headers_that_are_wrong_are_refused),
        cmocka_unit_test(keys_that_are_wrong_are_refused),
        cmocka_unit_test(tensors_that_are_wrong_are_refused),
        cmocka_unit_test(other_alignments_and_known_types_are_read),
        cmocka_unit_test(files_are_mapped_and_missing_ones_named),
        cmocka_unit_test(the_real_model_cut_at_each_percent_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
