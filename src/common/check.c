/* common/check.c - stoppers and error texts; see check.h. */
#include "common/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"

static void fatal_default(int code)
{
    if (code == EXIT_BUG) abort();
    exit(code);
}

void (*fatal_hook)(int code) = fatal_default;

_Noreturn void check_failed(const char *expr, const char *file, int line)
{
    log_flush();
    fprintf(stderr, "BUG %s:%d: %s\n", file, line, expr);
    fflush(stderr);
    fatal_hook(EXIT_BUG);
    abort();
}

_Noreturn void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char line[1024];
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    log_flush();
    fprintf(stderr, "rankserve: %s\n", line);
    fflush(stderr);
    fatal_hook(1);
    abort();
}

const char *err_text(enum err e)
{
#define X(name, text) [name] = text,
    static const char *const texts[] = { ERR_LIST(X) };
#undef X
    CHECK((unsigned)e < ERR_COUNT);
    return texts[e];
}

enum err why_set(struct why *why, enum err e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (why) vsnprintf(why->text, sizeof why->text, fmt, ap);
    va_end(ap);
    return e;
}
