/* model/template_method.c - methods of strings, lists, dicts and cyclers.
 *
 * Those that change a list or dict work, though Hugging Face's sandbox forbids them: what they
 * change is this rendering's alone.
 */
#include <string.h>

#include "model/template_run.h"

/* An optional argument that may also be None. */
static const struct tp_text *text_or_none(struct tp_call *c, unsigned at)
{
    bool none = c->arg[at].kind == TP_MISSING || c->arg[at].kind == TP_NONE;
    return none ? NULL : tp_arg_text(c, at);
}

static struct tp_value str_strip(struct tp_call *c)
{
    return tp_strip(c->arena, c->self.as.text, text_or_none(c, 0), true, true);
}

static struct tp_value str_lstrip(struct tp_call *c)
{
    return tp_strip(c->arena, c->self.as.text, text_or_none(c, 0), true, false);
}

static struct tp_value str_rstrip(struct tp_call *c)
{
    return tp_strip(c->arena, c->self.as.text, text_or_none(c, 0), false, true);
}

/* At runs of white space; what is left after `most` splits keeps its end. */
static void split_space(struct tp_call *c, struct tp_list *l, int64_t most)
{
    const struct tp_text *t = c->self.as.text;
    size_t from = tp_space_prefix(t->data, t->bytes);
    tp_pay_bytes(c->arena, t->bytes * 4);
    while (from < t->bytes && (most < 0 || (int64_t)l->count < most)) {
        size_t at = from;
        while (at < t->bytes) {
            size_t bytes = t->bytes - at;
            if (tp_is_space(tp_char_at(t->data + at, &bytes))) break;
            at += bytes;
        }
        tp_list_add(c->arena, l, tp_text(c->arena, t->data + from, at - from));
        from = at + tp_space_prefix(t->data + at, t->bytes - at);
    }
    if (from < t->bytes) {
        tp_list_add(c->arena, l, tp_text(c->arena, t->data + from, t->bytes - from));
    }
}

/* The same from the end; what is left keeps its start. */
static void split_space_back(struct tp_call *c, struct tp_list *l, int64_t most)
{
    const struct tp_text *t = c->self.as.text;
    size_t end = tp_space_trimmed(t->data, t->bytes);
    tp_pay_bytes(c->arena, t->bytes * 4);
    while (end > 0 && (most < 0 || (int64_t)l->count < most)) {
        size_t at = end;
        while (at > 0) {
            size_t start = at - 1;
            while (start > 0 && ((unsigned char)t->data[start] & 0xc0) == 0x80) start--;
            size_t bytes = at - start;
            if (tp_is_space(tp_char_at(t->data + start, &bytes))) break;
            at = start;
        }
        tp_list_add(c->arena, l, tp_text(c->arena, t->data + at, end - at));
        end = tp_space_trimmed(t->data, at);
    }
    if (end > 0) tp_list_add(c->arena, l, tp_text(c->arena, t->data, end));
}

static void split_at(struct tp_call *c, struct tp_list *l, const struct tp_text *by, int64_t most)
{
    const struct tp_text *t = c->self.as.text;
    size_t at = 0;
    while (most < 0 || (int64_t)l->count < most) {
        size_t found = tp_find(c->arena, t, by, at);
        if (found == SIZE_MAX) break;
        tp_list_add(c->arena, l, tp_text(c->arena, t->data + at, found - at));
        at = found + by->bytes;
        tp_steps(c->arena, 1);
    }
    tp_list_add(c->arena, l, tp_text(c->arena, t->data + at, t->bytes - at));
}

static void reverse(struct tp_list *l)
{
    for (size_t i = 0, j = l->count; i + 1 < j; i++) {
        struct tp_value v = l->items[i];
        l->items[i] = l->items[--j];
        l->items[j] = v;
    }
}

/* Offset of the last `needle` that ends at or before `end`, or SIZE_MAX. */
static size_t find_last(struct tp_arena *a, const struct tp_text *in, const struct tp_text *needle,
                        size_t end)
{
    for (size_t at = end; at >= needle->bytes; at--) {
        const char *start = in->data + at - needle->bytes;
        tp_pay_bytes(a, TP_BYTES_PER_STEP * ((at & 63) == 0) + needle->bytes);
        if (memcmp(start, needle->data, needle->bytes) == 0) return at - needle->bytes;
        if (at == 0) break;
    }
    return SIZE_MAX;
}

