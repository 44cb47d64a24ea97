/* model/template_string.c - what filters and string methods do to text. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

#include "model/template_run.h"

static bool in_set(const struct tp_text *set, const char *c, size_t bytes)
{
    return memmem(set->data, set->bytes, c, bytes) != NULL;
}

struct tp_value tp_strip(struct tp_arena *a, const struct tp_text *t, const struct tp_text *chars,
                         bool left, bool right)
{
    size_t from = 0, end = t->bytes;
    if (!chars) {
        if (left) from = tp_space_prefix(t->data, end);
        if (right) end = from + tp_space_trimmed(t->data + from, end - from);
    }
    while (chars && left && from < end) {
        size_t bytes = end - from;
        tp_char_at(t->data + from, &bytes);
        if (!in_set(chars, t->data + from, bytes)) break;
        from += bytes;
        tp_steps(a, 1 + chars->bytes / TP_BYTES_PER_STEP);
    }
    while (chars && right && end > from) {
        size_t start = end - 1;
        while (start > from && ((unsigned char)t->data[start] & 0xc0) == 0x80) start--;
        if (!in_set(chars, t->data + start, end - start)) break;
        end = start;
        tp_steps(a, 1 + chars->bytes / TP_BYTES_PER_STEP);
    }
    tp_pay_bytes(a, t->bytes - (end - from));
    return tp_text(a, t->data + from, end - from);
}

static struct tp_value replace_nothing(struct tp_arena *a, const struct tp_text *t,
                                       const struct tp_text *fresh, int64_t count)
{
    struct tp_sink s = { .arena = a };
    size_t at = 0;
    for (; count != 0; count -= count > 0) {
        tp_steps(a, 1);
        tp_sink_add(&s, fresh->data, fresh->bytes);
        if (at == t->bytes) break;
        size_t bytes = t->bytes - at;
        tp_char_at(t->data + at, &bytes);
        tp_sink_add(&s, t->data + at, bytes);
        at += bytes;
    }
    tp_sink_add(&s, t->data + at, t->bytes - at);
    return tp_sink_take(&s);
}

struct tp_value tp_replace(struct tp_arena *a, const struct tp_text *t, const struct tp_text *old,
                           const struct tp_text *fresh, int64_t count)
{
    if (old->bytes == 0) return replace_nothing(a, t, fresh, count);
    struct tp_sink s = { .arena = a };
    size_t at = 0;
    for (; count != 0; count -= count > 0) {
        size_t found = tp_find(a, t, old, at);
        if (found == SIZE_MAX) break;
        tp_steps(a, 1);
        tp_sink_add(&s, t->data + at, found - at);
        tp_sink_add(&s, fresh->data, fresh->bytes);
        at = found + old->bytes;
    }
    if (at == 0) return tp_text(a, t->data, t->bytes);
    tp_sink_add(&s, t->data + at, t->bytes - at);
    return tp_sink_take(&s);
}

/* Bytes of the line end at `data`, 0 when none: what str.splitlines splits at. */
static size_t line_end(const char *data, size_t bytes)
{
    size_t used = bytes;
    uint32_t c = tp_char_at(data, &used);
    if (c == '\r') return bytes > 1 && data[1] == '\n' ? 2 : 1;
    bool ends = (c >= 10 && c <= 12) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
                c == 0x2029;
    return ends ? used : 0;
}

struct tp_list *tp_split_lines(struct tp_arena *a, const struct tp_text *t, bool keep_ends)
{
    struct tp_list *l = tp_list_new(a, 0, TP_SHAPE_LIST);
    size_t start = 0;
    tp_pay_bytes(a, t->bytes);
    for (size_t at = 0; at < t->bytes;) {
        size_t end = line_end(t->data + at, t->bytes - at);
        if (end) {
            tp_list_add(a, l, tp_text(a, t->data + start, at - start + (keep_ends ? end : 0)));
            start = at + end;
        }
        at += end ? end : 1;
        while (!end && at < t->bytes && ((unsigned char)t->data[at] & 0xc0) == 0x80) at++;
    }
    if (start < t->bytes) tp_list_add(a, l, tp_text(a, t->data + start, t->bytes - start));
    return l;
}

/* Case. */

static uint32_t to_upper(const struct tp_run *run, uint32_t c)
{
    if (c < 0x80) return c >= 'a' && c <= 'z' ? c - 32 : c;
    return run->locale ? (uint32_t)towupper_l((wint_t)c, run->locale) : c;
}

static uint32_t to_lower(const struct tp_run *run, uint32_t c)
{
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
    return run->locale ? (uint32_t)towlower_l((wint_t)c, run->locale) : c;
}

