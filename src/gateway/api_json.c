/* gateway/api_json.c - see api_json.h.
 *
 * jansson's lexer takes some ten nanoseconds a byte.  So long strings are lifted out of the text
 * first: each is checked and unescaped here, by words of eight bytes, and a short name stands in
 * its place; jansson loads the rest, and each name is then replaced by its string.  A name is 128
 * random bits, drawn for this text, and a number.  A string that is not plainly right stays in the
 * text; and when jansson refuses the rest, it gets the whole text: errors are always its own.
 * A prompt's list of ids is lifted likewise, and stays out: a hundred bytes of value an id less.
 */
#include "gateway/api_json.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/limits.h"
#include "common/mem.h"
#include "model/tokenizer_utf8.h"

enum { LONG_BYTES = 512, RANDOM_DIGITS = 32, NAME_BYTES = RANDOM_DIGITS + 8, IDS_LEAST = 16 };

struct lift {
    const char *text;
    size_t bytes, copied;             /* text[0, copied) is in `rest`, or lifted */
    struct buf rest;
    char name[NAME_BYTES + 1];
    json_t **strings;                 /* by the last eight digits of their names */
    uint32_t count, room;
    struct json_ids *ids;             /* NULL: not wanted */
    size_t string_from, string_end;   /* the last one */
};

/* -- where strings are ------------------------------------------------------------------------- */

/* The quote that ends the string whose first byte is text[from]; `bytes`: none does. */
static size_t string_end(const char *text, size_t bytes, size_t from)
{
    for (size_t at = from; at < bytes;) {
        const char *quote = memchr(text + at, '"', bytes - at);
        if (!quote) break;
        size_t end = (size_t)(quote - text), slashes = 0;
        while (end - slashes > from && text[end - slashes - 1] == '\\') slashes++;
        if (slashes % 2 == 0) return end;
        at = end + 1;
    }
    return bytes;
}

static bool is_white(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static void lift_string(struct lift *l, size_t from, size_t end);
static size_t lift_ids(struct lift *l, size_t at);

/* False: too deep.  `l` may be NULL. */
static bool walk(const char *text, size_t bytes, struct lift *l)
{
    unsigned depth = 0;
    for (size_t at = 0; at < bytes; at++) {
        char c = text[at];
        if (c == '"') {
            size_t from = at + 1;
            at = string_end(text, bytes, from);
            if (!l) continue;
            l->string_from = from;
            l->string_end = at;
            if (at < bytes && at - from >= LONG_BYTES) lift_string(l, from, at);
        } else if (c == '{' || c == '[') {
            if (l && depth == 1 && c == '[') {
                size_t end = lift_ids(l, at);
                if (end) {
                    at = end;
                    continue;
                }
            }
            if (++depth > JSON_DEPTH_MAX) return false;
        } else if ((c == '}' || c == ']') && depth) {
            depth--;
        }
    }
    return true;
}

bool json_too_deep(const char *text, size_t bytes)
{
    return !walk(text, bytes, NULL);
}

/* -- one string -------------------------------------------------------------------------------- */

static bool has_control(const char *text, size_t bytes)
{
    size_t at = 0;
    uint64_t word;
    for (; bytes - at >= sizeof word; at += sizeof word) {
        memcpy(&word, text + at, sizeof word);
        /* A byte below 32 borrows its high bit, which it did not have. */
        uint64_t borrows = word - UINT64_C(0x2020202020202020);
        if (borrows & ~word & UINT64_C(0x8080808080808080)) return true;
    }
    for (; at < bytes; at++)
        if ((unsigned char)text[at] < 0x20) return true;
    return false;
}

/* Four hexadecimal digits; -1: they are not. */
static long hex4(const char *p, size_t left)
{
    long value = 0;
    if (left < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i], lower = (char)(c | 0x20);
        bool decimal = c >= '0' && c <= '9';
        if (!decimal && (lower < 'a' || lower > 'f')) return -1;
        value = value << 4 | (decimal ? c - '0' : lower - 'a' + 10);
    }
    return value;
}

