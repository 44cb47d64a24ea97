/* model/template_lex_tag.c - the tokens inside a tag: names, numbers, strings, operators. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_syntax.h"

static _Noreturn void fail_at(struct tp_lexer *lx, size_t at, enum err e, const char *what)
{
    tp_lexer_move(lx, at);
    lx->arena->line = lx->line;
    lx->arena->column = (unsigned)(at - lx->line_start) + 1;
    tp_fail(lx->arena, e, "%s", what);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80;
}

static char byte_at(const struct tp_lexer *lx, size_t at)
{
    return at < lx->bytes ? lx->text[at] : '\0';
}

/* Digits with single underscores between them, copied to `out`; returns where they end. */
static size_t digits(const struct tp_lexer *lx, size_t at, char *out, size_t *used, size_t room)
{
    while (is_digit(byte_at(lx, at))) {
        if (*used + 1 < room) out[(*used)++] = lx->text[at];
        at++;
        if (byte_at(lx, at) == '_' && is_digit(byte_at(lx, at + 1))) at++;
    }
    return at;
}

static int digit_value(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return 99;
}

/* 0x1f, 0o17, 0b11 */
static bool lex_radix(struct tp_lexer *lx, struct tp_token *t)
{
    char kind = byte_at(lx, lx->at + 1) | 0x20;
    int radix = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (byte_at(lx, lx->at) != '0' || !radix) return false;
    size_t at = lx->at + 2;
    if (digit_value(byte_at(lx, at)) >= radix) return false;
    int64_t value = 0;
    for (; digit_value(byte_at(lx, at)) < radix; at++) {
        if (__builtin_mul_overflow(value, radix, &value) ||
            __builtin_add_overflow(value, digit_value(lx->text[at]), &value)) {
            fail_at(lx, lx->at, ERR_LIMIT, "a number does not fit 64 bits");
        }
        if (byte_at(lx, at + 1) == '_') at++;
    }
    t->kind = TP_T_INT;
    t->value = tp_int(value);
    tp_lexer_move(lx, at);
    return true;
}

static void lex_number(struct tp_lexer *lx, struct tp_token *t)
{
    if (lex_radix(lx, t)) return;
    char text[512];
    size_t used = 0, start = lx->at, at = digits(lx, start, text, &used, sizeof text);
    bool real = false;
    /* After a dot (`x.0.1`) a number is an index, never a fraction. */
    bool may_be_real = start == 0 || lx->text[start - 1] != '.';
    if (may_be_real && byte_at(lx, at) == '.' && is_digit(byte_at(lx, at + 1))) {
        real = true;
        text[used < 400 ? used++ : used] = '.';
        at = digits(lx, at + 1, text, &used, sizeof text);
    }
    char next = byte_at(lx, at + 1), after = byte_at(lx, at + 2);
    bool sign = next == '+' || next == '-';
    bool exponent = (byte_at(lx, at) | 0x20) == 'e' && is_digit(sign ? after : next);
    if (may_be_real && exponent) {
        real = true;
        if (used > 400) used = 400;
        text[used++] = 'e';
        if (sign) text[used++] = next;
        at = digits(lx, at + 1 + sign, text, &used, sizeof text);
    }
    text[used] = '\0';
    errno = 0;
    if (real) {
        t->kind = TP_T_FLOAT;
        t->value = tp_float(strtod(text, NULL));
    }
    else {
        t->kind = TP_T_INT;
        t->value = tp_int(strtoll(text, NULL, 10));
        if (errno == ERANGE) fail_at(lx, start, ERR_LIMIT, "a number does not fit 64 bits");
    }
    tp_lexer_move(lx, at);
}

/* \x41 A ... : `count` hex digits at `at`. */
static uint32_t hex_escape(struct tp_lexer *lx, size_t at, size_t count)
{
    uint32_t c = 0;
    for (size_t i = 0; i < count; i++) {
        int digit = digit_value(byte_at(lx, at + i));
        if (digit > 15) fail_at(lx, at, ERR_FORMAT, "bad escape in a string");
        c = c << 4 | (uint32_t)digit;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
        fail_at(lx, at, ERR_FORMAT, "an escape that is no character");
    }
    return c;
}

