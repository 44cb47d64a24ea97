/* common/private_file.h - files that only their owner may read: keys, passwords, secrets. */
#ifndef RANKSERVE_COMMON_PRIVATE_FILE_H
#define RANKSERVE_COMMON_PRIVATE_FILE_H

#include "common/check.h"

/* All of a regular file that nobody but its owner has rights to; *got < room.  `what` begins the
 * line of an error, like "secret file".  ERR_IO; ERR_FORMAT: not a file; ERR_DENIED: its mode;
 * ERR_LIMIT: `room` bytes or more. */
enum err private_file_read(const char *what, const char *path, void *out, size_t room, size_t *got,
                           struct why *why);

#endif
