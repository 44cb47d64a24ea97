/* model/template_filter.c - filters of one value; template_filter_seq.c has those of sequences. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_filter.h"

static struct tp_value filter_trim(struct tp_call *c)
{
    const struct tp_text *chars = NULL;
    if (c->arg[0].kind != TP_MISSING && c->arg[0].kind != TP_NONE) chars = tp_arg_text(c, 0);
    return tp_strip(c->arena, tp_str(c->arena, c->self), chars, true, true);
}

static struct tp_value filter_upper(struct tp_call *c)
{
    return tp_change_case(c->run, tp_str(c->arena, c->self), TP_UPPER);
}

static struct tp_value filter_lower(struct tp_call *c)
{
    return tp_change_case(c->run, tp_str(c->arena, c->self), TP_LOWER);
}

static struct tp_value filter_capitalize(struct tp_call *c)
{
    return tp_change_case(c->run, tp_str(c->arena, c->self), TP_CAPITALIZE);
}

static struct tp_value filter_title(struct tp_call *c)
{
    return tp_change_case(c->run, tp_str(c->arena, c->self), TP_TITLE_FILTER);
}

static struct tp_value filter_string(struct tp_call *c)
{
    const struct tp_text *t = tp_str(c->arena, c->self);
    return (struct tp_value){ .kind = TP_TEXT, .as.text = t };
}

static struct tp_value filter_replace(struct tp_call *c)
{
    bool all = c->arg[2].kind == TP_MISSING || c->arg[2].kind == TP_NONE;
    return tp_replace(c->arena, tp_str(c->arena, c->self), tp_arg_str(c, 0, ""),
                      tp_arg_str(c, 1, ""), all ? -1 : tp_arg_int(c, 2, -1));
}

static struct tp_value filter_default(struct tp_call *c)
{
    struct tp_value other = c->arg[0].kind == TP_MISSING ? tp_word(c->arena, "") : c->arg[0];
    if (c->self.kind == TP_UNDEFINED) return other;
    return tp_arg_bool(c, 1, false) && !tp_true(c->self) ? other : c->self;
}

static struct tp_value filter_length(struct tp_call *c)
{
    return tp_int((int64_t)tp_length(c->arena, c->self));
}

static struct tp_value filter_int(struct tp_call *c)
{
    struct tp_value v = c->self, other = c->arg[0].kind == TP_MISSING ? tp_int(0) : c->arg[0];
    int64_t i;
    double f;
    if (v.kind == TP_UNDEFINED) tp_fail_undefined(c->arena, v);
    if (tp_is_int(v)) return tp_int(tp_as_int(v));
    if (v.kind == TP_FLOAT && isnan(v.as.f)) return other;
    if (v.kind == TP_FLOAT && isinf(v.as.f)) {
        tp_fail(c->arena, ERR_FORMAT, "cannot convert float infinity to integer");
    }
    if (v.kind == TP_FLOAT && tp_float_to_int(c->arena, v.as.f, &i)) return tp_int(i);
    if (v.kind != TP_TEXT) return other;
    if (tp_read_int(c->arena, v.as.text, (int)tp_arg_int(c, 1, 10), &i)) return tp_int(i);
    if (tp_read_float(v.as.text, &f) && tp_float_to_int(c->arena, f, &i)) return tp_int(i);
    return other;
}

static struct tp_value filter_float(struct tp_call *c)
{
    double f;
    if (c->self.kind == TP_UNDEFINED) tp_fail_undefined(c->arena, c->self);
    if (tp_is_number(c->self)) return tp_float(tp_as_float(c->self));
    if (c->self.kind == TP_TEXT && tp_read_float(c->self.as.text, &f)) return tp_float(f);
    return c->arg[0].kind == TP_MISSING ? tp_float(0) : c->arg[0];
}

static struct tp_value filter_abs(struct tp_call *c)
{
    if (c->self.kind == TP_FLOAT) return tp_float(fabs(c->self.as.f));
    if (!tp_is_int(c->self)) {
        tp_fail(c->arena, ERR_FORMAT, "bad operand type for abs(): '%s'", tp_kind_name(c->self));
    }
    int64_t i = tp_as_int(c->self);
    return i < 0 ? tp_negate(c->arena, c->self) : tp_int(i);
}

static struct tp_value filter_round(struct tp_call *c)
{
    const struct tp_text *how = tp_arg_str(c, 1, "common");
    int64_t digits = tp_arg_int(c, 0, 0);
    if (!tp_is_number(c->self)) {
        tp_fail(c->arena, ERR_FORMAT, "'%s' cannot be rounded", tp_kind_name(c->self));
    }
    if (digits < -300 || digits > 300) {
        tp_fail(c->arena, ERR_LIMIT, "round() is limited to 300 digits");
    }
    double f = tp_as_float(c->self), scale = pow(10, (double)digits);
    if (tp_text_is(how, "ceil")) return tp_float(ceil(f * scale) / scale);
    if (tp_text_is(how, "floor")) return tp_float(floor(f * scale) / scale);
    if (!tp_text_is(how, "common")) {
        tp_fail(c->arena, ERR_FORMAT, "method must be common, ceil or floor");
    }
    if (tp_is_int(c->self) && digits >= 0) return tp_int(tp_as_int(c->self));
    if (!isfinite(f)) return tp_float(f);
    char text[800];
    if (digits >= 0) {
        /* printf rounds the exact value half to even, as Python does. */
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        return tp_float(strtod(text, NULL));
    }
    double rounded = nearbyint(f * scale) / scale;
    return tp_is_int(c->self) ? tp_int((int64_t)rounded) : tp_float(rounded);
}

