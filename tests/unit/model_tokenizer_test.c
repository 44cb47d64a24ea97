/* tests/unit/model_tokenizer_test.c - the tokenizer over small made-up vocabularies.
 *
 * What the ids of real families are is compared with the reference in service/test_tokenizer.py;
 * here: merging, special tokens, hostile text, hostile vocabularies, decoding, UTF-8 streams.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/limits.h"
#include "model/tokenizer.h"
#include "gguf_writer.h"

enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 };

/* A vocabulary under construction: the 256 bytes first, id = byte, then what a test adds. */
struct bench {
    struct gguf_writer w;
    struct buf tokens, merges;
    uint64_t token_count, merge_count;
    int32_t types[1024];
    struct gguf *g;
    struct tokenizer *t;
    struct token_list ids;
    struct why why;
};

/* GPT-2's printable form of one byte. */
static size_t printable(unsigned byte, char out[2])
{
    static const unsigned char plain[][2] = { { 33, 126 }, { 161, 172 }, { 174, 255 } };
    unsigned point = byte, before = 0;
    bool shown = false;
    for (int i = 0; i < 3; i++) {
        if (byte >= plain[i][0] && byte <= plain[i][1]) shown = true;
        if (byte > plain[i][1]) before += plain[i][1] - plain[i][0] + 1u;
    }
    if (!shown) point = 256 + byte - before;
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    out[0] = (char)(0xC0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3F));
    return 2;
}

static int32_t token_n(struct bench *b, const char *text, size_t bytes, int32_t type)
{
    writer_text_n(&b->tokens, text, bytes);
    b->types[b->token_count] = type;
    return (int32_t)b->token_count++;
}

static int32_t token(struct bench *b, const char *text, int32_t type)
{
    return token_n(b, text, strlen(text), type);
}

static void merge(struct bench *b, const char *text)
{
    writer_text(&b->merges, text);
    b->merge_count++;
}

static void start(struct bench *b)
{
    memset(b, 0, sizeof *b);
    for (unsigned i = 0; i < 256; i++) {
        char text[2];
        token_n(b, text, printable(i, text), NORMAL);
    }
}

/* `pre` NULL: no such key.  Returns what tokenizer_open returned. */
static enum err finish_as(struct bench *b, const char *model, const char *pre, uint64_t types)
{
    if (model) writer_key_text(&b->w, "tokenizer.ggml.model", model);
    if (pre) writer_key_text(&b->w, "tokenizer.ggml.pre", pre);
    writer_key_array(&b->w, "tokenizer.ggml.tokens", WRITER_TEXT, b->token_count);
    buf_add(&b->w.keys, b->tokens.data, b->tokens.size);
    if (types) writer_key_i32s(&b->w, "tokenizer.ggml.token_type", b->types, types);
    if (b->merge_count) {
        writer_key_array(&b->w, "tokenizer.ggml.merges", WRITER_TEXT, b->merge_count);
        buf_add(&b->w.keys, b->merges.data, b->merges.size);
    }
    writer_finish(&b->w);
    assert_int_equal(gguf_open_image(&b->g, b->w.image.data, b->w.image.size, "made", &b->why), OK);
    return tokenizer_open(&b->t, b->g, &b->why);
}

static void finish(struct bench *b, const char *pre)
{
    enum err e = finish_as(b, "gpt2", pre, b->token_count);
    if (e != OK) print_error("%s\n", b->why.text);
    assert_int_equal(e, OK);
}

static void done(struct bench *b)
{
    tokenizer_close(b->t);
    gguf_close(b->g);
    token_list_release(&b->ids);
    writer_release(&b->w);
    buf_release(&b->tokens);
    buf_release(&b->merges);
}

static void encode_n(struct bench *b, const char *text, size_t bytes, bool special)
{
    b->ids.count = 0;
    assert_int_equal(tokenizer_encode(b->t, text, bytes, special, SIZE_MAX, &b->ids), OK);
}

