/* tests/cusim/check/check.h - rows of the table of planted faults, and what they are written with.
 *
 * A row is one program run of its own (check.c): either a fault, and the kind of finding that must
 * end it, or a correct program, often the fault's twin, that must end well.
 */
#ifndef CUSIM_CHECK_H
#define CUSIM_CHECK_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

struct row {
    const char *name, *kind;            /* NULL: must end well */
    void (*run)(int argument);
    int argument;
    const char *setting;                /* NAME=value for its run, or NULL */
};
extern const struct row device_rows[], host_rows[], graph_rows[], rank_rows[], number_rows[];

extern const char *check_folder;        /* where the program lies, and what device.c loads */

/* Every kernel of faults.cu: `bad` plants its fault; `a` holds N numbers. */
enum { N = 1024 };
typedef cudaError_t launcher(int bad, int *a, int *b, cudaStream_t s);
#define KERNELS(X)                                                                               \
    X(fill) X(copy) X(bounds) X(shared_bounds) X(local_bounds) X(uninit_shared) X(shared_race)   \
    X(shared_war) X(block_race) X(grid_race) X(last_block) X(atomic_mix) X(misaligned)           \
    X(barrier) X(early_exit) X(shuffle_sites) X(own_mask) X(ended_lanes) X(shuffle_inactive)     \
    X(warp_sync) X(matrix_divergent) X(truncated) X(wrong_space) X(async_wait) X(endless)        \
    X(trap) X(big_shared) X(wide) X(guarded)
#define X(name) launcher k_##name;
KERNELS(X)
#undef X

#define CK(call)                                                                                 \
    do {                                                                                         \
        int error_ = (int)(call);                                                                \
        if (error_) {                                                                            \
            fprintf(stderr, "%s:%d: %s gave %d\n", __FILE__, __LINE__, #call, error_);           \
            exit(2);                                                                             \
        }                                                                                        \
    } while (0)
#define EXPECT(x)                                                                                \
    do {                                                                                         \
        if (!(x)) {                                                                              \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x);                      \
            exit(2);                                                                             \
        }                                                                                        \
    } while (0)

static inline cudaStream_t new_stream(void)
{
    cudaStream_t s;
    CK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}

static inline cudaEvent_t new_event(void)
{
    cudaEvent_t e;
    CK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    return e;
}

static inline void *on_device(size_t bytes)
{
    void *p;
    CK(cudaMalloc(&p, bytes));
    return p;
}

static inline void *pinned(size_t bytes)
{
    void *p;
    CK(cudaMallocHost(&p, bytes));
    return p;
}

#endif