/* At the byte after a backslash; returns where the escape ends. */
static size_t lex_escape(struct tp_lexer *lx, struct tp_sink *s, size_t at)
{
    static const char names[] = "\\'\"abfnrtv", means[] = "\\'\"\a\b\f\n\r\t\v";
    char c = lx->text[at];
    const char *known = c ? strchr(names, c) : NULL;
    if (known) {
        tp_sink_add(s, &means[known - names], 1);
        return at + 1;
    }
    if (c == '\n') return at + 1;
    size_t hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (hex) {
        tp_sink_char(s, hex_escape(lx, at + 1, hex));
        return at + 1 + hex;
    }
    if (c == 'N') fail_at(lx, at, ERR_FORMAT, "named characters are not supported");
    if (c < '0' || c > '7') {
        tp_sink_word(s, "\\");
        return at;
    }
    uint32_t octal = 0;
    for (int i = 0; i < 3 && byte_at(lx, at) >= '0' && byte_at(lx, at) <= '7'; i++, at++) {
        octal = octal << 3 | (uint32_t)(lx->text[at] - '0');
    }
    tp_sink_char(s, octal);
    return at;
}

static void lex_string(struct tp_lexer *lx, struct tp_token *t)
{
    char quote = lx->text[lx->at];
    struct tp_sink s = { .arena = lx->arena };
    size_t at = lx->at + 1, plain = at;
    while (byte_at(lx, at) != quote) {
        if (at >= lx->bytes) fail_at(lx, lx->at, ERR_FORMAT, "a string without end");
        if (lx->text[at] != '\\') {
            at++;
            continue;
        }
        tp_sink_add(&s, lx->text + plain, at - plain);
        if (at + 1 >= lx->bytes) fail_at(lx, lx->at, ERR_FORMAT, "a string without end");
        plain = lex_escape(lx, &s, at + 1);
        /* An escape not known to Python stands for itself, its character included. */
        at = plain > at + 1 ? plain : at + 2;
    }
    t->kind = TP_T_STRING;
    t->text = (struct tp_text){ lx->text + plain, at - plain };
    if (s.bytes || plain != lx->at + 1) {
        tp_sink_add(&s, t->text.data, t->text.bytes);
        t->text = *tp_sink_take(&s).as.text;
    }
    tp_lexer_move(lx, at + 1);
}

static void track_bracket(struct tp_lexer *lx, char c)
{
    static const char opens[] = "([{", shuts[] = ")]}";
    const char *open = strchr(opens, c), *shut = strchr(shuts, c);
    if (open) {
        if (lx->bracket_count == sizeof lx->brackets) {
            fail_at(lx, lx->at, ERR_LIMIT, "brackets are nested too deeply");
        }
        lx->brackets[lx->bracket_count++] = shuts[open - opens];
    }
    if (!shut) return;
    if (lx->bracket_count == 0 || lx->brackets[lx->bracket_count - 1] != c) {
        fail_at(lx, lx->at, ERR_FORMAT, "a closing bracket without its opening one");
    }
    lx->bracket_count--;
}

static void lex_operator(struct tp_lexer *lx, struct tp_token *t)
{
    static const char *const twos[] = { "//", "**", "==", "!=", ">=", "<=" };
    static const char ones[] = "+-*/%~[](){}<>=.:|,;";
    t->kind = TP_T_OPERATOR;
    char c = lx->text[lx->at], d = byte_at(lx, lx->at + 1);
    for (size_t i = 0; i < sizeof twos / sizeof *twos; i++) {
        if (twos[i][0] != c || twos[i][1] != d) continue;
        t->op = TP_OP2(c, d);
        tp_lexer_move(lx, lx->at + 2);
        return;
    }
    if (c == '\0' || !strchr(ones, c)) fail_at(lx, lx->at, ERR_FORMAT, "unexpected character");
    track_bracket(lx, c);
    t->op = (unsigned char)c;
    tp_lexer_move(lx, lx->at + 1);
}

struct tp_token tp_lexer_tag(struct tp_lexer *lx)
{
    struct tp_token t = {
        .kind = TP_T_END, .line = lx->line, .column = (unsigned)(lx->at - lx->line_start) + 1,
    };
    if (lx->at >= lx->bytes) return t;
    char c = lx->text[lx->at];
    if (is_digit(c)) lex_number(lx, &t);
    else if (c == '"' || c == '\'') lex_string(lx, &t);
    else if (is_name_start(c)) {
        size_t end = lx->at;
        while (end < lx->bytes && (is_name_start(lx->text[end]) || is_digit(lx->text[end]))) end++;
        t.kind = TP_T_NAME;
        t.text = (struct tp_text){ lx->text + lx->at, end - lx->at };
        tp_lexer_move(lx, end);
    }
    else lex_operator(lx, &t);
    return t;
}
