/* tests/cusim/module.c - what nvcc's host code calls: fat binaries, functions, launches.
 *
 * A fat binary holds an entry per architecture.  Of the PTX entries, the newest that the device can
 * run is taken: sm_90a only on 9.0, compute_80 on all that came later.
 */
#include "exec.h"
#include "stream.h"

struct fat_wrapper {
    uint32_t magic, version;
    const uint8_t *data;
    void *unused;
};

struct fat_header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
};

struct fat_entry {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, unused;
    uint16_t minor, major;
    uint32_t arch;
};

enum { FAT_MAGIC = 0x466243b1, FAT_DATA_MAGIC = (int)0xba55ed50, KIND_PTX = 1 };

struct function {
    const void *host;
    struct kernel *kernel;
};
static struct function *functions;          /* constructors add them, before main */
static uint32_t function_count;
static uint64_t launches, fault_at;
static cudaError_t fault_error;

/* "sm_90a" of the .target line as 10 * capability; a trailing letter is in *exact. */
static int target_of(const char *ptx, bool *exact)
{
    const char *at = strstr(ptx, ".target sm_");
    if (!at) return 0;
    char *end;
    int capability = (int)strtol(at + 11, &end, 10);
    *exact = *end == 'a' || *end == 'f';
    return capability;
}

/* The PTX is not ended by a zero within the entry's bytes when it fills them. */
static char *text_of(const struct fat_entry *e)
{
    const uint8_t *data = (const uint8_t *)e + e->header_bytes;
    char *text = must_alloc(e->bytes + 1);
    memcpy(text, data, e->bytes);
    report_if(!strstr(text, ".version"), UNKNOWN_INSTRUCTION,
              "the PTX of an object is compressed: nvcc needs -compress-mode none");
    return text;
}

static struct kernel *load(const struct fat_header *h, int capability)
{
    const uint8_t *at = (const uint8_t *)h + h->header_bytes, *end = at + h->bytes;
    char *best = NULL;
    int best_target = 0;
    while (at < end) {
        const struct fat_entry *e = (const struct fat_entry *)at;
        at += e->header_bytes + e->bytes;
        if (e->kind != KIND_PTX) continue;
        char *text = text_of(e);
        bool exact = false;
        int target = target_of(text, &exact);
        bool fits = exact ? target == capability : target <= capability;
        if (fits && 2 * target + exact > best_target) {
            free(best);
            best = text;
            best_target = 2 * target + exact;
        } else {
            free(text);
        }
    }
    if (!best) return NULL;
    struct kernel *kernels = ptx_parse(best);
    free(best);
    return kernels;
}

