/* model/template_expr.c - parses expressions: one function a level of Jinja's precedence.
 *
 *   condition < or < and < not < comparison < + - < ~ < * / // % < ** < sign < filter, test
 *   < . [] ()
 */
#include <string.h>

#include "model/template_builtin.h"
#include "model/template_syntax.h"

static struct tp_node *parse_unary(struct tp_parser *p, bool with_filter);

static struct tp_node *binary(struct tp_parser *p, enum tp_node_kind kind, unsigned op,
                              struct tp_node *left, struct tp_node *right)
{
    struct tp_node *n = tp_node_new(p, kind, left->line);
    n->op = (uint16_t)op;
    tp_node_fill(p, n, left, right, NULL);
    return n;
}

static bool at_list_end(const struct tp_parser *p, const char *stop)
{
    return p->now.kind == TP_T_PRINT_END || p->now.kind == TP_T_BLOCK_END || tp_at_op(p, ')') ||
           (stop && tp_at_name(p, stop));
}

static struct tp_node *list_node(struct tp_parser *p, enum tp_node_kind kind, unsigned line,
                                 const struct tp_chain *items)
{
    struct tp_node *n = tp_node_new(p, kind, line);
    n->a = items->first;
    tp_node_raise(p, n, items->height);
    return n;
}

/* `(` was read: an expression in brackets, or a tuple. */
static struct tp_node *parse_brackets(struct tp_parser *p, unsigned line)
{
    struct tp_chain items = tp_chain_new();
    bool tuple = false;
    while (!at_list_end(p, NULL)) {
        tp_chain_add(&items, tp_parse_expression(p, true));
        if (!tp_skip_op(p, ',')) break;
        tuple = true;
    }
    tp_expect_op(p, ')');
    return tuple || !items.first ? list_node(p, TP_N_TUPLE, line, &items) : items.first;
}

static struct tp_node *parse_list(struct tp_parser *p, unsigned line)
{
    struct tp_chain items = tp_chain_new();
    while (!tp_at_op(p, ']')) {
        if (items.first) tp_expect_op(p, ',');
        if (tp_at_op(p, ']')) break;
        tp_chain_add(&items, tp_parse_expression(p, true));
    }
    tp_expect_op(p, ']');
    return list_node(p, TP_N_LIST, line, &items);
}

static struct tp_node *parse_dict(struct tp_parser *p, unsigned line)
{
    struct tp_chain items = tp_chain_new();
    while (!tp_at_op(p, '}')) {
        if (items.first) tp_expect_op(p, ',');
        if (tp_at_op(p, '}')) break;
        tp_chain_add(&items, tp_parse_expression(p, true));
        tp_expect_op(p, ':');
        tp_chain_add(&items, tp_parse_expression(p, true));
    }
    tp_expect_op(p, '}');
    return list_node(p, TP_N_DICT, line, &items);
}

static struct tp_node *constant(struct tp_parser *p, unsigned line, struct tp_value v)
{
    struct tp_node *n = tp_node_new(p, TP_N_CONST, line);
    n->value = v;
    return n;
}

static struct tp_node *parse_string(struct tp_parser *p)
{
    unsigned line = p->now.line;
    struct tp_text text = p->now.text;
    tp_advance(p);
    if (p->now.kind == TP_T_STRING) {
        struct tp_sink s = { .arena = p->arena };
        tp_sink_add(&s, text.data, text.bytes);
        for (; p->now.kind == TP_T_STRING; tp_advance(p)) {
            tp_sink_add(&s, p->now.text.data, p->now.text.bytes);
        }
        text = *tp_sink_take(&s).as.text;
    }
    return constant(p, line, tp_text(p->arena, text.data, text.bytes));
}

static struct tp_node *parse_name(struct tp_parser *p)
{
    unsigned line = p->now.line;
    struct tp_text name = tp_expect_name(p);
    if (tp_text_is(&name, "true") || tp_text_is(&name, "True")) {
        return constant(p, line, tp_bool(true));
    }
    if (tp_text_is(&name, "false") || tp_text_is(&name, "False")) {
        return constant(p, line, tp_bool(false));
    }
    if (tp_text_is(&name, "none") || tp_text_is(&name, "None")) return constant(p, line, tp_none());
    if (tp_text_is(&name, "varargs")) p->uses |= TP_USES_VARARGS;
    if (tp_text_is(&name, "kwargs")) p->uses |= TP_USES_KWARGS;
    if (tp_text_is(&name, "caller")) p->uses |= TP_USES_CALLER;
    struct tp_node *n = tp_node_new(p, TP_N_NAME, line);
    n->text = name;
    return n;
}

