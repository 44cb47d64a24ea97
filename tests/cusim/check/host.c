/* tests/cusim/check/host.c - faults of the host: order, memory, launches, handles, products. */
#include <cublas_v2.h>
#include <math.h>
#include <string.h>

#include "check.h"

void cusim_carve(const void *piece, size_t bytes);
void cusim_uncarve(const void *piece);

/* Two streams: one writes, the other reads.  0 right; 1 no event; 2 the event was recorded before
 * the work; 3 the wait came before the record. */
static void events(int bad)
{
    cudaStream_t s = new_stream(), x = new_stream();
    cudaEvent_t e = new_event();
    int *a = on_device(N * sizeof *a), *b = on_device(N * sizeof *b);
    CK(k_fill(0, a, NULL, s));
    CK(cudaStreamSynchronize(s));
    if (bad == 2) CK(cudaEventRecord(e, s));
    if (bad == 3) CK(cudaStreamWaitEvent(x, e, 0));
    CK(k_fill(0, a, NULL, s));
    if (!bad || bad == 3) CK(cudaEventRecord(e, s));
    if (!bad || bad == 2) CK(cudaStreamWaitEvent(x, e, 0));
    CK(k_copy(0, a, b, x));
    CK(cudaStreamSynchronize(x));
    CK(cudaStreamSynchronize(s));
    CK(cudaEventDestroy(e));
    CK(cudaFree(a));
    CK(cudaFree(b));
}

/* A buffer is written again before the copy from it is known to be done. */
static void reuse(int bad)
{
    cudaStream_t s = new_stream(), x = new_stream();
    cudaEvent_t e = new_event();
    int *a = on_device(N * sizeof *a), *h = pinned(N * sizeof *h);
    CK(k_fill(0, a, NULL, s));
    CK(cudaEventRecord(e, s));
    CK(cudaStreamWaitEvent(x, e, 0));
    CK(cudaMemcpyAsync(h, a, N * sizeof *a, cudaMemcpyDeviceToHost, x));
    CK(cudaEventRecord(e, x));
    if (!bad) CK(cudaStreamWaitEvent(s, e, 0));
    CK(k_fill(1, a, NULL, s));
    CK(cudaStreamSynchronize(x));
    EXPECT(h[7] == 7);
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
    CK(cudaFreeHost(h));
}

static void touch(int bad)
{
    int *a = on_device(N * sizeof *a);
    volatile int *p = a;
    if (bad == 1) (void)p[3];
    if (bad == 2) p[3] = 1;
    CK(cudaFree(a));
}

static void pageable(int to_host)
{
    static int h[N];
    cudaStream_t s = new_stream();
    int *a = on_device(sizeof h);
    if (to_host) CK(cudaMemcpyAsync(h, a, sizeof h, cudaMemcpyDeviceToHost, s));
    else CK(cudaMemcpyAsync(a, h, sizeof h, cudaMemcpyHostToDevice, s));
    CK(cudaStreamSynchronize(s));
}

/* 1: the source is written before the host waits. 2: freed before. */
static void in_flight(int bad)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *h = pinned(N * sizeof *h);
    for (int i = 0; i < N; i++) h[i] = i;
    CK(cudaMemcpyAsync(a, h, N * sizeof *h, cudaMemcpyHostToDevice, s));
    if (bad == 1) h[N - 1] = 5;
    if (bad == 2) CK(cudaFreeHost(h));
    CK(cudaStreamSynchronize(s));
    h[N - 1] = 6;
    CK(cudaFree(a));
    CK(cudaFreeHost(h));
}

/* The result is not there before the host has waited for it. */
static void early_look(int unused)
{
    (void)unused;
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *h = pinned(N * sizeof *h);
    CK(k_fill(0, a, NULL, s));
    CK(cudaMemcpyAsync(h, a, N * sizeof *h, cudaMemcpyDeviceToHost, s));
    for (int k = 0; k < 1000; k++) EXPECT(h[9] != 9);
    while (cudaStreamQuery(s) == cudaErrorNotReady) { }
    EXPECT(h[9] == 9);
    CK(cudaFree(a));
    CK(cudaFreeHost(h));
}

/* 1 twice, 2 from the middle, 3 pinned twice, 4 pinned as if it were the device's. */
static void frees(int bad)
{
    char *a = on_device(4096), *h = pinned(64);
    CK(cudaFree(bad == 2 ? a + 512 : bad == 4 ? h : a));
    if (bad == 1) CK(cudaFree(a));
    CK(cudaFreeHost(h));
    if (bad == 3) CK(cudaFreeHost(h));
}

