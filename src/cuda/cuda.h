/* cuda/cuda.h - the CUDA backend's parts: device memory, weights, one step, transfers.
 *
 *   cuda.c      the table: opening, closing, errors
 *   memory.c    one arena on the device, carved at start
 *   weights.c   what the kernels read, where it lies, and its way there
 *   pack.c      the order of packed weights
 *   plan.c      a step's description for the GPU: rows, attention items, block tables
 *   step.c      the kernels of a step in order; graphs of decode steps
 *   blas.c      products of many rows through cuBLAS, when it is asked for
 *   sample.c    logits to tokens
 *   transfer.c  KV in and out through pinned memory
 *   lanes.c, nccl.c  KV to and from other ranks' GPUs
 *
 * Streams (all non-blocking): `compute` runs steps; `copy` moves KV into the pool and out of it,
 * by the control thread while a step runs; each lane has one (lanes.h).  Between the first two
 * stand events: `layer[i]` when the running step's KV of layer i is complete, which only a read of
 * what that step writes waits for (`writes`); `written` when all that `copy` has begun so far is
 * done.
 *
 * The device's memory is one allocation; nothing is allocated after open.  A failed CUDA call at
 * open is a line and an error.  Later it means a lost device: the rank says so and ends.
 */
#ifndef RANKSERVE_CUDA_CUDA_H
#define RANKSERVE_CUDA_CUDA_H

#include <cuda_runtime_api.h>
#include <pthread.h>

#include "cuda/kernels.h"
#include "engine/backend.h"
#include "model/sampler.h"

enum {
    LOGIT_BYTES = 64 << 20,           /* of the logits buffer, if 16 rows fit                 */
    PARTS_MAX = 4096,                 /* splits of decoding sequences in one step             */
    STAGE_BYTES = 8 << 20,            /* pinned memory of one direction's transfers           */
    GRAPHS_MAX = 64,
    BLAS_WINDOW = 512,                /* rows of every product that goes to cuBLAS            */
    BLAS_LEAST = 256,                 /* real rows in one, at least                           */
};

/* --- device memory --------------------------------------------------------------------------- */

/* Carved from the front.  With base NULL it only counts. */
struct arena {
    uint8_t *base;
    uint64_t used, size;
};
void *arena_take(struct arena *a, uint64_t bytes);

/* --- weights --------------------------------------------------------------------------------- */

/* Row n of a packed matrix comes from row from_row(n) of one of up to three tensors. */
struct source {
    const struct gguf_tensor *t[3];
    uint32_t count, rows[3];          /* how many rows each has                               */
    enum { SOURCE_IN_TURN, SOURCE_PAIRED } order;   /* paired: 0's first, 1's first, 0's ...  */
    uint32_t pair_heads[3];           /* heads whose halves are made pairs; 0: as they are    */
    uint32_t head_dim, rope_dims;
};

struct matrix {
    struct weights w;                 /* device pointers                                      */
    struct source from;
    uint32_t out, in;                 /* without the padding                                  */
};

struct layer {
    struct matrix qkv, o, gate_up, down;
    float *attn_norm, *ffn_norm, *qkv_bias, *o_bias, *q_norm, *k_norm;   /* NULL: none        */
};

/* --- a step's description -------------------------------------------------------------------- */

/* One upload: every part at an offset from `host` and `device`. */
struct plan {
    uint8_t *host, *device;           /* pinned; arena                                        */
    uint64_t bytes, room;
    uint32_t rows, logits;            /* padded counts, what the kernels are launched with    */
    uint32_t blas_rows;               /* of these rows, the first go to cuBLAS                */
    uint32_t tiles, splits, parts;    /* attention items: of prompts, of decoding             */
    uint64_t rows_at, pick_at, items_at, tables_at;
};

/* Positions first .. end-1 of a sequence, whose block `block` holds the first of them. */
struct written {
    uint32_t block, first, end;
};

struct graph {
    uint32_t rows, splits;
    cudaGraphExec_t exec;
    uint64_t used;                    /* when last, in steps                                  */
};

