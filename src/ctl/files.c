/* ctl/files.c - whole files, written so that nobody sees half of one; see ctl.h. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl/ctl.h"

static bool read_all(int fd, size_t bytes_max, struct buf *out)
{
    char piece[65536];
    ssize_t got;
    out->limit = bytes_max;
    while ((got = read(fd, piece, sizeof piece)) != 0) {
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return false;
        if (!buf_add(out, piece, (size_t)got)) {
            errno = EFBIG;
            return false;
        }
    }
    buf_add(out, "", 0);
    return true;
}

void read_input(struct buf *out, size_t bytes_max)
{
    if (!read_all(STDIN_FILENO, bytes_max, out)) die("standard input: %s", strerror(errno));
}

enum err read_file(const char *path, size_t bytes_max, struct buf *out, struct why *why)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && read_all(fd, bytes_max, out);
    int error = errno;
    if (fd >= 0) close(fd);
    if (!ok) return why_set(why, ERR_IO, "%.300s: %s", path, strerror(error));
    return OK;
}

enum err write_file_atomic(const char *path, const void *data, size_t bytes, struct why *why)
{
    char *beside = mem_alloc(strlen(path) + 8);
    memcpy(beside, path, strlen(path));
    memcpy(beside + strlen(path), ".XXXXXX", 8);
    int fd = mkostemp(beside, O_CLOEXEC);      /* mode 0600 */
    bool ok = fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes;
    if (fd >= 0) ok &= close(fd) == 0;
    if (ok) ok = rename(beside, path) == 0;
    int error = errno;
    if (!ok && fd >= 0) unlink(beside);
    free(beside);
    if (!ok) return why_set(why, ERR_IO, "%.300s: %s", path, strerror(error));
    return OK;
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *walk)
{
    (void)s, (void)kind, (void)walk;
    return remove(path);
}

void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