static struct tp_value filter_escape(struct tp_call *c)
{
    const struct tp_text *t = tp_str(c->arena, c->self);
    struct tp_sink s = { .arena = c->arena };
    tp_pay_bytes(c->arena, t->bytes * 4);
    for (size_t i = 0; i < t->bytes; i++) {
        switch (t->data[i]) {
        case '&': tp_sink_word(&s, "&amp;"); break;
        case '<': tp_sink_word(&s, "&lt;"); break;
        case '>': tp_sink_word(&s, "&gt;"); break;
        case '\'': tp_sink_word(&s, "&#39;"); break;
        case '"': tp_sink_word(&s, "&#34;"); break;
        default: tp_sink_add(&s, t->data + i, 1);
        }
    }
    return tp_sink_take(&s);
}

/* A number of spaces, or the text itself. */
static const struct tp_text *indention(struct tp_call *c, unsigned at, int64_t otherwise)
{
    if (c->arg[at].kind == TP_TEXT) return c->arg[at].as.text;
    int64_t width = tp_arg_int(c, at, otherwise);
    struct tp_value space = tp_word(c->arena, " ");
    return tp_binary(c->arena, '*', space, tp_int(width)).as.text;
}

static struct tp_value filter_indent(struct tp_call *c)
{
    const struct tp_text *by = indention(c, 0, 4), *t = tp_str(c->arena, c->self);
    bool first = tp_arg_bool(c, 1, false), blank = tp_arg_bool(c, 2, false);
    /* A newline is added, so that a last empty line counts. */
    struct tp_sink whole = { .arena = c->arena };
    tp_sink_add(&whole, t->data, t->bytes);
    tp_sink_word(&whole, "\n");
    const struct tp_list *lines = tp_split_lines(c->arena, tp_sink_take(&whole).as.text, false);
    struct tp_sink s = { .arena = c->arena };
    for (size_t i = 0; i < lines->count; i++) {
        const struct tp_text *line = lines->items[i].as.text;
        tp_steps(c->arena, 1);
        if (i) tp_sink_word(&s, "\n");
        bool indented = i == 0 ? first : blank || line->bytes > 0;
        if (indented) tp_sink_add(&s, by->data, by->bytes);
        tp_sink_add(&s, line->data, line->bytes);
    }
    return tp_sink_take(&s);
}

