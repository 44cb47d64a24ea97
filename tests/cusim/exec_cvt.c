/* tests/cusim/exec_cvt.c - comparisons and conversions. */
#include <math.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "exec.h"
#include "report.h"

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

/* ins.mode of setp: the comparison, whether NaN makes it true, how a predicate joins it. */
static void finish_compare(struct warp *w, const struct ins *i, uint32_t lanes, uint32_t result)
{
    uint32_t other = ~result;
    if (i->operands > 3) {
        uint32_t c = predicate(w, i->o[3]);
        if (i->count & CMP_NOT) c = ~c;
        switch (i->count & 3) {
        case CMP_AND: result &= c, other &= c; break;
        case CMP_OR: result |= c, other |= c; break;
        default: result ^= c, other ^= c; break;
        }
    }
    set_predicate(w, i->o[0], result, lanes);
    if (i->from) set_predicate(w, i->o[4], other, lanes);
}

#define COMPARE(name, T, load)                                                                   \
    void name(struct warp *w, const struct ins *i, uint32_t lanes)                               \
    {                                                                                            \
        const T *a = REGISTER(T, 1), *b = REGISTER(T, 2);                                        \
        uint8_t bytes[LANES];                                                                    \
        switch (i->mode & 15) {                                                                  \
        case CMP_EQ: FILL(load(a[l]) == load(b[l])) break;                                       \
        case CMP_NE: FILL(load(a[l]) < load(b[l]) || load(a[l]) > load(b[l])) break;             \
        case CMP_LT: FILL(load(a[l]) < load(b[l])) break;                                        \
        case CMP_LE: FILL(load(a[l]) <= load(b[l])) break;                                       \
        case CMP_GT: FILL(load(a[l]) > load(b[l])) break;                                        \
        case CMP_GE: FILL(load(a[l]) >= load(b[l])) break;                                       \
        case CMP_NUM: FILL(load(a[l]) == load(a[l]) && load(b[l]) == load(b[l])) break;          \
        default: FILL(load(a[l]) != load(a[l]) || load(b[l]) != load(b[l])) break;               \
        }                                                                                        \
        uint32_t result = gather_bits(bytes);                                                    \
        if (i->mode & CMP_OR_NAN) {                                                              \
            FILL(load(a[l]) != load(a[l]) || load(b[l]) != load(b[l]))                           \
            result |= gather_bits(bytes);                                                        \
        }                                                                                        \
        finish_compare(w, i, lanes, result);                                                     \
    }
#define FILL(expr) LOOP_IS_SAFE for (int l = 0; l < LANES; l++) bytes[l] = expr ? 255 : 0;
#define AS_IS(v) (v)
#define AS_S16(v) ((int16_t)(v))
#define AS_U16(v) ((uint16_t)(v))
#define AS_BF16(v) from_bf16((uint32_t)(v))
#define AS_F16(v) from_f16((uint32_t)(v))
COMPARE(exec_setp_u32, uint32_t, AS_IS)
COMPARE(exec_setp_s32, int32_t, AS_IS)
COMPARE(exec_setp_u64, uint64_t, AS_IS)
COMPARE(exec_setp_s64, int64_t, AS_IS)
COMPARE(exec_setp_u16, uint32_t, AS_U16)
COMPARE(exec_setp_s16, uint32_t, AS_S16)
COMPARE(exec_setp_f32, float, AS_IS)
COMPARE(exec_setp_f64, double, AS_IS)
COMPARE(exec_setp_bf16, uint32_t, AS_BF16)
COMPARE(exec_setp_f16, uint32_t, AS_F16)

/* FP8: 1 sign, then 4 + 3 bits (bias 7, no infinity) or 5 + 2 (bias 15). */
float from_fp8(uint32_t bits, bool e5m2)
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

