/* model/template_value.c - making, comparing and walking values, as Python does. */
#include "model/template_value.h"

#include <string.h>

struct tp_value tp_undefined(const struct tp_text *name, enum tp_kind owner)
{
    return (struct tp_value){ .kind = TP_UNDEFINED, .owner = (uint8_t)owner, .as.text = name };
}

struct tp_value tp_none(void)
{
    return (struct tp_value){ .kind = TP_NONE };
}

struct tp_value tp_bool(bool b)
{
    return (struct tp_value){ .kind = TP_BOOL, .as.b = b };
}

struct tp_value tp_int(int64_t i)
{
    return (struct tp_value){ .kind = TP_INT, .as.i = i };
}

struct tp_value tp_float(double f)
{
    return (struct tp_value){ .kind = TP_FLOAT, .as.f = f };
}

struct tp_value tp_list(struct tp_list *l)
{
    return (struct tp_value){ .kind = TP_LIST, .as.list = l };
}

struct tp_value tp_dict(struct tp_dict *d)
{
    return (struct tp_value){ .kind = TP_DICT, .as.dict = d };
}

struct tp_value tp_text(struct tp_arena *a, const char *data, size_t bytes)
{
    struct tp_text *t = tp_alloc(a, sizeof *t);
    *t = (struct tp_text){ data, bytes };
    return (struct tp_value){ .kind = TP_TEXT, .as.text = t };
}

struct tp_value tp_word(struct tp_arena *a, const char *text)
{
    return tp_text(a, text, strlen(text));
}

/* Lists. */

struct tp_list *tp_list_new(struct tp_arena *a, size_t room, enum tp_shape shape)
{
    struct tp_list *l = tp_alloc(a, sizeof *l);
    l->shape = shape;
    l->room = room;
    if (room) l->items = tp_alloc_array(a, room, sizeof *l->items);
    return l;
}

void tp_list_add(struct tp_arena *a, struct tp_list *l, struct tp_value v)
{
    if (l->count == l->room) {
        size_t room = l->room ? l->room * 2 : 4;
        l->items = tp_grow(a, l->items, l->room * sizeof v, room * sizeof v);
        l->room = room;
    }
    l->items[l->count++] = v;
}

void tp_list_insert(struct tp_arena *a, struct tp_list *l, size_t at, struct tp_value v)
{
    CHECK(at <= l->count);
    tp_pay_items(a, l->count - at);
    tp_list_add(a, l, v);
    memmove(l->items + at + 1, l->items + at, (l->count - 1 - at) * sizeof v);
    l->items[at] = v;
}

struct tp_value tp_list_remove(struct tp_list *l, size_t at)
{
    CHECK(at < l->count);
    struct tp_value v = l->items[at];
    memmove(l->items + at, l->items + at + 1, (l->count - 1 - at) * sizeof v);
    l->count--;
    return v;
}

/* Dicts: an array, because a message or a schema has few keys; long searches are paid for. */

struct tp_dict *tp_dict_new(struct tp_arena *a)
{
    return tp_alloc(a, sizeof(struct tp_dict));
}

static void check_key(struct tp_arena *a, struct tp_value key)
{
    bool list = key.kind == TP_LIST && key.as.list->shape != TP_SHAPE_TUPLE;
    if (list || key.kind == TP_DICT) {
        tp_fail(a, ERR_FORMAT, "unhashable type: '%s'", tp_kind_name(key));
    }
}

struct tp_value *tp_dict_find_word(struct tp_arena *a, const struct tp_dict *d, const char *data,
                                   size_t bytes)
{
    tp_pay_items(a, d->count);
    for (size_t i = 0; i < d->count; i++) {
        struct tp_pair *p = &d->pairs[i];
        if (p->key.kind != TP_TEXT || p->key.as.text->bytes != bytes) continue;
        if (memcmp(p->key.as.text->data, data, bytes) == 0) return &p->value;
    }
    return NULL;
}