static struct tp_node *parse_primary(struct tp_parser *p)
{
    unsigned line = p->now.line;
    switch (p->now.kind) {
    case TP_T_NAME: return parse_name(p);
    case TP_T_STRING: return parse_string(p);
    case TP_T_INT:
    case TP_T_FLOAT: {
        struct tp_value v = p->now.value;
        tp_advance(p);
        return constant(p, line, v);
    }
    default: break;
    }
    tp_enter(p);
    struct tp_node *n = NULL;
    if (tp_skip_op(p, '(')) n = parse_brackets(p, line);
    else if (tp_skip_op(p, '[')) n = parse_list(p, line);
    else if (tp_skip_op(p, '{')) n = parse_dict(p, line);
    else tp_unexpected(p, "an expression");
    tp_leave(p);
    return n;
}

/* Positional arguments, then name=value; `(` was read. */
static struct tp_chain parse_arguments(struct tp_parser *p)
{
    struct tp_chain args = tp_chain_new();
    bool named = false;
    while (!tp_at_op(p, ')')) {
        if (args.first) tp_expect_op(p, ',');
        if (tp_at_op(p, ')')) break;
        if (p->now.kind == TP_T_NAME && p->ahead.kind == TP_T_OPERATOR && p->ahead.op == '=') {
            struct tp_node *n = tp_node_new(p, TP_N_KEYWORD, p->now.line);
            n->text = tp_expect_name(p);
            tp_expect_op(p, '=');
            tp_node_fill(p, n, tp_parse_expression(p, true), NULL, NULL);
            tp_chain_add(&args, n);
            named = true;
            continue;
        }
        if (named) tp_unexpected(p, "an argument with a name");
        if (tp_at_op(p, '*') || tp_at_op(p, TP_OP_POW)) {
            tp_syntax(p, &p->now, "arguments from a list or dict are not supported");
        }
        tp_chain_add(&args, tp_parse_expression(p, true));
    }
    tp_expect_op(p, ')');
    return args;
}

static struct tp_node *with_arguments(struct tp_parser *p, struct tp_node *n, struct tp_node *a)
{
    tp_node_fill(p, n, a, NULL, NULL);
    if (!tp_skip_op(p, '(')) return n;
    tp_enter(p);
    struct tp_chain args = parse_arguments(p);
    tp_leave(p);
    n->b = args.first;
    tp_node_raise(p, n, args.height);
    return n;
}

static struct tp_node *parse_index(struct tp_parser *p)
{
    struct tp_node *part[3] = { NULL, NULL, NULL };
    unsigned line = p->now.line;
    bool slice = false;
    for (int i = 0; i < 3; i++) {
        if (!tp_at_op(p, ':') && !tp_at_op(p, ']') && !tp_at_op(p, ',')) {
            part[i] = tp_parse_expression(p, true);
        }
        if (i == 2 || !tp_skip_op(p, ':')) break;
        slice = true;
    }
    if (!slice && !part[0]) tp_unexpected(p, "an index");
    if (!slice) return part[0];
    struct tp_node *n = tp_node_new(p, TP_N_SLICE, line);
    tp_node_fill(p, n, part[0], part[1], part[2]);
    return n;
}

/* `[` was read. */
static struct tp_node *parse_item(struct tp_parser *p, struct tp_node *object)
{
    tp_enter(p);
    struct tp_chain indices = tp_chain_new();
    tp_chain_add(&indices, parse_index(p));
    while (tp_skip_op(p, ',')) {
        struct tp_node *index = parse_index(p);
        if (index->kind == TP_N_SLICE || indices.first->kind == TP_N_SLICE) {
            tp_syntax(p, &p->now, "slices of more than one dimension are not supported");
        }
        tp_chain_add(&indices, index);
    }
    tp_expect_op(p, ']');
    tp_leave(p);
    struct tp_node *index = indices.first;
    if (index->next) index = list_node(p, TP_N_TUPLE, object->line, &indices);
    return binary(p, TP_N_ITEM, 0, object, index);
}

static struct tp_node *parse_dot(struct tp_parser *p, struct tp_node *object)
{
    if (p->now.kind == TP_T_INT) {
        struct tp_node *index = constant(p, p->now.line, p->now.value);
        tp_advance(p);
        return binary(p, TP_N_ITEM, 0, object, index);
    }
    struct tp_node *n = tp_node_new(p, TP_N_ATTRIBUTE, p->now.line);
    n->text = tp_expect_name(p);
    tp_node_fill(p, n, object, NULL, NULL);
    return n;
}

static struct tp_node *parse_call(struct tp_parser *p, struct tp_node *callee)
{
    return with_arguments(p, tp_node_new(p, TP_N_CALL, p->now.line), callee);
}

