/* tests/cusim/ptx_parse.c - PTX text to kernels: declarations, labels, statements.
 *
 * The text comes from nvcc, so what is not understood is not skipped: it is a finding at load, with
 * the line.  Names in nested braces (inline assembly) replace outer ones of another width.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "ptx_parse.h"
#include "report.h"
#include "shadow.h"

struct label {
    char name[96];
    uint32_t at;
};

/* What one kernel's body is read with, beyond what the decoder sees. */
struct body {
    struct builder b;
    struct label *labels, *jumps, *tables;      /* jumps: instruction `at` goes to `name` */
    uint32_t label_count, jump_count, table_count;
};

static void bad(const struct lexer *x, const char *what)
{
    report(BAD_PTX, "PTX line %u: %s near '%s'", x->line, what, x->text);
}

_Noreturn void bad_ptx(const struct builder *b, const char *what, const char *text)
{
    report(BAD_PTX, "PTX line %u: %s: %s, in %s", b->x->line, what, text, b->k->name);
}

static bool is_punct(const struct lexer *x, char c)
{
    return x->kind == TOK_PUNCT && x->punct == c;
}

static bool accept(struct lexer *x, char c)
{
    if (!is_punct(x, c)) return false;
    lex_next(x);
    return true;
}

static void expect(struct lexer *x, char c)
{
    char what[] = "expected ' '";
    what[10] = c;
    if (!accept(x, c)) bad(x, what);
}

static bool accept_word(struct lexer *x, const char *word)
{
    if (x->kind != TOK_WORD || strcmp(x->text, word)) return false;
    lex_next(x);
    return true;
}

static void take_word(struct lexer *x, char *into, size_t size)
{
    if (x->kind != TOK_WORD || strlen(x->text) >= size) bad(x, "expected a name");
    strcpy(into, x->text);
    lex_next(x);
}

static uint64_t number_of(const struct lexer *x)
{
    const char *t = x->text;
    if (t[0] == '0' && t[1] && strchr("fFdD", t[1])) return strtoull(t + 2, NULL, 16);
    return *t == '-' ? (uint64_t)strtoll(t, NULL, 0) : strtoull(t, NULL, 0);
}

static uint64_t take_number(struct lexer *x)
{
    if (x->kind != TOK_NUMBER) bad(x, "expected a number");
    uint64_t n = number_of(x);
    lex_next(x);
    return n;
}

static char *copy_text(const char *text)
{
    char *copy = must_alloc(strlen(text) + 1);
    return strcpy(copy, text);
}

/* Registers and other operands. */

uint32_t new_slot(struct builder *b, uint32_t bytes)
{
    uint32_t slot = b->k->file_bytes;
    b->k->file_bytes += bytes == 8 ? SLOT8 : bytes ? SLOT4 : SLOT_ALIGN;
    return slot;
}

uint32_t constant_slot(struct builder *b, uint32_t bytes, uint64_t value)
{
    struct kernel *k = b->k;
    if (bytes < 8) value = (uint32_t)value;
    for (uint32_t i = 0; i < k->constant_count; i++) {
        const struct constant *c = &k->constants[i];
        if (c->bytes == bytes && c->value == value) return c->slot;
    }
    k->constants = must_grow(k->constants, k->constant_count, sizeof *k->constants);
    struct constant *c = &k->constants[k->constant_count++];
    *c = (struct constant){new_slot(b, bytes), (uint8_t)bytes, value};
    return c->slot;
}

static uint32_t hash_name(const char *name)
{
    uint32_t h = 5381;
    while (*name) h = h * 33 + (unsigned char)*name++;
    return h % REG_BUCKETS;
}

static struct reg *find_reg(struct builder *b, const char *name)
{
    for (struct reg *r = b->regs[hash_name(name)]; r; r = r->next) {
        if (!strcmp(r->name, name)) return r;
    }
    return NULL;
}

