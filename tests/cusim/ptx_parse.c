/* tests/cusim/ptx_parse.c - PTX text to kernels: declarations, labels, statements.
 *
 * The text comes from nvcc, so what is not understood is not skipped: it is a finding at load, with
 * the line.  Names in nested braces (inline assembly) replace outer ones of another width.
 */
#include "ptx_parse.h"

#include <ctype.h>

#define UNKNOWN UINT32_MAX

/* Words, numbers and punctuation. */

void bad_ptx(const struct reader *r, const char *what, const char *text)
{
    uint32_t line = 1;
    for (const char *at = r->start; at < r->at; at++) line += *at == '\n';
    report(UNKNOWN_INSTRUCTION, "PTX line %u: %s: %.200s, in %s", line, what, text,
           r->k ? r->k->name : "the module");
}

static char next_char(struct reader *r)
{
    for (;;) {
        r->at += strspn(r->at, " \t\r\n");
        if (strncmp(r->at, "//", 2)) return *r->at;
        r->at += strcspn(r->at, "\n");
    }
}

static bool accept(struct reader *r, char c)
{
    if (next_char(r) != c) return false;
    r->at++;
    return true;
}

static void expect(struct reader *r, char c)
{
    char what[] = "expected ' '";
    what[10] = c;
    if (!accept(r, c)) bad_ptx(r, what, r->at);
}

static bool in_word(const char *at)
{
    return isalnum((unsigned char)*at) || (*at && strchr("_$%.", *at)) || !strncmp(at, "::", 2) ||
           (*at == ':' && at[-1] == ':');
}

static const char *take_word(struct reader *r)
{
    size_t n = 0;
    next_char(r);
    for (const char *start = r->at; in_word(r->at); r->at++) {
        if (n + 1 == sizeof r->word) bad_ptx(r, "a very long word", start);
        r->word[n++] = *r->at;
    }
    r->word[n] = 0;
    if (!n) bad_ptx(r, "expected a word", r->at);
    return r->word;
}

static bool is_number(struct reader *r)
{
    char c = next_char(r);
    return isdigit((unsigned char)c) || (c == '-' && isdigit((unsigned char)r->at[1]));
}

/* 12, -5, 0x1f; 0f3f800000 and 0d... are the bits of a float and of a double. */
static uint64_t take_number(struct reader *r)
{
    char *end;
    if (!is_number(r)) bad_ptx(r, "expected a number", r->at);
    bool bits = r->at[0] == '0' && r->at[1] && strchr("fFdD", r->at[1]);
    uint64_t n = bits ? strtoull(r->at + 2, &end, 16)
                 : *r->at == '-' ? (uint64_t)strtoll(r->at, &end, 0) : strtoull(r->at, &end, 0);
    r->at = end + (*end == 'U');
    return n;
}

/* Names and their places. */

uint32_t new_slot(struct kernel *k, uint32_t bytes)
{
    uint32_t slot = k->file_bytes;
    k->file_bytes += bytes == 8 ? SLOT8 : bytes ? SLOT4 : SLOT_ALIGN;
    return slot;
}

/* What `text` names; NEW when it was not known. */
static struct name *name_of(struct reader *r, const char *text)
{
    uint32_t hash = 5381;
    for (const char *at = text; *at; at++) hash = hash * 33 + (unsigned char)*at;
    struct name **bucket = &r->names[hash % BUCKETS], *n = *bucket;
    while (n && strcmp(n->text, text)) n = n->next;
    if (n) return n;
    n = must_alloc(sizeof *n);
    *n = (struct name){.text = strdup(text), .next = *bucket};
    return *bucket = n;
}

static void name_register(struct reader *r, const char *text, enum type type)
{
    uint8_t bytes = type == T_PRED ? 0 : type_bytes(type) == 8 ? 8 : 4;
    struct name *n = name_of(r, text);
    if (n->meaning == REGISTER && n->bytes == bytes) return;
    n->meaning = REGISTER;
    n->bytes = bytes;
    n->value = new_slot(r->k, bytes);
}

static const struct name *take_register(struct reader *r)
{
    const struct name *n = name_of(r, take_word(r));
    if (n->meaning != REGISTER) bad_ptx(r, "unknown register", n->text);
    return n;
}

static struct name *label_named(struct reader *r, const char *text)
{
    struct name *n = name_of(r, text);
    if (n->meaning == LABEL) return n;
    if (n->meaning != NEW) bad_ptx(r, "unknown name", text);
    n->meaning = LABEL;
    n->value = r->label_count;
    APPEND(r->labels, r->label_count) = UNKNOWN;
    return n;
}

static uint32_t round_up(uint32_t bytes, uint32_t align)
{
    return (bytes + align - 1) / align * align;
}

/* Operands. */

