/* tests/cusim/report.c - see report.h. */
#include "report.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

#define X(name) #name,
static const char *const kind_text[KIND_COUNT] = {KIND_LIST(X)};
#undef X

_Thread_local struct place place;

static void say(const char *line)
{
    if (write(STDERR_FILENO, line, strlen(line)) < 0) return;
    const char *path = getenv("CUSIM_REPORT");
    if (!path || !*path) return;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0) return;
    if (write(file, line, strlen(line)) < 0) { /* standard error has it */ }
    close(file);
}

/* Called from a signal handler too: it allocates nothing. */
void report(enum kind kind, const char *fmt, ...)
{
    char line[2048];
    int n = snprintf(line, sizeof line, "cusim: %s: ", kind_text[kind]);
    for (char *c = line + 7; c < line + n; c++) {       /* RACE_IN_BLOCK: race-in-block */
        *c = *c == '_' ? '-' : (char)tolower((unsigned char)*c);
    }
    va_list args;
    va_start(args, fmt);
    n += vsnprintf(line + n, sizeof line - 600 - (size_t)n, fmt, args);
    va_end(args);
    if (n > (int)sizeof line - 600) n = (int)sizeof line - 600;
    if (place.op) n += snprintf(line + n, 250, " [in %.200s", place.op);
    if (place.instruction) {
        n += snprintf(line + n, 300, ", block (%u,%u,%u) thread %u: %.200s", place.block[0],
                      place.block[1], place.block[2], place.thread, place.instruction);
    }
    snprintf(line + n, sizeof line - (size_t)n, "%s\n", place.op ? "]" : "");
    say(line);
    _exit(EXIT_FOUND);
}

void report_note(const char *fmt, ...)
{
    char line[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line - 1, fmt, args);
    va_end(args);
    if (n > (int)sizeof line - 2) n = (int)sizeof line - 2;
    line[n] = '\n';
    line[n + 1] = 0;
    say(line);
}

const char *setting(const char *name, const char *otherwise)
{
    const char *text = getenv(name);
    return text && *text ? text : otherwise;
}

uint64_t setting_number(const char *name, uint64_t otherwise)
{
    const char *text = setting(name, NULL);
    if (!text) return otherwise;
    char *end;
    uint64_t n = strtoull(text, &end, 10);
    static const char units[] = "kmgt";
    const char *unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        n <<= 10 * (unit - units + 1);
        end++;
    }
    if (end == text || *end) {
        fprintf(stderr, "cusim: %s=%s is not a number\n", name, text);
        _exit(EXIT_FOUND);
    }
    return n;
}

uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state ? *state : 0x9e3779b97f4a7c15u;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

void *must_alloc(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    report_if(!p, NOT_MODELLED, "no memory for %zu bytes", bytes);
    return p;
}

void *must_grow(void *array, size_t count, size_t item_bytes)
{
    if (count & (count - 1)) return array;      /* room up to the next power of two */
    size_t room = count ? 2 * count : 1;
    char *p = realloc(array, room * item_bytes);
    report_if(!p, NOT_MODELLED, "no memory for %zu bytes", room * item_bytes);
    memset(p + count * item_bytes, 0, (room - count) * item_bytes);
    return p;
}
