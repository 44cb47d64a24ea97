/* tests/cusim/exec_alu.c - arithmetic, logic and moves: one small loop per opcode and type.
 *
 * Each line of a list makes a function and a row of the table: its name, opcode, types and
 * operands, the C types of d, x, y and z, and d as an expression of these; n[l] is a fourth number,
 * p the third operand as a predicate.  16-bit values lie in 4 bytes.  Denormals are kept whatever
 * .ftz says; ex2 is more exact than a GPU's approximation, never less.
 */
#include <math.h>

#include "exec.h"

typedef uint16_t u16;
typedef int16_t s16;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
typedef int64_t s64;
typedef float f32;

/* What a lane of a register is. */
typedef u32 lane_u16, lane_s16, lane_u32, lane_s32;
typedef u64 lane_u64, lane_s64;
typedef float lane_f32;

#define FUNCTION(run, name, types, operands, D, A, B, C, expr)                                   \
    EXEC(run)                                                                                    \
    {                                                                                            \
        lane_##D *d = REGISTER(lane_##D, 0);                                                     \
        const lane_##A *a = REGISTER(lane_##A, 1);                                               \
        const lane_##B *b = REGISTER(lane_##B, 2);                                               \
        const lane_##C *c = REGISTER(lane_##C, 3);                                               \
        UNUSED const u32 *n = REGISTER(u32, 4), p = predicate(w, i->o[3]);                       \
        EACH_LANE(A x = (A)a[l]; UNUSED B y = (B)b[l]; UNUSED C z = (C)c[l]; d[l] = (D)(expr))   \
    }
#define ROW(run, name, types, operands, ...) {name, types, operands, run},