static void add_reg(struct builder *b, const char *name, enum type type)
{
    uint32_t bytes = type == T_PRED ? 0 : type_bytes(type) == 8 ? 8 : 4;
    if (type_bytes(type) > 8) bad_ptx(b, "registers of this type are not known", name);
    struct reg *r = find_reg(b, name);
    if (r && r->bytes == bytes) return;
    r = must_alloc(sizeof *r);
    snprintf(r->name, sizeof r->name, "%s", name);
    r->slot = new_slot(b, bytes);
    r->bytes = (uint8_t)bytes;
    r->next = b->regs[hash_name(name)];
    b->regs[hash_name(name)] = r;
}

uint32_t arg_bytes(const struct arg *a, uint32_t otherwise)
{
    if (a->kind == ARG_REGISTER) return a->reg->bytes;
    return a->kind == ARG_SYMBOL ? 8 : otherwise;
}

uint32_t arg_slot(struct builder *b, const struct arg *a, uint32_t bytes)
{
    switch (a->kind) {
    case ARG_NONE: return bytes == 8 ? b->junk8 : b->junk4;
    case ARG_NUMBER: return constant_slot(b, bytes, bytes ? a->number : a->number ? ~0ull : 0);
    case ARG_SYMBOL:
        if (!a->symbol) bad_ptx(b, "unknown name", a->label);
        return constant_slot(b, bytes, a->symbol->value);
    case ARG_REGISTER:
        if (a->reg->bytes != bytes) bad_ptx(b, "a register of another width", a->reg->name);
        return a->reg->slot;
    default: bad_ptx(b, "an operand that is not expected here", a->label);
    }
}

static const struct symbol *find_symbol(const struct builder *b, const char *name)
{
    for (const struct symbol *s = b->symbols; s; s = s->next) {
        if (!strcmp(s->name, name)) return s;
    }
    for (const struct symbol *s = b->m->symbols; s; s = s->next) {
        if (!strcmp(s->name, name)) return s;
    }
    return NULL;
}

static void read_word_arg(struct builder *b, struct arg *a)
{
    struct lexer *x = b->x;
    take_word(x, a->label, sizeof a->label);
    a->kind = ARG_REGISTER;
    if (!strcmp(a->label, "_")) {
        a->kind = ARG_NONE;
    } else if (!(a->reg = find_reg(b, a->label))) {
        if (a->label[0] == '%') bad_ptx(b, "unknown register", a->label);
        a->kind = ARG_SYMBOL;
        a->symbol = find_symbol(b, a->label);
    }
    if (accept(x, '|')) {
        char name[96];
        take_word(x, name, sizeof name);
        a->reg2 = find_reg(b, name);
        if (!a->reg2) bad_ptx(b, "unknown register", name);
    }
}

static void read_arg(struct builder *b, struct arg *a);

static void read_vector(struct builder *b, struct arg *a)
{
    a->kind = ARG_VECTOR;
    a->items = must_alloc(8 * sizeof *a->items);
    do {
        if (a->item_count == 8) bad_ptx(b, "a vector of more than 8", b->x->text);
        read_arg(b, &a->items[a->item_count++]);
    } while (accept(b->x, ','));
    expect(b->x, '}');
}

static void read_address(struct builder *b, struct arg *a)
{
    struct lexer *x = b->x;
    read_arg(b, a);
    if (a->kind == ARG_VECTOR || a->kind == ARG_NONE) bad_ptx(b, "not an address", x->text);
    if (a->kind == ARG_SYMBOL && !a->symbol) bad_ptx(b, "unknown name", a->label);
    if (accept(x, '+')) a->offset = (int64_t)take_number(x);
    else if (x->kind == TOK_NUMBER && x->text[0] == '-') a->offset = (int64_t)take_number(x);
    expect(x, ']');
    if (a->kind == ARG_SYMBOL) {
        a->offset += (int64_t)a->symbol->value;
        a->number = 0;
    }
    a->kind = ARG_ADDRESS;
}