static void split_back(struct tp_call *c, struct tp_list *l, const struct tp_text *by, int64_t most)
{
    const struct tp_text *t = c->self.as.text;
    size_t end = t->bytes;
    while (most < 0 || (int64_t)l->count < most) {
        size_t found = find_last(c->arena, t, by, end);
        if (found == SIZE_MAX) break;
        size_t after = found + by->bytes;
        tp_list_add(c->arena, l, tp_text(c->arena, t->data + after, end - after));
        end = found;
    }
    tp_list_add(c->arena, l, tp_text(c->arena, t->data, end));
}

static struct tp_value split(struct tp_call *c, bool right)
{
    const struct tp_text *by = text_or_none(c, 0);
    int64_t most = tp_arg_int(c, 1, -1);
    struct tp_list *l = tp_list_new(c->arena, 0, TP_SHAPE_LIST);
    if (by && by->bytes == 0) tp_fail(c->arena, ERR_FORMAT, "empty separator");
    if (!by && right) split_space_back(c, l, most);
    else if (!by) split_space(c, l, most);
    else if (right) split_back(c, l, by, most);
    else split_at(c, l, by, most);
    if (right) reverse(l);
    return tp_list(l);
}

static struct tp_value str_split(struct tp_call *c)
{
    return split(c, false);
}

static struct tp_value str_rsplit(struct tp_call *c)
{
    return split(c, true);
}

static struct tp_value str_splitlines(struct tp_call *c)
{
    return tp_list(tp_split_lines(c->arena, c->self.as.text, tp_arg_bool(c, 0, false)));
}

static bool has_affix(const struct tp_text *t, const struct tp_text *affix, bool end)
{
    if (affix->bytes > t->bytes) return false;
    return memcmp(t->data + (end ? t->bytes - affix->bytes : 0), affix->data, affix->bytes) == 0;
}

static struct tp_value test_affix(struct tp_call *c, bool end)
{
    const struct tp_text *t = c->self.as.text;
    if (!tp_is_shape(c->arg[0], TP_SHAPE_TUPLE)) {
        tp_pay_bytes(c->arena, tp_arg_text(c, 0)->bytes);
        return tp_bool(has_affix(t, tp_arg_text(c, 0), end));
    }
    const struct tp_list *l = c->arg[0].as.list;
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        if (l->items[i].kind != TP_TEXT) tp_fail(c->arena, ERR_FORMAT, "a string is required");
        if (has_affix(t, l->items[i].as.text, end)) return tp_bool(true);
    }
    return tp_bool(false);
}

static struct tp_value str_startswith(struct tp_call *c)
{
    return test_affix(c, false);
}

static struct tp_value str_endswith(struct tp_call *c)
{
    return test_affix(c, true);
}

static struct tp_value str_removeprefix(struct tp_call *c)
{
    const struct tp_text *t = c->self.as.text, *affix = tp_arg_text(c, 0);
    size_t cut = has_affix(t, affix, false) ? affix->bytes : 0;
    return tp_text(c->arena, t->data + cut, t->bytes - cut);
}

static struct tp_value str_removesuffix(struct tp_call *c)
{
    const struct tp_text *t = c->self.as.text, *affix = tp_arg_text(c, 0);
    return tp_text(c->arena, t->data, t->bytes - (has_affix(t, affix, true) ? affix->bytes : 0));
}

static struct tp_value str_upper(struct tp_call *c)
{
    return tp_change_case(c->run, c->self.as.text, TP_UPPER);
}

static struct tp_value str_lower(struct tp_call *c)
{
    return tp_change_case(c->run, c->self.as.text, TP_LOWER);
}

static struct tp_value str_capitalize(struct tp_call *c)
{
    return tp_change_case(c->run, c->self.as.text, TP_CAPITALIZE);
}

static struct tp_value str_title(struct tp_call *c)
{
    return tp_change_case(c->run, c->self.as.text, TP_TITLE_METHOD);
}

static struct tp_value str_replace(struct tp_call *c)
{
    return tp_replace(c->arena, c->self.as.text, tp_arg_text(c, 0), tp_arg_text(c, 1),
                      tp_arg_int(c, 2, -1));
}

static struct tp_value position(struct tp_call *c, size_t found)
{
    if (found == SIZE_MAX) return tp_int(-1);
    struct tp_text before = { c->self.as.text->data, found };
    return tp_int((int64_t)tp_chars(c->arena, &before));
}

static struct tp_value str_find(struct tp_call *c)
{
    return position(c, tp_find(c->arena, c->self.as.text, tp_arg_text(c, 0), 0));
}

static struct tp_value str_rfind(struct tp_call *c)
{
    const struct tp_text *t = c->self.as.text;
    return position(c, find_last(c->arena, t, tp_arg_text(c, 0), t->bytes));
}

