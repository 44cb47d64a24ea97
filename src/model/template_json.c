/* model/template_json.c - JSON into values, and values into JSON as Python's json.dumps writes. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/template_value.h"

static struct tp_value from_json(struct tp_arena *a, const json_t *j, int depth);

static struct tp_value from_object(struct tp_arena *a, const json_t *j, int depth)
{
    struct tp_dict *d = tp_dict_new(a);
    size_t count = json_object_size(j);
    d->pairs = tp_alloc_array(a, count, sizeof *d->pairs);
    d->room = count;
    /* jansson's iteration is not const, though it changes nothing. */
    void *object = (void *)(uintptr_t)j;
    for (void *it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
        const char *key = json_object_iter_key(it);
        d->pairs[d->count].key = tp_text(a, key, json_object_iter_key_len(it));
        d->pairs[d->count++].value = from_json(a, json_object_iter_value(it), depth + 1);
    }
    return tp_dict(d);
}

static struct tp_value from_array(struct tp_arena *a, const json_t *j, int depth)
{
    size_t count = json_array_size(j);
    struct tp_list *l = tp_list_new(a, count, TP_SHAPE_LIST);
    for (size_t i = 0; i < count; i++) {
        l->items[l->count++] = from_json(a, json_array_get(j, i), depth + 1);
    }
    return tp_list(l);
}

static struct tp_value from_json(struct tp_arena *a, const json_t *j, int depth)
{
    if (depth > JSON_DEPTH_MAX) tp_fail(a, ERR_LIMIT, "JSON nested deeper than %d", JSON_DEPTH_MAX);
    switch (json_typeof(j)) {
    case JSON_OBJECT: return from_object(a, j, depth);
    case JSON_ARRAY: return from_array(a, j, depth);
    case JSON_STRING: return tp_text(a, json_string_value(j), json_string_length(j));
    case JSON_INTEGER: return tp_int(json_integer_value(j));
    case JSON_REAL: return tp_float(json_real_value(j));
    case JSON_TRUE: return tp_bool(true);
    case JSON_FALSE: return tp_bool(false);
    default: return tp_none();
    }
}

struct tp_value tp_from_json(struct tp_arena *a, const struct json_t *j)
{
    return from_json(a, j, 0);
}

/* Writing. */

struct writer {
    struct tp_sink *sink;
    const struct tp_json_style *style;
};

static void write_text(struct tp_sink *s, const struct tp_text *t)
{
    tp_sink_word(s, "\"");
    size_t start = 0;
    for (size_t i = 0; i < t->bytes; i++) {
        unsigned char c = (unsigned char)t->data[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        tp_sink_add(s, t->data + start, i - start);
        start = i + 1;
        static const char plain[] = "\"\\\n\r\t\f\b", escape[] = "\"\\nrtfb";
        const char *known = c ? strchr(plain, c) : NULL;
        char text[8];
        if (known) snprintf(text, sizeof text, "\\%c", escape[known - plain]);
        else snprintf(text, sizeof text, "\\u%04x", c);
        tp_sink_word(s, text);
    }
    tp_sink_add(s, t->data + start, t->bytes - start);
    tp_sink_word(s, "\"");
}

static void write_float(struct tp_sink *s, double f)
{
    if (isnan(f)) tp_sink_word(s, "NaN");
    else if (isinf(f)) tp_sink_word(s, f < 0 ? "-Infinity" : "Infinity");
    else tp_sink_float(s, f);
}

static void write_value(const struct writer *w, struct tp_value v, int depth);

static void write_break(const struct writer *w, int depth)
{
    if (!w->style->indent) return;
    tp_sink_word(w->sink, "\n");
    for (int i = 0; i < depth; i++) {
        tp_sink_add(w->sink, w->style->indent->data, w->style->indent->bytes);
    }
}

static void write_list(const struct writer *w, const struct tp_list *l, int depth)
{
    if (l->count == 0) {
        tp_sink_word(w->sink, "[]");
        return;
    }
    tp_sink_word(w->sink, "[");
    for (size_t i = 0; i < l->count; i++) {
        if (i) tp_sink_add(w->sink, w->style->comma->data, w->style->comma->bytes);
        write_break(w, depth + 1);
        write_value(w, l->items[i], depth + 1);
    }
    write_break(w, depth);
    tp_sink_word(w->sink, "]");
}

static void write_key(const struct writer *w, struct tp_value key)
{
    if (key.kind == TP_TEXT) {
        write_text(w->sink, key.as.text);
        return;
    }
    if (!tp_is_number(key) && key.kind != TP_NONE) {
        tp_fail(w->sink->arena, ERR_FORMAT, "keys must be str, int, float, bool or None, not %s",
                tp_kind_name(key));
    }
    tp_sink_word(w->sink, "\"");
    write_value(w, key, 0);
    tp_sink_word(w->sink, "\"");
}

static const struct tp_dict *sorted(struct tp_arena *a, const struct tp_dict *d)
{
    struct tp_dict *copy = tp_dict_new(a);
    copy->count = copy->room = d->count;
    copy->pairs = tp_alloc_array(a, d->count, sizeof *copy->pairs);
    for (size_t i = 0; i < d->count; i++) {
        size_t at = i;
        for (; at > 0 && tp_compare(a, d->pairs[i].key, copy->pairs[at - 1].key) < 0; at--) {
            tp_steps(a, 1);
            copy->pairs[at] = copy->pairs[at - 1];
        }
        copy->pairs[at] = d->pairs[i];
    }
    return copy;
}

static void write_dict(const struct writer *w, const struct tp_dict *d, int depth)
{
    if (d->count == 0) {
        tp_sink_word(w->sink, "{}");
        return;
    }
    if (w->style->sort_keys) d = sorted(w->sink->arena, d);
    tp_sink_word(w->sink, "{");
    for (size_t i = 0; i < d->count; i++) {
        if (i) tp_sink_add(w->sink, w->style->comma->data, w->style->comma->bytes);
        write_break(w, depth + 1);
        write_key(w, d->pairs[i].key);
        tp_sink_add(w->sink, w->style->colon->data, w->style->colon->bytes);
        write_value(w, d->pairs[i].value, depth + 1);
    }
    write_break(w, depth);
    tp_sink_word(w->sink, "}");
}

static void write_value(const struct writer *w, struct tp_value v, int depth)
{
    struct tp_arena *a = w->sink->arena;
    if (depth > TP_VALUE_DEPTH_MAX) tp_fail(a, ERR_LIMIT, "a value is nested too deeply");
    tp_steps(a, 1);
    switch (v.kind) {
    case TP_NONE: tp_sink_word(w->sink, "null"); return;
    case TP_BOOL: tp_sink_word(w->sink, v.as.b ? "true" : "false"); return;
    case TP_INT: tp_sink_repr(w->sink, v); return;
    case TP_FLOAT: write_float(w->sink, v.as.f); return;
    case TP_TEXT: write_text(w->sink, v.as.text); return;
    case TP_DICT: write_dict(w, v.as.dict, depth); return;
    case TP_LIST:
        if (v.as.list->shape <= TP_SHAPE_TUPLE) {
            write_list(w, v.as.list, depth);
            return;
        }
        break;
    default: break;
    }
    tp_fail(a, ERR_FORMAT, "Object of type %s is not JSON serializable", tp_kind_name(v));
}

void tp_sink_json(struct tp_sink *s, struct tp_value v, const struct tp_json_style *style)
{
    struct writer w = { s, style };
    write_value(&w, v, 0);
}