static void read_arg(struct builder *b, struct arg *a)
{
    struct lexer *x = b->x;
    if (accept(x, '!')) a->negated = true;
    if (accept(x, '{')) read_vector(b, a);
    else if (accept(x, '[')) read_address(b, a);
    else if (x->kind == TOK_NUMBER) {
        a->kind = ARG_NUMBER;
        a->number = take_number(x);
    } else {
        read_word_arg(b, a);
    }
}

/* Declarations. */

static void skip_initialiser(struct lexer *x, enum type type, uint8_t *into, uint64_t bytes)
{
    uint64_t size = (uint64_t)type_bytes(type), at = 0;
    bool braces = accept(x, '{');
    do {
        if (x->kind != TOK_NUMBER) bad(x, "an initial value that is not a number");
        uint64_t value = take_number(x);
        if (at + size > bytes) bad(x, "more initial values than room");
        if (into) memcpy(into + at, &value, size);
        at += size;
    } while (braces && accept(x, ','));
    if (braces) expect(x, '}');
}

struct variable {
    char name[96];
    enum type type;
    uint64_t bytes, align;
    bool open;                          /* name[] */
};

/* [.align N] .type name[count]; the initialiser is left to the caller. */
static struct variable read_variable(struct lexer *x)
{
    struct variable v = {.align = 1};
    for (; x->kind == TOK_WORD && x->text[0] == '.'; lex_next(x)) {
        if (!strcmp(x->text, ".align")) {
            lex_next(x);
            if (x->kind != TOK_NUMBER) bad(x, "expected an alignment");
            v.align = number_of(x);
        } else if (!strcmp(x->text, ".ptr")) {      /* .ptr .global .align 1 */
            lex_next(x);
            if (strcmp(x->text, ".align")) lex_next(x);
            lex_next(x);
        } else if (!(v.type = type_named(x->text + 1))) {
            bad(x, "unknown type");
        }
    }
    if (!v.type) bad(x, "a variable without a type");
    take_word(x, v.name, sizeof v.name);
    v.bytes = (uint64_t)type_bytes(v.type);
    while (accept(x, '[')) {
        v.open = is_punct(x, ']');
        if (!v.open) v.bytes *= take_number(x);
        expect(x, ']');
    }
    if (v.align < (uint64_t)type_bytes(v.type)) v.align = (uint64_t)type_bytes(v.type);
    return v;
}

static uint32_t place_in(uint32_t *total, const struct variable *v)
{
    uint32_t at = (uint32_t)((*total + v->align - 1) / v->align * v->align);
    *total = at + (uint32_t)v->bytes;
    return at;
}

static struct symbol *add_symbol(struct symbol **list, const char *name, enum space space,
                                 uint64_t value)
{
    struct symbol *s = must_alloc(sizeof *s);
    *s = (struct symbol){copy_text(name), space, false, value, *list};
    return *list = s;
}

static void global_variable(struct module *m, struct lexer *x, enum space space)
{
    struct variable v = read_variable(x);
    uint64_t at = memory_constant(v.bytes);
    add_symbol(&m->symbols, v.name, space, at);
    if (accept(x, '=')) skip_initialiser(x, v.type, device_bytes(at), v.bytes);
    struct clock none = {{0}};
    struct toucher loader = {.clock = &none, .device = ANY_DEVICE};
    shadow_bulk(&loader, at, v.bytes, TOUCH_WRITE);
}

/* A dynamic array starts behind the static ones; its place is known when all have been read, and
 * until then the symbol holds a mark that finish_dynamic replaces. */
#define DYNAMIC_MARK 0x7fff0000u

static void shared_variable(struct symbol **list, uint32_t *total, struct lexer *x)
{
    struct variable v = read_variable(x);
    if (v.open) add_symbol(list, v.name, SPACE_SHARED, DYNAMIC_MARK)->dynamic = true;
    else add_symbol(list, v.name, SPACE_SHARED, place_in(total, &v));
}

