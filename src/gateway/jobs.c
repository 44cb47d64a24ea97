/* gateway/jobs.c - see jobs.h.  One entry is read in jobs_json.c. */
#include "gateway/jobs.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "gateway/jobs_json.h"

enum { LOOK_MS = 2000, STOP_S = 2, WRONG_BYTES = 200 };

struct entry {
    char name[NAME_MAX + 1];
    char wrong[WRONG_BYTES];          /* what was said of it last; "": nothing */
    struct job_file file;
    bool seen, good;
};

struct jobs {
    struct gateway *gw;
    pthread_t thread;
    int stop, inotify, watch;
    struct entry *entries;
    uint32_t count;
    bool unreadable;                  /* that was said of the directory */
};

static const char *folder(const struct jobs *j)
{
    return j->gw->config.jobs;
}

/* -- entries ----------------------------------------------------------------------------------- */

static bool is_entry(const char *name)
{
    size_t bytes = strlen(name);
    return name[0] != '.' && bytes > 5 && strcmp(name + bytes - 5, ".json") == 0;
}

static struct entry *entry_of(struct jobs *j, const char *name)
{
    for (uint32_t i = 0; i < j->count; i++) {
        if (strcmp(j->entries[i].name, name) == 0) return &j->entries[i];
    }
    if (j->count == JOB_FILES_MAX) return NULL;
    j->entries = mem_resize(j->entries, j->count + 1, sizeof *j->entries);
    struct entry *e = &j->entries[j->count++];
    *e = (struct entry){ 0 };
    snprintf(e->name, sizeof e->name, "%s", name);
    return e;
}

static void say_wrong(const struct jobs *j, struct entry *e, const char *wrong)
{
    if (*wrong && strncmp(e->wrong, wrong, WRONG_BYTES - 1) != 0) {
        log_warn("--jobs %s/%s: %s", folder(j), e->name, wrong);
    }
    snprintf(e->wrong, sizeof e->wrong, "%s", wrong);
}

static void read_entry(struct jobs *j, struct entry *e)
{
    char path[PATH_MAX];
    struct why why = { 0 };
    int bytes = snprintf(path, sizeof path, "%s/%s", folder(j), e->name);
    if (bytes < 0 || (size_t)bytes >= sizeof path) return;
    e->seen = true;
    e->good = job_file_read(path, &e->file, &why) == OK;
    if (!e->good && access(path, F_OK) < 0 && errno == ENOENT) e->seen = false; /* just gone */
    else if (!e->good) say_wrong(j, e, why.text);
}

static bool wanted(const struct jobs *j, const struct entry *e)
{
    const char *name = j->gw->config.jobs_name;
    return e->good && !e->file.starting && (!*name || strcmp(name, e->file.service) == 0);
}

/* Of two entries with the same job the one started last counts. */
static bool is_shadowed(struct jobs *j, struct entry *e)
{
    for (uint32_t i = 0; i < j->count; i++) {
        const struct entry *other = &j->entries[i];
        if (other == e || !other->good) continue;
        if (strcmp(other->file.job.name, e->file.job.name) != 0) continue;
        bool older = e->file.job.started < other->file.job.started ||
                     (e->file.job.started == other->file.job.started && other < e);
        if (!older) continue;
        char wrong[WRONG_BYTES];
        snprintf(wrong, sizeof wrong, "%.60s has the same job_id, '%.60s', and counts", other->name,
                 e->file.job.name);
        say_wrong(j, e, wrong);
        return true;
    }
    return false;
}

/* -- the directory ----------------------------------------------------------------------------- */

static void forget_gone(struct jobs *j)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < j->count; i++) {
        if (j->entries[i].seen) j->entries[kept++] = j->entries[i];
    }
    j->count = kept;
}

