/* tests/cusim/shadow.c - see shadow.h. */
#include "shadow.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memory.h"
#include "report.h"

enum { PAGE = 1 << PAGE_BITS, PAGE_CELLS = PAGE / 4, MANY_THREADS = (1 << THREAD_BITS) - 1 };
#define MANY_BLOCKS 0xffffffffu

struct cell {
    op_id writer, reader, reader2;      /* reader2: another operation that reader does not cover */
    uint32_t writer_who, writer_tick, reader_who, reader_tick;
    uint8_t written, read, valid, atomic;
};

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
        if (pages == MAP_FAILED) report(NOT_MODELLED, "no address space for shadow memory");
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
    if (!clock_before(earlier, t->clock)) {
        report(STREAM_RACE, "%s by '%s', and nothing puts the %s by '%s' before it", now,
               clock_op_name(t->op), then, clock_op_name(earlier));
    }
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
    if (who == MANY_BLOCKS) {
        report(GRID_RACE, "%s, and %ss by threads of several blocks are not before it", now, then);
    }
    if (block != t->who >> THREAD_BITS) {
        report(GRID_RACE, "%s, and a %s by thread %u of block %u is not before it", now, then,
               thread, block);
    }
    if (thread == MANY_THREADS) {
        report(BLOCK_RACE, "global memory: %s, and %ss by other threads with no barrier between",
               now, then);
    }
    report(BLOCK_RACE, "global memory: %s, and a %s by thread %u with no barrier between", now,
           then, thread);
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
    c->valid |= mask;
    c->read &= (uint8_t)~mask;
    if (!c->read) c->reader = c->reader2 = 0;
}

