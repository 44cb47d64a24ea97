/* gateway/watch.h - notices that clients went away while libmicrohttpd is not looking.
 *
 * libmicrohttpd does not poll a suspended connection, so sockets of running calls are watched here,
 * by an epoll of our own.  Everything happens under the gateway's lock.
 */
#ifndef RANKSERVE_GATEWAY_WATCH_H
#define RANKSERVE_GATEWAY_WATCH_H

#include <stdint.h>

struct watch;

struct watch *watch_open(void (*gone)(void *owner));
void watch_close(struct watch *w);
int watch_fd(const struct watch *w);  /* readable when somebody is gone */

/* A number for watch_remove; 0 when the socket cannot be watched.  Remove it before the socket is
 * closed: a number is never reused, a descriptor is. */
uint64_t watch_add(struct watch *w, int fd, void *owner);
void watch_remove(struct watch *w, uint64_t number);

/* Calls gone(owner) for each socket that hung up, once, and watches it no more. */
void watch_poll(struct watch *w);

#endif