struct tp_value *tp_dict_find(struct tp_arena *a, const struct tp_dict *d, struct tp_value key)
{
    if (key.kind == TP_TEXT) {
        return tp_dict_find_word(a, d, key.as.text->data, key.as.text->bytes);
    }
    check_key(a, key);
    tp_pay_items(a, d->count);
    for (size_t i = 0; i < d->count; i++) {
        if (tp_equal(a, d->pairs[i].key, key)) return &d->pairs[i].value;
    }
    return NULL;
}

void tp_dict_set(struct tp_arena *a, struct tp_dict *d, struct tp_value key, struct tp_value v)
{
    struct tp_value *old = tp_dict_find(a, d, key);
    if (old) {
        *old = v;
        return;
    }
    if (d->count == d->room) {
        size_t room = d->room ? d->room * 2 : 4;
        d->pairs = tp_grow(a, d->pairs, d->room * sizeof *d->pairs, room * sizeof *d->pairs);
        d->room = room;
    }
    d->pairs[d->count++] = (struct tp_pair){ key, v };
}

bool tp_dict_remove(struct tp_arena *a, struct tp_dict *d, struct tp_value key,
                    struct tp_value *out)
{
    struct tp_value *found = tp_dict_find(a, d, key);
    if (!found) return false;
    *out = *found;
    struct tp_pair *p = (struct tp_pair *)(void *)((char *)found - offsetof(struct tp_pair, value));
    memmove(p, p + 1, (size_t)(d->pairs + d->count - (p + 1)) * sizeof *p);
    d->count--;
    return true;
}

/* What values are. */

bool tp_is_number(struct tp_value v)
{
    return v.kind == TP_BOOL || v.kind == TP_INT || v.kind == TP_FLOAT;
}

bool tp_is_int(struct tp_value v)
{
    return v.kind == TP_BOOL || v.kind == TP_INT;
}

int64_t tp_as_int(struct tp_value v)
{
    return v.kind == TP_BOOL ? v.as.b : v.as.i;
}

double tp_as_float(struct tp_value v)
{
    return v.kind == TP_FLOAT ? v.as.f : (double)tp_as_int(v);
}

bool tp_is_shape(struct tp_value v, enum tp_shape shape)
{
    return v.kind == TP_LIST && v.as.list->shape == shape;
}

bool tp_text_is(const struct tp_text *t, const char *word)
{
    return t->bytes == strlen(word) && memcmp(t->data, word, t->bytes) == 0;
}

bool tp_true(struct tp_value v)
{
    switch (v.kind) {
    case TP_UNDEFINED:
    case TP_NONE: return false;
    case TP_BOOL: return v.as.b;
    case TP_INT: return v.as.i != 0;
    case TP_FLOAT: return v.as.f != 0;
    case TP_TEXT: return v.as.text->bytes > 0;
    case TP_LIST: return v.as.list->count > 0 || v.as.list->shape == TP_SHAPE_GENERATOR;
    case TP_DICT: return v.as.dict->count > 0;
    default: return true;
    }
}

bool tp_same(struct tp_value x, struct tp_value y)
{
    if (x.kind != y.kind) return false;
    switch (x.kind) {
    case TP_NONE: return true;
    case TP_BOOL: return x.as.b == y.as.b;
    case TP_INT: return x.as.i == y.as.i;
    case TP_FLOAT: return x.as.f == y.as.f;
    case TP_TEXT:
        return x.as.text->bytes == y.as.text->bytes &&
               memcmp(x.as.text->data, y.as.text->data, x.as.text->bytes) == 0;
    default: return x.as.list == y.as.list;
    }
}

static bool list_equal(struct tp_arena *a, const struct tp_list *x, const struct tp_list *y,
                       int depth);

static bool equal_within(struct tp_arena *a, struct tp_value x, struct tp_value y, int depth);

static bool dict_equal(struct tp_arena *a, const struct tp_dict *x, const struct tp_dict *y,
                       int depth)
{
    if (x->count != y->count) return false;
    tp_steps(a, x->count);
    for (size_t i = 0; i < x->count; i++) {
        const struct tp_value *other = tp_dict_find(a, y, x->pairs[i].key);
        if (!other || !equal_within(a, x->pairs[i].value, *other, depth + 1)) return false;
    }
    return true;
}