static void read_operand(struct reader *r, struct operand *o)
{
    o->negated = accept(r, '!');
    if (is_number(r)) {
        o->meaning = NUMBER;
        o->number = take_number(r);
        return;
    }
    take_word(r);
    if (strcmp(r->word, "_")) {
        const struct name *n = name_of(r, r->word);
        if (n->meaning == NEW) n = label_named(r, r->word);
        o->meaning = n->meaning;
        o->name = n;
        o->number = n->value;
        if (n->meaning == DYNAMIC_SHARED) {     /* it lies behind the static arrays */
            o->meaning = NUMBER;
            o->number = r->k->shared_bytes = round_up(r->k->shared_bytes, (uint32_t)n->value);
        }
    }
    if (accept(r, '|')) o->second = take_register(r);
}

static void read_arg(struct reader *r, struct arg *a)
{
    if (accept(r, '{')) {
        a->shape = '{';
        do {
            if (a->count == ITEMS_MAX) bad_ptx(r, "a vector of very many", r->at);
            read_operand(r, &a->item[a->count++]);
        } while (accept(r, ','));
        expect(r, '}');
        return;
    }
    if (accept(r, '[')) a->shape = '[';
    read_operand(r, &a->item[a->count++]);
    if (a->shape != '[') return;
    if (accept(r, '+') || is_number(r)) a->offset = (int64_t)take_number(r);
    expect(r, ']');
}

/* Declarations. */

struct variable {
    const char *name;
    uint32_t bytes, align;
    bool open;                          /* name[] */
};

/* [.align N] .type [.ptr .space .align N] name[count] */
static struct variable read_variable(struct reader *r)
{
    struct variable v = {.align = 1};
    bool pointer = false;
    for (take_word(r); r->word[0] == '.'; take_word(r)) {
        enum type type = type_named(r->word + 1);
        if (!strcmp(r->word, ".align")) {
            uint32_t align = (uint32_t)take_number(r);
            if (!pointer) v.align = align;
        } else if (!strcmp(r->word, ".ptr")) {
            pointer = true;
        } else if (type) {
            v.bytes = type_bytes(type);
        } else if (!pointer) {
            bad_ptx(r, "unknown type", r->word);
        }
    }
    if (!v.bytes) bad_ptx(r, "a variable without a type", r->word);
    v.name = name_of(r, r->word)->text;
    if (v.align < v.bytes) v.align = v.bytes;
    while (accept(r, '[')) {
        v.open = next_char(r) == ']';
        if (!v.open) v.bytes *= (uint32_t)take_number(r);
        expect(r, ']');
    }
    return v;
}

/* A variable behind the others of its space; returns where. */
static struct variable place_variable(struct reader *r, uint32_t *total)
{
    struct variable v = read_variable(r);
    struct name *n = name_of(r, v.name);
    if (v.open) {
        n->meaning = DYNAMIC_SHARED;
        n->value = v.align > 16 ? v.align : 16;
    } else {
        n->meaning = NUMBER;
        n->value = round_up(*total, v.align);
        *total = (uint32_t)n->value + v.bytes;
    }
    return v;
}

static void read_registers(struct reader *r)
{
    enum type type = type_named(take_word(r) + 1);
    if (!type) bad_ptx(r, "unknown type of register", r->word);
    do {
        char base[80], full[96];
        snprintf(base, sizeof base, "%s", take_word(r));
        uint64_t n = 0;
        if (accept(r, '<')) {
            n = take_number(r);
            expect(r, '>');
        } else {
            name_register(r, base, type);
        }
        for (uint64_t k = 0; k < n; k++) {
            snprintf(full, sizeof full, "%s%lu", base, k);
            name_register(r, full, type);
        }
    } while (accept(r, ','));
}

static void read_directive(struct reader *r)
{
    struct kernel *k = r->k;
    if (!strcmp(r->word, ".loc")) r->at += strcspn(r->at, "\n");
    else if (!strcmp(r->word, ".pragma")) r->at += strcspn(r->at, ";");
    else if (!strcmp(r->word, ".reg")) read_registers(r);
    else if (!strcmp(r->word, ".local")) place_variable(r, &k->local_bytes);
    else if (strcmp(r->word, ".shared")) bad_ptx(r, "unknown directive", r->word);
    else if (k->code_count) bad_ptx(r, "shared memory declared after code", r->at);
    else place_variable(r, &k->shared_bytes);
}

/* Statements. */

/* Without the blanks of inline assembly, for messages. */
static const char *statement_text(const char *start, const char *end)
{
    char *copy = must_alloc((size_t)(end - start) + 1), *to = copy;
    for (; start < end; start++) {
        if (*start >= ' ' && !(*start == ' ' && to > copy && to[-1] == ' ')) *to++ = *start;
    }
    return copy;
}

