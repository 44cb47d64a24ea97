/* ctl/ctl.h - the subcommands of rankservectl, and what they share.
 *
 * Each subcommand is a function in a file of its own; main.c holds their table.  argv[0] is the
 * subcommand's name.  The result is the program's exit code.
 */
#ifndef RANKSERVE_CTL_CTL_H
#define RANKSERVE_CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>

#include "common/check.h"
#include "common/mem.h"

int ctl_up(int argc, char **argv);
int ctl_pull(int argc, char **argv);
int ctl_chat(int argc, char **argv);
int ctl_bench(int argc, char **argv);
int ctl_sim(int argc, char **argv);
int ctl_policy(int argc, char **argv);
int ctl_status(int argc, char **argv);
int ctl_validate(int argc, char **argv);
int ctl_render(int argc, char **argv);
int ctl_slurm(int argc, char **argv);
int ctl_template(int argc, char **argv);
int ctl_tokenize(int argc, char **argv);
int ctl_detokenize(int argc, char **argv);
int ctl_inspect(int argc, char **argv);

/* Flags of one subcommand; up has the option table instead.  Ends with a row without a name. */
struct flag {
    const char *name;                 /* without the dashes          */
    const char **value;               /* set when the flag is given  */
    bool *given;                      /* for a flag without a value  */
    const char *metavar, *help;
};
/* Reads flags; moves other words to argv[1..] and returns how many.  --help prints `usage` and the
 * flags and exits 0; anything unknown dies with the nearest name. */
int flags_read(const struct flag *flags, const char *usage, int argc, char **argv);

/* All of standard input; dies beyond `bytes_max`. */
void read_input(struct buf *out, size_t bytes_max);
/* All of a file. */
enum err read_file(const char *path, size_t bytes_max, struct buf *out, struct why *why);
/* Writes beside `path` and renames; mode 0600. */
enum err write_file_atomic(const char *path, const void *data, size_t bytes, struct why *why);
/* A directory and everything below it; links are removed, not followed. */
void remove_tree(const char *path);

#endif
