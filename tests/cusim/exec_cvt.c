/* tests/cusim/exec_cvt.c - comparisons and conversions. */
#include <math.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "exec.h"

/* One bit per lane from one byte (0 or 255) per lane. */
static uint32_t gather_bits(const uint8_t *bytes)
{
#ifdef __AVX2__
    return (uint32_t)_mm256_movemask_epi8(_mm256_loadu_si256((const __m256i *)bytes));
#else
    uint32_t bits = 0;
    for (int l = 0; l < LANES; l++) bits |= (uint32_t)(bytes[l] & 1) << l;
    return bits;
#endif
}

/* The comparisons of setp, and of which relations each is true. */
enum { LESS = 1, EQUAL = 2, GREATER = 4, NOT_A_NUMBER = 8 };
#define COMPARISONS "eq ne lt le gt ge num nan equ neu ltu leu gtu geu lo ls hi hs"
static const uint8_t true_for[] = {2, 5, 1, 3, 4, 6, 7, 8, 10, 13, 9, 11, 12, 14, 1, 3, 4, 6};
#define JOINS "and or xor"
enum { NO_JOIN, JOIN_AND, JOIN_OR, JOIN_XOR };

/* Joins the result with the predicate of the fourth operand; p|q: q gets the opposite. */
static void finish_compare(struct warp *w, const struct ins *i, uint32_t lanes, uint32_t result)
{
    uint32_t other = ~result, c = i->option ? predicate(w, i->o[3]) : 0;
    if (i->negated) c = ~c;
    switch (i->option) {
    case JOIN_AND: result &= c, other &= c; break;
    case JOIN_OR: result |= c, other |= c; break;
    case JOIN_XOR: result ^= c, other ^= c; break;
    default: break;
    }
    set_predicate(w, i->o[0], result, lanes);
    if (i->second) set_predicate(w, i->second, other, lanes);
}

#define IF(relation, expr)                                                                       \
    if (relations & relation) {                                                                  \
        LOOP_IS_SAFE                                                                             \
        for (int l = 0; l < LANES; l++) bytes[l] = expr ? 255 : 0;                               \
        result |= gather_bits(bytes);                                                            \
    }
#define COMPARE(name, T, value)                                                                  \
    static void name(struct warp *w, const struct ins *i, uint32_t lanes)                        \
    {                                                                                            \
        const T *a = REGISTER(T, 1), *b = REGISTER(T, 2);                                        \
        uint8_t bytes[LANES], relations = true_for[i->mode];                                     \
        uint32_t result = 0;                                                                     \
        IF(LESS, (value(a[l]) < value(b[l])))                                                    \
        IF(EQUAL, (value(a[l]) == value(b[l])))                                                  \
        IF(GREATER, (value(a[l]) > value(b[l])))                                                 \
        IF(NOT_A_NUMBER, (value(a[l]) != value(a[l]) || value(b[l]) != value(b[l])))             \
        finish_compare(w, i, lanes, result);                                                     \
    }
#define AS_IS(v) (v)
#define AS_S16(v) ((int16_t)(v))
#define AS_U16(v) ((uint16_t)(v))
COMPARE(compare_u32, uint32_t, AS_IS)
COMPARE(compare_s32, int32_t, AS_IS)
COMPARE(compare_u64, uint64_t, AS_IS)
COMPARE(compare_s64, int64_t, AS_IS)
COMPARE(compare_u16, uint32_t, AS_U16)
COMPARE(compare_s16, uint32_t, AS_S16)
COMPARE(compare_f32, float, AS_IS)
COMPARE(compare_bf16, uint32_t, from_bf16)
COMPARE(compare_f16, uint32_t, from_f16)

