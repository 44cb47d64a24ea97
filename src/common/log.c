/* common/log.c - formats lines and hands them to stderr; see log.h. */
#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level level_max = LOG_INFO;
static char speaker[32] = "rankserve";
static const char *const level_names[] = { "error", "warn", "info", "debug" };

enum { GATHERED_BYTES_MAX = 8192 };
static _Thread_local bool gathers;    /* of one thread at most: `gathered` is its own */
static char gathered[GATHERED_BYTES_MAX];
static size_t gathered_bytes;

void log_name(const char *name)
{
    snprintf(speaker, sizeof speaker, "%s", name);
}

bool log_set_level(const char *text)
{
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (strcmp(text, level_names[i]) != 0) continue;
        level_max = (enum log_level)i;
        return true;
    }
    return false;
}

static void put_now(const char *text, size_t bytes)
{
    if (write(STDERR_FILENO, text, bytes) < 0) return; /* nowhere left to say it */
}

void log_flush(void)
{
    if (!gathers || !gathered_bytes) return;
    put_now(gathered, gathered_bytes);
    gathered_bytes = 0;
}

void log_gather(bool on)
{
    log_flush();
    gathers = on;
}

static void put(enum log_level level, const char *line, size_t bytes)
{
    bool later = gathers && level >= LOG_INFO;
    if (!later || gathered_bytes + bytes > sizeof gathered) log_flush();
    if (!later) {
        put_now(line, bytes);
        return;
    }
    memcpy(gathered + gathered_bytes, line, bytes);
    gathered_bytes += bytes;
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (level > level_max) return;
    char line[1024];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t at = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &utc);
    at += (size_t)snprintf(line + at, sizeof line - at, ".%03ldZ %s %s ", now.tv_nsec / 1000000,
                           level_names[level], speaker);
    va_list ap;
    va_start(ap, fmt);
    int wrote = vsnprintf(line + at, sizeof line - at - 1, fmt, ap);
    va_end(ap);
    at += wrote < 0 ? 0 : (size_t)wrote;
    if (at > sizeof line - 2) at = sizeof line - 2;
    line[at++] = '\n';
    put(level, line, at);
}
