/* engine/cpu/pack.h - weights in panels of 16 outputs, the layout that the kernels read.
 *
 * The image is position independent and the same for AVX2 and AVX-512; the plain path has floats.
 * A panel is, for its 16 outputs: all 32-value blocks' quants, then their scales.  Quants of a
 * block: value 4j+i of output o is byte (j*16 + o)*4 + i, so that one 32-bit broadcast of four
 * activations meets 16 outputs; 4-bit quants keep j and j+4 in one byte (low and high nibble).
 * Scales of a block: d of 16 outputs, then m of 16 outputs if the format has minimums.
 * Float panels: (k, 16).
 */
#ifndef RANKSERVE_ENGINE_CPU_PACK_H
#define RANKSERVE_ENGINE_CPU_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/backend.h"
#include "model/hparams.h"

enum { PANEL = 16 };

enum panel_kind { PANEL_Q4, PANEL_Q8, PANEL_F32, PANEL_F16, PANEL_BF16 };

struct matrix {
    enum panel_kind kind;
    uint8_t zero;                     /* Q4, Q8 without minimums: w = d*(q - zero)            */
    bool minimums;                    /* w = d*q + m                                          */
    bool half_scales;                 /* F16, else F32                                        */
    uint32_t out, in;
    uint64_t offset, panel_bytes;     /* in the image                                         */
    const uint8_t *data;              /* NULL until there is an image                         */
    const struct gguf_tensor *from;
};

struct layer_matrices {
    struct matrix q, k, v, o, gate, up, down;
};

/* Where everything is.  `plain`: floats everywhere. */
struct layout {
    bool plain;
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

/* Can the SIMD kernels do this model?  (Odd sizes go the plain way.) */
bool layout_simd_fits(const struct hparams *h);

void layout_make(struct layout *l, const struct model *m, bool plain);
/* Part `part` of `parts` of the image; the parts together are all of it. */
void layout_pack(const struct layout *l, const struct model *m, void *out, uint32_t part,
                 uint32_t parts);
/* Points the matrices into an image, which must be of this model and layout. */
enum err layout_use(struct layout *l, const struct model *m, const void *image, struct why *why);

#endif
