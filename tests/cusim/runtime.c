/* tests/cusim/runtime.c - devices, memory and copies of the CUDA runtime's interface. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exec.h"
#include "report.h"
#include "stream.h"

/* "9.0" or, one per device, "8.0,9.0": as 10 * major + minor. */
int device_capability(int device)
{
    const char *text = setting("CUSIM_CC", "9.0");
    for (int d = 0; d < device && strchr(text, ','); d++) text = strchr(text, ',') + 1;
    int major = 0, minor = 0;
    if (sscanf(text, "%d.%d", &major, &minor) != 2) report(NOT_MODELLED, "CUSIM_CC=%s", text);
    return 10 * major + minor;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    sim_open();
    *count = sim_devices();
    if (sim_no_driver()) return sim_error(cudaErrorInsufficientDriver);
    return sim_error(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    sim_open();
    *device = current_device();
    return sim_error(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    sim_open();
    *version = sim_no_driver() ? 0 : CUDART_VERSION;
    return sim_error(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    sim_open();
    if (device < 0 || device >= sim_devices()) return sim_error(cudaErrorInvalidDevice);
    int capability = device_capability(device);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_MAX; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_DEFAULT; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_MAX + 1024; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = BLOCK_THREADS_MAX; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrWarpSize: *value = LANES; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrClockRate: *value = 1755000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 0; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    case cudaDevAttrAsyncEngineCount: *value = 3; break;
    default: report(NOT_MODELLED, "cudaDeviceGetAttribute(%d)", (int)attribute);
    }
    return sim_error(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    sim_open();
    if (device < 0 || device >= sim_devices()) return sim_error(cudaErrorInvalidDevice);
    int capability = device_capability(device);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cusim device %d", device);
    p->totalGlobalMem = memory_total_bytes();
    p->major = capability / 10, p->minor = capability % 10;
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    p->sharedMemPerMultiprocessor = SHARED_MAX + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = LANES;
    p->maxThreadsPerBlock = BLOCK_THREADS_MAX;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT32_MAX, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->multiProcessorCount = 132;
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 5120;
    p->totalConstMem = 65536;
    p->asyncEngineCount = 3;
    p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = 1;
    p->pciBusID = 1 + device;
    p->uuid.bytes[0] = (char)(1 + device);
    return sim_error(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    sim_open();
    *free_bytes = memory_free_bytes(current_device());
    *total = memory_total_bytes();
    return sim_error(cudaSuccess);
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    sim_open();
    capture_forbids_any("cudaMalloc");
    *out = NULL;
    if (!sim_devices()) return sim_error(cudaErrorNoDevice);
    if (sim_error(cudaSuccess) || !bytes) return sim_error(cudaSuccess);
    uint64_t address = memory_take(current_device(), bytes);
    if (!address) return sim_error(cudaErrorMemoryAllocation);
    *out = (void *)address;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    sim_open();
    capture_forbids_any("cudaFree");
    if (!p || sim_faulted()) return sim_error(cudaSuccess);
    device_wait("cudaFree");
    uint64_t bytes = memory_give((uint64_t)p, current_device());
    shadow_forget((uint64_t)p, bytes);
    return sim_error(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void)
{
    sim_open();
    capture_forbids_any("cudaDeviceSynchronize");
    device_wait("cudaDeviceSynchronize");
    return sim_error(cudaSuccess);
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    sim_open();
    capture_forbids_any("cudaHostAlloc");
    if (flags & ~(unsigned)(cudaHostAllocPortable | cudaHostAllocWriteCombined)) {
        report(NOT_MODELLED, "cudaHostAlloc with flags %u", flags);
    }
    *out = pinned_take(bytes ? bytes : 1);
    return sim_error(*out ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocHost(void **out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }

cudaError_t cudaFreeHost(void *p)
{
    sim_open();
    if (p) pinned_give(p);
    return sim_error(cudaSuccess);
}

/* Copies: rows of bytes between device memory and device or pinned memory. */

struct copy_op {
    struct op op;
    uint8_t *to, *from;
    size_t to_pitch, from_pitch, width, rows;
    bool to_host, from_host;
    uint32_t pinned;                    /* which pinned memory it was, when captured or enqueued */
    struct transfer **transfers;        /* one per row */
};

static void prepare_copy(struct op *op)
{
    struct copy_op *c = (struct copy_op *)op;
    if (!c->to_host && !c->from_host) return;
    uint8_t *host = c->to_host ? c->to : c->from;
    size_t pitch = c->to_host ? c->to_pitch : c->from_pitch;
    if (op->copied && pinned_name(host, c->width) != c->pinned) {
        report(STALE_GRAPH, "a graph copies over pinned memory that was given back since");
    }
    c->transfers = must_alloc(c->rows * sizeof(struct transfer *));
    for (size_t r = 0; r < c->rows; r++) {
        c->transfers[r] = transfer_open(host + r * pitch, c->width, c->to_host, op->id, &op->clock);
    }
}

static bool run_copy(struct op *op)
{
    struct copy_op *c = (struct copy_op *)op;
    struct toucher t = op_toucher(op);
    for (size_t r = 0; r < c->rows; r++) {
        uint64_t to = (uint64_t)(c->to + r * c->to_pitch);
        uint64_t from = (uint64_t)(c->from + r * c->from_pitch);
        if (!c->from_host) shadow_bulk(&t, from, c->width, TOUCH_READ);
        if (!c->to_host) shadow_bulk(&t, to, c->width, TOUCH_WRITE);
        uint8_t *target = c->to_host ? transfer_bytes(c->transfers[r]) : device_bytes(to);
        memmove(target, c->from_host ? transfer_bytes(c->transfers[r]) : device_bytes(from),
                c->width);
        if (c->transfers) transfer_done(c->transfers[r]);
    }
    free(c->transfers);
    return true;
}

static const struct op_type copy_type = {"copy", sizeof(struct copy_op), prepare_copy, run_copy,
                                         NULL};

static void check_pinned(const void *host, size_t pitch, size_t width, size_t rows)
{
    for (size_t r = 0; r < rows; r++) {
        if (pinned_name((const uint8_t *)host + r * pitch, width)) continue;
        report(PAGEABLE, "an asynchronous copy of %zu bytes at %p, which is not pinned", width,
               host);
    }
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t rows, enum cudaMemcpyKind kind, cudaStream_t s)
{
    stream_check(s, "cudaMemcpyAsync");
    if (sim_error(cudaSuccess) || !width || !rows) return sim_error(cudaSuccess);
    if (rows > 1 && (to_pitch < width || from_pitch < width)) {
        return sim_error(cudaErrorInvalidPitchValue);
    }
    bool to_host = !is_device((uint64_t)to), from_host = !is_device((uint64_t)from);
    enum cudaMemcpyKind real = to_host ? from_host ? cudaMemcpyHostToHost : cudaMemcpyDeviceToHost
                               : from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && kind != real) {
        report(HOST_ON_DEVICE, "a copy of kind %d between addresses of kind %d", kind, real);
    }
    if (real == cudaMemcpyHostToHost) report(NOT_MODELLED, "a copy between host addresses");
    if (to_host) check_pinned(to, to_pitch, width, rows);
    if (from_host) check_pinned(from, from_pitch, width, rows);
    struct copy_op *c = op_new(&copy_type);
    c->to = to, c->from = (uint8_t *)from;
    c->to_pitch = to_pitch, c->from_pitch = from_pitch, c->width = width, c->rows = rows;
    c->to_host = to_host, c->from_host = from_host;
    c->pinned = to_host || from_host ? pinned_name(to_host ? to : from, width) : 0;
    stream_add(s, &c->op, "copy of %zu bytes %s", width * rows,
               to_host ? "to the host" : from_host ? "to the device" : "on the device");
    return sim_error(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, s);
}

struct set_op {
    struct op op;
    uint64_t to;
    int value;
    size_t bytes;
};

static bool run_set(struct op *op)
{
    struct set_op *set = (struct set_op *)op;
    struct toucher t = op_toucher(op);
    shadow_bulk(&t, set->to, set->bytes, TOUCH_WRITE);
    memset(device_bytes(set->to), set->value, set->bytes);
    return true;
}

static const struct op_type set_type = {"memset", sizeof(struct set_op), NULL, run_set, NULL};

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    stream_check(s, "cudaMemsetAsync");
    if (sim_error(cudaSuccess) || !bytes) return sim_error(cudaSuccess);
    if (!is_device((uint64_t)to)) report(HOST_ON_DEVICE, "cudaMemsetAsync of host memory");
    struct set_op *set = op_new(&set_type);
    set->to = (uint64_t)to, set->value = value, set->bytes = bytes;
    stream_add(s, &set->op, "memset of %zu bytes", bytes);
    return sim_error(cudaSuccess);
}

#define ERROR_LIST(X)                                                                            \
    X(cudaSuccess, "no error")                                                                   \
    X(cudaErrorInvalidValue, "invalid argument")                                                 \
    X(cudaErrorMemoryAllocation, "out of memory")                                                \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                           \
    X(cudaErrorInvalidPitchValue, "invalid pitch argument")                                      \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version") \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                   \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                          \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")                                 \
    X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device") \
    X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                          \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                 \
    X(cudaErrorNotReady, "device not ready")                                                     \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                       \
    X(cudaErrorGraphExecUpdateFailure, "the graph update was not performed because it included " \
      "changes which violated constraints specific to instantiated graph update")

#define X(name, text) {name, #name, text},
static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {ERROR_LIST(X)};
#undef X

const char *cudaGetErrorName(cudaError_t e)
{
    for (size_t k = 0; k < sizeof errors / sizeof *errors; k++) {
        if (errors[k].code == e) return errors[k].name;
    }
    return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t e)
{
    for (size_t k = 0; k < sizeof errors / sizeof *errors; k++) {
        if (errors[k].code == e) return errors[k].text;
    }
    return "unknown error";
}
