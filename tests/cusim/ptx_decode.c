/* tests/cusim/ptx_decode.c - an opcode and its operands to what runs.
 *
 * Every part of an opcode must be one that this file knows for that family: an option that is
 * passed over could change the meaning.
 */
#include <stdlib.h>
#include <string.h>

#include "exec.h"
#include "ptx_parse.h"
#include "report.h"

#define X(name, text, bytes) {text, bytes},
static const struct {
    const char *text;
    int bytes;
} types[] = {TYPE_LIST(X)};
#undef X

enum type type_named(const char *text)
{
    for (int t = 1; t < TYPE_COUNT; t++) {
        if (!strcmp(types[t].text, text)) return (enum type)t;
    }
    return T_NO_TYPE;
}

int type_bytes(enum type t) { return types[t].bytes; }
const char *type_text(enum type t) { return types[t].text; }

bool has_part(const struct opcode *op, const char *name)
{
    for (uint32_t k = 1; k < op->parts; k++) {
        if (!strcmp(op->part[k], name)) return true;
    }
    return false;
}

enum type next_type(const struct opcode *op, uint32_t *at)
{
    while (*at < op->parts) {
        enum type t = type_named(op->part[(*at)++]);
        if (t) return t;
    }
    return T_NO_TYPE;
}

static enum type first_type(const struct opcode *op)
{
    uint32_t at = 1;
    return next_type(op, &at);
}

/* Every part must be a type or one of the words; `L1::` and `L2::` are hints. */
static void only(struct builder *b, const struct opcode *op, const char *words)
{
    for (uint32_t k = 1; k < op->parts; k++) {
        const char *part = op->part[k], *at = words;
        size_t n = strlen(part);
        if (type_named(part) || !strncmp(part, "L1::", 4) || !strncmp(part, "L2::", 4)) continue;
        while ((at = strstr(at, part))) {
            if ((at == words || at[-1] == ' ') && (!at[n] || at[n] == ' ')) break;
            at++;
        }
        if (!at) bad_ptx(b, "an option that cusim does not know", op->text);
    }
}

