/* gateway/auth.c - keys are kept as hashes under a random key; see auth.h. */
#include "gateway/auth.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/hash.h"
#include "common/mem.h"

enum { KEYS_MAX = 4096, KEY_BYTES_MAX = 512 };

struct auth {
    struct hash_secret secret;
    struct hash128 *keys;
    size_t count;
};

static void add(struct auth *a, const char *key, size_t bytes)
{
    a->keys = mem_resize(a->keys, a->count + 1, sizeof *a->keys);
    a->keys[a->count++] = hash_sip128(a->secret, key, bytes);
}

static enum err read_keys(struct auth *a, FILE *in, const char *path, struct why *why)
{
    struct stat st;
    if (fstat(fileno(in), &st) != 0 || !S_ISREG(st.st_mode)) {
        return why_set(why, ERR_FORMAT, "API key file %s: not a regular file", path);
    }
    if (st.st_mode & 077) {
        return why_set(why, ERR_DENIED, "API key file %s: others may read it; chmod 600", path);
    }
    char line[KEY_BYTES_MAX + 2];
    while (fgets(line, sizeof line, in)) {
        size_t bytes = strcspn(line, "\r\n");
        if (bytes > KEY_BYTES_MAX || a->count >= KEYS_MAX) {
            return why_set(why, ERR_LIMIT, "API key file %s: over %d keys or %d bytes a key", path,
                           KEYS_MAX, KEY_BYTES_MAX);
        }
        while (bytes && (line[bytes - 1] == ' ' || line[bytes - 1] == '\t')) bytes--;
        if (bytes && line[0] != '#') add(a, line, bytes);
    }
    if (!a->count) return why_set(why, ERR_FORMAT, "API key file %s: holds no key", path);
    return OK;
}

enum err auth_open(struct auth **out, const char *path, struct why *why)
{
    struct auth *a = mem_alloc(sizeof *a);
    secret_random(&a->secret, sizeof a->secret);
    const char *key = getenv("RANKSERVE_API_KEY");
    enum err e = OK;
    if (path[0]) {
        FILE *in = fopen(path, "re");
        if (in) {
            e = read_keys(a, in, path, why);
            fclose(in);
        } else {
            e = why_set(why, ERR_IO, "API key file %s: %s", path, strerror(errno));
        }
    } else if (key && key[0]) {
        add(a, key, strlen(key));
    }
    if (e == OK) *out = a;
    else auth_close(a);
    return e;
}

void auth_close(struct auth *a)
{
    if (!a) return;
    free(a->keys);
    free(a);
}

bool auth_asks(const struct auth *a)
{
    return a->count > 0;
}

bool auth_allows(const struct auth *a, const char *header)
{
    if (!a->count) return true;
    if (!header || strncasecmp(header, "Bearer ", 7) != 0) return false;
    const char *key = header + 7;
    while (*key == ' ') key++;
    struct hash128 given = hash_sip128(a->secret, key, strlen(key));
    bool found = false;
    for (size_t i = 0; i < a->count; i++) found |= secret_equal(&given, &a->keys[i], sizeof given);
    return found;
}
