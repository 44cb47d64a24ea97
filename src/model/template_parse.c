/* model/template_parse.c - parses statements, and the small steps that both parsers share. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/template_syntax.h"

_Noreturn void tp_syntax(struct tp_parser *p, const struct tp_token *at, const char *fmt, ...)
{
    char words[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    p->arena->line = at->line;
    p->arena->column = at->column;
    tp_fail(p->arena, ERR_FORMAT, "%s", words);
}

_Noreturn void tp_unexpected(struct tp_parser *p, const char *wanted)
{
    static const char *const kinds[] = {
        [TP_T_END] = "the end of the template", [TP_T_DATA] = "text", [TP_T_PRINT_BEGIN] = "{{",
        [TP_T_PRINT_END] = "}}", [TP_T_BLOCK_BEGIN] = "{%", [TP_T_BLOCK_END] = "%}",
        [TP_T_STRING] = "a string", [TP_T_INT] = "a number", [TP_T_FLOAT] = "a number",
    };
    const struct tp_token *t = &p->now;
    if (t->kind == TP_T_NAME) {
        int bytes = t->text.bytes > 60 ? 60 : (int)t->text.bytes;
        tp_syntax(p, t, "expected %s, got '%.*s'", wanted, bytes, t->text.data);
    }
    if (t->kind == TP_T_OPERATOR) {
        char text[3] = { (char)t->op, '\0', '\0' };
        if (t->op > 255) {
            text[0] = (char)(t->op >> 8);
            text[1] = (char)t->op;
        }
        tp_syntax(p, t, "expected %s, got '%s'", wanted, text);
    }
    tp_syntax(p, t, "expected %s, got %s", wanted, kinds[t->kind]);
}

void tp_advance(struct tp_parser *p)
{
    p->now = p->ahead;
    p->arena->line = p->now.line;
    if (p->now.kind != TP_T_END) p->ahead = tp_lexer_next(&p->lexer);
}

bool tp_at_op(const struct tp_parser *p, unsigned op)
{
    return p->now.kind == TP_T_OPERATOR && p->now.op == op;
}

bool tp_at_name(const struct tp_parser *p, const char *name)
{
    return p->now.kind == TP_T_NAME && tp_text_is(&p->now.text, name);
}

bool tp_skip_op(struct tp_parser *p, unsigned op)
{
    if (!tp_at_op(p, op)) return false;
    tp_advance(p);
    return true;
}

bool tp_skip_name(struct tp_parser *p, const char *name)
{
    if (!tp_at_name(p, name)) return false;
    tp_advance(p);
    return true;
}

void tp_expect_op(struct tp_parser *p, unsigned op)
{
    char wanted[] = { '\'', (char)op, '\'', '\0' };
    if (!tp_skip_op(p, op)) tp_unexpected(p, wanted);
}

struct tp_text tp_expect_name(struct tp_parser *p)
{
    if (p->now.kind != TP_T_NAME) tp_unexpected(p, "a name");
    struct tp_text name = p->now.text;
    tp_advance(p);
    return name;
}

static void expect(struct tp_parser *p, enum tp_token_kind kind, const char *wanted)
{
    if (p->now.kind != kind) tp_unexpected(p, wanted);
    tp_advance(p);
}

void tp_enter(struct tp_parser *p)
{
    /* An expression in brackets counts twice or three times: once for each function it is in. */
    if (++p->depth > 3 * TEMPLATE_DEPTH_MAX) {
        tp_fail(p->arena, ERR_LIMIT, "the template is nested too deeply");
    }
}

void tp_leave(struct tp_parser *p)
{
    p->depth--;
}

struct tp_node *tp_node_new(struct tp_parser *p, enum tp_node_kind kind, unsigned line)
{
    struct tp_node *n = tp_alloc(p->arena, sizeof *n);
    n->kind = (uint8_t)kind;
    n->height = 1;
    n->line = line;
    return n;
}

void tp_node_raise(struct tp_parser *p, struct tp_node *n, unsigned height)
{
    if (height + 1 > TP_HEIGHT_MAX) {
        tp_fail(p->arena, ERR_LIMIT, "an expression has more than %d parts", TP_HEIGHT_MAX);
    }
    if (height + 1 > n->height) n->height = (uint16_t)(height + 1);
}

void tp_node_fill(struct tp_parser *p, struct tp_node *n, struct tp_node *a, struct tp_node *b,
                  struct tp_node *c)
{
    n->a = a;
    n->b = b;
    n->c = c;
    if (a) tp_node_raise(p, n, a->height);
    if (b) tp_node_raise(p, n, b->height);
    if (c) tp_node_raise(p, n, c->height);
}

struct tp_chain tp_chain_new(void)
{
    return (struct tp_chain){ 0 };
}

void tp_chain_add(struct tp_chain *list, struct tp_node *n)
{
    if (!list->first) list->first = n;
    else *list->tail = n;
    list->tail = &n->next;
    if (n->height > list->height) list->height = n->height;
}