/* The opcode was taken; `start` is where its statement begins in the text. */
static void read_instruction(struct reader *r, const struct ins *guard, const char *start)
{
    struct kernel *k = r->k;
    char parts[sizeof r->word], *rest = parts;
    struct opcode op = {.parts = 0};
    struct arg args[ARGS_MAX] = {0};
    uint32_t n = 0;
    strcpy(parts, r->word);
    for (char *p; (p = strsep(&rest, ".")); op.part[op.parts++] = p) {
        if (op.parts == PARTS_MAX) bad_ptx(r, "an opcode of many parts", r->word);
    }
    if (next_char(r) != ';') {
        do {
            if (n == ARGS_MAX) bad_ptx(r, "too many operands", r->word);
            read_arg(r, &args[n++]);
        } while (accept(r, ','));
    }
    if (next_char(r) != ';') bad_ptx(r, "expected ',' or ';'", r->at);
    struct ins *i = &APPEND(k->code, k->code_count);
    *i = *guard;
    i->text = statement_text(start, r->at);
    decode(r, i, &op, args, n);
}

static void read_statement(struct reader *r)
{
    const char *start = r->at;
    struct ins guard = {.guard = NO_PREDICATE};
    if (accept(r, '@')) {
        guard.guard_not = accept(r, '!');
        guard.guard = (uint32_t)take_register(r)->value;
    }
    take_word(r);
    if (r->word[0] == '.') {
        read_directive(r);
    } else if (!accept(r, ':')) {
        read_instruction(r, &guard, start);
    } else {
        uint64_t label = label_named(r, r->word)->value;
        if (r->labels[label] != UNKNOWN) bad_ptx(r, "a label that stands twice", r->word);
        r->labels[label] = r->k->code_count;
    }
}

static void read_body(struct reader *r)
{
    struct kernel *k = r->k;
#define X(name, text) text,
    static const char *const special[] = {SPECIAL_LIST(X)};
#undef X
    for (int i = 0; i < SPECIAL_COUNT; i++) name_register(r, special[i], T_B32);
    r->junk = new_slot(k, 8);
    expect(r, '{');
    for (int depth = 1; depth;) {
        if (!next_char(r)) bad_ptx(r, "a kernel that does not end", k->name);
        if (accept(r, '{')) depth++;
        else if (accept(r, '}')) depth--;
        else if (!accept(r, ';')) read_statement(r);
    }
    for (uint32_t i = 0; i < k->code_count; i++) {
        struct ins *at = &k->code[i];
        if (at->flow != FLOW_BRANCH) continue;
        at->target = r->labels[at->target];
        if (at->target == UNKNOWN) bad_ptx(r, "a branch to nowhere", at->text);
    }
    k->shared_bytes = round_up(k->shared_bytes, 16);
}

static void read_params(struct reader *r)
{
    struct kernel *k = r->k;
    while (!accept(r, ')')) {
        if (strcmp(take_word(r), ".param")) bad_ptx(r, "expected a parameter", r->word);
        struct variable v = place_variable(r, &k->param_bytes);
        APPEND(k->params, k->param_count) = (struct param){k->param_bytes - v.bytes, v.bytes};
        accept(r, ',');
    }
}

/* .maxntid X, Y, Z and its like stand between the parameters and the body. */
static void read_bounds(struct reader *r)
{
    while (next_char(r) != '{') {
        take_word(r);
        int known = number_in(".maxntid .reqntid .minnctapersm .maxnreg", r->word);
        if (known < 0) bad_ptx(r, "unknown directive of a kernel", r->word);
        uint64_t product = 1;
        do product *= take_number(r);
        while (accept(r, ','));
        if (known < 2) r->k->max_threads = (uint32_t)product;
    }
}

/* The kernel's names lie in front of the module's, which stay. */
static struct kernel *read_kernel(struct reader *r)
{
    struct name *outer[BUCKETS];
    struct kernel *k = r->k = must_alloc(sizeof *k);
    memcpy(outer, r->names, sizeof outer);
    k->name = strdup(take_word(r));
    k->shared_bytes = r->shared_bytes;
    if (accept(r, '(')) read_params(r);
    read_bounds(r);
    read_body(r);
    for (uint32_t i = 0; i < BUCKETS; i++) {
        for (struct name *n; (n = r->names[i]) != outer[i];) {
            r->names[i] = n->next;
            free((char *)n->text);
            free(n);
        }
    }
    free(r->labels);
    r->labels = NULL;
    r->label_count = 0;
    r->k = NULL;
    return k;
}

struct kernel *ptx_parse(const char *text)
{
    struct reader r = {.start = text, .at = text};
    struct kernel *kernels = NULL;
    while (next_char(&r)) {
        take_word(&r);
        if (number_in(".version .target .address_size .file", r.word) >= 0) {
            r.at += strcspn(r.at, "\n");
        } else if (!strcmp(r.word, ".entry")) {
            struct kernel *k = read_kernel(&r);
            k->next = kernels;
            kernels = k;
        } else if (!strcmp(r.word, ".shared")) {
            place_variable(&r, &r.shared_bytes);
            expect(&r, ';');
        } else if (number_in(".visible .extern .weak", r.word) < 0) {
            bad_ptx(&r, "a function that was not inlined, a variable, or another thing", r.word);
        }
    }
    return kernels;
}
