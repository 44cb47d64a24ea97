/* cuda/cuda.c - the CUDA backend's table: opening, closing, errors; see cuda.h. */
#include "cuda/cuda.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/limits.h"
#include "common/log.h"
#include "common/mem.h"

void lost(const struct cuda *u, const char *error, const char *what)
{
    log_error("device=%d lost: %s: %.60s", u->device, error, what);
    fflush(NULL);
    _exit(1);                         /* the others see it, and go on without this rank */
}

void must(const struct cuda *u, cudaError_t e, const char *what)
{
    if (e) lost(u, cudaGetErrorString(e), what);
}

#define TRY(call)                                                                                \
    do {                                                                                         \
        cudaError_t error_ = (call);                                                             \
        if (error_)                                                                              \
            return why_set(why, ERR_IO, "cuda: device %d: %.60s: %s", u->device, #call,          \
                           cudaGetErrorString(error_));                                          \
    } while (0)

/* --- what can be run ------------------------------------------------------------------------- */

static enum err find_device(struct cuda *u, struct why *why)
{
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e)
        return why_set(why, ERR_UNSUPPORTED, "backend cuda: no usable GPU here: %s",
                       cudaGetErrorString(e));
    if (u->c.device < 0 || u->c.device >= count)
        return why_set(why, ERR_UNSUPPORTED, "backend cuda: this host has %d GPUs, and rank %d of"
                       " it has none: start at most %d workers here", count, u->c.device, count);
    u->device = u->c.device;
    struct cudaDeviceProp p;
    TRY(cudaSetDevice(u->device));
    TRY(cudaGetDeviceProperties(&p, u->device));
    if (p.major < 8)
        return why_set(why, ERR_UNSUPPORTED, "backend cuda: GPU %d (%.64s) has compute capability"
                       " %d.%d; 8.0 is the least", u->device, p.name, p.major, p.minor);
    return OK;
}

static enum err check_model(const struct cuda *u, struct why *why)
{
    const struct hparams *h = &u->model->h;
    if (h->head_dim > 256 || h->head_dim % 8 || h->dim % 4 || h->rope_dims % 2)
        return why_set(why, ERR_UNSUPPORTED, "backend cuda: head size %" PRIu32 " with width %"
                       PRIu32 ": heads of at most 256, a multiple of 8, are supported",
                       h->head_dim, h->dim);
    uint32_t tokens = u->c.block_tokens;
    if (tokens < 8 || tokens > KV_BLOCK_TOKENS_MAX || (tokens & (tokens - 1)))
        return why_set(why, ERR_LIMIT, "block size %" PRIu32 ": it must be a power of two from 8"
                       " to %d", tokens, KV_BLOCK_TOKENS_MAX);
    if (u->c.kv_type == KV_INT8)
        return why_set(why, ERR_UNSUPPORTED, "the CUDA backend keeps KV in f16, f32 or fp8, not"
                       " in int8");
    return OK;
}

/* --- memory ---------------------------------------------------------------------------------- */

static uint64_t blocks_max(const struct cuda *u)
{
    return ((uint64_t)u->c.seq_tokens_max + u->c.block_tokens - 1) / u->c.block_tokens;
}

/* Work space is zeros at first: the padding of rows is read and never written. */
static void *work_carve(struct cuda *u, uint64_t bytes)
{
    void *at = arena_take(&u->arena, bytes);
    if (at && bytes && !u->carve_error) u->carve_error = cudaMemsetAsync(at, 0, bytes, u->compute);
    return at;
}

static void *rows_carve(struct cuda *u, uint64_t rows, uint64_t width, uint64_t bytes)
{
    return work_carve(u, rows * width * bytes);
}

/* Everything but the KV pool. */
static void carve(struct cuda *u)
{
    const struct hparams *h = &u->model->h;
    uint64_t rows = pad_to(u->c.step_tokens_max, u->blas ? BLAS_WINDOW : 32), act = act_bytes(u);
    uint64_t heads = (uint64_t)h->heads * h->head_dim;
    uint64_t all = heads + 2ull * h->kv_heads * h->head_dim;
    weights_carve(u);
    u->plan.room = plan_bytes_max(u);
    u->plan.device = work_carve(u, u->plan.room);
    u->x = rows_carve(u, rows, h->dim, 4);
    u->normed = rows_carve(u, rows, pad_to(h->dim, GEMM_PAD_IN), act);
    u->q = rows_carve(u, rows, heads, u->act == ACT_F32 ? 4 : 2);
    u->attended = rows_carve(u, rows, (uint32_t)u->layers[0].o.w.in, act);
    u->hidden = rows_carve(u, rows, (uint32_t)u->layers[0].down.w.in, act);
    u->final = rows_carve(u, rows, (uint32_t)u->head.w.in, act);
    u->qkv = u->separate_rope ? rows_carve(u, rows, all, 4) : NULL;
    u->part_out = rows_carve(u, u->tensor_attention ? PARTS_MAX : 0, heads, 4);
    u->part_state = rows_carve(u, u->tensor_attention ? PARTS_MAX : 0, 2ull * h->heads, 4);
    u->parts_done = rows_carve(u, u->tensor_attention ? PARTS_MAX : 0, h->kv_heads, 4);
    uint64_t each = (uint64_t)(uint32_t)u->head.w.out * 4, most = LOGIT_BYTES / each;
    u->logit_rows_max = most < 16 ? 16 : most > rows ? (uint32_t)rows : (uint32_t)most;
    u->logits = work_carve(u, u->logit_rows_max * each);
    u->best = work_carve(u, u->logit_rows_max * sizeof *u->best);
    u->stage = work_carve(u, STAGE_BYTES);
    lanes_carve(u);
    if (u->blas) blas_carve(u);
}

