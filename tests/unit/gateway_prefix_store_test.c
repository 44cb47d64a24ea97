/* tests/unit/gateway_prefix_store_test.c - ids of text seen before are those of the whole text.
 *
 * The vocabulary has a token for every pair of an alphabet, and for many triples: where a text is
 * cut differently, its ids differ.
 */
#include "gateway/prefix_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gguf_writer.h"

enum { NORMAL = 1, LETTERS = 9, TOKENS_MAX = 256 + LETTERS * LETTERS * (1 + LETTERS),
       MERGES_MAX = LETTERS * LETTERS * (1 + LETTERS) };

static const char letters[LETTERS + 1] = "aBs\n 1!'\r";

struct bench {
    struct gguf_writer w;
    struct gguf *file;
    struct tokenizer *t;
    uint64_t dice;
};

static uint32_t roll(struct bench *b, uint32_t sides)
{
    b->dice = b->dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(b->dice >> 33) % sides;
}

static char bytes[256][4];
static char names[TOKENS_MAX][16], merges[MERGES_MAX][32];

static void name_bytes(void)
{
    unsigned extra = 256;
    for (unsigned i = 0; i < 256; i++) {
        bool plain = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        unsigned code = plain ? i : extra++;
        if (code < 0x80) snprintf(bytes[i], 4, "%c", (int)code);
        else snprintf(bytes[i], 4, "%c%c", (int)(0xc0 | code >> 6), (int)(0x80 | (code & 0x3f)));
        memcpy(names[i], bytes[i], sizeof bytes[i]);
    }
}

static const char *letter(int i)
{
    return bytes[(unsigned char)letters[i]];
}

static void bench_open(struct bench *b, const char *family)
{
    static const char *token_list[TOKENS_MAX], *merge_list[MERGES_MAX];
    static int32_t types[TOKENS_MAX];
    int count = 256, merge_count = 0;
    name_bytes();
    for (int i = 0; i < LETTERS; i++) {
        for (int k = 0; k < LETTERS; k++) {
            snprintf(names[count++], 16, "%s%s", letter(i), letter(k));
            snprintf(merges[merge_count++], 32, "%s %s", letter(i), letter(k));
        }
    }
    for (int i = 0; i < LETTERS; i++) {
        for (int k = 0; k < LETTERS; k++) {
            for (int j = (i + k) % 2; j < LETTERS; j += 2) {
                snprintf(names[count++], 16, "%s%s%s", letter(i), letter(k), letter(j));
                snprintf(merges[merge_count++], 32, "%s%s %s", letter(i), letter(k), letter(j));
            }
        }
    }
    for (int i = 0; i < count; i++) token_list[i] = names[i], types[i] = NORMAL;
    for (int i = 0; i < merge_count; i++) merge_list[i] = merges[i];
    *b = (struct bench){ .dice = 1 };
    writer_key_text(&b->w, "general.architecture", "llama");
    writer_key_text(&b->w, "tokenizer.ggml.model", "gpt2");
    writer_key_text(&b->w, "tokenizer.ggml.pre", family);
    writer_key_texts(&b->w, "tokenizer.ggml.tokens", token_list, (size_t)count);
    writer_key_i32s(&b->w, "tokenizer.ggml.token_type", types, (size_t)count);
    writer_key_texts(&b->w, "tokenizer.ggml.merges", merge_list, (size_t)merge_count);
    writer_finish(&b->w);
    struct why why = { "" };
    if (gguf_open_image(&b->file, b->w.image.data, b->w.image.size, "test", &why) != OK ||
        tokenizer_open(&b->t, b->file, &why) != OK) {
        fail_msg("%s", why.text);
    }
}

static void bench_close(struct bench *b)
{
    tokenizer_close(b->t);
    gguf_close(b->file);
    writer_release(&b->w);
}

static void add_random(struct bench *b, struct buf *text, uint32_t count)
{
    while (count--) buf_char(text, letters[roll(b, LETTERS)]);
}

/* The ids of the store are those of the tokenizer, whatever the store has seen. */
static void compare(struct bench *b, struct prefix_store *s, const struct buf *text)
{
    struct token_list want = { 0 }, got = { 0 };
    assert_int_equal(tokenizer_encode(b->t, text->data, text->size, false, 1 << 20, &want), OK);
    assert_int_equal(prefix_store_encode(s, text->data, text->size, 1 << 20, &got), OK);
    assert_int_equal(got.count, want.count);
    assert_memory_equal(got.ids, want.ids, want.count * sizeof *want.ids);
    token_list_release(&want);
    token_list_release(&got);
}