/* Statements. */

static struct tp_node *parse_statement(struct tp_parser *p);

/* Statements up to a tag that starts with one of `ends` (NULL-terminated; NULL: to the end of the
 * template).  The parser then stands on that name. */
static struct tp_chain parse_body(struct tp_parser *p, const char *const *ends)
{
    struct tp_chain body = tp_chain_new();
    const char *wanted = "a tag";
    for (int i = 0; ends && ends[i]; i++) wanted = ends[i];
    for (;;) {
        struct tp_node *n = NULL;
        if (p->now.kind == TP_T_END && !ends) return body;
        if (p->now.kind == TP_T_DATA) {
            n = tp_node_new(p, TP_N_DATA, p->now.line);
            n->text = p->now.text;
            tp_advance(p);
        }
        else if (p->now.kind == TP_T_PRINT_BEGIN) {
            n = tp_node_new(p, TP_N_PRINT, p->now.line);
            tp_advance(p);
            tp_node_fill(p, n, tp_parse_tuple(p, true, NULL), NULL, NULL);
            expect(p, TP_T_PRINT_END, "'}}'");
        }
        else {
            expect(p, TP_T_BLOCK_BEGIN, wanted);
            for (int i = 0; ends && ends[i]; i++) {
                if (tp_at_name(p, ends[i])) return body;
            }
            tp_enter(p);
            n = parse_statement(p);
            tp_leave(p);
            expect(p, TP_T_BLOCK_END, "'%}'");
        }
        tp_chain_add(&body, n);
    }
}

/* The rest of a tag, and statements up to one of `ends`. */
static struct tp_node *parse_block(struct tp_parser *p, struct tp_node *owner,
                                   const char *const *ends)
{
    tp_skip_op(p, ':');
    expect(p, TP_T_BLOCK_END, "'%}'");
    struct tp_chain body = parse_body(p, ends);
    tp_node_raise(p, owner, body.height);
    return body.first;
}

static struct tp_node *parse_block_to(struct tp_parser *p, struct tp_node *owner, const char *end)
{
    const char *const ends[] = { end, NULL };
    struct tp_node *body = parse_block(p, owner, ends);
    tp_advance(p);
    return body;
}

static void parse_if(struct tp_parser *p, struct tp_node *n)
{
    static const char *const ends[] = { "elif", "else", "endif", NULL };
    struct tp_chain branches = tp_chain_new();
    bool more = true;
    while (more) {
        struct tp_node *branch = tp_node_new(p, TP_N_BRANCH, p->now.line);
        tp_node_fill(p, branch, tp_parse_tuple(p, false, NULL), NULL, NULL);
        branch->b = parse_block(p, branch, ends);
        tp_chain_add(&branches, branch);
        more = tp_skip_name(p, "elif");
    }
    if (tp_skip_name(p, "else")) {
        struct tp_node *branch = tp_node_new(p, TP_N_BRANCH, p->now.line);
        branch->b = parse_block_to(p, branch, "endif");
        tp_chain_add(&branches, branch);
    }
    else tp_advance(p);
    n->a = branches.first;
    tp_node_raise(p, n, branches.height);
}

static void parse_for(struct tp_parser *p, struct tp_node *n)
{
    static const char *const ends[] = { "else", "endfor", NULL };
    struct tp_node *target = tp_parse_target(p, "in", false);
    if (!tp_skip_name(p, "in")) tp_unexpected(p, "'in'");
    tp_node_fill(p, n, target, tp_parse_tuple(p, false, "recursive"), NULL);
    if (tp_skip_name(p, "if")) {
        n->d = tp_parse_expression(p, true);
        tp_node_raise(p, n, n->d->height);
    }
    if (tp_at_name(p, "recursive")) tp_syntax(p, &p->now, "recursive loops are not supported");
    p->loops++;
    n->c = parse_block(p, n, ends);
    p->loops--;
    if (tp_skip_name(p, "else")) n->e = parse_block_to(p, n, "endfor");
    else tp_advance(p);
}

static void parse_set(struct tp_parser *p, struct tp_node *n)
{
    struct tp_node *target = tp_parse_target(p, NULL, true);
    if (tp_skip_op(p, '=')) {
        tp_node_fill(p, n, target, tp_parse_tuple(p, true, NULL), NULL);
        return;
    }
    n->kind = TP_N_SET_BLOCK;
    struct tp_node *filter = tp_skip_op(p, '|') ? tp_parse_filter(p, NULL) : NULL;
    tp_node_fill(p, n, target, filter, NULL);
    n->c = parse_block_to(p, n, "endset");
}

