/* tests/cusim/ptx_parse.h - between the lexer, the parser and the decoder. */
#ifndef CUSIM_PTX_PARSE_H
#define CUSIM_PTX_PARSE_H

#include "ptx.h"

enum token { TOK_END, TOK_WORD, TOK_NUMBER, TOK_STRING, TOK_PUNCT };

struct lexer {
    const char *at;
    uint32_t line;
    enum token kind;
    char punct;
    char text[512];
};
void lex_open(struct lexer *x, const char *text);
void lex_next(struct lexer *x);
/* Past the end of this line (.loc, .file), or to just behind the closing brace. */
void lex_skip_line(struct lexer *x);
void lex_skip_braces(struct lexer *x);

enum operand_kind { ARG_NONE, ARG_REGISTER, ARG_NUMBER, ARG_SYMBOL, ARG_VECTOR, ARG_ADDRESS };

struct reg {
    char name[96];
    uint32_t slot;
    uint8_t bytes;                      /* 0: a predicate */
    struct reg *next;
};

struct arg {
    enum operand_kind kind;
    bool negated;
    struct reg *reg, *reg2;             /* reg2: the p of d|p */
    uint64_t number;
    const struct symbol *symbol;
    char label[96];                     /* a word that is neither register nor symbol */
    int64_t offset;                     /* ADDRESS; base in reg, symbol or number */
    struct arg *items;                  /* VECTOR */
    uint32_t item_count;
};

enum { PARTS_MAX = 16, ARGS_MAX = 8, REG_BUCKETS = 1024 };

struct opcode {
    char text[128];
    const char *part[PARTS_MAX];
    uint32_t parts;
};
bool has_part(const struct opcode *op, const char *name);
/* The next part that names a type, from *at on; NO_TYPE at the end. */
enum type next_type(const struct opcode *op, uint32_t *at);

struct builder {
    struct kernel *k;
    struct module *m;
    struct lexer *x;
    struct reg *regs[REG_BUCKETS];
    struct symbol *symbols;             /* of this kernel */
    uint32_t junk4, junk8;              /* where `_` writes */
};

uint32_t new_slot(struct builder *b, uint32_t bytes);
uint32_t constant_slot(struct builder *b, uint32_t bytes, uint64_t value);
/* The place of an operand of `bytes` (0: predicate); a number gets one; a register must fit. */
uint32_t arg_slot(struct builder *b, const struct arg *a, uint32_t bytes);
uint32_t arg_bytes(const struct arg *a, uint32_t otherwise);

_Noreturn void bad_ptx(const struct builder *b, const char *what, const char *text);
void decode(struct builder *b, struct ins *i, const struct opcode *op, struct arg *args,
            uint32_t count);

/* Families of the decoder: true when the opcode was theirs. */
bool decode_alu(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                uint32_t n);

#endif
