/* mpi/port.h - messages between ranks over MPI, that never block and never spin.
 *
 * Every send is MPI_Isend and then a ring of the receiver's bell; every receive is MPI_Improbe,
 * MPI_Imrecv and MPI_Test.  Messages of one sender and one kind arrive in order, complete, once.
 * Bulk between workers of one host is not copied by MPI: it lies where both see it (outbox.h).
 * A dead peer's requests and buffers are abandoned: MPI may still write into them.
 * Not here: what messages mean (wire/msg.h), who is dead (rank0.c).
 */
#ifndef RANKSERVE_MPI_PORT_H
#define RANKSERVE_MPI_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "mpi/job.h"
#include "mpi/loop.h"
#include "wire/msg.h"

enum port_kind { PORT_CONTROL, PORT_DATA, PORT_KINDS };

/* A message of at most this many bytes is bulk: its memory is kept for the next one. */
enum { PORT_BULK_BYTES = (1 << 20) + 256 };

struct port_sink {
    void *ctx;
    /* `data` is aligned for any struct of wire/msg.h and valid until the call returns. */
    void (*message)(void *ctx, int from, const void *data, size_t bytes);
    /* KV that lies in memory of both: *m is ours, what belongs behind it is at `payload` and may
     * change while it is read.  NULL: there is no such here. */
    void (*kv)(void *ctx, int from, const struct msg_kv *m, const void *payload);
    /* The connection with `rank` ended, or it broke the protocol. */
    void (*ended)(void *ctx, int rank);
};

struct port_stats { uint64_t sent, received, refused; };

struct port;
/* Collective, at start.  Until port_serve nothing is delivered, and a connection that ends makes
 * this rank leave through `died`, which does not return. */
enum err port_open(struct port **out, const struct job *j, void (*died)(int rank),
                   struct why *why);
void port_serve(struct port *p, const struct port_sink *sink);

/* Memory for a message, its head set; never NULL.  Then port_send, which takes it over. */
void *port_message(struct port *p, enum msg_type type, size_t bytes);
/* The same for much data to this rank; port_send it there, before another one is begun. */
void *port_bulk(struct port *p, int to, enum msg_type type, size_t bytes);
void port_send(struct port *p, int to, enum port_kind kind, void *message);
/* As port_send without a ring, before a port_send or port_ring to that rank: it wakes up once. */
void port_send_more(struct port *p, int to, enum port_kind kind, void *message);
/* Rings for what that rank was sent and not rung for. */
void port_ring(struct port *p, int to);
/* A message that has no body beyond its struct. */
void port_send_copy(struct port *p, int to, const void *message, enum msg_type type, size_t bytes);

/* Takes in what has arrived, finishes and starts sends.  Call it after every wait. */
void port_poll(struct port *p);
/* How long the caller may sleep, as far as MPI is concerned; UINT64_MAX: until a bell rings. */
uint64_t port_nap_ns(struct port *p, uint64_t now_ns);
/* Room for one more bulk message to this rank before earlier ones have left.  When not, the caller
 * is woken when there is. */
bool port_has_room(struct port *p, int to);
/* True when nothing waits to be sent to any living rank. */
bool port_sent_all(const struct port *p);
/* No more from or to this rank. */
void port_abandon(struct port *p, int rank);
bool port_is_dead(const struct port *p, int rank);
/* When this rank last gave a sign of life. */
uint64_t port_heard_ns(const struct port *p, int rank);
void port_stats(const struct port *p, struct port_stats *out);

#endif
