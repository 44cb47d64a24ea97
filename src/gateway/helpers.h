/* gateway/helpers.h - a few threads for what would keep the one that serves sockets for too long.
 *
 * That is: long prompts (JSON, template, tokenizer), long answers (JSON), and what waits for others
 * (a name server, Redis).  Tasks begin in the order in which they came.
 */
#ifndef RANKSERVE_GATEWAY_HELPERS_H
#define RANKSERVE_GATEWAY_HELPERS_H

#include <stdbool.h>

struct helpers;

struct task {                         /* the caller's memory, until it runs */
    void (*run)(void *arg);
    void *arg;
    struct task *next;                /* the helpers' own */
};

struct helpers *helpers_start(void);
/* From any thread.  Whoever owns the task may free it from inside `run`. */
void helpers_do(struct helpers *h, struct task *t);
/* Does what was given, and ends.  False: that takes longer than two seconds; nothing was freed. */
bool helpers_stop(struct helpers *h);

#endif
