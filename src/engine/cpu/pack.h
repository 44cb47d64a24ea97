/* engine/cpu/pack.h - weights in panels of 16 outputs, the layout that the kernels read.
 *
 * The image is position independent.  AVX2's and AVX-512's differ in the scales of 4-bit blocks
 * only; the plain path has floats.
 * A panel is, for its 16 outputs: all 32-value blocks' quants, then their scales; it takes about
 * as many bits a weight as the file.  In the PAIR forms units come first, and each two blocks'
 * scales follow their quants: one row reads memory in one run, which the processor fetches ahead
 * best.
 *
 * Quants of a block are 8 lines of 16 outputs x 4 values: value 4j+i of output o is byte 4o+i of
 * line j, so that one 32-bit broadcast of four activations meets 16 outputs.
 *   Q8  8 x 64 bytes, signed.
 *   Q4  4 x 64 bytes: lines j and j+4 are low and high nibbles.
 *   Q5  Q4's, then 64 bytes: bit j is the fifth bit of line j.
 *   Q6  Q4's, then 2 x 64 bytes: bits 2j and 2j+1 are those above the nibbles of line j (j+4).
 * Scales, 16 outputs side by side:
 *   HALF      d (F16) of each block                     w = d*(q - zero), zero 8, 16, 0 by kind
 *   HALF_MIN  d and m (F16) of each block               w = d*q + m
 *   K         of 8 blocks: d, dmin (F16), then of each  w = d*scale*q - dmin*min
 *             block: scale, min (8 bits)
 *   K6        of 8 blocks: d (F16), then of each half   w = d*scale*(q - 32)
 *             block: scale (8 bits, signed)
 *   PAIR      of all blocks: unit (float); of each        w = unit*d*(q - 8)
 *             two: their d (16 bits, the second's first)
 *   PAIR_MIN  of all blocks: two units (float); of each   w = unit0*d*(q - 8) + unit1*m
 *             two: their d, their m (16 bits)
 * The PAIR forms are AVX-512's for Q4_0 and Q4_1 (simd_pairs.h): an output's d are whole numbers,
 * the largest is PAIR_MOST; so are its m.  A panel where that would lose too much (an output's
 * blocks differ in size by more than PAIR_RANGE) has PAIR_NOT as its first unit, behind the units
 * all quants, and then HALF's or HALF_MIN's scales.
 * Float panels: (k, 16).
 */
#ifndef RANKSERVE_ENGINE_CPU_PACK_H
#define RANKSERVE_ENGINE_CPU_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/backend.h"
#include "model/hparams.h"

enum { PANEL = 16 };

enum panel_kind { PANEL_Q4, PANEL_Q5, PANEL_Q6, PANEL_Q8, PANEL_F32, PANEL_F16, PANEL_BF16 };
enum panel_scales {
    SCALES_HALF, SCALES_HALF_MIN, SCALES_K, SCALES_K6, SCALES_PAIR, SCALES_PAIR_MIN,
};

/* Bytes of scales: of a block, or of 8 blocks of the K forms; and what comes before those. */
enum {
    HALF_BYTES = 2 * PANEL, HALF_MIN_BYTES = 4 * PANEL,
    K_HEAD_BYTES = 4 * PANEL, K_BYTES = K_HEAD_BYTES + 8 * 2 * PANEL,
    K6_HEAD_BYTES = 2 * PANEL, K6_BYTES = K6_HEAD_BYTES + 8 * 2 * PANEL,
    PAIR_HEAD = 4 * PANEL, PAIR_BYTES = 4 * PANEL,
    PAIR_MIN_HEAD = 2 * PAIR_HEAD, PAIR_MIN_BYTES = 2 * PAIR_BYTES,
};
enum {                                /* two blocks with their quants */
    PAIR_STEP = 512 + PAIR_BYTES, PAIR_MIN_STEP = 512 + PAIR_MIN_BYTES,
};
#define PAIR_MOST 32767.0f
#define PAIR_RANGE 32.0f
#define PAIR_NOT -1.0f

struct matrix {
    enum panel_kind kind;
    enum panel_scales scales;         /* of quants                                            */
    uint32_t out, in;
    uint64_t offset, panel_bytes;     /* in the image                                         */
    const uint8_t *data;              /* NULL until there is an image                         */
    const struct gguf_tensor *from;
};

struct layer_matrices {
    struct matrix q, k, v, o, gate, up, down;
};

/* Where everything is.  ISA_PLAIN: floats everywhere. */
struct layout {
    enum isa isa;
    uint64_t bytes;
    struct matrix head;
    struct layer_matrices layers[MODEL_LAYERS_MAX];
};

static inline uint32_t matrix_panels(const struct matrix *m)
{
    return (m->out + PANEL - 1) / PANEL;
}

static inline bool matrix_is_float(const struct matrix *m)
{
    return m->kind >= PANEL_F32;
}

static inline bool matrix_has_pairs(const struct matrix *m)
{
    return m->scales == SCALES_PAIR || m->scales == SCALES_PAIR_MIN;
}

/* Where in a panel of a PAIR form block b's quants are, and the numbers of its pair. */
static inline uint64_t pair_quants_at(enum panel_scales form, uint32_t b)
{
    return form == SCALES_PAIR ? PAIR_HEAD + (uint64_t)(b / 2) * PAIR_STEP + b % 2 * 256 :
                                 PAIR_MIN_HEAD + (uint64_t)(b / 2) * PAIR_MIN_STEP + b % 2 * 256;
}

static inline uint64_t pair_scales_at(enum panel_scales form, uint32_t b)
{
    return pair_quants_at(form, b / 2 * 2) + 512;
}

/* Bytes of a block's quants in a panel. */
static inline uint32_t panel_quant_bytes(enum panel_kind kind)
{
    return kind == PANEL_Q4 ? 256 : kind == PANEL_Q5 ? 320 : kind == PANEL_Q6 ? 384 : 512;
}

/* Bytes of units at the start of a panel, in whichever form it is. */
static inline uint32_t panel_head_bytes(enum panel_scales scales)
{
    return scales == SCALES_PAIR ? PAIR_HEAD : scales == SCALES_PAIR_MIN ? PAIR_MIN_HEAD : 0;
}

/* The form of a panel that has not that of its matrix. */
static inline enum panel_scales panel_form_instead(enum panel_scales scales)
{
    return scales == SCALES_PAIR ? SCALES_HALF : SCALES_HALF_MIN;
}

/* What the scales of a panel of `m` are. */
static inline enum panel_scales panel_form(const struct matrix *m, const uint8_t *panel)
{
    bool other = matrix_has_pairs(m) && *(const float *)(const void *)panel == PAIR_NOT;
    return other ? panel_form_instead(m->scales) : m->scales;
}

/* Can the SIMD kernels do this model?  (Odd sizes go the plain way.) */
bool layout_simd_fits(const struct hparams *h);

void layout_make(struct layout *l, const struct model *m, enum isa isa);
/* Part `part` of `parts` of the image; the parts together are all of it. */
void layout_pack(const struct layout *l, const struct model *m, void *out, uint32_t part,
                 uint32_t parts);
/* Points the matrices into an image, which must be of this model and layout. */
enum err layout_use(struct layout *l, const struct model *m, const void *image, struct why *why);

#endif
