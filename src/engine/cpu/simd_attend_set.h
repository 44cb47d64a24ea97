/* engine/cpu/simd_attend_set.h - six queries against pairs of bfloat16, in assembly.
 *
 * Sums of six rows and up to four vectors are zmm0-23, a step's pairs zmm24-27.  A vdpbf16ps takes
 * a multiplier for a cycle, and softmax needs mostly adders, shuffles and conversions: beside each
 * step of one set's scores a vector of the set before it becomes weights, in zmm28-31, one of its
 * two multiplications beside up to 24.  Compilers would keep some of all this in memory.
 */
#ifndef RANKSERVE_ENGINE_CPU_SIMD_ATTEND_SET_H
#define RANKSERVE_ENGINE_CPU_SIMD_ATTEND_SET_H

enum {
    STEP_BYTES = 4 * 64,              /* from the pairs of a step to those of the next */
    STEPS_AHEAD = 6,                  /* they come from the second cache */
};

/* 2^x = 2^floor(n) * (value + f * slope) for x = n + f, n a multiple of 1/16, whose fraction is the
 * lowest four bits of x + round.  Within 1.2e-4, a twentieth of its rounding. */
struct power {
    float least, round;
    _Alignas(64) float value[16];
    _Alignas(64) float slope[16];
};

/* What lies in scores becomes weights, a vector at a time: 2^(score - top). */
struct softening {
    const float *scores, *tops;       /* (left, 16), (left) */
    uint16_t *weights;                /* (left, 16) */
    uint64_t left;
};

#define TIMES(at, vector, sum) "vdpbf16ps " at "%{1to16%}, %%zmm" #vector ", %%zmm" #sum "\n"
#define ROW_1(at, a, b, c, d) TIMES(at, 24, a)
#define ROW_2(at, a, b, c, d) ROW_1(at, a, b, c, d) TIMES(at, 25, b)
#define ROW_3(at, a, b, c, d) ROW_2(at, a, b, c, d) TIMES(at, 26, c)
#define ROW_4(at, a, b, c, d) ROW_3(at, a, b, c, d) TIMES(at, 27, d)

#define LOAD_1                                                                                    \
    "prefetcht0 %c[ahead](%[pairs])\n"                                                            \
    "vmovups (%[pairs]), %%zmm24\n"
#define LOAD_2                                                                                    \
    LOAD_1                                                                                        \
    "prefetcht0 %c[ahead]+64(%[pairs])\n"                                                         \
    "vmovups 64(%[pairs]), %%zmm25\n"
#define LOAD_3                                                                                    \
    LOAD_2                                                                                        \
    "prefetcht0 %c[ahead]+128(%[pairs])\n"                                                        \
    "vmovups 128(%[pairs]), %%zmm26\n"
#define LOAD_4                                                                                    \
    LOAD_3                                                                                        \
    "prefetcht0 %c[ahead]+192(%[pairs])\n"                                                        \
    "vmovups 192(%[pairs]), %%zmm27\n"

/* Rows 0 to 2 are at x, 3 to 5 at y. */
#define STEP(load, row)                                                                           \
    load                                                                                          \
    row("(%[x])", 0, 1, 2, 3)                                                                     \
    row("(%[x],%[stride])", 4, 5, 6, 7)                                                           \
    row("(%[x],%[stride],2)", 8, 9, 10, 11)                                                       \
    row("(%[y])", 12, 13, 14, 15)                                                                 \
    row("(%[y],%[stride])", 16, 17, 18, 19)                                                       \
    row("(%[y],%[stride],2)", 20, 21, 22, 23)                                                     \
    "add %[step], %[pairs]\n"                                                                     \
    "add $4, %[x]\n"                                                                              \
    "add $4, %[y]\n"

#define SOFTEN                                                                                    \
    "vmovups (%[scores]), %%zmm28\n"                                                              \
    "vsubps (%[tops])%{1to16%}, %%zmm28, %%zmm28\n"                                               \
    "vmaxps (%[power])%{1to16%}, %%zmm28, %%zmm28\n"                                              \
    "vaddps 4(%[power])%{1to16%}, %%zmm28, %%zmm29\n"                                             \
    "vsubps 4(%[power])%{1to16%}, %%zmm29, %%zmm30\n"                                             \
    "vsubps %%zmm30, %%zmm28, %%zmm28\n"                                                          \
    "vpermps 128(%[power]), %%zmm29, %%zmm31\n"                                                   \
    "vpermps 64(%[power]), %%zmm29, %%zmm29\n"                                                    \
    "vfmadd231ps %%zmm31, %%zmm28, %%zmm29\n"                                                     \
    "vscalefps %%zmm30, %%zmm29, %%zmm29\n"                                                       \
    "vcvtneps2bf16 %%zmm29, %%ymm29\n"                                                            \
    "vmovups %%ymm29, (%[weights])\n"                                                             \
    "add $64, %[scores]\n"                                                                        \
    "add $4, %[tops]\n"                                                                           \
    "add $32, %[weights]\n"

