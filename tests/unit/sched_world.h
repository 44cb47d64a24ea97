/* tests/unit/sched_world.h - a scheduler that is told one event at a time, and what it answered. */
#ifndef RANKSERVE_TESTS_SCHED_WORLD_H
#define RANKSERVE_TESTS_SCHED_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/sampling.h"
#include "sched/books.h"

enum { RANKS = 6, ACTIONS = 64 };

struct world {
    struct sched *s;
    uint64_t now_ns;
    uint32_t emitted[REQ_COUNT_MAX];
    struct sched_action out[ACTIONS];
    size_t count;
};

static inline struct world *world_make(bool rated)
{
    struct world *w = calloc(1, sizeof *w);
    struct sched_config c = { .rank_count = RANKS, .queue_max = 100, .block_tokens = 16,
                              .emitted = w->emitted };
    w->s = sched_init(malloc(sched_bytes(&c)), &c);
    w->now_ns = 1;
    w->s->rated = rated;
    return w;
}

static inline void world_free(struct world *w)
{
    free(w->s);
    free(w);
}

static inline void tell(struct world *w, struct sched_event e)
{
    w->count = sched_step(w->s, w->now_ns, &e, 1, w->out, ACTIONS);
    assert_true(w->count < ACTIONS);
}

static inline void wait_ns(struct world *w, uint64_t ns)
{
    w->now_ns += ns;
    w->count = sched_step(w->s, w->now_ns, NULL, 0, w->out, ACTIONS);
}

static inline void up(struct world *w, int32_t rank, enum role role, uint32_t blocks, uint32_t seqs)
{
    tell(w, (struct sched_event){ .type = EV_WORKER_UP, .worker = rank, .role = role,
                                  .blocks = blocks, .seqs = seqs, .max_tokens = 4000 });
}

static inline struct sched_event request(uint16_t slot, uint64_t user)
{
    return (struct sched_event){ .type = EV_REQUEST, .req = { .slot = slot, .generation = 1 },
                                 .prompt_tokens = 100, .max_tokens = 50, .user = user };
}

/* The id that later events name. */
static inline struct req_id id_of(const struct world *w, uint16_t slot)
{
    return w->s->requests[slot].id;
}

static inline void about(struct world *w, enum sched_event_type type, uint16_t slot, int32_t worker)
{
    tell(w, (struct sched_event){ .type = type, .req = id_of(w, slot), .worker = worker,
                                  .finish = FINISH_STOP, .err = ERR_FULL });
}

/* The action of this type among the last ones, or NULL. */
static inline const struct sched_action *done(const struct world *w, enum sched_action_type type)
{
    for (size_t i = 0; i < w->count; i++)
        if (w->out[i].type == type) return &w->out[i];
    return NULL;
}

#endif
