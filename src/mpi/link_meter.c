/* mpi/link_meter.c - see link_meter.h. */
#include "mpi/link_meter.h"

#include "common/clock.h"

enum { BYTES_LEAST = 2 << 20 };       /* less says nothing about a link */
#define GAP_NS (20 * NS_PER_MS)

void link_meter_sent(struct link_meter *m, int peer, uint64_t bytes)
{
    if (m->since_ns && m->peer == peer) m->bytes += bytes;
}

/* Nobody looked for so long that this is much of the time. */
static bool is_stale(const struct link_meter *m, uint64_t now_ns)
{
    uint64_t gap = now_ns - m->seen_ns;
    return gap > GAP_NS && gap > (m->seen_ns - m->since_ns) / 2;
}

void link_meter_look(struct link_meter *m, int peer, bool held_up, uint64_t now_ns)
{
    if (m->since_ns && is_stale(m, now_ns)) m->since_ns = 0;
    if (m->since_ns == 0) {
        if (!held_up) return;
        m->peer = peer;
        m->since_ns = m->seen_ns = now_ns;
        m->bytes = 0;
        return;
    }
    if (m->peer != peer) return;
    m->seen_ns = now_ns;
    if (held_up) return;
    if (m->bytes >= BYTES_LEAST && now_ns > m->since_ns) {
        m->bytes_s = (double)m->bytes / (double)(now_ns - m->since_ns) * 1e9;
        m->measured = peer;
    }
    m->since_ns = 0;
}