static void reg_declaration(struct builder *b)
{
    struct lexer *x = b->x;
    enum type type = T_NO_TYPE;
    if (x->kind == TOK_WORD) type = type_named(x->text + 1);
    if (!type) bad(x, "unknown type of register");
    lex_next(x);
    do {
        char name[80], full[96];
        take_word(x, name, sizeof name);
        if (!accept(x, '<')) {
            add_reg(b, name, type);
            continue;
        }
        uint64_t n = take_number(x);
        for (uint64_t i = 0; i < n; i++) {
            snprintf(full, sizeof full, "%s%llu", name, (unsigned long long)i);
            add_reg(b, full, type);
        }
        expect(x, '>');
    } while (accept(x, ','));
    expect(x, ';');
}

/* Statements. */

static void split_opcode(struct builder *b, struct opcode *op)
{
    take_word(b->x, op->text, sizeof op->text);
    char *parts = copy_text(op->text);
    for (char *p = parts; p; op->parts++) {
        if (op->parts == PARTS_MAX) bad_ptx(b, "an opcode of many parts", op->text);
        op->part[op->parts] = p;
        p = strchr(p, '.');
        if (p) *p++ = 0;
    }
}

static struct label *add_label(struct label **list, uint32_t *count, const char *name, uint32_t at)
{
    *list = must_grow(*list, *count, sizeof **list);
    struct label *l = &(*list)[(*count)++];
    snprintf(l->name, sizeof l->name, "%s", name);
    l->at = at;
    return l;
}

static const char *statement_text(const char *start, const char *end)
{
    while (start < end && strchr(" \t\n", *start)) start++;
    char *copy = must_alloc((size_t)(end - start) + 1), *to = copy;
    for (; start < end; start++) {
        char c = strchr("\t\n", *start) ? ' ' : *start;
        if (c != ' ' || (to > copy && to[-1] != ' ')) *to++ = c;
    }
    return copy;
}

/* Opcode and operands are at the lexer; `start` is where the statement begins in the text. */
static void read_instruction(struct body *body, struct reg *guard, bool guard_not,
                             const char *start)
{
    struct builder *b = &body->b;
    struct kernel *k = b->k;
    k->code = must_grow(k->code, k->code_count, sizeof *k->code);
    struct ins *i = &k->code[k->code_count];
    *i = (struct ins){.guard = guard ? guard->slot : NO_GUARD, .guard_not = guard_not};
    struct opcode op = {.parts = 0};
    split_opcode(b, &op);
    struct arg args[ARGS_MAX] = {0};
    uint32_t n = 0;
    while (!is_punct(b->x, ';')) {
        if (n == ARGS_MAX) bad_ptx(b, "too many operands", op.text);
        read_arg(b, &args[n++]);
        if (!accept(b->x, ',') && !is_punct(b->x, ';')) bad(b->x, "expected ',' or ';'");
    }
    i->text = statement_text(start, b->x->at - 1);
    lex_next(b->x);
    decode(b, i, &op, args, n);
    if (i->flow == FLOW_BRANCH) {
        add_label(&body->jumps, &body->jump_count, args[0].label, k->code_count);
    }
    if (i->flow == FLOW_TABLE) {
        add_label(&body->jumps, &body->jump_count, args[1].label, k->code_count);
    }
    k->code_count++;
    for (uint32_t a = 0; a < n; a++) free(args[a].items);
}

/* name: .branchtargets A, B; */
static void read_targets(struct body *body, const char *name)
{
    struct kernel *k = body->b.k;
    k->tables = must_grow(k->tables, k->table_count, sizeof *k->tables);
    add_label(&body->labels, &body->label_count, name, k->table_count);
    uint32_t n = 0;
    do {
        char target[96];
        take_word(body->b.x, target, sizeof target);
        if (n == 63) bad_ptx(&body->b, "a switch of more than 63 cases", name);
        struct label *l = add_label(&body->tables, &body->table_count, target, 0);
        l->at = k->table_count * 64 + ++n;
    } while (accept(body->b.x, ','));
    k->tables[k->table_count++][0] = n;
    expect(body->b.x, ';');
}