static void converse(const char *family)
{
    struct bench b;
    bench_open(&b, family);
    struct prefix_store *s = prefix_store_open(b.t, 1 << 20);
    for (int talk = 0; talk < 12; talk++) {
        struct buf text = { 0 };
        for (int turn = 0; turn < 12; turn++) {
            add_random(&b, &text, 1 + roll(&b, 900));
            compare(&b, s, &text);
        }
        buf_release(&text);
    }
    struct prefix_store_stats stats;
    prefix_store_stats(s, &stats);
    assert_true(stats.found > 2 * stats.made); /* most of a conversation is its history */
    prefix_store_close(s);
    bench_close(&b);
}

static const char *const families[] = {
    "gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "default", "qwen35", "seed-coder",
    "bailingmoe", "tekken", "gpt-4o", "falcon", "bloom", "viking", "deepseek-llm",
    "deepseek-coder", "deepseek-v3",
};

static void a_growing_conversation_has_the_ids_of_the_whole_text(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) converse(families[i]);
}

/* A document behind ever new beginnings: all but its first chunk and its last is known. */
static void a_text_that_comes_back_elsewhere_is_found_again(void **state)
{
    (void)state;
    struct bench b;
    bench_open(&b, "qwen2");
    struct prefix_store *s = prefix_store_open(b.t, 4 << 20);
    struct buf document = { 0 };
    add_random(&b, &document, 60000);
    compare(&b, s, &document);
    struct prefix_store_stats before, after;
    prefix_store_stats(s, &before);
    for (int i = 0; i < 10; i++) {
        struct buf text = { 0 };
        add_random(&b, &text, 1 + roll(&b, 3000));
        buf_add(&text, document.data, document.size);
        compare(&b, s, &text);
        buf_release(&text);
    }
    prefix_store_stats(s, &after);
    assert_true(after.found > 9 * before.made && after.made < before.made * 3 / 2);
    buf_release(&document);
    prefix_store_close(s);
    bench_close(&b);
}

static void memory_stays_within_its_bound_and_the_longest_unused_goes_first(void **state)
{
    (void)state;
    struct bench b;
    bench_open(&b, "gpt-2");
    struct prefix_store *s = prefix_store_open(b.t, 20000);
    struct prefix_store_stats stats;
    struct buf dear = { 0 };
    add_random(&b, &dear, 300);
    for (int i = 0; i < 500; i++) {
        struct buf text = { 0 };
        add_random(&b, &text, 60 + roll(&b, 400));
        compare(&b, s, &text);
        compare(&b, s, &dear);        /* used again and again: it stays */
        buf_release(&text);
        prefix_store_stats(s, &stats);
        assert_true(stats.bytes <= 20000);
    }
    uint64_t found = stats.found;
    compare(&b, s, &dear);
    prefix_store_stats(s, &stats);
    assert_true(stats.found > found && stats.chunks > 10);
    buf_release(&dear);
    prefix_store_close(s);
    bench_close(&b);
}

static void a_text_with_too_many_tokens_leaves_the_list_as_it_was(void **state)
{
    (void)state;
    struct bench b;
    bench_open(&b, "gpt-2");
    struct prefix_store *s = prefix_store_open(b.t, 1 << 20);
    struct buf text = { 0 };
    struct token_list ids = { 0 };
    add_random(&b, &text, 3000);
    assert_int_equal(prefix_store_encode(s, text.data, text.size, 1 << 20, &ids), OK);
    size_t count = ids.count;
    for (int known = 0; known < 2; known++) {
        token_list_add(&ids, 7);
        size_t before = ids.count;
        assert_int_equal(prefix_store_encode(s, text.data, text.size, count - 1, &ids), ERR_LIMIT);
        assert_int_equal(ids.count, before);
        assert_int_equal(prefix_store_encode(s, text.data, text.size, count, &ids), OK);
        assert_int_equal(ids.count, before + count);
    }
    token_list_release(&ids);
    buf_release(&text);
    prefix_store_close(s);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_growing_conversation_has_the_ids_of_the_whole_text),
        cmocka_unit_test(a_text_that_comes_back_elsewhere_is_found_again),
        cmocka_unit_test(memory_stays_within_its_bound_and_the_longest_unused_goes_first),
        cmocka_unit_test(a_text_with_too_many_tokens_leaves_the_list_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
