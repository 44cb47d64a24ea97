/* model/template_filter_seq.c - filters that walk a sequence.
 *
 * Jinja's map, select, reject, unique and reverse give generators, to be walked once; so they do
 * here, though what they hold is worked out at once.
 */
#include <string.h>

#include "model/template_filter.h"

static struct tp_list *generator(struct tp_call *c)
{
    return tp_list_new(c->arena, 0, TP_SHAPE_GENERATOR);
}

static struct tp_list *copy(struct tp_call *c, struct tp_value v)
{
    const struct tp_list *from = tp_iterate(c->arena, v);
    struct tp_list *l = tp_list_new(c->arena, from->count, TP_SHAPE_LIST);
    tp_pay_items(c->arena, from->count);
    if (from->count) memcpy(l->items, from->items, from->count * sizeof *l->items);
    l->count = from->count;
    return l;
}

static struct tp_value filter_list(struct tp_call *c)
{
    return tp_list(copy(c, c->self));
}

static struct tp_value filter_first(struct tp_call *c)
{
    if (tp_is_shape(c->self, TP_SHAPE_GENERATOR)) {
        struct tp_list *l = c->self.as.list;
        if (l->count == 0) return tp_undefined(NULL, TP_MISSING);
        tp_pay_items(c->arena, l->count);
        return tp_list_remove(l, 0);
    }
    if (c->self.kind == TP_TEXT) return tp_item(c->run, c->self, tp_int(0));
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    return l->count ? l->items[0] : tp_undefined(NULL, TP_MISSING);
}

static struct tp_value filter_last(struct tp_call *c)
{
    if (tp_is_shape(c->self, TP_SHAPE_GENERATOR)) {
        tp_fail(c->arena, ERR_FORMAT, "'generator' object is not reversible");
    }
    if (c->self.kind == TP_TEXT) return tp_item(c->run, c->self, tp_int(-1));
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    return l->count ? l->items[l->count - 1] : tp_undefined(NULL, TP_MISSING);
}

static struct tp_value filter_reverse(struct tp_call *c)
{
    /* Python reverses a generator only as a list. */
    bool once = tp_is_shape(c->self, TP_SHAPE_GENERATOR);
    const struct tp_list *from = tp_iterate(c->arena, c->self);
    struct tp_list *l = once ? tp_list_new(c->arena, 0, TP_SHAPE_LIST) : generator(c);
    struct tp_sink s = { .arena = c->arena };
    for (size_t i = from->count; i > 0; i--) {
        if (c->self.kind == TP_TEXT) tp_sink_str(&s, from->items[i - 1]);
        else tp_list_add(c->arena, l, from->items[i - 1]);
    }
    tp_pay_items(c->arena, from->count);
    return c->self.kind == TP_TEXT ? tp_sink_take(&s) : tp_list(l);
}

static bool given(struct tp_value v)
{
    return v.kind != TP_MISSING && v.kind != TP_NONE;
}

static struct tp_value filter_join(struct tp_call *c)
{
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    const struct tp_text *by = tp_arg_str(c, 0, "");
    struct tp_sink s = { .arena = c->arena };
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        if (i) tp_sink_add(&s, by->data, by->bytes);
        struct tp_value v = l->items[i];
        tp_sink_str(&s, given(c->arg[1]) ? tp_path(c->run, v, c->arg[1]) : v);
    }
    return tp_sink_take(&s);
}

static struct tp_value filter_items(struct tp_call *c)
{
    static const struct tp_text items = { "items", 5 };
    if (c->self.kind == TP_UNDEFINED) return tp_list(generator(c));
    if (c->self.kind != TP_DICT) {
        tp_fail(c->arena, ERR_FORMAT, "can only get item pairs from a mapping");
    }
    struct tp_args none = { 0 };
    struct tp_value v = tp_invoke(c->run, tp_find_method(c->self, &items), c->self, &none);
    v.as.list->shape = TP_SHAPE_GENERATOR;
    return v;
}

/* map, select, reject. */

static const struct tp_value *named_arg(const struct tp_call *c, const char *name)
{
    for (size_t i = 0; i < c->raw->named_count; i++) {
        if (tp_text_is(&c->raw->named[i].name, name)) return &c->raw->named[i].value;
    }
    return NULL;
}

static struct tp_value map_attribute(struct tp_call *c, struct tp_value attribute)
{
    const struct tp_value *other = named_arg(c, "default");
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    struct tp_list *out = generator(c);
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        struct tp_value v = tp_path(c->run, l->items[i], attribute);
        bool replaced = v.kind == TP_UNDEFINED && other && tp_true(*other);
        tp_list_add(c->arena, out, replaced ? *other : v);
    }
    return tp_list(out);
}

