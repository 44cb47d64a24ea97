/* engine/compute.c - the compute thread, and the event that wakes the control thread.
 *
 * The control thread gives a step under the lock and never waits for it; the compute thread sleeps
 * on the condition when it has none, and says "finished" through the event.  event_rung makes many
 * rings one write.  A step that takes less than all that is computed by the control thread itself.
 * While nothing is here to compute, the compute thread takes memory from the kernel for the KV to
 * come: a prompt that is the first to use its blocks would wait for the clearing of their pages.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/limits.h"
#include "engine/state.h"

void event_ring(struct engine *e)
{
    if (atomic_exchange(&e->event_rung, true)) return;
    uint64_t one = 1;
    ssize_t wrote = write(e->event_fd, &one, sizeof one);
    CHECK(wrote == sizeof one);
}

/* First the count, then the flag: a ring in between is seen now, since the caller looks at
 * everything after this.  Rung, and nothing to read: the write is on its way. */
void event_take(struct engine *e)
{
    uint64_t count;
    if (!atomic_load(&e->event_rung)) return;
    ssize_t got = read(e->event_fd, &count, sizeof count);
    CHECK(got == sizeof count || errno == EAGAIN || errno == EINTR);
    if (got == sizeof count) atomic_store(&e->event_rung, false);
}

static void layer_done(void *ctx)
{
    event_ring(ctx);
}

static void compute_step(struct engine *e)
{
    struct engine_step *b = &e->step;
    b->err = e->config.table->step(e->backend, &b->step);
    if (b->err == OK && b->step.logit_count)
        b->err = e->config.table->sample(e->backend, b->jobs, b->step.logit_count);
    b->ended_ns = clock_now_ns();
    atomic_store(&e->step_finished, true);
}

enum work { WORK_STEP, WORK_TOUCH, WORK_NONE };

/* Waits for it; *blocks: to be touched. */
static enum work next_work(struct engine *e, uint32_t *blocks)
{
    pthread_mutex_lock(&e->lock);
    while (!e->step_given && !e->leave && !e->touch) pthread_cond_wait(&e->wake, &e->lock);
    enum work w = e->step_given ? WORK_STEP : e->leave ? WORK_NONE : WORK_TOUCH;
    e->step_given = false;
    *blocks = e->touch;
    pthread_mutex_unlock(&e->lock);
    return w;
}

static void touched_all(struct engine *e, uint32_t blocks)
{
    pthread_mutex_lock(&e->lock);
    if (e->touch == blocks) e->touch = 0;
    pthread_mutex_unlock(&e->lock);
}

static void *compute_main(void *ctx)
{
    struct engine *e = ctx;
    enum work work;
    uint32_t blocks;
    pthread_setname_np(pthread_self(), "compute");
    while ((work = next_work(e, &blocks)) != WORK_NONE) {
        if (work == WORK_STEP) {
            compute_step(e);
            event_ring(e);
        } else if (!e->config.table->kv_touch(e->backend, blocks)) {
            touched_all(e, blocks);
        }
    }
    return NULL;
}

/* As much again as was ever used: the next rush will find it.  A worker that nothing has come to
 * yet takes nothing. */
void compute_touch(struct engine *e)
{
    uint32_t reached = kv_pool_reached(e->pool), ahead = KV_AHEAD_TOKENS / e->shape.block_tokens;
    if (ahead < reached) ahead = reached;
    uint32_t left = e->shape.block_count - reached, want = reached + (ahead < left ? ahead : left);
    if (reached == 0 || want <= e->touch_asked || !e->config.table->kv_touch) return;
    pthread_mutex_lock(&e->lock);
    e->touch = e->touch_asked = want;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

void compute_touch_stop(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    if (e->touch) e->touch_asked = 0; /* was not done */
    e->touch = 0;
    pthread_mutex_unlock(&e->lock);
}

/* Low priority is the compute thread's alone. */
static bool is_short(const struct engine *e)
{
    double ns = pace_predict_ns(&e->pace, &e->step.load);
    return ns > 0 && ns < (double)e->config.at_once_ns && e->config.backend.low_priority == 0;
}

bool compute_start(struct engine *e)
{
    struct engine_step *b = &e->step;
    bool at_once = is_short(e);
    b->step.ids = b->ids;
    b->step.seqs = b->seqs;
    b->step.logit_rows = b->logit_rows;
    b->step.layers_done = &e->layers_done;
    b->step.notify = b->prefill && !at_once ? layer_done : NULL;
    b->step.notify_ctx = e;
    b->started_ns = clock_now_ns();
    e->layers_seen = 0;
    atomic_store(&e->layers_done, 0);
    atomic_store(&e->step_finished, false);
    e->step_running = true;
    if (at_once) {
        compute_step(e);
        return true;
    }
    pthread_mutex_lock(&e->lock);
    e->step_given = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    return false;
}

/* Signals stay with the control thread. */
static int thread_start(struct engine *e)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&e->thread, NULL, compute_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

enum err compute_open(struct engine *e, struct why *why)
{
    e->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (e->event_fd < 0) return why_set(why, ERR_IO, "eventfd: %s", strerror(errno));
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    int failed = thread_start(e);
    if (!failed) return OK;
    close(e->event_fd);
    return why_set(why, ERR_IO, "compute thread: %s", strerror(failed));
}

static void thread_end(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->leave = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    e->leave = false;
}

/* Without privileges a thread can only lower its own priority; a new one has the control thread's
 * to begin with. */
void compute_renew(struct engine *e)
{
    struct backend_config *b = &e->config.backend;
    b->low_priority = e->low_priority;
    if (!e->config.table->set_priority) return;
    thread_end(e);
    e->config.table->set_priority(e->backend, b->low_priority);
    if (thread_start(e)) die("cannot start the compute thread again");
}

void compute_close(struct engine *e)
{
    thread_end(e);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    close(e->event_fd);
}
