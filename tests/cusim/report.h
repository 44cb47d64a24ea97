/* tests/cusim/report.h - what can be wrong, and how it is said.
 *
 * Every finding is fatal: one line on standard error (and in CUSIM_REPORT), exit code 99.  A
 * finding names its kind; README.md lists the kinds, tests/cusim/check.c plants each one.
 */
#ifndef CUSIM_REPORT_H
#define CUSIM_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EXIT_FOUND = 99 };

#define KIND_LIST(X)                                                                             \
    X(GLOBAL_BOUNDS, "global-bounds")                                                            \
    X(SHARED_BOUNDS, "shared-bounds")                                                            \
    X(LOCAL_BOUNDS, "local-bounds")                                                              \
    X(USE_AFTER_FREE, "use-after-free")                                                          \
    X(UNINITIALISED, "uninitialised")                                                            \
    X(ASYNC_NOT_WAITED, "async-copy-not-waited")                                                 \
    X(BLOCK_RACE, "race-in-block")                                                               \
    X(GRID_RACE, "race-between-blocks")                                                          \
    X(STREAM_RACE, "race-between-streams")                                                       \
    X(MISALIGNED, "misaligned")                                                                  \
    X(DIVERGENT_BARRIER, "divergent-barrier")                                                    \
    X(DIVERGENT_WARP, "divergent-collective")                                                    \
    X(WRONG_MASK, "wrong-mask")                                                                  \
    X(TRUNCATED, "truncated-address")                                                            \
    X(WRONG_SPACE, "wrong-address-space")                                                        \
    X(HANG, "kernel-does-not-end")                                                               \
    X(BAD_PTX, "unknown-instruction")                                                            \
    X(DEVICE_ON_HOST, "host-touches-device-memory")                                              \
    X(HOST_ON_DEVICE, "device-touches-host-memory")                                              \
    X(PAGEABLE, "pageable-memory-in-async-copy")                                                 \
    X(PINNED_REUSED, "pinned-buffer-in-flight")                                                  \
    X(NCCL_MISMATCH, "nccl-mismatch")                                                            \
    X(NCCL_DEADLOCK, "nccl-deadlock")                                                            \
    X(NCCL_HANG, "nccl-peer-gone")                                                               \
    X(NCCL_MISUSE, "nccl-misuse")                                                                \
    X(NO_PROGRESS, "no-progress")                                                                \
    X(BAD_FREE, "bad-free")                                                                      \
    X(LEAK, "leak-at-exit")                                                                      \
    X(CAPTURE, "illegal-in-capture")                                                             \
    X(STALE_GRAPH, "graph-host-memory-gone")                                                     \
    X(GRAPH_MISUSE, "graph-misuse")                                                              \
    X(BAD_LAUNCH, "bad-launch")                                                                  \
    X(UNCHECKED, "launch-not-checked")                                                           \
    X(DEFAULT_STREAM, "default-stream")                                                          \
    X(DEAD_HANDLE, "dead-handle")                                                                \
    X(WRONG_DEVICE, "wrong-device")                                                              \
    X(BLAS_ARGUMENT, "blas-argument")                                                            \
    X(BLAS_ALIAS, "blas-alias")                                                                  \
    X(NOT_MODELLED, "not-modelled")

#define X(name, text) name,
enum kind { KIND_LIST(X) KIND_COUNT };
#undef X

/* Where the device thread is, for the line; op is always set while an operation runs. */
struct place {
    const char *op;             /* what runs: a kernel's name, a copy */
    const char *instruction;    /* NULL outside kernels */
    uint32_t block[3], thread;
};
extern _Thread_local struct place place;

_Noreturn void report(enum kind kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints without ending: the list of streams before a finding, for example. */
void report_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Settings of the environment; the last two end with a line if the text is not a number. */
const char *setting(const char *name, const char *otherwise);
uint64_t setting_number(const char *name, uint64_t otherwise);     /* 8g, 512m, 100 */
uint64_t next_random(uint64_t *state);

/* Memory or exit; never NULL, zeroed. */
void *must_alloc(size_t bytes);
/* Grows `array` of `count` items so that one more fits. */
void *must_grow(void *array, size_t count, size_t item_bytes);

#endif