/* The row that argument `at` names, and the arguments after it. */
static const struct tp_builtin *named_row(struct tp_call *c, size_t at, struct tp_args *rest,
                                          const struct tp_builtin *(*find)(const struct tp_text *))
{
    struct tp_value name = c->raw->positional[at];
    const struct tp_builtin *row = name.kind == TP_TEXT ? find(name.as.text) : NULL;
    if (!row) {
        const struct tp_text *t = tp_str(c->arena, name);
        tp_fail(c->arena, ERR_FORMAT, "no filter or test named '%.*s'",
                t->bytes > 60 ? 60 : (int)t->bytes, t->data);
    }
    *rest = *c->raw;
    rest->positional += at + 1;
    rest->count -= at + 1;
    return row;
}

static struct tp_value filter_map(struct tp_call *c)
{
    const struct tp_value *attribute = named_arg(c, "attribute");
    if (c->raw->count == 0 && attribute) return map_attribute(c, *attribute);
    if (c->raw->count == 0) tp_fail(c->arena, ERR_FORMAT, "map requires a filter argument");
    struct tp_args rest;
    const struct tp_builtin *filter = named_row(c, 0, &rest, tp_find_filter);
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    struct tp_list *out = generator(c);
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        tp_list_add(c->arena, out, tp_invoke(c->run, filter, l->items[i], &rest));
    }
    return tp_list(out);
}

static struct tp_value choose(struct tp_call *c, bool attribute, bool keep)
{
    struct tp_args rest = { 0 };
    const struct tp_builtin *test = NULL;
    size_t at = attribute;
    if (c->raw->count < at) tp_fail(c->arena, ERR_FORMAT, "missing parameter for attribute name");
    if (c->raw->count > at) test = named_row(c, at, &rest, tp_find_test);
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    struct tp_list *out = generator(c);
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        struct tp_value v = l->items[i];
        if (attribute) v = tp_path(c->run, v, c->raw->positional[0]);
        if (test) v = tp_invoke(c->run, test, v, &rest);
        if (tp_true(v) == keep) tp_list_add(c->arena, out, l->items[i]);
    }
    return tp_list(out);
}

static struct tp_value filter_select(struct tp_call *c)
{
    return choose(c, false, true);
}

static struct tp_value filter_reject(struct tp_call *c)
{
    return choose(c, false, false);
}

static struct tp_value filter_selectattr(struct tp_call *c)
{
    return choose(c, true, true);
}

static struct tp_value filter_rejectattr(struct tp_call *c)
{
    return choose(c, true, false);
}

/* Order. */

static void merge(struct tp_arena *a, struct tp_pair *to, const struct tp_pair *x, size_t nx,
                  const struct tp_pair *y, size_t ny, bool reverse)
{
    while (nx || ny) {
        tp_steps(a, 1);
        int order = nx == 0 ? 1 : ny == 0 ? -1 : tp_compare(a, x->key, y->key);
        if (nx && ny && reverse) order = -order;
        bool first = order <= 0;
        *to++ = first ? *x++ : *y++;
        if (first) nx--;
        else ny--;
    }
}

static void merge_sort(struct tp_arena *a, struct tp_pair *v, struct tp_pair *spare, size_t count,
                       bool reverse)
{
    if (count < 2) return;
    size_t half = count / 2;
    merge_sort(a, v, spare, half, reverse);
    merge_sort(a, v + half, spare, count - half, reverse);
    memcpy(spare, v, count * sizeof *v);
    merge(a, v, spare, half, spare + half, count - half, reverse);
}

/* Sorts in place, stably, by keys[i] of items[i]. */
static void sort(struct tp_arena *a, const struct tp_value *keys, struct tp_value *items,
                 size_t count, bool reverse)
{
    struct tp_pair *pairs = tp_alloc_array(a, count, 2 * sizeof *pairs);
    for (size_t i = 0; i < count; i++) pairs[i] = (struct tp_pair){ keys[i], items[i] };
    merge_sort(a, pairs, pairs + count, count, reverse);
    for (size_t i = 0; i < count; i++) items[i] = pairs[i].value;
}

/* What an item is ordered by: its attribute if asked, and case left out unless asked. */
static struct tp_value order_key(struct tp_call *c, struct tp_value v, struct tp_value attribute,
                                 bool case_sensitive)
{
    if (given(attribute)) v = tp_path(c->run, v, attribute);
    if (case_sensitive || v.kind != TP_TEXT) return v;
    return tp_change_case(c->run, v.as.text, TP_LOWER);
}

static struct tp_value filter_sort(struct tp_call *c)
{
    struct tp_list *l = copy(c, c->self);
    struct tp_value *keys = tp_alloc_array(c->arena, l->count, sizeof *keys);
    for (size_t i = 0; i < l->count; i++) {
        keys[i] = order_key(c, l->items[i], c->arg[2], tp_arg_bool(c, 1, false));
    }
    sort(c->arena, keys, l->items, l->count, tp_arg_bool(c, 0, false));
    return tp_list(l);
}