static void leak(int pinned_memory)
{
    if (pinned_memory) (void)pinned(4096);
    else (void)on_device(4096);
}

static void refused(int which)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *b = on_device(N * sizeof *b);
    if (which == 0) EXPECT(k_big_shared(1, a, b, s) == cudaErrorInvalidValue);
    if (which == 1) EXPECT(k_wide(0, a, b, s) == cudaErrorInvalidConfiguration);
    CK(cudaGetLastError());
    CK(cudaFree(a));
    CK(cudaFree(b));
}

cudaError_t k_unchecked(int *a, cudaStream_t s);
static void unchecked(int bad)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a);
    CK(k_unchecked(a, s));
    if (!bad) CK(cudaGetLastError());
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
}

static void default_stream(int which)
{
    cudaStream_t s;
    int *a = on_device(N * sizeof *a);
    if (which == 0) CK(k_fill(0, a, NULL, NULL));
    if (which == 1) CK(cudaMemsetAsync(a, 0, 4, NULL));
    if (which == 2) CK(cudaStreamCreateWithFlags(&s, cudaStreamDefault));
}

static void dead(int which)
{
    cudaStream_t s = new_stream(), other = new_stream();
    cudaEvent_t e = new_event();
    CK(cudaStreamDestroy(s));
    CK(cudaEventDestroy(e));
    if (which == 0) CK(cudaStreamSynchronize(s));
    if (which == 1) CK(cudaEventRecord(e, other));
}

/* 0 right; 1 stream of another device; 2 memory of another; 3 given back from another. */
static void devices(int bad)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *far;
    CK(cudaSetDevice(1));
    far = on_device(N * sizeof *far);
    if (bad == 1) CK(k_fill(0, far, NULL, s));
    if (bad == 3) CK(cudaFree(a));
    if (!bad) CK(cudaFree(far));
    CK(cudaSetDevice(0));
    CK(k_fill(0, bad == 2 ? far : a, NULL, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
}

/* Pieces of one allocation: 1 runs from one into the next; 2 touches one that was given back. */
static void pieces(int bad)
{
    cudaStream_t s = new_stream();
    char *all = on_device(64 * 1024);
    cusim_carve(all, N * sizeof(int));
    cusim_carve(all + 8192, N * sizeof(int));
    if (bad == 2) cusim_uncarve(all);
    CK(k_bounds(bad == 1, (int *)all, NULL, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(all));
}

static void planned_fault(int code)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a);
    CK(k_fill(0, a, NULL, s));
    EXPECT((int)k_fill(0, a, NULL, s) == code);
    EXPECT((int)cudaStreamSynchronize(s) == code);
    EXPECT((int)cudaMemsetAsync(a, 0, 4, s) == code);
}

static void no_device(int code)
{
    int count = 7;
    EXPECT((int)cudaGetDeviceCount(&count) == code && count == 0);
}

static void full(int unused)
{
    void *p;
    (void)unused;
    size_t left, total;
    CK(cudaMemGetInfo(&left, &total));
    EXPECT(left == 1 << 20 && total == 1 << 20);
    EXPECT(cudaMalloc(&p, 2 << 20) == cudaErrorMemoryAllocation && !p);
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation);
}

/* Products: C (m, n) of A (m, k) and B (k, n), all column-major floats. */
enum { M = 24, NN = 12, K = 40 };
static void product(int bad)
{
    cudaStream_t s = new_stream();
    cublasHandle_t h;
    float *host = pinned(4096 * sizeof *host), one = 1, zero = 0;
    float *a = on_device(4096 * sizeof *a), *b = a + 1024, *c = a + 2048;
    for (int i = 0; i < 4096; i++) host[i] = (float)((i * 37 + 11) % 19) - 9;
    CK(cudaMemcpyAsync(a, host, (bad == 4 ? 1500 : 4096) * sizeof *a, cudaMemcpyHostToDevice, s));
    CK(cudaStreamSynchronize(s));
    CK(cublasCreate(&h));
    if (bad != 3) CK(cublasSetStream(h, s));
    cudaDataType type = bad == 2 ? CUDA_R_16F : CUDA_R_32F;
    CK(cublasGemmEx(h, CUBLAS_OP_T, CUBLAS_OP_N, M, NN, K, &one, a, CUDA_R_32F,
                    bad == 1 ? K - 1 : K, bad == 5 ? c : b, type, K, &zero, c, CUDA_R_32F, M,
                    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    float *out = pinned(M * NN * sizeof *out);
    CK(cudaMemcpyAsync(out, c, M * NN * sizeof *out, cudaMemcpyDeviceToHost, s));
    CK(cudaStreamSynchronize(s));
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < NN; j++) {
            float sum = 0;
            for (int k = 0; k < K; k++) sum += host[i * K + k] * host[1024 + j * K + k];
            EXPECT(out[j * M + i] == sum);
        }
    }
    CK(cublasDestroy(h));
    CK(cudaFree(a));
    CK(cudaFreeHost(host));
    CK(cudaFreeHost(out));
}

