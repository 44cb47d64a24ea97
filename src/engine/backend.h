/* engine/backend.h - a way to run the model: a small table of whole steps.
 *
 * Operations inside a step (attention, matmul, norm) are each backend's own business.  The CPU
 * backend is real and is the reference; others must agree with it.
 *
 * The promise every backend keeps: the KV and the logits of a token have the same bits whatever the
 * step's other sequences, chunk borders, or number of threads (per instruction set), unless
 * `cublas` is set.
 *
 * Threads: `step` and `sample` are called by one compute thread, one call at a time.  `kv_read` and
 * `kv_write` may be called by another thread (the control thread) while a step runs; the caller
 * guarantees that they touch no position that the running step writes.  `kv_touch` may run beside
 * all of them.
 */
#ifndef RANKSERVE_ENGINE_BACKEND_H
#define RANKSERVE_ENGINE_BACKEND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "common/sampling.h"
#include "engine/lanes.h"
#include "model/hparams.h"

/* KV_FP8 is E4M3.  On CPUs the 8-bit types have a scale per token and head, and keys are stored
 * after a Walsh-Hadamard transform (as the queries that meet them). */
enum kv_type { KV_F16, KV_F32, KV_INT8, KV_FP8 };

static inline uint32_t kv_element_bytes(enum kv_type type)
{
    return type == KV_F32 ? 4 : type == KV_F16 ? 2 : 1;
}

static inline bool kv_is_scaled(enum kv_type type)
{
    return type == KV_INT8 || type == KV_FP8;
}

/* Bytes of keys and values (and their scales) of one token in one layer, on CPUs. */
static inline uint64_t kv_token_bytes(const struct hparams *h, enum kv_type type)
{
    uint64_t scales = kv_is_scaled(type) ? 2ull * h->kv_heads * sizeof(float) : 0;
    return model_kv_token_bytes(h, kv_element_bytes(type)) + scales;
}

/* Ascending: the job takes the minimum. */
enum isa { ISA_PLAIN, ISA_AVX2, ISA_AVX512, ISA_AVX512_BF16, ISA_COUNT };

struct backend_config {
    const struct model *model;        /* outlives the backend                                */
    const void *packed;               /* what pack() made, shared by the ranks of a host; or NULL:
                                         the backend packs into memory of its own if it needs to */
    uint32_t threads;                 /* compute threads, the caller of step() included      */
    enum isa isa;                     /* what to use; never above isa_best()                 */
    bool float_activations;           /* plain-C oracle: no 8-bit activations, all in F32    */
    enum kv_type kv_type;
    uint32_t block_tokens;
    uint64_t kv_bytes;                /* for the whole pool                                  */
    uint32_t step_tokens_max, step_seqs_max;
    uint32_t seq_tokens_max;          /* longest sequence                                    */
    int low_priority;                 /* nice increment for compute threads; 0: none         */
    int device;                       /* of a GPU backend                                    */
    float gpu_memory_utilization;
    enum { LANES_NONE, LANES_IF_THERE, LANES_MUST } lanes;   /* to other ranks' devices        */
    bool cublas;                      /* products of many rows through cuBLAS                */
};

struct kv_shape {
    uint32_t block_count, block_tokens;
    uint32_t layers;
    uint64_t token_bytes;             /* K and V of one token in one layer, as read and written */
};

/* One sequence's part of a step: `count` tokens at positions first .. first+count-1, whose ids are
 * step->ids[row ..].  Everything before `first` is already in the KV blocks. */
struct step_seq {
    uint32_t first, count, row;
    const uint32_t *blocks;           /* block i holds positions i*block_tokens ...          */
};

struct step {
    const int32_t *ids;               /* (token_count)                                       */
    uint32_t token_count, seq_count;
    const struct step_seq *seqs;
    const uint32_t *logit_rows;       /* ascending indices into ids: logits wanted for these */
    uint32_t logit_count;             /* <= step_seqs_max, prompt scores included            */
    /* After each layer: layers whose KV is complete for every token of this step.  `notify` (may be
     * NULL) is then called from the compute thread; it must be quick and must not call back. */
    _Atomic uint32_t *layers_done;
    void (*notify)(void *ctx);
    void *notify_ctx;
};

/* A row of logits turned into a token (draw) or into the score of a known token. */
struct sample_job {
    uint32_t logit;                   /* index into the last step's logit_rows               */
    bool score_only;                  /* prompt_logprobs: `score_id` at `position` is scored */
    int32_t score_id;
    uint32_t position;
    uint16_t score_top_count;
    const struct sampling *params;    /* the rest: for draws                                 */
    const struct logit_bias *bias;
    const int32_t *history;
    uint32_t prompt_count, history_count;
    struct token_record record;       /* out */
    struct top_logprob top[TOP_LOGPROBS_MAX];  /* out */
};

struct backend {
    const char *name;                 /* "cpu", "cuda", "null" */
    /* May be NULL.  Called once, before MPI starts: what MPI itself does with a GPU shall find the
     * right one chosen.  No failure counts yet; open() will say what is wrong. */
    void (*choose_device)(int device);
    /* May be NULL.  Of a GPU, compute capability times ten (90 is 9.0); 0: open() says why not.
     * All workers of a job must have the same: two kinds of GPU calculate different bits. */
    int (*capability)(int device);
    enum err (*open)(void **self, const struct backend_config *c, struct kv_shape *shape_out,
                     struct why *why);
    void (*close)(void *self);
    /* May be NULL: priorities mean nothing here.  As low_priority, from now on; the compute thread
     * has ended, and a new one calls the next step. */
    void (*set_priority)(void *self, int low_priority);
    enum err (*step)(void *self, const struct step *s);
    enum err (*sample)(void *self, struct sample_job *jobs, uint32_t count);
    /* KV of positions first .. first+count-1 of a sequence, in layers layer .. layer+layers-1:
     * layers * count * token_bytes.  Their order is the backend's own (cpu/kv.c, cuda/transfer.c):
     * what was read with some `first`, `count`, `layers` is written with the same `count` and
     * `layers`, and a `first` that lies as far into a block. */
    void (*kv_read)(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                    uint32_t first, uint32_t count, void *out);
    void (*kv_write)(void *self, const uint32_t *blocks, uint32_t layer, uint32_t layers,
                     uint32_t first, uint32_t count, const void *in);
    /* May be NULL.  Takes a piece of memory from the kernel that blocks 0 .. blocks-1 need and have
     * not got, in about a millisecond, so that no prompt has to; false: they have all. */
    bool (*kv_touch)(void *self, uint32_t blocks);
    /* Weights in this backend's own layout, made once per host.  packed_bytes gives the size (0:
     * nothing to pack); pack fills part `part` of `parts`, so that several ranks share the work. */
    uint64_t (*packed_bytes)(const struct model *m, enum isa isa);
    void (*pack)(const struct model *m, enum isa isa, void *out, uint32_t part, uint32_t parts);
    const struct backend_lanes *lanes; /* NULL: KV goes through the host only */
};

extern const struct backend backend_cpu;

/* NULL when there is none of this name (cuda: loads the shared object). */
const struct backend *backend_find(const char *name);
/* Why the last backend_find found none: one line. */
const char *backend_missing(void);

/* The best this CPU offers, capped by RANKSERVE_ISA=plain|avx2|avx512|avx512_bf16. */
enum err isa_find(enum isa *out, struct why *why);
/* The same; a wrong word: die. */
enum isa isa_best(void);
const char *isa_name(enum isa isa);

#endif
