/* tests/cusim/exec_alu.c - arithmetic, logic, comparisons and moves: one small loop per opcode.
 *
 * A row of the table names the opcode (without what changes nothing here) and the widths of its
 * operands, destination first: 4 and 8 bytes, p a predicate.  16-bit values lie in 4 bytes.
 * Denormals are kept whatever .ftz says; ex2, rcp, rsqrt, sin, cos, lg2 and tanh are more exact
 * than a GPU's approximations, never less.
 */
#include <math.h>
#include <stdio.h>

#include "exec.h"
#include "ptx_parse.h"
#include "report.h"

#define OP3(name, D, A, B, C, expr)                                                              \
    static void name(struct warp *w, const struct ins *i, uint32_t lanes)                        \
    {                                                                                            \
        D *d = REGISTER(D, 0);                                                                   \
        const A *a = REGISTER(A, 1);                                                             \
        const B *b = REGISTER(B, 2);                                                             \
        const C *c = REGISTER(C, 3);                                                             \
        EACH_LANE(A x = a[l]; B y = b[l]; C z = c[l]; d[l] = (D)(expr); (void)y; (void)z)        \
    }
#define OP1(name, D, A, expr) OP3(name, D, A, A, A, expr)
#define OP2(name, T, expr) OP3(name, T, T, T, T, expr)

typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
typedef int64_t s64;

