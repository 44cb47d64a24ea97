/* model/template_run.h - one rendering: scopes, output, and the parts of the evaluator.
 *
 * Private to src/model/template*.c.  Scopes are Jinja's: a loop's body, a macro, a block that is
 * captured and `with` have their own; `if` has not.  A macro sees the scope it was defined in.
 */
#ifndef RANKSERVE_MODEL_TEMPLATE_RUN_H
#define RANKSERVE_MODEL_TEMPLATE_RUN_H

#include <locale.h>
#include <time.h>

#include "common/mem.h"
#include "model/template_builtin.h"
#include "model/template_syntax.h"
#include "model/template_value.h"

struct tp_binding {
    struct tp_binding *next;
    struct tp_text name;
    struct tp_value value;
};
struct tp_scope {
    struct tp_scope *parent;
    struct tp_binding *first;
};

struct tp_run {
    struct tp_arena *arena;
    const struct json_t *variables;        /* made values when first named */
    struct tp_scope *root, *scope;
    struct buf *out;
    size_t out_start;                      /* bytes in `out` that are not ours */
    struct tp_sink *capture;               /* where output goes instead, or NULL */
    unsigned depth, macros;
    time_t now;
    locale_t locale;                       /* for upper and lower; 0: ASCII only */
};

struct tp_macro {
    const struct tp_node *node;
    struct tp_scope *scope;                /* where it was defined */
};

/* Items are found one ahead, because `if` of a loop is asked lazily. */
struct tp_loop {
    const struct tp_node *node;
    struct tp_scope *scope;                /* around the loop */
    struct tp_list *source;
    size_t next;                           /* in `source` */
    bool filtered;                         /* `if` is still to be asked */
    size_t index;                          /* items begun; the current one is number `index` */
    bool has_before, has_after;
    struct tp_value before, current, after;
    struct tp_list *changed;               /* what loop.changed saw last, or NULL */
};

/* template_exec.c */
void tp_render(struct tp_run *run, const struct tp_node *body);
struct tp_value tp_capture(struct tp_run *run, const struct tp_node *body);
struct tp_scope *tp_scope_push(struct tp_run *run, struct tp_scope *parent);
void tp_scope_set(struct tp_run *run, struct tp_text name, struct tp_value v);
struct tp_value tp_scope_get(struct tp_run *run, const struct tp_text *name);

/* template_loop.c */
struct tp_loop *tp_loop_new(struct tp_run *run, const struct tp_node *node, struct tp_value over);
bool tp_loop_advance(struct tp_run *run, struct tp_loop *loop);
struct tp_value tp_loop_attribute(struct tp_run *run, struct tp_loop *loop,
                                  const struct tp_text *name);
void tp_assign(struct tp_run *run, const struct tp_node *target, struct tp_value v);

/* template_eval.c */
struct tp_value tp_eval(struct tp_run *run, const struct tp_node *n);
/* A chain of filters; `block` is what its innermost one gets when it has no operand. */
struct tp_value tp_eval_filter(struct tp_run *run, const struct tp_node *n, struct tp_value block);
struct tp_args tp_eval_args(struct tp_run *run, const struct tp_node *list);

/* template_call.c */
struct tp_value tp_call_value(struct tp_run *run, struct tp_value callee,
                              const struct tp_args *args);
struct tp_value tp_invoke(struct tp_run *run, const struct tp_builtin *f, struct tp_value self,
                          const struct tp_args *args);

/* template_access.c */
/* object.name, object[index]: Jinja's order of looking at members and items. */
struct tp_value tp_attribute(struct tp_run *run, struct tp_value object,
                             const struct tp_text *name);
struct tp_value tp_item(struct tp_run *run, struct tp_value object, struct tp_value index);
/* "a.b.0" step by step, as selectattr, map(attribute=) and sort have it. */
struct tp_value tp_path(struct tp_run *run, struct tp_value object, struct tp_value path);
struct tp_value tp_slice(struct tp_arena *a, struct tp_value object, const struct tp_value part[3]);

/* template_operator.c */
struct tp_value tp_binary(struct tp_arena *a, unsigned op, struct tp_value x, struct tp_value y);
struct tp_value tp_negate(struct tp_arena *a, struct tp_value v);

#endif
