/* ctl/child.c - fork, exec, watch, end; see child.h. */
#include "ctl/child.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

enum { KILL_SECONDS_MAX = 5, LINE_BYTES_MAX = 65536 };

void child_adopt(void)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}

static void plain_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGINT, SIG_DFL);
}

/* In the child.  Says through `failure` why it could not start; exec closes it. */
static _Noreturn void become(char **argv, int out, enum child_pipe kind, int failure, pid_t parent)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);
    plain_signals();
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    if (kind == CHILD_PIPE_ALL) dup2(out, STDERR_FILENO);
    execvp(argv[0], argv);
    int error = errno;
    if (write(failure, &error, sizeof error) < 0) _exit(126);
    _exit(127);
}

static void close_pair(const int fds[2])
{
    if (fds[0] >= 0) close(fds[0]);
    if (fds[1] >= 0) close(fds[1]);
}

enum err child_start(struct child *c, char **argv, enum child_pipe kind, struct why *why)
{
    int failure[2] = { -1, -1 }, out[2] = { -1, -1 }, error = 0;
    *c = (struct child){ .out = -1, .line.limit = LINE_BYTES_MAX };
    if (pipe2(failure, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0) {
        error = errno;
        close_pair(failure);
        return why_set(why, ERR_IO, "pipe: %s", strerror(error));
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(argv, out[1], kind, failure[1], parent);
    if (pid < 0) error = errno;
    close(failure[1]);
    failure[1] = -1;
    if (pid > 0 && read(failure[0], &error, sizeof error) == sizeof error) {
        waitpid(pid, NULL, 0);
        pid = -1;
    }
    close_pair(failure);
    close(out[1]);
    if (pid < 0) {
        close(out[0]);
        return why_set(why, ERR_IO, "%s cannot be started: %s", argv[0], strerror(error));
    }
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    c->pid = pid;
    c->out = out[0];
    return OK;
}

static void take_line(struct child *c, void (*take)(void *context, const char *line),
                      void *context)
{
    buf_add(&c->line, "", 0);
    take(context, c->line.data);
    buf_clear(&c->line);
}

void child_read(struct child *c, void (*take)(void *context, const char *line), void *context)
{
    char piece[4096];
    ssize_t got;
    if (c->out < 0) return;
    while ((got = read(c->out, piece, sizeof piece)) > 0) {
        for (ssize_t i = 0; i < got; i++) {
            if (piece[i] == '\n') take_line(c, take, context);
            else buf_char(&c->line, piece[i]);
        }
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (c->line.size) take_line(c, take, context);
    close(c->out);
    c->out = -1;
    buf_release(&c->line);
}

void child_reap(struct child *list, int count)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (int i = 0; i < count; i++) {
            if (list[i].pid != pid) continue;
            list[i].ended = true;
            list[i].status = status;
        }
    }
}

void child_signal(const struct child *c, int signal_number)
{
    if (c->pid > 0 && !c->ended) kill(c->pid, signal_number);
}

const char *child_end_text(const struct child *c, char *out, size_t bytes)
{
    if (WIFSIGNALED(c->status)) {
        int number = WTERMSIG(c->status);
        snprintf(out, bytes, "killed by signal %d (%s)", number, strsignal(number));
    } else {
        snprintf(out, bytes, "exit code %d", WEXITSTATUS(c->status));
    }
    return out;
}

/* The parent of process `pid`, from its stat line, whose second word may hold anything. */
static pid_t parent_of(const char *pid)
{
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t got = read(fd, line, sizeof line - 1);
    close(fd);
    if (got <= 0) return -1;
    line[got] = '\0';
    char *after = strrchr(line, ')');
    int parent = -1;
    if (!after || sscanf(after + 1, " %*c %d", &parent) != 1) return -1;
    return parent;
}

static void kill_children(void)
{
    DIR *dir = opendir("/proc");
    if (!dir) return;
    for (struct dirent *d; (d = readdir(dir));) {
        if (d->d_name[0] < '1' || d->d_name[0] > '9') continue;
        if (parent_of(d->d_name) == getpid()) kill((pid_t)strtol(d->d_name, NULL, 10), SIGKILL);
    }
    closedir(dir);
}

void child_kill_all(void)
{
    uint64_t end = clock_now_ns() + KILL_SECONDS_MAX * NS_PER_S;
    while (clock_now_ns() < end) {
        pid_t pid;
        kill_children();
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) { }
        if (pid < 0 && errno == ECHILD) return;
        nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    }
}

int child_run(char **argv)
{
    pid_t pid = fork();
    if (pid == 0) {
        plain_signals();
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execvp(argv[0], argv);
        _exit(127);
    }
    int status;
    while (pid > 0 && waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) return -1;
    }
    return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