static struct tp_node *parse_postfix(struct tp_parser *p, struct tp_node *n)
{
    for (;;) {
        if (tp_skip_op(p, '.')) n = parse_dot(p, n);
        else if (tp_at_op(p, '(')) n = parse_call(p, n);
        else if (tp_skip_op(p, '[')) n = parse_item(p, n);
        else return n;
    }
}

struct tp_node *tp_parse_filter(struct tp_parser *p, struct tp_node *operand)
{
    for (;;) {
        struct tp_node *n = tp_node_new(p, TP_N_FILTER, p->now.line);
        n->text = tp_expect_name(p);
        n->function = tp_find_filter(&n->text);
        operand = with_arguments(p, n, operand);
        if (!tp_skip_op(p, '|')) return operand;
    }
}

static bool at_test_argument(const struct tp_parser *p)
{
    switch (p->now.kind) {
    case TP_T_NAME:
        return !tp_at_name(p, "else") && !tp_at_name(p, "or") && !tp_at_name(p, "and");
    case TP_T_STRING:
    case TP_T_INT:
    case TP_T_FLOAT: return true;
    default: return tp_at_op(p, '[') || tp_at_op(p, '{');
    }
}

/* `is` was read. */
static struct tp_node *parse_test(struct tp_parser *p, struct tp_node *operand)
{
    bool negated = tp_skip_name(p, "not");
    struct tp_node *n = tp_node_new(p, TP_N_TEST, p->now.line);
    n->text = tp_expect_name(p);
    n->function = tp_find_test(&n->text);
    if (tp_at_op(p, '(') || !at_test_argument(p)) n = with_arguments(p, n, operand);
    else {
        if (tp_at_name(p, "is")) tp_syntax(p, &p->now, "tests cannot be chained with `is`");
        tp_enter(p);
        struct tp_node *argument = parse_postfix(p, parse_primary(p));
        tp_leave(p);
        tp_node_fill(p, n, operand, argument, NULL);
    }
    if (!negated) return n;
    struct tp_node *not = tp_node_new(p, TP_N_NOT, n->line);
    tp_node_fill(p, not, n, NULL, NULL);
    return not;
}

static struct tp_node *parse_unary(struct tp_parser *p, bool with_filter)
{
    struct tp_node *n;
    bool minus = tp_at_op(p, '-');
    if (minus || tp_at_op(p, '+')) {
        n = tp_node_new(p, minus ? TP_N_NEGATE : TP_N_PLUS, p->now.line);
        tp_advance(p);
        tp_enter(p);
        tp_node_fill(p, n, parse_unary(p, false), NULL, NULL);
        tp_leave(p);
    }
    else n = parse_primary(p);
    n = parse_postfix(p, n);
    while (with_filter) {
        if (tp_skip_op(p, '|')) n = tp_parse_filter(p, n);
        else if (tp_skip_name(p, "is")) n = parse_test(p, n);
        else if (tp_at_op(p, '(')) n = parse_call(p, n);
        else break;
    }
    return n;
}

static struct tp_node *parse_power(struct tp_parser *p)
{
    struct tp_node *left = parse_unary(p, true);
    while (tp_skip_op(p, TP_OP_POW)) {
        left = binary(p, TP_N_BINARY, TP_OP_POW, left, parse_unary(p, true));
    }
    return left;
}

static struct tp_node *parse_product(struct tp_parser *p)
{
    struct tp_node *left = parse_power(p);
    while (tp_at_op(p, '*') || tp_at_op(p, '/') || tp_at_op(p, TP_OP_FLOORDIV) ||
           tp_at_op(p, '%')) {
        unsigned op = p->now.op;
        tp_advance(p);
        left = binary(p, TP_N_BINARY, op, left, parse_power(p));
    }
    return left;
}

static struct tp_node *parse_concat(struct tp_parser *p)
{
    struct tp_node *first = parse_product(p);
    if (!tp_at_op(p, '~')) return first;
    struct tp_chain items = tp_chain_new();
    tp_chain_add(&items, first);
    while (tp_skip_op(p, '~')) tp_chain_add(&items, parse_product(p));
    return list_node(p, TP_N_CONCAT, first->line, &items);
}

static struct tp_node *parse_sum(struct tp_parser *p)
{
    struct tp_node *left = parse_concat(p);
    while (tp_at_op(p, '+') || tp_at_op(p, '-')) {
        unsigned op = p->now.op;
        tp_advance(p);
        left = binary(p, TP_N_BINARY, op, left, parse_concat(p));
    }
    return left;
}