static void read_directive(struct body *body)
{
    struct builder *b = &body->b;
    struct lexer *x = b->x;
    if (!strcmp(x->text, ".loc")) {
        lex_skip_line(x);
    } else if (accept_word(x, ".reg")) {
        reg_declaration(b);
    } else if (accept_word(x, ".pragma")) {
        lex_next(x);
        expect(x, ';');
    } else if (accept_word(x, ".shared")) {
        shared_variable(&b->symbols, &b->k->shared_bytes, x);
        expect(x, ';');
    } else if (accept_word(x, ".local")) {
        struct variable v = read_variable(x);
        add_symbol(&b->symbols, v.name, SPACE_LOCAL, place_in(&b->k->local_bytes, &v));
        expect(x, ';');
    } else {
        bad(x, "unknown directive");
    }
}

static void read_statement(struct body *body)
{
    struct builder *b = &body->b;
    struct lexer *x = b->x;
    const char *start = x->at - strlen(x->text);
    struct reg *guard = NULL;
    bool guard_not = false;
    if (accept(x, '@')) {
        guard_not = accept(x, '!');
        guard = x->kind == TOK_WORD ? find_reg(b, x->text) : NULL;
        if (!guard) bad(x, "unknown predicate");
        lex_next(x);
    }
    if (x->kind != TOK_WORD) bad(x, "expected an instruction");
    if (x->text[0] == '.') {
        read_directive(body);
        return;
    }
    struct lexer ahead = *x;
    lex_next(&ahead);
    if (!is_punct(&ahead, ':')) {
        read_instruction(body, guard, guard_not, start);
        return;
    }
    char name[96];
    take_word(x, name, sizeof name);
    lex_next(x);
    if (accept_word(x, ".branchtargets")) read_targets(body, name);
    else add_label(&body->labels, &body->label_count, name, b->k->code_count);
}

static uint32_t label_at(struct body *body, const char *name)
{
    const struct label *found = NULL;
    for (uint32_t i = 0; i < body->label_count; i++) {
        if (strcmp(body->labels[i].name, name)) continue;
        if (found) bad_ptx(&body->b, "a label that stands twice", name);
        found = &body->labels[i];
    }
    if (!found) bad_ptx(&body->b, "unknown label", name);
    return found->at;
}

static void resolve(struct body *body)
{
    struct kernel *k = body->b.k;
    for (uint32_t i = 0; i < body->jump_count; i++) {
        k->code[body->jumps[i].at].target = label_at(body, body->jumps[i].name);
    }
    for (uint32_t i = 0; i < body->table_count; i++) {
        uint32_t at = body->tables[i].at;
        k->tables[at / 64][at % 64] = label_at(body, body->tables[i].name);
    }
    k->shared_bytes = (k->shared_bytes + 15) / 16 * 16;
    for (uint32_t i = 0; i < k->constant_count; i++) {
        struct constant *c = &k->constants[i];
        uint64_t past = c->value - DYNAMIC_MARK;
        if (c->bytes && past < 0x10000) c->value = k->shared_bytes + past;
    }
    for (uint32_t i = 0; i < k->code_count; i++) {
        uint64_t past = (uint64_t)k->code[i].offset - DYNAMIC_MARK;
        if (past < 0x10000) k->code[i].offset = k->shared_bytes + (int64_t)past;
    }
}

static void read_body(struct module *m, struct kernel *k, struct lexer *x, struct symbol *params)
{
    struct body body = {.b = {.k = k, .m = m, .x = x, .symbols = params}};
    struct builder *b = &body.b;
#define X(name, text) text,
    static const char *const special[] = {SPECIAL_LIST(X)};
#undef X
    for (int i = 0; i < SPECIAL_COUNT; i++) add_reg(b, special[i], T_B32);
    b->junk4 = new_slot(b, 4);
    b->junk8 = new_slot(b, 8);
    expect(x, '{');
    for (int depth = 1; depth;) {
        if (x->kind == TOK_END) bad(x, "a kernel that does not end");
        if (accept(x, '{')) depth++;
        else if (accept(x, '}')) depth--;
        else if (!accept(x, ';')) read_statement(&body);
    }
    resolve(&body);
    for (int i = 0; i < REG_BUCKETS; i++) {
        for (struct reg *r = b->regs[i], *next; r; r = next) {
            next = r->next;
            free(r);
        }
    }
    free(body.labels);
    free(body.jumps);
    free(body.tables);
}