static struct tp_value str_index(struct tp_call *c)
{
    struct tp_value v = str_find(c);
    if (v.as.i < 0) tp_fail(c->arena, ERR_FORMAT, "substring not found");
    return v;
}

static struct tp_value str_count(struct tp_call *c)
{
    const struct tp_text *t = c->self.as.text, *needle = tp_arg_text(c, 0);
    if (needle->bytes == 0) return tp_int((int64_t)tp_chars(c->arena, t) + 1);
    int64_t count = 0;
    for (size_t at = 0; (at = tp_find(c->arena, t, needle, at)) != SIZE_MAX; count++) {
        at += needle->bytes;
        tp_steps(c->arena, 1);
    }
    return tp_int(count);
}

static struct tp_value str_join(struct tp_call *c)
{
    const struct tp_list *l = tp_iterate(c->arena, c->arg[0]);
    const struct tp_text *by = c->self.as.text;
    struct tp_sink s = { .arena = c->arena };
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        if (l->items[i].kind != TP_TEXT) {
            tp_fail(c->arena, ERR_FORMAT, "sequence item %zu: expected str instance, %s found", i,
                    tp_kind_name(l->items[i]));
        }
        if (i) tp_sink_add(&s, by->data, by->bytes);
        tp_sink_str(&s, l->items[i]);
    }
    return tp_sink_take(&s);
}

/* The field between braces: a name, a number, or nothing (the next one). */
static struct tp_value format_field(struct tp_call *c, const struct tp_text *field, size_t *next)
{
    const struct tp_args *args = c->raw;
    int64_t at;
    if (field->bytes == 0) at = (int64_t)(*next)++;
    else if (!tp_read_int(c->arena, field, 10, &at)) {
        for (size_t i = 0; i < args->named_count; i++) {
            const struct tp_text *name = &args->named[i].name;
            bool same = name->bytes == field->bytes;
            if (same && memcmp(name->data, field->data, name->bytes) == 0) {
                return args->named[i].value;
            }
        }
        at = -1;
    }
    if (at < 0 || (size_t)at >= args->count) {
        tp_fail(c->arena, ERR_FORMAT, "format() has no value for a field");
    }
    return args->positional[at];
}

static struct tp_value str_format(struct tp_call *c)
{
    const struct tp_text *t = c->self.as.text;
    struct tp_sink s = { .arena = c->arena };
    size_t next = 0;
    for (size_t at = 0; at < t->bytes; at++) {
        char b = t->data[at];
        bool doubled = at + 1 < t->bytes && t->data[at + 1] == b;
        if ((b != '{' && b != '}') || doubled) {
            tp_sink_add(&s, &b, 1);
            at += (b == '{' || b == '}');
            continue;
        }
        const char *shut = b == '{' ? memchr(t->data + at, '}', t->bytes - at) : NULL;
        if (!shut) tp_fail(c->arena, ERR_FORMAT, "a single brace in a format string");
        size_t end = (size_t)(shut - t->data);
        struct tp_text field = { t->data + at + 1, end - at - 1 };
        tp_steps(c->arena, 1);
        if (memchr(field.data, ':', field.bytes) || memchr(field.data, '!', field.bytes)) {
            tp_fail(c->arena, ERR_UNSUPPORTED, "format() with a format spec is not supported");
        }
        tp_sink_str(&s, format_field(c, &field, &next));
        at = end;
    }
    tp_pay_bytes(c->arena, t->bytes * 4);
    return tp_sink_take(&s);
}

static struct tp_value ascii_all(struct tp_call *c, const char *ranges)
{
    const struct tp_text *t = c->self.as.text;
    bool all = t->bytes > 0;
    for (size_t i = 0; i < t->bytes && all; i++) {
        bool in = false;
        for (const char *r = ranges; *r; r += 2) in |= t->data[i] >= r[0] && t->data[i] <= r[1];
        all = in;
    }
    tp_pay_bytes(c->arena, t->bytes);
    return tp_bool(all);
}

static struct tp_value str_isdigit(struct tp_call *c)
{
    return ascii_all(c, "09");
}

static struct tp_value str_isalpha(struct tp_call *c)
{
    return ascii_all(c, "azAZ");
}

static struct tp_value str_isalnum(struct tp_call *c)
{
    return ascii_all(c, "azAZ09");
}

static struct tp_value str_isspace(struct tp_call *c)
{
    const struct tp_text *t = c->self.as.text;
    tp_pay_bytes(c->arena, t->bytes);
    return tp_bool(t->bytes && tp_space_prefix(t->data, t->bytes) == t->bytes);
}