struct cuda {
    struct backend_config c;
    const struct model *model;
    int device;
    enum act act;
    cudaStream_t compute, copy;
    cudaEvent_t layer_event[MODEL_LAYERS_MAX], written;
    pthread_mutex_t lock;             /* over these two, and what waits for layer_event       */
    struct written *writes;           /* of the step that runs                                */
    uint32_t write_count;
    struct arena arena;
    cudaError_t carve_error;

    struct layer *layers;
    struct matrix embedding, head;
    float *output_norm, *rope_table;

    uint8_t *kv;
    uint64_t layer_bytes, block_bytes;
    enum kv_element kv_element;
    struct kv_shape shape;

    struct plan plan;
    struct graph graphs[GRAPHS_MAX];
    uint32_t graph_count;
    uint64_t steps;
    bool tensor_attention, separate_rope, eager;   /* eager: no graphs */

    float *x, *qkv;                   /* (rows, D); (rows, (H+2K)*S) only with separate_rope  */
    void *normed, *q, *attended, *hidden, *final;
    float *part_out, *part_state;
    unsigned *parts_done;
    float *logits, *logits_host;
    int32_t *best, *best_host;
    uint32_t logit_rows_max, final_count, logits_first;
    struct sampler *sampler;

    uint8_t *stage, *stage_host;      /* STAGE_BYTES each */
    struct lanes *lanes;              /* NULL: none */
    struct blas *blas;                /* NULL: k_gemm does all                                */
};

uint32_t pad_to(uint32_t n, uint32_t multiple);
uint32_t act_bytes(const struct cuda *u);

/* Carves the weights; with u->arena.base NULL, counts. */
void weights_carve(struct cuda *u);
/* Sends them to the device.  `why` says which tensor. */
enum err weights_upload(struct cuda *u, struct why *why);

/* Packs rows row .. row+count-1 (count a multiple of 8, or all) of m into q, scales, mins. */
void pack_rows(const struct matrix *m, uint32_t row, uint32_t count, uint8_t *q, uint16_t *scales,
               uint16_t *mins);
uint64_t packed_q_bytes(const struct weights *w, uint32_t rows);
uint64_t packed_scale_bytes(const struct weights *w, uint32_t rows);

uint64_t plan_bytes_max(const struct cuda *u);
/* Describes `s` in u->plan.  True: it may run as a graph (decoding only). */
bool plan_step(struct cuda *u, const struct step *s);

struct kv_layer kv_layer_of(const struct cuda *u, uint32_t layer);

/* cuBLAS.  open: loads it (before memory is measured: it takes some of its own); carve: its pieces
 * of the arena; start: once the arena stands. */
enum err blas_open(struct cuda *u, struct why *why);
void blas_carve(struct cuda *u);
enum err blas_start(struct cuda *u, struct why *why);
void blas_close(struct cuda *u);
/* How many of a step's rows cuBLAS takes: from the first on, in windows of BLAS_WINDOW. */
uint32_t blas_rows(uint32_t rows);
/* As k_gemm, for the first plan.blas_rows rows; buffers of rows reach to the window's end. */
void blas_product(struct cuda *u, const struct matrix *m, const void *in,
                  const struct gemm_out *out);
/* Where the results of the rows behind those go. */
struct gemm_out blas_rest(const struct cuda *u, const struct gemm_out *out);

enum err cuda_step(void *self, const struct step *s);
enum err cuda_sample(void *self, struct sample_job *jobs, uint32_t count);
/* Logits of final rows first ..; into u->logits and their best into best_host, asynchronously. */
void head_run(struct cuda *u, uint32_t first, uint32_t rows);
void cuda_kv_read(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                  uint32_t first, uint32_t count, void *out);
void cuda_kv_write(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                   uint32_t first, uint32_t count, const void *in);

extern const struct backend_lanes cuda_lanes;
/* Decides whether there are lanes: u->lanes. */
enum err lanes_open(struct cuda *u, struct why *why);
void lanes_carve(struct cuda *u);
cudaError_t lanes_host(struct cuda *u);
/* False: something still uses the device's memory, which must stay. */
bool lanes_close(struct cuda *u);

/* A failed call while running: says so and ends this rank; the job goes on without it. */
#define MUST(u, call) must((u), (call), #call)
void must(const struct cuda *u, cudaError_t e, const char *what);
_Noreturn void lost(const struct cuda *u, const char *error, const char *what);

#endif