static void read_params(struct kernel *k, struct lexer *x, struct symbol **symbols)
{
    expect(x, '(');
    while (!accept(x, ')')) {
        if (!accept_word(x, ".param")) bad(x, "expected a parameter");
        struct variable v = read_variable(x);
        uint32_t at = place_in(&k->param_bytes, &v);
        k->params = must_grow(k->params, k->param_count, sizeof *k->params);
        k->params[k->param_count++] = (struct param){at, (uint32_t)v.bytes};
        add_symbol(symbols, v.name, SPACE_PARAM, at);
        if (!accept(x, ',') && !is_punct(x, ')')) bad(x, "expected ',' or ')'");
    }
}

/* .maxntid X, Y, Z and its like stand between the parameters and the body. */
static void read_bounds(struct kernel *k, struct lexer *x)
{
    while (x->kind == TOK_WORD) {
        bool threads = !strcmp(x->text, ".maxntid") || !strcmp(x->text, ".reqntid");
        if (!threads && strcmp(x->text, ".minnctapersm") && strcmp(x->text, ".maxnreg") &&
            strcmp(x->text, ".pragma")) {
            bad(x, "unknown directive of a kernel");
        }
        uint64_t product = 1;
        do {
            lex_next(x);
            product *= x->kind == TOK_NUMBER ? number_of(x) : 1;
            lex_next(x);
        } while (is_punct(x, ','));
        accept(x, ';');
        if (threads) k->max_threads = (uint32_t)product;
    }
}

static void read_kernel(struct module *m, struct lexer *x)
{
    struct kernel *k = must_alloc(sizeof *k);
    struct symbol *params = NULL;
    k->name = copy_text(x->text);
    k->module = m;
    lex_next(x);
    k->shared_bytes = m->shared_bytes;
    if (is_punct(x, '(')) read_params(k, x, &params);
    read_bounds(k, x);
    read_body(m, k, x, params);
    k->next = m->kernels;
    m->kernels = k;
}

static void read_module_item(struct module *m, struct lexer *x)
{
    if (accept_word(x, ".version") || accept_word(x, ".address_size")) {
        lex_next(x);
    } else if (accept_word(x, ".target")) {
        do lex_next(x);
        while (accept(x, ','));
    } else if (!strcmp(x->text, ".file") || !strcmp(x->text, ".loc")) {
        lex_skip_line(x);
    } else if (accept_word(x, ".section")) {
        lex_next(x);
        lex_skip_braces(x);
    } else if (accept_word(x, ".visible") || accept_word(x, ".weak") ||
               accept_word(x, ".extern") || accept_word(x, ".common")) {
        return;
    } else if (accept_word(x, ".entry")) {
        read_kernel(m, x);
    } else if (accept_word(x, ".global")) {
        global_variable(m, x, SPACE_GLOBAL);
        expect(x, ';');
    } else if (accept_word(x, ".const")) {
        global_variable(m, x, SPACE_CONST);
        expect(x, ';');
    } else if (accept_word(x, ".shared")) {
        shared_variable(&m->symbols, &m->shared_bytes, x);
        expect(x, ';');
    } else {
        bad(x, ".func: a function that was not inlined, or another thing cusim does not know,");
    }
}

struct module *ptx_parse(const char *text, const char *file)
{
    struct module *m = must_alloc(sizeof *m);
    m->file = file;
    struct lexer x;
    lex_open(&x, text);
    while (x.kind != TOK_END) read_module_item(m, &x);
    return m;
}
