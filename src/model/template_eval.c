/* model/template_eval.c - the value of an expression. */
#include "model/template_run.h"

struct tp_args tp_eval_args(struct tp_run *run, const struct tp_node *list)
{
    struct tp_args args = { 0 };
    for (const struct tp_node *n = list; n; n = n->next) {
        if (n->kind == TP_N_KEYWORD) args.named_count++;
        else args.count++;
    }
    if (args.count) {
        args.positional = tp_alloc_array(run->arena, args.count, sizeof *args.positional);
    }
    if (args.named_count) {
        args.named = tp_alloc_array(run->arena, args.named_count, sizeof *args.named);
    }
    size_t at = 0, named_at = 0;
    for (const struct tp_node *n = list; n; n = n->next) {
        if (n->kind != TP_N_KEYWORD) args.positional[at++] = tp_eval(run, n);
        else args.named[named_at++] = (struct tp_named){ n->text, tp_eval(run, n->a) };
    }
    return args;
}

struct tp_value tp_eval_filter(struct tp_run *run, const struct tp_node *n, struct tp_value block)
{
    struct tp_value v = block;
    if (n->a && n->a->kind == TP_N_FILTER) v = tp_eval_filter(run, n->a, block);
    else if (n->a) v = tp_eval(run, n->a);
    struct tp_args args = tp_eval_args(run, n->b);
    run->arena->line = n->line;
    tp_steps(run->arena, 1);
    if (!n->function) {
        tp_fail(run->arena, ERR_FORMAT, "no filter named '%.*s'",
                n->text.bytes > 60 ? 60 : (int)n->text.bytes, n->text.data);
    }
    return tp_invoke(run, n->function, v, &args);
}

static struct tp_value eval_test(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value v = tp_eval(run, n->a);
    struct tp_args args = tp_eval_args(run, n->b);
    run->arena->line = n->line;
    if (!n->function) {
        tp_fail(run->arena, ERR_FORMAT, "no test named '%.*s'",
                n->text.bytes > 60 ? 60 : (int)n->text.bytes, n->text.data);
    }
    return tp_invoke(run, n->function, v, &args);
}

static struct tp_value eval_list(struct tp_run *run, const struct tp_node *n)
{
    enum tp_shape shape = n->kind == TP_N_TUPLE ? TP_SHAPE_TUPLE : TP_SHAPE_LIST;
    struct tp_list *l = tp_list_new(run->arena, 0, shape);
    for (const struct tp_node *item = n->a; item; item = item->next) {
        tp_list_add(run->arena, l, tp_eval(run, item));
    }
    return tp_list(l);
}

static struct tp_value eval_dict(struct tp_run *run, const struct tp_node *n)
{
    struct tp_dict *d = tp_dict_new(run->arena);
    for (const struct tp_node *item = n->a; item; item = item->next->next) {
        struct tp_value key = tp_eval(run, item);
        tp_dict_set(run->arena, d, key, tp_eval(run, item->next));
    }
    return tp_dict(d);
}

static struct tp_value eval_item(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value object = tp_eval(run, n->a);
    const struct tp_node *index = n->b;
    if (index->kind != TP_N_SLICE) return tp_item(run, object, tp_eval(run, index));
    struct tp_value missing = { .kind = TP_MISSING };
    struct tp_value part[3] = {
        index->a ? tp_eval(run, index->a) : missing,
        index->b ? tp_eval(run, index->b) : missing,
        index->c ? tp_eval(run, index->c) : missing,
    };
    return tp_slice(run->arena, object, part);
}

static struct tp_value eval_call(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value callee = tp_eval(run, n->a);
    struct tp_args args = tp_eval_args(run, n->b);
    run->arena->line = n->line;
    return tp_call_value(run, callee, &args);
}