static size_t put_point(char *out, long point)
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    int tails = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static const unsigned char leads[] = { 0, 0xC0, 0xE0, 0xF0 };
    out[0] = (char)(leads[tails] | point >> (6 * tails));
    for (int i = 1; i <= tails; i++) out[i] = (char)(0x80 | (point >> (6 * (tails - i)) & 0x3F));
    return (size_t)tails + 1;
}

/* \uXXXX, or a pair of them for one character; returns the bytes taken, 0: not one. */
static size_t unescape_point(const char *in, size_t left, char *out, size_t *put)
{
    long point = hex4(in + 2, left - 2);
    if (point < 0 || (point >= 0xDC00 && point <= 0xDFFF)) return 0;
    size_t taken = 6;
    if (point >= 0xD800 && point <= 0xDBFF) {
        if (left < 12 || in[6] != '\\' || in[7] != 'u') return 0;
        long low = hex4(in + 8, left - 8);
        if (low < 0xDC00 || low > 0xDFFF) return 0;
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
        taken = 12;
    }
    *put = put_point(out, point);
    return taken;
}

/* in[0] is a backslash; returns the bytes taken, 0: no escape that JSON knows. */
static size_t unescape_one(const char *in, size_t left, char *out, size_t *put)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (left < 2) return 0;
    if (in[1] == 'u') return unescape_point(in, left, out, put);
    const char *which = in[1] ? strchr(from, in[1]) : NULL;
    if (!which) return 0;
    *out = to[which - from];
    *put = 1;
    return 2;
}

/* No escape is shorter than what it stands for: `out` has room for `bytes`. */
static bool unescape(const char *in, size_t bytes, char *out, size_t *out_bytes)
{
    size_t at = 0, size = 0;
    for (;;) {
        const char *slash = memchr(in + at, '\\', bytes - at);
        size_t plain = slash ? (size_t)(slash - in) - at : bytes - at;
        memcpy(out + size, in + at, plain);
        at += plain;
        size += plain;
        *out_bytes = size;
        if (!slash) return true;
        size_t put = 0, taken = unescape_one(in + at, bytes - at, out + size, &put);
        if (!taken) return false;
        at += taken;
        size += put;
    }
}

/* NULL: there is something wrong with it, and jansson shall say what. */
static json_t *string_of(const char *text, size_t bytes)
{
    if (has_control(text, bytes) || utf8_valid_run(text, bytes) != bytes) return NULL;
    if (!memchr(text, '\\', bytes)) return json_stringn_nocheck(text, bytes);
    char *plain = malloc(bytes);
    if (!plain) return NULL;
    size_t size;
    json_t *s = unescape(text, bytes, plain, &size) ? json_stringn_nocheck(plain, size) : NULL;
    free(plain);
    return s;
}

/* -- out, and back ----------------------------------------------------------------------------- */

static void draw_name(struct lift *l)
{
    uint64_t random[2];
    if (*l->name) return;
    secret_random(random, sizeof random);
    snprintf(l->name, sizeof l->name, "%016llx%016llx", (unsigned long long)random[0],
             (unsigned long long)random[1]);
}

static bool is_key(const struct lift *l, size_t end)
{
    size_t at = end + 1;
    while (at < l->bytes && is_white(l->text[at])) at++;
    return at < l->bytes && l->text[at] == ':';
}

static void lift_string(struct lift *l, size_t from, size_t end)
{
    json_t *s = is_key(l, end) ? NULL : string_of(l->text + from, end - from);
    if (!s) return;
    draw_name(l);
    if (l->count == l->room) {
        l->room = l->room ? 2 * l->room : 16;
        l->strings = mem_resize(l->strings, l->room, sizeof(json_t *));
    }
    snprintf(l->name + RANDOM_DIGITS, sizeof l->name - RANDOM_DIGITS, "%08x", l->count);
    l->strings[l->count++] = s;
    buf_add(&l->rest, l->text + l->copied, from - l->copied);
    buf_add(&l->rest, l->name, NAME_BYTES);
    l->copied = end;
}

