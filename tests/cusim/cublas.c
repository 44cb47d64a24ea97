/* tests/cusim/cublas.c - matrix products of cuBLAS, as operations of a stream.
 *
 * What the real library answers with a status or does silently wrong is a finding here: leading
 * dimensions, types outside the documented table, an output that overlaps an input, no stream,
 * another device.  Sums are in floats, over k in order.
 */
#include <cublas_v2.h>

#include "exec.h"
#include "stream.h"

struct cublasContext {
    cudaStream_t stream;
    int device;
    bool live;
};

/* As stored: columns of `rows` numbers, `stride` numbers apart. */
struct matrix {
    uint64_t at;
    cudaDataType type;
    int rows, columns, stride;
};

struct product {
    struct op op;
    struct matrix a, b, c;
    bool a_turned, b_turned;
    int m, n, k;
    float alpha, beta;
};

static enum type type_of(cudaDataType t)
{
    return t == CUDA_R_32F ? T_F32 : t == CUDA_R_16F ? T_F16 : T_NO_TYPE;
}

static uint32_t number_bytes(cudaDataType t) { return type_bytes(type_of(t)); }

static float load_one(const uint8_t *at, cudaDataType t)
{
    uint64_t bits = 0;
    memcpy(&bits, at, number_bytes(t));
    return (float)load_number(bits, type_of(t));
}

static void store_one(uint8_t *at, cudaDataType t, float f)
{
    uint64_t bits = store_number(f, type_of(t));
    memcpy(at, &bits, number_bytes(t));
}

static uint64_t column_bytes(const struct matrix *x)
{
    return (uint64_t)x->rows * number_bytes(x->type);
}

static uint64_t column(const struct matrix *x, int j)
{
    return x->at + (uint64_t)j * (uint64_t)x->stride * number_bytes(x->type);
}

static void touch(struct toucher *t, const struct matrix *x, enum touch how)
{
    for (int j = 0; j < x->columns; j++) shadow_bulk(t, column(x, j), column_bytes(x), how);
}

/* op(X) as floats, (rows of op, columns of op), row after row. */
static float *unpack(const struct matrix *x, bool turned)
{
    float *f = must_alloc((size_t)x->rows * (size_t)x->columns * sizeof *f);
    for (int j = 0; j < x->columns; j++) {
        const uint8_t *from = device_bytes(column(x, j));
        for (int i = 0; i < x->rows; i++) {
            size_t to = turned ? (size_t)j * (size_t)x->rows + (size_t)i
                               : (size_t)i * (size_t)x->columns + (size_t)j;
            f[to] = load_one(from + (size_t)i * number_bytes(x->type), x->type);
        }
    }
    return f;
}

/* One column of C from A (m, k) and B (k, n) would stride through both; rows of B's transpose and
 * of A's do not: at (k, m) and b (n, k). */
static void multiply(const struct product *p, const float *at, const float *b)
{
    float *sums = must_alloc((size_t)p->m * sizeof *sums);
    uint32_t bytes = number_bytes(p->c.type);
    for (int j = 0; j < p->n; j++) {
        memset(sums, 0, (size_t)p->m * sizeof *sums);
        for (int l = 0; l < p->k; l++) {
            float x = b[(size_t)j * (size_t)p->k + (size_t)l];
            const float *row = at + (size_t)l * (size_t)p->m;
            for (int i = 0; i < p->m; i++) sums[i] += row[i] * x;
        }
        uint8_t *to = device_bytes(column(&p->c, j));
        for (int i = 0; i < p->m; i++, to += bytes) {
            float old = p->beta != 0 ? p->beta * load_one(to, p->c.type) : 0;
            store_one(to, p->c.type, p->alpha * sums[i] + old);
        }
    }
    free(sums);
}

static bool run_product(struct op *op)
{
    struct product *p = (struct product *)op;
    struct toucher t = op_toucher(op);
    touch(&t, &p->a, TOUCH_READ);
    touch(&t, &p->b, TOUCH_READ);
    if (p->beta != 0) touch(&t, &p->c, TOUCH_READ);
    touch(&t, &p->c, TOUCH_WRITE);
    float *a = unpack(&p->a, !p->a_turned), *b = unpack(&p->b, !p->b_turned);
    multiply(p, a, b);
    free(a);
    free(b);
    return true;
}

static const struct op_type product_type = {sizeof(struct product), NULL, run_product, NULL};

static uint64_t end_of(const struct matrix *x)
{
    return column(x, x->columns - 1) + column_bytes(x);
}