static bool equal_within(struct tp_arena *a, struct tp_value x, struct tp_value y, int depth)
{
    if (depth > TP_VALUE_DEPTH_MAX) tp_fail(a, ERR_LIMIT, "a value is nested too deeply");
    if (tp_is_number(x) && tp_is_number(y)) {
        if (tp_is_int(x) && tp_is_int(y)) return tp_as_int(x) == tp_as_int(y);
        return tp_as_float(x) == tp_as_float(y);
    }
    if (x.kind != y.kind) return false;
    switch (x.kind) {
    case TP_UNDEFINED: return true;
    case TP_TEXT: tp_pay_bytes(a, x.as.text->bytes); return tp_same(x, y);
    case TP_LIST: return list_equal(a, x.as.list, y.as.list, depth);
    case TP_DICT: return dict_equal(a, x.as.dict, y.as.dict, depth);
    default: return tp_same(x, y);
    }
}

static bool list_equal(struct tp_arena *a, const struct tp_list *x, const struct tp_list *y,
                       int depth)
{
    if (x == y) return true;
    if (x->shape != y->shape || x->shape == TP_SHAPE_GENERATOR) return false;
    if (x->count != y->count) return false;
    tp_steps(a, x->count);
    for (size_t i = 0; i < x->count; i++) {
        if (!equal_within(a, x->items[i], y->items[i], depth + 1)) return false;
    }
    return true;
}

bool tp_equal(struct tp_arena *a, struct tp_value x, struct tp_value y)
{
    return equal_within(a, x, y, 0);
}

static int compare_within(struct tp_arena *a, struct tp_value x, struct tp_value y, int depth)
{
    if (depth > TP_VALUE_DEPTH_MAX) tp_fail(a, ERR_LIMIT, "a value is nested too deeply");
    if (tp_is_int(x) && tp_is_int(y)) {
        int64_t i = tp_as_int(x), j = tp_as_int(y);
        return i < j ? -1 : i > j;
    }
    if (tp_is_number(x) && tp_is_number(y)) {
        double f = tp_as_float(x), g = tp_as_float(y);
        return f < g ? -1 : f == g ? 0 : 1;
    }
    if (x.kind == TP_TEXT && y.kind == TP_TEXT) {
        const struct tp_text *s = x.as.text, *t = y.as.text;
        size_t common = s->bytes < t->bytes ? s->bytes : t->bytes;
        tp_pay_bytes(a, common);
        int order = memcmp(s->data, t->data, common);
        return order ? order : s->bytes < t->bytes ? -1 : s->bytes > t->bytes;
    }
    bool lists = x.kind == TP_LIST && y.kind == TP_LIST && x.as.list->shape == y.as.list->shape &&
                 x.as.list->shape <= TP_SHAPE_TUPLE;
    if (!lists) {
        if (x.kind == TP_UNDEFINED) tp_fail_undefined(a, x);
        if (y.kind == TP_UNDEFINED) tp_fail_undefined(a, y);
        tp_fail(a, ERR_FORMAT, "'%s' and '%s' cannot be ordered", tp_kind_name(x),
                tp_kind_name(y));
    }
    const struct tp_list *l = x.as.list, *m = y.as.list;
    for (size_t i = 0; i < l->count && i < m->count; i++) {
        tp_steps(a, 1);
        if (equal_within(a, l->items[i], m->items[i], depth + 1)) continue;
        return compare_within(a, l->items[i], m->items[i], depth + 1);
    }
    return l->count < m->count ? -1 : l->count > m->count;
}

int tp_compare(struct tp_arena *a, struct tp_value x, struct tp_value y)
{
    return compare_within(a, x, y, 0);
}

bool tp_contains(struct tp_arena *a, struct tp_value in, struct tp_value v)
{
    if (in.kind == TP_DICT) return tp_dict_find(a, in.as.dict, v) != NULL;
    if (in.kind == TP_TEXT) {
        if (v.kind != TP_TEXT) {
            tp_fail(a, ERR_FORMAT, "'in <string>' requires string as left operand, not %s",
                    tp_kind_name(v));
        }
        return tp_find(a, in.as.text, v.as.text, 0) != SIZE_MAX;
    }
    const struct tp_list *l = tp_iterate(a, in);
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(a, 1);
        if (tp_equal(a, l->items[i], v)) return true;
    }
    return false;
}

