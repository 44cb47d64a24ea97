/* kv/index_match.c - the longest prefix each worker holds of one prompt, in few probes.
 *
 * Along the chain the set of holders only shrinks.  An interval whose two ends have the same set
 * needs no look inside; one whose ends differ is cut at up to seven points.  All intervals are cut
 * in rounds, and the probes of a round are prefetched together: what costs is memory's latency, and
 * eight probes in flight cost little more than one.
 */
#include <string.h>

#include "kv/index_inside.h"

enum { CUTS = 7, INTERVALS_MAX = 512 };

struct interval {
    uint32_t low, high;               /* positions; the set at `high` differs from that at `low` */
    uint64_t low_set, high_set;
};

struct search {
    const struct kv_index *x;
    const struct hash128 *keys;
    uint32_t *held;
    uint32_t most;
    uint32_t count;                   /* of the next round */
    struct interval *next;
};

/* Whoever is in `has` but not in `lacks` holds exactly the first `length` keys. */
static void settle(struct search *m, uint64_t has, uint64_t lacks, uint32_t length)
{
    uint64_t a[SET_WORDS], b[SET_WORDS];
    set_members(&m->x->sets, has, a);
    set_members(&m->x->sets, lacks, b);
    for (uint32_t i = 0; i < SET_WORDS; i++) {
        for (uint64_t left = a[i] & ~b[i]; left; left &= left - 1) {
            uint32_t rank = i * 64 + (uint32_t)__builtin_ctzll(left);
            if (m->held[rank] < length) m->held[rank] = length;
            if (m->most < length) m->most = length;
        }
    }
}

static void between(struct search *m, uint32_t low, uint64_t low_set, uint32_t high,
                    uint64_t high_set)
{
    if (low_set == high_set) return;
    if (high - low == 1 || m->count == INTERVALS_MAX) {
        settle(m, low_set, high_set, low + 1);
        return;
    }
    m->next[m->count++] = (struct interval){ low, high, low_set, high_set };
}

static uint32_t cut_at(const struct interval *v, uint32_t i, uint32_t cuts)
{
    return v->low + (uint32_t)((uint64_t)(v->high - v->low) * (i + 1) / (cuts + 1));
}

static uint32_t cuts_of(const struct interval *v)
{
    uint32_t inside = v->high - v->low - 1;
    return inside < CUTS ? inside : CUTS;
}

static void prefetch(const struct search *m, const struct interval *v)
{
    uint32_t cuts = cuts_of(v);
    for (uint32_t i = 0; i < cuts; i++)
        __builtin_prefetch(&m->x->slots[index_home(m->x, m->keys[cut_at(v, i, cuts)])]);
}

static uint64_t set_at(const struct search *m, uint32_t position)
{
    return m->x->slots[index_find(m->x, m->keys[position])].holders;
}

static void cut(struct search *m, const struct interval *v)
{
    uint32_t low = v->low, cuts = cuts_of(v);
    uint64_t low_set = v->low_set;
    for (uint32_t i = 0; i < cuts; i++) {
        uint32_t at = cut_at(v, i, cuts);
        uint64_t set = set_at(m, at);
        between(m, low, low_set, at, set);
        low = at;
        low_set = set;
    }
    between(m, low, low_set, v->high, v->high_set);
}

uint32_t kv_index_match(const struct kv_index *x, const struct hash128 *keys, uint32_t key_count,
                        uint32_t *held)
{
    struct interval rounds[2][INTERVALS_MAX];
    struct search m = { .x = x, .keys = keys, .held = held, .next = rounds[0] };
    memset(held, 0, x->rank_count * sizeof *held);
    if (key_count == 0) return 0;
    uint64_t first = set_at(&m, 0);
    if (first) between(&m, 0, first, key_count, 0);
    for (int round = 0; m.count > 0; round++) {
        const struct interval *now = rounds[round & 1];
        uint32_t count = m.count;
        m.next = rounds[(round + 1) & 1];
        m.count = 0;
        prefetch(&m, &now[0]);
        for (uint32_t i = 0; i < count; i++) {
            if (i + 1 < count) prefetch(&m, &now[i + 1]);
            cut(&m, &now[i]);
        }
    }
    return m.most;
}
