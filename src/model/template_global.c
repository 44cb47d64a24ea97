/* model/template_global.c - functions that are always there, and reading bound arguments. */
#include <string.h>

#include "model/template_run.h"

const struct tp_builtin *tp_find_row(const struct tp_builtin *rows, const struct tp_text *name)
{
    for (; rows->name; rows++) {
        if (tp_text_is(name, rows->name)) return rows;
    }
    return NULL;
}

int64_t tp_arg_int(struct tp_call *c, unsigned at, int64_t otherwise)
{
    struct tp_value v = c->arg[at];
    if (v.kind == TP_MISSING) return otherwise;
    if (v.kind == TP_UNDEFINED) tp_fail_undefined(c->arena, v);
    if (!tp_is_int(v)) {
        tp_fail(c->arena, ERR_FORMAT, "an integer is required, not %s", tp_kind_name(v));
    }
    return tp_as_int(v);
}

bool tp_arg_bool(struct tp_call *c, unsigned at, bool otherwise)
{
    return c->arg[at].kind == TP_MISSING ? otherwise : tp_true(c->arg[at]);
}

const struct tp_text *tp_arg_str(struct tp_call *c, unsigned at, const char *otherwise)
{
    if (c->arg[at].kind != TP_MISSING) return tp_str(c->arena, c->arg[at]);
    return otherwise ? tp_word(c->arena, otherwise).as.text : NULL;
}

const struct tp_text *tp_arg_text(struct tp_call *c, unsigned at)
{
    struct tp_value v = c->arg[at];
    if (v.kind == TP_UNDEFINED) tp_fail_undefined(c->arena, v);
    if (v.kind != TP_TEXT) {
        tp_fail(c->arena, ERR_FORMAT, "a string is required, not %s", tp_kind_name(v));
    }
    return v.as.text;
}

static struct tp_value raise_exception(struct tp_call *c)
{
    const struct tp_text *t = tp_str(c->arena, c->arg[0]);
    tp_fail_words(c->arena, ERR_DENIED, t->data, t->bytes);
}

static struct tp_value strftime_now(struct tp_call *c)
{
    const struct tp_text *t = tp_arg_text(c, 0);
    char format[256], out[1024];
    struct tm tm;
    if (t->bytes >= sizeof format || memchr(t->data, '\0', t->bytes)) {
        tp_fail(c->arena, ERR_LIMIT, "a date format is longer than %zu bytes", sizeof format);
    }
    memcpy(format, t->data, t->bytes);
    format[t->bytes] = '\0';
    if (!localtime_r(&c->run->now, &tm)) tp_fail(c->arena, ERR_FORMAT, "the time is out of range");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t bytes = strftime(out, sizeof out, format, &tm);
#pragma GCC diagnostic pop
    char *copy = tp_alloc(c->arena, bytes + 1);
    memcpy(copy, out, bytes);
    return tp_text(c->arena, copy, bytes);
}

static struct tp_value range(struct tp_call *c)
{
    int64_t start = 0, stop = tp_arg_int(c, 0, 0), step = tp_arg_int(c, 2, 1);
    if (c->arg[1].kind != TP_MISSING) {
        start = stop;
        stop = tp_arg_int(c, 1, 0);
    }
    if (step == 0) tp_fail(c->arena, ERR_FORMAT, "range() arg 3 must not be zero");
    uint64_t span = step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t stride = step > 0 ? (uint64_t)step : -(uint64_t)step;
    bool empty = step > 0 ? start >= stop : start <= stop;
    uint64_t count = empty ? 0 : (span - 1) / stride + 1;
    if (count > TP_RANGE_MAX) {
        tp_fail(c->arena, ERR_LIMIT, "range() is limited to %d numbers", TP_RANGE_MAX);
    }
    struct tp_list *l = tp_list_new(c->arena, (size_t)count, TP_SHAPE_RANGE);
    tp_pay_items(c->arena, (size_t)count);
    for (; l->count < count; l->count++) {
        l->items[l->count] = tp_int((int64_t)((uint64_t)start + l->count * (uint64_t)step));
    }
    return tp_list(l);
}

/* namespace(...) and dict(...): one mapping or list of pairs, then names. */
static struct tp_dict *dict_of(struct tp_call *c)
{
    struct tp_arena *a = c->arena;
    struct tp_dict *d = tp_dict_new(a);
    if (c->raw->count > 1) tp_fail(a, ERR_FORMAT, "dict expected at most 1 argument");
    struct tp_value from = c->raw->count ? c->raw->positional[0] : tp_undefined(NULL, TP_MISSING);
    if (from.kind == TP_DICT) {
        for (size_t i = 0; i < from.as.dict->count; i++) {
            tp_dict_set(a, d, from.as.dict->pairs[i].key, from.as.dict->pairs[i].value);
        }
    }
    else {
        const struct tp_list *pairs = tp_iterate(a, from);
        for (size_t i = 0; i < pairs->count; i++) {
            const struct tp_list *pair = tp_iterate(a, pairs->items[i]);
            if (pair->count != 2) tp_fail(a, ERR_FORMAT, "dict() needs pairs");
            tp_dict_set(a, d, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < c->raw->named_count; i++) {
        const struct tp_named *n = &c->raw->named[i];
        tp_dict_set(a, d, tp_text(a, n->name.data, n->name.bytes), n->value);
    }
    return d;
}

static struct tp_value make_namespace(struct tp_call *c)
{
    return (struct tp_value){ .kind = TP_SPACE, .as.dict = dict_of(c) };
}

static struct tp_value make_dict(struct tp_call *c)
{
    return tp_dict(dict_of(c));
}

static struct tp_value make_cycler(struct tp_call *c)
{
    struct tp_cycler *cycler = tp_alloc(c->arena, sizeof *cycler);
    cycler->items = tp_list_new(c->arena, 0, TP_SHAPE_TUPLE);
    for (size_t i = 0; i < c->raw->count; i++) {
        tp_list_add(c->arena, cycler->items, c->raw->positional[i]);
    }
    if (c->raw->count == 0) tp_fail(c->arena, ERR_FORMAT, "at least one item has to be provided");
    return (struct tp_value){ .kind = TP_CYCLER, .as.cycler = cycler };
}

static struct tp_value make_joiner(struct tp_call *c)
{
    struct tp_cycler *joiner = tp_alloc(c->arena, sizeof *joiner);
    joiner->items = tp_list_new(c->arena, 1, TP_SHAPE_TUPLE);
    struct tp_value comma = c->arg[0].kind == TP_MISSING ? tp_word(c->arena, ", ") : c->arg[0];
    tp_list_add(c->arena, joiner->items, comma);
    return (struct tp_value){ .kind = TP_JOINER, .as.cycler = joiner };
}

const struct tp_builtin *tp_find_global(const struct tp_text *name)
{
    static const struct tp_builtin rows[] = {
        { "raise_exception", "message", 1, raise_exception },
        { "strftime_now", "format", 1, strftime_now },
        { "range", "start stop step", 1, range },
        { "namespace", NULL, 0, make_namespace },
        { "dict", NULL, 0, make_dict },
        { "cycler", NULL, 0, make_cycler },
        { "joiner", "sep", 0, make_joiner },
        { NULL, NULL, 0, NULL },
    };
    return tp_find_row(rows, name);
}