size_t tp_length(struct tp_arena *a, struct tp_value v)
{
    switch (v.kind) {
    case TP_UNDEFINED: return 0;
    case TP_TEXT: return tp_chars(a, v.as.text);
    case TP_DICT: return v.as.dict->count;
    case TP_LIST:
        if (v.as.list->shape != TP_SHAPE_GENERATOR) return v.as.list->count;
        break;
    default: break;
    }
    tp_fail(a, ERR_FORMAT, "object of type '%s' has no len()", tp_kind_name(v));
}

static struct tp_list *text_chars(struct tp_arena *a, const struct tp_text *t)
{
    struct tp_list *l = tp_list_new(a, t->bytes, TP_SHAPE_LIST);
    for (size_t at = 0; at < t->bytes;) {
        size_t bytes = t->bytes - at;
        tp_char_at(t->data + at, &bytes);
        l->items[l->count++] = tp_text(a, t->data + at, bytes);
        at += bytes;
    }
    tp_pay_items(a, l->count);
    return l;
}

struct tp_list *tp_iterate(struct tp_arena *a, struct tp_value v)
{
    if (v.kind == TP_UNDEFINED) return tp_list_new(a, 0, TP_SHAPE_LIST);
    if (v.kind == TP_TEXT) return text_chars(a, v.as.text);
    if (v.kind == TP_DICT) {
        struct tp_list *l = tp_list_new(a, v.as.dict->count, TP_SHAPE_LIST);
        for (size_t i = 0; i < v.as.dict->count; i++) l->items[i] = v.as.dict->pairs[i].key;
        l->count = v.as.dict->count;
        tp_pay_items(a, l->count);
        return l;
    }
    if (v.kind != TP_LIST) {
        tp_fail(a, ERR_FORMAT, "'%s' object is not iterable", tp_kind_name(v));
    }
    if (v.as.list->shape != TP_SHAPE_GENERATOR) return v.as.list;
    struct tp_list *rest = tp_alloc(a, sizeof *rest);
    *rest = *v.as.list;
    v.as.list->items = NULL;
    v.as.list->count = v.as.list->room = 0;
    return rest;
}

const char *tp_kind_name(struct tp_value v)
{
    static const char *const names[] = {
        [TP_UNDEFINED] = "Undefined", [TP_NONE] = "NoneType", [TP_BOOL] = "bool",
        [TP_INT] = "int", [TP_FLOAT] = "float", [TP_TEXT] = "str", [TP_LIST] = "list",
        [TP_DICT] = "dict", [TP_SPACE] = "Namespace", [TP_LOOP] = "LoopContext",
        [TP_MACRO] = "Macro", [TP_BOUND] = "method", [TP_FUNCTION] = "function",
        [TP_CYCLER] = "Cycler", [TP_JOINER] = "Joiner", [TP_MISSING] = "missing",
    };
    static const char *const shapes[] = { "list", "tuple", "range", "dict view", "generator" };
    return v.kind == TP_LIST ? shapes[v.as.list->shape] : names[v.kind];
}

_Noreturn void tp_fail_undefined(struct tp_arena *a, struct tp_value v)
{
    static const struct tp_text nothing = { "value", 5 };
    const struct tp_text *name = v.as.text ? v.as.text : &nothing;
    int bytes = name->bytes > 200 ? 200 : (int)name->bytes;
    if (v.owner == TP_MISSING) {
        tp_fail(a, ERR_FORMAT, "'%.*s' is undefined", bytes, name->data);
    }
    struct tp_list shape = { 0 };
    struct tp_value owner = { .kind = v.owner, .as.list = &shape };
    tp_fail(a, ERR_FORMAT, "'%s object' has no attribute '%.*s'", tp_kind_name(owner), bytes,
            name->data);
}