static void kv_sizes(struct cuda *u)
{
    const struct hparams *h = &u->model->h;
    u->kv_element = u->c.kv_type == KV_F32   ? KV_ELEMENT_F32
                    : u->c.kv_type == KV_FP8 ? KV_ELEMENT_FP8
                                             : KV_ELEMENT_F16;
    uint32_t element = u->c.kv_type == KV_F32 ? 4 : u->c.kv_type == KV_FP8 ? 1 : 2;
    u->shape = (struct kv_shape){ .block_tokens = u->c.block_tokens, .layers = h->layers,
                                  .token_bytes = 2ull * h->kv_heads * h->head_dim * element };
    u->block_bytes = u->shape.token_bytes * u->c.block_tokens;
}

/* Bytes for the pool: what was asked for, or what is left of the share of the device. */
static enum err kv_room(struct cuda *u, uint64_t *bytes, struct why *why)
{
    size_t free_bytes, total;
    TRY(cudaMemGetInfo(&free_bytes, &total));
    double share = u->c.gpu_memory_utilization > 0 ? (double)u->c.gpu_memory_utilization : 0.9;
    uint64_t most = (uint64_t)((double)total * share), taken = total - free_bytes;
    uint64_t have = most > taken ? most - taken : 0;
    *bytes = u->c.kv_bytes ? u->c.kv_bytes : have > u->arena.used ? have - u->arena.used : 0;
    uint64_t least = u->block_bytes * u->shape.layers;
    if (u->arena.used + (*bytes > least ? *bytes : least) <= have) return OK;
    return why_set(why, ERR_MEMORY, "backend cuda: device %d: weights and work space take %" PRIu64
                   " MiB and the KV cache at least %" PRIu64 " MiB, but %" PRIu64 " MiB are left"
                   " (gpu-memory-utilization %.2f of %" PRIu64 " MiB)", u->device,
                   (uint64_t)u->arena.used >> 20, (*bytes > least ? *bytes : least) >> 20,
                   have >> 20, share, (uint64_t)total >> 20);
}

static enum err open_memory(struct cuda *u, struct why *why)
{
    carve(u);
    uint64_t kv_bytes = 0;
    enum err e = kv_room(u, &kv_bytes, why);
    if (e) return e;
    uint64_t per_block = u->block_bytes * u->shape.layers, count = kv_bytes / per_block;
    uint64_t most = INT32_MAX / u->c.block_tokens;       /* slots are 32 bits */
    if (most > KV_BLOCK_COUNT_MAX) most = KV_BLOCK_COUNT_MAX;
    if (count > most) count = most;
    if (count == 0)
        return why_set(why, ERR_LIMIT, "KV memory of %" PRIu64 " bytes holds no block (one takes"
                       " %" PRIu64 ")", kv_bytes, per_block);
    u->shape.block_count = (uint32_t)count;
    u->layer_bytes = count * u->block_bytes;
    arena_take(&u->arena, u->layer_bytes * u->shape.layers);
    u->arena.size = u->arena.used;
    u->arena.used = 0;
    TRY(cudaMalloc((void **)&u->arena.base, u->arena.size));
    carve(u);
    u->kv = arena_take(&u->arena, u->layer_bytes * u->shape.layers);
    TRY(u->carve_error);
    return u->blas ? blas_start(u, why) : OK;
}

static enum err open_host(struct cuda *u, struct why *why)
{
    uint64_t logits = (uint64_t)u->logit_rows_max * (uint32_t)u->head.w.out * sizeof(float);
    CHECK(blocks_max(u) * sizeof(int32_t) < STAGE_BYTES / 2);
    TRY(cudaMallocHost((void **)&u->plan.host, u->plan.room));
    TRY(cudaMallocHost((void **)&u->logits_host, logits));
    TRY(cudaMallocHost((void **)&u->best_host, u->logit_rows_max * sizeof *u->best_host));
    u->sampler = sampler_open(u->model->h.vocab);
    return OK;
}

