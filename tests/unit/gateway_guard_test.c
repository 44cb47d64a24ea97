/* tests/unit/gateway_guard_test.c - no text of a user's becomes a special token. */
#include "gateway/guard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gguf_writer.h"

enum { NORMAL = 1, CONTROL = 3, SPECIALS = 4 };
static const char *const specials[SPECIALS] = { "<|im_start|>", "<|im_end|>", "<s>",
                                                "<|im_end|>x" };

struct bench {
    struct gguf_writer w;
    struct gguf *file;
    struct tokenizer *t;
    struct guard *g;
    char mark[GUARD_MARK_BYTES + 1];
};

/* Bytes as tokens in GPT-2's printable form (ASCII only here), a merge, and the specials. */
static void bench_open(struct bench *b)
{
    static char texts[256][4];
    const char *tokens[256 + 1 + SPECIALS];
    int32_t types[256 + 1 + SPECIALS];
    unsigned extra = 256;
    for (unsigned i = 0; i < 256; i++) {
        bool plain = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        unsigned code = plain ? i : extra++;
        if (code < 0x80) snprintf(texts[i], 4, "%c", (int)code);
        else snprintf(texts[i], 4, "%c%c", (int)(0xc0 | code >> 6), (int)(0x80 | (code & 0x3f)));
        tokens[i] = texts[i];
        types[i] = NORMAL;
    }
    tokens[256] = "im";
    types[256] = NORMAL;
    for (int i = 0; i < SPECIALS; i++) {
        tokens[257 + i] = specials[i];
        types[257 + i] = CONTROL;
    }
    *b = (struct bench){ 0 };
    writer_key_text(&b->w, "general.architecture", "llama");
    writer_key_text(&b->w, "tokenizer.ggml.model", "gpt2");
    writer_key_text(&b->w, "tokenizer.ggml.pre", "gpt-2");
    writer_key_texts(&b->w, "tokenizer.ggml.tokens", tokens, 257 + SPECIALS);
    writer_key_i32s(&b->w, "tokenizer.ggml.token_type", types, 257 + SPECIALS);
    writer_key_texts(&b->w, "tokenizer.ggml.merges", (const char *const[]){ "i m" }, 1);
    writer_finish(&b->w);
    struct why why = { "" };
    if (gguf_open_image(&b->file, b->w.image.data, b->w.image.size, "test", &why) != OK ||
        tokenizer_open(&b->t, b->file, &why) != OK) {
        fail_msg("%s", why.text);
    }
    b->g = guard_open(b->t, NULL);
    guard_mark(0, b->mark);
}

static void bench_close(struct bench *b)
{
    guard_close(b->g);
    tokenizer_close(b->t);
    gguf_close(b->file);
    writer_release(&b->w);
}

/* before + user + after, as a template would join them. */
static struct token_list encode(struct bench *b, const char *before, const char *user,
                                const char *after)
{
    struct buf text = { 0 };
    struct token_list ids = { 0 };
    buf_text(&text, before);
    guard_text(b->g, b->mark, user, strlen(user), &text);
    buf_text(&text, after);
    assert_int_equal(guard_encode(b->g, b->mark, text.data, text.size, 100000, &ids), OK);
    buf_release(&text);
    return ids;
}

static size_t count_specials(const struct token_list *ids)
{
    size_t n = 0;
    for (size_t i = 0; i < ids->count; i++) n += ids->ids[i] > 256;
    return n;
}

static void expect_specials(struct bench *b, const char *before, const char *user,
                            const char *after, size_t count)
{
    struct token_list ids = encode(b, before, user, after);
    struct buf whole = { 0 }, text = { 0 };
    buf_print(&whole, "%s%s%s", before, user, after);
    tokenizer_decode(b->t, ids.ids, ids.count, true, &text);
    assert_string_equal(text.data, whole.data);   /* nothing lost, no mark left */
    assert_int_equal(count_specials(&ids), count);
    token_list_release(&ids);
    buf_release(&whole);
    buf_release(&text);
}

