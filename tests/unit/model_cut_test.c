/* tests/unit/model_cut_test.c - where text may be cut, both sides have the pieces of the whole.
 *
 * Random texts of an alphabet of everything that some expression treats in its own way, for every
 * family; every place that the rules allow is cut.
 */
#include "model/tokenizer_cut.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const alphabet[] = {
    " ", " ", " ", " ", " ", " ", "a", "B", "s", "S", "t", "l", "L", "r", "e", "v", "m", "d", "'",
    "'", "\n", "\r", "\t", "1", "2", "9", "!", "(", "/", "`", "$", "_", "-", ".", ",", "|", "=",
    "\x01", "\x0b", "\x7f",
    /* Latin: small e with acute, times, long s, spaces, micro, half */
    "\xC3\xA9", "\xC3\x97", "\xC5\xBF", "\xC2\xA0", "\xC2\x85", "\xC2\xB5", "\xC2\xBD",
    /* Greek, Cyrillic and its thousands sign, Hebrew, Arabic with a mark, Devanagari with a sign */
    "\xCE\xA9", "\xCF\x82", "\xD0\x96", "\xD1\x8F", "\xD2\x82", "\xD7\x90", "\xD8\xB9", "\xD9\x80",
    "\xD9\x8B", "\xE0\xA4\x95", "\xE0\xA4\xBF", "\xE1\xBA\xA5", "\xE2\x80\xA6", "\xE2\x80\x83",
    /* the vowel separator that was a space, a mark, title case, a modifier letter */
    "\xE1\xA0\x8E", "\xCC\x81", "\xC7\x85", "\xCA\xB0",
    /* Chinese, Japanese, Korean, Thai, beyond 16 bits */
    "\xE3\x80\x80", "\xE3\x80\x81", "\xE3\x80\x82", "\xEF\xBC\x8C", "\xEF\xBC\x81", "\xEF\xBC\xA1",
    "\xE4\xB8\x80", "\xE4\xBA\xBA", "\xE3\x81\x82", "\xE3\x82\xA2", "\xE3\x83\xBC", "\xEA\xB0\x80",
    "\xED\x9E\xA3", "\xE0\xB8\x81", "\xF0\x9F\x98\x80", "\xF0\x90\x90\x80", "\xF0\xA0\x80\x80",
};
enum { LETTERS = sizeof alphabet / sizeof alphabet[0], TEXTS = 30000, CHARS_MAX = 24,
       BYTES_MAX = 4 * CHARS_MAX };

static uint64_t dice = 1;

static uint32_t roll(uint32_t sides)
{
    dice = dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(dice >> 33) % sides;
}

/* Half of the texts use few letters, so that what needs several of one kind comes up. */
static size_t make_text(char *out)
{
    uint32_t count = 2 + roll(CHARS_MAX - 2), some = roll(2) ? LETTERS : 6, from[6];
    for (int i = 0; i < 6; i++) from[i] = roll(LETTERS);
    size_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        const char *c = alphabet[some == LETTERS ? roll(LETTERS) : from[roll(6)]];
        memcpy(out + bytes, c, strlen(c));
        bytes += strlen(c);
    }
    return bytes;
}

struct pieces {
    const char *text;
    bool ends[BYTES_MAX + 1];
};

static enum err add_piece(void *owner, const char *piece, size_t bytes)
{
    struct pieces *p = owner;
    p->ends[piece + bytes - p->text] = true;
    return OK;
}

/* A copy of just the right length: whoever reads beyond it is found by the sanitizer. */
static void run(const struct splitter *s, pcre2_match_data *match, struct pieces *p,
                const char *text, size_t bytes)
{
    char *copy = malloc(bytes);
    memcpy(copy, text, bytes);
    *p = (struct pieces){ .text = copy };
    assert_int_equal(splitter_run(s, match, copy, bytes, add_piece, p), OK);
    free(copy);
}

/* Cuts one text wherever it may be; returns at how many places. */
static uint32_t cut_everywhere(const struct splitter *s, const struct cut_rules *r,
                               pcre2_match_data *match)
{
    char text[BYTES_MAX];
    size_t bytes = make_text(text);
    uint32_t count = 0;
    struct pieces whole, left, right;
    run(s, match, &whole, text, bytes);
    for (size_t at = 1; at < bytes; at++) {
        if (!cut_allowed(r, text, bytes, at)) continue;
        count++;
        run(s, match, &left, text, at);
        run(s, match, &right, text + at, bytes - at);
        bool same = whole.ends[at] && memcmp(whole.ends, left.ends, at) == 0 &&
                    memcmp(whole.ends + at + 1, right.ends + 1, bytes - at) == 0;
        if (!same) fail_msg("%s: \"%.*s|%.*s\"", s->family->names, (int)at, text,
                            (int)(bytes - at), text + at);
    }
    return count;
}

