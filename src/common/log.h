/* common/log.h - one event, one line; keys before values.
 *
 *   2026-11-24T12:00:00.123Z info rank=2 placed req=812.1 prefill=1 decode=2 cached=64/700
 *
 * `grep req=812` over every rank's log is the story of request 812.  Prompts and outputs are never
 * logged.  Warnings are rare enough to be read.  Libraries below `sched` do not log: they return.
 */
#ifndef RANKSERVE_COMMON_LOG_H
#define RANKSERVE_COMMON_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* Who is speaking ("rank=2", "gateway"); kept by pointer-free copy, at most 31 bytes. */
void log_name(const char *name);
/* "error" | "warn" | "info" | "debug"; returns false when `text` is none of them. */
bool log_set_level(const char *text);
/* A line is one write, which wakes who reads it, on the cores that others need.  One thread of a
 * program, whose answers should not wait for that, may gather its lines and write them later: with
 * log_flush, when 8 KiB are full, before a warning or an error, and before the program stops on its
 * own account.  Control characters in a line become '?'. */
void log_gather(bool on);             /* off: what was gathered is written */
void log_flush(void);
/* When who gathers is to flush: 20 ms after the first line; UINT64_MAX: there is none. */
uint64_t log_due_ns(void);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

#endif