/* The comparison that stands here, read over; 0 when there is none. */
static unsigned skip_comparison(struct tp_parser *p)
{
    static const unsigned known[] = { TP_OP_EQ, TP_OP_NE, TP_OP_GE, TP_OP_LE, '<', '>' };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (tp_skip_op(p, known[i])) return known[i];
    }
    if (tp_skip_name(p, "in")) return TP_OP_IN;
    bool in_ahead = p->ahead.kind == TP_T_NAME && tp_text_is(&p->ahead.text, "in");
    if (!tp_at_name(p, "not") || !in_ahead) return 0;
    tp_advance(p);
    tp_advance(p);
    return TP_OP_NOT_IN;
}

static struct tp_node *parse_comparison(struct tp_parser *p)
{
    struct tp_node *first = parse_sum(p);
    struct tp_chain operands = tp_chain_new();
    for (unsigned op; (op = skip_comparison(p)) != 0;) {
        struct tp_node *n = tp_node_new(p, TP_N_OPERAND, p->now.line);
        n->op = (uint16_t)op;
        tp_node_fill(p, n, parse_sum(p), NULL, NULL);
        tp_chain_add(&operands, n);
    }
    if (!operands.first) return first;
    struct tp_node *n = binary(p, TP_N_COMPARE, 0, first, operands.first);
    tp_node_raise(p, n, operands.height);
    return n;
}

static struct tp_node *parse_not(struct tp_parser *p)
{
    if (!tp_at_name(p, "not")) return parse_comparison(p);
    struct tp_node *n = tp_node_new(p, TP_N_NOT, p->now.line);
    tp_advance(p);
    tp_enter(p);
    tp_node_fill(p, n, parse_not(p), NULL, NULL);
    tp_leave(p);
    return n;
}

static struct tp_node *parse_and(struct tp_parser *p)
{
    struct tp_node *left = parse_not(p);
    while (tp_skip_name(p, "and")) left = binary(p, TP_N_AND, 0, left, parse_not(p));
    return left;
}

static struct tp_node *parse_or(struct tp_parser *p)
{
    struct tp_node *left = parse_and(p);
    while (tp_skip_name(p, "or")) left = binary(p, TP_N_OR, 0, left, parse_and(p));
    return left;
}

struct tp_node *tp_parse_expression(struct tp_parser *p, bool with_condition)
{
    tp_enter(p);
    struct tp_node *n = parse_or(p);
    while (with_condition && tp_skip_name(p, "if")) {
        struct tp_node *test = parse_or(p), *other = NULL;
        if (tp_skip_name(p, "else")) other = tp_parse_expression(p, true);
        struct tp_node *condition = tp_node_new(p, TP_N_CONDITION, n->line);
        tp_node_fill(p, condition, n, test, other);
        n = condition;
    }
    tp_leave(p);
    return n;
}

struct tp_node *tp_parse_tuple(struct tp_parser *p, bool with_condition, const char *stop)
{
    struct tp_chain items = tp_chain_new();
    unsigned line = p->now.line;
    bool tuple = false;
    do {
        if (at_list_end(p, stop)) break;
        tp_chain_add(&items, tp_parse_expression(p, with_condition));
        if (tp_at_op(p, ',')) tuple = true;
    } while (tp_skip_op(p, ','));
    if (!items.first) tp_unexpected(p, "an expression");
    return tuple ? list_node(p, TP_N_TUPLE, line, &items) : items.first;
}

static struct tp_node *parse_one_target(struct tp_parser *p, bool with_space)
{
    if (tp_skip_op(p, '(') || tp_at_op(p, '[')) {
        bool list = tp_skip_op(p, '[');
        tp_enter(p);
        struct tp_node *n = tp_parse_target(p, NULL, with_space);
        tp_leave(p);
        tp_expect_op(p, list ? ']' : ')');
        return n;
    }
    struct tp_token at = p->now;
    struct tp_node *n = parse_name(p);
    if (n->kind != TP_N_NAME) tp_syntax(p, &at, "a constant cannot be assigned to");
    if (!with_space || !tp_skip_op(p, '.')) return n;
    struct tp_text member = tp_expect_name(p);
    n->kind = TP_N_SPACE_NAME;
    n->value = tp_text(p->arena, member.data, member.bytes);
    return n;
}

struct tp_node *tp_parse_target(struct tp_parser *p, const char *stop, bool with_space)
{
    struct tp_chain items = tp_chain_new();
    unsigned line = p->now.line;
    bool tuple = false;
    do {
        if (items.first && (at_list_end(p, stop) || tp_at_op(p, '=') || tp_at_op(p, ']'))) break;
        tp_chain_add(&items, parse_one_target(p, with_space));
        if (tp_at_op(p, ',')) tuple = true;
    } while (tp_skip_op(p, ','));
    return tuple ? list_node(p, TP_N_TUPLE, line, &items) : items.first;
}
