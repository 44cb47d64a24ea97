/* mpi/main.c - rankserve: starts a rank, gives it its role, and sees that a failure ends the job.
 *
 * Before MPI_Init only the first rank speaks: all ranks get the same arguments and find the same
 * mistakes.  Signals are blocked from the first line on: one that arrives while MPI starts would
 * kill some ranks and leave the others waiting.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "engine/backend.h"
#include "mpi/job.h"
#include "mpi/rank0.h"
#include "mpi/weights.h"
#include "mpi/worker.h"

enum { START_S = 600 };               /* a start that hangs ends here */

static struct job job;
static struct loop loop;

static bool first_rank(void)
{
    static const char *const names[] = { "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *text = getenv(names[i]);
        if (text) return strcmp(text, "0") == 0;
    }
    return true;
}

static int launcher_number(const char *const *names)
{
    for (; *names; names++) {
        const char *text = getenv(*names);
        if (text && *text) return (int)strtol(text, NULL, 10);
    }
    return 0;
}

/* Before MPI knows the ranks only the launcher does.  A host's ranks are neighbours as a rule; rank
 * 0 has no GPU.  When the guess is wrong open() chooses again (job_device). */
static void choose_device(const struct config *c)
{
    static const char *const ranks[] = { "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID",
                                         NULL };
    static const char *const locals[] = { "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", NULL };
    const struct backend *b = backend_find(c->backend);
    int rank = launcher_number(ranks), local = launcher_number(locals);
    if (b && b->choose_device && rank > 0) b->choose_device(rank == local ? local - 1 : local);
}

static void fatal(int code)
{
    int runs = 0;
    MPI_Initialized(&runs);
    if (job.rank == 0 && runs)
        rank0_status_file(&job.config, code, "stopped by an error that the log names");
    if (runs) MPI_Abort(MPI_COMM_WORLD, code); /* with recovery the others see our bells end */
    _exit(code);
}

static void on_alarm(int number)
{
    (void)number;
    static const char line[] = "rankserve: the job did not start in time\n";
    if (write(STDERR_FILENO, line, sizeof line - 1) < 0) _exit(1);
    _exit(1);
}

static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL); /* threads inherit it */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, on_alarm);
    alarm(START_S);
}

/* A start that failed, on every rank alike. */
_Noreturn static void leave_start(const struct why *why)
{
    if (job.rank == 0) {
        fprintf(stderr, "rankserve: %s\n", why->text);
        rank0_status_file(&job.config, 1, why->text);
    }
    job_leave_together(1);
}

/* A rank died before the job was up: nobody can finish what all must do together. */
static void died_at_start(int rank)
{
    struct why why;
    why_set(&why, ERR_GONE, "rank %d died during start", rank);
    if (job.rank == 0) {
        fprintf(stderr, "rankserve: %s\n", why.text);
        rank0_status_file(&job.config, 1, why.text);
    }
    job_leave_alone(1);
}

int main(int argc, char **argv)
{
    struct why why = { 0 };
    struct weights weights = { 0 };
    struct port *port;
    job.started_ns = clock_now_ns();
    block_signals();
    bool speaks = first_rank();
    if (!speaks) { /* --help, once */
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (null >= 0) dup2(null, STDOUT_FILENO);
    }
    if (config_load(&job.config, PROGRAM_RANKSERVE, argc, argv, NULL, &why)) {
        if (speaks) fprintf(stderr, "rankserve: %s\n", why.text);
        return 1;
    }
    log_set_level(job.config.log_level);
    fatal_hook = fatal;
    loop_open(&loop);
    job.loop = &loop;
    choose_device(&job.config);
    if (job_open(&job, &why)) leave_start(&why);
    if (port_open(&port, &job, died_at_start, &why)) leave_start(&why);
    if (weights_open(&weights, &job, &why)) leave_start(&why);
    if (job.rank == 0) rank0_run(&job, port, &weights);
    worker_run(&job, port, &weights);
}
