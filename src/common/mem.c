/* common/mem.c - see mem.h. */
#include "common/mem.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/check.h"

void *mem_alloc(size_t bytes)
{
    void *at = calloc(1, bytes ? bytes : 1);
    if (!at) die("out of memory: %zu bytes", bytes);
    return at;
}

void *mem_array(size_t count, size_t bytes)
{
    void *at = calloc(count ? count : 1, bytes ? bytes : 1);
    if (!at) die("out of memory: %zu x %zu bytes", count, bytes);
    return at;
}

void *mem_resize(void *old, size_t count, size_t bytes)
{
    if (bytes && count > SIZE_MAX / bytes) die("out of memory: %zu x %zu bytes", count, bytes);
    void *at = realloc(old, bytes && count ? count * bytes : 1);
    if (!at) die("out of memory: %zu x %zu bytes", count, bytes);
    return at;
}

bool mem_populate(void *at, size_t bytes)
{
    if (madvise(at, bytes, MADV_POPULATE_WRITE) == 0 || errno == EINVAL) return true;
    if (errno == EFAULT) errno = ENOMEM; /* what SIGBUS would have been */
    return false;
}

char *mem_text_n(const char *text, size_t bytes)
{
    char *copy = mem_alloc(bytes + 1);
    memcpy(copy, text, bytes);
    return copy;
}

char *mem_text(const char *text)
{
    return text ? mem_text_n(text, strlen(text)) : NULL;
}

void buf_release(struct buf *b)
{
    free(b->data);
    *b = (struct buf){ .limit = b->limit };
}

void buf_clear(struct buf *b)
{
    b->size = 0;
    b->overflowed = false;
    if (b->data) b->data[0] = '\0';
}

static bool buf_reserve(struct buf *b, size_t more)
{
    if (b->overflowed) return false;
    if (more > SIZE_MAX / 4 - b->size || (b->limit && b->size + more > b->limit)) {
        b->overflowed = true;
        return false;
    }
    size_t need = b->size + more + 1;
    if (need <= b->room) return true;
    size_t room = b->room * 2 > need ? b->room * 2 : need < 64 ? 64 : need;
    b->data = mem_resize(b->data, room, 1);
    b->room = room;
    return true;
}

bool buf_add(struct buf *b, const void *data, size_t bytes)
{
    if (!buf_reserve(b, bytes)) return false;
    if (bytes) memcpy(b->data + b->size, data, bytes);
    b->size += bytes;
    b->data[b->size] = '\0';
    return true;
}

bool buf_text(struct buf *b, const char *text)
{
    return buf_add(b, text, strlen(text));
}

bool buf_char(struct buf *b, char c)
{
    return buf_add(b, &c, 1);
}

bool buf_print(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int bytes = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    CHECK(bytes >= 0);
    bool ok = buf_reserve(b, (size_t)bytes);
    if (ok) {
        vsnprintf(b->data + b->size, (size_t)bytes + 1, fmt, again);
        b->size += (size_t)bytes;
    }
    va_end(again);
    return ok;
}

char *buf_take(struct buf *b)
{
    if (!b->data) buf_add(b, "", 0);
    char *text = b->data;
    *b = (struct buf){ .limit = b->limit };
    return text;
}
