/* tests/cusim/stats.c - counters of each kernel, written as JSON when CUSIM_STATS names a file.
 *
 * An array of objects, one per kernel that ran: its name and COUNTERS of exec.h, where `ideal` is
 * the least that the same bytes could need.
 */
#include <unistd.h>

#include "exec.h"

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

void stats_write(void)
{
    const char *pattern = setting("CUSIM_STATS", NULL);
    char path[4096], number[16] = "";
    if (!pattern) return;
    const char *pid = strstr(pattern, "%p");
    if (pid) snprintf(number, sizeof number, "%d", (int)getpid());
    snprintf(path, sizeof path, "%.*s%s%s", pid ? (int)(pid - pattern) : (int)strlen(pattern),
             pattern, number, pid ? pid + 2 : "");
    FILE *f = fopen(path, "w");
    if (!f) {
        report_note("cusim: %s cannot be written", path);
        return;
    }
    fprintf(f, "[");
    for (const struct entry *e = entries; e; e = e->next) {
        fprintf(f, "%s{\"kernel\": \"%s\"", e == entries ? "\n" : ",\n", e->name);
#define X(name) fprintf(f, ", \"" #name "\": %lu", e->stats.name);
        COUNTERS(X)
#undef X
        fprintf(f, "}");
    }
    fprintf(f, "\n]\n");
    fclose(f);
}