#define INTEGER_OPS(U, S, u, s, bits)                                                            \
    OP2(add_##u, U, x + y)                                                                       \
    OP2(sub_##u, U, x - y)                                                                       \
    OP2(mul_##u, U, x * y)                                                                       \
    OP2(mad_##u, U, x * y + z)                                                                   \
    OP2(div_##u, U, y ? x / y : ~(U)0)                                                           \
    OP2(div_##s, S, !y ? -1 : y == -1 ? (S)(0 - (U)x) : x / y)                                   \
    OP2(rem_##u, U, y ? x % y : x)                                                               \
    OP2(rem_##s, S, !y ? x : y == -1 ? 0 : x % y)                                                \
    OP2(min_##u, U, x < y ? x : y)                                                               \
    OP2(min_##s, S, x < y ? x : y)                                                               \
    OP2(max_##u, U, x > y ? x : y)                                                               \
    OP2(max_##s, S, x > y ? x : y)                                                               \
    OP2(and_##u, U, x & y)                                                                       \
    OP2(or_##u, U, x | y)                                                                        \
    OP2(xor_##u, U, x ^ y)                                                                       \
    OP2(not_##u, U, ~x)                                                                          \
    OP2(neg_##u, U, 0 - x)                                                                       \
    OP2(abs_##s, S, x < 0 ? (S)(0 - (U)x) : x)                                                   \
    OP2(mov_##u, U, x)                                                                           \
    OP3(shl_##u, U, U, u32, u32, y >= bits ? 0 : x << y)                                         \
    OP3(shr_##u, U, U, u32, u32, y >= bits ? 0 : x >> y)                                         \
    OP3(shr_##s, S, S, u32, u32, x >> (y >= bits ? bits - 1 : y))                                \
    OP3(brev_##u, U, U, U, U, reverse(x, bits))                                                  \
    OP3(clz_##u, u32, U, U, U, x ? (u32)__builtin_clzll(x) - (64 - bits) : bits)                 \
    OP3(popc_##u, u32, U, U, U, (u32)__builtin_popcountll(x))                                    \
    OP3(bfe_##u, U, U, u32, u32, extract(x, y & 255, z & 255, bits, false))                      \
    OP3(bfe_##s, U, U, u32, u32, extract((u64)(s64)(S)x, y & 255, z & 255, bits, true))          \
    OP3(bfind_##u, u32, U, U, U, x ? 63 - (u32)__builtin_clzll(x) : ~0u)

static u64 reverse(u64 x, u32 bits)
{
    u64 r = 0;
    for (u32 k = 0; k < bits; k++) r |= (x >> k & 1) << (bits - 1 - k);
    return r;
}

static u64 extract(u64 x, u32 start, u32 length, u32 bits, bool is_signed)
{
    u64 sign = is_signed && x >> 63 ? ~0ull : 0;
    u64 field = start >= bits ? sign : is_signed ? (u64)((s64)x >> start) : x >> start;
    if (!length) return 0;
    if (length >= 64) return field;
    field &= (1ull << length) - 1;
    if (is_signed && start + length < bits && field >> (length - 1)) field |= ~0ull << length;
    return start + length >= bits && is_signed ? field | (sign << (length - 1)) : field;
}

INTEGER_OPS(u32, s32, u32, s32, 32)
INTEGER_OPS(u64, s64, u64, s64, 64)

OP3(mulwide_u32, u64, u32, u32, u64, (u64)x * y)
OP3(mulwide_s32, s64, s32, s32, s64, (s64)x * y)
OP3(madwide_u32, u64, u32, u32, u64, (u64)x * y + z)
OP3(madwide_s32, u64, s32, s32, u64, (u64)((s64)x * y) + z)
OP2(mulhi_u32, u32, (u64)x * y >> 32)
OP2(mulhi_s32, s32, (s64)x * y >> 32)
OP2(madhi_u32, u32, ((u64)x * y >> 32) + z)
OP2(madhi_s32, s32, (u32)((s64)x * y >> 32) + (u32)z)
OP2(mulhi_u64, u64, (unsigned __int128)x * y >> 64)
OP2(mulhi_s64, s64, (__int128)x * y >> 64)

/* 16 bits in 4-byte lanes. */
#define S16(v) ((s32)(int16_t)(v))
#define U16(v) ((u32)(uint16_t)(v))
OP2(add_16, u32, U16(x + y))
OP2(sub_16, u32, U16(x - y))
OP2(mul_16, u32, U16(x * y))
OP2(mad_16, u32, U16(x * y + z))
OP2(mulwide_u16, u32, U16(x) * U16(y))
OP2(mulwide_s16, u32, (u32)(S16(x) * S16(y)))
OP2(madwide_u16, u32, U16(x) * U16(y) + z)
OP2(madwide_s16, u32, (u32)(S16(x) * S16(y)) + z)
OP2(div_u16, u32, U16(y) ? U16(x) / U16(y) : 0xffff)
OP2(rem_u16, u32, U16(y) ? U16(x) % U16(y) : U16(x))
OP2(min_u16, u32, U16(x) < U16(y) ? U16(x) : U16(y))
OP2(max_u16, u32, U16(x) > U16(y) ? U16(x) : U16(y))
OP2(min_s16, u32, U16(S16(x) < S16(y) ? x : y))
OP2(max_s16, u32, U16(S16(x) > S16(y) ? x : y))
OP2(neg_16, u32, U16(0 - x))
OP2(abs_s16, u32, U16(S16(x) < 0 ? 0 - x : x))
OP2(not_16, u32, U16(~x))
OP2(shl_16, u32, y >= 16 ? 0 : U16(x << y))
OP2(shr_u16, u32, y >= 16 ? 0 : U16(x) >> y)
OP2(shr_s16, u32, U16(S16(x) >> (y >= 16 ? 15 : y)))

/* Bit play of 32 bits with more operands. */
static u32 byte_permute(u32 a, u32 b, u32 selector)
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

static u32 dot4(u32 a, u32 b, u32 c, bool a_signed, bool b_signed)
{
    for (int k = 0; k < 32; k += 8) {
        s32 x = a_signed ? (int8_t)(a >> k) : (s32)(a >> k & 255);
        s32 y = b_signed ? (int8_t)(b >> k) : (s32)(b >> k & 255);
        c += (u32)(x * y);
    }
    return c;
}

OP2(prmt, u32, byte_permute(x, y, z))
OP2(shf_l_wrap, u32, (u32)(((u64)y << 32 | x) << (z & 31) >> 32))
OP2(shf_r_wrap, u32, (u32)(((u64)y << 32 | x) >> (z & 31)))
OP2(shf_l_clamp, u32, z >= 32 ? x : (u32)(((u64)y << 32 | x) << z >> 32))
OP2(shf_r_clamp, u32, z >= 32 ? y : (u32)(((u64)y << 32 | x) >> z))
OP2(dp4a_ss, u32, dot4(x, y, z, true, true))
OP2(dp4a_su, u32, dot4(x, y, z, true, false))
OP2(dp4a_us, u32, dot4(x, y, z, false, true))
OP2(dp4a_uu, u32, dot4(x, y, z, false, false))
OP2(sad_u32, u32, (x > y ? x - y : y - x) + z)
OP2(sad_s32, u32, ((s32)x > (s32)y ? x - y : y - x) + z)
OP3(slct_s32, u32, u32, u32, s32, z >= 0 ? x : y)

static void lop3(struct warp *w, const struct ins *i, uint32_t lanes)
{
    u32 *d = REGISTER(u32, 0);
    const u32 *a = REGISTER(u32, 1), *b = REGISTER(u32, 2), *c = REGISTER(u32, 3);
    u32 table = *REGISTER(u32, 4);
    EACH_LANE(u32 x = a[l]; u32 y = b[l]; u32 z = c[l]; u32 r = 0;
              r |= table & 1 ? ~x & ~y & ~z : 0; r |= table & 2 ? ~x & ~y & z : 0;
              r |= table & 4 ? ~x & y & ~z : 0; r |= table & 8 ? ~x & y & z : 0;
              r |= table & 16 ? x & ~y & ~z : 0; r |= table & 32 ? x & ~y & z : 0;
              r |= table & 64 ? x & y & ~z : 0; r |= table & 128 ? x & y & z : 0; d[l] = r)
}

#define INSERT(name, T, bits)                                                                    \
    static void name(struct warp *w, const struct ins *i, uint32_t lanes)                        \
    {                                                                                            \
        T *d = REGISTER(T, 0);                                                                   \
        const T *a = REGISTER(T, 1), *b = REGISTER(T, 2);                                        \
        const u32 *p = REGISTER(u32, 3), *n = REGISTER(u32, 4);                                  \
        EACH_LANE(u32 at = p[l] & 255; u32 width = n[l] & 255;                                   \
                  u64 field = width >= 64 ? ~0ull : (1ull << width) - 1;                         \
                  field = at >= bits ? 0 : field << at;                                          \
                  d[l] = (T)((b[l] & ~field) | ((at >= bits ? 0 : (u64)a[l] << at) & field)))    \
    }
INSERT(bfi_b32, u32, 32)
INSERT(bfi_b64, u64, 64)

/* Floats. */
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

/* Rounded down or to zero: through the double sum, which is exact or very near. */
static float fma_toward(float x, float y, float z, bool to_zero)
{
    double sum = fma(x, y, z);
    float f = (float)sum;
    if (to_zero ? fabs(f) > fabs(sum) : f > sum) f = nextafterf(f, to_zero ? 0 : -INFINITY);
    return f;
}

OP2(fma_rm_f32, float, fma_toward(x, y, z, false))
OP2(fma_rz_f32, float, fma_toward(x, y, z, true))
OP2(add_f32, float, x + y)
OP2(sub_f32, float, x - y)
OP2(mul_f32, float, x * y)
OP2(fma_f32, float, __builtin_fmaf(x, y, z))
OP2(div_f32, float, x / y)
OP2(min_f32, float, x < y || y != y ? x : y)
OP2(max_f32, float, x > y || y != y ? x : y)
OP2(min_nan_f32, float, x != x || y != y ? NAN : x < y ? x : y)
OP2(max_nan_f32, float, x != x || y != y ? NAN : x > y ? x : y)
OP2(neg_f32, float, -x)
OP2(abs_f32, float, __builtin_fabsf(x))
OP2(ex2_f32, float, exp2_close(x))
OP2(lg2_f32, float, log2f(x))
OP2(rcp_f32, float, 1 / x)
OP2(rsqrt_f32, float, 1 / sqrtf(x))
OP2(sqrt_f32, float, sqrtf(x))
OP2(sin_f32, float, sinf(x))
OP2(cos_f32, float, cosf(x))
OP2(tanh_f32, float, tanhf(x))
OP2(copysign_f32, float, copysignf(y, x))
OP2(add_sat_f32, float, fminf(fmaxf(x + y, 0), 1))
OP2(mul_sat_f32, float, fminf(fmaxf(x * y, 0), 1))
OP2(fma_sat_f32, float, fminf(fmaxf(fmaf(x, y, z), 0), 1))
OP2(add_f64, double, x + y)
OP2(sub_f64, double, x - y)
OP2(mul_f64, double, x * y)
OP2(fma_f64, double, fma(x, y, z))
OP2(div_f64, double, x / y)
OP2(min_f64, double, fmin(x, y))
OP2(max_f64, double, fmax(x, y))
OP2(neg_f64, double, -x)
OP2(abs_f64, double, fabs(x))
OP2(rcp_f64, double, 1 / x)
OP2(sqrt_f64, double, sqrt(x))
OP2(rsqrt_f64, double, 1 / sqrt(x))

/* Halves: alone and in pairs. */
#define HALF_OP(name, half, expr)                                                                \
    static inline u32 name##_one(u32 a, u32 b, u32 c)                                            \
    {                                                                                            \
        float x = from_##half(a & 0xffff), y = from_##half(b & 0xffff);                          \
        float z = from_##half(c & 0xffff);                                                       \
        (void)y, (void)z;                                                                        \
        return to_##half((float)(expr)) & 0xffff;                                                \
    }                                                                                            \
    OP2(name##_##half, u32, name##_one(x, y, z))                                                 \
    OP2(name##_##half##x2, u32, name##_one(x, y, z) | name##_one(x >> 16, y >> 16, z >> 16) << 16)
#define HALF_OPS(half, h)                                                                        \
    HALF_OP(add_##h, half, x + y)                                                                \
    HALF_OP(sub_##h, half, x - y)                                                                \
    HALF_OP(mul_##h, half, x * y)                                                                \
    HALF_OP(fma_##h, half, (double)x * y + z)                                                    \
    HALF_OP(max_##h, half, x > y || y != y ? x : y)                                              \
    HALF_OP(min_##h, half, x < y || y != y ? x : y)                                              \
    HALF_OP(ex2_##h, half, exp2_close(x))                                                        \
    HALF_OP(tanh_##h, half, tanhf(x))                                                            \
    HALF_OP(neg_##h, half, -x)                                                                   \
    HALF_OP(abs_##h, half, fabsf(x))
HALF_OPS(f16, f)
HALF_OPS(bf16, b)

/* Predicates. */
#define PREDICATE_OP(name, expr)                                                                 \
    static void name(struct warp *w, const struct ins *i, uint32_t lanes)                        \
    {                                                                                            \
        u32 x = predicate(w, i->o[1]), y = predicate(w, i->o[2]);                                \
        (void)y;                                                                                 \
        set_predicate(w, i->o[0], expr, lanes);                                                  \
    }
PREDICATE_OP(and_pred, x & y)
PREDICATE_OP(or_pred, x | y)
PREDICATE_OP(xor_pred, x ^ y)
PREDICATE_OP(not_pred, ~x)
PREDICATE_OP(mov_pred, x)

#define SELECT(name, T)                                                                          \
    static void name(struct warp *w, const struct ins *i, uint32_t lanes)                        \
    {                                                                                            \
        T *d = REGISTER(T, 0);                                                                   \
        const T *a = REGISTER(T, 1), *b = REGISTER(T, 2);                                        \
        u32 p = predicate(w, i->o[3]);                                                           \
        EACH_LANE(T x = a[l]; T y = b[l]; d[l] = p >> l & 1 ? x : y)                             \
    }
SELECT(selp_4, u32)
SELECT(selp_8, u64)

static const struct row {
    const char *key, *widths;
    exec_fn *run;
} rows[] = {
#define BOTH(op, kind32, kind64, run32, run64, w32, w64)                                         \
    {op "." kind32, w32, run32}, {op "." kind64, w64, run64}
#define SIGNS(op, w32, w64, run)                                                                 \
    BOTH(op, "u32", "u64", run##_u32, run##_u64, w32, w64),                                      \
    BOTH(op, "s32", "s64", run##_s32, run##_s64, w32, w64)
#define SAME(op, w32, w64, run)                                                                  \
    BOTH(op, "u32", "u64", run##_u32, run##_u64, w32, w64),                                      \
    BOTH(op, "s32", "s64", run##_u32, run##_u64, w32, w64),                                      \
    BOTH(op, "b32", "b64", run##_u32, run##_u64, w32, w64)
    SAME("add", "444", "888", add), SAME("sub", "444", "888", sub),
    SAME("mul.lo", "444", "888", mul), SAME("mad.lo", "4444", "8888", mad),
    SAME("and", "444", "888", and), SAME("or", "444", "888", or), SAME("xor", "444", "888", xor),
    SAME("not", "44", "88", not), SAME("neg", "44", "88", neg), SAME("mov", "44", "88", mov),
    SIGNS("div", "444", "888", div), SIGNS("rem", "444", "888", rem),
    SIGNS("min", "444", "888", min), SIGNS("max", "444", "888", max),
    SIGNS("shr", "444", "884", shr), SIGNS("bfe", "4444", "8844", bfe),
    SIGNS("mul.hi", "444", "888", mulhi),
    BOTH("shl", "b32", "b64", shl_u32, shl_u64, "444", "884"),
    BOTH("shr", "b32", "b64", shr_u32, shr_u64, "444", "884"),
    BOTH("abs", "s32", "s64", abs_s32, abs_s64, "44", "88"),
    BOTH("brev", "b32", "b64", brev_u32, brev_u64, "44", "88"),
    BOTH("clz", "b32", "b64", clz_u32, clz_u64, "44", "48"),
    BOTH("popc", "b32", "b64", popc_u32, popc_u64, "44", "48"),
    BOTH("bfind", "u32", "u64", bfind_u32, bfind_u64, "44", "48"),
    BOTH("bfi", "b32", "b64", bfi_b32, bfi_b64, "44444", "88844"),
    BOTH("selp", "b32", "b64", selp_4, selp_8, "444p", "888p"),
    BOTH("selp", "u32", "u64", selp_4, selp_8, "444p", "888p"),
    BOTH("selp", "s32", "s64", selp_4, selp_8, "444p", "888p"),
    BOTH("selp", "f32", "f64", selp_4, selp_8, "444p", "888p"),
    {"selp.b16", "444p", selp_4}, {"selp.u16", "444p", selp_4}, {"selp.s16", "444p", selp_4},
    {"mul.wide.u32", "844", mulwide_u32}, {"mul.wide.s32", "844", mulwide_s32},
    {"mad.wide.u32", "8448", madwide_u32}, {"mad.wide.s32", "8448", madwide_s32},
    {"mad.hi.u32", "4444", madhi_u32}, {"mad.hi.s32", "4444", madhi_s32},
    {"add.u16", "444", add_16}, {"add.s16", "444", add_16}, {"sub.u16", "444", sub_16},
    {"sub.s16", "444", sub_16}, {"mul.lo.u16", "444", mul_16}, {"mul.lo.s16", "444", mul_16},
    {"mad.lo.u16", "4444", mad_16}, {"mad.lo.s16", "4444", mad_16},
    {"mul.wide.u16", "444", mulwide_u16}, {"mul.wide.s16", "444", mulwide_s16},
    {"mad.wide.u16", "4444", madwide_u16}, {"mad.wide.s16", "4444", madwide_s16},
    {"div.u16", "444", div_u16}, {"rem.u16", "444", rem_u16}, {"min.u16", "444", min_u16},
    {"max.u16", "444", max_u16}, {"min.s16", "444", min_s16}, {"max.s16", "444", max_s16},
    {"neg.s16", "44", neg_16}, {"abs.s16", "44", abs_s16}, {"and.b16", "444", and_u32},
    {"or.b16", "444", or_u32}, {"xor.b16", "444", xor_u32}, {"not.b16", "44", not_16},
    {"shl.b16", "444", shl_16}, {"shr.u16", "444", shr_u16}, {"shr.b16", "444", shr_u16},
    {"shr.s16", "444", shr_s16}, {"mov.u16", "44", mov_u32}, {"mov.b16", "44", mov_u32},
    {"mov.s16", "44", mov_u32}, {"mov.f32", "44", mov_u32}, {"mov.f64", "88", mov_u64},
    {"prmt.b32", "4444", prmt}, {"lop3.b32", "44444", lop3},
    {"shf.l.wrap.b32", "4444", shf_l_wrap}, {"shf.r.wrap.b32", "4444", shf_r_wrap},
    {"shf.l.clamp.b32", "4444", shf_l_clamp}, {"shf.r.clamp.b32", "4444", shf_r_clamp},
    {"dp4a.s32.s32", "4444", dp4a_ss}, {"dp4a.s32.u32", "4444", dp4a_su},
    {"dp4a.u32.s32", "4444", dp4a_us}, {"dp4a.u32.u32", "4444", dp4a_uu},
    {"sad.u32", "4444", sad_u32}, {"sad.s32", "4444", sad_s32},
    {"slct.b32.s32", "4444", slct_s32}, {"slct.u32.s32", "4444", slct_s32},
    {"slct.f32.s32", "4444", slct_s32},
    {"add.f32", "444", add_f32}, {"sub.f32", "444", sub_f32}, {"mul.f32", "444", mul_f32},
    {"fma.rm.f32", "4444", fma_rm_f32}, {"fma.rz.f32", "4444", fma_rz_f32},
    {"fma.f32", "4444", fma_f32}, {"mad.f32", "4444", fma_f32}, {"div.f32", "444", div_f32},
    {"min.f32", "444", min_f32}, {"max.f32", "444", max_f32},
    {"min.NaN.f32", "444", min_nan_f32}, {"max.NaN.f32", "444", max_nan_f32},
    {"neg.f32", "44", neg_f32}, {"abs.f32", "44", abs_f32}, {"ex2.f32", "44", ex2_f32},
    {"lg2.f32", "44", lg2_f32}, {"rcp.f32", "44", rcp_f32}, {"rsqrt.f32", "44", rsqrt_f32},
    {"sqrt.f32", "44", sqrt_f32}, {"sin.f32", "44", sin_f32}, {"cos.f32", "44", cos_f32},
    {"tanh.f32", "44", tanh_f32}, {"copysign.f32", "444", copysign_f32},
    {"add.sat.f32", "444", add_sat_f32}, {"mul.sat.f32", "444", mul_sat_f32},
    {"fma.sat.f32", "4444", fma_sat_f32},
    {"add.f64", "888", add_f64}, {"sub.f64", "888", sub_f64}, {"mul.f64", "888", mul_f64},
    {"fma.f64", "8888", fma_f64}, {"div.f64", "888", div_f64}, {"min.f64", "888", min_f64},
    {"max.f64", "888", max_f64}, {"neg.f64", "88", neg_f64}, {"abs.f64", "88", abs_f64},
    {"rcp.f64", "88", rcp_f64}, {"sqrt.f64", "88", sqrt_f64}, {"rsqrt.f64", "88", rsqrt_f64},
#define HALF_ROWS(op, widths, run)                                                               \
    {op ".f16", widths, run##_f_f16}, {op ".f16x2", widths, run##_f_f16x2},                      \
    {op ".bf16", widths, run##_b_bf16}, {op ".bf16x2", widths, run##_b_bf16x2}
    HALF_ROWS("add", "444", add), HALF_ROWS("sub", "444", sub), HALF_ROWS("mul", "444", mul),
    HALF_ROWS("fma", "4444", fma), HALF_ROWS("max", "444", max), HALF_ROWS("min", "444", min),
    HALF_ROWS("ex2", "44", ex2), HALF_ROWS("tanh", "44", tanh), HALF_ROWS("neg", "44", neg),
    HALF_ROWS("abs", "44", abs),
    {"and.pred", "ppp", and_pred}, {"or.pred", "ppp", or_pred}, {"xor.pred", "ppp", xor_pred},
    {"not.pred", "pp", not_pred}, {"mov.pred", "pp", mov_pred},
};

/* What may stand in an opcode and changes nothing here. */
static bool is_quiet(const char *part)
{
    static const char *const quiet[] = {"rn", "ftz", "approx", "full", "noftz"};
    for (size_t k = 0; k < sizeof quiet / sizeof *quiet; k++) {
        if (!strcmp(part, quiet[k])) return true;
    }
    return false;
}

bool decode_alu(struct builder *b, struct ins *i, const struct opcode *op, struct arg *a,
                uint32_t n)
{
    char key[128] = "";
    size_t used = 0;
    for (uint32_t k = 0; k < op->parts; k++) {
        if (k && is_quiet(op->part[k])) continue;
        used += (size_t)snprintf(key + used, sizeof key - used, k ? ".%s" : "%s", op->part[k]);
    }
    const struct row *row = NULL;
    for (size_t k = 0; k < sizeof rows / sizeof *rows && !row; k++) {
        if (!strcmp(rows[k].key, key)) row = &rows[k];
    }
    if (!row) return false;
    if (n != strlen(row->widths)) bad_ptx(b, "operands", op->text);
    i->run = row->run;
    i->operands = (uint8_t)n;
    for (uint32_t k = 0; k < n; k++) {
        char c = row->widths[k];
        if (a[k].negated) bad_ptx(b, "a negated operand", op->text);
        i->o[k] = arg_slot(b, &a[k], c == 'p' ? 0 : (uint32_t)(c - '0'));
    }
    for (uint32_t k = n; k < 4; k++) i->o[k] = i->o[n > 1 ? 1 : 0];   /* read and not used */
    return true;
}
