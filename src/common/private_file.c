/* common/private_file.c - see private_file.h. */
#include "common/private_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum err read_all(int fd, char *out, size_t room, size_t *got)
{
    *got = 0;
    while (*got < room) {
        ssize_t n = read(fd, out + *got, room - *got);
        if (n == 0) return OK;
        if (n < 0 && errno != EINTR) return ERR_IO;
        if (n > 0) *got += (size_t)n;
    }
    return ERR_LIMIT;
}

enum err private_file_read(const char *what, const char *path, void *out, size_t room, size_t *got,
                           struct why *why)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return why_set(why, ERR_IO, "%s %s: %s", what, path, strerror(errno));
    bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode), closed = !(st.st_mode & 077);
    enum err e = regular && closed ? read_all(fd, out, room, got) : ERR_DENIED;
    int error = errno;
    close(fd);
    if (!regular) return why_set(why, ERR_FORMAT, "%s %s: not a file", what, path);
    if (!closed) {
        return why_set(why, ERR_DENIED, "%s %s: others may read it; chmod 600", what, path);
    }
    if (e == ERR_IO) return why_set(why, e, "%s %s: %s", what, path, strerror(error));
    if (e) return why_set(why, e, "%s %s: %zu bytes or more", what, path, room);
    return OK;
}