/* No header of CUDA's for C declares these. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

void **__cudaRegisterFatBinary(void *data)
{
    const struct fat_wrapper *w = data;
    sim_open();
    const struct fat_header *h = (const struct fat_header *)w->data;
    report_if(w->magic != FAT_MAGIC || h->magic != (uint32_t)FAT_DATA_MAGIC, UNKNOWN_INSTRUCTION,
              "a fat binary of an unknown kind");
    void **handle = must_alloc(sizeof *handle);
    *handle = load(h, device_capability(0));
    return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
char __cudaInitModule(void **handle) { return handle != NULL; }

/* NULL: not for this device. */
static struct kernel *kernel_of(const void *host)
{
    for (uint32_t k = 0; k < function_count; k++) {
        if (functions[k].host == host) return functions[k].kernel;
    }
    return NULL;
}

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int limit, void *tid, void *bid, dim3 *block, dim3 *grid, int *warp)
{
    struct kernel *k = *handle;
    bool fits = k != NULL;
    (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
    while (k && strcmp(k->name, name)) k = k->next;
    report_if(fits && !k, UNKNOWN_INSTRUCTION, "the kernel %s is not in its module", name);
    APPEND(functions, function_count) = (struct function){host, k};
}

static _Thread_local struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} configured;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream)
{
    configured.grid = grid, configured.block = block;
    configured.shared = shared, configured.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    *grid = configured.grid, *block = configured.block, *shared = configured.shared;
    memcpy(stream, &configured.stream, sizeof configured.stream);
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(void **kernel, const void *host)
{
    *kernel = (void *)host;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *host, enum cudaFuncAttribute attribute, int value)
{
    sim_open();
    struct kernel *k = kernel_of(host);
    if (!k) return sim_error(cudaErrorNoKernelImageForDevice);
    report_if(attribute != cudaFuncAttributeMaxDynamicSharedMemorySize, NOT_MODELLED,
              "cudaFuncSetAttribute(%d)", (int)attribute);
    if (value < 0 || (uint32_t)value + k->shared_bytes > SHARED_MAX) {
        return sim_error(cudaErrorInvalidValue);
    }
    k->dynamic_shared_max = (uint32_t)value;
    return sim_error(cudaSuccess);
}

/* Launches. */

struct launch_op {
    struct op op;
    struct launch launch;
};

static bool run_launch(struct op *op)
{
    struct launch_op *l = (struct launch_op *)op;
    if (!sim_faulted()) exec_launch(&l->launch, op->id, &op->clock, op->stream->device);
    return true;
}

static void release_launch(struct op *op) { free(((struct launch_op *)op)->launch.params); }

static const struct op_type launch_type = {sizeof(struct launch_op), NULL, run_launch,
                                           release_launch};

static cudaError_t check_launch(const struct kernel *k, dim3 grid, dim3 block, size_t shared)
{
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (!blocks || !threads || grid.y > 65535 || grid.z > 65535 || grid.x > INT32_MAX ||
        block.z > 64 || threads > BLOCK_THREADS_MAX) {
        return cudaErrorInvalidConfiguration;
    }
    if (k->max_threads && threads > k->max_threads) return cudaErrorInvalidValue;
    uint64_t limit = k->shared_bytes < SHARED_DEFAULT ? SHARED_DEFAULT - k->shared_bytes : 0;
    if (k->dynamic_shared_max > limit) limit = k->dynamic_shared_max;
    if (shared > limit) return cudaErrorInvalidValue;
    report_if(blocks >= 1u << BLOCK_BITS, NOT_MODELLED, "a grid of %lu blocks", blocks);
    return cudaSuccess;
}

/* CUSIM_FAULT=illegal@N or ecc@N: the N-th launch ends the device. */
static bool planned_fault(void)
{
    if (!launches++) {
        const char *text = setting("CUSIM_FAULT", "");
        const char *at = strchr(text, '@');
        fault_error = !strncmp(text, "ecc@", 4) ? cudaErrorECCUncorrectable
                                                : cudaErrorIllegalAddress;
        fault_at = at ? strtoull(at + 1, NULL, 10) : 0;
    }
    return launches == fault_at;
}

static cudaError_t launch(const void *host, dim3 grid, dim3 block, void **args, size_t shared,
                          cudaStream_t s)
{
    stream_check(s, "a kernel launch");
    struct kernel *k = kernel_of(host);
    if (!k) return sim_error(cudaErrorNoKernelImageForDevice);
    cudaError_t error = check_launch(k, grid, block, shared);
    if (error || sim_error(cudaSuccess)) return sim_error(error);
    if (planned_fault()) sim_fault(fault_error);
    struct launch_op *l = op_new(&launch_type);
    l->launch = (struct launch){
        .kernel = k, .grid = {grid.x, grid.y, grid.z}, .threads = {block.x, block.y, block.z},
        .dynamic_shared = (uint32_t)shared, .params = must_alloc(k->param_bytes + 8)};
    for (uint32_t p = 0; p < k->param_count; p++) {
        memcpy(l->launch.params + k->params[p].offset, args[p], k->params[p].bytes);
    }
    stream_add(s, &l->op, "%s", k->name);
    return cudaSuccess;
}

/* For tests that count: what this process has launched, the kernels of a captured graph once. */
uint64_t cusim_launches(void);
uint64_t cusim_launches(void) { return launches; }

/* What <<<>>> becomes: nobody sees what it returns. */
cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **args, size_t shared,
                               cudaStream_t s)
{
    cudaError_t error = launch(kernel, grid, block, args, shared, s);
    struct kernel *k = kernel_of(kernel);
    unchecked_launch = k ? k->name : "a kernel";
    return error;
}
