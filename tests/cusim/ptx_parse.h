/* tests/cusim/ptx_parse.h - between the parser and the decoder. */
#ifndef CUSIM_PTX_PARSE_H
#define CUSIM_PTX_PARSE_H

#include "ptx.h"

enum { ARGS_MAX = 8, ITEMS_MAX = 8, PARTS_MAX = 16, BUCKETS = 1024 };

/* What a word of the text stands for. */
enum meaning { NEW, REGISTER, NUMBER, DYNAMIC_SHARED, LABEL };

struct name {
    const char *text;
    enum meaning meaning;
    uint8_t bytes;                      /* REGISTER; 0: a predicate */
    uint64_t value;                     /* its place; NUMBER: an address; LABEL: in `labels` */
    struct name *next;
};

struct operand {
    enum meaning meaning;               /* NEW: _, a result that nobody wants */
    bool negated;
    const struct name *name, *second;   /* second: the q of p|q */
    uint64_t number;
};

struct arg {
    char shape;                         /* 0, '{' a vector, '[' an address */
    uint32_t count;
    struct operand item[ITEMS_MAX];     /* of an address: its base */
    int64_t offset;                     /* of an address */
};

struct opcode {
    const char *part[PARTS_MAX];
    uint32_t parts;
};

struct reader {
    const char *start, *at;             /* of the module's text */
    char word[512];                     /* the last one taken */
    struct kernel *k;                   /* NULL between kernels */
    struct name *names[BUCKETS];
    uint32_t shared_bytes;              /* static ones of the module */
    uint32_t *labels, label_count;      /* instructions; UNKNOWN until they are read */
    uint32_t junk;                      /* where `_` writes */
};

_Noreturn void bad_ptx(const struct reader *r, const char *what, const char *text);
uint32_t new_slot(struct kernel *k, uint32_t bytes);

/* The number of `word` in a list with blanks between, or -1. */
int number_in(const char *list, const char *word);

/* Fills in `i` from the rows; its opcode is one of them, or it is a finding. */
void decode(struct reader *r, struct ins *i, const struct opcode *op, const struct arg *args,
            uint32_t count);

#endif
