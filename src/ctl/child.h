/* ctl/child.h - programs that rankservectl starts, watches and ends.
 *
 * Always true: a child leads a process group of its own (a Ctrl-C in the terminal reaches only us),
 * and gets a signal when we die, however we die.  Grandchildren whose parent is gone become ours
 * (child_adopt), so that child_kill_all leaves nobody behind.
 */
#ifndef RANKSERVE_CTL_CHILD_H
#define RANKSERVE_CTL_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/check.h"
#include "common/mem.h"

enum child_pipe {
    CHILD_PIPE_OUT,                   /* `out` reads its standard output          */
    CHILD_PIPE_ALL,                   /* its standard error as well               */
};

struct child {
    pid_t pid;                        /* 0: none                                  */
    int out;                          /* non-blocking; -1: none, or at its end    */
    struct buf line;                  /* what was read of a line not yet complete */
    bool ended;
    int status;                       /* as waitpid gives it, once ended     */
};

/* Orphans below us become our children. */
void child_adopt(void);
/* argv[0] is looked up in PATH when it has no slash. */
enum err child_start(struct child *c, char **argv, enum child_pipe pipe, struct why *why);
/* Hands what there is to read to `take`, line by line; the rest of a line at the end of all. */
void child_read(struct child *c, void (*take)(void *context, const char *line), void *context);
/* Notes who ended; call after SIGCHLD. */
void child_reap(struct child *list, int count);
void child_signal(const struct child *c, int signal);
/* "exit code 3", "killed by signal 9 (Killed)". */
const char *child_end_text(const struct child *c, char *out, size_t bytes);
/* SIGKILL for every process below us, until none is left, for at most some seconds. */
void child_kill_all(void);
/* Runs a program to its end with its output on our standard error; its exit code, or -1. */
int child_run(char **argv);

#endif
