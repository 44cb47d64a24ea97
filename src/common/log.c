/* common/log.c - formats lines and hands them to stderr; see log.h. */
#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"

static enum log_level level_max = LOG_INFO;
static char speaker[32] = "rankserve";
static const char *const level_names[] = { "error", "warn", "info", "debug" };

enum { GATHERED_BYTES_MAX = 8192 };
#define GATHERED_NS (20 * NS_PER_MS)
static _Thread_local bool gathers;    /* of one thread at most: `gathered` is its own */
static char gathered[GATHERED_BYTES_MAX];
static size_t gathered_bytes;
static uint64_t gathered_since_ns;

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

uint64_t log_due_ns(void)
{
    return gathers && gathered_bytes ? gathered_since_ns + GATHERED_NS : UINT64_MAX;
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
    if (!gathered_bytes) gathered_since_ns = clock_now_ns();
    memcpy(gathered + gathered_bytes, line, bytes);
    gathered_bytes += bytes;
}

/* The calendar is asked once a second. */
static const char *date_of(time_t second)
{
    static _Thread_local time_t known = -1;
    static _Thread_local char text[24];
    struct tm utc;
    if (second != known) {
        gmtime_r(&second, &utc);
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
        known = second;
    }
    return text;
}

/* Clients and servers say much of what is in a line: they shall not write lines of their own, nor
 * speak to a terminal. */
static void tame(char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f) text[i] = '?';
    }
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (level > level_max) return;
    char line[1024];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    size_t at = (size_t)snprintf(line, sizeof line, "%s.%03ldZ %s %s ", date_of(now.tv_sec),
                                 now.tv_nsec / 1000000, level_names[level], speaker);
    va_list ap;
    va_start(ap, fmt);
    int wrote = vsnprintf(line + at, sizeof line - at - 1, fmt, ap);
    va_end(ap);
    at += wrote < 0 ? 0 : (size_t)wrote;
    if (at > sizeof line - 2) at = sizeof line - 2;
    tame(line, at);
    line[at++] = '\n';
    put(level, line, at);
}