static enum err open_streams(struct cuda *u, struct why *why)
{
    TRY(cudaStreamCreateWithFlags(&u->compute, cudaStreamNonBlocking));
    TRY(cudaStreamCreateWithFlags(&u->copy, cudaStreamNonBlocking));
    unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync;
    TRY(cudaEventCreateWithFlags(&u->written, flags));
    for (uint32_t i = 0; i < u->model->h.layers; i++)
        TRY(cudaEventCreateWithFlags(&u->layer_event[i], flags));
    TRY(cudaMallocHost((void **)&u->stage_host, STAGE_BYTES));
    TRY(lanes_host(u));
    if (u->tensor_attention) TRY(k_attend_prepare());
    return OK;
}

/* --- the table ------------------------------------------------------------------------------- */

/* Errors are of no use any more. */
static void cuda_close(void *self)
{
    struct cuda *u = self;
    if (!u) return;
    cudaSetDevice(u->device);
    if (!lanes_close(u)) return;
    if (u->compute) cudaStreamSynchronize(u->compute);
    if (u->copy) cudaStreamSynchronize(u->copy);
    for (uint32_t i = 0; i < u->graph_count; i++) cudaGraphExecDestroy(u->graphs[i].exec);
    for (uint32_t i = 0; i < MODEL_LAYERS_MAX; i++)
        if (u->layer_event[i]) cudaEventDestroy(u->layer_event[i]);
    if (u->written) cudaEventDestroy(u->written);
    blas_close(u);
    if (u->compute) cudaStreamDestroy(u->compute);
    if (u->copy) cudaStreamDestroy(u->copy);
    cudaFree(u->arena.base);
    cudaFreeHost(u->plan.host);
    cudaFreeHost(u->logits_host);
    cudaFreeHost(u->best_host);
    cudaFreeHost(u->stage_host);
    sampler_close(u->sampler);
    free(u->layers);
    free(u->writes);
    pthread_mutex_destroy(&u->lock);
    free(u);
}

static enum err open_all(struct cuda *u, struct why *why)
{
    const struct hparams *h = &u->model->h;
    enum err e = check_model(u, why);
    if (!e) e = find_device(u, why);
    if (e) return e;
    u->eager = getenv("RANKSERVE_CUDA_EAGER") != NULL;
    u->act = u->c.float_activations ? ACT_F32 : ACT_F16;
    kv_sizes(u);
    int group = (int)(h->heads / h->kv_heads);
    u->tensor_attention = k_attend_fits((int)h->head_dim, group, u->kv_element, u->act);
    u->separate_rope = u->model->layers[0].q_norm || u->model->layers[0].k_norm;
    u->layers = mem_array(h->layers, sizeof *u->layers);
    u->writes = mem_array(u->c.step_seqs_max, sizeof *u->writes);
    e = lanes_open(u, why);
    if (!e) e = open_streams(u, why);
    if (!e && u->c.cublas) e = blas_open(u, why);
    if (!e) e = open_memory(u, why);
    if (!e) e = open_host(u, why);
    if (!e) e = weights_upload(u, why);
    if (e) return e;
    TRY(cudaStreamSynchronize(u->compute));
    return OK;
}

static enum err cuda_open(void **self, const struct backend_config *c, struct kv_shape *shape_out,
                          struct why *why)
{
    CHECK(c->step_tokens_max >= 1 && c->step_tokens_max <= STEP_TOKENS_MAX);
    struct cuda *u = mem_alloc(sizeof *u);
    u->c = *c;
    u->model = c->model;
    pthread_mutex_init(&u->lock, NULL);
    enum err e = open_all(u, why);
    if (e) {
        cuda_close(u);
        return e;
    }
    *shape_out = u->shape;
    *self = u;
    return OK;
}

/* Sends that wait for their peers must not stand in a queue before other streams' work: the
 * driver has 8 queues unless told otherwise, before its first call. */
static void cuda_choose_device(int device)
{
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    if (cudaSetDevice(device)) cudaGetLastError();
}

static int cuda_capability(int device)
{
    int major = 0, minor = 0;
    cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (!e) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (e) cudaGetLastError();
    return e ? 0 : 10 * major + minor;
}

extern const struct backend backend_cuda;
const struct backend backend_cuda = {
    .name = "cuda", .choose_device = cuda_choose_device, .capability = cuda_capability,
    .open = cuda_open,
    .close = cuda_close, .step = cuda_step,
    .sample = cuda_sample, .kv_read = cuda_kv_read, .kv_write = cuda_kv_write,
    .lanes = &cuda_lanes,
};
