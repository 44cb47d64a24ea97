/* model/template_test.c - tests: what may stand after `is`, and in select and reject. */
#include <string.h>

#include "model/template_run.h"

static struct tp_value test_defined(struct tp_call *c)
{
    return tp_bool(c->self.kind != TP_UNDEFINED);
}

static struct tp_value test_undefined(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_UNDEFINED);
}

static struct tp_value test_none(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_NONE);
}

static struct tp_value test_string(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_TEXT);
}

static struct tp_value test_number(struct tp_call *c)
{
    return tp_bool(tp_is_number(c->self));
}

static struct tp_value test_integer(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_INT);
}

static struct tp_value test_float(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_FLOAT);
}

static struct tp_value test_boolean(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_BOOL);
}

static struct tp_value test_true(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_BOOL && c->self.as.b);
}

static struct tp_value test_false(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_BOOL && !c->self.as.b);
}

static struct tp_value test_mapping(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_DICT);
}

/* Python asks for a length and items; Jinja's Undefined has both. */
static struct tp_value test_sequence(struct tp_call *c)
{
    enum tp_kind kind = c->self.kind;
    bool list = kind == TP_LIST && c->self.as.list->shape <= TP_SHAPE_RANGE;
    return tp_bool(list || kind == TP_TEXT || kind == TP_DICT || kind == TP_UNDEFINED);
}

static struct tp_value test_iterable(struct tp_call *c)
{
    enum tp_kind kind = c->self.kind;
    return tp_bool(kind == TP_LIST || kind == TP_TEXT || kind == TP_DICT || kind == TP_UNDEFINED ||
                   kind == TP_LOOP);
}

static struct tp_value test_callable(struct tp_call *c)
{
    enum tp_kind kind = c->self.kind;
    return tp_bool(kind == TP_MACRO || kind == TP_BOUND || kind == TP_FUNCTION ||
                   kind == TP_JOINER || kind == TP_UNDEFINED);
}

static struct tp_value test_eq(struct tp_call *c)
{
    return tp_bool(tp_equal(c->arena, c->self, c->arg[0]));
}

static struct tp_value test_ne(struct tp_call *c)
{
    return tp_bool(!tp_equal(c->arena, c->self, c->arg[0]));
}

static struct tp_value test_lt(struct tp_call *c)
{
    return tp_bool(tp_compare(c->arena, c->self, c->arg[0]) < 0);
}

static struct tp_value test_le(struct tp_call *c)
{
    return tp_bool(tp_compare(c->arena, c->self, c->arg[0]) <= 0);
}

static struct tp_value test_gt(struct tp_call *c)
{
    return tp_bool(tp_compare(c->arena, c->self, c->arg[0]) > 0);
}

static struct tp_value test_ge(struct tp_call *c)
{
    return tp_bool(tp_compare(c->arena, c->self, c->arg[0]) >= 0);
}

static struct tp_value test_in(struct tp_call *c)
{
    return tp_bool(tp_contains(c->arena, c->arg[0], c->self));
}

static struct tp_value test_sameas(struct tp_call *c)
{
    return tp_bool(tp_same(c->self, c->arg[0]));
}

static bool divides(struct tp_call *c, struct tp_value by, int64_t rest)
{
    struct tp_value r = tp_binary(c->arena, '%', c->self, by);
    return tp_equal(c->arena, r, tp_int(rest));
}

static struct tp_value test_odd(struct tp_call *c)
{
    return tp_bool(divides(c, tp_int(2), 1));
}

static struct tp_value test_even(struct tp_call *c)
{
    return tp_bool(divides(c, tp_int(2), 0));
}

static struct tp_value test_divisibleby(struct tp_call *c)
{
    return tp_bool(divides(c, c->arg[0], 0));
}

/* str.isupper: some letter, and none of the other case. */
static struct tp_value test_case(struct tp_call *c, enum tp_case how, enum tp_case other)
{
    const struct tp_text *t = tp_str(c->arena, c->self);
    struct tp_value text = tp_text(c->arena, t->data, t->bytes);
    return tp_bool(tp_same(tp_change_case(c->run, t, how), text) &&
                   !tp_same(tp_change_case(c->run, t, other), text));
}

static struct tp_value test_upper(struct tp_call *c)
{
    return test_case(c, TP_UPPER, TP_LOWER);
}

static struct tp_value test_lower(struct tp_call *c)
{
    return test_case(c, TP_LOWER, TP_UPPER);
}

static struct tp_value test_filter(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_TEXT && tp_find_filter(c->self.as.text));
}

static struct tp_value test_test(struct tp_call *c)
{
    return tp_bool(c->self.kind == TP_TEXT && tp_find_test(c->self.as.text));
}

const struct tp_builtin *tp_find_test(const struct tp_text *name)
{
    static const struct tp_builtin rows[] = {
        { "defined", "", 0, test_defined },
        { "undefined", "", 0, test_undefined },
        { "none", "", 0, test_none },
        { "string", "", 0, test_string },
        { "number", "", 0, test_number },
        { "integer", "", 0, test_integer },
        { "float", "", 0, test_float },
        { "boolean", "", 0, test_boolean },
        { "true", "", 0, test_true },
        { "false", "", 0, test_false },
        { "mapping", "", 0, test_mapping },
        { "sequence", "", 0, test_sequence },
        { "iterable", "", 0, test_iterable },
        { "callable", "", 0, test_callable },
        { "eq", "b", 1, test_eq },
        { "==", "b", 1, test_eq },
        { "equalto", "b", 1, test_eq },
        { "ne", "b", 1, test_ne },
        { "!=", "b", 1, test_ne },
        { "lt", "b", 1, test_lt },
        { "<", "b", 1, test_lt },
        { "lessthan", "b", 1, test_lt },
        { "le", "b", 1, test_le },
        { "<=", "b", 1, test_le },
        { "gt", "b", 1, test_gt },
        { ">", "b", 1, test_gt },
        { "greaterthan", "b", 1, test_gt },
        { "ge", "b", 1, test_ge },
        { ">=", "b", 1, test_ge },
        { "in", "seq", 1, test_in },
        { "sameas", "other", 1, test_sameas },
        { "odd", "", 0, test_odd },
        { "even", "", 0, test_even },
        { "divisibleby", "num", 1, test_divisibleby },
        { "upper", "", 0, test_upper },
        { "lower", "", 0, test_lower },
        { "filter", "", 0, test_filter },
        { "test", "", 0, test_test },
        { NULL, NULL, 0, NULL },
    };
    return tp_find_row(rows, name);
}
