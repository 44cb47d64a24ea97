/* tests/unit/one_matrix.h - one tensor as kernels see it, and activations for it.
 *
 *   struct one_matrix o;
 *   one_matrix_open(&o, isa, &tensor);                 o.m is the matrix
 *   struct acts a = acts_open(o.m, rows, ACTS_NARROW); rows of o.m->in, not yet quantised
 *   acts_close(&a);
 *   one_matrix_close(&o);
 */
#ifndef RANKSERVE_TESTS_ONE_MATRIX_H
#define RANKSERVE_TESTS_ONE_MATRIX_H

#include <stdlib.h>

#include <cmocka.h>

#include "common/mem.h"
#include "engine/cpu/kernels.h"

struct one_matrix {
    const struct matrix *m;
    struct layout *layout;
    uint8_t *image;
};

/* The layout of a model that is nothing but its head. */
static inline void one_matrix_open(struct one_matrix *o, enum isa isa, const struct gguf_tensor *t)
{
    uint32_t in = (uint32_t)t->dims[0];
    struct model m = { .h = { .dim = in, .ffn_dim = 32, .heads = 1, .head_dim = 32 },
                       .output = t };
    o->layout = mem_alloc(sizeof *o->layout);
    layout_make(o->layout, &m, isa);
    o->image = aligned_alloc(64, (o->layout->bytes + 63) / 64 * 64);
    assert_non_null(o->image);
    layout_pack(o->layout, &m, o->image, 0, 1);
    assert_int_equal(layout_use(o->layout, &m, o->image, NULL), OK);
    o->m = &o->layout->head;
}

static inline void one_matrix_close(struct one_matrix *o)
{
    free(o->image);
    free(o->layout);
}

enum acts_width { ACTS_NARROW, ACTS_WIDE };     /* 8 bits, 16 bits */

static inline struct acts acts_open(const struct matrix *m, uint32_t rows, enum acts_width width)
{
    uint32_t groups = (rows + ROW_GROUP - 1) / ROW_GROUP, blocks = groups * (m->in / 32);
    struct acts a = { .k = m->in };
    if (width == ACTS_WIDE) {
        a.wide = mem_array(blocks, sizeof *a.wide);
        return a;
    }
    a.q = mem_array(blocks, sizeof *a.q);
    if (!matrix_has_pairs(m)) return a;
    a.pairs = mem_array(blocks / 2, sizeof *a.pairs);
    a.units = mem_array(groups, sizeof *a.units);
    return a;
}

/* Not `f`, which is the caller's. */
static inline void acts_close(struct acts *a)
{
    free(a->q);
    free(a->wide);
    free(a->pairs);
    free(a->units);
}

#endif
