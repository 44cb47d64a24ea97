/* ctl/run_dir.c - see run_dir.h. */
#include "ctl/run_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <jansson.h>

#include "common/config_table.h"
#include "common/hash.h"
#include "common/limits.h"
#include "ctl/ctl.h"

enum { RUN_DIR_BYTES_MAX = sizeof ((struct sockaddr_un *)0)->sun_path - 16 };

static const char *keep(const char *dir, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%.200s/%s", dir, name);
    return config_keep(path, strlen(path));
}

static const char *hex_text(size_t bytes)
{
    unsigned char raw[SECRET_BYTES];
    char hex[2 * SECRET_BYTES + 1];
    CHECK(bytes <= sizeof raw);
    secret_random(raw, bytes);
    for (size_t i = 0; i < bytes; i++) snprintf(hex + 2 * i, 3, "%02x", raw[i]);
    return config_keep(hex, 2 * bytes);
}

/* The lock ends with this process, however it ends; children do not inherit it. */
static void hold_directory(const char *dir)
{
    int fd = open(keep(dir, "lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) close(fd);
}

static bool abandoned(const char *dir)
{
    char path[600];
    struct stat s;
    if (lstat(dir, &s) < 0 || !S_ISDIR(s.st_mode) || s.st_uid != geteuid()) return false;
    snprintf(path, sizeof path, "%s/lock", dir);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;         /* not ours, or being made */
    bool free_now = flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return free_now;
}

/* Removes what others that were killed have left beside `made`. */
static void clean_up(const char *made)
{
    char base[256], path[512];
    snprintf(base, sizeof base, "%s", made);
    char *slash = strrchr(base, '/'), *end = strrchr(base, '-');
    *slash = '\0';
    size_t prefix = (size_t)(end - slash);
    DIR *all = opendir(base);
    for (struct dirent *d; all && (d = readdir(all));) {
        if (strncmp(d->d_name, slash + 1, prefix) != 0) continue;
        if (strlen(d->d_name) != strlen(slash + 1)) continue;
        snprintf(path, sizeof path, "%s/%s", base, d->d_name);
        if (strcmp(path, made) != 0 && abandoned(path)) remove_tree(path);
    }
    if (all) closedir(all);
}

static enum err make_directory(struct config *c, bool *given, struct why *why)
{
    char path[256];
    const char *base = getenv("XDG_RUNTIME_DIR");
    *given = *c->run_dir != '\0';
    if (*given) {
        struct stat s;
        bool there = mkdir(c->run_dir, 0700) == 0 || errno == EEXIST;
        if (!there || stat(c->run_dir, &s) < 0 || !S_ISDIR(s.st_mode)) {
            return why_set(why, ERR_IO, "--run-dir %.300s: %s", c->run_dir,
                           there ? "not a directory" : strerror(errno));
        }
        if (s.st_uid != geteuid() || (s.st_mode & 077)) {
            return why_set(why, ERR_DENIED, "--run-dir %.300s must be yours, with mode 0700",
                           c->run_dir);
        }
        return OK;
    }
    bool usable = base && base[0] == '/' && strlen(base) < RUN_DIR_BYTES_MAX - 20 &&
                  access(base, W_OK | X_OK) == 0;
    if (usable) snprintf(path, sizeof path, "%.200s/rankserve-XXXXXX", base);
    else snprintf(path, sizeof path, "/tmp/rankserve-%u-XXXXXX", (unsigned)geteuid());
    if (!mkdtemp(path)) return why_set(why, ERR_IO, "%s: %s", path, strerror(errno));
    c->run_dir = config_keep(path, strlen(path));
    hold_directory(path);
    clean_up(path);
    return OK;
}

enum err run_dir_make(struct config *c, bool *given, struct why *why)
{
    enum err e = make_directory(c, given, why);
    if (e != OK) return e;
    if (strlen(c->run_dir) > RUN_DIR_BYTES_MAX) {
        return why_set(why, ERR_LIMIT, "--run-dir is longer than %d bytes, too long for a socket",
                       RUN_DIR_BYTES_MAX);
    }
    c->link = keep(c->run_dir, "link");
    c->secret_file = keep(c->run_dir, "secret");
    c->status_file = keep(c->run_dir, "status");
    if (!*c->job_id) c->job_id = hex_text(6);
    unlink(c->status_file);
    const char *secret = hex_text(SECRET_BYTES);
    return write_file_atomic(c->secret_file, secret, strlen(secret), why);
}

void run_dir_remove(const struct config *c, bool given)
{
    if (!given) {
        remove_tree(c->run_dir);
        return;
    }
    unlink(c->link);
    unlink(keep(c->run_dir, "link.port"));
    unlink(c->secret_file);
    unlink(c->status_file);
}

int run_dir_status(const struct config *c, char *out, size_t bytes)
{
    struct buf text = { 0 };
    struct why why;
    int code = -1;
    if (read_file(c->status_file, 65536, &text, &why) == OK) {
        json_t *o = json_loadb(text.data, text.size, 0, NULL);
        const char *line = json_string_value(json_object_get(o, "why"));
        json_t *number = json_object_get(o, "code");
        code = json_is_integer(number) ? (int)json_integer_value(number) : 1;
        snprintf(out, bytes, "%s", line ? line : "");
        json_decref(o);
    }
    buf_release(&text);
    return code;
}