static struct tp_value filter_dictsort(struct tp_call *c)
{
    const struct tp_text *by = tp_arg_str(c, 1, "key");
    bool value = tp_text_is(by, "value");
    if (!value && !tp_text_is(by, "key")) {
        tp_fail(c->arena, ERR_FORMAT, "you can only sort by either \"key\" or \"value\"");
    }
    struct tp_list *l = copy(c, filter_items(c));
    struct tp_value *keys = tp_alloc_array(c->arena, l->count, sizeof *keys);
    for (size_t i = 0; i < l->count; i++) {
        keys[i] = order_key(c, l->items[i].as.list->items[value], tp_none(),
                            tp_arg_bool(c, 0, false));
    }
    sort(c->arena, keys, l->items, l->count, tp_arg_bool(c, 2, false));
    return tp_list(l);
}

static struct tp_value filter_unique(struct tp_call *c)
{
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    struct tp_dict *seen = tp_dict_new(c->arena);
    struct tp_list *out = generator(c);
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        struct tp_value key = order_key(c, l->items[i], c->arg[1], tp_arg_bool(c, 0, false));
        if (tp_dict_find(c->arena, seen, key)) continue;
        tp_dict_set(c->arena, seen, key, tp_none());
        tp_list_add(c->arena, out, l->items[i]);
    }
    return tp_list(out);
}

static struct tp_value filter_sum(struct tp_call *c)
{
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    struct tp_value sum = c->arg[1].kind == TP_MISSING ? tp_int(0) : c->arg[1];
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        struct tp_value v = l->items[i];
        if (given(c->arg[0])) v = tp_path(c->run, v, c->arg[0]);
        sum = tp_binary(c->arena, '+', sum, v);
    }
    return sum;
}

static struct tp_value extreme(struct tp_call *c, int sign)
{
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    bool exact = tp_arg_bool(c, 0, false);
    if (l->count == 0) return tp_undefined(NULL, TP_MISSING);
    struct tp_value best = l->items[0], key = order_key(c, best, c->arg[1], exact);
    for (size_t i = 1; i < l->count; i++) {
        tp_steps(c->arena, 1);
        struct tp_value k = order_key(c, l->items[i], c->arg[1], exact);
        int order = tp_compare(c->arena, k, key);
        if ((sign < 0 && order >= 0) || (sign > 0 && order <= 0)) continue;
        best = l->items[i];
        key = k;
    }
    return best;
}

static struct tp_value filter_min(struct tp_call *c)
{
    return extreme(c, -1);
}

static struct tp_value filter_max(struct tp_call *c)
{
    return extreme(c, 1);
}

static struct tp_value filter_batch(struct tp_call *c)
{
    const struct tp_list *l = tp_iterate(c->arena, c->self);
    int64_t size = tp_arg_int(c, 0, 1);
    struct tp_list *out = generator(c), *row = NULL;
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        if (!row || (int64_t)row->count == size) {
            row = tp_list_new(c->arena, 0, TP_SHAPE_LIST);
            tp_list_add(c->arena, out, tp_list(row));
        }
        tp_list_add(c->arena, row, l->items[i]);
    }
    for (; row && given(c->arg[1]) && (int64_t)row->count < size; tp_steps(c->arena, 1)) {
        tp_list_add(c->arena, row, c->arg[1]);
    }
    return tp_list(out);
}

const struct tp_builtin *tp_find_sequence_filter(const struct tp_text *name)
{
    static const struct tp_builtin rows[] = {
        { "list", "", 0, filter_list },
        { "first", "", 0, filter_first },
        { "last", "", 0, filter_last },
        { "reverse", "", 0, filter_reverse },
        { "join", "d attribute", 0, filter_join },
        { "items", "", 0, filter_items },
        { "map", NULL, 0, filter_map },
        { "select", NULL, 0, filter_select },
        { "reject", NULL, 0, filter_reject },
        { "selectattr", NULL, 0, filter_selectattr },
        { "rejectattr", NULL, 0, filter_rejectattr },
        { "sort", "reverse case_sensitive attribute", 0, filter_sort },
        { "dictsort", "case_sensitive by reverse", 0, filter_dictsort },
        { "unique", "case_sensitive attribute", 0, filter_unique },
        { "sum", "attribute start", 0, filter_sum },
        { "min", "case_sensitive attribute", 0, filter_min },
        { "max", "case_sensitive attribute", 0, filter_max },
        { "batch", "linecount fill_with", 1, filter_batch },
        { NULL, NULL, 0, NULL },
    };
    return tp_find_row(rows, name);
}