/* Lists. */

static void check_index(struct tp_call *c, int64_t at)
{
    if (at < 0 || (size_t)at >= c->self.as.list->count) {
        tp_fail(c->arena, ERR_FORMAT, "list index out of range");
    }
}

static struct tp_value list_append(struct tp_call *c)
{
    tp_list_add(c->arena, c->self.as.list, c->arg[0]);
    return tp_none();
}

static struct tp_value list_extend(struct tp_call *c)
{
    const struct tp_list *from = tp_iterate(c->arena, c->arg[0]);
    size_t count = from->count;
    tp_pay_items(c->arena, count);
    for (size_t i = 0; i < count; i++) tp_list_add(c->arena, c->self.as.list, from->items[i]);
    return tp_none();
}

static struct tp_value list_insert(struct tp_call *c)
{
    struct tp_list *l = c->self.as.list;
    int64_t count = (int64_t)l->count, at = tp_arg_int(c, 0, 0);
    if (at < 0) at = at < -count ? 0 : at + count;
    tp_list_insert(c->arena, l, (size_t)(at > count ? count : at), c->arg[1]);
    return tp_none();
}

static struct tp_value list_pop(struct tp_call *c)
{
    struct tp_list *l = c->self.as.list;
    int64_t at = tp_arg_int(c, 0, -1);
    if (at < 0) at += (int64_t)l->count;
    check_index(c, at);
    tp_pay_items(c->arena, l->count - (size_t)at);
    return tp_list_remove(l, (size_t)at);
}

static struct tp_value list_index(struct tp_call *c)
{
    const struct tp_list *l = c->self.as.list;
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        if (tp_equal(c->arena, l->items[i], c->arg[0])) return tp_int((int64_t)i);
    }
    tp_fail(c->arena, ERR_FORMAT, "value is not in list");
}

static struct tp_value list_count(struct tp_call *c)
{
    const struct tp_list *l = c->self.as.list;
    int64_t count = 0;
    for (size_t i = 0; i < l->count; i++) {
        tp_steps(c->arena, 1);
        count += tp_equal(c->arena, l->items[i], c->arg[0]);
    }
    return tp_int(count);
}

static struct tp_value list_copy(struct tp_call *c)
{
    struct tp_list *l = tp_list_new(c->arena, 0, c->self.as.list->shape);
    struct tp_call to = { .run = c->run, .arena = c->arena, .self = tp_list(l) };
    to.arg[0] = c->self;
    list_extend(&to);
    return to.self;
}

/* Dicts. */

static struct tp_value dict_list(struct tp_call *c, bool keys, bool values)
{
    const struct tp_dict *d = c->self.as.dict;
    struct tp_list *l = tp_list_new(c->arena, d->count, TP_SHAPE_VIEW);
    tp_pay_items(c->arena, d->count);
    for (size_t i = 0; i < d->count; i++) {
        struct tp_value v = keys ? d->pairs[i].key : d->pairs[i].value;
        if (keys && values) {
            struct tp_list *pair = tp_list_new(c->arena, 2, TP_SHAPE_TUPLE);
            tp_list_add(c->arena, pair, d->pairs[i].key);
            tp_list_add(c->arena, pair, d->pairs[i].value);
            v = tp_list(pair);
        }
        tp_list_add(c->arena, l, v);
    }
    return tp_list(l);
}

static struct tp_value dict_items(struct tp_call *c)
{
    return dict_list(c, true, true);
}

static struct tp_value dict_keys(struct tp_call *c)
{
    return dict_list(c, true, false);
}

static struct tp_value dict_values(struct tp_call *c)
{
    return dict_list(c, false, true);
}

static struct tp_value dict_get(struct tp_call *c)
{
    const struct tp_value *v = tp_dict_find(c->arena, c->self.as.dict, c->arg[0]);
    if (v) return *v;
    return c->arg[1].kind == TP_MISSING ? tp_none() : c->arg[1];
}

static struct tp_value dict_pop(struct tp_call *c)
{
    struct tp_value v;
    if (tp_dict_remove(c->arena, c->self.as.dict, c->arg[0], &v)) return v;
    if (c->arg[1].kind == TP_MISSING) tp_fail(c->arena, ERR_FORMAT, "no such key to pop");
    return c->arg[1];
}

static struct tp_value dict_setdefault(struct tp_call *c)
{
    const struct tp_value *v = tp_dict_find(c->arena, c->self.as.dict, c->arg[0]);
    if (v) return *v;
    struct tp_value fresh = c->arg[1].kind == TP_MISSING ? tp_none() : c->arg[1];
    tp_dict_set(c->arena, c->self.as.dict, c->arg[0], fresh);
    return fresh;
}

