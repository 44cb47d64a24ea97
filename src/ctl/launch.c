/* ctl/launch.c - see launch.h. */
#include "ctl/launch.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/config_table.h"
#include "common/mem.h"
#include "ctl/ctl.h"

enum { STARTER_BYTES_MAX = 4096, STARTER_WORDS_MAX = 64 };

/* The programs of the suite are where this one is. */
static enum err beside(const char *name, char *out, size_t bytes, struct why *why)
{
    char self[PATH_MAX];
    ssize_t got = readlink("/proc/self/exe", self, sizeof self - 1);
    if (got < 0) return why_set(why, ERR_IO, "/proc/self/exe: %s", strerror(errno));
    self[got] = '\0';
    *strrchr(self, '/') = '\0';
    int wrote = snprintf(out, bytes, "%s/%s", self, name);
    if (wrote < 0 || (size_t)wrote >= bytes) return why_set(why, ERR_LIMIT, "path too long");
    if (access(out, X_OK) == 0) return OK;
    return why_set(why, ERR_IO, "%.400s: %s (make builds it)", out, strerror(errno));
}

static bool in_path(const char *name)
{
    if (strchr(name, '/')) return access(name, X_OK) == 0;
    const char *path = getenv("PATH");
    for (const char *at = path ? path : ""; *at;) {
        char file[PATH_MAX];
        int bytes = (int)strcspn(at, ":");
        snprintf(file, sizeof file, "%.*s/%s", bytes, at, name);
        if (access(file, X_OK) == 0) return true;
        at += bytes + (at[bytes] == ':');
    }
    return false;
}

/* RANKSERVE_MPIRUN: the words that start ranks, from a script that knows the hosts.  Splits them in
 * `words`, which argv then points into; returns how many, 0 when nobody said. */
static size_t given_starter(char *words, size_t bytes, char **argv, size_t room)
{
    const char *given = getenv("RANKSERVE_MPIRUN");
    size_t count = 0;
    if (!given || strlen(given) >= bytes) return 0;
    snprintf(words, bytes, "%s", given);
    for (char *at = words; count < room; count++) {
        at += strspn(at, " ");
        if (!*at) break;
        argv[count] = at;
        at += strcspn(at, " ");
        if (*at) *at++ = '\0';
    }
    return count;
}

enum err launch_check(struct why *why)
{
    char path[PATH_MAX], words[STARTER_BYTES_MAX], *argv[STARTER_WORDS_MAX];
    enum err e = beside("rankserve", path, sizeof path, why);
    if (e == OK) e = beside("rankserve-gateway", path, sizeof path, why);
    bool given = given_starter(words, sizeof words, argv, STARTER_WORDS_MAX) > 0;
    if (e == OK && given && !in_path(argv[0])) {
        return why_set(why, ERR_IO, "RANKSERVE_MPIRUN: %.200s: no such program", argv[0]);
    }
    if (e == OK && !given && !in_path("mpirun")) {
        e = why_set(why, ERR_IO, "mpirun is not in PATH (package openmpi-bin, or `make deps`)");
    }
    return e;
}

/* Shared memory of one `up`: /dev/shm/rankserve-UID-PID. */
static int shared_name(char *out, size_t bytes, long pid)
{
    return snprintf(out, bytes, "/dev/shm/rankserve-%u-%ld", (unsigned)geteuid(), pid);
}

void launch_clean(void)
{
    char path[64], prefix[64];
    shared_name(path, sizeof path, (long)getpid());
    remove_tree(path);
    int bytes = snprintf(prefix, sizeof prefix, "rankserve-%u-", (unsigned)geteuid());
    DIR *dir = opendir("/dev/shm");
    for (struct dirent *d; dir && (d = readdir(dir));) {
        if (strncmp(d->d_name, prefix, (size_t)bytes) != 0) continue;
        long pid = strtol(d->d_name + bytes, NULL, 10);
        if (pid < 1 || kill((pid_t)pid, 0) == 0 || errno != ESRCH) continue;
        shared_name(path, sizeof path, pid);
        remove_tree(path);
    }
    if (dir) closedir(dir);
}

