/* gateway/jobs_json.c - see jobs_json.h. */
#include "gateway/jobs_json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

enum { STALE_S = 60 };                /* clocks of nodes differ */

static enum err read_all(const char *path, struct buf *out, struct why *why)
{
    struct stat s;
    char piece[4096];
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &s) < 0) {
        why_set(why, ERR_IO, "%s", strerror(errno));
    } else if (!S_ISREG(s.st_mode)) {
        why_set(why, ERR_FORMAT, "it is not a file");
    } else if ((s.st_uid != geteuid() && s.st_uid != 0) || (s.st_mode & 022)) {
        why_set(why, ERR_DENIED, "it must be yours, and writable by nobody else");
    } else {
        out->limit = JOB_FILE_BYTES_MAX;
        while ((got = read(fd, piece, sizeof piece)) > 0 && buf_add(out, piece, (size_t)got)) { }
        if (got < 0) why_set(why, ERR_IO, "%s", strerror(errno));
        else if (got == 0) why->text[0] = '\0';
        else why_set(why, ERR_LIMIT, "it is longer than %d bytes", JOB_FILE_BYTES_MAX);
    }
    if (fd >= 0) close(fd);
    return why->text[0] ? ERR_IO : OK;
}

/* A text member that fits; NULL with *why when it does not, or is not there. */
static const char *text_of(const json_t *o, const char *name, size_t room, struct why *why)
{
    const char *text = json_string_value(json_object_get(o, name));
    if (!text || !*text) why_set(why, ERR_FORMAT, "\"%s\" must be a text", name);
    else if (strlen(text) >= room) why_set(why, ERR_LIMIT, "\"%s\" is too long", name);
    else return text;
    return NULL;
}

static enum err take_state(const json_t *o, struct job_file *f, struct why *why)
{
    const char *state = text_of(o, "state", 32, why);
    if (!state) return ERR_FORMAT;
    f->starting = strcmp(state, "starting") == 0;
    f->job.draining = strcmp(state, "draining") == 0;
    if (f->starting || f->job.draining || strcmp(state, "live") == 0) return OK;
    return why_set(why, ERR_FORMAT, "\"state\" is '%s'; it must be starting, live or draining",
                   state);
}

static enum err take_times(const json_t *o, struct job_file *f, struct why *why)
{
    const json_t *started = json_object_get(o, "started"), *end = json_object_get(o, "expires");
    if (!json_is_integer(started)) {
        return why_set(why, ERR_FORMAT, "\"started\" must be seconds since 1970");
    }
    if (end && !json_is_null(end) && !json_is_integer(end)) {
        return why_set(why, ERR_FORMAT, "\"expires\" must be seconds since 1970, or null");
    }
    f->job.started = json_integer_value(started);
    f->job.expires = json_integer_value(end);
    if (f->job.expires && f->job.expires < time(NULL) - STALE_S) {
        return why_set(why, ERR_GONE, "it is stale: the job's time was over at %lld (seconds since "
                       "1970)", (long long)f->job.expires);
    }
    return OK;
}

static enum err take_link(const json_t *o, struct job_file *f, struct why *why)
{
    struct link_target *job = &f->job;
    const char *where = text_of(o, "link", sizeof job->where, why);
    const char *secret = where ? text_of(o, "secret_file", PATH_MAX, why) : NULL;
    if (!secret) return ERR_FORMAT;
    snprintf(job->where, sizeof job->where, "%s", where);
    enum err e = link_secret_read(secret, job->secret, why);
    if (e != OK) return e;
    if (strchr(where, '/')) return OK;
    if (link_target_resolve(where, &job->address, &job->address_bytes)) return OK;
    return why_set(why, ERR_IO, "\"link\" is %s, which no name server knows", where);
}

static enum err take_all(const json_t *o, struct job_file *f, struct why *why)
{
    const char *id = text_of(o, "job_id", sizeof f->job.name, why);
    if (!id) return ERR_FORMAT;
    snprintf(f->job.name, sizeof f->job.name, "%s", id);
    const char *service = json_string_value(json_object_get(o, "name"));
    snprintf(f->service, sizeof f->service, "%s", service ? service : "");
    enum err e = take_state(o, f, why);
    if (e == OK) e = take_times(o, f, why);
    if (e == OK && !f->starting) e = take_link(o, f, why);
    return e;
}

enum err job_file_read(const char *path, struct job_file *out, struct why *why)
{
    struct buf text = { 0 };
    json_error_t error;
    *out = (struct job_file){ 0 };
    *why = (struct why){ 0 };
    enum err e = read_all(path, &text, why);
    if (e == OK) {
        json_t *o = json_loadb(text.data ? text.data : "", text.size, JSON_REJECT_DUPLICATES,
                               &error);
        if (json_is_object(o)) e = take_all(o, out, why);
        else e = why_set(why, ERR_FORMAT, "%s", o ? "it is not a JSON object" : error.text);
        json_decref(o);
    }
    buf_release(&text);
    return e;
}