uint32_t to_fp8(float f, bool e5m2)
{
    uint32_t sign = float_bits(f) >> 24 & 128, most = e5m2 ? 0x7b : 0x7e;
    float size = fabsf(f);
    if (f != f) return e5m2 ? 0x7f : 0x7f;
    if (size >= from_fp8(most, e5m2)) return sign | most;
    int mantissa_bits = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7, exponent;
    frexpf(size, &exponent);                        /* size = m * 2^exponent, m in [1/2, 1) */
    int lowest = 1 - bias - mantissa_bits, unit = exponent - 1 - mantissa_bits;
    if (unit < lowest || size == 0) unit = lowest;
    uint32_t steps = (uint32_t)rintf(ldexpf(size, -unit));      /* ties to even */
    uint32_t encoded = steps + ((uint32_t)(unit - lowest) << mantissa_bits);
    return sign | encoded;
}

static bool is_float(enum type t)
{
    return t == T_F16 || t == T_BF16 || t == T_F32 || t == T_F64;
}

static bool is_signed(enum type t)
{
    return t == T_S8 || t == T_S16 || t == T_S32 || t == T_S64;
}

static double load_float(uint64_t bits, enum type t)
{
    double d;
    switch (t) {
    case T_F16: return from_f16((uint32_t)bits);
    case T_BF16: return from_bf16((uint32_t)bits & 0xffff);
    case T_F32: return as_float((uint32_t)bits);
    default: memcpy(&d, &bits, 8); return d;
    }
}

static uint64_t store_float(double d, enum type t)
{
    uint64_t bits;
    switch (t) {
    case T_F16: return to_f16((float)d) & 0xffff;
    case T_BF16: return to_bf16((float)d) & 0xffff;
    case T_F32: return float_bits((float)d);
    default: memcpy(&bits, &d, 8); return bits;
    }
}

static int64_t load_integer(uint64_t bits, enum type t)
{
    switch (t) {
    case T_S8: return (int8_t)bits;
    case T_S16: return (int16_t)bits;
    case T_S32: return (int32_t)bits;
    case T_U8: case T_B8: return (uint8_t)bits;
    case T_U16: case T_B16: return (uint16_t)bits;
    case T_U32: case T_B32: return (uint32_t)bits;
    default: return (int64_t)bits;
    }
}

static double round_as(double d, int mode)
{
    switch (mode & ROUND_MASK) {
    case ROUND_NEAREST: return nearbyint(d);
    case ROUND_ZERO: return trunc(d);
    case ROUND_DOWN: return floor(d);
    case ROUND_UP: return ceil(d);
    default: return d;
    }
}

static uint64_t float_to_integer(double d, enum type t)
{
    int bits = 8 * type_bytes(t);
    if (d != d) return 0;
    if (is_signed(t)) {
        double limit = ldexp(1, bits - 1);
        if (d >= limit) return (1ull << (bits - 1)) - 1;
        return d <= -limit ? 1ull << (bits - 1) : (uint64_t)(int64_t)d;
    }
    if (d <= 0) return 0;
    return d >= ldexp(1, bits) ? ~0ull >> (64 - bits) : (uint64_t)d;
}

static uint64_t saturate(int64_t v, bool from_unsigned64, enum type t)
{
    int bits = 8 * type_bytes(t);
    int64_t most = is_signed(t) ? (int64_t)((1ull << (bits - 1)) - 1)
                                : (int64_t)(~0ull >> (64 - bits) & INT64_MAX);
    int64_t least = is_signed(t) ? -most - 1 : 0;
    if (from_unsigned64 && v < 0) return (uint64_t)most;
    return (uint64_t)(v < least ? least : v > most ? most : v);
}

static uint64_t convert(uint64_t bits, const struct ins *i)
{
    enum type to = i->type, from = i->from;
    if (is_float(from)) {
        double d = round_as(load_float(bits, from), i->mode);
        if (is_float(to)) {
            if (i->mode & CVT_SATURATE) d = d > 0 ? d < 1 ? d : 1 : 0;
            return store_float(d, to);
        }
        return float_to_integer(i->mode & ROUND_MASK ? d : trunc(d), to);
    }
    int64_t v = load_integer(bits, from);
    if (is_float(to)) {
        if (to == T_F32) {      /* straight, so that it rounds once */
            return float_bits(from == T_U64 ? (float)(uint64_t)v : (float)v);
        }
        return store_float(from == T_U64 ? (double)(uint64_t)v : (double)v, to);
    }
    if (i->mode & CVT_SATURATE) return saturate(v, from == T_U64, to);
    return (uint64_t)v;
}

