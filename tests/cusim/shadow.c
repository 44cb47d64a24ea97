/* tests/cusim/shadow.c - see shadow.h. */
#include "shadow.h"

#include <sys/mman.h>

#include "memory.h"

enum { PAGE = 1 << PAGE_BITS, PAGE_CELLS = PAGE / 4, MANY_THREADS = (1 << THREAD_BITS) - 1 };
#define MANY_BLOCKS 0xffffffffu

struct page {
    struct cell whole;                  /* what every cell is, while `cells` is NULL */
    struct cell *cells;
};

static struct page *pages;

bool shadow_on(void)
{
    static int on = -1;
    if (on < 0) on = setting_number("CUSIM_CHECK", 1) != 0;
    return on;
}

static struct page *page_of(uint64_t address)
{
    if (!pages) {
        size_t n = (DEVICES_MAX * DEVICE_SPAN) >> PAGE_BITS;
        pages = mmap(NULL, n * sizeof *pages, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        report_if(pages == MAP_FAILED, NOT_MODELLED, "no address space for shadow memory");
    }
    return &pages[(address - DEVICE_BASE) >> PAGE_BITS];
}

static struct cell *cells_of(uint64_t address)
{
    struct page *p = page_of(address);
    if (!p->cells) {
        p->cells = must_alloc(PAGE_CELLS * sizeof *p->cells);
        for (int i = 0; i < PAGE_CELLS; i++) p->cells[i] = p->whole;
    }
    return p->cells + (address % PAGE) / 4;
}

static void in_order_or_report(struct toucher *t, op_id earlier, const char *now, const char *then)
{
    if (earlier == t->in_order || earlier == t->op) return;
    report_if(!clock_before(earlier, t->clock), RACE_BETWEEN_STREAMS,
              "%s by '%s', and nothing puts the %s by '%s' before it", now, clock_op_name(t->op),
              then, clock_op_name(earlier));
    t->in_order = earlier;
}

static bool ordered_inside(const struct toucher *t, uint32_t who, uint32_t tick)
{
    uint32_t block = who >> THREAD_BITS;
    if (who == MANY_BLOCKS) return false;
    if (block != t->who >> THREAD_BITS) {
        return t->seen_blocks && t->seen_blocks[block / 64] >> block % 64 & 1;
    }
    if (who == t->who || tick >> 16 != t->tick >> 16) return true;
    if ((who & MANY_THREADS) == MANY_THREADS) return false;
    return (who ^ t->who) >> 5 == 0 && tick != t->tick;
}

_Noreturn static void inside_race(const struct toucher *t, uint32_t who, const char *now,
                                  const char *then)
{
    uint32_t block = who >> THREAD_BITS, thread = who & MANY_THREADS;
    report_if(who == MANY_BLOCKS, RACE_BETWEEN_BLOCKS,
              "%s, and %ss by threads of several blocks are not before it", now, then);
    report_if(block != t->who >> THREAD_BITS, RACE_BETWEEN_BLOCKS,
              "%s, and a %s by thread %u of block %u is not before it", now, then, thread, block);
    report_if(thread == MANY_THREADS, RACE_IN_BLOCK,
              "%s, and %ss by other threads with no barrier between", now, then);
    report(RACE_IN_BLOCK, "%s, and a %s by thread %u with no barrier between", now, then, thread);
}

static void after_write(struct toucher *t, const struct cell *c, uint8_t mask, enum touch touch)
{
    if (!(c->written & mask) || (touch == TOUCH_ATOMIC && c->atomic && c->writer == t->op)) return;
    const char *now = touch == TOUCH_READ ? "read" : "write";
    in_order_or_report(t, c->writer, now, "write");
    if (c->writer == t->op && !ordered_inside(t, c->writer_who, c->writer_tick)) {
        inside_race(t, c->writer_who, now, "write");
    }
}

static void after_read(struct toucher *t, const struct cell *c, uint8_t mask)
{
    if (!(c->read & mask)) return;
    in_order_or_report(t, c->reader, "write", "read");
    in_order_or_report(t, c->reader2, "write", "read");
    if (c->reader == t->op && !ordered_inside(t, c->reader_who, c->reader_tick)) {
        inside_race(t, c->reader_who, "write", "read");
    }
}

static void note_write(struct toucher *t, struct cell *c, uint8_t mask, enum touch touch)
{
    bool again = c->writer == t->op && c->writer_who == t->who && c->writer_tick == t->tick;
    c->written = again ? c->written | mask : mask;
    c->writer = t->op;
    c->writer_who = t->who;
    c->writer_tick = t->tick;
    c->atomic = touch == TOUCH_ATOMIC;
    c->pending = touch == TOUCH_ISSUE;
    c->valid |= mask;
    c->read &= (uint8_t)~mask;
    if (!c->read) c->reader = c->reader2 = 0;
}

static void note_read(struct toucher *t, struct cell *c, uint8_t mask)
{
    if (c->reader == t->op && c->read) {
        bool later = c->reader_tick >> 16 != t->tick >> 16;
        if ((c->reader_who ^ t->who) >> THREAD_BITS) {
            c->read |= mask;
            c->reader_who = MANY_BLOCKS;
        } else {
            c->read = later ? mask : c->read | mask;
            if (c->reader_who != t->who) c->reader_who = later ? t->who : t->who | MANY_THREADS;
        }
        c->reader_tick = t->tick;
        return;
    }
    if (c->reader && c->read && !clock_before(c->reader, t->clock)) c->reader2 = c->reader;
    c->reader = t->op;
    c->reader_who = t->who;
    c->reader_tick = t->tick;
    c->read = mask;
}

static void touch_cell(struct toucher *t, struct cell *c, uint8_t mask, enum touch touch)
{
    report_if(c->pending && touch != TOUCH_ARRIVAL, ASYNC_COPY_NOT_WAITED,
              "shared memory is touched that cp.async will write");
    report_if((touch == TOUCH_READ || touch == TOUCH_ATOMIC) && (c->valid & mask) != mask,
              UNINITIALISED, "read of memory that nothing has written");
    if (touch != TOUCH_ARRIVAL) after_write(t, c, mask, touch);
    if (touch == TOUCH_READ) {
        note_read(t, c, mask);
    } else {
        if (touch != TOUCH_ARRIVAL) after_read(t, c, mask);
        note_write(t, c, mask, touch);
    }
}

/* A read of a whole word of shared memory that was written before the last barrier: most are.  It
 * finds nothing, and changes at most who has read; of other blocks these cells know nothing. */
static inline bool read_settled(const struct toucher *t, struct cell *c)
{
    uint32_t interval = t->tick >> 16;
    if (c->valid != 15 || c->pending || c->writer_tick >> 16 == interval) return false;
    if (c->reader_tick >> 16 != interval || c->read != 15) {
        c->reader = t->op;
        c->reader_who = t->who;
        c->read = 15;
    } else if (c->reader_who != t->who) {
        c->reader_who |= MANY_THREADS;
    }
    c->reader_tick = t->tick;
    return true;
}

/* The bytes from `start` to `end` that are in this word. */
static uint8_t mask_of(uint64_t word, uint64_t start, uint64_t end)
{
    uint8_t mask = 15;
    if (start > word) mask &= (uint8_t)(15 << (start - word));
    if (end < word + 4) mask &= (uint8_t)(15 >> (word + 4 - end));
    return mask;
}

/* `c` is the cell of the first word. */
static __attribute__((noinline)) void touch_cells(struct toucher *t, struct cell *c,
                                                  uint64_t start, uint64_t end, enum touch touch)
{
    for (uint64_t word = start & ~3ull; word < end; word += 4, c++) {
        touch_cell(t, c, mask_of(word, start, end), touch);
    }
}

void shadow_touch(struct toucher *t, uint64_t address, uint32_t bytes, enum touch touch)
{
    struct cell *c = cells_of(address);     /* aligned, so within one page */
    if (bytes >= 4) {
        for (uint32_t k = 0; k < bytes / 4; k++) touch_cell(t, c + k, 15, touch);
    } else {
        touch_cells(t, c, address, address + bytes, touch);
    }
}

void shadow_shared(struct toucher *t, struct cell *cells, uint32_t offset, uint32_t bytes,
                   enum touch touch)
{
    uint32_t end = offset + bytes;
    if (touch == TOUCH_READ && bytes >= 4) {
        while (offset < end && read_settled(t, &cells[offset / 4])) offset += 4;
        if (offset == end) return;
    }
    touch_cells(t, cells + offset / 4, offset, end, touch);
}

static void bulk_page(struct toucher *t, uint64_t start, uint64_t end, enum touch touch)
{
    struct page *p = page_of(start);
    bool whole = end - start == PAGE;
    if (whole && !p->cells) {
        touch_cell(t, &p->whole, 15, touch);
        return;
    }
    touch_cells(t, cells_of(start), start, end, touch);
    if (whole && touch == TOUCH_WRITE) {
        p->whole = p->cells[0];
        free(p->cells);
        p->cells = NULL;
    }
}

void shadow_bulk(struct toucher *t, uint64_t address, uint64_t bytes, enum touch touch)
{
    const struct region *hint = NULL;
    if (!bytes) return;
    memory_region(address, bytes, t->device, &hint);
    if (!shadow_on()) return;
    for (uint64_t at = address, end = address + bytes; at < end;) {
        uint64_t next = (at | (PAGE - 1)) + 1;
        if (next > end) next = end;
        bulk_page(t, at, next, touch);
        at = next;
    }
}

void shadow_forget(uint64_t address, uint64_t bytes)
{
    for (uint64_t at = address & ~(uint64_t)(PAGE - 1); at < address + bytes; at += PAGE) {
        struct page *p = page_of(at);
        free(p->cells);
        *p = (struct page){0};
    }
}