static struct tp_value dict_update(struct tp_call *c)
{
    static const struct tp_text maker = { "dict", 4 };
    struct tp_value from = tp_invoke(c->run, tp_find_global(&maker), tp_none(), c->raw);
    for (size_t i = 0; i < from.as.dict->count; i++) {
        const struct tp_pair *p = &from.as.dict->pairs[i];
        tp_dict_set(c->arena, c->self.as.dict, p->key, p->value);
    }
    return tp_none();
}

static struct tp_value dict_copy(struct tp_call *c)
{
    struct tp_dict *d = tp_dict_new(c->arena);
    const struct tp_dict *from = c->self.as.dict;
    for (size_t i = 0; i < from->count; i++) {
        tp_dict_set(c->arena, d, from->pairs[i].key, from->pairs[i].value);
    }
    return tp_dict(d);
}

/* Cyclers. */

static struct tp_value cycler_next(struct tp_call *c)
{
    struct tp_cycler *cycler = c->self.as.cycler;
    return cycler->items->items[cycler->at++ % cycler->items->count];
}

static struct tp_value cycler_reset(struct tp_call *c)
{
    c->self.as.cycler->at = 0;
    return tp_none();
}

static const struct tp_builtin text_methods[] = {
    { "strip", "chars", 0, str_strip },
    { "lstrip", "chars", 0, str_lstrip },
    { "rstrip", "chars", 0, str_rstrip },
    { "split", "sep maxsplit", 0, str_split },
    { "rsplit", "sep maxsplit", 0, str_rsplit },
    { "splitlines", "keepends", 0, str_splitlines },
    { "startswith", "prefix", 1, str_startswith },
    { "endswith", "suffix", 1, str_endswith },
    { "removeprefix", "prefix", 1, str_removeprefix },
    { "removesuffix", "suffix", 1, str_removesuffix },
    { "upper", "", 0, str_upper },
    { "lower", "", 0, str_lower },
    { "capitalize", "", 0, str_capitalize },
    { "title", "", 0, str_title },
    { "replace", "old new count", 2, str_replace },
    { "find", "sub", 1, str_find },
    { "rfind", "sub", 1, str_rfind },
    { "index", "sub", 1, str_index },
    { "count", "sub", 1, str_count },
    { "join", "iterable", 1, str_join },
    { "format", NULL, 0, str_format },
    { "isdigit", "", 0, str_isdigit },
    { "isdecimal", "", 0, str_isdigit },
    { "isnumeric", "", 0, str_isdigit },
    { "isalpha", "", 0, str_isalpha },
    { "isalnum", "", 0, str_isalnum },
    { "isspace", "", 0, str_isspace },
    { NULL, NULL, 0, NULL },
};

/* A tuple has only the first two. */
static const struct tp_builtin list_methods[] = {
    { "index", "value", 1, list_index },
    { "count", "value", 1, list_count },
    { "append", "object", 1, list_append },
    { "extend", "iterable", 1, list_extend },
    { "insert", "index object", 2, list_insert },
    { "pop", "index", 0, list_pop },
    { "copy", "", 0, list_copy },
    { NULL, NULL, 0, NULL },
};

static const struct tp_builtin dict_methods[] = {
    { "items", "", 0, dict_items },
    { "keys", "", 0, dict_keys },
    { "values", "", 0, dict_values },
    { "get", "key default", 1, dict_get },
    { "pop", "key default", 1, dict_pop },
    { "setdefault", "key default", 1, dict_setdefault },
    { "update", NULL, 0, dict_update },
    { "copy", "", 0, dict_copy },
    { NULL, NULL, 0, NULL },
};

static const struct tp_builtin cycler_methods[] = {
    { "next", "", 0, cycler_next },
    { "reset", "", 0, cycler_reset },
    { NULL, NULL, 0, NULL },
};

const struct tp_builtin *tp_find_method(struct tp_value object, const struct tp_text *name)
{
    const struct tp_builtin *row;
    switch (object.kind) {
    case TP_TEXT: return tp_find_row(text_methods, name);
    case TP_DICT: return tp_find_row(dict_methods, name);
    case TP_CYCLER: return tp_find_row(cycler_methods, name);
    case TP_LIST:
        if (object.as.list->shape > TP_SHAPE_RANGE) return NULL;
        row = tp_find_row(list_methods, name);
        return object.as.list->shape == TP_SHAPE_LIST || row < list_methods + 2 ? row : NULL;
    default: return NULL;
    }
}