static void check_overlap(const struct matrix *c, const struct matrix *x, const char *name)
{
    if (c->at >= end_of(x) || x->at >= end_of(c)) return;
    /* interleaved columns of one buffer may be meant; the same bytes may not */
    for (int j = 0; j < c->columns; j++) {
        for (int k = 0; k < x->columns; k++) {
            uint64_t low = column(c, j), other = column(x, k);
            report_if(low < other + column_bytes(x) && other < low + column_bytes(c), BLAS_ALIAS,
                      "the result of a product overlaps %s", name);
        }
    }
}

static void check_product(const struct product *p, cublasComputeType_t compute)
{
    const struct matrix *x[] = {&p->a, &p->b, &p->c};
    static const char *const names[] = {"A", "B", "C"};
    for (int k = 0; k < 3; k++) {
        report_if(!number_bytes(x[k]->type), BLAS_ARGUMENT, "%s has data type %d", names[k],
                  (int)x[k]->type);
        report_if(x[k]->stride < x[k]->rows, BLAS_ARGUMENT, "ld%c is %d, and %s has %d rows",
                  "abc"[k], x[k]->stride, names[k], x[k]->rows);
        report_if(x[k]->at % number_bytes(x[k]->type), MISALIGNED, "%s of a product at %#lx",
                  names[k], x[k]->at);
        report_if(!is_device(x[k]->at), DEVICE_TOUCHES_HOST_MEMORY,
                  "%s of a product is host memory", names[k]);
    }
    bool plain = compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC;
    report_if(!plain || p->a.type != p->b.type ||
              (p->c.type != p->a.type && p->c.type != CUDA_R_32F), BLAS_ARGUMENT,
              "types %d and %d to %d with compute type %d", (int)p->a.type, (int)p->b.type,
              (int)p->c.type, (int)compute);
    check_overlap(&p->c, &p->a, "A");
    check_overlap(&p->c, &p->b, "B");
}

cublasStatus_t cublasCreate_v2(cublasHandle_t *out)
{
    sim_open();
    if (!sim_devices()) return CUBLAS_STATUS_NOT_INITIALIZED;
    *out = must_alloc(sizeof **out);
    **out = (struct cublasContext){.device = current_device(), .live = true};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    check_alive(h, "a handle", "cublasDestroy");
    h->live = false;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s)
{
    check_alive(h, "a handle", "cublasSetStream");
    stream_check(s, "cublasSetStream");
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *at, size_t bytes)
{
    check_alive(h, "a handle", "cublasSetWorkspace");
    const struct region *hint = NULL;
    report_if((uint64_t)at % 256, MISALIGNED, "a workspace at %p", at);
    if (bytes) memory_region((uint64_t)at, bytes, h->device, &hint);
    return CUBLAS_STATUS_SUCCESS;
}

/* No mode changes what cusim computes: floats all the way. */
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode)
{
    (void)mode;
    check_alive(h, "a handle", "cublasSetMathMode");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t h, int *version)
{
    check_alive(h, "a handle", "cublasGetVersion");
    *version = CUBLAS_VERSION;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_NOT_INITIALIZED";
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t a_op, cublasOperation_t b_op, int m,
                            int n, int k, const void *alpha, const void *a, cudaDataType a_type,
                            int lda, const void *b, cudaDataType b_type, int ldb, const void *beta,
                            void *c, cudaDataType c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm)
{
    (void)algorithm;
    check_alive(h, "a handle", "a product");
    stream_check(h->stream, "a product");
    report_if(h->device != current_device(), WRONG_DEVICE,
              "a handle of device %d while device %d is current", h->device, current_device());
    report_if(m < 0 || n < 0 || k < 0, BLAS_ARGUMENT, "a negative size");
    if (!m || !n || !k) return CUBLAS_STATUS_SUCCESS;
    bool ta = a_op != CUBLAS_OP_N, tb = b_op != CUBLAS_OP_N;
    struct product *p = op_new(&product_type);
    p->a = (struct matrix){(uint64_t)a, a_type, ta ? k : m, ta ? m : k, lda};
    p->b = (struct matrix){(uint64_t)b, b_type, tb ? n : k, tb ? k : n, ldb};
    p->c = (struct matrix){(uint64_t)c, c_type, m, n, ldc};
    p->a_turned = ta, p->b_turned = tb;
    p->m = m, p->n = n, p->k = k;
    memcpy(&p->alpha, alpha, sizeof p->alpha);
    memcpy(&p->beta, beta, sizeof p->beta);
    check_product(p, compute);
    stream_add(h->stream, &p->op, "product of %d x %d x %d", m, n, k);
    return sim_faulted() ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
