"""tests/service/link_client.py - a gateway's side of wire/link.h, for tests of the MPI job alone.

One Client is one connection.  Nothing here is a thread: call pump() or the waits.
"""
import os
import select
import socket
import struct
import time

# As in service.py: the waits below are stretched by this.
PATIENCE = float(os.environ.get("RANKSERVE_TEST_PATIENCE", "1"))
MAGIC, VERSION = 0x524B4C31, 3
(HELLO, CHALLENGE, PROOF, WELCOME, REQUEST, CANCEL, TOKENS, SCORES, END, STATE) = range(1, 11)
(OK, REFUSED_FULL, REFUSED_LENGTH, REFUSED_STATE, WORKER_LOST, TIMEOUT, CANCELLED,
 BAD_REQUEST) = range(8)
FINISH = ["none", "stop", "length", "abort", "error"]
IGNORE_EOS, LOGPROBS, PROMPT_LOGPROBS = 1, 2, 4
HEAD = struct.Struct("<IHHIIQ")
MASK = (1 << 64) - 1
STATE_FIELDS = ("state worker_count workers_alive requests_running requests_waiting "
                "prefill_queue_depth decode_active blocks_total blocks_free blocks_held "
                "blocks_cached requests_no_room workers_prefill workers_decode workers_both "
                "workers_spare role_switches kv_bytes_total kv_bytes_used decisions prompt_tokens "
                "prompt_tokens_cached output_tokens preemptions stale_refused kv_bytes_sent "
                "step_ns_sum uptime_ns workers_lost requests_replaced wakeups index_blocks "
                "index_bytes index_mismatches index_lookups index_checks reuse_possible reuse_captured "
                "redis_connected redis_announced redis_dropped redis_errors kv_bytes_lanes").split()