#define PUT(offset, sum) "vmovups %%zmm" #sum ", " #offset "(%[x])\n"
#define PUT_1(at, a, b, c, d) "mov " at "(%[out]), %[x]\n" PUT(0, a)
#define PUT_2(at, a, b, c, d) PUT_1(at, a, b, c, d) PUT(64, b)
#define PUT_3(at, a, b, c, d) PUT_2(at, a, b, c, d) PUT(128, c)
#define PUT_4(at, a, b, c, d) PUT_3(at, a, b, c, d) PUT(192, d)
#define RESULTS(put)                                                                              \
    put("0", 0, 1, 2, 3) put("8", 4, 5, 6, 7) put("16", 8, 9, 10, 11)                             \
    put("24", 12, 13, 14, 15) put("32", 16, 17, 18, 19) put("40", 20, 21, 22, 23)

/* out[i] = the sums of `vectors` vectors over n steps, row i of x times pairs; rows are `stride`
 * bytes apart, steps STEP_BYTES.  Beside them up to n vectors of `soft` are softened. */
#define SET_PRODUCTS(name, load, row, put)                                                        \
    static __attribute__((noinline)) void name(                                                   \
        const uint32_t *x, uint64_t stride, const uint32_t *pairs, uint64_t n,                    \
        struct softening *soft, float *const *out)                                                \
    {                                                                                             \
        const uint32_t *y = x + 3 * (stride / sizeof *x);                                         \
        uint64_t beside = soft->left < n ? soft->left : n;                                        \
        n -= beside, soft->left -= beside;                                                        \
        __asm__ volatile(                                                                         \
            ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"              \
            "vpxord %%zmm\\r, %%zmm\\r, %%zmm\\r\n"                                               \
            ".endr\n"                                                                             \
            "test %[beside], %[beside]\n"                                                         \
            "jz 2f\n"                                                                             \
            ".p2align 5\n"                                                                        \
            "1:\n"                                                                                \
            SOFTEN                                                                                \
            STEP(load, row)                                                                       \
            "dec %[beside]\n"                                                                     \
            "jnz 1b\n"                                                                            \
            "2:\n"                                                                                \
            "test %[n], %[n]\n"                                                                   \
            "jz 4f\n"                                                                             \
            ".p2align 5\n"                                                                        \
            "3:\n"                                                                                \
            STEP(load, row)                                                                       \
            "dec %[n]\n"                                                                          \
            "jnz 3b\n"                                                                            \
            "4:\n"                                                                                \
            RESULTS(put)                                                                          \
            : [x] "+r"(x), [y] "+r"(y), [pairs] "+r"(pairs), [n] "+r"(n), [beside] "+r"(beside),  \
              [scores] "+r"(soft->scores), [tops] "+r"(soft->tops), [weights] "+r"(soft->weights) \
            : [stride] "r"(stride), [out] "r"(out), [power] "r"(&power_of_two),                   \
              [step] "i"(STEP_BYTES), [ahead] "i"(STEPS_AHEAD * STEP_BYTES)                       \
            : "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7",     \
              "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16",      \
              "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25",    \
              "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31");                              \
    }

/* 2^(i/16), times 1 + (ln 2 / 32)^2 / 4, which makes the greatest error least. */
#define POWERS(times)                                                                             \
    { times * 1.0f, times * 1.04427378f, times * 1.09050773f, times * 1.13878863f,                \
      times * 1.18920712f, times * 1.24185781f, times * 1.29683955f, times * 1.35425555f,         \
      times * 1.41421356f, times * 1.47682615f, times * 1.54221083f, times * 1.61049033f,         \
      times * 1.68179283f, times * 1.75625216f, times * 1.83400809f, times * 1.91520656f }
static const struct power power_of_two = {
    .least = -200, .round = 0x1.8p19f,
    .value = POWERS(1.000117302f), .slope = POWERS(0.693228490f),
};

SET_PRODUCTS(set_products_1, LOAD_1, ROW_1, PUT_1)
SET_PRODUCTS(set_products_2, LOAD_2, ROW_2, PUT_2)
SET_PRODUCTS(set_products_3, LOAD_3, ROW_3, PUT_3)
SET_PRODUCTS(set_products_4, LOAD_4, ROW_4, PUT_4)

#undef TIMES
#undef ROW_1
#undef ROW_2
#undef ROW_3
#undef ROW_4
#undef LOAD_1
#undef LOAD_2
#undef LOAD_3
#undef LOAD_4
#undef STEP
#undef SOFTEN
#undef PUT
#undef PUT_1
#undef PUT_2
#undef PUT_3
#undef PUT_4
#undef RESULTS
#undef SET_PRODUCTS
#undef POWERS

INLINE void set_products(int vectors, const uint32_t *x, uint64_t stride, const uint32_t *pairs,
                         uint64_t n, struct softening *soft, float *const *out)
{
    switch (vectors) {
    case 1: set_products_1(x, stride, pairs, n, soft, out); break;
    case 2: set_products_2(x, stride, pairs, n, soft, out); break;
    case 3: set_products_3(x, stride, pairs, n, soft, out); break;
    default: set_products_4(x, stride, pairs, n, soft, out); break;
    }
}

#endif
