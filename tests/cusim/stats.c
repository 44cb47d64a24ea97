/* tests/cusim/stats.c - see stats.h. */
#include "stats.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "exec.h"
#include "report.h"

struct entry {
    const char *name;
    struct kernel_stats stats;
    struct entry *next;
};
static struct entry *entries;

struct kernel_stats *stats_of(const struct kernel *k)
{
    if (!setting("CUSIM_STATS", NULL)) return NULL;
    struct entry **e = &entries;
    while (*e && strcmp((*e)->name, k->name)) e = &(*e)->next;
    if (!*e) {
        *e = must_alloc(sizeof **e);
        (*e)->name = k->name;
    }
    return &(*e)->stats;
}

static void write_entry(FILE *f, const struct entry *e)
{
    const struct kernel_stats *s = &e->stats;
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"launches", s->launches},
        {"warp_instructions", s->warp_instructions},
        {"lane_instructions", s->lane_instructions},
        {"mma", s->mma},
        {"branches", s->branches},
        {"divergent_branches", s->divergent_branches},
        {"global_bytes", s->global_bytes},
        {"global_sectors", s->global_sectors},
        {"global_sectors_ideal", s->global_sectors_ideal},
        {"shared_bytes", s->shared_bytes},
        {"shared_wavefronts", s->shared_wavefronts},
        {"shared_wavefronts_ideal", s->shared_wavefronts_ideal},
    };
    fprintf(f, "{\"kernel\": \"%s\"", e->name);
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++) {
        fprintf(f, ", \"%s\": %llu", fields[k].name, (unsigned long long)fields[k].value);
    }
    fprintf(f, "}");
}

void stats_write(void)
{
    const char *pattern = setting("CUSIM_STATS", NULL);
    char path[4096];
    if (!pattern) return;
    const char *pid = strstr(pattern, "%p");
    size_t plain = pid ? (size_t)(pid - pattern) : strlen(pattern);
    snprintf(path, sizeof path, "%.*s", (int)plain, pattern);
    size_t used = strlen(path);
    if (pid) snprintf(path + used, sizeof path - used, "%d%s", (int)getpid(), pid + 2);
    FILE *f = fopen(path, "w");
    if (!f) {
        report_note("cusim: %s cannot be written", path);
        return;
    }
    fprintf(f, "[");
    for (const struct entry *e = entries; e; e = e->next) {
        fprintf(f, "%s", e == entries ? "\n" : ",\n");
        write_entry(f, e);
    }
    fprintf(f, "\n]\n");
    fclose(f);
}
