/* tests/cusim/report.h - what can be wrong, and how it is said.
 *
 * Every finding is fatal: one line on standard error (and in CUSIM_REPORT), exit code 99.  A
 * finding names its kind; README.md lists the kinds, tests/cusim/check.c plants each one.  All
 * other headers include this one, and with it what every file uses of C.
 */
#ifndef CUSIM_REPORT_H
#define CUSIM_REPORT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_FOUND = 99 };

#define KIND_LIST(X)                                                                             \
    X(GLOBAL_BOUNDS) X(SHARED_BOUNDS) X(LOCAL_BOUNDS) X(USE_AFTER_FREE) X(UNINITIALISED)         \
    X(ASYNC_COPY_NOT_WAITED) X(RACE_IN_BLOCK) X(RACE_BETWEEN_BLOCKS) X(RACE_BETWEEN_STREAMS)     \
    X(MISALIGNED) X(DIVERGENT_BARRIER) X(DIVERGENT_COLLECTIVE) X(WRONG_MASK)                     \
    X(TRUNCATED_ADDRESS) X(WRONG_ADDRESS_SPACE) X(KERNEL_DOES_NOT_END) X(UNKNOWN_INSTRUCTION)    \
    X(HOST_TOUCHES_DEVICE_MEMORY) X(DEVICE_TOUCHES_HOST_MEMORY) X(PAGEABLE_MEMORY_IN_ASYNC_COPY) \
    X(PINNED_BUFFER_IN_FLIGHT) X(NCCL_MISMATCH) X(NCCL_DEADLOCK) X(NCCL_PEER_GONE)               \
    X(NCCL_MISUSE) X(NO_PROGRESS) X(BAD_FREE) X(LEAK_AT_EXIT) X(ILLEGAL_IN_CAPTURE)              \
    X(GRAPH_HOST_MEMORY_GONE) X(GRAPH_MISUSE) X(BAD_LAUNCH) X(LAUNCH_NOT_CHECKED)                \
    X(DEFAULT_STREAM) X(DEAD_HANDLE) X(WRONG_DEVICE) X(BLAS_ARGUMENT) X(BLAS_ALIAS)              \
    X(NOT_MODELLED)
#define X(name) name,
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
/* For what must not be: reports it if it is. */
#define report_if(wrong, ...)                                                                    \
    do {                                                                                         \
        if (wrong) report(__VA_ARGS__);                                                          \
    } while (0)
/* Prints without ending: the list of streams before a finding, for example. */
void report_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Settings of the environment; the last two end with a line if the text is not a number. */
const char *setting(const char *name, const char *otherwise);
uint64_t setting_number(const char *name, uint64_t otherwise);     /* 8g, 512m, 100 */
uint64_t next_random(uint64_t *state);

/* HOLD: the mutex is held from here to the end of the block. */
static inline void let_go(pthread_mutex_t **mutex) { pthread_mutex_unlock(*mutex); }
#define HOLD(mutex)                                                                              \
    __attribute__((cleanup(let_go))) pthread_mutex_t *held_ = (mutex);                           \
    pthread_mutex_lock(held_)

/* Memory or exit; never NULL, zeroed. */
void *must_alloc(size_t bytes);
/* Grows `array` of `count` items so that one more fits. */
void *must_grow(void *array, size_t count, size_t item_bytes);
/* A new item behind the `count` of `array`. */
#define APPEND(array, count)                                                                     \
    (*((array) = must_grow(array, count, sizeof *(array)), &(array)[(count)++]))

#endif