#define assert_ids(b, text, special, ...) do {                                                    \
        int32_t want[] = { __VA_ARGS__ };                                                         \
        encode_n((b), (text), strlen(text), (special));                                           \
        assert_int_equal((b)->ids.count, sizeof want / sizeof want[0]);                           \
        assert_memory_equal((b)->ids.ids, want, sizeof want);                                     \
    } while (0)

static void assert_decodes(struct bench *b, bool show_special, const char *want, size_t bytes)
{
    struct buf text = { 0 };
    tokenizer_decode(b->t, b->ids.ids, b->ids.count, show_special, &text);
    assert_int_equal(text.size, bytes);
    if (bytes) assert_memory_equal(text.data, want, bytes);
    buf_release(&text);
}

static void lower_ranks_merge_first_and_the_leftmost_of_equals(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    int32_t ab = token(&b, "ab", NORMAL), bc = token(&b, "bc", NORMAL);
    int32_t abc = token(&b, "abc", NORMAL), aa = token(&b, "aa", NORMAL);
    merge(&b, "b c");
    merge(&b, "a b");
    merge(&b, "ab c");
    merge(&b, "a a");
    finish(&b, "gpt-2");
    assert_ids(&b, "abc", false, 'a', bc);      /* "b c" first, and "a bc" is no merge */
    assert_ids(&b, "abd", false, ab, 'd');
    assert_ids(&b, "aaa", false, aa, 'a');
    assert_ids(&b, "aab", false, 'a', ab);
    (void)abc;
    done(&b);
}

static void a_whole_token_beats_merges_only_in_families_that_say_so(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct bench b;
        start(&b);
        int32_t xyz = token(&b, "xyz", NORMAL);
        finish(&b, i ? "llama-bpe" : "qwen2");
        if (i) assert_ids(&b, "xyz", false, xyz);
        else assert_ids(&b, "xyz", false, 'x', 'y', 'z');
        done(&b);
    }
}