const struct row host_rows[] = {
    {"an event orders two streams", NULL, events, 0, NULL},
    {"an event is missing", "race-between-streams", events, 1, NULL},
    {"an event is recorded before the work", "race-between-streams", events, 2, NULL},
    {"an event is recorded after the wait", "race-between-streams", events, 3, NULL},
    {"a buffer is used again when its copy is done", NULL, reuse, 0, NULL},
    {"a buffer is used again too early", "race-between-streams", reuse, 1, NULL},
    {"the host reads device memory", "host-touches-device-memory", touch, 1, NULL},
    {"the host writes device memory", "host-touches-device-memory", touch, 2, NULL},
    {"pageable memory to the device", "pageable-memory-in-async-copy", pageable, 0, NULL},
    {"pageable memory from the device", "pageable-memory-in-async-copy", pageable, 1, NULL},
    {"a pinned buffer is used again after a wait", NULL, in_flight, 0, NULL},
    {"a pinned buffer is written in flight", "pinned-buffer-in-flight", in_flight, 1, NULL},
    {"a pinned buffer is given back in flight", "pinned-buffer-in-flight", in_flight, 2, NULL},
    {"results come when the host has waited", NULL, early_look, 0, NULL},
    {"memory is given back twice", "bad-free", frees, 1, NULL},
    {"the middle of an allocation is given back", "bad-free", frees, 2, NULL},
    {"pinned memory is given back twice", "bad-free", frees, 3, NULL},
    {"pinned memory is given back as the device's", "bad-free", frees, 4, NULL},
    {"device memory is not given back", "leak-at-exit", leak, 0, NULL},
    {"pinned memory is not given back", "leak-at-exit", leak, 1, NULL},
    {"too much shared memory is refused", NULL, refused, 0, NULL},
    {"too many threads are refused", NULL, refused, 1, NULL},
    {"a launch is checked", NULL, unchecked, 0, NULL},
    {"a launch is not checked", "launch-not-checked", unchecked, 1, NULL},
    {"a kernel on the default stream", "default-stream", default_stream, 0, NULL},
    {"a memset on the default stream", "default-stream", default_stream, 1, NULL},
    {"a stream that waits for the default stream", "default-stream", default_stream, 2, NULL},
    {"a stream is used after its end", "dead-handle", dead, 0, NULL},
    {"an event is used after its end", "dead-handle", dead, 1, NULL},
    {"two devices", NULL, devices, 0, NULL},
    {"a stream of another device", "wrong-device", devices, 1, NULL},
    {"memory of another device", "wrong-device", devices, 2, NULL},
    {"memory is given back from another device", "wrong-device", devices, 3, NULL},
    {"a kernel stays in its piece", NULL, pieces, 0, NULL},
    {"a kernel runs into the next piece", "global-bounds", pieces, 1, NULL},
    {"a piece is used after it was given back", "use-after-free", pieces, 2, NULL},
    {"an illegal address ends the device", NULL, planned_fault, cudaErrorIllegalAddress,
     "CUSIM_FAULT=illegal@2"},
    {"a memory error ends the device", NULL, planned_fault, cudaErrorECCUncorrectable,
     "CUSIM_FAULT=ecc@2"},
    {"no device", NULL, no_device, cudaErrorNoDevice, "CUSIM_DEVICES=0"},
    {"no driver", NULL, no_device, cudaErrorInsufficientDriver, "CUSIM_DEVICES=none"},
    {"a full device refuses", NULL, full, 0, "CUSIM_MEMORY=1m"},
    {"a product is right", NULL, product, 0, NULL},
    {"a product with a bad leading dimension", "blas-argument", product, 1, NULL},
    {"a product of mixed types", "blas-argument", product, 2, NULL},
    {"a product without a stream", "default-stream", product, 3, NULL},
    {"a product of what was not written", "uninitialised", product, 4, NULL},
    {"a product over its own input", "blas-alias", product, 5, NULL},
    {NULL, NULL, NULL, 0, NULL},
};
