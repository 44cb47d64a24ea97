/* model/template_call.c - calls: binding arguments of builtins and of macros. */
#include <string.h>

#include "model/template_run.h"

static const struct tp_value missing = { .kind = TP_MISSING };

/* Position of `name` in "width first blank", or -1. */
static int param_index(const char *params, const struct tp_text *name)
{
    for (int i = 0; *params; i++) {
        size_t bytes = strcspn(params, " ");
        if (bytes == name->bytes && memcmp(params, name->data, bytes) == 0) return i;
        params += bytes + (params[bytes] == ' ');
    }
    return -1;
}

static unsigned param_count(const char *params)
{
    unsigned count = *params != '\0';
    for (; *params; params++) count += *params == ' ';
    return count;
}

static void bind(struct tp_call *c, const struct tp_builtin *f)
{
    const struct tp_args *args = c->raw;
    unsigned count = param_count(f->params);
    CHECK(count <= TP_ARGS_MAX);
    for (unsigned i = 0; i < TP_ARGS_MAX; i++) c->arg[i] = missing;
    if (args->count > count) {
        tp_fail(c->arena, ERR_FORMAT, "%s() takes %u arguments, %zu were given", f->name, count,
                args->count);
    }
    for (size_t i = 0; i < args->count; i++) c->arg[i] = args->positional[i];
    for (size_t i = 0; i < args->named_count; i++) {
        const struct tp_text *name = &args->named[i].name;
        int at = param_index(f->params, name);
        if (at < 0 || c->arg[at].kind != TP_MISSING) {
            tp_fail(c->arena, ERR_FORMAT, "%s() got an unexpected argument '%.*s'", f->name,
                    name->bytes > 60 ? 60 : (int)name->bytes, name->data);
        }
        c->arg[at] = args->named[i].value;
    }
    for (unsigned i = 0; i < f->required; i++) {
        if (c->arg[i].kind != TP_MISSING) continue;
        tp_fail(c->arena, ERR_FORMAT, "%s() needs %u arguments", f->name, f->required);
    }
}

struct tp_value tp_invoke(struct tp_run *run, const struct tp_builtin *f, struct tp_value self,
                          const struct tp_args *args)
{
    struct tp_call c = { .run = run, .arena = run->arena, .self = self, .raw = args };
    if (f->params) bind(&c, f);
    return f->call(&c);
}

/* Macros. */

static const struct tp_value *find_named(const struct tp_args *args, const struct tp_text *name)
{
    for (size_t i = 0; i < args->named_count; i++) {
        const struct tp_text *t = &args->named[i].name;
        if (t->bytes == name->bytes && memcmp(t->data, name->data, t->bytes) == 0) {
            return &args->named[i].value;
        }
    }
    return NULL;
}

static bool is_param(const struct tp_node *macro, const struct tp_text *name)
{
    for (const struct tp_node *n = macro->a; n; n = n->next) {
        bool same = n->text.bytes == name->bytes;
        if (same && memcmp(n->text.data, name->data, name->bytes) == 0) return true;
    }
    return false;
}

/* What was given beyond the parameters: for `varargs`, `kwargs` and `caller`, or an error. */
static void bind_rest(struct tp_run *run, const struct tp_node *macro, const struct tp_args *args,
                      size_t params)
{
    struct tp_arena *a = run->arena;
    int name_bytes = macro->text.bytes > 60 ? 60 : (int)macro->text.bytes;
    struct tp_list *more = tp_list_new(a, 0, TP_SHAPE_TUPLE);
    struct tp_dict *named = tp_dict_new(a);
    for (size_t i = params; i < args->count; i++) tp_list_add(a, more, args->positional[i]);
    if (more->count && !(macro->op & TP_USES_VARARGS)) {
        tp_fail(a, ERR_FORMAT, "macro '%.*s' takes not more than %zu arguments", name_bytes,
                macro->text.data, params);
    }
    for (size_t i = 0; i < args->named_count; i++) {
        const struct tp_text *name = &args->named[i].name;
        if (is_param(macro, name)) continue;
        bool caller = tp_text_is(name, "caller");
        if (caller && (macro->op & TP_USES_CALLER)) {
            tp_scope_set(run, *name, args->named[i].value);
            continue;
        }
        if (caller || !(macro->op & TP_USES_KWARGS)) {
            tp_fail(a, ERR_FORMAT, "macro '%.*s' takes no keyword argument '%.*s'", name_bytes,
                    macro->text.data, name->bytes > 60 ? 60 : (int)name->bytes, name->data);
        }
        tp_dict_set(a, named, tp_text(a, name->data, name->bytes), args->named[i].value);
    }
    if (macro->op & TP_USES_VARARGS) {
        tp_scope_set(run, (struct tp_text){ "varargs", 7 }, tp_list(more));
    }
    if (macro->op & TP_USES_KWARGS) {
        tp_scope_set(run, (struct tp_text){ "kwargs", 6 }, tp_dict(named));
    }
}

static void bind_macro(struct tp_run *run, const struct tp_node *macro, const struct tp_args *args)
{
    size_t params = 0;
    for (const struct tp_node *n = macro->a; n; n = n->next, params++) {
        const struct tp_value *named = find_named(args, &n->text);
        if (params < args->count && named) {
            tp_fail(run->arena, ERR_FORMAT, "an argument of a macro is given twice");
        }
        struct tp_value v = tp_undefined(&n->text, TP_MISSING);
        if (params < args->count) v = args->positional[params];
        else if (named) v = *named;
        else if (n->a) v = tp_eval(run, n->a);
        tp_scope_set(run, n->text, v);
    }
    bind_rest(run, macro, args, params);
}

static struct tp_value call_macro(struct tp_run *run, const struct tp_macro *m,
                                  const struct tp_args *args)
{
    if (++run->macros > TEMPLATE_DEPTH_MAX) {
        tp_fail(run->arena, ERR_LIMIT, "macros call each other more than %d deep",
                TEMPLATE_DEPTH_MAX);
    }
    struct tp_scope *old = run->scope;
    run->scope = tp_scope_push(run, m->scope);
    bind_macro(run, m->node, args);
    struct tp_value v = tp_capture(run, m->node->c);
    run->scope = old;
    run->macros--;
    return v;
}

struct tp_value tp_call_value(struct tp_run *run, struct tp_value callee,
                              const struct tp_args *args)
{
    switch (callee.kind) {
    case TP_MACRO: return call_macro(run, callee.as.macro, args);
    case TP_BOUND: return tp_invoke(run, callee.as.bound->function, callee.as.bound->self, args);
    case TP_FUNCTION: return tp_invoke(run, callee.as.function, tp_none(), args);
    case TP_JOINER: {
        struct tp_cycler *j = callee.as.cycler;
        return j->at++ ? j->items->items[0] : tp_word(run->arena, "");
    }
    case TP_UNDEFINED: tp_fail_undefined(run->arena, callee);
    default:
        tp_fail(run->arena, ERR_FORMAT, "'%s' object is not callable", tp_kind_name(callee));
    }
}
