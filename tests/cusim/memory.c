/* tests/cusim/memory.c - see memory.h. */
#include "memory.h"

#include <signal.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
uint8_t *device_alias;
static uint64_t memory_bytes, used_bytes[DEVICES_MAX], top[DEVICES_MAX];
static struct region *regions[1 << 16];     /* by start; a piece after the region it lies in */
static uint32_t region_count;

static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    uint64_t at = (uint64_t)info->si_addr;
    if (is_device(at)) {
        place = (struct place){0};
        report(HOST_TOUCHES_DEVICE_MEMORY, "the host reads or writes device address %#lx", at);
    }
    signal(signal_number, SIG_DFL);         /* not ours: the instruction runs again and faults */
}

void memory_open(int devices, uint64_t bytes_each)
{
    memory_bytes = bytes_each;
    size_t span = DEVICES_MAX * DEVICE_SPAN;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *barred = mmap((void *)DEVICE_BASE, span, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0);
    device_alias = mmap(NULL, span, PROT_READ | PROT_WRITE, flags, -1, 0);
    report_if(barred != (void *)DEVICE_BASE || device_alias == MAP_FAILED, NOT_MODELLED,
              "no address space for %d devices", devices);
    for (int d = 0; d < DEVICES_MAX; d++) {
        top[d] = DEVICE_BASE + (uint64_t)d * DEVICE_SPAN + (1 << 20);
    }
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGBUS, &fault, NULL);
}

/* The number of regions that start at or before `address`. */
static uint32_t regions_before(uint64_t address)
{
    uint32_t low = 0, high = region_count;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (regions[mid]->start <= address) low = mid + 1;
        else high = mid;
    }
    return low;
}

/* The last that starts at or before it, or NULL. */
static struct region *region_at(uint64_t address)
{
    uint32_t n = regions_before(address);
    return n ? regions[n - 1] : NULL;
}

static struct region *add_region(uint64_t start, uint64_t bytes, int device)
{
    static uint32_t names;
    report_if(region_count == sizeof regions / sizeof *regions, NOT_MODELLED,
              "more than %u regions of memory", region_count);
    struct region *r = must_alloc(sizeof *r);
    *r = (struct region){.start = start, .end = start + bytes, .device = device, .live = true,
                         .name = ++names};
    uint32_t at = regions_before(start);
    memmove(regions + at + 1, regions + at, (region_count - at) * sizeof *regions);
    regions[at] = r;
    region_count++;
    return r;
}

/* The region itself stays: kernels that ran may still hold it as their last answer. */
static void remove_region(uint32_t at)
{
    memmove(regions + at, regions + at + 1, (--region_count - at) * sizeof *regions);
}

uint64_t memory_take(int device, uint64_t bytes)
{
    HOLD(&lock);
    if (bytes > memory_bytes - used_bytes[device]) return 0;
    uint64_t start = top[device];
    add_region(start, bytes, device);
    top[device] += (bytes + MEMORY_ALIGN + 4095) & ~4095ull;    /* never adjacent */
    used_bytes[device] += bytes;
    return start;
}

uint64_t memory_free_bytes(int device) { return memory_bytes - used_bytes[device]; }
uint64_t memory_total_bytes(void) { return memory_bytes; }

static struct region *allocation_at(uint64_t address)
{
    for (uint32_t i = regions_before(address); i > 0; i--) {
        struct region *r = regions[i - 1];
        if (r->piece) continue;
        bool holds = r->device != PINNED && (address < r->end || address == r->start);
        return holds ? r : NULL;
    }
    return NULL;
}

uint64_t memory_give(uint64_t address, int device)
{
    HOLD(&lock);
    struct region *r = allocation_at(address);
    report_if(!r || r->start != address, BAD_FREE, "cudaFree of %#lx, which cudaMalloc never gave",
              address);
    report_if(!r->live, BAD_FREE, "cudaFree of %#lx a second time", address);
    report_if(r->device != device, WRONG_DEVICE,
              "cudaFree of memory of device %d while device %d is current", r->device, device);
    r->live = false;
    for (uint32_t i = regions_before(address); i < region_count; i++) {
        if (!regions[i]->piece || regions[i]->start >= r->end) break;
        regions[i]->live = false;
    }
    used_bytes[r->device] -= r->end - r->start;
    uint64_t from = (r->start + 4095) & ~4095ull, to = r->end & ~4095ull;
    if (to > from) madvise(device_bytes(from), to - from, MADV_DONTNEED);
    return r->end - r->start;
}

