/* cuda/kernels.h - what the host asks of the GPU: one launcher a kernel, plain C on both sides.
 *
 * A launcher only enqueues.  It takes device pointers, never frees, and returns the launch's error.
 * Rows are a step's tokens.  Every result depends on its own row alone: no launcher changes a row's
 * bits because of the rows beside it, of how a prompt was cut, or of which variant it picked.
 *
 * (Products that go to cuBLAS, when it is asked for, are outside this: cuda/blas.c.)
 *
 * How that is kept: every sum has one order.  A product adds slices of GEMM_SLICE inputs, each
 * summed upwards; attention merges splits of ATTEND_SPLIT positions, each walked in tiles of
 * ATTEND_TILE, upwards.  The small variants do slices and splits side by side, the large ones one
 * after another, and both add the same numbers in the same order.
 */
#ifndef RANKSERVE_CUDA_KERNELS_H
#define RANKSERVE_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    GEMM_SLICE = 256,                 /* inputs summed before they join the total             */
    GEMM_PAD_IN = 64,                 /* inputs are padded with zeros to a multiple           */
    GEMM_PAD_OUT = 64,                /* so are weights' rows                                 */
    GEMM_SMALL_ROWS = 64,             /* up to here the variant for decoding                  */
    ATTEND_TILE = 64,
    ATTEND_SPLIT = 512,
    ATTEND_ROWS = 64,                 /* (token, query head) pairs in a block of the prefill  */
    ATTEND_GROUP_MAX = 16,            /* query heads of a kv head on the tensor cores         */
};

/* What activations between products are kept in.  F16 has three bits more than BF16, which is worth
 * a factor of eight in the logits' error; what could leave its range is kept smaller: the hidden
 * values behind SwiGLU by HIDDEN_SCALE, which the down product takes back. */
enum act { ACT_F16, ACT_F32 };
#define HIDDEN_SCALE 0.0625f

enum weight {
    WEIGHT_F16, WEIGHT_F32,                /* (out, in) rows                                  */
    WEIGHT_Q8_0, WEIGHT_Q4_0, WEIGHT_Q4_1, /* see cuda/pack.c                                 */
    WEIGHT_COUNT
};

/* W (out, in), both padded.  `q` in lane order, `scales` (out/8, in/32, 8) F16, `mins` the same. */
struct weights {
    int type;                         /* enum weight                                          */
    int out, in;                      /* padded                                               */
    const void *q, *scales, *mins;
};

enum kv_element { KV_ELEMENT_F16, KV_ELEMENT_F32, KV_ELEMENT_FP8 };

/* One layer of the KV pool: (block, K or V, kv head, token in block, S). */
struct kv_layer {
    uint8_t *base;
    int64_t block_bytes;
    int token_shift;                  /* log2 of a block's tokens                             */
    int kv_heads, head_dim, element;
};

/* A token of the step.  slot: block * block_tokens + place in it; -1: padding, stores no KV. */
struct row {
    int32_t id, position, slot, zero;
};

struct rope {
    const float *table;               /* (position, rope_dims/2) cosine and sine              */
    int dims;
};

/* Where the query, key and value of a row go. */
struct qkv_out {
    const struct row *rows;
    void *q;                          /* (rows, H*S) F16, or F32 when the activations are     */
    int q_is_float, heads;
    struct kv_layer kv;
    struct rope rope;
};

enum out_kind {
    OUT_STORE,                        /* to f32                                               */
    OUT_ADD,                          /* added to f32                                         */
    OUT_SWIGLU,                       /* columns are gate, up, gate, up ...: half as many out */
    OUT_QKV,                          /* rotated; keys and values into the pool               */
};

/* What happens to a product's columns, two neighbours at a time. */
struct gemm_out {
    int kind, columns;                /* columns that count, the padding left out             */
    float factor;                     /* the product's, before anything is added              */
    const float *bias;                /* (columns, even) or NULL                              */
    float *f32;                       /* (rows, f32_stride)                                   */
    int64_t f32_stride;
    void *act;                        /* (rows, act_stride) of enum act                       */
    int64_t act_stride;
    int act_type, column0;            /* OUT_QKV: this product's first column among q, k, v   */
    struct qkv_out qkv;
};