static bool is_letter(const struct tp_run *run, uint32_t c)
{
    if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return run->locale && iswalpha_l((wint_t)c, run->locale);
}

struct tp_value tp_change_case(struct tp_run *run, const struct tp_text *t, enum tp_case how)
{
    struct tp_sink s = { .arena = run->arena };
    bool start = true;
    tp_pay_bytes(run->arena, t->bytes * 4);
    for (size_t at = 0; at < t->bytes;) {
        size_t bytes = t->bytes - at;
        uint32_t c = tp_char_at(t->data + at, &bytes);
        at += bytes;
        bool upper = how == TP_UPPER || (how != TP_LOWER && start);
        if (upper && c == 0xdf) {
            bool whole = how == TP_UPPER || how == TP_TITLE_FILTER;
            tp_sink_word(&s, whole ? "SS" : "Ss");
        }
        else tp_sink_char(&s, upper ? to_upper(run, c) : to_lower(run, c));
        if (how == TP_TITLE_METHOD) start = !is_letter(run, c);
        else if (how == TP_TITLE_FILTER) {
            start = tp_is_space(c) || (c < 0x80 && c && strchr("-({[<", (int)c));
        }
        else start = false;
    }
    return tp_sink_take(&s);
}

/* Numbers. */

/* Copies digits without Python's underscores and surrounding space; false when it cannot be one. */
static bool clean_number(const struct tp_text *t, char *out, size_t room)
{
    size_t from = tp_space_prefix(t->data, t->bytes), used = 0;
    size_t end = from + tp_space_trimmed(t->data + from, t->bytes - from);
    for (size_t i = from; i < end; i++) {
        char c = t->data[i];
        if (c == '_') {
            bool inside = i > from && i + 1 < end && t->data[i - 1] != '_' && t->data[i + 1] != '_';
            if (!inside) return false;
            continue;
        }
        if (c == '\0' || used + 1 >= room) return false;
        out[used++] = c;
    }
    out[used] = '\0';
    return used > 0;
}

bool tp_read_int(struct tp_arena *a, const struct tp_text *t, int base, int64_t *out)
{
    char text[400], *end;
    if ((base != 0 && base < 2) || base > 36 || !clean_number(t, text, sizeof text)) return false;
    char *digits = text;
    bool minus = *digits == '-';
    if (*digits == '-' || *digits == '+') digits++;
    if (digits[0] == '0') {
        int radix = (digits[1] | 0x20) == 'x' ? 16 : (digits[1] | 0x20) == 'o' ? 8
                    : (digits[1] | 0x20) == 'b' ? 2 : 0;
        bool prefixed = radix && (base == radix || base == 0);
        if (prefixed) {
            digits += 2;
            base = radix;
        }
        else if (base == 0) base = 10;
    }
    else if (base == 0) base = 10;
    bool alnum = (*digits >= '0' && *digits <= '9') || ((*digits | 0x20) >= 'a' &&
                 (*digits | 0x20) <= 'z');
    if (!alnum) return false;
    if (minus) *--digits = '-';
    errno = 0;
    *out = strtoll(digits, &end, base);
    if (*end) return false;
    if (errno == ERANGE) tp_fail(a, ERR_LIMIT, "a number does not fit 64 bits");
    return true;
}

bool tp_read_float(const struct tp_text *t, double *out)
{
    char text[400], *end;
    if (!clean_number(t, text, sizeof text)) return false;
    /* strtod also reads hexadecimal and nan(...), which Python does not. */
    if (strpbrk(text, "xX(pP")) return false;
    *out = strtod(text, &end);
    return *end == '\0';
}

bool tp_float_to_int(struct tp_arena *a, double f, int64_t *out)
{
    if (!isfinite(f)) return false;
    if (f >= 9223372036854775808.0 || f < -9223372036854775808.0) {
        tp_fail(a, ERR_LIMIT, "a number does not fit 64 bits");
    }
    *out = (int64_t)f;
    return true;
}

/* printf-like formatting. */

struct directive {
    char flags[8];
    int width, precision;      /* -1: not given */
    char type;
};