static int named(const struct opcode *op, const char *const *names, int count)
{
    for (int k = 0; k < count; k++) {
        if (has_part(op, names[k])) return k;
    }
    return -1;
}
#define NAMED(op, ...) named(op, (const char *const[]){__VA_ARGS__}, \
                             (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static void need(struct builder *b, const struct opcode *op, bool right)
{
    if (!right) bad_ptx(b, "this form is not known", op->text);
}

static enum space space_of(const struct opcode *op)
{
    int k = NAMED(op, "global", "shared", "shared::cta", "local", "param", "const");
    static const enum space spaces[] = {SPACE_GLOBAL, SPACE_SHARED, SPACE_SHARED, SPACE_LOCAL,
                                        SPACE_PARAM, SPACE_CONST};
    return k < 0 ? SPACE_GENERIC : spaces[k];
}

/* Operand k of the instruction: a register of either width, or a number as wide as the type. */
static void value_operand(struct builder *b, struct ins *i, uint32_t k, const struct arg *a,
                          uint32_t bytes)
{
    uint32_t wide = arg_bytes(a, bytes > 4 ? 8 : 4);
    if (a->kind == ARG_SYMBOL) wide = bytes > 4 ? 8 : 4;
    i->o[k] = arg_slot(b, a, wide);
    if (wide == 8) i->bits64 |= 1u << k;
}

static int64_t address_operand(struct builder *b, struct ins *i, uint32_t k, const struct arg *a)
{
    if (a->kind != ARG_ADDRESS) bad_ptx(b, "expected an address", i->text);
    bool wide = !a->reg || a->reg->bytes == 8;
    i->o[k] = a->reg ? a->reg->slot : constant_slot(b, 8, a->number);
    if (wide) i->bits64 |= 1u << k;
    return a->offset;
}

/* {a, b} or a, into operands k and on; returns how many. */
static uint32_t vector_operand(struct builder *b, struct ins *i, uint32_t k, struct arg *a,
                               uint32_t bytes)
{
    struct arg *items = a->kind == ARG_VECTOR ? a->items : a;
    uint32_t n = a->kind == ARG_VECTOR ? a->item_count : 1;
    for (uint32_t j = 0; j < n; j++) value_operand(b, i, k + j, &items[j], bytes);
    return n;
}

static void decode_load_store(struct builder *b, struct ins *i, const struct opcode *op,
                              struct arg *a, uint32_t n)
{
    bool load = op->part[0][0] == 'l';
    only(b, op, "global shared shared::cta local param const nc ca cg cs cv lu wb wt volatile weak "
         "relaxed gpu sys cta v2 v4 v8 b128");
    i->type = (uint8_t)first_type(op);
    i->space = (uint8_t)space_of(op);
    need(b, op, n == 2 && i->type && type_bytes(i->type) <= 8);
    struct arg *value = load ? &a[0] : &a[1], *address = load ? &a[1] : &a[0];
    i->count = (uint8_t)vector_operand(b, i, 0, value, (uint32_t)type_bytes(i->type));
    int vector = NAMED(op, "v2", "v4", "v8");
    need(b, op, i->count == (vector < 0 ? 1 : 2 << vector));
    i->offset = address_operand(b, i, i->count, address);
    i->run = load ? exec_load : exec_store;
    if (i->space == SPACE_PARAM) {
        need(b, op, load);
        if (!address->reg) i->run = exec_load_param;
    }
    if (i->space == SPACE_CONST) i->space = SPACE_GLOBAL;
}

static void decode_mov_vector(struct builder *b, struct ins *i, const struct opcode *op,
                              struct arg *a)
{
    i->type = (uint8_t)first_type(op);
    uint32_t bytes = (uint32_t)type_bytes(i->type);
    bool unpack = a[0].kind == ARG_VECTOR;
    struct arg *vector = unpack ? &a[0] : &a[1];
    uint32_t part = bytes / vector->item_count;
    i->count = (uint8_t)vector->item_count;
    need(b, op, bytes <= 8 && part && !(unpack && a[1].kind == ARG_VECTOR));
    if (unpack) {
        vector_operand(b, i, 0, vector, part);
        value_operand(b, i, i->count, &a[1], bytes);
    } else {
        value_operand(b, i, 0, &a[0], bytes);
        vector_operand(b, i, 1, vector, part);
    }
    i->run = unpack ? exec_unpack : exec_pack;
}

/* Between generic addresses and those of a space: one addition. */
static void decode_cvta(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a)
{
    only(b, op, "to global shared shared::cta local const param");
    need(b, op, first_type(op) == T_U64);
    enum space space = space_of(op);
    uint64_t window = space == SPACE_SHARED ? SHARED_WINDOW
                      : space == SPACE_LOCAL ? LOCAL_WINDOW : 0;
    need(b, op, space != SPACE_PARAM);
    if (has_part(op, "to")) window = 0 - window;
    struct opcode add = {.text = "add.s64", .part = {"add", "s64"}, .parts = 2};
    struct arg args[3] = {a[0], a[1], {.kind = ARG_NUMBER, .number = window}};
    decode_alu(b, i, &add, args, 3);
}

static void decode_cvt(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                       uint32_t n)
{
    only(b, op, "rn rni rzi rmi rpi sat satfinite ftz");
    uint32_t at = 1;
    i->type = (uint8_t)next_type(op, &at);
    i->from = (uint8_t)next_type(op, &at);
    need(b, op, i->type && i->from);
    int rounding = NAMED(op, "rni", "rzi", "rmi", "rpi");
    i->mode = (uint8_t)(rounding < 0 ? ROUND_DEFAULT : ROUND_NEAREST + rounding);
    if (has_part(op, "sat")) i->mode |= CVT_SATURATE;
    bool to_fp8 = i->type == T_E4M3X2 || i->type == T_E5M2X2;
    bool from_fp8_pair = i->from == T_E4M3X2 || i->from == T_E5M2X2;
    bool to_pair = (i->type == T_BF16X2 || i->type == T_F16X2) && i->from == T_F32;
    need(b, op, n == (to_pair || (to_fp8 && i->from == T_F32) ? 3u : 2u));
    if (to_fp8) need(b, op, has_part(op, "satfinite") && (n == 3 || i->from == T_F16X2));
    else if (from_fp8_pair) need(b, op, i->type == T_F16X2);
    else need(b, op, to_pair || (i->type <= T_F64 && i->from <= T_F64 && i->type != T_TF32 &&
                                 i->type != T_F16X2 && i->type != T_BF16X2));
    i->run = to_fp8 ? exec_cvt_fp8_pack : from_fp8_pair ? exec_cvt_fp8_unpack
             : to_pair ? exec_cvt_pack : exec_cvt;
    for (uint32_t k = 0; k < n; k++) {
        enum type t = k ? i->from : i->type;
        value_operand(b, i, k, &a[k], (uint32_t)type_bytes(t));
    }
    for (uint32_t k = n; k < 3; k++) i->o[k] = i->o[1];
}

static exec_fn *setp_run(enum type t)
{
    switch (t) {
    case T_B32: case T_U32: return exec_setp_u32;
    case T_S32: return exec_setp_s32;
    case T_B64: case T_U64: return exec_setp_u64;
    case T_S64: return exec_setp_s64;
    case T_B16: case T_U16: return exec_setp_u16;
    case T_S16: return exec_setp_s16;
    case T_F32: return exec_setp_f32;
    case T_F64: return exec_setp_f64;
    case T_F16: return exec_setp_f16;
    case T_BF16: return exec_setp_bf16;
    default: return NULL;
    }
}

static void decode_setp(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                        uint32_t n)
{
    static const char *const plain[] = {"eq", "ne", "lt", "le", "gt", "ge", "num", "nan",
                                        "equ", "neu", "ltu", "leu", "gtu", "geu",
                                        "lo", "ls", "hi", "hs"};
    static const uint8_t mode[] = {
        CMP_EQ, CMP_NE, CMP_LT, CMP_LE, CMP_GT, CMP_GE, CMP_NUM, CMP_NAN,
        CMP_EQ | CMP_OR_NAN, CMP_NE | CMP_OR_NAN, CMP_LT | CMP_OR_NAN, CMP_LE | CMP_OR_NAN,
        CMP_GT | CMP_OR_NAN, CMP_GE | CMP_OR_NAN, CMP_LT, CMP_LE, CMP_GT, CMP_GE};
    only(b, op, "eq ne lt le gt ge num nan equ neu ltu leu gtu geu lo ls hi hs and or xor ftz");
    int k = named(op, plain, sizeof mode);
    i->type = (uint8_t)first_type(op);
    i->run = setp_run(i->type);
    need(b, op, k >= 0 && i->run && (n == 3 || n == 4));
    i->mode = mode[k];
    i->operands = (uint8_t)n;
    uint32_t bytes = type_bytes(i->type) == 8 ? 8 : 4;
    i->o[0] = arg_slot(b, &a[0], 0);
    i->o[1] = arg_slot(b, &a[1], bytes);
    i->o[2] = arg_slot(b, &a[2], bytes);
    if (n == 4) {
        int join = NAMED(op, "and", "or", "xor");
        need(b, op, join >= 0);
        i->count = (uint8_t)(CMP_AND + join);
        if (a[3].negated) i->count |= CMP_NOT;
        i->o[3] = arg_slot(b, &a[3], 0);
    }
    if (a[0].reg2) {
        i->from = 1;
        i->o[4] = a[0].reg2->slot;
    }
}

static void decode_warp(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                        uint32_t n)
{
    const char *name = op->part[0];
    i->flow = FLOW_WARP;
    need(b, op, has_part(op, "sync") && n >= 1);
    i->members = arg_slot(b, &a[n - 1], 4);
    i->type = (uint8_t)first_type(op);
    if (!strcmp(name, "shfl")) {
        only(b, op, "sync up down bfly idx");
        need(b, op, n == 5);
        i->mode = (uint8_t)NAMED(op, "up", "down", "bfly", "idx");
        i->run = exec_shfl;
        for (uint32_t k = 0; k < 4; k++) i->o[k] = arg_slot(b, &a[k], 4);
        i->count = a[0].reg2 != NULL;
        if (a[0].reg2) i->o[5] = a[0].reg2->slot;
    } else if (!strcmp(name, "vote")) {
        only(b, op, "sync all any uni ballot");
        need(b, op, n == 3);
        i->mode = (uint8_t)NAMED(op, "all", "any", "uni", "ballot");
        i->run = exec_vote;
        i->o[0] = arg_slot(b, &a[0], i->mode == VOTE_BALLOT ? 4 : 0);
        i->o[1] = arg_slot(b, &a[1], 0);
        i->count = a[1].negated;
    } else if (!strcmp(name, "redux")) {
        only(b, op, "sync add min max and or xor");
        need(b, op, n == 3 && type_bytes(i->type) == 4 && i->type != T_F32);
        i->mode = (uint8_t)NAMED(op, "add", "min", "max", "and", "or", "xor");
        i->run = exec_redux;
        for (uint32_t k = 0; k < 2; k++) i->o[k] = arg_slot(b, &a[k], 4);
    } else {
        only(b, op, "sync any");
        need(b, op, n == 3 && has_part(op, "any"));
        i->run = exec_match;
        value_operand(b, i, 0, &a[0], 4);
        value_operand(b, i, 1, &a[1], (uint32_t)type_bytes(i->type));
    }
}

static void decode_barrier(struct builder *b, struct ins *i, const struct opcode *op,
                           struct arg *a, uint32_t n)
{
    if (has_part(op, "warp")) {
        i->flow = FLOW_WARP;
        i->run = exec_syncwarp;
        need(b, op, n == 1);
        i->members = arg_slot(b, &a[0], 4);
        return;
    }
    only(b, op, "cta sync aligned red popc and or");
    i->flow = FLOW_BARRIER;
    i->run = exec_nothing;
    bool red = has_part(op, "red");
    uint32_t first = red ? 1 : 0, plain = n - (red ? 2 : 0);
    need(b, op, (plain == 1 || plain == 2) && (red || has_part(op, "sync")));
    i->o[0] = arg_slot(b, &a[first], 4);
    i->o[1] = plain == 2 ? arg_slot(b, &a[first + 1], 4) : constant_slot(b, 4, 0);
    if (!red) return;
    i->mode = (uint8_t)(BAR_POPC + NAMED(op, "popc", "and", "or"));
    i->o[2] = arg_slot(b, &a[0], i->mode == BAR_POPC ? 4 : 0);
    i->o[3] = arg_slot(b, &a[n - 1], 0);
    if (a[n - 1].negated) i->mode |= BAR_NOT;
}

static void decode_matrix(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                          uint32_t n)
{
    i->flow = FLOW_ALIGNED;
    need(b, op, has_part(op, "sync") && has_part(op, "aligned"));
    if (!strcmp(op->part[0], "ldmatrix")) {
        only(b, op, "sync aligned m8n8 x1 x2 x4 trans shared shared::cta");
        need(b, op, n == 2 && first_type(op) == T_B16 && space_of(op) == SPACE_SHARED);
        i->space = SPACE_SHARED;
        i->count = (uint8_t)vector_operand(b, i, 0, &a[0], 4);
        need(b, op, i->count == (has_part(op, "x4") ? 4 : has_part(op, "x2") ? 2 : 1));
        i->offset = address_operand(b, i, i->count, &a[1]);
        i->mode = has_part(op, "trans");
        i->run = exec_ldmatrix;
        return;
    }
    if (!strcmp(op->part[0], "movmatrix")) {
        only(b, op, "sync aligned m8n8 trans");
        need(b, op, n == 2);
        for (uint32_t k = 0; k < 2; k++) i->o[k] = arg_slot(b, &a[k], 4);
        i->run = exec_movmatrix;
        return;
    }
    only(b, op, "sync aligned m16n8k8 m16n8k16 m16n8k32 row col");
    uint32_t at = 1;
    enum type d = next_type(op, &at), left = next_type(op, &at), right = next_type(op, &at);
    enum type c = next_type(op, &at);
    bool halves = d == T_F32 && c == T_F32 && left == right && (left == T_F16 || left == T_BF16);
    bool bytes = d == T_S32 && c == T_S32 && type_bytes(left) == 1 && type_bytes(right) == 1;
    int depth = has_part(op, "m16n8k8") ? 8 : has_part(op, "m16n8k16") ? 16 : 32;
    need(b, op, n == 4 && has_part(op, "row") && has_part(op, "col") &&
         ((halves && depth <= 16) || (bytes && depth >= 16 && left <= T_S8 && right <= T_S8)));
    i->type = (uint8_t)left, i->from = (uint8_t)right;
    i->count = (uint8_t)depth;
    i->run = halves ? exec_mma : exec_mma_int;
    uint32_t used = 0;
    for (uint32_t k = 0; k < 4; k++) used += vector_operand(b, i, used, &a[k], 4);
    need(b, op, used == 8u + (uint32_t)(halves ? depth / 4 + depth / 8 : depth / 8 + depth / 16));
}

static void decode_atomic(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                          uint32_t n)
{
    bool red = !strcmp(op->part[0], "red");
    only(b, op, "global shared shared::cta relaxed acquire release acq_rel gpu cta sys noftz "
         "add min max and or xor exch cas inc dec v2 v4");
    int fold = NAMED(op, "add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec");
    i->type = (uint8_t)first_type(op);
    i->space = (uint8_t)space_of(op);
    i->operands = (uint8_t)(red ? n + 1 : n);
    need(b, op, fold >= 0 && i->type && i->operands == (fold == ATOM_CAS ? 4 : 3));
    i->mode = (uint8_t)(fold | (red ? ATOM_NO_RESULT : 0));
    if (NAMED(op, "acquire", "release", "acq_rel") >= 0) i->mode |= ATOM_ORDERED;
    uint32_t bytes = (uint32_t)type_bytes(i->type);
    struct arg *address = &a[red ? 0 : 1], *value = &a[red ? 1 : 2];
    if (!red) value_operand(b, i, 0, &a[0], bytes);
    i->offset = address_operand(b, i, 1, address);
    i->count = (uint8_t)vector_operand(b, i, 2, value, bytes);
    if (fold == ATOM_CAS) value_operand(b, i, 3, &a[red ? 2 : 3], bytes);
    need(b, op, i->count == 1 || red);
    i->run = exec_atomic;
}

static void decode_async(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                         uint32_t n)
{
    need(b, op, has_part(op, "async") && !has_part(op, "bulk") && !has_part(op, "mbarrier"));
    if (has_part(op, "commit_group")) {
        i->run = exec_async_commit;
    } else if (has_part(op, "wait_all")) {
        i->run = exec_async_wait_all;
    } else if (has_part(op, "wait_group")) {
        i->run = exec_async_wait;
        i->o[0] = arg_slot(b, &a[0], 4);
    } else {
        only(b, op, "async ca cg shared shared::cta global");
        need(b, op, (n == 3 || n == 4) && a[2].kind == ARG_NUMBER &&
             (a[2].number == 4 || a[2].number == 8 || a[2].number == 16) &&
             (n == 3 || !a[3].reg || a[3].reg->bytes == 4));
        i->offset = address_operand(b, i, 0, &a[0]);
        i->offset2 = address_operand(b, i, 1, &a[1]);
        i->o[2] = arg_slot(b, &a[n - 1], 4);
        i->count = (uint8_t)a[2].number;
        i->run = exec_async;
    }
}

static exec_fn exec_trap;
static void exec_trap(struct warp *w, const struct ins *i, uint32_t lanes)
{
    (void)i;
    place.thread = w->id * LANES + (uint32_t)__builtin_ctz(lanes);
    report(BAD_LAUNCH, "the kernel trapped");
}

static bool decode_flow(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a)
{
    const char *name = op->part[0];
    i->run = exec_nothing;
    if (!strcmp(name, "bra")) {
        i->flow = FLOW_BRANCH;
    } else if (!strcmp(name, "brx")) {
        i->flow = FLOW_TABLE;
        i->o[0] = arg_slot(b, &a[0], 4);
    } else if (!strcmp(name, "ret") || !strcmp(name, "exit")) {
        i->flow = FLOW_EXIT;
    } else if (!strcmp(name, "trap")) {
        i->run = exec_trap;
    } else if (!strcmp(name, "membar")) {
        if (!has_part(op, "cta")) i->run = exec_fence;
    } else if (!strcmp(name, "fence")) {
        only(b, op, "sc acq_rel cta gpu sys");
        if (!has_part(op, "cta")) i->run = exec_fence;
    } else if (strcmp(name, "prefetch") && strcmp(name, "nanosleep")) {
        return false;
    }
    return true;
}

void decode(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a, uint32_t n)
{
    static const struct {
        const char *name;
        void (*decode)(struct builder *, struct ins *, const struct opcode *, struct arg *,
                       uint32_t);
    } families[] = {
        {"ld", decode_load_store}, {"ldu", decode_load_store}, {"st", decode_load_store},
        {"cvt", decode_cvt}, {"setp", decode_setp}, {"shfl", decode_warp}, {"vote", decode_warp},
        {"redux", decode_warp}, {"match", decode_warp}, {"bar", decode_barrier},
        {"barrier", decode_barrier}, {"ldmatrix", decode_matrix}, {"mma", decode_matrix},
        {"movmatrix", decode_matrix}, {"atom", decode_atomic}, {"red", decode_atomic},
        {"cp", decode_async},
    };
    const char *name = op->part[0];
    for (size_t k = 0; k < sizeof families / sizeof *families; k++) {
        if (strcmp(name, families[k].name)) continue;
        families[k].decode(b, i, op, a, n);
        return;
    }
    if (!strcmp(name, "cvta")) {
        decode_cvta(b, i, op, a);
    } else if (!strcmp(name, "mov") && (a[0].kind == ARG_VECTOR || a[1].kind == ARG_VECTOR)) {
        decode_mov_vector(b, i, op, a);
    } else if (!strcmp(name, "activemask")) {
        i->o[0] = arg_slot(b, &a[0], 4);
        i->run = exec_activemask;
    } else if (!strcmp(name, "isspacep")) {
        i->space = (uint8_t)space_of(op);
        i->o[0] = arg_slot(b, &a[0], 0);
        i->o[1] = arg_slot(b, &a[1], 8);
        i->run = exec_isspacep;
    } else if (!decode_alu(b, i, op, a, n) && !decode_flow(b, i, op, a)) {
        bad_ptx(b, "an instruction that cusim does not know", op->text);
    }
}
