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
#define IF(relation, expr)                                                                       \
    if (relations & relation) {                                                                  \
        LOOP_IS_SAFE                                                                             \
        for (int l = 0; l < LANES; l++) bytes[l] = expr ? 255 : 0;                               \
        result |= gather_bits(bytes);                                                            \
    }
#define COMPARE(name, T)                                                                         \
    EXEC(name)                                                                                   \
    {                                                                                            \
        const T *a = REGISTER(T, 1), *b = REGISTER(T, 2);                                        \
        uint8_t bytes[LANES], relations = true_for[i->mode];                                     \
        uint32_t result = 0;                                                                     \
        IF(LESS, (a[l] < b[l]))                                                    \
        IF(EQUAL, (a[l] == b[l]))                                                  \
        IF(GREATER, (a[l] > b[l]))                                                 \
        IF(NOT_A_NUMBER, (a[l] != a[l] || b[l] != b[l]))             \
        set_predicate(w, i->o[0], result, lanes);                                                \
    }
COMPARE(compare_u32, uint32_t)
COMPARE(compare_s32, int32_t)
COMPARE(compare_u64, uint64_t)
COMPARE(compare_s64, int64_t)
COMPARE(compare_f32, float)

long double load_number(uint64_t bits, enum type t)
{
    double d;
    switch (t) {
    case T_F16: return from_f16((uint32_t)bits);
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
    case T_F32: return float_bits((float)v);
    case T_F64: memcpy(&bits, &d, 8); return bits;
    default: bits = v < 0 ? (uint64_t)(int64_t)v : (uint64_t)v;
    }
    if (t == T_S8) return (uint32_t)(int8_t)bits;
    return bits & ~0ull >> (64 - 8 * type_bytes(t));
}

/* .rni or no rounding of its own; floats to integers saturate, and NaN is 0. */
static uint64_t convert(uint64_t bits, const struct ins *i)
{
    long double v = load_number(bits, i->from);
    if (i->mode) v = nearbyintl(v);
    if (!is_float(i->from) || is_float(i->type)) return store_number(v, i->type);
    int width = 8 * (int)type_bytes(i->type);
    long double most = ldexpl(1, width - is_signed(i->type)) - 1;
    long double least = is_signed(i->type) ? -most - 1 : 0;
    if (v != v) return 0;
    return store_number(v < least ? least : v > most ? most : v, i->type);
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
    return false;
}

EXEC(cvt)
{
    if (!i->mode && convert_fast(w, i, lanes)) return;
    EACH_LANE(write_register(w, i, 0, l, convert(read_register(w, i, 1, l), i)))
}

/* Two floats to a pair of halves: the first operand goes up. */
EXEC(cvt_pack)
{
    uint32_t *d = REGISTER(uint32_t, 0);
    const float *a = REGISTER(float, 1), *b = REGISTER(float, 2);
    EACH_LANE(d[l] = to_f16(a[l]) << 16 | (to_f16(b[l]) & 0xffff))
}

#define SETP(types, run) {"setp", types, "pww", run, COMPARISONS}
const struct row compare_rows[] = {
    SETP("u32 b32", compare_u32), SETP("s32", compare_s32), SETP("u64 b64", compare_u64),
    SETP("s64", compare_s64), SETP("f32", compare_f32),
    {"cvt", "f16x2 f32", "444", cvt_pack},
    {"cvt", "b8 u8 s8 b16 u16 s16 b32 u32 s32 b64 u64 s64 f16 f32", "vv", cvt, "- rni"},
    {NULL},
};
