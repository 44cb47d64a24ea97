/* ctl/slurm.c - rankservectl slurm: the daily commands around services on a Slurm cluster.
 *
 * It asks Slurm's own programs and reads the endpoint files that jobs write; it keeps nothing of
 * its own.  A service is named by its job's number or name.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "common/suggest.h"
#include "ctl/ctl.h"

enum { OUTPUT_BYTES_MAX = 1 << 20, ENDPOINT_BYTES_MAX = 65536, WORDS_MAX = 64 };

/* -- other programs ---------------------------------------------------------------------------- */

static _Noreturn void become(char *const *argv, int in, int out)
{
    if (in >= 0) dup2(in, STDIN_FILENO);
    if (out >= 0) dup2(out, STDOUT_FILENO);
    execvp(argv[0], argv);
    fprintf(stderr, "rankservectl: %s: %s%s\n", argv[0], strerror(errno),
            errno == ENOENT ? " (is this a Slurm cluster's login node?)" : "");
    _exit(127);
}

/* Runs it; `out`: its standard output, NULL: ours; `in`: its standard input, -1: ours.  The exit
 * code; a program that cannot start has said so itself. */
static int run(char *const *argv, int in, struct buf *out)
{
    int ends[2] = { -1, -1 }, status = 0;
    if (out && pipe2(ends, O_CLOEXEC) < 0) die("pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) die("fork: %s", strerror(errno));
    if (child == 0) become(argv, in, ends[1]);
    if (out) {
        char piece[4096];
        ssize_t got;
        close(ends[1]);
        out->limit = OUTPUT_BYTES_MAX;
        while ((got = read(ends[0], piece, sizeof piece)) > 0 || (got < 0 && errno == EINTR)) {
            if (got > 0) buf_add(out, piece, (size_t)got);
        }
        close(ends[0]);
        buf_add(out, "", 0);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static char *whoami(void)
{
    static char name[64];
    const struct passwd *p = getpwuid(geteuid());
    snprintf(name, sizeof name, "%s", p ? p->pw_name : "root");
    return name;
}

/* -- jobs and their endpoint files ------------------------------------------------------------- */

static const char *jobs_folder(void)
{
    static char path[PATH_MAX];
    const char *given = getenv("RANKSERVE_JOBS"), *home = getenv("HOME");
    if (given && *given) snprintf(path, sizeof path, "%s", given);
    else snprintf(path, sizeof path, "%s/.rankserve/jobs", home ? home : "");
    return path;
}

static json_t *read_endpoint(const char *job)
{
    char path[PATH_MAX + 64];
    struct buf text = { 0 };
    struct why why;
    snprintf(path, sizeof path, "%s/%s.json", jobs_folder(), job);
    json_t *o = NULL;
    if (access(path, F_OK) == 0 && read_file(path, ENDPOINT_BYTES_MAX, &text, &why) == OK) {
        o = json_loadb(text.data, text.size, 0, NULL);
    }
    buf_release(&text);
    return o;
}

static const char *member(const json_t *o, const char *name)
{
    const char *text = json_string_value(json_object_get(o, name));
    return text ? text : "";
}

/* squeue's answer in `format`; "" when no job matches. */
static void queue(const char *option, const char *value, const char *format, struct buf *out)
{
    char what[256], how[64];
    snprintf(what, sizeof what, "%s=%s", option, value);
    snprintf(how, sizeof how, "--format=%s", format);
    char user[80];
    snprintf(user, sizeof user, "--user=%s", whoami());
    char *argv[] = { "squeue", "--noheader", "--states=all", user, what, how, NULL };
    if (run(argv, -1, out) == 127) exit(1);
}

/* Jobs that are waiting, running or ending. */
static void live_jobs(const char *option, const char *value, struct buf *out)
{
    struct buf all = { 0 };
    queue(option, value, "%i %T", &all);
    for (const char *at = all.data; at && *at;) {
        size_t bytes = strcspn(at, "\n"), id = strcspn(at, " ");
        const char *state = at + id + 1;
        static const char *const live[] = { "PENDING", "RUNNING", "COMPLETING", "CONFIGURING",
                                            "SUSPENDED", "REQUEUED", "SIGNALING" };
        for (size_t i = 0; i < sizeof live / sizeof *live; i++) {
            if (strncmp(state, live[i], strlen(live[i])) != 0) continue;
            buf_print(out, "%s%.*s", out->size ? " " : "", (int)id, at);
            break;
        }
        at += bytes + (at[bytes] == '\n');
    }
    buf_add(out, "", 0);
    buf_release(&all);
}

static bool is_number(const char *text)
{
    return *text && text[strspn(text, "0123456789")] == '\0' && strlen(text) < 12;
}

/* Of several jobs' numbers the last that serves; NULL: none does. */
static char *newest_live(const char *jobs)
{
    char *found = NULL;
    for (const char *at = jobs; *at; at += strspn(at, " ")) {
        char *job = mem_text_n(at, strcspn(at, " "));
        at += strlen(job);
        json_t *o = read_endpoint(job);
        bool later = !found || strtoul(job, NULL, 10) > strtoul(found, NULL, 10);
        if (later && strcmp(member(o, "state"), "live") == 0) {
            free(found);
            found = job;
            job = NULL;
        }
        free(job);
        json_decref(o);
    }
    return found;
}

/* The one job that is meant, as its number; dies with one line when there is none, or are two.
 * `live`: while two take turns, the newer one that serves is meant. */
static char *find_job(const char *command, const char *word, bool live)
{
    struct buf found = { 0 };
    if (is_number(word)) return mem_text(word);
    live_jobs("--name", word, &found);
    if (!found.size) die("slurm %s: no job of yours is called '%.60s'", command, word);
    if (live && strchr(found.data, ' ')) {
        char *newest = newest_live(found.data);
        if (newest) return newest;
    }
    if (strchr(found.data, ' ')) {
        die("slurm %s: several jobs are called '%.60s'; say which: %.120s", command, word,
            found.data);
    }
    return buf_take(&found);
}

static char *job_word(int argc, char **argv, int words)
{
    (void)argc;
    if (words != 1) die("slurm %s: say which job, by its number or name", argv[0]);
    return find_job(argv[0], argv[1], strcmp(argv[0], "cancel") != 0);
}

/* -- submit ------------------------------------------------------------------------------------ */

/* The launch script that belongs to this program, unless somebody chose one. */
static void set_launch(const char *self)
{
    static const char *const places[] = { "rankserve-launch", "../scripts/rankserve-launch",
                                          "../libexec/rankserve-launch" };
    char path[PATH_MAX], folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", self);
    *strrchr(folder, '/') = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (snprintf(path, sizeof path, "%.3000s/%s", folder, places[i]) < 0) return;
        if (access(path, X_OK) == 0) setenv("RANKSERVE_LAUNCH", path, 0);
    }
    setenv("RANKSERVE_BIN", folder, 0);
}

static void script_name(const char *script, char *out, size_t bytes)
{
    const char *at = strstr(script, "#SBATCH --job-name=");
    *out = '\0';
    if (at) snprintf(out, bytes, "%.*s", (int)strcspn(at + 19, "\n"), at + 19);
}

static void refuse_second(const char *name)
{
    struct buf there = { 0 };
    live_jobs("--name", name, &there);
    if (there.size) {
        die("slurm submit: job %.60s is already called '%.60s' (--again submits another)",
            there.data, name);
    }
    buf_release(&there);
}

static void wait_live(const char *job)
{
    for (;;) {
        json_t *o = read_endpoint(job);
        bool live = strcmp(member(o, "state"), "live") == 0;
        if (live) printf("ready %s\n", member(o, "url"));
        json_decref(o);
        if (live) return;
        struct buf there = { 0 };
        live_jobs("--jobs", job, &there);
        if (!there.size) die("slurm submit: job %s ended; see: rankservectl slurm logs %s", job,
                             job);
        buf_release(&there);
        nanosleep(&(struct timespec){ .tv_nsec = 300000000 }, NULL);
    }
}

/* `submit -f FILE ...`: what render says goes straight into sbatch. */
static int submit(int argc, char **argv)
{
    char self[PATH_MAX], name[256];
    char *render[WORDS_MAX] = { self, "render", "--target=slurm" };
    char *sbatch[] = { "sbatch", "--parsable", NULL };
    int words = 3;
    bool again = false, wait = false;
    ssize_t got = readlink("/proc/self/exe", self, sizeof self - 1);
    if (got < 0) die("/proc/self/exe: %s", strerror(errno));
    self[got] = '\0';
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--again") == 0) again = true;
        else if (strcmp(argv[i], "--wait") == 0) wait = true;
        else if (words < WORDS_MAX - 1) render[words++] = argv[i];
    }
    struct buf script = { 0 }, job = { 0 };
    if (run(render, -1, &script) != 0) return 1;
    script_name(script.data, name, sizeof name);
    if (!*name) {                     /* render's --help */
        printf("%s  --again, --wait: of submit; see rankservectl slurm\n", script.data);
        return 0;
    }
    if (!again) refuse_second(name);
    set_launch(self);
    FILE *file = tmpfile();
    bool written = file && fwrite(script.data, 1, script.size, file) == script.size &&
                   fflush(file) == 0 && lseek(fileno(file), 0, SEEK_SET) == 0;
    if (!written) die("a temporary file: %s", strerror(errno));
    int code = run(sbatch, fileno(file), &job);
    fclose(file);
    if (code != 0) return 1;
    job.data[strcspn(job.data, ";\n")] = '\0';
    printf("job %s\n", job.data);
    fflush(stdout);
    if (wait) wait_live(job.data);
    buf_release(&script);
    buf_release(&job);
    return 0;
}

/* -- the others -------------------------------------------------------------------------------- */

static void print_stale(const char *shown)
{
    DIR *dir = opendir(jobs_folder());
    for (struct dirent *d; dir && (d = readdir(dir));) {
        char id[32];
        struct buf there = { 0 };
        size_t bytes = strspn(d->d_name, "0123456789");
        if (!bytes || bytes >= sizeof id || strcmp(d->d_name + bytes, ".json") != 0) continue;
        snprintf(id, sizeof id, "%.*s", (int)bytes, d->d_name);
        if (!strstr(shown, id)) live_jobs("--jobs", id, &there);
        if (!strstr(shown, id) && !there.size) {
            printf("%-10s stale: the job is gone, its endpoint file %s/%s can go too\n", id,
                   jobs_folder(), d->d_name);
        }
        buf_release(&there);
    }
    if (dir) closedir(dir);
}

static int status(int argc, char **argv)
{
    static const struct flag none[] = { { NULL } };
    struct buf jobs = { 0 }, shown = { 0 };
    if (flags_read(none, "slurm status", argc, argv)) die("slurm status: takes no word");
    queue("--sort", "i", "%i|%j|%T|%L|%N", &jobs);
    printf("%-10s %-24s %-11s %-12s %-10s %s\n", "JOB", "NAME", "SLURM", "LEFT", "SERVICE", "URL");
    buf_add(&shown, "", 0);
    for (char *line = jobs.data; line && *line;) {
        char id[32] = "", name[64] = "", state[32] = "", left[32] = "";
        size_t bytes = strcspn(line, "\n");
        bool more = line[bytes] == '\n';
        line[bytes] = '\0';
        if (sscanf(line, "%31[^|]|%63[^|]|%31[^|]|%31[^|]", id, name, state, left) == 4) {
            json_t *o = read_endpoint(id);
            bool runs = strcmp(state, "RUNNING") == 0 || strcmp(state, "COMPLETING") == 0;
            bool ended = !runs && strcmp(state, "PENDING") != 0;
            if (o || !ended) {
                printf("%-10s %-24s %-11s %-12s %-10s %s\n", id, name, state, left,
                       !o ? "-" : ended ? "stale" : member(o, "state"), o ? member(o, "url") : "-");
                buf_print(&shown, "%s ", id);
            }
            json_decref(o);
        }
        line += bytes + more;
    }
    print_stale(shown.data);
    buf_release(&jobs);
    buf_release(&shown);
    return 0;
}

static int url(int argc, char **argv)
{
    static const struct flag none[] = { { NULL } };
    int words = flags_read(none, "slurm url JOB", argc, argv);
    char *job = job_word(argc, argv, words);
    json_t *o = read_endpoint(job);
    struct buf there = { 0 };
    live_jobs("--jobs", job, &there);
    if (o && !there.size) {
        die("slurm url: job %s is gone; its endpoint file %s/%s.json is stale", job, jobs_folder(),
            job);
    }
    if (!o) die("slurm url: job %s has no endpoint file in %s yet", job, jobs_folder());
    if (strcmp(member(o, "state"), "live") != 0) {
        die("slurm url: job %s is %s", job, member(o, "state"));
    }
    printf("%s\n", member(o, "url"));
    json_decref(o);
    buf_release(&there);
    free(job);
    return 0;
}

static int logs(int argc, char **argv)
{
    bool follow = false;
    const struct flag flags[] = {
        { "follow", NULL, &follow, NULL, "go on as it grows" }, { NULL },
    };
    int words = flags_read(flags, "slurm logs JOB [--follow]", argc, argv);
    char *job = job_word(argc, argv, words), path[PATH_MAX] = "";
    char *show[] = { "scontrol", "--oneliner", "show", "job", job, NULL };
    struct buf text = { 0 };
    if (run(show, -1, &text) != 0) return 1;
    const char *at = strstr(text.data, " StdOut=");
    if (at) snprintf(path, sizeof path, "%.*s", (int)strcspn(at + 8, " \n"), at + 8);
    if (!*path || access(path, R_OK) < 0) {
        die("slurm logs: the log of job %s, %s: %s", job, *path ? path : "(none)",
            *path ? strerror(errno) : "Slurm knows of none");
    }
    char *tail[] = { "tail", "-n", "200", follow ? "-F" : "-q", path, NULL };
    return run(tail, -1, NULL);
}

/* A job that was to take over and still waits is not wanted either. */
static void cancel_next(const char *job)
{
    char path[PATH_MAX + 64];
    struct buf text = { 0 }, state = { 0 };
    struct why why;
    snprintf(path, sizeof path, "%s/%s.next", jobs_folder(), job);
    if (access(path, F_OK) < 0 || read_file(path, 32, &text, &why) != OK) return;
    text.data[strcspn(text.data, "\n")] = '\0';
    if (is_number(text.data)) queue("--jobs", text.data, "%T", &state);
    if (state.data && strncmp(state.data, "PENDING", 7) == 0) {
        char *stop[] = { "scancel", text.data, NULL };
        printf("also job %s, which was to take over\n", text.data);
        run(stop, -1, NULL);
    }
    buf_release(&text);
    buf_release(&state);
}

static int cancel(int argc, char **argv)
{
    bool now = false;
    const struct flag flags[] = {
        { "now", NULL, &now, NULL, "cut running requests off, do not wait for them" }, { NULL },
    };
    int words = flags_read(flags, "slurm cancel JOB [--now]", argc, argv);
    char *job = job_word(argc, argv, words);
    char *drain[] = { "scancel", "--batch", "--signal=USR1", job, NULL };
    char *stop[] = { "scancel", job, NULL };
    struct buf state = { 0 };
    queue("--jobs", job, "%T", &state);
    bool runs = state.data && strncmp(state.data, "RUNNING", 7) == 0;
    buf_release(&state);
    cancel_next(job);
    return run(now || !runs ? stop : drain, -1, NULL);
}

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    { "submit", submit, "-f FILE [--wait] [--again] [render's options]: render and sbatch" },
    { "status", status, "your jobs, whether they serve, and where" },
    { "url", url, "JOB: where it serves" },
    { "logs", logs, "JOB [--follow]: its log" },
    { "cancel", cancel, "JOB [--now]: drain and end it" },
};

int ctl_slurm(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";
    struct suggest s = { .wrong = name };
    char tail[128];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        printf("usage: rankservectl slurm COMMAND ...    (JOB: number or name)\n");
        for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
            printf("  %-8s %s\n", commands[i].name, commands[i].help);
        }
        return argc > 1 ? 0 : 2;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(commands[i].name, name) == 0) return commands[i].run(argc - 1, argv + 1);
        suggest_offer(&s, commands[i].name);
    }
    die("slurm: unknown command '%.60s'%s", name, suggest_text(&s, "", tail, sizeof tail));
}
