/* common/mem.h - memory that cannot fail, memory that may, and growing byte buffers.
 *
 * mem_* at start and for what the program itself needs: no memory means die().
 * buf_* for text and messages built piece by piece; a buffer has a limit and remembers that it
 * overflowed, so callers check once, at the end.
 */
#ifndef RANKSERVE_COMMON_MEM_H
#define RANKSERVE_COMMON_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23                      /* Linux 5.14 */
#endif
#define HUGE_PAGE (UINT64_C(2) << 20)               /* of x86-64                          */

void *mem_alloc(size_t bytes);                      /* zeroed; never NULL; free() it      */
void *mem_array(size_t count, size_t bytes);        /* zeroed; overflow is checked        */
void *mem_resize(void *at, size_t count, size_t bytes); /* as realloc; new part not zeroed */
char *mem_text(const char *text);                   /* a copy; NULL stays NULL            */
char *mem_text_n(const char *text, size_t bytes);   /* a NUL-terminated copy              */

/* Gives memory to a mapping of a file in memory, `bytes` from `at` on, which begins a page.  False
 * and errno: there is none, and to touch it would end the process.  Before Linux 5.14: true. */
bool mem_populate(void *at, size_t bytes);

/* Bytes that grow.  Always NUL-terminated one past `size` once anything was added. */
struct buf {
    char *data;
    size_t size;
    size_t room;
    size_t limit;      /* 0: none */
    bool overflowed;   /* an add would have passed the limit; nothing was added since */
};
void buf_release(struct buf *b);                    /* contents gone; *b is empty, usable */
void buf_clear(struct buf *b);                      /* size 0, memory kept                */
bool buf_add(struct buf *b, const void *data, size_t bytes);
bool buf_text(struct buf *b, const char *text);
bool buf_char(struct buf *b, char c);
bool buf_print(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
char *buf_take(struct buf *b);                      /* the text, the caller's; *b is empty */

#endif