/* FP8: 1 sign, then 4 + 3 bits (bias 7, no infinity) or 5 + 2 (bias 15). */
static float from_fp8(uint32_t bits, bool e5m2)
{
    int mantissa_bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7;
    int exponent = (int)(bits & 127) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    float f;
    if (e5m2 && exponent == 31) f = mantissa ? NAN : INFINITY;
    else if (!e5m2 && (bits & 127) == 127) f = NAN;
    else if (!exponent) f = ldexpf((float)mantissa, 1 - bias - mantissa_bits);
    else f = ldexpf((float)(mantissa | 1 << mantissa_bits), exponent - bias - mantissa_bits);
    return bits & 128 ? -f : f;
}

/* To the nearest, and to the largest number when over. */
static uint32_t to_fp8(float f, bool e5m2)
{
    uint32_t sign = float_bits(f) >> 24 & 128, most = e5m2 ? 0x7b : 0x7e;
    float size = fabsf(f);
    if (f != f) return 0x7f;
    if (size >= from_fp8(most, e5m2)) return sign | most;
    int mantissa_bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7, exponent;
    frexpf(size, &exponent);                        /* size = m * 2^exponent, m in [1/2, 1) */
    int lowest = 1 - bias - mantissa_bits, unit = exponent - 1 - mantissa_bits;
    if (unit < lowest || size == 0) unit = lowest;
    uint32_t steps = (uint32_t)rintf(ldexpf(size, -unit));      /* ties to even */
    return sign | (steps + ((uint32_t)(unit - lowest) << mantissa_bits));
}

long double load_number(uint64_t bits, enum type t)
{
    double d;
    switch (t) {
    case T_F16: return from_f16((uint32_t)bits);
    case T_BF16: return from_bf16((uint32_t)bits & 0xffff);
    case T_F32: return as_float((uint32_t)bits);
    case T_F64: memcpy(&d, &bits, 8); return d;
    case T_S8: return (int8_t)bits;
    case T_S16: return (int16_t)bits;
    case T_S32: return (int32_t)bits;
    case T_S64: return (int64_t)bits;
    default: return bits & ~0ull >> (64 - 8 * type_bytes(t));
    }
}

uint64_t store_number(long double v, enum type t)
{
    double d = (double)v;
    uint64_t bits;
    switch (t) {
    case T_F16: return to_f16((float)v) & 0xffff;
    case T_BF16: return to_bf16((float)v) & 0xffff;
    case T_F32: return float_bits((float)v);
    case T_F64: memcpy(&bits, &d, 8); return bits;
    default: bits = v < 0 ? (uint64_t)(int64_t)v : (uint64_t)v;
    }
    if (t == T_S8) return (uint32_t)(int8_t)bits;
    return bits & ~0ull >> (64 - 8 * type_bytes(t));
}

/* NaN to 0. */
static long double clamp(long double v, enum type t)
{
    int bits = 8 * (int)type_bytes(t);
    long double most = is_float(t) ? 1 : ldexpl(1, bits - is_signed(t)) - 1;
    long double least = is_signed(t) ? -most - 1 : 0;
    return !(v > least) ? v != v ? 0 : least : v > most ? most : v;
}

enum { AS_TYPE, TO_NEAREST, TO_ZERO, DOWN, UP };
#define ROUNDINGS "- rni rzi rmi rpi"

static uint64_t convert(uint64_t bits, const struct ins *i)
{
    bool saturate = i->option;
    long double v = load_number(bits, i->from);
    if (is_float(i->from)) {
        switch (i->mode) {
        case TO_NEAREST: v = nearbyintl(v); break;
        case TO_ZERO: v = truncl(v); break;
        case DOWN: v = floorl(v); break;
        case UP: v = ceill(v); break;
        default: v = is_float(i->type) ? v : truncl(v); break;
        }
        saturate |= !is_float(i->type);
    }
    return store_number(saturate ? clamp(v, i->type) : v, i->type);
}

/* These are most of all conversions. */
#define FAST(to, D, from_type, A, expr)                                                          \
    if (i->type == T_##to && i->from == T_##from_type &&                                         \
        i->bits64 == ((sizeof(D) == 8) | (sizeof(A) == 8) << 1)) {                               \
        D *d = REGISTER(D, 0);                                                                   \
        const A *a = REGISTER(A, 1);                                                             \
        EACH_LANE(d[l] = (D)(expr))                                                              \
        return true;                                                                             \
    }
