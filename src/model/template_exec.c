/* model/template_exec.c - runs statements: scopes, output, loops, macros' definitions. */
#include <jansson.h>
#include <string.h>

#include "model/template_run.h"

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static enum flow exec_body(struct tp_run *run, const struct tp_node *first);

/* Scopes. */

struct tp_scope *tp_scope_push(struct tp_run *run, struct tp_scope *parent)
{
    struct tp_scope *s = tp_alloc(run->arena, sizeof *s);
    s->parent = parent;
    return s;
}

static struct tp_binding *find(struct tp_run *run, const struct tp_scope *s,
                               const struct tp_text *name)
{
    size_t seen = 0;
    struct tp_binding *b = s->first;
    for (; b; b = b->next, seen++) {
        if (b->name.bytes == name->bytes && memcmp(b->name.data, name->data, name->bytes) == 0) {
            break;
        }
    }
    tp_pay_items(run->arena, seen);
    return b;
}

static void bind(struct tp_run *run, struct tp_scope *s, struct tp_text name, struct tp_value v)
{
    struct tp_binding *b = find(run, s, &name);
    if (!b) {
        b = tp_alloc(run->arena, sizeof *b);
        b->name = name;
        b->next = s->first;
        s->first = b;
    }
    b->value = v;
}

void tp_scope_set(struct tp_run *run, struct tp_text name, struct tp_value v)
{
    bind(run, run->scope, name, v);
}

struct tp_value tp_scope_get(struct tp_run *run, const struct tp_text *name)
{
    for (const struct tp_scope *s = run->scope; s; s = s->parent) {
        const struct tp_binding *b = find(run, s, name);
        if (b) return b->value;
    }
    const json_t *j = json_object_getn(run->variables, name->data, name->bytes);
    const struct tp_builtin *function = j ? NULL : tp_find_global(name);
    if (!j && !function) return tp_undefined(name, TP_MISSING);
    struct tp_value v = { .kind = TP_FUNCTION, .as.function = function };
    if (j) v = tp_from_json(run->arena, j);
    /* Kept, so that a list is the same list whenever it is named. */
    bind(run, run->root, *name, v);
    return v;
}

/* Output. */

static void emit(struct tp_run *run, const char *data, size_t bytes)
{
    if (run->capture) {
        tp_sink_add(run->capture, data, bytes);
        return;
    }
    tp_pay_bytes(run->arena, bytes);
    if (bytes > TEMPLATE_OUTPUT_BYTES_MAX - (run->out->size - run->out_start) ||
        !buf_add(run->out, data, bytes)) {
        tp_fail(run->arena, ERR_LIMIT, "the prompt is longer than %d bytes",
                TEMPLATE_OUTPUT_BYTES_MAX);
    }
}

static void emit_value(struct tp_run *run, struct tp_value v)
{
    const struct tp_text *t = v.kind == TP_UNDEFINED ? NULL : tp_str(run->arena, v);
    if (t) emit(run, t->data, t->bytes);
}

/* What `body` prints, in the scope that is current. */
struct tp_value tp_capture(struct tp_run *run, const struct tp_node *body)
{
    struct tp_sink s = { .arena = run->arena }, *old = run->capture;
    run->capture = &s;
    exec_body(run, body);
    run->capture = old;
    return tp_sink_take(&s);
}

static struct tp_value capture_scoped(struct tp_run *run, const struct tp_node *body)
{
    struct tp_scope *old = run->scope;
    run->scope = tp_scope_push(run, old);
    struct tp_value v = tp_capture(run, body);
    run->scope = old;
    return v;
}

/* Statements. */

static enum flow exec_if(struct tp_run *run, const struct tp_node *n)
{
    for (const struct tp_node *branch = n->a; branch; branch = branch->next) {
        if (!branch->a || tp_true(tp_eval(run, branch->a))) return exec_body(run, branch->b);
    }
    return FLOW_ON;
}