/* Where Open MPI puts its files: where we can remove them. */
static void set_directories(const struct config *c)
{
    char path[64];
    launch_clean();
    shared_name(path, sizeof path, (long)getpid());
    if (mkdir(path, 0700) == 0) setenv("OMPI_MCA_btl_vader_backing_directory", path, 0);
    if (strlen(c->run_dir) < 48) setenv("OMPI_MCA_orte_tmpdir_base", c->run_dir, 0);
}

/* For Open MPI 4.1 and 5; what a person has set stays. */
static void set_environment(void)
{
    static const char *const settings[][2] = {
        { "OMPI_MCA_mpi_yield_when_idle", "0" },             /* we sleep in epoll instead       */
        { "OMPI_MCA_btl_vader_single_copy_mechanism", "none" },  /* CMA fails in containers     */
        { "OMPI_MCA_btl_base_warn_peer_error", "0" },        /* a dead peer is our own business */
        { "OMPI_MCA_orte_execute_quiet", "1" },              /* mpirun -q, which 5 has not got  */
        { "OMPI_MCA_hwloc_base_binding_policy", "none" },
        { "OMPI_MCA_pml", "ob1" },                           /* survives a peer's death         */
        { "OMPI_MCA_btl", "self,vader" },                    /* one host: no network looked for */
    };
    static const char *const root[] = {
        "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
        "PRTE_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        setenv(settings[i][0], settings[i][1], 0);
    }
    for (size_t i = 0; i < 4 && geteuid() == 0; i++) setenv(root[i], "1", 0);
    config_forget_environment();      /* everything goes as arguments */
}

static enum err start(const struct config *c, enum program program, char **before, size_t count,
                      enum child_pipe pipe, struct child *out, struct why *why)
{
    char **options = config_arguments(c, program);
    size_t option_count = 0;
    while (options[option_count]) option_count++;
    char **argv = mem_array(count + option_count + 1, sizeof *argv);
    memcpy(argv, before, count * sizeof *argv);
    memcpy(argv + count, options, option_count * sizeof *argv);
    enum err e = child_start(out, argv, pipe, why);
    for (size_t i = 0; i < option_count; i++) free(options[i]);
    free(options);
    free(argv);
    return e;
}

enum err launch_job(const struct config *c, struct child *out, struct why *why)
{
    static char here[][20] = { "mpirun", "--enable-recovery", "--oversubscribe", "--bind-to",
                               "none" };
    enum { HERE = sizeof here / sizeof *here };
    char path[PATH_MAX], ranks[24], words[STARTER_BYTES_MAX], *argv[STARTER_WORDS_MAX + 3];
    static char n[] = "-n", np[] = "-np";
    enum err e = beside("rankserve", path, sizeof path, why);
    if (e != OK) return e;
    snprintf(ranks, sizeof ranks, "%llu",
             (unsigned long long)(1 + c->prefill + c->decode + c->both + c->spares));
    size_t count = given_starter(words, sizeof words, argv, STARTER_WORDS_MAX);
    bool given = count > 0;
    if (!given) {
        for (; count < HERE; count++) argv[count] = here[count];
        set_directories(c);           /* of this host: other hosts do not have them */
    }
    argv[count++] = given ? n : np;
    argv[count++] = ranks;
    argv[count++] = path;
    set_environment();
    return start(c, PROGRAM_RANKSERVE, argv, count, CHILD_PIPE_ALL, out, why);
}

enum err launch_gateway(const struct config *c, struct child *out, struct why *why)
{
    char path[PATH_MAX];
    enum err e = beside("rankserve-gateway", path, sizeof path, why);
    if (e != OK) return e;
    struct config mine = *c;
    mine.endpoint_file = "";          /* up writes it: it knows more */
    char *before[] = { path };
    return start(&mine, PROGRAM_GATEWAY, before, 1, CHILD_PIPE_OUT, out, why);
}