static bool convert_fast(struct warp *w, const struct ins *i, uint32_t lanes)
{
    FAST(S64, int64_t, S32, int32_t, a[l])
    FAST(U64, uint64_t, U32, uint32_t, a[l])
    FAST(U32, uint32_t, U64, uint64_t, a[l])
    FAST(F32, float, F16, uint32_t, from_f16(a[l]))
    FAST(BF16, uint32_t, F32, float, to_bf16(a[l]))
    return false;
}

static void cvt(struct warp *w, const struct ins *i, uint32_t lanes)
{
    if (!i->mode && !i->option && convert_fast(w, i, lanes)) return;
    EACH_LANE(uint64_t v = i->bits64 & 2 ? REGISTER(uint64_t, 1)[l] : REGISTER(uint32_t, 1)[l];
              v = convert(v, i);
              if (i->bits64 & 1) REGISTER(uint64_t, 0)[l] = v;
              else REGISTER(uint32_t, 0)[l] = (uint32_t)v)
}

/* Two floats to a pair of halves: the first operand goes up. */
static void cvt_pack(struct warp *w, const struct ins *i, uint32_t lanes)
{
    uint32_t *d = REGISTER(uint32_t, 0);
    const float *a = REGISTER(float, 1), *b = REGISTER(float, 2);
    if (i->type == T_BF16X2) {
        EACH_LANE(d[l] = to_bf16(a[l]) << 16 | to_bf16(b[l]))
    } else {
        EACH_LANE(d[l] = to_f16(a[l]) << 16 | (to_f16(b[l]) & 0xffff))
    }
}

/* To a pair of FP8 from two floats, or from a pair of halves. */
static void cvt_fp8_pack(struct warp *w, const struct ins *i, uint32_t lanes)
{
    bool wide = i->type == T_E5M2X2, floats = i->from == T_F32;
    uint32_t *d = REGISTER(uint32_t, 0);
    const uint32_t *a = REGISTER(uint32_t, 1), *b = REGISTER(uint32_t, 2);
    EACH_LANE(float high = floats ? as_float(a[l]) : from_f16(a[l] >> 16);
              float low = floats ? as_float(b[l]) : from_f16(a[l]);
              d[l] = to_fp8(high, wide) << 8 | to_fp8(low, wide))
}

static void cvt_fp8_unpack(struct warp *w, const struct ins *i, uint32_t lanes)
{
    bool wide = i->from == T_E5M2X2;
    uint32_t *d = REGISTER(uint32_t, 0);
    const uint32_t *a = REGISTER(uint32_t, 1);
    EACH_LANE(d[l] = to_f16(from_fp8(a[l] >> 8 & 255, wide)) << 16 |
                     (to_f16(from_fp8(a[l] & 255, wide)) & 0xffff))
}

#define SETP(types, run) {"setp", types, "pww?P", run, COMPARISONS, JOINS}
const struct row compare_rows[] = {
    SETP("u32 b32", compare_u32), SETP("s32", compare_s32), SETP("u64 b64", compare_u64),
    SETP("s64", compare_s64), SETP("u16 b16", compare_u16), SETP("s16", compare_s16),
    SETP("f32", compare_f32), SETP("bf16", compare_bf16), SETP("f16", compare_f16),
    {"cvt", "f16x2 bf16x2 f32", "444", cvt_pack},
    {"cvt satfinite", "e4m3x2 e5m2x2 f32", "444", cvt_fp8_pack},
    {"cvt satfinite", "e4m3x2 e5m2x2 f16x2", "44", cvt_fp8_pack},
    {"cvt", "f16x2 e4m3x2 e5m2x2", "44", cvt_fp8_unpack},
    {"cvt", "b8 u8 s8 b16 u16 s16 b32 u32 s32 b64 u64 s64 f16 bf16 f32 f64", "vv", cvt, ROUNDINGS,
     "sat"},
    {NULL},
};