static void exec_for(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value over = tp_eval(run, n->b);
    run->arena->line = n->line;
    struct tp_loop *loop = tp_loop_new(run, n, over);
    struct tp_scope *old = run->scope;
    struct tp_value self = { .kind = TP_LOOP, .as.loop = loop };
    enum flow flow = FLOW_ON;
    while (flow != FLOW_BREAK && tp_loop_advance(run, loop)) {
        run->scope = tp_scope_push(run, old);
        tp_scope_set(run, (struct tp_text){ "loop", 4 }, self);
        tp_assign(run, n->a, loop->current);
        flow = exec_body(run, n->c);
    }
    run->scope = old;
    if (loop->index == 0 && n->e) {
        run->scope = tp_scope_push(run, old);
        exec_body(run, n->e);
        run->scope = old;
    }
}

static struct tp_value macro_new(struct tp_run *run, const struct tp_node *n)
{
    struct tp_macro *m = tp_alloc(run->arena, sizeof *m);
    *m = (struct tp_macro){ n, run->scope };
    return (struct tp_value){ .kind = TP_MACRO, .as.macro = m };
}

static void exec_call_block(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value callee = tp_eval(run, n->a->a);
    struct tp_args args = tp_eval_args(run, n->a->b), with = args;
    with.named = tp_alloc_array(run->arena, args.named_count + 1, sizeof *with.named);
    if (args.named_count) memcpy(with.named, args.named, args.named_count * sizeof *with.named);
    with.named[with.named_count++] = (struct tp_named){ n->b->text, macro_new(run, n->b) };
    run->arena->line = n->line;
    emit_value(run, tp_call_value(run, callee, &with));
}

static enum flow exec_with(struct tp_run *run, const struct tp_node *n)
{
    /* Values are asked in the scope outside: {% with a=1, b=a %} does not see the new a. */
    struct tp_scope *old = run->scope, *inner = tp_scope_push(run, old);
    for (const struct tp_node *param = n->a; param; param = param->next) {
        bind(run, inner, param->text, tp_eval(run, param->a));
    }
    run->scope = inner;
    enum flow flow = exec_body(run, n->c);
    run->scope = old;
    return flow;
}

static void exec_set_block(struct tp_run *run, const struct tp_node *n)
{
    struct tp_value v = capture_scoped(run, n->c);
    if (n->b) v = tp_eval_filter(run, n->b, v);
    tp_assign(run, n->a, v);
}

static enum flow exec_statement(struct tp_run *run, const struct tp_node *n)
{
    switch ((enum tp_node_kind)n->kind) {
    case TP_N_DATA: emit(run, n->text.data, n->text.bytes); return FLOW_ON;
    case TP_N_PRINT: emit_value(run, tp_eval(run, n->a)); return FLOW_ON;
    case TP_N_DO: tp_eval(run, n->a); return FLOW_ON;
    case TP_N_IF: return exec_if(run, n);
    case TP_N_FOR: exec_for(run, n); return FLOW_ON;
    case TP_N_SET: tp_assign(run, n->a, tp_eval(run, n->b)); return FLOW_ON;
    case TP_N_SET_BLOCK: exec_set_block(run, n); return FLOW_ON;
    case TP_N_MACRO: tp_scope_set(run, n->text, macro_new(run, n)); return FLOW_ON;
    case TP_N_CALL_BLOCK: exec_call_block(run, n); return FLOW_ON;
    case TP_N_FILTER_BLOCK:
        emit_value(run, tp_eval_filter(run, n->a, capture_scoped(run, n->c)));
        return FLOW_ON;
    case TP_N_WITH: return exec_with(run, n);
    case TP_N_BREAK: return FLOW_BREAK;
    case TP_N_CONTINUE: return FLOW_CONTINUE;
    default: CHECK(false);
    }
    return FLOW_ON;
}

static enum flow exec_body(struct tp_run *run, const struct tp_node *first)
{
    if (++run->depth > TP_EVAL_DEPTH_MAX) {
        tp_fail(run->arena, ERR_LIMIT, "the template is nested too deeply while it runs");
    }
    enum flow flow = FLOW_ON;
    for (const struct tp_node *n = first; n && flow == FLOW_ON; n = n->next) {
        run->arena->line = n->line;
        tp_steps(run->arena, 1);
        flow = exec_statement(run, n);
    }
    run->depth--;
    return flow;
}

void tp_render(struct tp_run *run, const struct tp_node *body)
{
    run->root = run->scope = tp_scope_push(run, NULL);
    /* Template and variables are two levels: {% set messages = ... %} hides, never replaces. */
    run->scope = tp_scope_push(run, run->root);
    exec_body(run, body);
}
