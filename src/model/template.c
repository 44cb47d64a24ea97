/* model/template.c - opens, renders and closes a chat template; see template.h.
 *
 * The parts: template_lex*.c text to tokens, template_parse.c and template_expr.c tokens to a tree,
 * template_exec.c statements, template_eval.c expressions, template_call.c, template_access.c,
 * template_operator.c, template_loop.c what they need, template_filter*.c, template_test.c,
 * template_method.c, template_global.c what can be called by name, template_string.c text,
 * template_json.c JSON, template_value.c, template_text.c and template_arena.c the ground.
 */
#include "model/template.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_run.h"

struct template {
    struct tp_arena arena;             /* of the tree; only read once it is made */
    const struct tp_node *body;
    locale_t locale;
};

/* One kind of newline, and without the last one, as Jinja reads templates. */
static char *normalise(struct tp_arena *a, const char *text, size_t *bytes)
{
    char *out = tp_alloc(a, *bytes + 1);
    size_t used = 0;
    for (size_t i = 0; i < *bytes; i++) {
        bool pair = text[i] == '\r' && i + 1 < *bytes && text[i + 1] == '\n';
        if (!pair) out[used++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (used && out[used - 1] == '\n') used--;
    *bytes = used;
    return out;
}

static void parse(struct template *t, const char *text, size_t bytes)
{
    const char *clean = normalise(&t->arena, text, &bytes);
    t->body = tp_parse(&t->arena, clean, bytes);
}

/* The one place that a failing parse jumps to. */
static enum err parse_guarded(struct template *t, const char *text, size_t bytes)
{
    if (setjmp(t->arena.jump)) return t->arena.err;
    parse(t, text, bytes);
    return OK;
}

enum err template_open(struct template **out, const char *text, size_t bytes, struct why *why)
{
    if (bytes > TEMPLATE_BYTES_MAX) {
        return why_set(why, ERR_LIMIT, "chat template of %zu bytes, at most %d are allowed", bytes,
                       TEMPLATE_BYTES_MAX);
    }
    if (!tp_utf8_valid(text, bytes)) {
        return why_set(why, ERR_FORMAT, "chat template is not valid UTF-8");
    }
    struct template *t = mem_alloc(sizeof *t);
    tp_arena_open(&t->arena, TEMPLATE_MEMORY_BYTES_MAX, UINT64_MAX, why);
    enum err e = parse_guarded(t, text, bytes);
    t->arena.why = NULL;
    if (e != OK) {
        template_close(t);
        return e;
    }
    t->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    *out = t;
    return OK;
}

void template_close(struct template *t)
{
    if (!t) return;
    if (t->locale) freelocale(t->locale);
    tp_arena_close(&t->arena);
    free(t);
}

/* The one place that a failing rendering jumps to. */
static enum err render_guarded(struct tp_run *run, const struct tp_node *body)
{
    if (setjmp(run->arena->jump)) return run->arena->err;
    tp_render(run, body);
    return OK;
}

enum err template_render(const struct template *t, const struct json_t *variables, time_t now,
                         struct buf *out, struct why *why)
{
    if (!json_is_object(variables)) {
        return why_set(why, ERR_FORMAT, "a template's variables must be a JSON object");
    }
    struct tp_arena arena;
    tp_arena_open(&arena, TEMPLATE_MEMORY_BYTES_MAX, TEMPLATE_STEPS_MAX, why);
    struct tp_run run = {
        .arena = &arena, .variables = variables, .out = out, .out_start = out->size, .now = now,
        .locale = t->locale,
    };
    size_t start = out->size;
    enum err e = render_guarded(&run, t->body);
    tp_arena_close(&arena);
    if (e != OK && out->data) {
        out->size = start;
        out->data[start] = '\0';
    }
    return e;
}
