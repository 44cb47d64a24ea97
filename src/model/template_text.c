/* model/template_text.c - UTF-8, growing strings, and how Python prints values. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_value.h"

uint32_t tp_char_at(const char *data, size_t *bytes)
{
    const unsigned char *p = (const unsigned char *)data;
    if (p[0] < 0x80 || *bytes < 2) {
        *bytes = 1;
        return p[0];
    }
    if (p[0] < 0xe0 || *bytes < 3) {
        *bytes = 2;
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (p[0] < 0xf0 || *bytes < 4) {
        *bytes = 3;
        return (uint32_t)(p[0] & 0xf) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }
    *bytes = 4;
    return (uint32_t)(p[0] & 7) << 18 | (uint32_t)(p[1] & 0x3f) << 12 |
           (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

static size_t char_put(char out[4], uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

bool tp_utf8_valid(const char *data, size_t bytes)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    for (size_t at = 0; at < bytes;) {
        unsigned char lead = (unsigned char)data[at];
        size_t need = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3
                      : lead < 0xf5 ? 4 : 0;
        if (need == 0 || need > bytes - at) return false;
        for (size_t i = 1; i < need; i++) {
            if (((unsigned char)data[at + i] & 0xc0) != 0x80) return false;
        }
        size_t used = need;
        uint32_t c = tp_char_at(data + at, &used);
        if (c < least[need] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return false;
        at += need;
    }
    return true;
}

size_t tp_chars(struct tp_arena *a, const struct tp_text *t)
{
    tp_pay_bytes(a, t->bytes);
    size_t chars = 0;
    for (size_t i = 0; i < t->bytes; i++) chars += ((unsigned char)t->data[i] & 0xc0) != 0x80;
    return chars;
}

size_t tp_char_offset(struct tp_arena *a, const struct tp_text *t, size_t chars)
{
    size_t at = 0;
    for (; at < t->bytes; at++) {
        if (((unsigned char)t->data[at] & 0xc0) == 0x80) continue;
        if (chars-- == 0) break;
    }
    tp_pay_bytes(a, at);
    return at;
}

bool tp_is_space(uint32_t c)
{
    if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t tp_space_prefix(const char *data, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        size_t used = bytes - at;
        if (!tp_is_space(tp_char_at(data + at, &used))) break;
        at += used;
    }
    return at;
}

size_t tp_space_trimmed(const char *data, size_t bytes)
{
    while (bytes > 0) {
        size_t start = bytes - 1;
        while (start > 0 && ((unsigned char)data[start] & 0xc0) == 0x80) start--;
        size_t used = bytes - start;
        if (!tp_is_space(tp_char_at(data + start, &used))) break;
        bytes = start;
    }
    return bytes;
}

size_t tp_find(struct tp_arena *a, const struct tp_text *in, const struct tp_text *needle,
               size_t from)
{
    if (from > in->bytes) return SIZE_MAX;
    if (needle->bytes == 0) return from;
    const char *at = memmem(in->data + from, in->bytes - from, needle->data, needle->bytes);
    size_t found = at ? (size_t)(at - in->data) : SIZE_MAX;
    tp_pay_bytes(a, (at ? found : in->bytes) - from);
    return found;
}

/* Sinks. */

void tp_sink_add(struct tp_sink *s, const char *data, size_t bytes)
{
    tp_pay_bytes(s->arena, bytes);
    if (bytes > s->room - s->bytes) {
        size_t need = s->bytes + bytes;
        size_t room = s->room * 2 > need ? s->room * 2 : need;
        if (room < 32) room = 32;
        s->data = tp_grow(s->arena, s->data, s->room, room);
        s->room = room;
    }
    if (bytes) memcpy(s->data + s->bytes, data, bytes);
    s->bytes += bytes;
}

void tp_sink_word(struct tp_sink *s, const char *text)
{
    tp_sink_add(s, text, strlen(text));
}

void tp_sink_char(struct tp_sink *s, uint32_t c)
{
    char out[4];
    tp_sink_add(s, out, char_put(out, c));
}

struct tp_value tp_sink_take(struct tp_sink *s)
{
    struct tp_value v = tp_text(s->arena, s->data ? s->data : "", s->bytes);
    *s = (struct tp_sink){ .arena = s->arena };
    return v;
}

/* The shortest digits that read back as the same number, in Python's layout. */
void tp_sink_float(struct tp_sink *s, double f)
{
    if (isnan(f)) {
        tp_sink_word(s, "nan");
        return;
    }
    if (isinf(f)) {
        tp_sink_word(s, f < 0 ? "-inf" : "inf");
        return;
    }
    char text[32];
    int digits = 1;
    for (; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*e", digits - 1, f);
        if (strtod(text, NULL) == f) break;
    }
    long exponent = strtol(strchr(text, 'e') + 1, NULL, 10);
    if (exponent >= -4 && exponent < 16) {
        char plain[48];
        int decimals = digits - 1 - (int)exponent;
        snprintf(plain, sizeof plain, "%.*f", decimals > 1 ? decimals : 1, f);
        tp_sink_word(s, plain);
        return;
    }
    char *e = strchr(text, 'e');
    tp_sink_add(s, text, (size_t)(e - text));
    char tail[32];
    snprintf(tail, sizeof tail, "e%c%02ld", exponent < 0 ? '-' : '+', labs(exponent));
    tp_sink_word(s, tail);
}