static void both_sides_have_the_pieces_of_the_whole_in_every_family(void **state)
{
    (void)state;
    const struct special_set none = { 0 };
    uint32_t texts = getenv("RANKSERVE_TEST_LONG") ? 20 * TEXTS : TEXTS;
    for (size_t n = 0; splitter_families(n); n++) {
        const char *names = splitter_families(n);
        struct splitter s;
        struct why why;
        struct gguf_text name = { names, strcspn(names, " ") };
        assert_int_equal(splitter_open(&s, name, &why), OK);
        struct cut_rules r;
        cut_rules_open(&r, s.family, &none);
        pcre2_match_data *match = pcre2_match_data_create(1, NULL);
        uint32_t cuts = 0;
        for (uint32_t i = 0; i < texts; i++) cuts += cut_everywhere(&s, &r, match);
        assert_true(cuts > texts / 4);
        pcre2_match_data_free(match);
        splitter_release(&s);
    }
}

static void assert_cuts(const struct cut_rules *r, const char *text, size_t at, bool allowed)
{
    assert_int_equal(cut_allowed(r, text, strlen(text), at), allowed);
}

static void words_and_sentences_end_where_they_end(void **state)
{
    (void)state;
    struct cut_rules all = { true, true, true }, cased = { true, false, true };
    assert_cuts(&all, "a b", 1, true);
    assert_cuts(&all, "a b", 2, false);
    assert_cuts(&all, "1 b", 1, false);
    assert_cuts(&all, "a\n", 1, true);
    assert_cuts(&all, "ab", 1, false);
    assert_cuts(&all, "\xC3\xA9 b", 2, true);             /* é */
    assert_cuts(&all, "\xC3\x97 b", 2, false);            /* × is no letter */
    assert_cuts(&all, "\xE1\xBA\xA5 b", 3, true);
    assert_cuts(&all, "\xEA\xB0\x80 b", 3, true);         /* Hangul */
    assert_cuts(&cased, "\xEA\xB0\x80 b", 3, false);
    assert_cuts(&all, "\xE4\xBA\xBA\xE3\x80\x82", 3, true);
    assert_cuts(&cased, "\xE4\xBA\xBA\xE3\x80\x82", 3, true);
    assert_cuts(&all, "\xE4\xBA\xBA\xE3\x80\x82\xE4", 6, false);
    assert_cuts(&all, "\xE4\xBA\xBA\xE3\x80", 3, false);  /* half of a full stop */
    assert_cuts(&all, "a\xE3\x80\x82", 1, false);
    assert_cuts(&all, "\xA9 b", 1, false);                /* the rest of a character */
}

static struct cut_rules rules_beside(const char *special)
{
    struct special_text text = { (const unsigned char *)special, (uint32_t)strlen(special), 7 };
    struct special_set set = { .texts = &text, .count = 1 };
    struct pre_family family = { 0 };
    struct cut_rules r;
    cut_rules_open(&r, &family, &set);
    return r;
}

static void a_special_text_that_could_span_a_place_forbids_it(void **state)
{
    (void)state;
    struct cut_rules r = rules_beside("<|im_start|>");
    assert_true(r.words && r.stops);
    r = rules_beside("   ");
    assert_true(r.words && r.stops);
    r = rules_beside(" the");
    assert_true(r.words && r.stops);
    r = rules_beside("the ");
    assert_true(!r.words && r.stops);
    r = rules_beside("<end of it>");
    assert_true(!r.words && r.stops);
    r = rules_beside("\xE4\xBA\xBA\xE3\x80\x82");
    assert_true(r.words && !r.stops);
    r = rules_beside("\xE4\xBA\xBA\n");
    assert_true(!r.words && r.stops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_have_the_pieces_of_the_whole_in_every_family),
        cmocka_unit_test(words_and_sentences_end_where_they_end),
        cmocka_unit_test(a_special_text_that_could_span_a_place_forbids_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