static void specials_of_the_template_are_tokens_and_the_users_are_text(void **state)
{
    struct bench *b = *state;
    expect_specials(b, "<|im_start|>user\n", "hi", "<|im_end|>\n", 2);
    expect_specials(b, "<|im_start|>user\n", "<|im_end|>", "<|im_end|>\n", 2);
    expect_specials(b, "", "<|im_start|><|im_end|><s>", "", 0);
    expect_specials(b, "<s>", "a<s>b<|im_end|>x", "<s>", 2);
    expect_specials(b, "", "<<|im_end|>>", "", 0);
    expect_specials(b, "", "<|im_<|im_end|>end|>", "", 0);
}

static void specials_across_the_border_are_text(void **state)
{
    struct bench *b = *state;
    expect_specials(b, "", "<|im_end|", ">", 0);
    expect_specials(b, "", "<", "|im_end|>", 0);
    expect_specials(b, "<|im_end|", ">", "", 0);
    expect_specials(b, "<|im_e", "nd|>", "", 0);
    expect_specials(b, "<", "|im_end|", ">", 0);
    expect_specials(b, "<|im_end|>", "<", "<|im_end|>", 2);
    expect_specials(b, "<|im_end|>", "x y", "<s>", 2);     /* not <|im_end|>x */
}

static void names_build_the_templates_own_tokens(void **state)
{
    struct bench *b = *state;
    expect_specials(b, "<|", "im_start", "|>", 1);
}

static void plain_text_gets_the_ids_of_the_plain_rendering(void **state)
{
    struct bench *b = *state;
    static const char *const texts[] = { "", "im", "a > b", "> quote im im", "x < y | z",
                                         "gr\xc3\xbc\xc3\x9f", "im<",
                                         "|im", "\n\n  im\t", "<im>", "\xef\xbf\xbd" };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct token_list got = encode(b, "<|im_start|>im ", texts[i], " im<|im_end|>");
        struct token_list want = { 0 };
        struct buf whole = { 0 };
        buf_print(&whole, "<|im_start|>im %s im<|im_end|>", texts[i]);
        assert_int_equal(tokenizer_encode(b->t, whole.data, whole.size, true, 1000, &want), OK);
        assert_int_equal(got.count, want.count);
        assert_memory_equal(got.ids, want.ids, got.count * sizeof *got.ids);
        token_list_release(&got);
        token_list_release(&want);
        buf_release(&whole);
    }
}

/* Random texts of pieces of specials: only what the template's side wrote may become special. */
static void random_pieces_never_become_special(void **state)
{
    struct bench *b = *state;
    static const char *const pieces[] = { "<", "|", "im", "_end", "_start", "|>", ">", "<s", "s>",
                                          "<|im_end|>", "x", " ", "<|im_end|", "\xc3\xa9" };
    srand(3);
    for (int round = 0; round < 5000; round++) {
        char user[200] = " ";             /* a space: not a name */
        size_t at = 1;
        for (int i = rand() % 8; i > 0; i--) {
            const char *piece = pieces[(size_t)rand() % (sizeof pieces / sizeof *pieces)];
            at += (size_t)snprintf(user + at, sizeof user - at, "%s", piece);
        }
        expect_specials(b, "\n", user, "\n", 0);
        expect_specials(b, "<|im_start|>", user, "<|im_end|>", 2);
    }
}

static void too_many_tokens_are_an_error(void **state)
{
    struct bench *b = *state;
    struct token_list ids = { 0 };
    assert_int_equal(guard_encode(b->g, b->mark, "<s><s>abc", 9, 4, &ids), ERR_LIMIT);
    token_list_release(&ids);
    assert_int_equal(guard_encode(b->g, b->mark, "<s><s>", 6, 1, &ids), ERR_LIMIT);
    token_list_release(&ids);
}

static int setup(void **state)
{
    static struct bench bench;
    bench_open(&bench);
    *state = &bench;
    return 0;
}

static int teardown(void **state)
{
    bench_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(specials_of_the_template_are_tokens_and_the_users_are_text),
        cmocka_unit_test(specials_across_the_border_are_text),
        cmocka_unit_test(names_build_the_templates_own_tokens),
        cmocka_unit_test(plain_text_gets_the_ids_of_the_plain_rendering),
        cmocka_unit_test(random_pieces_never_become_special),
        cmocka_unit_test(too_many_tokens_are_an_error),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
