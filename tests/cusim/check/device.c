/* tests/cusim/check/device.c - faults inside kernels. */
#include <dlfcn.h>

#include "check.h"

/* Runs one kernel over written memory; the argument is its number here, times 4, plus `bad`. */
#define X(name) KERNEL_##name,
enum { KERNELS(X) };
#undef X
#define X(name) k_##name,
static launcher *const kernels[] = {KERNELS(X)};
#undef X

static void one(int argument)
{
    int bad = argument % 4;
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *b = on_device(N * sizeof *b);
    CK(k_fill(0, a, NULL, s));
    CK(cudaMemsetAsync(b, 0, N * sizeof *b, s));
    CK(kernels[argument / 4](bad, a, b, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
    CK(cudaFree(b));
    CK(cudaStreamDestroy(s));
}

static void uninitialised(int bad)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a), *b = on_device(N * sizeof *b);
    CK(cudaMemsetAsync(a, 0, (N - bad) * sizeof *a, s));
    CK(k_copy(0, a, b, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
    CK(cudaFree(b));
}

static void after_free(int bad)
{
    cudaStream_t s = new_stream();
    int *a = on_device(N * sizeof *a);
    if (bad) CK(cudaFree(a));
    CK(k_fill(0, a, NULL, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
}

static void host_pointer(int bad)
{
    cudaStream_t s = new_stream();
    int *a = bad ? pinned(N * sizeof *a) : on_device(N * sizeof *a);
    CK(k_fill(0, a, NULL, s));
    CK(cudaStreamSynchronize(s));
    CK(cudaFree(a));
}

/* An object that is loaded when the row runs. */
static void load(int which)
{
    char path[4096];
    static const char *const names[] = {"unknown.so", "compressed.so"};
    snprintf(path, sizeof path, "%s/%s", check_folder, names[which]);
    if (!dlopen(path, RTLD_NOW)) fprintf(stderr, "%s\n", dlerror());
}

#define GOOD(name) {#name " is right", NULL, one, 4 * KERNEL_##name, NULL}
#define BAD(name, kind) {#name, kind, one, 4 * KERNEL_##name + 1, NULL}
const struct row device_rows[] = {
    GOOD(bounds), BAD(bounds, "global-bounds"),
    GOOD(guarded), BAD(guarded, "global-bounds"),
    GOOD(shared_bounds), BAD(shared_bounds, "shared-bounds"),
    GOOD(local_bounds), BAD(local_bounds, "local-bounds"),
    {"a kernel writes memory in use", NULL, after_free, 0, NULL},
    {"a kernel writes memory that was given back", "use-after-free", after_free, 1, NULL},
    {"a kernel reads what was written", NULL, uninitialised, 0, NULL},
    {"a kernel reads one word that was not written", "uninitialised", uninitialised, 1, NULL},
    GOOD(uninit_shared), BAD(uninit_shared, "uninitialised"),
    GOOD(shared_race), BAD(shared_race, "race-in-block"),
    GOOD(shared_war), BAD(shared_war, "race-in-block"),
    GOOD(block_race), BAD(block_race, "race-in-block"),
    GOOD(grid_race), BAD(grid_race, "race-between-blocks"),
    GOOD(last_block), BAD(last_block, "race-between-blocks"),
    GOOD(atomic_mix), BAD(atomic_mix, "race-in-block"),
    GOOD(warp_sync), BAD(warp_sync, "race-in-block"),
    GOOD(misaligned), BAD(misaligned, "misaligned"),
    GOOD(barrier), BAD(barrier, "divergent-barrier"),
    GOOD(early_exit), BAD(early_exit, "divergent-barrier"),
    GOOD(shuffle_sites), BAD(shuffle_sites, "divergent-collective"),
    GOOD(matrix_divergent), BAD(matrix_divergent, "divergent-collective"),
    GOOD(own_mask), BAD(own_mask, "wrong-mask"),
    GOOD(ended_lanes), BAD(ended_lanes, "wrong-mask"),
    GOOD(shuffle_inactive), BAD(shuffle_inactive, "wrong-mask"),
    GOOD(truncated), BAD(truncated, "truncated-address"),
    GOOD(wrong_space), BAD(wrong_space, "wrong-address-space"),
    GOOD(async_wait), BAD(async_wait, "async-copy-not-waited"),
    {"async_wait, one group too few", "async-copy-not-waited", one, 4 * KERNEL_async_wait + 2,
     NULL},
    GOOD(trap), BAD(trap, "bad-launch"),
    GOOD(endless),
    {"endless", "kernel-does-not-end", one, 4 * KERNEL_endless + 1, "CUSIM_INSTRUCTIONS=1000000"},
    {"a kernel is given device memory", NULL, host_pointer, 0, NULL},
    {"a kernel is given host memory", "device-touches-host-memory", host_pointer, 1, NULL},
    {"an instruction that is not known", "unknown-instruction", load, 0, NULL},
    {"compressed PTX", "unknown-instruction", load, 1, NULL},
    {NULL, NULL, NULL, 0, NULL},
};
