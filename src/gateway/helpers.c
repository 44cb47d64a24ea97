/* gateway/helpers.c - see helpers.h. */
#include "gateway/helpers.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "common/check.h"
#include "common/mem.h"

enum { HELPERS = 4, STOP_S = 2 };

struct helpers {
    pthread_t threads[HELPERS];
    pthread_mutex_t lock;
    pthread_cond_t given;
    struct task *first, **end;
    bool stop;
};

/* NULL: there is none, and there will be none. */
static struct task *take(struct helpers *h)
{
    pthread_mutex_lock(&h->lock);
    while (!h->first && !h->stop) pthread_cond_wait(&h->given, &h->lock);
    struct task *t = h->first;
    if (t) h->first = t->next;
    if (!h->first) h->end = &h->first;
    pthread_mutex_unlock(&h->lock);
    return t;
}

static void *help(void *arg)
{
    struct task *t;
    while ((t = take(arg))) t->run(t->arg);
    return NULL;
}

struct helpers *helpers_start(void)
{
    struct helpers *h = mem_alloc(sizeof *h);
    h->end = &h->first;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->given, NULL);
    for (int i = 0; i < HELPERS; i++) {
        if (pthread_create(&h->threads[i], NULL, help, h) != 0) die("cannot start a thread");
    }
    return h;
}

void helpers_do(struct helpers *h, struct task *t)
{
    t->next = NULL;
    pthread_mutex_lock(&h->lock);
    *h->end = t;
    h->end = &t->next;
    pthread_cond_signal(&h->given);
    pthread_mutex_unlock(&h->lock);
}

bool helpers_stop(struct helpers *h)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STOP_S;
    pthread_mutex_lock(&h->lock);
    h->stop = true;
    pthread_cond_broadcast(&h->given);
    pthread_mutex_unlock(&h->lock);
    for (int i = 0; i < HELPERS; i++) {
        if (pthread_timedjoin_np(h->threads[i], NULL, &until) != 0) return false;
    }
    pthread_cond_destroy(&h->given);
    pthread_mutex_destroy(&h->lock);
    free(h);
    return true;
}
