/* tests/cusim/ptx.h - a module of PTX, decoded: what the parser gives and the executor runs.
 *
 * A warp has one register file: per register 32 lanes side by side, 4 bytes each (8 for 64-bit
 * registers; shorter ones are kept zero-extended), and a predicate is one word of 32 bits.
 * Immediates and special registers have places in the file too, so every operand is an offset.
 */
#ifndef CUSIM_PTX_H
#define CUSIM_PTX_H

#include "report.h"

#define TYPE_LIST(X)                                                                             \
    X(NO_TYPE, "", 0) X(PRED, "pred", 1) X(B8, "b8", 1) X(U8, "u8", 1) X(S8, "s8", 1)            \
    X(B16, "b16", 2) X(U16, "u16", 2) X(S16, "s16", 2) X(F16, "f16", 2)                          \
    X(B32, "b32", 4) X(U32, "u32", 4) X(S32, "s32", 4) X(F32, "f32", 4)                          \
    X(F16X2, "f16x2", 4) X(B64, "b64", 8) X(U64, "u64", 8) X(S64, "s64", 8) X(F64, "f64", 8)
#define X(name, text, bytes) T_##name,
enum type { TYPE_LIST(X) TYPE_COUNT };
#undef X
enum type type_named(const char *text);     /* T_NO_TYPE when it is none */
uint32_t type_bytes(enum type t);
bool is_signed(enum type t);
bool is_float(enum type t);                 /* one number, not a pair */

enum space { SPACE_GENERIC, SPACE_GLOBAL, SPACE_SHARED, SPACE_LOCAL, SPACE_PARAM };

/* Special registers; each has a place at the head of every file, in this order. */
#define SPECIAL_LIST(X)                                                                          \
    X(TID_X, "%tid.x") X(TID_Y, "%tid.y") X(TID_Z, "%tid.z")                                     \
    X(NTID_X, "%ntid.x") X(NTID_Y, "%ntid.y") X(NTID_Z, "%ntid.z")                               \
    X(CTAID_X, "%ctaid.x") X(CTAID_Y, "%ctaid.y") X(CTAID_Z, "%ctaid.z")                         \
    X(NCTAID_X, "%nctaid.x") X(NCTAID_Y, "%nctaid.y") X(NCTAID_Z, "%nctaid.z")                   \
    X(LANEID, "%laneid")
#define X(name, text) SPECIAL_##name,
enum special { SPECIAL_LIST(X) SPECIAL_COUNT };
#undef X

enum { LANES = 32, SLOT4 = 4 * LANES, SLOT8 = 8 * LANES, SLOT_ALIGN = 32 };
/* Places of operands; the addresses of an instruction have the last two. */
enum { OPERANDS_MAX = 20, ADDRESS = OPERANDS_MAX - 2, ADDRESS2 };

/* Instructions that decide which lanes run next; all others just run. */
enum flow { FLOW_NEXT, FLOW_BRANCH, FLOW_EXIT, FLOW_BARRIER, FLOW_WARP, FLOW_ALIGNED };

struct warp;
struct ins;
typedef void exec_fn(struct warp *w, const struct ins *i, uint32_t lanes);

enum { NO_PREDICATE = 0 };  /* offset 0 is a special register: never a predicate */

struct ins {
    exec_fn *run;
    uint32_t guard;                     /* predicate, or NO_PREDICATE */
    bool guard_not;
    uint8_t flow, type, from, space;    /* type, from: the first two in the opcode */
    uint8_t mode, option;               /* which of the row's words it has */
    uint8_t count;                      /* registers of its first vector; bytes of cp.async */
    uint32_t bits64;                    /* bit k: operand k is 64 bits wide */
    uint32_t o[OPERANDS_MAX];           /* offsets in the file, in the order of its row */
    int64_t offset[2];                  /* of the addresses */
    uint32_t second;                    /* q of p|q, or NO_PREDICATE */
    uint32_t target;                    /* FLOW_BRANCH: instruction */
    uint32_t members;                   /* FLOW_WARP: operand that holds the mask */
    const char *text;
};

/* An instruction that cusim knows: how it is written, and what runs.  The rows stand beside the
 * functions that they name; the first that fits is taken.  Words are separated by blanks. */
struct row {
    const char *name;                   /* "shfl sync": its first part, and what must follow */
    const char *types;                  /* its types are among these */
    const char *operands;               /* one letter each, see ptx_decode.c */
    exec_fn *run;
    const char *modes;                  /* it has one of these: ins.mode; "-": or none, 0 */
    const char *options;                /* it may have one of these: ins.option, from 1 */
    const char *ignored;                /* it may have these, and they change nothing here */
    enum flow flow;
};
extern const struct row alu_rows[], compare_rows[], memory_rows[], warp_rows[], atomic_rows[],
    flow_rows[];

struct param {
    uint32_t offset, bytes;
};

struct constant {
    uint32_t slot;
    uint8_t bytes;                      /* 0: a predicate; 4; 8 */
    uint64_t value;
};

struct kernel {
    const char *name;
    struct param *params;
    uint32_t param_count, param_bytes;
    struct ins *code;
    uint32_t code_count;
    struct constant *constants;
    uint32_t constant_count, file_bytes;
    uint32_t shared_bytes, local_bytes; /* static */
    uint32_t max_threads;               /* .maxntid; 0: not said */
    uint32_t dynamic_shared_max;        /* cudaFuncSetAttribute */
    struct kernel *next;
};

/* Reads the kernels of a module; whatever is not known is a finding. */
struct kernel *ptx_parse(const char *text);

#endif
