/* mpi/rank0_roles.c - workers that change between prefill and decode: the one message, the log.
 *
 * The scheduler decides (sched/roles.c) and hands the action out when the worker holds nothing any
 * more, so the message changes what is placed there from now on and what has priority on its host.
 */
#include "common/log.h"
#include "mpi/rank0.h"

/* A prefill worker computes behind the decode workers of its host. */
static bool modest(const struct rank0 *z, int rank)
{
    if (z->workers[rank].role != ROLE_PREFILL) return false;
    for (int i = 1; i < z->job->size; i++) {
        const struct peer_worker *w = &z->workers[i];
        if (w->alive && w->role != ROLE_PREFILL && z->job->host_of[i] == z->job->host_of[rank])
            return true;
    }
    return false;
}

void roles_tell(struct rank0 *z, int rank)
{
    for (int i = 1; i < z->job->size; i++) {
        const struct peer_worker *w = &z->workers[i];
        if (!w->alive || !w->up || z->job->host_of[i] != z->job->host_of[rank]) continue;
        struct msg_role m = { .role = w->role, .modest = modest(z, i) };
        port_send_copy(z->port, i, &m, MSG_ROLE, sizeof m);
    }
}

void roles_on_action(struct rank0 *z, const struct sched_action *a)
{
    struct peer_worker *w = &z->workers[a->worker];
    struct sched_stats s;
    sched_stats(z->sched, &s);
    if (a->stage == ROLE_STAYS) {
        log_info("role worker=%d stays=%s", a->worker, role_name(a->role));
    } else if (a->stage == ROLE_DRAINS) {
        log_info("role worker=%d drains=%s for=%s prefill_load=%.2f decode_load=%.2f", a->worker,
                 role_name(w->role), role_name(a->role), s.prefill_load, s.decode_load);
    } else {
        log_info("role worker=%d from=%s to=%s resumed=%llu", a->worker, role_name(w->role),
                 role_name(a->role), (unsigned long long)s.resumed);
        w->role = a->role;
        roles_tell(z, a->worker);
        links_state(z);
    }
}