/* Python shows what is not printable as an escape; of these only the control characters, the
 * separators and the private areas that prompts meet are known here. */
static bool printable(uint32_t c)
{
    if (c < 0x20 || (c >= 0x7f && c < 0xa1) || c == 0xad) return false;
    if (c != ' ' && tp_is_space(c)) return false;
    if ((c >= 0x200b && c <= 0x200f) || (c >= 0x202a && c <= 0x202e)) return false;
    if ((c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xe000 && c <= 0xf8ff)) return false;
    return c < 0xe0000;
}

static void repr_char(struct tp_sink *s, uint32_t c, char quote)
{
    char text[16];
    if (c == (uint32_t)quote || c == '\\') snprintf(text, sizeof text, "\\%c", (char)c);
    else if (c == '\n') snprintf(text, sizeof text, "\\n");
    else if (c == '\r') snprintf(text, sizeof text, "\\r");
    else if (c == '\t') snprintf(text, sizeof text, "\\t");
    else if (printable(c)) {
        tp_sink_char(s, c);
        return;
    }
    else if (c < 0x100) snprintf(text, sizeof text, "\\x%02x", c);
    else snprintf(text, sizeof text, c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    tp_sink_word(s, text);
}

static void repr_text(struct tp_sink *s, const struct tp_text *t)
{
    char quote = '\'';
    if (t->bytes && memchr(t->data, '\'', t->bytes) && !memchr(t->data, '"', t->bytes)) quote = '"';
    tp_sink_add(s, &quote, 1);
    for (size_t at = 0; at < t->bytes;) {
        size_t bytes = t->bytes - at;
        uint32_t c = tp_char_at(t->data + at, &bytes);
        repr_char(s, c, quote);
        at += bytes;
    }
    tp_pay_bytes(s->arena, t->bytes * 8);
    tp_sink_add(s, &quote, 1);
}

static void repr_within(struct tp_sink *s, struct tp_value v, int depth);

static void repr_list(struct tp_sink *s, const struct tp_list *l, int depth)
{
    static const char *const open[] = { "[", "(", "range(", "dict_view([", "<generator object>" };
    static const char *const shut[] = { "]", ")", ")", "])", "" };
    tp_sink_word(s, open[l->shape]);
    for (size_t i = 0; l->shape != TP_SHAPE_GENERATOR && i < l->count; i++) {
        tp_steps(s->arena, 1);
        if (i) tp_sink_word(s, ", ");
        repr_within(s, l->items[i], depth + 1);
    }
    if (l->shape == TP_SHAPE_TUPLE && l->count == 1) tp_sink_word(s, ",");
    tp_sink_word(s, shut[l->shape]);
}

static void repr_dict(struct tp_sink *s, const struct tp_dict *d, int depth)
{
    tp_sink_word(s, "{");
    for (size_t i = 0; i < d->count; i++) {
        tp_steps(s->arena, 1);
        if (i) tp_sink_word(s, ", ");
        repr_within(s, d->pairs[i].key, depth + 1);
        tp_sink_word(s, ": ");
        repr_within(s, d->pairs[i].value, depth + 1);
    }
    tp_sink_word(s, "}");
}

static void repr_within(struct tp_sink *s, struct tp_value v, int depth)
{
    if (depth > TP_VALUE_DEPTH_MAX) tp_fail(s->arena, ERR_LIMIT, "a value is nested too deeply");
    char number[24];
    switch (v.kind) {
    case TP_UNDEFINED: tp_sink_word(s, "Undefined"); return;
    case TP_NONE: tp_sink_word(s, "None"); return;
    case TP_BOOL: tp_sink_word(s, v.as.b ? "True" : "False"); return;
    case TP_INT:
        snprintf(number, sizeof number, "%lld", (long long)v.as.i);
        tp_sink_word(s, number);
        return;
    case TP_FLOAT: tp_sink_float(s, v.as.f); return;
    case TP_TEXT: repr_text(s, v.as.text); return;
    case TP_LIST: repr_list(s, v.as.list, depth); return;
    case TP_DICT: repr_dict(s, v.as.dict, depth); return;
    case TP_SPACE:
        tp_sink_word(s, "<Namespace ");
        repr_dict(s, v.as.dict, depth);
        tp_sink_word(s, ">");
        return;
    default:
        tp_sink_word(s, "<");
        tp_sink_word(s, tp_kind_name(v));
        tp_sink_word(s, ">");
    }
}

void tp_sink_repr(struct tp_sink *s, struct tp_value v)
{
    repr_within(s, v, 0);
}

void tp_sink_str(struct tp_sink *s, struct tp_value v)
{
    if (v.kind == TP_TEXT) tp_sink_add(s, v.as.text->data, v.as.text->bytes);
    else if (v.kind != TP_UNDEFINED) tp_sink_repr(s, v);
}

const struct tp_text *tp_str(struct tp_arena *a, struct tp_value v)
{
    if (v.kind == TP_TEXT) return v.as.text;
    struct tp_sink s = { .arena = a };
    tp_sink_str(&s, v);
    return tp_sink_take(&s).as.text;
}
