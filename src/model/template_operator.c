/* model/template_operator.c - + - * / // % ** as Python has them, within 64 bits. */
#include <math.h>
#include <string.h>

#include "model/template_builtin.h"
#include "model/template_run.h"

static _Noreturn void fail_operands(struct tp_arena *a, unsigned op, struct tp_value x,
                                    struct tp_value y)
{
    if (x.kind == TP_UNDEFINED) tp_fail_undefined(a, x);
    if (y.kind == TP_UNDEFINED) tp_fail_undefined(a, y);
    char text[3] = { (char)(op > 255 ? op >> 8 : op), (char)(op > 255 ? op : 0) };
    tp_fail(a, ERR_FORMAT, "unsupported operand types for %s: '%s' and '%s'", text,
            tp_kind_name(x), tp_kind_name(y));
}

static int64_t power(struct tp_arena *a, int64_t base, int64_t exponent)
{
    int64_t result = 1;
    bool over = false, base_over = false;
    for (; exponent > 0 && !over; exponent >>= 1) {
        if (exponent & 1) over = base_over || __builtin_mul_overflow(result, base, &result);
        base_over |= __builtin_mul_overflow(base, base, &base);
    }
    if (over) tp_fail(a, ERR_LIMIT, "a number does not fit 64 bits");
    return result;
}

static int64_t floor_div(int64_t x, int64_t y)
{
    int64_t q = x / y;
    return x % y != 0 && (x < 0) != (y < 0) ? q - 1 : q;
}

static struct tp_value int_binary(struct tp_arena *a, unsigned op, int64_t x, int64_t y)
{
    int64_t r = 0;
    bool over = false;
    if ((op == '/' || op == '%' || op == TP_OP_FLOORDIV) && y == 0) {
        tp_fail(a, ERR_FORMAT, "division by zero");
    }
    switch (op) {
    case '+': over = __builtin_add_overflow(x, y, &r); break;
    case '-': over = __builtin_sub_overflow(x, y, &r); break;
    case '*': over = __builtin_mul_overflow(x, y, &r); break;
    case '/': return tp_float((double)x / (double)y);
    case TP_OP_FLOORDIV:
        over = x == INT64_MIN && y == -1;
        if (!over) r = floor_div(x, y);
        break;
    case '%': r = y == -1 ? 0 : x - floor_div(x, y) * y; break;
    case TP_OP_POW:
        if (y < 0) return tp_float(pow((double)x, (double)y));
        return tp_int(power(a, x, y));
    default: CHECK(false);
    }
    if (over) tp_fail(a, ERR_LIMIT, "a number does not fit 64 bits");
    return tp_int(r);
}

static struct tp_value float_binary(struct tp_arena *a, unsigned op, double x, double y)
{
    if ((op == '/' || op == '%' || op == TP_OP_FLOORDIV) && y == 0) {
        tp_fail(a, ERR_FORMAT, "division by zero");
    }
    double rest;
    switch (op) {
    case '+': return tp_float(x + y);
    case '-': return tp_float(x - y);
    case '*': return tp_float(x * y);
    case '/': return tp_float(x / y);
    case TP_OP_POW: return tp_float(pow(x, y));
    default: break;
    }
    rest = fmod(x, y);
    if (rest != 0 && (rest < 0) != (y < 0)) rest += y;
    return tp_float(op == '%' ? rest : floor((x - rest) / y + 0.5));
}

static struct tp_value join_lists(struct tp_arena *a, const struct tp_list *x,
                                  const struct tp_list *y)
{
    struct tp_list *l = tp_list_new(a, x->count + y->count, x->shape);
    tp_pay_items(a, x->count + y->count);
    if (x->count) memcpy(l->items, x->items, x->count * sizeof *x->items);
    if (y->count) memcpy(l->items + x->count, y->items, y->count * sizeof *y->items);
    l->count = x->count + y->count;
    return tp_list(l);
}

static struct tp_value repeat(struct tp_arena *a, struct tp_value v, int64_t times)
{
    if (times < 0) times = 0;
    size_t unit = v.kind == TP_TEXT ? v.as.text->bytes : v.as.list->count;
    size_t each = v.kind == TP_TEXT ? 1 : sizeof(struct tp_value);
    if (unit == 0) times = 0;
    if (unit && (uint64_t)times > TEMPLATE_MEMORY_BYTES_MAX / each / unit) {
        tp_fail(a, ERR_LIMIT, "a repetition needs more than %zu bytes of memory",
                TEMPLATE_MEMORY_BYTES_MAX);
    }
    size_t count = (size_t)times * unit;
    if (v.kind == TP_LIST) {
        struct tp_list *l = tp_list_new(a, count, v.as.list->shape);
        tp_pay_items(a, count);
        for (; l->count < count; l->count++) l->items[l->count] = v.as.list->items[l->count % unit];
        return tp_list(l);
    }
    char *data = tp_alloc(a, count);
    tp_pay_bytes(a, count);
    for (size_t at = 0; at < count; at += unit) memcpy(data + at, v.as.text->data, unit);
    return tp_text(a, data, count);
}

static bool repeatable(struct tp_value v)
{
    return v.kind == TP_TEXT || (v.kind == TP_LIST && v.as.list->shape <= TP_SHAPE_TUPLE);
}

struct tp_value tp_binary(struct tp_arena *a, unsigned op, struct tp_value x, struct tp_value y)
{
    if (tp_is_int(x) && tp_is_int(y)) return int_binary(a, op, tp_as_int(x), tp_as_int(y));
    if (tp_is_number(x) && tp_is_number(y)) {
        return float_binary(a, op, tp_as_float(x), tp_as_float(y));
    }
    if (op == '+' && x.kind == TP_TEXT && y.kind == TP_TEXT) {
        struct tp_sink s = { .arena = a };
        tp_sink_add(&s, x.as.text->data, x.as.text->bytes);
        tp_sink_add(&s, y.as.text->data, y.as.text->bytes);
        return tp_sink_take(&s);
    }
    if (op == '+' && repeatable(x) && x.kind == y.kind && x.as.list->shape == y.as.list->shape) {
        return join_lists(a, x.as.list, y.as.list);
    }
    if (op == '*' && repeatable(x) && tp_is_int(y)) return repeat(a, x, tp_as_int(y));
    if (op == '*' && repeatable(y) && tp_is_int(x)) return repeat(a, y, tp_as_int(x));
    if (op == '%' && x.kind == TP_TEXT) {
        if (tp_is_shape(y, TP_SHAPE_TUPLE)) {
            return tp_percent(a, x.as.text, y.as.list->items, y.as.list->count, NULL);
        }
        return tp_percent(a, x.as.text, &y, 1, y.kind == TP_DICT ? y.as.dict : NULL);
    }
    fail_operands(a, op, x, y);
}

struct tp_value tp_negate(struct tp_arena *a, struct tp_value v)
{
    if (v.kind == TP_FLOAT) return tp_float(-v.as.f);
    if (!tp_is_int(v)) fail_operands(a, '-', v, v);
    return tp_binary(a, '-', tp_int(0), v);
}
