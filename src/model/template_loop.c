/* model/template_loop.c - what `for` walks, the `loop` variable, and assigning to targets. */
#include "model/template_run.h"

static void assign_tuple(struct tp_run *run, const struct tp_node *target, struct tp_value v)
{
    const struct tp_list *l = tp_iterate(run->arena, v);
    size_t i = 0;
    for (const struct tp_node *n = target->a; n; n = n->next, i++) {
        if (i < l->count) tp_assign(run, n, l->items[i]);
    }
    if (i != l->count) {
        tp_fail(run->arena, ERR_FORMAT, "%zu values to unpack, not %zu", l->count, i);
    }
}

void tp_assign(struct tp_run *run, const struct tp_node *target, struct tp_value v)
{
    tp_steps(run->arena, 1);
    if (target->kind == TP_N_NAME) tp_scope_set(run, target->text, v);
    else if (target->kind == TP_N_TUPLE) assign_tuple(run, target, v);
    else {
        struct tp_value space = tp_scope_get(run, &target->text);
        if (space.kind != TP_SPACE) {
            tp_fail(run->arena, ERR_FORMAT, "cannot assign attribute on non-namespace object");
        }
        tp_dict_set(run->arena, space.as.dict, target->value, v);
    }
}

struct tp_loop *tp_loop_new(struct tp_run *run, const struct tp_node *node, struct tp_value over)
{
    struct tp_loop *loop = tp_alloc(run->arena, sizeof *loop);
    loop->node = node;
    loop->scope = run->scope;
    loop->source = tp_iterate(run->arena, over);
    loop->filtered = node->d != NULL;
    return loop;
}

static bool wanted(struct tp_run *run, struct tp_loop *loop, struct tp_value item)
{
    if (!loop->filtered) return true;
    struct tp_scope *old = run->scope;
    run->scope = tp_scope_push(run, loop->scope);
    tp_assign(run, loop->node->a, item);
    bool yes = tp_true(tp_eval(run, loop->node->d));
    run->scope = old;
    return yes;
}

/* Makes sure that the item after the current one is known; false at the end. */
static bool peek(struct tp_run *run, struct tp_loop *loop)
{
    while (!loop->has_after && loop->next < loop->source->count) {
        struct tp_value item = loop->source->items[loop->next++];
        tp_steps(run->arena, 1);
        if (!wanted(run, loop, item)) continue;
        loop->after = item;
        loop->has_after = true;
    }
    return loop->has_after;
}

bool tp_loop_advance(struct tp_run *run, struct tp_loop *loop)
{
    if (!peek(run, loop)) return false;
    loop->before = loop->current;
    loop->has_before = loop->index > 0;
    loop->current = loop->after;
    loop->has_after = false;
    loop->index++;
    return true;
}

/* Asks `if` for all that is left, to know how many there are. */
static size_t length(struct tp_run *run, struct tp_loop *loop)
{
    if (loop->filtered) {
        struct tp_list *rest = tp_list_new(run->arena, 0, TP_SHAPE_LIST);
        while (peek(run, loop)) {
            tp_list_add(run->arena, rest, loop->after);
            loop->has_after = false;
        }
        loop->source = rest;
        loop->next = 0;
        loop->filtered = false;
    }
    return loop->index + loop->has_after + (loop->source->count - loop->next);
}

static struct tp_value cycle(struct tp_call *c)
{
    if (c->raw->count == 0) tp_fail(c->arena, ERR_FORMAT, "no items for cycling given");
    return c->raw->positional[(c->self.as.loop->index - 1) % c->raw->count];
}

static struct tp_value changed(struct tp_call *c)
{
    struct tp_loop *loop = c->self.as.loop;
    struct tp_list *now = tp_list_new(c->arena, 0, TP_SHAPE_TUPLE);
    for (size_t i = 0; i < c->raw->count; i++) tp_list_add(c->arena, now, c->raw->positional[i]);
    bool same = loop->changed && tp_equal(c->arena, tp_list(loop->changed), tp_list(now));
    loop->changed = now;
    return tp_bool(!same);
}

static const struct tp_builtin *find_loop_method(const struct tp_text *name)
{
    static const struct tp_builtin rows[] = {
        { "cycle", NULL, 0, cycle },
        { "changed", NULL, 0, changed },
        { NULL, NULL, 0, NULL },
    };
    return tp_find_row(rows, name);
}

struct tp_value tp_loop_attribute(struct tp_run *run, struct tp_loop *loop,
                                  const struct tp_text *name)
{
    int64_t index = (int64_t)loop->index;
    struct tp_value self = { .kind = TP_LOOP, .as.loop = loop };
    if (tp_text_is(name, "index")) return tp_int(index);
    if (tp_text_is(name, "index0")) return tp_int(index - 1);
    if (tp_text_is(name, "first")) return tp_bool(index == 1);
    if (tp_text_is(name, "last")) return tp_bool(!peek(run, loop));
    if (tp_text_is(name, "depth")) return tp_int(1);
    if (tp_text_is(name, "depth0")) return tp_int(0);
    if (tp_text_is(name, "length")) return tp_int((int64_t)length(run, loop));
    if (tp_text_is(name, "revindex")) return tp_int((int64_t)length(run, loop) - index + 1);
    if (tp_text_is(name, "revindex0")) return tp_int((int64_t)length(run, loop) - index);
    if (tp_text_is(name, "previtem")) {
        return loop->has_before ? loop->before : tp_undefined(name, TP_LOOP);
    }
    if (tp_text_is(name, "nextitem")) {
        return peek(run, loop) ? loop->after : tp_undefined(name, TP_LOOP);
    }
    const struct tp_builtin *method = find_loop_method(name);
    if (!method) return tp_undefined(name, TP_LOOP);
    struct tp_bound *b = tp_alloc(run->arena, sizeof *b);
    *b = (struct tp_bound){ self, method };
    return (struct tp_value){ .kind = TP_BOUND, .as.bound = b };
}