static uint64_t cut(uint64_t v, enum type t)
{
    switch (type_bytes(t)) {
    case 1: return is_signed(t) ? (uint32_t)(int32_t)(int8_t)v : (uint8_t)v;
    case 2: return (uint16_t)v;
    case 4: return (uint32_t)v;
    default: return v;
    }
}

/* 32 to 64 bits and back are most of all conversions. */
static bool convert_fast(struct warp *w, const struct ins *i, uint32_t lanes)
{
    if (i->bits64 == 1 && i->from == T_S32) {
        int64_t *d = REGISTER(int64_t, 0);
        const int32_t *a = REGISTER(int32_t, 1);
        EACH_LANE(d[l] = a[l])
    } else if (i->bits64 == 1 && i->from == T_U32 && i->type != T_F64) {
        uint64_t *d = REGISTER(uint64_t, 0);
        const uint32_t *a = REGISTER(uint32_t, 1);
        EACH_LANE(d[l] = a[l])
    } else if (i->bits64 == 2 && type_bytes(i->type) == 4 && i->type != T_F32) {
        uint32_t *d = REGISTER(uint32_t, 0);
        const uint64_t *a = REGISTER(uint64_t, 1);
        EACH_LANE(d[l] = (uint32_t)a[l])
    } else if (!i->bits64 && i->from == T_F32 && i->type == T_BF16) {
        uint32_t *d = REGISTER(uint32_t, 0);
        const float *a = REGISTER(float, 1);
        EACH_LANE(d[l] = to_bf16(a[l]))
    } else {
        return false;
    }
    return true;
}

void exec_cvt(struct warp *w, const struct ins *i, uint32_t lanes)
{
    bool integers = !is_float(i->type) && !is_float(i->from) && !(i->mode & CVT_SATURATE);
    bool to_half = i->type == T_BF16 && !i->mode;
    if ((integers || to_half) && convert_fast(w, i, lanes)) return;
    EACH_LANE(uint64_t v = i->bits64 & 2 ? REGISTER(uint64_t, 1)[l] : REGISTER(uint32_t, 1)[l];
              v = cut(convert(v, i), i->type);
              if (i->bits64 & 1) REGISTER(uint64_t, 0)[l] = v;
              else REGISTER(uint32_t, 0)[l] = (uint32_t)v)
}

/* Two floats to a pair of halves: the first operand goes up. */
void exec_cvt_pack(struct warp *w, const struct ins *i, uint32_t lanes)
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
void exec_cvt_fp8_pack(struct warp *w, const struct ins *i, uint32_t lanes)
{
    bool wide = i->type == T_E5M2X2;
    uint32_t *d = REGISTER(uint32_t, 0);
    const uint32_t *a = REGISTER(uint32_t, 1), *b = REGISTER(uint32_t, 2);
    EACH_LANE(float high = i->from == T_F32 ? as_float(a[l]) : from_f16(a[l] >> 16);
              float low = i->from == T_F32 ? as_float(b[l]) : from_f16(a[l]);
              d[l] = to_fp8(high, wide) << 8 | to_fp8(low, wide))
}

void exec_cvt_fp8_unpack(struct warp *w, const struct ins *i, uint32_t lanes)
{
    bool wide = i->from == T_E5M2X2;
    uint32_t *d = REGISTER(uint32_t, 0);
    const uint32_t *a = REGISTER(uint32_t, 1);
    EACH_LANE(d[l] = to_f16(from_fp8(a[l] >> 8 & 255, wide)) << 16 |
                     (to_f16(from_fp8(a[l] & 255, wide)) & 0xffff))
}
