/* cuda/blas.c - products of many rows through cuBLAS (--linear-backend cublas).
 *
 * A step's rows go through in windows of BLAS_WINDOW; a last one of at least BLAS_LEAST rows is
 * filled up with whatever lies behind them, the rest is for k_gemm.  So cuBLAS sees one shape per
 * matrix, which means one algorithm: a row has one of two results.  Steps of decoding sequences
 * only, and logits, never come here.
 *
 * Quantised weights become F16 first, a tile of W's rows at a time, once for all windows.  Sums
 * are F32.  Those that need nothing but adding go where they belong, others through `sums` and
 * k_finish.
 *
 * The library (600 MB with what it loads) is opened here and nowhere else: without that option it
 * need not exist.  Its workspace is a piece of the arena, so that nothing is allocated later, and
 * its results do not depend on what else the device does.
 */
#include <cublas_v2.h>
#include <dlfcn.h>
#include <stdlib.h>

#include "common/log.h"
#include "common/mem.h"
#include "cuda/cuda.h"

enum {
    WEIGHT_BYTES = 128 << 20,         /* of unpacked weights, at most                         */
    SUM_BYTES = 64 << 20,             /* of a window's sums, at most                          */
    WORKSPACE_BYTES = 32 << 20,       /* what the library's manual advises for compute 9.0    */
};

/* The version that the headers are of. */
#define LIBRARY_OF(major) "libcublas.so." #major
#define LIBRARY_NAME(major) LIBRARY_OF(major)
#define LIBRARY LIBRARY_NAME(CUBLAS_VER_MAJOR)
#define CALLS(X)                                                                                 \
    X(Create_v2) X(Destroy_v2) X(SetStream_v2) X(SetWorkspace_v2) X(SetMathMode) X(GetVersion_v2)\
    X(GetStatusString) X(GemmEx)

static struct {
#define X(name) __typeof__(&cublas##name) name;
    CALLS(X)
#undef X
} cublas;

struct blas {
    cublasHandle_t handle;
    void *weights, *workspace;
    float *sums;
};

/* --- opening --------------------------------------------------------------------------------- */

static enum err load(struct why *why)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
#define X(name)                                                                                  \
    if (library) *(void **)&cublas.name = dlsym(library, "cublas" #name);                        \
    if (!cublas.name)                                                                            \
        return why_set(why, ERR_UNSUPPORTED, "linear-backend cublas: %.200s", dlerror());
    CALLS(X)
#undef X
    return OK;
}

static enum err said(cublasStatus_t s, const char *what, struct why *why)
{
    if (s == CUBLAS_STATUS_SUCCESS) return OK;
    return why_set(why, ERR_IO, "linear-backend cublas: %s: %s", what,
                   cublas.GetStatusString(s));
}

enum err blas_open(struct cuda *u, struct why *why)
{
    if (u->act == ACT_F32)
        return why_set(why, ERR_UNSUPPORTED, "linear-backend cublas: not with activations float");
    struct blas *b = u->blas = mem_alloc(sizeof *b);
    enum err e = load(why);
    if (e) return e;
    cublasMath_t math = CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    e = said(cublas.Create_v2(&b->handle), "create", why);
    if (!e) e = said(cublas.SetMathMode(b->handle, math), "math mode", why);
    return e;
}

/* Choosing the stream forgets the workspace: in this order. */
enum err blas_start(struct cuda *u, struct why *why)
{
    struct blas *b = u->blas;
    int version = 0;
    enum err e = said(cublas.SetStream_v2(b->handle, u->compute), "stream", why);
    if (!e)
        e = said(cublas.SetWorkspace_v2(b->handle, b->workspace, WORKSPACE_BYTES),
                 "workspace", why);
    if (!e) e = said(cublas.GetVersion_v2(b->handle, &version), "version", why);
    if (e) return e;
    log_info("linear_backend=cublas version=%d from_rows=%d", version, BLAS_LEAST);
    if (u->c.step_tokens_max < BLAS_LEAST)
        log_warn("linear-backend cublas: max-num-batched-tokens %u is less than the %d rows from"
                 " which it is used", u->c.step_tokens_max, BLAS_LEAST);
    return OK;
}

void blas_close(struct cuda *u)
{
    struct blas *b = u->blas;
    if (!b) return;
    if (b->handle) cublas.Destroy_v2(b->handle);   /* the library stays */
    free(b);
    u->blas = NULL;
}

/* --- memory ---------------------------------------------------------------------------------- */

static bool unpacks(const struct weights *w)
{
    return w->type != WEIGHT_F16;
}

/* Rows of W at a time: as many equal tiles as it takes, of a multiple of GEMM_PAD_OUT. */
static uint32_t tile_rows(const struct weights *w)
{
    uint32_t most = SUM_BYTES / (BLAS_WINDOW * sizeof(float)), out = (uint32_t)w->out;
    uint64_t fit = unpacks(w) ? WEIGHT_BYTES / (2 * (uint64_t)(uint32_t)w->in) : most;
    if (most > fit) most = (uint32_t)fit;
    most = most < GEMM_PAD_OUT ? GEMM_PAD_OUT : most / GEMM_PAD_OUT * GEMM_PAD_OUT;
    uint32_t tiles = (out + most - 1) / most;
    return pad_to((out + tiles - 1) / tiles, GEMM_PAD_OUT);
}