/* One query tile (or, decoding, one split of a sequence) for every kv head. */
struct attend_item {
    int32_t row, count;               /* tokens row .. row+count-1 of the step; count 0: none */
    int32_t first;                    /* position of the first                                */
    int32_t table;                    /* offset of the sequence's blocks in `tables`          */
    int32_t split, splits;            /* decoding: which of how many; splits 0: a tile        */
    int32_t part;                     /* of several splits: where the first one's result goes */
};

struct attend_call {
    const void *q;                    /* as in qkv_out                                        */
    void *out;                        /* (rows, out_stride) of enum act                       */
    int64_t out_stride;
    int act_type, heads;
    float scale;                      /* of a score, times log2(e)                            */
    struct kv_layer kv;
    const struct attend_item *items;
    const int32_t *tables;
    float *part_out, *part_state;     /* (part, H, S); (part, H, 2): maximum and sum          */
    unsigned *parts_done;             /* (part, kv heads): splits done of those that begin    */
                                      /* there; 0 between launches                            */
};

/* x (rows, dim) F32 from the embedding's rows. */
cudaError_t k_embed(const struct weights *w, const struct row *rows, int count, int dim, float *x,
                    cudaStream_t stream);
/* out row i = rmsnorm(x row pick[i], or row i without pick) * weight.  dim is a multiple of 4. */
cudaError_t k_norm(const float *x, const float *weight, const int32_t *pick, int count, int dim,
                   float eps, void *out, int64_t out_stride, int act_type, cudaStream_t stream);
/* in (rows, in_stride) of enum act, in_stride >= w->in and zeros behind the true inputs. */
cudaError_t k_gemm(const struct weights *w, const void *in, int64_t in_stride, int rows,
                   const struct gemm_out *out, cudaStream_t stream);
/* Rows row0 .. row0+rows-1 of W (multiples of 8; Q8_0, Q4_0, Q4_1) as F16: to (rows, in). */
cudaError_t k_unpack(const struct weights *w, int row0, int rows, void *to, cudaStream_t stream);
/* Does with sums (rows, stride) of columns column0 .. column0+columns-1 what k_gemm does with its
 * own; columns and stride are even. */
cudaError_t k_finish(const float *sums, int64_t stride, int rows, int column0, int columns,
                     const struct gemm_out *out, cudaStream_t stream);
/* Qwen3: norms and rotates queries and keys in qkv (rows, stride) F32, stores all three. */
cudaError_t k_rope_store(float *qkv, int64_t stride, int count, const float *q_norm,
                         const float *k_norm, float eps, const struct qkv_out *out,
                         cudaStream_t stream);

/* Is there a tensor-core kernel for this shape?  If not, k_attend_any does all attention. */
int k_attend_fits(int head_dim, int group, int element, int act_type);
cudaError_t k_attend_prepare(void);   /* once a device: room in shared memory */
/* All attention of a step in one launch: c->items are `tiles` tiles of prompts, then `splits`
 * splits of decoding sequences.  The block that ends the last split merges them, upwards. */
cudaError_t k_attend(const struct attend_call *c, int tiles, int splits, cudaStream_t stream);
/* Any shape and precision; an item is one token. */
cudaError_t k_attend_any(const struct attend_call *c, int items, cudaStream_t stream);

/* KV of `count` positions from `first` between the pool (layer 0 at kv->base, others layer_bytes
 * apart) and `wire`: per layer K (count, K*S) then V. */
struct move_call {
    struct kv_layer kv;
    int64_t layer_bytes;
    const int32_t *blocks;            /* of the sequence, on the device                       */
    int first, count, layers;
    void *wire;
};
cudaError_t k_kv_gather(const struct move_call *c, cudaStream_t stream);
cudaError_t k_kv_scatter(const struct move_call *c, cudaStream_t stream);

/* The lowest id of the largest logit in each of `count` rows; NaN never wins; none: 0. */
cudaError_t k_argmax(const float *logits, int64_t stride, int vocab, int count, int32_t *out,
                     cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