/* `(a, b=1)`; the list of PARAM becomes n->a. */
static void parse_signature(struct tp_parser *p, struct tp_node *n)
{
    struct tp_chain params = tp_chain_new();
    bool defaults = false;
    tp_expect_op(p, '(');
    while (!tp_at_op(p, ')')) {
        if (params.first) tp_expect_op(p, ',');
        struct tp_node *param = tp_node_new(p, TP_N_PARAM, p->now.line);
        struct tp_token at = p->now;
        param->text = tp_expect_name(p);
        if (tp_skip_op(p, '=')) {
            tp_node_fill(p, param, tp_parse_expression(p, true), NULL, NULL);
            defaults = true;
        }
        else if (defaults) tp_syntax(p, &at, "a parameter without default after one with");
        tp_chain_add(&params, param);
    }
    tp_expect_op(p, ')');
    n->a = params.first;
    tp_node_raise(p, n, params.height);
}

static void parse_macro_body(struct tp_parser *p, struct tp_node *n, const char *end)
{
    unsigned outer_uses = p->uses, outer_loops = p->loops;
    p->uses = 0;
    p->loops = 0;
    n->c = parse_block_to(p, n, end);
    n->op = (uint16_t)p->uses;
    p->uses = outer_uses;
    p->loops = outer_loops;
}

static void parse_macro(struct tp_parser *p, struct tp_node *n)
{
    n->text = tp_expect_name(p);
    parse_signature(p, n);
    parse_macro_body(p, n, "endmacro");
}

static void parse_call_block(struct tp_parser *p, struct tp_node *n)
{
    struct tp_node *macro = tp_node_new(p, TP_N_MACRO, p->now.line);
    macro->text = (struct tp_text){ "caller", 6 };
    if (tp_at_op(p, '(')) parse_signature(p, macro);
    struct tp_token at = p->now;
    struct tp_node *call = tp_parse_expression(p, true);
    if (call->kind != TP_N_CALL) tp_syntax(p, &at, "expected a call");
    parse_macro_body(p, macro, "endcall");
    tp_node_fill(p, n, call, macro, NULL);
}

static void parse_with(struct tp_parser *p, struct tp_node *n)
{
    struct tp_chain params = tp_chain_new();
    while (p->now.kind != TP_T_BLOCK_END) {
        if (params.first) tp_expect_op(p, ',');
        struct tp_node *param = tp_node_new(p, TP_N_PARAM, p->now.line);
        param->text = tp_expect_name(p);
        tp_expect_op(p, '=');
        tp_node_fill(p, param, tp_parse_expression(p, true), NULL, NULL);
        tp_chain_add(&params, param);
    }
    n->a = params.first;
    tp_node_raise(p, n, params.height);
    n->c = parse_block_to(p, n, "endwith");
}

static void parse_filter_block(struct tp_parser *p, struct tp_node *n)
{
    tp_node_fill(p, n, tp_parse_filter(p, NULL), NULL, NULL);
    n->c = parse_block_to(p, n, "endfilter");
}

/* Marks what the assistant said, for training; here it is only a scope. */
static void parse_generation(struct tp_parser *p, struct tp_node *n)
{
    n->c = parse_block_to(p, n, "endgeneration");
}

static void parse_do(struct tp_parser *p, struct tp_node *n)
{
    tp_node_fill(p, n, tp_parse_tuple(p, true, NULL), NULL, NULL);
}

static void parse_loop_control(struct tp_parser *p, struct tp_node *n)
{
    if (p->loops == 0) {
        tp_fail(p->arena, ERR_FORMAT, "'%s' outside of a loop",
                n->kind == TP_N_BREAK ? "break" : "continue");
    }
}

static struct tp_node *parse_statement(struct tp_parser *p)
{
    static const struct {
        const char *name;
        enum tp_node_kind kind;
        void (*parse)(struct tp_parser *p, struct tp_node *n);
    } tags[] = {
        { "if", TP_N_IF, parse_if },
        { "for", TP_N_FOR, parse_for },
        { "set", TP_N_SET, parse_set },
        { "macro", TP_N_MACRO, parse_macro },
        { "call", TP_N_CALL_BLOCK, parse_call_block },
        { "filter", TP_N_FILTER_BLOCK, parse_filter_block },
        { "with", TP_N_WITH, parse_with },
        { "do", TP_N_DO, parse_do },
        { "break", TP_N_BREAK, parse_loop_control },
        { "continue", TP_N_CONTINUE, parse_loop_control },
        { "generation", TP_N_WITH, parse_generation },
    };
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        if (!tp_at_name(p, tags[i].name)) continue;
        struct tp_node *n = tp_node_new(p, tags[i].kind, p->now.line);
        tp_advance(p);
        tags[i].parse(p, n);
        return n;
    }
    tp_unexpected(p, "a statement that chat templates use");
}

struct tp_node *tp_parse(struct tp_arena *a, const char *text, size_t bytes)
{
    struct tp_parser p = { .arena = a };
    tp_lexer_open(&p.lexer, a, text, bytes);
    p.ahead = tp_lexer_next(&p.lexer);
    tp_advance(&p);
    return parse_body(&p, NULL).first;
}
