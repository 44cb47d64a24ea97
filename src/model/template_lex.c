/* model/template_lex.c - cuts a template into text and tags, with Jinja's white-space control.
 *
 * trim_blocks and lstrip_blocks are always on, as Hugging Face sets them: a newline after `%}` or
 * `#}` goes, and so does white space between the start of a line and `{%` or `{#`; `-` strips all
 * white space on its side, `+` keeps it.  What is inside a tag is template_lex_tag.c's.
 */
#include <string.h>

#include "model/template_syntax.h"

void tp_lexer_open(struct tp_lexer *lx, struct tp_arena *a, const char *text, size_t bytes)
{
    *lx = (struct tp_lexer){
        .arena = a, .text = text, .bytes = bytes, .line = 1, .line_starting = true,
    };
}

void tp_lexer_move(struct tp_lexer *lx, size_t at)
{
    for (size_t i = lx->at; i < at; i++) {
        if (lx->text[i] != '\n') continue;
        lx->line++;
        lx->line_start = i + 1;
    }
    lx->at = at;
}

static struct tp_token token_here(const struct tp_lexer *lx, enum tp_token_kind kind)
{
    return (struct tp_token){
        .kind = kind, .line = lx->line, .column = (unsigned)(lx->at - lx->line_start) + 1,
    };
}

static _Noreturn void fail_here(struct tp_lexer *lx, const char *what)
{
    lx->arena->line = lx->line;
    lx->arena->column = (unsigned)(lx->at - lx->line_start) + 1;
    tp_fail(lx->arena, ERR_FORMAT, "%s", what);
}

static bool starts(const struct tp_lexer *lx, size_t at, const char *word)
{
    size_t bytes = strlen(word);
    return lx->bytes - at >= bytes && memcmp(lx->text + at, word, bytes) == 0;
}

static size_t skip_space(const struct tp_lexer *lx, size_t at)
{
    return at + tp_space_prefix(lx->text + at, lx->bytes - at);
}

static char sign_at(const struct tp_lexer *lx, size_t at)
{
    char c = at < lx->bytes ? lx->text[at] : '\0';
    return c == '-' || c == '+' ? c : '\0';
}

/* After a tag of `sign` that ended at `at`: where the text goes on. */
static size_t after_tag(const struct tp_lexer *lx, size_t at, char sign)
{
    if (sign == '-') return skip_space(lx, at);
    return sign == '\0' && at < lx->bytes && lx->text[at] == '\n' ? at + 1 : at;
}

/* The text [from, to) before a tag with `sign`; `lstrip` as for blocks and comments. */
static size_t text_end(const struct tp_lexer *lx, size_t from, size_t to, char sign, bool lstrip)
{
    const char *text = lx->text + from;
    size_t bytes = to - from;
    if (sign == '-') return from + tp_space_trimmed(text, bytes);
    if (sign == '+' || !lstrip) return to;
    const char *newline = bytes ? memrchr(text, '\n', bytes) : NULL;
    if (!newline && !lx->line_starting) return to;
    size_t line = newline ? (size_t)(newline + 1 - text) : 0;
    return tp_space_prefix(text + line, bytes - line) == bytes - line ? from + line : to;
}

/* Where the word `name` and the tag's end stand after `{%` and sign; 0 when they do not. */
static size_t bare_tag(const struct tp_lexer *lx, size_t at, const char *name, char *sign)
{
    at = skip_space(lx, at);
    if (!starts(lx, at, name)) return 0;
    at = skip_space(lx, at + strlen(name));
    *sign = sign_at(lx, at);
    if (*sign) at++;
    return starts(lx, at, "%}") ? at + 2 : 0;
}

static void go_on(struct tp_lexer *lx, size_t at)
{
    tp_lexer_move(lx, at);
    lx->line_starting = at > 0 && lx->text[at - 1] == '\n';
}

/* At the text after `{% raw %}`. */
static struct tp_token raw_text(struct tp_lexer *lx)
{
    struct tp_token t = token_here(lx, TP_T_DATA);
    for (size_t at = lx->at; at + 1 < lx->bytes; at++) {
        if (!starts(lx, at, "{%")) continue;
        char before = sign_at(lx, at + 2), after;
        size_t end = bare_tag(lx, at + 2 + (before != '\0'), "endraw", &after);
        if (!end) continue;
        size_t stop = text_end(lx, lx->at, at, before, true);
        t.text = (struct tp_text){ lx->text + lx->at, stop - lx->at };
        go_on(lx, after_tag(lx, end, after));
        return t;
    }
    fail_here(lx, "missing end of raw block");
}