static void families_cut_digits_each_in_its_way(void **state)
{
    (void)state;
    static const struct { const char *pre; int pieces; } rows[] = {
        { "gpt-2", 1 }, { "smollm", 7 }, { "llama-bpe", 3 }, { "qwen2", 7 }, { "gpt-4o", 3 },
        { "tekken", 7 }, { "deepseek-v3", 3 }, { "default", 3 }, { NULL, 3 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct bench b;
        start(&b);
        token(&b, "11", NORMAL);
        token(&b, "1111", NORMAL);
        token(&b, "111", NORMAL);
        token(&b, "1111111", NORMAL);
        merge(&b, "1 1");
        merge(&b, "11 11");
        merge(&b, "11 1");
        merge(&b, "1111 111");
        finish(&b, rows[i].pre);
        encode_n(&b, "1111111", 7, false);
        assert_int_equal(b.ids.count, rows[i].pieces);
        assert_decodes(&b, false, "1111111", 7);
        done(&b);
    }
}

static void a_million_equal_letters_take_well_under_a_second_a_megabyte(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    char text[257] = { 0 }, line[520];
    for (size_t n = 1; n <= 128; n *= 2) {       /* a, aa, aaaa ... */
        memset(text, 'a', 2 * n);
        token_n(&b, text, 2 * n, NORMAL);
        snprintf(line, sizeof line, "%.*s %.*s", (int)n, text, (int)n, text);
        merge(&b, line);
    }
    finish(&b, "smollm");
    size_t bytes = 1 << 20;
    char *letters = malloc(bytes);
    memset(letters, 'a', bytes);
    uint64_t before = clock_now_ns();
    encode_n(&b, letters, bytes, true);
    assert_true(clock_now_ns() - before < 5 * NS_PER_S);     /* also under a sanitizer */
    assert_int_equal(b.ids.count, bytes / 256);
    assert_decodes(&b, false, letters, bytes);
    free(letters);
    done(&b);
}

static void any_bytes_come_back_as_they_were(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    token(&b, "\xC3\x83\xC2\xA9", NORMAL);       /* the two bytes of U+00E9, printable */
    merge(&b, "\xC3\x83 \xC2\xA9");
    finish(&b, "smollm");
    assert_ids(&b, "\xC3\xA9", false, 256);
    assert_ids(&b, "\xC3" "a\xA9", false, 0xC3, 'a', 0xA9);
    assert_ids(&b, "\xC3\xC3\xA9\xA9", false, 0xC3, 256, 0xA9);
    assert_ids(&b, "\xED\xA0\x80", false, 0xED, 0xA0, 0x80);
    unsigned seed = 1;
    char text[4096];
    for (int round = 0; round < 50; round++) {
        for (size_t i = 0; i < sizeof text; i++) {
            seed = seed * 1664525u + 1013904223u;
            text[i] = (char)(round % 2 ? seed >> 24 : (seed >> 24) & 0x3F);
        }
        encode_n(&b, text, sizeof text, true);
        assert_decodes(&b, true, text, sizeof text);
    }
    encode_n(&b, "", 0, true);
    assert_int_equal(b.ids.count, 0);
    done(&b);
}

static void bytes_outside_the_vocabulary_give_nothing(void **state)
{
    (void)state;
    struct bench b;
    memset(&b, 0, sizeof b);
    int32_t a = token(&b, "a", NORMAL), z = token(&b, "z", NORMAL), az = token(&b, "az", NORMAL);
    merge(&b, "a z");
    finish(&b, "gpt-2");
    assert_ids(&b, "abz", false, az);            /* as the reference: neighbours meet */
    assert_ids(&b, "a z", false, a, z);
    encode_n(&b, "\xFF\xFE??", 4, true);
    assert_int_equal(b.ids.count, 0);
    done(&b);
}

static void user_text_never_becomes_a_control_token(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    int32_t end = token(&b, "<|>", CONTROL), longer = token(&b, "<|>>", CONTROL);
    int32_t start_of_it = token(&b, "<|", NORMAL);
    merge(&b, "< |");
    merge(&b, "<| >");                           /* would make the control token */
    finish(&b, "gpt-2");
    assert_ids(&b, "<|>", true, end);
    assert_ids(&b, "a<|><|>>", true, 'a', end, longer);
    assert_ids(&b, "<| >", true, start_of_it, ' ', '>');
    assert_ids(&b, "<|><|>>", false, start_of_it, '>', start_of_it, '>', '>');
    assert_decodes(&b, false, "<|><|>>", 7);
    done(&b);
    start(&b);                                   /* and not as a whole token either */
    token(&b, "system", CONTROL);
    finish(&b, "llama-bpe");
    assert_ids(&b, "system", false, 's', 'y', 's', 't', 'e', 'm');
    done(&b);
}

static void user_defined_tokens_are_found_in_any_text(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    int32_t tool = token(&b, "<tool>", USER_DEFINED), spaces = token(&b, "    ", USER_DEFINED);
    int32_t accent = token(&b, "\xC3\xA9", USER_DEFINED);
    finish(&b, "qwen2");
    assert_ids(&b, "<tool><tool", false, tool, '<', 't', 'o', 'o', 'l');
    assert_ids(&b, "x     y", false, 'x', spaces, ' ', 'y');
    assert_ids(&b, "\xC3\xA9", false, accent);
    assert_decodes(&b, false, "\xC3\xA9", 2);
    assert_false(tokenizer_is_special(b.t, tool));
    assert_int_equal(tokenizer_special_id(b.t, "<tool>"), -1);
    done(&b);
}

static void special_tokens_are_shown_only_when_asked(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    int32_t end = token(&b, "<|im_end|>", CONTROL), pad = token(&b, "[PAD]", UNUSED);
    finish(&b, "smollm");
    int32_t ids[] = { 'a', end, pad, -1, 9999, INT32_MIN, INT32_MAX, 'b' };
    struct buf text = { 0 };
    tokenizer_decode(b.t, ids, 8, false, &text);
    assert_string_equal(text.data, "ab");
    buf_clear(&text);
    tokenizer_decode(b.t, ids, 8, true, &text);
    assert_string_equal(text.data, "a<|im_end|>[PAD]b");
    buf_release(&text);
    assert_true(tokenizer_is_special(b.t, end));
    assert_false(tokenizer_is_special(b.t, -1));
    assert_int_equal(tokenizer_special_id(b.t, "<|im_end|>"), end);
    assert_int_equal(tokenizer_special_id(b.t, "<|im_end"), -1);
    assert_int_equal(tokenizer_special_id(b.t, ""), -1);
    assert_int_equal(tokenizer_special_id(b.t, "a"), -1);
    done(&b);
}

static void end_ids_are_the_keys_and_well_known_control_tokens(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    int32_t eot = token(&b, "<|eot_id|>", CONTROL), eos = token(&b, "<eos>", CONTROL);
    int32_t fake = token(&b, "</s>", NORMAL);
    writer_key_u32(&b.w, "tokenizer.ggml.eos_token_id", (uint32_t)eos);
    writer_key_u32(&b.w, "tokenizer.ggml.eom_token_id", 7);
    writer_key_u32(&b.w, "tokenizer.ggml.eot_token_id", UINT32_MAX);
    writer_key_u32(&b.w, "tokenizer.ggml.bos_token_id", 5);
    finish(&b, "llama-bpe");
    int32_t ids[8], want[] = { eos, 7, eot };
    assert_int_equal(tokenizer_end_ids(b.t, ids, 8), 3);
    assert_memory_equal(ids, want, sizeof want);
    assert_int_equal(tokenizer_end_ids(b.t, ids, 1), 1);
    assert_int_equal(tokenizer_eos(b.t), eos);
    assert_int_equal(tokenizer_bos(b.t), 5);
    assert_true(tokenizer_add_bos(b.t));         /* the family's default */
    assert_int_equal(tokenizer_vocab(b.t), fake + 1);
    done(&b);
}

static void bos_is_added_as_the_file_says_and_never_without_one(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct bench b;
        start(&b);
        if (i != 2) writer_key_u32(&b.w, "tokenizer.ggml.bos_token_id", 1);
        if (i != 0) writer_key_bool(&b.w, "tokenizer.ggml.add_bos_token", i == 2);
        finish(&b, i == 0 ? "smollm" : "llama-bpe");
        assert_false(tokenizer_add_bos(b.t));
        done(&b);
    }
}

