/* tests/cusim/check/check.c - runs the table of planted faults: every row in a process of its own.
 *
 *   check            all rows; TAP
 *   check NAME       one row, here
 */
#include "check.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct row *const tables[] = {device_rows, host_rows, graph_rows, rank_rows,
                                           number_rows};
const char *check_folder;
enum { TABLES = sizeof tables / sizeof *tables, EXIT_FOUND = 99 };

/* Runs `row` in a child; its standard error into `text`. Returns the exit code. */
static int run_row(const char *self, const struct row *row, char *text, size_t size)
{
    int ends[2], status;
    if (pipe(ends)) return -1;
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        if (row->setting) putenv((char *)row->setting);
        alarm(60);
        execl(self, self, row->name, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t used = 0;
    ssize_t n;
    while ((n = read(ends[0], text + used, size - 1 - used)) > 0) used += (size_t)n;
    text[used] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool is_right(const struct row *row, int code, const char *text)
{
    char start[128];
    if (!row->kind) return code == 0;
    snprintf(start, sizeof start, "cusim: %s: ", row->kind);
    return code == EXIT_FOUND && strstr(text, start);
}

static bool run_all(const char *self)
{
    int count = 0, number = 0, bad = 0;
    static char text[1 << 16];
    for (int t = 0; t < TABLES; t++) {
        for (const struct row *r = tables[t]; r->name; r++) count++;
    }
    printf("1..%d\n", count);
    for (int t = 0; t < TABLES; t++) {
        for (const struct row *r = tables[t]; r->name; r++) {
            int code = run_row(self, r, text, sizeof text);
            bool ok = is_right(r, code, text);
            bad += !ok;
            printf("%s %d - %s%s%s\n", ok ? "ok" : "not ok", ++number, r->name,
                   r->kind ? ": " : "", r->kind ? r->kind : "");
            if (!ok) printf("# exit code %d\n# %s\n", code, text);
            fflush(stdout);
        }
    }
    return !bad;
}

int main(int argc, char **argv)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return 1;
    self[n] = 0;
    check_folder = strndup(self, (size_t)(strrchr(self, '/') - self));
    if (argc == 1) return !run_all(self);
    for (int t = 0; t < TABLES; t++) {
        for (const struct row *r = tables[t]; r->name; r++) {
            if (strcmp(r->name, argv[1])) continue;
            r->run(r->argument);
            return 0;
        }
    }
    fprintf(stderr, "no row '%s'\n", argv[1]);
    return 1;
}