static void measure(const struct matrix *m, uint64_t *weights, uint64_t *sums)
{
    uint64_t rows = tile_rows(&m->w), values = rows * (uint32_t)m->w.in;
    if (unpacks(&m->w) && 2 * values > *weights) *weights = 2 * values;
    if (rows * BLAS_WINDOW * sizeof(float) > *sums) *sums = rows * BLAS_WINDOW * sizeof(float);
}

void blas_carve(struct cuda *u)
{
    struct blas *b = u->blas;
    uint64_t weights = 0, sums = 0;
    for (uint32_t i = 0; i < u->model->h.layers; i++) {
        const struct layer *y = &u->layers[i];
        measure(&y->qkv, &weights, &sums);
        measure(&y->o, &weights, &sums);
        measure(&y->gate_up, &weights, &sums);
        measure(&y->down, &weights, &sums);
    }
    b->workspace = arena_take(&u->arena, WORKSPACE_BYTES);
    b->weights = arena_take(&u->arena, weights);
    b->sums = arena_take(&u->arena, sums);
}

/* --- products -------------------------------------------------------------------------------- */

/* sums or f32 (BLAS_WINDOW, stride) = factor * in (BLAS_WINDOW, k) * W, or added to it.  cuBLAS
 * thinks in columns: rows of ours are columns of its. */
static void multiply(struct cuda *u, const struct weights *w, const void *weights, int columns,
                     const void *in, float factor, float beta, float *to, int64_t stride)
{
    const struct blas *b = u->blas;
    cublasStatus_t s = cublas.GemmEx(
        b->handle, CUBLAS_OP_T, CUBLAS_OP_N, columns, BLAS_WINDOW, w->in, &factor, weights,
        CUDA_R_16F, w->in, in, CUDA_R_16F, w->in, &beta, to, CUDA_R_32F, (int)stride,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (s != CUBLAS_STATUS_SUCCESS) lost(u, cublas.GetStatusString(s), "cublasGemmEx");
}

/* The same outputs, seen from row `row` on. */
static struct gemm_out out_from(const struct gemm_out *out, uint32_t row)
{
    struct gemm_out o = *out;
    int64_t head = o.qkv.kv.head_dim, q = o.qkv.q_is_float ? 4 : 2;
    if (o.f32) o.f32 += row * o.f32_stride;
    if (o.act) o.act = (uint8_t *)o.act + row * o.act_stride * (o.act_type == ACT_F32 ? 4 : 2);
    if (o.qkv.q) o.qkv.q = (uint8_t *)o.qkv.q + row * o.qkv.heads * head * q;
    if (o.qkv.rows) o.qkv.rows += row;
    return o;
}

/* Columns column0 .. column0+columns-1 of one window. */
static void window(struct cuda *u, const struct matrix *m, const void *weights, int column0,
                   int columns, const void *in, const struct gemm_out *out, uint32_t rows)
{
    float *sums = u->blas->sums;
    bool plain = (out->kind == OUT_STORE || out->kind == OUT_ADD) && !out->bias;
    if (plain) {
        multiply(u, &m->w, weights, columns, in, out->factor, out->kind == OUT_ADD,
                 out->f32 + column0, out->f32_stride);
        return;
    }
    multiply(u, &m->w, weights, columns, in, 1, 0, sums, columns);
    MUST(u, k_finish(sums, columns, (int)rows, column0, columns, out, u->compute));
}

uint32_t blas_rows(uint32_t rows)
{
    uint32_t whole = rows / BLAS_WINDOW * BLAS_WINDOW;
    return rows - whole >= BLAS_LEAST ? rows : whole;
}

void blas_product(struct cuda *u, const struct matrix *m, const void *in,
                  const struct gemm_out *out)
{
    const struct weights *w = &m->w;
    uint32_t tile = tile_rows(w), rows = u->plan.blas_rows;
    for (uint32_t column = 0; column < (uint32_t)out->columns; column += tile) {
        uint32_t left = (uint32_t)w->out - column, columns = left < tile ? left : tile;
        const void *weights = (const uint16_t *)w->q + (uint64_t)column * (uint32_t)w->in;
        if (unpacks(w)) {
            MUST(u, k_unpack(w, (int)column, (int)columns, u->blas->weights, u->compute));
            weights = u->blas->weights;
        }
        left = (uint32_t)out->columns - column;
        if (columns > left) columns = left;
        for (uint32_t row = 0; row < rows; row += BLAS_WINDOW) {
            struct gemm_out o = out_from(out, row);
            const uint16_t *from = (const uint16_t *)in + (uint64_t)row * (uint32_t)w->in;
            uint32_t real = rows - row < BLAS_WINDOW ? rows - row : BLAS_WINDOW;
            window(u, m, weights, (int)column, (int)columns, from, &o, real);
        }
    }
}

struct gemm_out blas_rest(const struct cuda *u, const struct gemm_out *out)
{
    return out_from(out, u->plan.blas_rows);
}