static void skip_comment(struct tp_lexer *lx, size_t at)
{
    const char *end = memmem(lx->text + at, lx->bytes - at, "#}", 2);
    if (!end) fail_here(lx, "missing end of comment");
    size_t stop = (size_t)(end - lx->text);
    char sign = stop > at ? sign_at(lx, stop - 1) : '\0';
    go_on(lx, after_tag(lx, stop + 2, sign));
}

/* Offset of the next tag's first byte, or the end. */
static size_t next_tag(const struct tp_lexer *lx)
{
    for (size_t at = lx->at; at + 1 < lx->bytes; at++) {
        if (lx->text[at] != '{') continue;
        char c = lx->text[at + 1];
        if (c == '{' || c == '%' || c == '#') return at;
    }
    return lx->bytes;
}

/* Text up to the next tag; the lexer then stands behind the tag's opening.  True when a token came
 * of it: the text, unless there was none. */
static bool lex_text(struct tp_lexer *lx, struct tp_token *t)
{
    *t = token_here(lx, TP_T_DATA);
    size_t from = lx->at, tag = next_tag(lx);
    if (tag == lx->bytes) {
        t->text = (struct tp_text){ lx->text + from, tag - from };
        if (tag == from) t->kind = TP_T_END;
        tp_lexer_move(lx, tag);
        return true;
    }
    char type = lx->text[tag + 1], sign = sign_at(lx, tag + 2);
    size_t inside = tag + 2 + (sign != '\0'), stop = text_end(lx, from, tag, sign, type != '{');
    t->text = (struct tp_text){ lx->text + from, stop - from };
    tp_lexer_move(lx, tag);
    lx->line_starting = false;
    char raw_sign = '\0';
    size_t raw = type == '%' ? bare_tag(lx, inside, "raw", &raw_sign) : 0;
    if (type == '#') skip_comment(lx, inside);
    else if (raw && raw_sign != '+') go_on(lx, raw_sign == '-' ? skip_space(lx, raw) : raw);
    else {
        lx->mode = type == '%' ? TP_MODE_BLOCK : TP_MODE_PRINT;
        lx->begin_pending = true;
        tp_lexer_move(lx, inside);
        return t->text.bytes > 0;
    }
    if (type == '%' && t->text.bytes == 0) *t = raw_text(lx);
    else if (type == '%') {
        /* Text, then raw text: one token, joined. */
        struct tp_token raw_token = raw_text(lx);
        struct tp_sink s = { .arena = lx->arena };
        tp_sink_add(&s, t->text.data, t->text.bytes);
        tp_sink_add(&s, raw_token.text.data, raw_token.text.bytes);
        t->text = *tp_sink_take(&s).as.text;
    }
    return t->text.bytes > 0;
}

struct tp_token tp_lexer_next(struct tp_lexer *lx)
{
    struct tp_token t;
    while (lx->mode == TP_MODE_TEXT) {
        if (lex_text(lx, &t)) return t;
    }
    if (lx->begin_pending) {
        lx->begin_pending = false;
        return token_here(lx, lx->mode == TP_MODE_BLOCK ? TP_T_BLOCK_BEGIN : TP_T_PRINT_BEGIN);
    }
    tp_lexer_move(lx, skip_space(lx, lx->at));
    size_t at = lx->at;
    bool block = lx->mode == TP_MODE_BLOCK;
    char sign = sign_at(lx, at);
    if (sign == '+' && !block) sign = '\0';
    size_t end = at + (sign != '\0');
    if (lx->bracket_count == 0 && starts(lx, end, block ? "%}" : "}}")) {
        t = token_here(lx, block ? TP_T_BLOCK_END : TP_T_PRINT_END);
        lx->mode = TP_MODE_TEXT;
        /* Only blocks swallow a newline. */
        go_on(lx, block || sign ? after_tag(lx, end + 2, sign) : end + 2);
        return t;
    }
    return tp_lexer_tag(lx);
}
