/* engine/cpu/simd_pairs_rows.h - four or eight rows against a panel of a PAIR form, in assembly.
 *
 * What simd_pairs.h does for one row, to the bit.  Sums (zmm0-7), totals of scales (zmm10-17) and
 * of minimums (zmm20-27) of eight rows are 24 of the 32 registers; compilers keep some of them in
 * memory, and use 92 % of the multipliers' slots where this uses 97 %.  Each line of weights is
 * unpacked when its turn comes.  Minimums are added among the second block's products: they do not
 * wait for those.
 */
#include "engine/cpu/simd.h"

#define FOUR "0,1,2,3"
#define EIGHT "0,1,2,3,4,5,6,7"
#define EACH(name, list) ".irp " name "," list "\n"
#define END ".endr\n"

/* zmm\r += line \j of the quants, in zmm8, times four values of row \r; `values` are row 4's. */
#define LINE(rows, values)                                                                        \
    EACH("r", rows) "vpdpbusd 32*(\\r-4)+4*\\j(" values ")%{1to16%}, %%zmm8, %%zmm\\r\n" END

/* All lines of a block, and beside each something else.  zmm31 has 15 in each byte. */
#define LINES(rows, quants, values, beside_low, beside_high)                                      \
    EACH("j", "0,1,2,3")                                                                          \
    "vpandd " quants "+64*\\j(%[panel]), %%zmm31, %%zmm8\n"                                       \
    beside_low                                                                                    \
    LINE(rows, values)                                                                            \
    END                                                                                           \
    EACH("j", "4,5,6,7")                                                                          \
    "vpsrlw $4, " quants "+64*(\\j-4)(%[panel]), %%zmm8\n"                                        \
    "vpandd %%zmm31, %%zmm8, %%zmm8\n"                                                            \
    beside_high                                                                                   \
    LINE(rows, values)                                                                            \
    END

/* zmm2\j += the minimums' part of row \j. */
#define MINIMUMS                                                                                  \
    "vpbroadcastd 128+4*\\j(%[y]), %%zmm9\n"                                                      \
    "vpmaddwd 576(%[panel]), %%zmm9, %%zmm9\n"                                                    \
    "vcvtdq2ps %%zmm9, %%zmm9\n"                                                                  \
    "vaddps %%zmm9, %%zmm2\\j, %%zmm2\\j\n"

/* The second block's sum goes below the first's. */
#define MOVE_UP(rows)                                                                             \
    EACH("r", rows)                                                                               \
    "vpslld $16, %%zmm\\r, %%zmm\\r\n"                                                            \
    "vpaddd 4*\\r(%[y])%{1to16%}, %%zmm\\r, %%zmm\\r\n"                                           \
    END
/* zmm1\r += both sums of row \r times their scales.  zmm30 has 0x8000 in each lane. */
#define SCALES(rows)                                                                              \
    EACH("r", rows)                                                                               \
    "vpbroadcastd 64+4*\\r(%[y]), %%zmm9\n"                                                       \
    "vpmulhrsw 512(%[panel]), %%zmm9, %%zmm9\n"                                                   \
    "vpxord %%zmm30, %%zmm\\r, %%zmm\\r\n"                                                        \
    "vpmaddwd %%zmm9, %%zmm\\r, %%zmm9\n"                                                         \
    "vcvtdq2ps %%zmm9, %%zmm9\n"                                                                  \
    "vaddps %%zmm9, %%zmm1\\r, %%zmm1\\r\n"                                                       \
    END

/* Results from totals. */
#define ADD_MINIMUMS                                                                              \
    "vmulps 64+4*\\r(%[units])%{1to16%}, %%zmm9, %%zmm18\n"                                       \
    "vfmadd231ps %%zmm18, %%zmm2\\r, %%zmm1\\r\n"
#define RESULTS(rows, add_minimums)                                                               \
    "vmovups (%[unit]), %%zmm8\n"                                                                 \
    "vmovups 64(%[unit]), %%zmm9\n"                                                               \
    EACH("r", rows)                                                                               \
    "vmulps 4*\\r(%[units])%{1to16%}, %%zmm8, %%zmm18\n"                                          \
    "vmulps %%zmm18, %%zmm1\\r, %%zmm1\\r\n"                                                      \
    add_minimums                                                                                  \
    "vmovups %%zmm1\\r, 64*\\r(%[out])\n"                                                         \
    END