/* The same for each width; t is its number of bits. */
#define INTEGERS(X, U, S, t)                                                                     \
    X(add_##U, "add", "u" #t " s" #t, "www", U, U, U, U, x + y)                                  \
    X(sub_##U, "sub", "u" #t " s" #t, "www", U, U, U, U, x - y)                                  \
    X(mul_##U, "mul lo", "u" #t " s" #t, "www", U, U, U, U, 1u * x * y)                          \
    X(mad_##U, "mad lo", "u" #t " s" #t, "wwww", U, U, U, U, 1u * x * y + z)                     \
    X(div_##U, "div", "u" #t, "www", U, U, U, U, y ? x / y : ~(U)0)                              \
    X(div_##S, "div", "s" #t, "www", U, S, S, S, !y ? -1 : y == -1 ? (S)(0 - (U)x) : x / y)      \
    X(rem_##U, "rem", "u" #t, "www", U, U, U, U, y ? x % y : x)                                  \
    X(rem_##S, "rem", "s" #t, "www", U, S, S, S, !y ? x : y == -1 ? 0 : x % y)                   \
    X(min_##U, "min", "u" #t, "www", U, U, U, U, x < y ? x : y)                                  \
    X(min_##S, "min", "s" #t, "www", U, S, S, S, x < y ? x : y)                                  \
    X(max_##U, "max", "u" #t, "www", U, U, U, U, x > y ? x : y)                                  \
    X(max_##S, "max", "s" #t, "www", U, S, S, S, x > y ? x : y)                                  \
    X(and_##U, "and", "b" #t, "www", U, U, U, U, x & y)                                          \
    X(or_##U, "or", "b" #t, "www", U, U, U, U, x | y)                                            \
    X(xor_##U, "xor", "b" #t, "www", U, U, U, U, x ^ y)                                          \
    X(not_##U, "not", "b" #t, "ww", U, U, U, U, ~x)                                              \
    X(neg_##U, "neg", "s" #t, "ww", U, U, U, U, 0 - x)                                           \
    X(mov_##U, "mov", "b" #t " u" #t " s" #t " f" #t, "ww", U, U, U, U, x)                       \
    X(shl_##U, "shl", "b" #t, "ww4", U, U, u32, u32, y >= t ? 0 : x << y)                        \
    X(shr_##U, "shr", "u" #t " b" #t, "ww4", U, U, u32, u32, y >= t ? 0 : x >> y)                \
    X(shr_##S, "shr", "s" #t, "ww4", U, S, u32, u32, x >> (y >= t ? t - 1 : y))

/* The whole of a product: D is twice as wide as U and S, and its operands are written so. */
#define PRODUCTS(X, U, S, D, t, wide)                                                            \
    X(mul_wide_##U, "mul wide", "u" #t, wide "44", D, U, U, U, (D)x * y)                         \
    X(mul_wide_##S, "mul wide", "s" #t, wide "44", D, S, S, S, (D)((s64)x * y))

#define BITS(X)                                                                                  \
    X(mul_hi_u32, "mul hi", "u32", "444", u32, u32, u32, u32, (u64)x * y >> 32)                  \
    X(mul_hi_s32, "mul hi", "s32", "444", u32, s32, s32, s32, (s64)x * y >> 32)                  \
    X(prmt, "prmt", "b32", "4444", u32, u32, u32, u32, byte_permute(x, y, z))                    \
    X(shf_l_wrap, "shf l wrap", "b32", "4444", u32, u32, u32, u32,                               \
      ((u64)y << 32 | x) << (z & 31) >> 32)                                                      \
    X(bfi, "bfi", "b32", "44444", u32, u32, u32, u32, insert_bits(x, y, z & 255, n[l] & 255))    \
    X(select_4, "selp", "b16 u16 s16 b32 u32 s32 f32", "wwwp", u32, u32, u32, u32,               \
      p >> l & 1 ? x : y)                                                                        \
    X(select_8, "selp", "b64 u64 s64 f64", "wwwp", u64, u64, u64, u64, p >> l & 1 ? x : y)

/* Of floats, and of halves by way of floats. */
#define NUMBERS(X, F, suffix)                                                                    \
    X(F##_add, "add", suffix, "www", f32, f32, f32, f32, x + y)                                  \
    X(F##_sub, "sub", suffix, "www", f32, f32, f32, f32, x - y)                                  \
    X(F##_mul, "mul", suffix, "www", f32, f32, f32, f32, x * y)                                  \
    X(F##_fma, "fma", suffix, "wwww", f32, f32, f32, f32, __builtin_fmaf(x, y, z))               \
    X(F##_min, "min", suffix, "www", f32, f32, f32, f32, x < y || y != y ? x : y)                \
    X(F##_max, "max", suffix, "www", f32, f32, f32, f32, x > y || y != y ? x : y)                \
    X(F##_neg, "neg", suffix, "ww", f32, f32, f32, f32, -x)                                      \
    X(F##_abs, "abs", suffix, "ww", f32, f32, f32, f32, __builtin_fabsf(x))

#define FLOATS(X)                                                                                \
    NUMBERS(X, float, "f32")                                                                     \
    X(float_div, "div", "f32", "444", f32, f32, f32, f32, x / y)                                 \
    X(ex2, "ex2", "f32", "44", f32, f32, f32, f32, exp2_close(x))                                \
    X(rcp, "rcp", "f32", "44", f32, f32, f32, f32, 1 / x)                                        \
    X(square_root, "sqrt", "f32", "44", f32, f32, f32, f32, sqrtf(x))

static inline u32 byte_permute(u32 a, u32 b, u32 selector)
{
    u64 both = a | (u64)b << 32;
    u32 r = 0;
    for (int k = 0; k < 4; k++) {
        u32 select = selector >> 4 * k & 15, byte = (u32)(both >> 8 * (select & 7)) & 255;
        if (select & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * k;
    }
    return r;
}

/* The low `width` bits of a, put into b from bit `at` on. */
static inline u32 insert_bits(u32 a, u32 b, u32 at, u32 width)
{
    u64 field = width >= 32 ? ~0u : (1ull << width) - 1;
    return at >= 32 ? b : (u32)((b & ~(field << at)) | (a & field) << at);
}

static inline float exp2_close(float x)
{
    float n = __builtin_rintf(x < -160 ? -160 : x > 160 ? 160 : x), f = (x != x ? 0 : x) - n;
    f = x < -160 || x > 160 ? 0 : f;
    float p = 1.5403530e-4f;                       /* Taylor in f log 2, |f| <= 1/2 */
    p = __builtin_fmaf(p, f, 1.3333558e-3f);
    p = __builtin_fmaf(p, f, 9.6181291e-3f);
    p = __builtin_fmaf(p, f, 5.5504109e-2f);
    p = __builtin_fmaf(p, f, 2.4022651e-1f);
    p = __builtin_fmaf(p, f, 6.9314718e-1f);
    p = __builtin_fmaf(p, f, 1.0f);
    s32 whole = (s32)n, half = whole / 2;
    float scale = as_float((u32)(half + 127) << 23);
    return x != x ? x : p * scale * as_float((u32)(whole - half + 127) << 23);
}

INTEGERS(FUNCTION, u16, s16, 16)
INTEGERS(FUNCTION, u32, s32, 32)
INTEGERS(FUNCTION, u64, s64, 64)
PRODUCTS(FUNCTION, u16, s16, u32, 16, "4")
PRODUCTS(FUNCTION, u32, s32, u64, 32, "8")
BITS(FUNCTION)
FLOATS(FUNCTION)

/* One half as a float, and pairs of them. */
#define HALF_FUNCTION(run, name, types, operands, D, A, B, C, expr)                              \
    static inline u32 run##_one(u32 a, u32 b, u32 c)                                             \
    {                                                                                            \
        UNUSED float x = from_f16((u16)a), y = from_f16((u16)b), z = from_f16((u16)c);           \
        return to_f16((float)(expr)) & 0xffff;                                                   \
    }                                                                                            \
    FUNCTION(run, , , , u32, u32, u32, u32, run##_one(x, y, z))                                  \
    FUNCTION(run##_x2, , , , u32, u32, u32, u32,                                                 \
             run##_one(x, y, z) | run##_one(x >> 16, y >> 16, z >> 16) << 16)
#define HALF_ROW(run, name, types, operands, ...)                                                \
    {name, types, operands, run}, {name, types "x2", operands, run##_x2},
NUMBERS(HALF_FUNCTION, f16, "f16")

#define PREDICATES(X)                                                                            \
    X(mov_pred, "mov", "pp", x)                                                                  \
    X(not_pred, "not", "pp", ~x)                                                                 \
    X(and_pred, "and", "ppp", x & y)                                                             \
    X(or_pred, "or", "ppp", x | y)                                                               \
    X(xor_pred, "xor", "ppp", x ^ y)
#define PREDICATE_FUNCTION(run, name, operands, expr)                                            \
    EXEC(run)                                                                                    \
    {                                                                                            \
        UNUSED u32 x = predicate(w, i->o[1]), y = predicate(w, i->o[2]);                         \
        set_predicate(w, i->o[0], expr, lanes);                                                  \
    }
#define PREDICATE_ROW(run, name, operands, expr) {name, "pred", operands, run},
PREDICATES(PREDICATE_FUNCTION)

const struct row alu_rows[] = {
    INTEGERS(ROW, u32, s32, 32)
    INTEGERS(ROW, u64, s64, 64)
    INTEGERS(ROW, u16, s16, 16)
    PRODUCTS(ROW, u16, s16, u32, 16, "4")
    PRODUCTS(ROW, u32, s32, u64, 32, "8")
    BITS(ROW)
    FLOATS(ROW)
    NUMBERS(HALF_ROW, f16, "f16")
    PREDICATES(PREDICATE_ROW)
    {NULL},
};