static bool read_folder(struct jobs *j)
{
    DIR *dir = opendir(folder(j));
    if (!dir) {
        if (!j->unreadable) {
            log_warn("--jobs %s: %s; the jobs stay as they were", folder(j), strerror(errno));
        }
        j->unreadable = true;
        return false;
    }
    j->unreadable = false;
    for (uint32_t i = 0; i < j->count; i++) j->entries[i].seen = false;
    bool full = false;
    for (struct dirent *d; (d = readdir(dir));) {
        struct entry *e = is_entry(d->d_name) ? entry_of(j, d->d_name) : NULL;
        full |= !e && is_entry(d->d_name);
        if (e) read_entry(j, e);
    }
    closedir(dir);
    if (full) log_warn("--jobs %s: more than %d entries", folder(j), JOB_FILES_MAX);
    forget_gone(j);
    return true;
}

static void look(struct jobs *j)
{
    if (!read_folder(j)) return;
    struct link_target *found = mem_array(j->count + 1, sizeof *found);
    uint32_t count = 0;
    for (uint32_t i = 0; i < j->count; i++) {
        struct entry *e = &j->entries[i];
        if (!e->good || is_shadowed(j, e)) continue;
        e->wrong[0] = '\0';
        if (wanted(j, e)) found[count++] = e->file.job;
    }
    pthread_mutex_lock(&j->gw->lock);
    link_client_jobs(j->gw->link, found, count);
    pthread_mutex_unlock(&j->gw->lock);
    free(found);
}

/* -- the thread -------------------------------------------------------------------------------- */

/* Also after the directory was away: then it is another one. */
static void watch_folder(struct jobs *j)
{
    if (j->inotify < 0 || j->watch >= 0) return;
    j->watch = inotify_add_watch(j->inotify, folder(j), IN_CLOSE_WRITE | IN_MOVED_TO | IN_DELETE |
                                 IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR);
}

static void drain_events(struct jobs *j)
{
    _Alignas(struct inotify_event) char bytes[4096];
    for (ssize_t got; (got = read(j->inotify, bytes, sizeof bytes)) > 0;) {
        for (ssize_t at = 0; at < got;) {
            const struct inotify_event *e = (const void *)(bytes + at);
            if (e->mask & IN_MOVE_SELF) inotify_rm_watch(j->inotify, j->watch);
            if (e->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED)) j->watch = -1;
            at += (ssize_t)(sizeof *e + e->len);
        }
    }
}

static void *run(void *arg)
{
    struct jobs *j = arg;
    for (;;) {
        watch_folder(j);              /* before looking: what changes then is an event */
        look(j);
        struct pollfd fds[] = { { .fd = j->stop, .events = POLLIN },
                                { .fd = j->inotify, .events = POLLIN } };
        poll(fds, 2, LOOK_MS);
        if (fds[0].revents) return NULL;
        if (fds[1].revents) drain_events(j);
    }
}

struct jobs *jobs_start(struct gateway *gw, struct why *why)
{
    DIR *dir = opendir(gw->config.jobs);
    if (!dir) {
        why_set(why, ERR_IO, "--jobs %.300s: %s", gw->config.jobs, strerror(errno));
        return NULL;
    }
    closedir(dir);
    struct jobs *j = mem_alloc(sizeof *j);
    j->gw = gw;
    j->watch = -1;
    j->stop = eventfd(0, EFD_CLOEXEC);
    j->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (j->inotify < 0) log_warn("inotify: %s; --jobs is looked at every 2 s", strerror(errno));
    if (j->stop < 0 || pthread_create(&j->thread, NULL, run, j) != 0) die("cannot start a thread");
    return j;
}

bool jobs_stop(struct jobs *j)
{
    struct timespec until;
    uint64_t one = 1;
    if (write(j->stop, &one, sizeof one) != sizeof one) return false;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STOP_S;
    if (pthread_timedjoin_np(j->thread, NULL, &until) != 0) return false;
    if (j->inotify >= 0) close(j->inotify);
    close(j->stop);
    free(j->entries);
    free(j);
    return true;
}