static struct tp_value eval_concat(struct tp_run *run, const struct tp_node *n)
{
    struct tp_list *parts = tp_list_new(run->arena, 0, TP_SHAPE_LIST);
    for (const struct tp_node *item = n->a; item; item = item->next) {
        tp_list_add(run->arena, parts, tp_eval(run, item));
    }
    struct tp_sink s = { .arena = run->arena };
    for (size_t i = 0; i < parts->count; i++) tp_sink_str(&s, parts->items[i]);
    return tp_sink_take(&s);
}

static bool compare(struct tp_arena *a, unsigned op, struct tp_value x, struct tp_value y)
{
    switch (op) {
    case TP_OP_EQ: return tp_equal(a, x, y);
    case TP_OP_NE: return !tp_equal(a, x, y);
    case TP_OP_IN: return tp_contains(a, y, x);
    case TP_OP_NOT_IN: return !tp_contains(a, y, x);
    case '<': return tp_compare(a, x, y) < 0;
    case '>': return tp_compare(a, x, y) > 0;
    case TP_OP_LE: return tp_compare(a, x, y) <= 0;
    default: return tp_compare(a, x, y) >= 0;
    }
}

static struct tp_value eval_compare(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value left = tp_eval(run, n->a);
    for (const struct tp_node *operand = n->b; operand; operand = operand->next) {
        struct tp_value right = tp_eval(run, operand->a);
        run->arena->line = n->line;
        if (!compare(run->arena, operand->op, left, right)) return tp_bool(false);
        left = right;
    }
    return tp_bool(true);
}

static struct tp_value eval_condition(struct tp_run *run, const struct tp_node *n)
{
    if (tp_true(tp_eval(run, n->b))) return tp_eval(run, n->a);
    return n->c ? tp_eval(run, n->c) : tp_undefined(NULL, TP_MISSING);
}

static struct tp_value eval_sign(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value v = tp_eval(run, n->a);
    struct tp_value negative = tp_negate(run->arena, v);
    if (n->kind == TP_N_NEGATE) return negative;
    return v.kind == TP_BOOL ? tp_int(v.as.b) : v;
}

static struct tp_value eval_binary(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value left = tp_eval(run, n->a), right = tp_eval(run, n->b);
    run->arena->line = n->line;
    return tp_binary(run->arena, n->op, left, right);
}

static struct tp_value eval_kind(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value v;
    switch ((enum tp_node_kind)n->kind) {
    case TP_N_CONST: return n->value;
    case TP_N_NAME: return tp_scope_get(run, &n->text);
    case TP_N_LIST:
    case TP_N_TUPLE: return eval_list(run, n);
    case TP_N_DICT: return eval_dict(run, n);
    case TP_N_ATTRIBUTE:
        v = tp_eval(run, n->a);
        run->arena->line = n->line;
        return tp_attribute(run, v, &n->text);
    case TP_N_ITEM: return eval_item(run, n);
    case TP_N_CALL: return eval_call(run, n);
    case TP_N_FILTER: return tp_eval_filter(run, n, tp_none());
    case TP_N_TEST: return eval_test(run, n);
    case TP_N_NOT: return tp_bool(!tp_true(tp_eval(run, n->a)));
    case TP_N_NEGATE:
    case TP_N_PLUS: return eval_sign(run, n);
    case TP_N_BINARY: return eval_binary(run, n);
    case TP_N_AND: v = tp_eval(run, n->a); return tp_true(v) ? tp_eval(run, n->b) : v;
    case TP_N_OR: v = tp_eval(run, n->a); return tp_true(v) ? v : tp_eval(run, n->b);
    case TP_N_CONCAT: return eval_concat(run, n);
    case TP_N_COMPARE: return eval_compare(run, n);
    case TP_N_CONDITION: return eval_condition(run, n);
    default: CHECK(false);
    }
    return tp_none();
}

struct tp_value tp_eval(struct tp_run *run, const struct tp_node *n)
{
    run->arena->line = n->line;
    tp_steps(run->arena, 1);
    if (++run->depth > TP_EVAL_DEPTH_MAX) {
        tp_fail(run->arena, ERR_LIMIT, "the template is nested too deeply while it runs");
    }
    struct tp_value v = eval_kind(run, n);
    run->depth--;
    return v;
}