static const struct tp_text *separator(struct tp_call *c, size_t at, const char *otherwise)
{
    struct tp_value v = c->arg[2];
    if (v.kind == TP_MISSING || v.kind == TP_NONE) return tp_word(c->arena, otherwise).as.text;
    const struct tp_list *l = tp_iterate(c->arena, v);
    if (l->count != 2 || l->items[at].kind != TP_TEXT) {
        tp_fail(c->arena, ERR_FORMAT, "separators must be two strings");
    }
    return l->items[at].as.text;
}

static struct tp_value filter_tojson(struct tp_call *c)
{
    struct tp_json_style style = { .sort_keys = tp_arg_bool(c, 3, false) };
    bool indented = c->arg[1].kind != TP_MISSING && c->arg[1].kind != TP_NONE;
    if (indented) style.indent = indention(c, 1, 0);
    style.comma = separator(c, 0, indented ? "," : ", ");
    style.colon = separator(c, 1, ": ");
    if (tp_arg_bool(c, 0, false)) {
        tp_fail(c->arena, ERR_UNSUPPORTED, "tojson(ensure_ascii=true) is not supported");
    }
    struct tp_sink s = { .arena = c->arena };
    tp_sink_json(&s, c->self, &style);
    return tp_sink_take(&s);
}

static struct tp_value filter_format(struct tp_call *c)
{
    const struct tp_args *args = c->raw;
    struct tp_dict *named = NULL;
    if (args->count && args->named_count) {
        tp_fail(c->arena, ERR_FORMAT, "positional and keyword arguments at the same time");
    }
    if (args->named_count) named = tp_dict_new(c->arena);
    for (size_t i = 0; i < args->named_count; i++) {
        const struct tp_text *name = &args->named[i].name;
        tp_dict_set(c->arena, named, tp_text(c->arena, name->data, name->bytes),
                    args->named[i].value);
    }
    return tp_percent(c->arena, tp_str(c->arena, c->self), args->positional, args->count, named);
}

static struct tp_value filter_attr(struct tp_call *c)
{
    if (c->self.kind == TP_DICT && !tp_find_method(c->self, tp_arg_text(c, 0))) {
        return tp_undefined(tp_arg_text(c, 0), TP_DICT);
    }
    return tp_attribute(c->run, c->self, tp_arg_text(c, 0));
}

const struct tp_builtin *tp_find_filter(const struct tp_text *name)
{
    static const struct tp_builtin rows[] = {
        { "trim", "chars", 0, filter_trim },
        { "upper", "", 0, filter_upper },
        { "lower", "", 0, filter_lower },
        { "capitalize", "", 0, filter_capitalize },
        { "title", "", 0, filter_title },
        { "string", "", 0, filter_string },
        { "safe", "", 0, filter_string },
        { "replace", "old new count", 2, filter_replace },
        { "default", "default_value boolean", 0, filter_default },
        { "d", "default_value boolean", 0, filter_default },
        { "length", "", 0, filter_length },
        { "count", "", 0, filter_length },
        { "int", "default base", 0, filter_int },
        { "float", "default", 0, filter_float },
        { "abs", "", 0, filter_abs },
        { "round", "precision method", 0, filter_round },
        { "e", "", 0, filter_escape },
        { "escape", "", 0, filter_escape },
        { "indent", "width first blank", 0, filter_indent },
        { "tojson", "ensure_ascii indent separators sort_keys", 0, filter_tojson },
        { "format", NULL, 0, filter_format },
        { "attr", "name", 1, filter_attr },
        { NULL, NULL, 0, NULL },
    };
    const struct tp_builtin *row = tp_find_row(rows, name);
    return row ? row : tp_find_sequence_filter(name);
}