def siphash128(key, data):
    """SipHash-2-4 with a 128-bit result, as 16 bytes (lo, hi)."""
    def rotl(x, b):
        return ((x << b) | (x >> (64 - b))) & MASK

    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE,
         k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(n):
        for _ in range(n):
            v[0] = (v[0] + v[1]) & MASK
            v[1] = rotl(v[1], 13) ^ v[0]
            v[0] = rotl(v[0], 32)
            v[2] = (v[2] + v[3]) & MASK
            v[3] = rotl(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & MASK
            v[3] = rotl(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & MASK
            v[1] = rotl(v[1], 17) ^ v[2]
            v[2] = rotl(v[2], 32)

    tail = data + b"\0" * (7 - len(data) % 8) + bytes([len(data) & 255])
    for (m,) in struct.iter_unpack("<Q", tail):
        v[3] ^= m
        rounds(2)
        v[0] ^= m
    v[2] ^= 0xEE
    rounds(4)
    low = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(4)
    return struct.pack("<QQ", low, v[0] ^ v[1] ^ v[2] ^ v[3])


class Answer:
    """What came back for one stream."""

    def __init__(self):
        self.ids, self.positions, self.tops, self.scores = [], [], [], []
        self.code = self.finish = None
        self.ends = 0
        self.cached = self.prefill = self.decode = None
        self.first_s = None

    def done(self):
        return self.ends > 0


class Client:
    def __init__(self, path, secret, timeout=20.0):
        end = time.monotonic() + timeout * PATIENCE
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(path)
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        self.inbox = b""
        self.answers, self.state, self.states, self.closed = {}, None, 0, False
        self.next_stream = 1
        self.welcome = self.handshake(secret, max(0.1, end - time.monotonic()))

    def close(self):
        self.sock.close()

    def frame(self, kind, stream, body=b""):
        self.sock.sendall(HEAD.pack(MAGIC, VERSION, kind, HEAD.size + len(body), 0, stream) + body)

    def one(self, timeout):
        """The next frame as (type, stream, body), or None."""
        end = time.monotonic() + timeout
        while True:
            if len(self.inbox) >= HEAD.size:
                magic, version, kind, size, _, stream = HEAD.unpack_from(self.inbox)
                assert (magic, version) == (MAGIC, VERSION)
                if len(self.inbox) >= size:
                    body, self.inbox = self.inbox[HEAD.size:size], self.inbox[size:]
                    return kind, stream, body
            left = max(0.0, end - time.monotonic())
            if not select.select([self.sock], [], [], left)[0]:
                return None
            try:
                more = self.sock.recv(1 << 16)
            except ConnectionError:
                more = b""
            if not more:
                self.closed = True
                return None
            self.inbox += more

    def handshake(self, secret, timeout):
        mine = os.urandom(16)
        self.frame(HELLO, 0, mine)
        got = self.one(timeout)
        if got is None or got[0] != CHALLENGE:
            raise ConnectionError("no challenge")
        theirs, proof = got[2][:16], got[2][16:32]
        self.job_is_real = proof == siphash128(secret[:16], b"job" + mine + theirs)
        self.frame(PROOF, 0, siphash128(secret[16:], b"gw" + theirs + mine))
        got = self.one(timeout)
        if got is None or got[0] != WELCOME:
            raise ConnectionError("not welcome")
        length, block, vocab, kv_type = struct.unpack_from("<IIII", got[2], 16)
        self.secret = secret
        return {"max_model_len": length, "block_tokens": block, "vocab": vocab,
                "digest": got[2][:16], "kv_type": kv_type}

    def keys(self, ids, salt=0):
        """Keys of the prompt's blocks, as a gateway makes them (kv/key.h)."""
        w, secret = self.welcome, siphash128(self.secret[:16], b"kv")
        size = w["block_tokens"]
        out = [siphash128(secret, w["digest"] + struct.pack("<IIQ", w["kv_type"], size, salt))]
        for i in range((len(ids) - 1) // size):
            block = struct.pack(f"<{size}i", *ids[i * size:(i + 1) * size])
            out.append(siphash128(secret, out[-1] + block))
        return out[1:]

    def request(self, ids, max_tokens=8, temperature=0.0, seed=1, top_p=1.0, top_k=0, flags=0,
                top_count=0, prompt_top_count=0, stop_ids=(), timeout_ms=0, priority=0, salt=0,
                keys=(), user=0, ttft_ms=0, tpot_ms=0):
        stream = self.next_stream
        self.next_stream += 1
        stops = list(stop_ids) + [0] * (8 - len(stop_ids))
        params = struct.pack("<QffffffiIIHHHHHH8i", seed, temperature, top_p, 0.0, 1.0, 0.0, 0.0,
                             top_k, max_tokens, 0, flags, top_count, prompt_top_count, 0,
                             len(stop_ids), 0, *stops)
        body = struct.pack("<QQQiIIIII", salt, user, timeout_ms, priority, len(ids), len(keys),
                           ttft_ms, tpot_ms, 0)
        self.answers[stream] = Answer()
        self.frame(REQUEST, stream, body + params + b"".join(keys) + struct.pack(f"<{len(ids)}i", *ids))
        return stream

    def cancel(self, stream):
        self.frame(CANCEL, stream)

    def take_tokens(self, kind, answer, body):
        (count,) = struct.unpack_from("<I", body)
        at = 8
        for _ in range(count):
            position, token, logprob, rank, tops, finish = struct.unpack_from("<IifIHH", body, at)
            at += 20 + 8 * tops
            if kind == SCORES:
                answer.scores.append((position, token, logprob))
                continue
            top = list(struct.iter_unpack("<if", body[at - 8 * tops:at]))
            assert not answer.ends, "a token after END"
            if answer.positions:
                assert position == answer.positions[-1] + 1, "a gap or a repeat"
            else:
                answer.first_s = time.monotonic()
            answer.ids.append(token)
            answer.positions.append(position)
            answer.tops.append((logprob, rank, top))

    def handle(self, got):
        kind, stream, body = got
        if kind == STATE:
            values = struct.unpack("<16I27Q", body)
            self.state = dict(zip(STATE_FIELDS, values))
            self.states += 1
        elif kind in (TOKENS, SCORES):
            self.take_tokens(kind, self.answers[stream], body)
        elif kind == END:
            a = self.answers[stream]
            (a.code, finish, a.retry_after, a.prompt_tokens, a.cached, a.output_tokens, a.prefill,
             a.decode, _) = struct.unpack("<HHIIIIiiI", body)
            a.finish = FINISH[finish]
            a.ends += 1
        else:
            raise AssertionError(f"unexpected frame {kind}")

    def pump(self, seconds=0.0):
        """Handles what comes within this time."""
        end = time.monotonic() + seconds
        while not self.closed:
            got = self.one(max(0.0, end - time.monotonic()))
            if got:
                self.handle(got)
            elif time.monotonic() >= end:
                return

    def until(self, condition, timeout=20.0):
        end = time.monotonic() + timeout * PATIENCE
        while not condition():
            if self.closed or time.monotonic() > end:
                return False
            got = self.one(min(0.05, max(0.0, end - time.monotonic())))
            if got:
                self.handle(got)
        return True

    def wait(self, streams, timeout=20.0):
        ok = self.until(lambda: all(self.answers[s].done() for s in streams), timeout)
        assert ok, "unanswered: %s" % [s for s in streams if not self.answers[s].done()]
        return [self.answers[s] for s in streams]

    def generate(self, ids, timeout=20.0, **params):
        return self.wait([self.request(ids, **params)], timeout)[0]

    def home(self, timeout=5.0):
        """True once nothing runs and every block is free or cached."""
        def all_home():
            s = self.state
            return (s and not s["requests_running"] and not s["requests_waiting"]
                    and s["blocks_total"] > 0 and not s["blocks_held"]
                    and s["blocks_free"] + s["blocks_cached"] == s["blocks_total"])
        self.state = None
        return self.until(all_home, timeout)