static void encoding_stops_at_its_limit_and_leaves_the_list_alone(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    finish(&b, "gpt-2");
    token_list_add(&b.ids, 42);
    assert_int_equal(tokenizer_encode(b.t, "abcd", 4, false, 3, &b.ids), ERR_LIMIT);
    assert_int_equal(b.ids.count, 1);
    assert_int_equal(tokenizer_encode(b.t, "a b", 3, false, 2, &b.ids), ERR_LIMIT);
    assert_int_equal(b.ids.count, 1);
    assert_int_equal(tokenizer_encode(b.t, "abc", 3, false, 3, &b.ids), OK);
    assert_int_equal(b.ids.count, 4);
    assert_int_equal(b.ids.ids[0], 42);
    assert_int_equal(tokenizer_encode(b.t, "", 0, false, 0, &b.ids), OK);
    assert_int_equal(tokenizer_encode(b.t, "x", (size_t)1 << 40, false, 3, &b.ids), ERR_LIMIT);
    done(&b);
}

static void assert_refused(struct bench *b, enum err got, enum err want, const char *says)
{
    assert_int_equal(got, want);
    assert_null(b->t);
    assert_non_null(strstr(b->why.text, says));
    done(b);
}

static void what_is_not_supported_is_refused_by_name(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    assert_refused(&b, finish_as(&b, "llama", "default", 256), ERR_UNSUPPORTED, "SentencePiece");
    start(&b);
    assert_refused(&b, finish_as(&b, "rwkv", "default", 256), ERR_UNSUPPORTED, "rwkv");
    start(&b);
    assert_refused(&b, finish_as(&b, NULL, NULL, 256), ERR_FORMAT, "tokenizer.ggml.model");
    start(&b);
    assert_refused(&b, finish_as(&b, "gpt2", "zebra", 256), ERR_UNSUPPORTED, "\"zebra\"");
    start(&b);
    assert_refused(&b, finish_as(&b, "gpt2", "", 256), ERR_UNSUPPORTED, "smollm");
    start(&b);
    assert_refused(&b, finish_as(&b, "gpt2", "smoll", 256), ERR_UNSUPPORTED, "\"smoll\"");
}

