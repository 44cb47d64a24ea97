/* model/template_access.c - members, items and slices. */
#include <string.h>

#include "model/template_run.h"

struct tp_value tp_attribute(struct tp_run *run, struct tp_value object,
                             const struct tp_text *name)
{
    struct tp_arena *a = run->arena;
    if (object.kind == TP_UNDEFINED) tp_fail_undefined(a, object);
    if (object.kind == TP_LOOP) return tp_loop_attribute(run, object.as.loop, name);
    /* Python's order: a method hides a key of the same name. */
    const struct tp_builtin *method = tp_find_method(object, name);
    if (method) {
        struct tp_bound *b = tp_alloc(a, sizeof *b);
        *b = (struct tp_bound){ object, method };
        return (struct tp_value){ .kind = TP_BOUND, .as.bound = b };
    }
    if (object.kind == TP_DICT || object.kind == TP_SPACE) {
        struct tp_value *v = tp_dict_find_word(a, object.as.dict, name->data, name->bytes);
        if (v) return *v;
    }
    return tp_undefined(name, object.kind);
}

static bool slice_part(struct tp_arena *a, struct tp_value v, int64_t *out)
{
    if (v.kind == TP_MISSING || v.kind == TP_NONE) return false;
    if (!tp_is_int(v)) {
        tp_fail(a, ERR_FORMAT, "slice indices must be integers or None, not %s", tp_kind_name(v));
    }
    *out = tp_as_int(v);
    return true;
}

static int64_t clamp(int64_t at, int64_t low, int64_t high)
{
    return at < low ? low : at > high ? high : at;
}

/* Python's slice.indices(): start, step, and how many. */
static int64_t slice_range(struct tp_arena *a, const struct tp_value part[3], int64_t length,
                           int64_t *start, int64_t *step)
{
    int64_t stop;
    *step = 1;
    slice_part(a, part[2], step);
    if (*step == 0) tp_fail(a, ERR_FORMAT, "slice step cannot be zero");
    bool back = *step < 0;
    int64_t low = back ? -1 : 0, high = back ? length - 1 : length;
    if (!slice_part(a, part[0], start)) *start = back ? high : low;
    else *start = clamp(*start < 0 ? *start + length : *start, low, high);
    if (!slice_part(a, part[1], &stop)) stop = back ? low : high;
    else stop = clamp(stop < 0 ? stop + length : stop, low, high);
    /* Steps beyond the length take one item; and -step must not overflow. */
    if (*step > length + 1) *step = length + 1;
    if (*step < -length - 1) *step = -length - 1;
    int64_t span = back ? *start - stop : stop - *start, stride = back ? -*step : *step;
    return span <= 0 ? 0 : (span - 1) / stride + 1;
}

struct tp_value tp_slice(struct tp_arena *a, struct tp_value object, const struct tp_value part[3])
{
    if (object.kind == TP_UNDEFINED) tp_fail_undefined(a, object);
    bool list = object.kind == TP_LIST && object.as.list->shape <= TP_SHAPE_RANGE;
    if (!list && object.kind != TP_TEXT) {
        tp_fail(a, ERR_FORMAT, "'%s' object cannot be sliced", tp_kind_name(object));
    }
    const struct tp_text *t = object.as.text;
    int64_t start, step, length = (int64_t)tp_length(a, object);
    int64_t count = slice_range(a, part, length, &start, &step);
    if (!list && step == 1) {
        size_t from = tp_char_offset(a, t, (size_t)start);
        struct tp_text rest = { t->data + from, t->bytes - from };
        return tp_text(a, rest.data, tp_char_offset(a, &rest, (size_t)count));
    }
    const struct tp_list *source = list ? object.as.list : tp_iterate(a, object);
    struct tp_list *l = tp_list_new(a, (size_t)count, source->shape);
    tp_pay_items(a, (size_t)count);
    for (; count > 0; count--, start += step) l->items[l->count++] = source->items[start];
    if (list) return tp_list(l);
    struct tp_sink s = { .arena = a };
    for (size_t i = 0; i < l->count; i++) tp_sink_str(&s, l->items[i]);
    return tp_sink_take(&s);
}

static struct tp_value sequence_item(struct tp_arena *a, struct tp_value object, int64_t at)
{
    int64_t length = (int64_t)tp_length(a, object);
    if (at < 0) at += length;
    if (at < 0 || at >= length) return tp_undefined(NULL, object.kind);
    if (object.kind == TP_LIST) return object.as.list->items[at];
    const struct tp_text *t = object.as.text;
    size_t from = tp_char_offset(a, t, (size_t)at), bytes = t->bytes - from;
    tp_char_at(t->data + from, &bytes);
    return tp_text(a, t->data + from, bytes);
}

struct tp_value tp_item(struct tp_run *run, struct tp_value object, struct tp_value index)
{
    struct tp_arena *a = run->arena;
    if (object.kind == TP_UNDEFINED) tp_fail_undefined(a, object);
    if (object.kind == TP_DICT) {
        bool list = index.kind == TP_LIST && index.as.list->shape != TP_SHAPE_TUPLE;
        if (list || index.kind == TP_DICT) return tp_undefined(NULL, object.kind);
        struct tp_value *v = tp_dict_find(a, object.as.dict, index);
        if (v) return *v;
    }
    if (index.kind == TP_TEXT) return tp_attribute(run, object, index.as.text);
    bool sequence = object.kind == TP_TEXT ||
                    (object.kind == TP_LIST && object.as.list->shape <= TP_SHAPE_RANGE);
    if (sequence && tp_is_int(index)) return sequence_item(a, object, tp_as_int(index));
    return tp_undefined(tp_str(a, index), object.kind);
}

struct tp_value tp_path(struct tp_run *run, struct tp_value object, struct tp_value path)
{
    if (path.kind != TP_TEXT) return tp_item(run, object, path);
    const struct tp_text *t = path.as.text;
    for (size_t at = 0; at <= t->bytes;) {
        const char *dot = memchr(t->data + at, '.', t->bytes - at);
        size_t end = dot ? (size_t)(dot - t->data) : t->bytes;
        struct tp_value part = tp_text(run->arena, t->data + at, end - at);
        int64_t number;
        bool digits = end > at;
        for (size_t i = at; i < end; i++) digits &= t->data[i] >= '0' && t->data[i] <= '9';
        if (digits && tp_read_int(run->arena, part.as.text, 10, &number)) part = tp_int(number);
        object = tp_item(run, object, part);
        tp_steps(run->arena, 1);
        at = end + 1;
    }
    return object;
}
