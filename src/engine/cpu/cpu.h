/* engine/cpu/cpu.h - the CPU backend's parts: state, KV pool, the phases of a step.
 *
 * cpu.c opens and closes; step.c runs layers; attend.c the attention; kv.c the pool's layout;
 * head.c logits and sampling.  Rows are a step's tokens; a step of more than ROWS_MAX rows runs as
 * several passes over the layers, which changes no bit.
 */
#ifndef RANKSERVE_ENGINE_CPU_CPU_H
#define RANKSERVE_ENGINE_CPU_CPU_H

#include <stdatomic.h>

#include "engine/backend.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/pack.h"
#include "engine/cpu/threads.h"
#include "model/sampler.h"

enum {
    ITEM_FLOATS = 80 * 64,            /* of results that a work item has at a time            */
    ROWS_MAX = 1024,                  /* rows in one pass over the layers                     */
    TILE_ROWS = 64,                   /* that an item of a product works on                   */
    LOGIT_BYTES = 12 << 20,           /* of the logits buffer, if 16 rows fit                 */
};

struct layer_floats {                 /* small vectors, as floats; NULL: none                 */
    float *attn_norm, *ffn_norm;
    float *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *o_bias;
};

struct row {
    uint32_t position;
    const uint32_t *blocks;
};

struct attend_item {
    uint32_t row, rows, head;         /* rows of one sequence; kv head                        */
    uint32_t entry;                   /* split: of its first tile's first query               */
};

struct attend_split {
    uint32_t item, tile;
};

struct attend_scratch {               /* one per thread */
    float *outs, *tile_outs;          /* (QUERIES_MAX, S) */
    float *room;                      /* of a tile call   */
};

struct cpu {
    struct backend_config c;
    const struct model *model;
    const struct kernels *k;
    struct layout *layout;
    void *own_packed;                 /* NULL when the image is shared                        */
    struct layer_floats *floats;
    float *output_norm;
    struct pool *pool;
    bool priority_set;

    uint8_t *kv;                      /* see kv.c                                             */
    uint64_t kv_bytes;
    uint64_t *kv_touched;             /* (layers): up to here cpu_kv_touch has taken pages    */
    struct kv_shape shape;
    uint32_t kv_lanes;                /* tokens side by side in K                             */

    /* One pass: `rows` rows. */
    uint32_t rows, rows_max;
    const int32_t *ids;
    struct row *row;                  /* (rows_max)                                           */
    float *cosines, *sines;           /* (rows_max, rope_dims)                                */
    float *x;                         /* (rows_max, D) residual                               */
    float *qkv;                       /* (rows_max, (H + 2K)*S)                               */
    float *heads_out;                 /* (rows_max, H*S)                                      */
    struct acts normed, attended, hidden;
    struct attend_item *items;
    uint32_t item_count;
    struct attend_split *splits;      /* few deep queries: a work item is one tile of an item */
    uint32_t split_count, split_max;
    struct partial *parts;            /* (split_max) each query's tiles, outs (split_max, S)  */
    float *part_outs;
    struct attend_scratch *scratch;   /* (threads)                                            */
    float **tiles;                    /* (threads): a work item's outputs                     */
    _Atomic uint32_t pieces[ROWS_MAX / TILE_ROWS];    /* of each row tile: done in this phase */

    /* Logits. */
    float *final;                     /* (step_tokens_max, D): normed rows, logits wanted     */
    uint32_t final_count;
    struct acts head_in;
    float *logits;                    /* (logit_rows_max, logit_stride)                       */
    uint32_t logit_rows_max;
    uint64_t logit_stride;            /* odd number of lines: rows lie in different cache sets */
    struct sampler **samplers;        /* (threads)                                            */
};

/* Memory straight from the kernel: zero, aligned, and paid for when touched.  NULL: there is none.
 */
void *pages_try(uint64_t bytes);
/* Dies without. */
void *pages_take(uint64_t bytes);
void pages_give(void *at, uint64_t bytes);
/* Has pages of a mapping of pages_try cleared now, contents that are there kept.  False: it cannot.
 */
bool pages_touch(void *at, uint64_t bytes);
/* Lets the kernel take back the pages of a read-only file mapping; does nothing to other memory. */
void pages_release_file(const void *at, uint64_t bytes);

enum err kv_open(struct cpu *u, struct why *why);
void kv_close(struct cpu *u);
/* `end` (may be 0): positions of the sequence that may be fetched ahead. */
struct kv_view kv_view(const struct cpu *u, uint32_t layer, uint32_t head, const uint32_t *blocks,
                       uint32_t end);
/* Stores the key and value of one position; `qkv` is its whole row: the rounding of a key looks at
 * its queries. */
void kv_store(struct cpu *u, uint32_t layer, const struct row *at, const float *qkv);
bool cpu_kv_touch(void *self, uint32_t blocks);
void cpu_kv_read(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                 uint32_t first, uint32_t count, void *out);
void cpu_kv_write(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                  uint32_t first, uint32_t count, const void *in);

/* Lists the pass's attention items; `seqs` are cut to the pass. */
void attend_plan(struct cpu *u, const struct step_seq *seqs, uint32_t count);
void attend(struct cpu *u, uint32_t layer);
/* Does attend() also put its result into u->attended?  (When a kv head's width is whole blocks.) */
bool attend_stores(const struct cpu *u);

enum err cpu_step(void *self, const struct step *s);
enum err cpu_sample(void *self, struct sample_job *jobs, uint32_t count);

/* Fetches what acts_store() will write of some rows: other threads had it last. */
static inline void acts_fetch(const struct acts *a, uint32_t row, uint32_t rows, uint32_t first,
                              uint32_t n)
{
    for (uint32_t r = row / ROW_GROUP * ROW_GROUP; a->q && r < row + rows; r += ROW_GROUP) {
        const struct act_block *b = a->q + (uint64_t)(r / ROW_GROUP) * (a->k / 32) + first / 32;
        for (const char *at = (const char *)b; at < (const char *)(b + n / 32); at += 64) {
            fetch_to_write(at);
        }
    }
}

/* Puts n values of some rows (x: (rows, stride)) into whatever forms `a` has. */
static inline void acts_store(const struct cpu *u, const float *x, uint64_t stride, uint32_t rows,
                              uint32_t n, const struct acts *a, uint32_t row, uint32_t first)
{
    for (uint32_t r = 0; a->f && r < rows; r++) {
        float *to = a->f + (uint64_t)(row + r) * a->k + first;
        for (uint32_t i = 0; i < n; i++) to[i] = x[r * stride + i];
    }
    if (a->q || a->wide) u->k->quantize(x, stride, rows, n, a, row, first);
}

#endif