static void hostile_vocabularies_are_refused(void **state)
{
    (void)state;
    struct bench b;
    memset(&b, 0, sizeof b);
    assert_refused(&b, finish_as(&b, "gpt2", "gpt-2", 0), ERR_FORMAT, "vocabulary");
    start(&b);
    assert_refused(&b, finish_as(&b, "gpt2", "gpt-2", 255), ERR_FORMAT, "255 entries");
    start(&b);
    writer_key_u32(&b.w, "tokenizer.ggml.eos_token_id", 256);
    assert_refused(&b, finish_as(&b, "gpt2", "gpt-2", 256), ERR_FORMAT, "eos_token_id is 256");
    static const char *const merges[] = { "", "ab", " a", "a ", " " };
    for (int i = 0; i < 5; i++) {
        start(&b);
        merge(&b, "a b");
        merge(&b, merges[i]);
        assert_refused(&b, finish_as(&b, "gpt2", "gpt-2", 256), ERR_FORMAT, "merge 1");
    }
    char *text = malloc(TOKEN_BYTES_MAX + 1);
    memset(text, 'x', TOKEN_BYTES_MAX + 1);
    start(&b);
    token_n(&b, text, TOKEN_BYTES_MAX + 1, NORMAL);
    assert_refused(&b, finish_as(&b, "gpt2", "gpt-2", 257), ERR_LIMIT, "token 256");
    free(text);
}

static void odd_vocabularies_are_used_as_far_as_they_go(void **state)
{
    (void)state;
    struct bench b;
    start(&b);
    int32_t ab = token(&b, "ab", NORMAL);
    token(&b, "ab", NORMAL);                     /* a duplicate: the first is used */
    token(&b, "", NORMAL);
    token(&b, "", CONTROL);
    token(&b, "", USER_DEFINED);
    int32_t raw = token(&b, "a b\xE4\xB8\xAD", NORMAL);   /* not in printable form */
    token(&b, "\xC3", NORMAL);                   /* cut in the middle of a character */
    token(&b, "cd", 77);                         /* a type of tomorrow: as normal */
    token(&b, "bc", NORMAL);
    merge(&b, "x unknown");
    merge(&b, "\xE4\xB8\xAD a");
    merge(&b, "x y");                            /* there is no "xy" */
    merge(&b, "a b");
    merge(&b, "b c");
    merge(&b, "a b");                            /* again: the first rank stays */
    merge(&b, "c d");
    finish(&b, "gpt-2");
    assert_ids(&b, "abc", true, ab, 'c');
    assert_ids(&b, "abxycd", true, ab, 'x', 'y', raw + 2);
    int32_t ids[] = { raw, ab + 2, ab + 3, ab + 4 };
    struct buf text = { 0 };
    tokenizer_decode(b.t, ids, 4, true, &text);
    assert_string_equal(text.data, "a b\xE4\xB8\xAD");
    buf_release(&text);
    done(&b);
    start(&b);                                   /* no types, no merges */
    assert_int_equal(finish_as(&b, "gpt2", "gpt-2", 0), OK);
    assert_ids(&b, "ab", true, 'a', 'b');
    done(&b);
    memset(&b, 0, sizeof b);                     /* only an empty token */
    token(&b, "", NORMAL);
    finish(&b, "gpt-2");
    encode_n(&b, "abc", 3, true);
    assert_int_equal(b.ids.count, 0);
    done(&b);
}