/* At the byte after `%`; returns where the directive ends. */
static size_t read_directive(struct tp_arena *a, const struct tp_text *f, size_t at,
                             struct directive *d)
{
    *d = (struct directive){ .width = -1, .precision = -1 };
    size_t flags = 0;
    for (; at < f->bytes && f->data[at] && strchr("-+ 0#", f->data[at]); at++) {
        if (flags < 5 && !strchr(d->flags, f->data[at])) d->flags[flags++] = f->data[at];
    }
    for (int i = 0; i < 2; i++) {
        if (i == 1 && (at >= f->bytes || f->data[at] != '.')) break;
        int *number = i ? &d->precision : &d->width;
        if (i) *number = 0;
        for (at += (size_t)i; at < f->bytes && f->data[at] >= '0' && f->data[at] <= '9'; at++) {
            *number = (*number < 0 ? 0 : *number) * 10 + (f->data[at] - '0');
            if (*number > 1000) tp_fail(a, ERR_LIMIT, "a format is wider than 1000");
        }
    }
    if (at >= f->bytes) tp_fail(a, ERR_FORMAT, "incomplete format");
    d->type = f->data[at];
    return at + 1;
}

static void pad(struct tp_sink *s, const struct tp_text *t, const struct directive *d)
{
    size_t chars = tp_chars(s->arena, t), bytes = t->bytes;
    if (d->precision >= 0 && (size_t)d->precision < chars) {
        bytes = tp_char_offset(s->arena, t, (size_t)d->precision);
        chars = (size_t)d->precision;
    }
    size_t fill = d->width > 0 && (size_t)d->width > chars ? (size_t)d->width - chars : 0;
    bool left = strchr(d->flags, '-') != NULL;
    for (size_t i = 0; i < fill && !left; i++) tp_sink_word(s, " ");
    tp_sink_add(s, t->data, bytes);
    for (size_t i = 0; i < fill && left; i++) tp_sink_word(s, " ");
}

static void format_number(struct tp_sink *s, const struct directive *d, struct tp_value v)
{
    if (!tp_is_number(v)) {
        tp_fail(s->arena, ERR_FORMAT, "%%%c format: a number is required, not %s", d->type,
                tp_kind_name(v));
    }
    char spec[32], out[2400];
    bool real = strchr("eEfFgG", d->type) != NULL;
    snprintf(spec, sizeof spec, "%%%s*.*%s%c", d->flags, real ? "" : "ll",
             d->type == 'i' || d->type == 'u' ? 'd' : d->type);
    int width = d->width < 0 ? 0 : d->width;
    /* The directive was rebuilt from checked parts: its type, flags and numbers are known. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (real) snprintf(out, sizeof out, spec, width, d->precision, tp_as_float(v));
    else {
        int64_t i = 0;
        if (tp_is_int(v)) i = tp_as_int(v);
        else if (!tp_float_to_int(s->arena, v.as.f, &i)) {
            tp_fail(s->arena, ERR_FORMAT, "cannot convert float to integer");
        }
        snprintf(out, sizeof out, spec, width, d->precision, (long long)i);
    }
#pragma GCC diagnostic pop
    tp_sink_word(s, out);
}

struct tp_value tp_percent(struct tp_arena *a, const struct tp_text *format,
                           const struct tp_value *values, size_t count,
                           const struct tp_dict *named)
{
    struct tp_sink s = { .arena = a };
    size_t used = 0, at = 0;
    while (at < format->bytes) {
        const char *percent = memchr(format->data + at, '%', format->bytes - at);
        size_t end = percent ? (size_t)(percent - format->data) : format->bytes;
        tp_sink_add(&s, format->data + at, end - at);
        if (!percent) break;
        at = end + 1;
        tp_steps(a, 1);
        const struct tp_value *v = NULL;
        if (at < format->bytes && format->data[at] == '(') {
            const char *shut = memchr(format->data + at, ')', format->bytes - at);
            if (!shut || !named) tp_fail(a, ERR_FORMAT, "format requires a mapping");
            size_t stop = (size_t)(shut - format->data);
            v = tp_dict_find_word(a, named, format->data + at + 1, stop - at - 1);
            if (!v) tp_fail(a, ERR_FORMAT, "a name in a format is not given");
            at = stop + 1;
        }
        struct directive d;
        at = read_directive(a, format, at, &d);
        if (d.type == '%') {
            tp_sink_word(&s, "%");
            continue;
        }
        if (!v && used >= count) tp_fail(a, ERR_FORMAT, "not enough arguments for format string");
        if (!v) v = &values[used++];
        if (d.type == 's') pad(&s, tp_str(a, *v), &d);
        else if (d.type == 'r') {
            struct tp_sink repr = { .arena = a };
            tp_sink_repr(&repr, *v);
            pad(&s, tp_sink_take(&repr).as.text, &d);
        }
        else if (d.type && strchr("diueEfFgGxXo", d.type)) format_number(&s, &d, *v);
        else tp_fail(a, ERR_FORMAT, "unsupported format character");
    }
    if (used < count && !named) {
        tp_fail(a, ERR_FORMAT, "not all arguments converted during string formatting");
    }
    return tp_sink_take(&s);
}
