/* tests/cusim/runtime.c - devices, memory and copies of the CUDA runtime's interface. */
#include "exec.h"
#include "stream.h"

/* "9.0" or, one per device, "8.0,9.0": as 10 * major + minor. */
int device_capability(int device)
{
    const char *text = setting("CUSIM_CC", "9.0");
    for (int d = 0; d < device && strchr(text, ','); d++) text = strchr(text, ',') + 1;
    int major = 0, minor = 0;
    report_if(sscanf(text, "%d.%d", &major, &minor) != 2, NOT_MODELLED, "CUSIM_CC=%s", text);
    return 10 * major + minor;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    sim_open();
    *count = sim_devices();
    if (sim_no_driver()) return sim_error(cudaErrorInsufficientDriver);
    return sim_error(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    sim_open();
    if (device < 0 || device >= sim_devices()) return sim_error(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = device_capability(device) / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = device_capability(device) % 10; break;
    default: report(NOT_MODELLED, "cudaDeviceGetAttribute(%d)", (int)attribute);
    }
    return sim_error(cudaSuccess);
}

/* What the backend asks for, and what bounds a launch here; the rest is zero, which no GPU says. */
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    sim_open();
    if (device < 0 || device >= sim_devices()) return sim_error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cusim device %d", device);
    p->totalGlobalMem = memory_total_bytes();
    p->major = device_capability(device) / 10, p->minor = device_capability(device) % 10;
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    p->warpSize = LANES;
    p->maxThreadsPerBlock = BLOCK_THREADS_MAX;
    p->multiProcessorCount = 132;
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
    capture_forbids_any("cudaFree");
    if (!p || sim_faulted()) return sim_error(cudaSuccess);
    device_wait("cudaFree");
    uint64_t bytes = memory_give((uint64_t)p, current_device());
    shadow_forget((uint64_t)p, bytes);
    return sim_error(cudaSuccess);
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    capture_forbids_any("cudaMallocHost");
    *out = pinned_take(bytes ? bytes : 1);
    return sim_error(*out ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *p)
{
    sim_open();
    if (p) pinned_give(p);
    return sim_error(cudaSuccess);
}

/* Copies between device memory and device or pinned memory. */

struct copy_op {
    struct op op;
    uint8_t *to, *from;
    size_t bytes;
    uint8_t *host;                      /* to or from; NULL: both are device memory */
    uint32_t pinned;                    /* which pinned memory it was, when captured or enqueued */
    struct transfer *transfer;
};

static void prepare_copy(struct op *op)
{
    struct copy_op *c = (struct copy_op *)op;
    if (!c->host) return;
    report_if(op->copied && pinned_name(c->host, c->bytes) != c->pinned, GRAPH_HOST_MEMORY_GONE,
              "a graph copies over pinned memory that was given back since");
    c->transfer = transfer_open(c->host, c->bytes, c->host == c->to, op->id, &op->clock);
}

static bool run_copy(struct op *op)
{
    struct copy_op *c = (struct copy_op *)op;
    struct toucher t = op_toucher(op);
    bool to_host = c->host == c->to, from_host = c->host == c->from;
    uint64_t to = (uint64_t)c->to, from = (uint64_t)c->from;
    if (!from_host) shadow_bulk(&t, from, c->bytes, TOUCH_READ);
    if (!to_host) shadow_bulk(&t, to, c->bytes, TOUCH_WRITE);
    memmove(to_host ? transfer_bytes(c->transfer) : device_bytes(to),
            from_host ? transfer_bytes(c->transfer) : device_bytes(from), c->bytes);
    if (c->host) transfer_done(c->transfer);
    return true;
}

static const struct op_type copy_type = {sizeof(struct copy_op), prepare_copy, run_copy, NULL};

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    stream_check(s, "cudaMemcpyAsync");
    if (sim_error(cudaSuccess) || !bytes) return sim_error(cudaSuccess);
    bool to_host = !is_device((uint64_t)to), from_host = !is_device((uint64_t)from);
    enum cudaMemcpyKind real = to_host ? from_host ? cudaMemcpyHostToHost : cudaMemcpyDeviceToHost
                               : from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice;
    report_if(kind != cudaMemcpyDefault && kind != real, DEVICE_TOUCHES_HOST_MEMORY,
              "a copy of kind %d between addresses of kind %d", kind, real);
    report_if(real == cudaMemcpyHostToHost, NOT_MODELLED, "a copy between host addresses");
    struct copy_op *c = op_new(&copy_type);
    c->to = to, c->from = (uint8_t *)from, c->bytes = bytes;
    c->host = to_host ? c->to : from_host ? c->from : NULL;
    c->pinned = c->host ? pinned_name(c->host, bytes) : 0;
    report_if(c->host && !c->pinned, PAGEABLE_MEMORY_IN_ASYNC_COPY,
              "an asynchronous copy of %zu bytes at %p, which is not pinned", bytes,
              (void *)c->host);
    stream_add(s, &c->op, "copy of %zu bytes %s", bytes,
               to_host ? "to the host" : from_host ? "to the device" : "on the device");
    return sim_error(cudaSuccess);
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

static const struct op_type set_type = {sizeof(struct set_op), NULL, run_set, NULL};

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    stream_check(s, "cudaMemsetAsync");
    if (sim_error(cudaSuccess) || !bytes) return sim_error(cudaSuccess);
    report_if(!is_device((uint64_t)to), DEVICE_TOUCHES_HOST_MEMORY,
              "cudaMemsetAsync of host memory");
    struct set_op *set = op_new(&set_type);
    set->to = (uint64_t)to, set->value = value, set->bytes = bytes;
    stream_add(s, &set->op, "memset of %zu bytes", bytes);
    return sim_error(cudaSuccess);
}

const char *cudaGetErrorString(cudaError_t e)
{
    static const struct {
        cudaError_t code;
        const char *text;
    } errors[] = {
        {cudaSuccess, "no error"},
        {cudaErrorInvalidValue, "invalid argument"},
        {cudaErrorMemoryAllocation, "out of memory"},
        {cudaErrorInvalidConfiguration, "invalid configuration argument"},
        {cudaErrorInsufficientDriver,
         "CUDA driver version is insufficient for CUDA runtime version"},
        {cudaErrorNoDevice, "no CUDA-capable device is detected"},
        {cudaErrorInvalidDevice, "invalid device ordinal"},
        {cudaErrorNoKernelImageForDevice,
         "no kernel image is available for execution on the device"},
        {cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"},
        {cudaErrorInvalidResourceHandle, "invalid resource handle"},
        {cudaErrorNotReady, "device not ready"},
        {cudaErrorIllegalAddress, "an illegal memory access was encountered"},
    };
    for (size_t k = 0; k < sizeof errors / sizeof *errors; k++) {
        if (errors[k].code == e) return errors[k].text;
    }
    return "unknown error";
}