/* `min_low`, `min_high`: minimums beside the first and the last four lines. */
#define PAIR_ROWS(rows, fetch, min_low, min_high, add_minimums, step)                             \
    __asm__ volatile(                                                                             \
        EACH("r", rows)                                                                           \
        "vpxord %%zmm1\\r, %%zmm1\\r, %%zmm1\\r\n"                                                \
        "vpxord %%zmm2\\r, %%zmm2\\r, %%zmm2\\r\n"                                                \
        END                                                                                       \
        "vpbroadcastd %[low], %%zmm31\n"                                                          \
        "vpbroadcastd %[flip], %%zmm30\n"                                                         \
        ".p2align 4\n"                                                                            \
        "1:\n"                                                                                    \
        EACH("r", rows) "vpxord %%zmm\\r, %%zmm\\r, %%zmm\\r\n" END                               \
        LINES(rows, "0", "%[first]", fetch " 64*\\j(%[next])\n", fetch " 64*\\j(%[next])\n")      \
        MOVE_UP(rows)                                                                             \
        fetch " 512(%[next])\n"                                                                   \
        fetch " 576(%[next])\n"                                                                   \
        LINES(rows, "256", "%[second]", min_low, min_high)                                        \
        SCALES(rows)                                                                              \
        "add %[panel_step], %[panel]\n"                                                           \
        "add %[panel_step], %[next]\n"                                                            \
        "add %[block_step], %[first]\n"                                                           \
        "add %[block_step], %[second]\n"                                                          \
        "add %[y_step], %[y]\n"                                                                   \
        "dec %[pairs]\n"                                                                          \
        "jnz 1b\n"                                                                                \
        RESULTS(rows, add_minimums)                                                               \
        : [panel] "+r"(panel), [next] "+r"(next), [first] "+r"(first), [second] "+r"(second),     \
          [y] "+r"(y), [pairs] "+r"(pairs)                                                        \
        : [out] "r"(out), [unit] "r"(unit), [units] "r"(from->units), [low] "r"(0x0f0f0f0f),      \
          [flip] "r"(0x8000), [panel_step] "i"(step),                                             \
          [block_step] "i"(2 * sizeof(struct act_block)), [y_step] "i"(sizeof(struct act_pair))   \
        : "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7",         \
          "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16",          \
          "zmm17", "zmm18", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26",        \
          "zmm27", "zmm30", "zmm31")

/* `rows` (4 or 8) rows against one panel: out[0 .. rows-1].  As much as a panel has is fetched from
 * `next` meanwhile: for eight rows into the nearest cache (see prefetch_panel()). */
INLINE void pair_rows(const uint8_t *panel, const uint8_t *next, const struct pair_from *from,
                      uint64_t pairs, int rows, bool min, vf *out)
{
    const float *unit = (const float *)(const void *)panel;
    const int8_t *first = from->x[0].q[4], *second = from->x[1].q[4];   /* for short offsets */
    const struct act_pair *y = from->y;
    panel += min ? PAIR_MIN_HEAD : PAIR_HEAD;
    next += min ? PAIR_MIN_HEAD : PAIR_HEAD;
    if (rows == 8 && min) {
        PAIR_ROWS(EIGHT, "prefetcht0", MINIMUMS, MINIMUMS, ADD_MINIMUMS, PAIR_MIN_STEP);
    } else if (rows == 8) {
        PAIR_ROWS(EIGHT, "prefetcht0", "", "", "", PAIR_STEP);
    } else if (min) {
        PAIR_ROWS(FOUR, "prefetcht1", MINIMUMS, "", ADD_MINIMUMS, PAIR_MIN_STEP);
    } else {
        PAIR_ROWS(FOUR, "prefetcht1", "", "", "", PAIR_STEP);
    }
}

#undef FOUR
#undef EIGHT
#undef EACH
#undef END
#undef LINE
#undef LINES
#undef MINIMUMS
#undef MOVE_UP
#undef SCALES
#undef ADD_MINIMUMS
#undef RESULTS
#undef PAIR_ROWS