static void note_read(struct toucher *t, struct cell *c, uint8_t mask)
{
    if (c->reader == t->op && c->read) {
        c->read |= mask;
        if (c->reader_who >> THREAD_BITS != t->who >> THREAD_BITS) {
            c->reader_who = MANY_BLOCKS;
        } else if (c->reader_who != t->who) {
            bool later = c->reader_tick >> 16 != t->tick >> 16;
            c->reader_who = later ? t->who : (t->who | MANY_THREADS);
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
    if (touch != TOUCH_WRITE && (c->valid & mask) != mask) {
        report(UNINITIALISED, "read of device memory that nothing has written");
    }
    after_write(t, c, mask, touch);
    if (touch == TOUCH_READ) {
        note_read(t, c, mask);
    } else {
        after_read(t, c, mask);
        note_write(t, c, mask, touch);
    }
}

static uint8_t mask_of(uint64_t word, uint64_t start, uint64_t end)
{
    uint8_t mask = 15;
    if (start > word) mask &= (uint8_t)(15 << (start - word));
    if (end < word + 4) mask &= (uint8_t)(15 >> (word + 4 - end));
    return mask;
}

void shadow_touch(struct toucher *t, uint64_t address, uint32_t bytes, enum touch touch)
{
    struct cell *c = cells_of(address);     /* aligned, so within one page */
    if (bytes >= 4) {
        for (uint32_t i = 0; i < bytes / 4; i++) touch_cell(t, c + i, 15, touch);
    } else {
        touch_cell(t, c, mask_of(address & ~3ull, address, address + bytes), touch);
    }
}

static void bulk_page(struct toucher *t, uint64_t start, uint64_t end, enum touch touch)
{
    struct page *p = page_of(start);
    bool whole = end - start == PAGE;
    if (whole && !p->cells) {
        touch_cell(t, &p->whole, 15, touch);
        return;
    }
    struct cell *c = cells_of(start);
    for (uint64_t word = start & ~3ull; word < end; word += 4) {
        touch_cell(t, c++, mask_of(word, start, end), touch);
    }
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

/* Shared memory. */

static bool shared_ordered(uint32_t tick, uint16_t who, uint32_t now, uint32_t thread)
{
    if (!tick || tick >> 16 != now >> 16 || who == thread) return true;
    return who != MANY && who / 32 == thread / 32 && tick != now;
}

static void shared_check(const struct shared_cell *c, uint8_t mask, enum touch touch,
                         uint32_t thread, uint32_t tick)
{
    const char *now = touch == TOUCH_READ ? "read" : "write";
    if (c->pending & mask) {
        report(ASYNC_NOT_WAITED, "%s of shared memory that cp.async will write", now);
    }
    if (touch != TOUCH_WRITE && (c->valid & mask) != mask) {
        report(UNINITIALISED, "read of shared memory that nothing has written");
    }
    if (c->written & mask && !(touch == TOUCH_ATOMIC && c->atomic) &&
        !shared_ordered(c->wrote_tick, c->writer, tick, thread)) {
        report(BLOCK_RACE, "shared memory: %s, and a write by thread %u with no barrier between",
               now, c->writer);
    }
    if (touch != TOUCH_READ && c->read & mask &&
        !shared_ordered(c->read_tick, c->reader, tick, thread)) {
        report(BLOCK_RACE, "shared memory: write, and a read by %s%u with no barrier between",
               c->reader == MANY ? "several threads " : "thread ", c->reader);
    }
}

static void shared_note(struct shared_cell *c, uint8_t mask, enum touch touch, uint32_t thread,
                        uint32_t tick)
{
    if (touch == TOUCH_READ) {
        bool again = c->read_tick >> 16 == tick >> 16 && c->read && c->reader != thread;
        c->read = c->read_tick >> 16 == tick >> 16 ? c->read | mask : mask;
        c->reader = again ? MANY : (uint16_t)thread;
        c->read_tick = tick;
        return;
    }
    c->written = c->wrote_tick == tick && c->writer == thread ? c->written | mask : mask;
    c->wrote_tick = tick;
    c->writer = (uint16_t)thread;
    c->valid |= mask;
    c->atomic = touch == TOUCH_ATOMIC;
    c->read &= (uint8_t)~mask;
}

/* A read that finds nothing, and changes at most who has read. */
static bool is_settled(struct shared_cell *c, uint32_t thread, uint32_t tick)
{
    if (c->valid != 15 || c->pending || c->wrote_tick >> 16 == tick >> 16) return false;
    if (c->read_tick >> 16 == tick >> 16 && c->read == 15) {
        if (c->reader != thread) c->reader = MANY;
    } else {
        c->reader = (uint16_t)thread;
        c->read = 15;
    }
    c->read_tick = tick;
    return true;
}

void shadow_shared(struct shared_cell *cells, uint32_t offset, uint32_t bytes, enum touch touch,
                   uint32_t thread, uint32_t tick)
{
    struct shared_cell *c = cells + offset / 4;
    if (touch == TOUCH_READ && bytes >= 4) {        /* most accesses are reads of settled words */
        uint32_t words = bytes / 4, settled = 0;
        while (settled < words && is_settled(&c[settled], thread, tick)) settled++;
        c += settled;
        offset += 4 * settled;
        bytes -= 4 * settled;
    }
    for (uint32_t word = offset & ~3u; word < offset + bytes; word += 4, c++) {
        uint8_t mask = bytes >= 4 ? 15 : mask_of(word, offset, offset + bytes);
        shared_check(c, mask, touch, thread, tick);
        shared_note(c, mask, touch, thread, tick);
    }
}

void shadow_shared_pending(struct shared_cell *cells, uint32_t offset, uint32_t bytes,
                           uint32_t thread, uint32_t tick)
{
    shadow_shared(cells, offset, bytes, TOUCH_WRITE, thread, tick);
    for (uint32_t i = 0; i < bytes / 4; i++) cells[offset / 4 + i].pending = 15;
}

void shadow_shared_arrived(struct shared_cell *cells, uint32_t offset, uint32_t bytes,
                           uint32_t thread, uint32_t tick)
{
    for (uint32_t i = 0; i < bytes / 4; i++) {
        cells[offset / 4 + i].pending = 0;
        shared_note(&cells[offset / 4 + i], 15, TOUCH_WRITE, thread, tick);
    }
}
