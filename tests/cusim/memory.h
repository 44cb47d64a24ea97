/* tests/cusim/memory.h - device memory, pinned memory and what is where.
 *
 * Device addresses are a reserved range that the host may not touch: reading one is a fault, which
 * is reported.  The bytes lie elsewhere (`device_bytes`).  Addresses are never used twice, so that
 * use after free is certain to be seen.
 *
 * Functions that take or give device memory run under the runtime's lock or on the device thread.
 */
#ifndef CUSIM_MEMORY_H
#define CUSIM_MEMORY_H

#include "clock.h"

enum { DEVICES_MAX = 16, MEMORY_ALIGN = 512, PAGE_BITS = 12 };
#define DEVICE_BASE 0x200000000000ull
#define DEVICE_SPAN (1ull << 38)            /* addresses of one device */

struct region {
    uint64_t start, end;
    int device;                             /* or PINNED: memory of the host */
    uint32_t name;                          /* of this taking of it, from 1 */
    bool live, piece;
    bool carved;                            /* only its pieces may be touched */
};
enum { PINNED = -1 };

void memory_open(int devices, uint64_t bytes_each);
static inline bool is_device(uint64_t address)
{
    return address - DEVICE_BASE < DEVICES_MAX * DEVICE_SPAN;
}
extern uint8_t *device_alias;               /* of DEVICE_BASE */
static inline uint8_t *device_bytes(uint64_t address)
{
    return device_alias + (address - DEVICE_BASE);
}

/* 0 when the device is full. */
uint64_t memory_take(int device, uint64_t bytes);
/* Returns the bytes given back; a finding when it was not taken, or not from this device. */
uint64_t memory_give(uint64_t address, int device);
uint64_t memory_free_bytes(int device);
uint64_t memory_total_bytes(void);
/* The first region still taken, or NULL. */
const struct region *memory_leak(void);

/* The region that holds these bytes and may be touched by `device`; anything else is a finding.
 * `hint` keeps the last answer. */
const struct region *memory_region(uint64_t address, uint64_t bytes, int device,
                                   const struct region **hint);

void *pinned_take(size_t bytes);
void pinned_give(void *start);
/* The name of the pinned memory that holds these bytes; 0: none does. */
uint32_t pinned_name(const void *start, size_t bytes);

/* Copies between host and device in flight.  What the device will read is taken at the call, and
 * compared when the host learns that the copy is done; what it writes appears only then. */
struct transfer;
struct transfer *transfer_open(void *host, size_t bytes, bool to_host, op_id op,
                               const struct clock *clock);
uint8_t *transfer_bytes(struct transfer *t);
void transfer_done(struct transfer *t);
/* The host has waited for all that `clock` holds. */
void transfers_settle(const struct clock *clock);
/* A finding when one may still run over this memory. */
void transfers_forbid(const uint8_t *start, const uint8_t *end);

#endif
