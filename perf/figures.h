/* perf/figures.h - figures as a flat JSON object for perf/bench.py; nothing without a file. */
#ifndef RANKSERVE_PERF_FIGURES_H
#define RANKSERVE_PERF_FIGURES_H

#include <stdio.h>
#include <time.h>

#include "common/check.h"

struct figures {
    FILE *file;                       /* NULL: none wanted */
    const char *path;
    int count;
};

static inline struct figures figures_open(const char *path)
{
    struct figures f = { .path = path };
    if (path && !(f.file = fopen(path, "w"))) die("%s cannot be written", path);
    return f;
}

static inline void figure(struct figures *f, const char *name, double value)
{
    if (f->file) fprintf(f->file, "%s \"%s\": %.6g", f->count++ ? ",\n" : "{\n", name, value);
}

static inline void figures_close(struct figures *f)
{
    if (!f->file) return;
    fprintf(f->file, "\n}\n");
    if (fclose(f->file) != 0) die("%s cannot be written", f->path);
}

/* Of the thread or of the process, in seconds: holds where others take part of the machine. */
static inline double cpu_seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

#endif
