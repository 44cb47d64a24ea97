/* common/check.h - the three kinds of failure.
 *
 *   CHECK(x)   a bug in this program.  Stays on in release.  Stops the whole job.
 *   die(...)   the world is wrong at start: a bad option, a missing file.  One line, exit 1.
 *   enum err   the world is wrong while running: returned, and handled by the caller, always.
 *
 * Stopping one rank would leave the others waiting, so both stoppers go through fatal_hook.
 * mpi/main.c points it at MPI_Abort; elsewhere it exits (die) or aborts (CHECK).
 *
 * A function that can fail in a way a person must read takes a `struct why *`: it holds one line
 * that says what is wrong and where.
 */
#ifndef RANKSERVE_COMMON_CHECK_H
#define RANKSERVE_COMMON_CHECK_H

#include <stdbool.h>
#include <stddef.h>

enum { EXIT_BUG = 70 };

extern void (*fatal_hook)(int code); /* must not return */
_Noreturn void check_failed(const char *expr, const char *file, int line);
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(x) ((x) ? (void)0 : check_failed(#x, __FILE__, __LINE__))

#define ERR_LIST(X)                                                                              \
    X(OK, "ok")                                                                                  \
    X(ERR_IO, "input or output failed")                                                          \
    X(ERR_FORMAT, "bad format")                                                                  \
    X(ERR_LIMIT, "over a limit")                                                                 \
    X(ERR_FULL, "no room")                                                                       \
    X(ERR_MEMORY, "out of memory")                                                               \
    X(ERR_GONE, "peer is gone")                                                                  \
    X(ERR_STALE, "stale")                                                                        \
    X(ERR_TIMEOUT, "timed out")                                                                  \
    X(ERR_UNSUPPORTED, "not supported")                                                          \
    X(ERR_DENIED, "denied")                                                                      \
    X(ERR_AGAIN, "not now")

#define X(name, text) name,
enum err { ERR_LIST(X) ERR_COUNT };
#undef X

const char *err_text(enum err e);

/* One line for a person.  Functions fill it on failure and leave it alone on success. */
struct why {
    char text[512];
};
/* Writes the line and returns `e`, so that a failure is one statement: return why_set(...). */
enum err why_set(struct why *why, enum err e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