const struct region *memory_leak(void)
{
    for (uint32_t i = 0; i < region_count; i++) {
        if (regions[i]->live && !regions[i]->piece) return regions[i];
    }
    return NULL;
}

/* Pinned memory: regions of the host's addresses, which may come again. */

void *pinned_take(size_t bytes)
{
    void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    HOLD(&lock);
    add_region((uint64_t)start, bytes, PINNED);
    return start;
}

void pinned_give(void *start)
{
    HOLD(&lock);
    const struct region *r = region_at((uint64_t)start);
    report_if(!r || r->device != PINNED || r->start != (uint64_t)start, BAD_FREE,
              "cudaFreeHost of %p, which is not pinned memory, or twice", start);
    transfers_forbid((uint8_t *)r->start, (uint8_t *)r->end);
    remove_region(regions_before(r->start) - 1);
    munmap(start, r->end - r->start);
}

uint32_t pinned_name(const void *start, size_t bytes)
{
    HOLD(&lock);
    const struct region *r = region_at((uint64_t)start);
    return r && r->device == PINNED && (uint64_t)start + bytes <= r->end ? r->name : 0;
}

/* Pieces, as the allocator says. */

void cusim_carve(const void *piece, size_t bytes);
void cusim_uncarve(const void *piece);

void cusim_carve(const void *piece, size_t bytes)
{
    uint64_t start = (uint64_t)piece;
    HOLD(&lock);
    struct region *r = allocation_at(start);
    report_if(!r || !r->live || start + bytes > r->end, GLOBAL_BOUNDS,
              "a piece of %zu bytes is carved where no memory is", bytes);
    r->carved = true;
    for (uint32_t i = 0; i < region_count; i++) {       /* an earlier piece here is gone */
        struct region *old = regions[i];
        if (!old->piece || old->start >= start + bytes || old->end <= start) continue;
        report_if(old->live, GLOBAL_BOUNDS, "two pieces of one allocation overlap");
        remove_region(i--);
    }
    add_region(start, bytes, r->device)->piece = true;
}

void cusim_uncarve(const void *piece)
{
    HOLD(&lock);
    struct region *r = region_at((uint64_t)piece);
    report_if(!r || !r->piece || !r->live || r->start != (uint64_t)piece, BAD_FREE,
              "a piece is given back that was not carved, or twice");
    r->live = false;
}

_Noreturn static void outside(const struct region *r, uint64_t address, uint64_t bytes)
{
    report_if(!r, GLOBAL_BOUNDS, "%lu bytes at %#lx, where nothing was allocated", bytes, address);
    report(GLOBAL_BOUNDS, "%lu bytes at offset %lu of %s of %lu bytes", bytes, address - r->start,
           r->piece ? "a piece" : "an allocation", r->end - r->start);
}

const struct region *memory_region(uint64_t address, uint64_t bytes, int device,
                                   const struct region **hint)
{
    const struct region *r = *hint;
    if (r && address >= r->start && address + bytes <= r->end && r->live && !r->carved) return r;
    report_if(!is_device(address), DEVICE_TOUCHES_HOST_MEMORY,
              "%lu bytes at %#lx, which is not device memory", bytes, address);
    HOLD(&lock);
    r = region_at(address);
    if (!r || address + bytes > r->end || address + bytes < address) outside(r, address, bytes);
    report_if(!r->live, USE_AFTER_FREE, "%lu bytes at offset %lu of memory that was given back",
              bytes, address - r->start);
    if (r->carved) outside(r, address, bytes);
    report_if(device != r->device, WRONG_DEVICE, "device %d touches memory of device %d", device,
              r->device);
    return *hint = r;
}