/* Is text[at] the value of "prompt" or "tokens"? */
static bool is_prompt(const struct lift *l, size_t at)
{
    const char *key = l->text + l->string_from;
    while (at && is_white(l->text[at - 1])) at--;
    if (!at || l->text[--at] != ':') return false;
    while (at && is_white(l->text[at - 1])) at--;
    if (!at || at - 1 != l->string_end || l->string_end - l->string_from != 6) return false;
    return memcmp(key, "prompt", 6) == 0 || memcmp(key, "tokens", 6) == 0;
}

/* Integers of one to nine digits up to the bracket; its place, 0: there is something else. */
static size_t read_ids(const char *text, size_t bytes, size_t at, struct token_list *out)
{
    for (;; at++) {
        int32_t id = 0;
        while (at < bytes && is_white(text[at])) at++;
        size_t from = at;
        for (; at < bytes && at - from < 10 && text[at] >= '0' && text[at] <= '9'; at++)
            if (at - from < 9) id = 10 * id + (text[at] - '0');
        size_t digits = at - from;
        if (digits == 0 || digits > 9 || (digits > 1 && text[from] == '0')) return 0;
        token_list_add(out, id);
        while (at < bytes && is_white(text[at])) at++;
        if (at < bytes && text[at] == ']') return at;
        if (at == bytes || text[at] != ',') return 0;
    }
}

/* text[at] is a bracket of the outermost object; returns where its list ends, 0: it stays. */
static size_t lift_ids(struct lift *l, size_t at)
{
    struct token_list *list = l->ids ? &l->ids->list : NULL;
    if (!list || list->count || !is_prompt(l, at)) return 0;
    size_t end = read_ids(l->text, l->bytes, at + 1, list);
    if (!end || list->count < IDS_LEAST) {
        list->count = 0;
        return 0;
    }
    draw_name(l);
    memcpy(l->ids->name, l->name, RANDOM_DIGITS);
    buf_add(&l->rest, l->text + l->copied, at - l->copied);
    buf_print(&l->rest, "\"%s\"", l->ids->name);
    l->copied = end + 1;
    return end;
}

const struct token_list *json_ids_at(const struct json_ids *ids, const json_t *v)
{
    bool may = ids->list.count && json_is_string(v) && json_string_length(v) == RANDOM_DIGITS;
    if (!may) return NULL;
    return memcmp(json_string_value(v), ids->name, RANDOM_DIGITS) == 0 ? &ids->list : NULL;
}

/* The string that `v` names, or NULL. */
static json_t *named(const struct lift *l, const json_t *v)
{
    if (!json_is_string(v) || json_string_length(v) != NAME_BYTES) return NULL;
    const char *name = json_string_value(v);
    if (memcmp(name, l->name, RANDOM_DIGITS) != 0) return NULL;
    unsigned long i = strtoul(name + RANDOM_DIGITS, NULL, 16);
    return i < l->count ? json_incref(l->strings[i]) : NULL;
}

static void put_back(const struct lift *l, json_t *v)
{
    for (void *i = json_object_iter(v); i; i = json_object_iter_next(v, i)) {
        json_t *member = json_object_iter_value(i), *s = named(l, member);
        if (s) json_object_iter_set_new(v, i, s);
        else put_back(l, member);
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        json_t *item = json_array_get(v, i), *s = named(l, item);
        if (s) json_array_set_new(v, i, s);
        else put_back(l, item);
    }
}

static json_t *load_rest(struct lift *l, json_error_t *error)
{
    buf_add(&l->rest, l->text + l->copied, l->bytes - l->copied);
    json_t *root = json_loadb(l->rest.data, l->rest.size, JSON_ALLOW_NUL, error);
    if (!root) return json_loadb(l->text, l->bytes, JSON_ALLOW_NUL, error);
    if (l->count) put_back(l, root);
    return root;
}

json_t *json_load(const char *text, size_t bytes, struct json_ids *ids, json_error_t *error)
{
    struct lift l = { .text = text, .bytes = bytes, .ids = ids };
    walk(text, bytes, &l);
    json_t *root = *l.name ? load_rest(&l, error)
                           : json_loadb(text, bytes, JSON_ALLOW_NUL, error);
    for (uint32_t i = 0; i < l.count; i++) json_decref(l.strings[i]);
    free(l.strings);
    buf_release(&l.rest);
    return root;
}