static void streams_keep_characters_whole(void **state)
{
    (void)state;
    /* Each row: bytes, then what Python's incremental decoder with errors="replace" gives. */
#define R "\xEF\xBF\xBD"
    static const char *const rows[][2] = {
        { "plain text, long enough", "plain text, long enough" },
        { "\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80", "\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80" },
        { "\x80" "a\xFF", R "a" R },
        { "\xC0\xAF\xE0\x80\xAF", R R R R R },
        { "\xED\xA0\x80", R R R },
        { "\xF4\x90\x80\x80", R R R R },
        { "\xF0\x9F\x98" "a", R "a" },
        { "\xF0\x9F\xC3\xA9", R "\xC3\xA9" },
        { "\xE4\xB8", R },
        { "\xF0\x9F\x98", R },
        { "\xF0\x9F\x98\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80" },
        { "\xC3\xC3\xC3", R R R },
        { "\xE4\xC3\xA9\xE4\x80", R "\xC3\xA9" R },
    };
#undef R
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t bytes = strlen(rows[i][0]);
        for (size_t step = 1; step <= bytes; step++) {
            struct utf8_stream s = { 0 };
            struct buf out = { 0 };
            for (size_t at = 0; at < bytes; at += step) {
                size_t n = bytes - at < step ? bytes - at : step;
                utf8_stream_add(&s, rows[i][0] + at, n, &out);
            }
            utf8_stream_end(&s, &out);
            utf8_stream_end(&s, &out);           /* a second end adds nothing */
            assert_string_equal(out.data, rows[i][1]);
            buf_release(&out);
        }
    }
}

static void the_real_vocabulary_opens_quickly(void **state)
{
    (void)state;
    const char *path = getenv("RANKSERVE_TEST_MODEL");
    if (!path) skip();
    struct bench b;
    memset(&b, 0, sizeof b);
    assert_int_equal(gguf_open(&b.g, path, &b.why), OK);
    uint64_t before = clock_now_ns();
    assert_int_equal(tokenizer_open(&b.t, b.g, &b.why), OK);
    assert_true(clock_now_ns() - before < NS_PER_S);         /* 20 ms without a sanitizer */
    assert_ids(&b, "<|im_start|>user\nHello, world!<|im_end|>", true, 1, 4093, 198, 19556, 28, 905,
               17, 2);
    assert_decodes(&b, true, "<|im_start|>user\nHello, world!<|im_end|>", 40);
    int32_t ids[8], want[] = { 2, 0 };
    assert_int_equal(tokenizer_end_ids(b.t, ids, 8), 2);
    assert_memory_equal(ids, want, sizeof want);
    done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lower_ranks_merge_first_and_the_leftmost_of_equals),
        cmocka_unit_test(a_whole_token_beats_merges_only_in_families_that_say_so),
        cmocka_unit_test(families_cut_digits_each_in_its_way),
        cmocka_unit_test(a_million_equal_letters_take_well_under_a_second_a_megabyte),
        cmocka_unit_test(any_bytes_come_back_as_they_were),
        cmocka_unit_test(bytes_outside_the_vocabulary_give_nothing),
        cmocka_unit_test(user_text_never_becomes_a_control_token),
        cmocka_unit_test(user_defined_tokens_are_found_in_any_text),
        cmocka_unit_test(special_tokens_are_shown_only_when_asked),
        cmocka_unit_test(end_ids_are_the_keys_and_well_known_control_tokens),
        cmocka_unit_test(bos_is_added_as_the_file_says_and_never_without_one),
        cmocka_unit_test(encoding_stops_at_its_limit_and_leaves_the_list_alone),
        cmocka_unit_test(what_is_not_supported_is_refused_by_name),
        cmocka_unit_test(hostile_vocabularies_are_refused),
        cmocka_unit_test(odd_vocabularies_are_used_as_far_as_they_go),
        cmocka_unit_test(streams_keep_characters_whole),
        cmocka_unit_test(the_real_vocabulary_opens_quickly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
