"""tests/service/fake_job.py - a job that is none: rank 0's end of wire/link.h, and a tiny vocabulary.

FakeJob listens where a gateway connects and answers each request as `plan(request)` says.
tiny_model() writes a GGUF with a vocabulary and a chat template only: token id = byte, then specials.
gateway() starts the real rankserve-gateway on both.
"""
import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

from link_client import (CANCEL, CHALLENGE, END, HEAD, HELLO, MAGIC, PROOF, REQUEST, SCORES, STATE,
                         STATE_FIELDS, TOKENS, VERSION, WELCOME, siphash128)
from service import BUILD, PATIENCE

GATEWAY = os.environ.get("RANKSERVE_GATEWAY", os.path.join(BUILD, "rankserve-gateway"))
START, STOP, TEXT_END = 256, 257, 258          # <|im_start|>, <|im_end|>, <|endoftext|>
VOCAB = 259
FINISH = {"none": 0, "stop": 1, "length": 2, "abort": 3, "error": 4}
STARTING, LIVE, DRAINING = 1, 2, 3
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
          " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
          "{% endif %}")


def byte_texts():
    """GPT-2's printable form of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def tiny_model(path, template=CHATML):
    def text(s):
        raw = s.encode()
        return struct.pack("<Q", len(raw)) + raw

    def key(name, kind, value):
        return text(name) + struct.pack("<I", kind) + value

    tokens = byte_texts() + ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    kinds = [1] * 256 + [3] * 3
    keys = [
        key("general.architecture", 8, text("llama")),
        key("tokenizer.ggml.model", 8, text("gpt2")),
        key("tokenizer.ggml.pre", 8, text("gpt-2")),
        key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(tokens)) + b"".join(map(text, tokens))),
        key("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, len(kinds))
            + struct.pack(f"<{len(kinds)}i", *kinds)),
        key("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 0)),
        key("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", START)),
        key("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", STOP)),
        key("tokenizer.ggml.add_bos_token", 7, b"\0"),
    ]
    if template is not None:
        keys.append(key("tokenizer.chat_template", 8, text(template)))
    with open(path, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys))
    return path


class Plan:
    """How a request is answered: tokens, `per_frame` in a frame, `gap_s` between frames."""

    def __init__(self, text="hello", ids=None, finish="stop", code=0, per_frame=1, gap_s=0.0,
                 hold=False, retry_after=0, tops=(), cached=0, before_s=0.0, quit_after=None,
                 at_once=False):
        self.ids = list(text.encode()) if ids is None else list(ids)
        if ids is None and finish == "stop":
            self.ids.append(STOP)
        self.finish, self.code, self.per_frame, self.gap_s = finish, code, per_frame, gap_s
        self.hold, self.retry_after, self.tops, self.cached = hold, retry_after, tops, cached
        self.before_s, self.quit_after = before_s, quit_after
        self.at_once = at_once        # the last tokens and END are one write


class Request:
    def __init__(self, stream, body):
        (self.salt, self.user, self.timeout_ms, self.priority, ids, keys, self.ttft_ms,
         self.tpot_ms, _) = struct.unpack_from("<QQQiIIIII", body)
        p = struct.unpack_from("<QffffffiIIHHHHHH8i", body, 48)
        (self.seed, self.temperature, self.top_p, self.min_p, self.repetition_penalty,
         self.presence_penalty, self.frequency_penalty, self.top_k, self.max_tokens,
         self.min_tokens, self.flags, self.top_count, self.prompt_top_count, eos, stops,
         bias) = p[:16]
        self.eos_ids, self.stop_ids = list(p[16:16 + eos]), list(p[16 + eos:16 + stops])
        at = 136
        self.bias = dict(struct.iter_unpack("<if", body[at:at + 8 * bias]))
        at += 8 * bias + 16 * keys
        self.ids = list(struct.unpack_from(f"<{ids}i", body, at))
        assert at + 4 * ids == len(body)
        self.stream, self.cancelled = stream, threading.Event()
        self.cancelled_at = None

    def text(self):
        """The prompt, with specials in guillemets."""
        names = {START: "«start»", STOP: "«end»", TEXT_END: "«text end»"}
        out, raw = "", b""
        for i in self.ids + [-1]:
            if 0 <= i < 256:
                raw += bytes([i])
                continue
            out, raw = out + raw.decode("utf-8", "replace") + names.get(i, ""), b""
        return out


class FakeJob:
    def __init__(self, directory, max_model_len=512, vocab=VOCAB, digest=bytes(16)):
        self.path = os.path.join(directory, "link.sock")
        self.secret_file = os.path.join(directory, "secret")
        self.secret = os.urandom(32)
        with open(os.open(self.secret_file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as f:
            f.write(self.secret.hex() + "\n")
        self.max_model_len, self.vocab, self.digest = max_model_len, vocab, digest
        self.plan = lambda request: Plan()
        self.requests, self.live_state, self.connections = [], LIVE, 0
        self.refuse_proof = False
        self.reads = threading.Event()
        self.reads.set()
        self.numbers = {"worker_count": 1, "workers_alive": 1, "blocks_total": 100,
                        "blocks_free": 90, "blocks_cached": 10}
        self.lock, self.peer, self.closing = threading.Lock(), None, False
        self.listen()

    def listen(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(8)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    @staticmethod
    def frame(kind, stream, body):
        return HEAD.pack(MAGIC, VERSION, kind, HEAD.size + len(body), 0, stream) + body

    def send(self, peer, kind, stream, body, before=b""):
        with self.lock, contextlib.suppress(OSError):
            peer.sendall(before + self.frame(kind, stream, body))

    def state(self, state=None, **numbers):
        """Says STATE, with these numbers from now on."""
        self.live_state = state or self.live_state
        self.numbers.update(numbers)
        values = {**dict.fromkeys(STATE_FIELDS, 0), **self.numbers, "state": self.live_state}
        values["uptime_ns"] = time.monotonic_ns()
        if self.peer:
            self.send(self.peer, STATE, 0, struct.pack("<16I27Q", *(values[f] for f in STATE_FIELDS)))

    def tick(self, peer):
        while self.peer is peer:
            time.sleep(0.5)
            self.state()

    def frames(self, peer):
        inbox = b""
        while True:
            while len(inbox) >= HEAD.size:
                magic, version, kind, size, _, stream = HEAD.unpack_from(inbox)
                assert (magic, version) == (MAGIC, VERSION)
                if len(inbox) < size:
                    break
                yield kind, stream, inbox[HEAD.size:size]
                inbox = inbox[size:]
            self.reads.wait()
            try:
                more = peer.recv(1 << 20)
            except OSError:
                more = b""
            if not more:
                return
            inbox += more

    def serve(self, peer):
        frames = self.frames(peer)
        try:
            kind, _, theirs = next(frames)
            assert kind == HELLO
            mine = os.urandom(16)
            self.send(peer, CHALLENGE, 0, mine + siphash128(self.secret[:16], b"job" + theirs + mine))
            kind, _, proof = next(frames)
            right = siphash128(self.secret[16:], b"gw" + mine + theirs)
            if kind != PROOF or proof != right or self.refuse_proof:
                peer.close()
                return
        except StopIteration:
            return
        self.send(peer, WELCOME, 0, struct.pack(
            "<16sIIII32sQ16s", self.digest, self.max_model_len, 16, self.vocab, 0, b"fake", 1,
            siphash128(siphash128(self.secret[:16], b"kv"), b"keys")))
        self.peer, self.connections = peer, self.connections + 1
        self.state()
        threading.Thread(target=self.tick, args=(peer,), daemon=True).start()
        streams = {}
        for kind, stream, body in frames:
            if kind == REQUEST:
                assert stream not in streams, "a stream number was reused"
                request = streams[stream] = Request(stream, body)
                self.requests.append(request)
                threading.Thread(target=self.answer, args=(peer, request), daemon=True).start()
            elif kind == CANCEL and stream in streams:
                streams[stream].cancelled_at = time.monotonic()
                streams[stream].cancelled.set()

    @staticmethod
    def record(position, token, finish, tops):
        """Log-probabilities by rule: -0.5 for what came, -1, -2 ... for the alternatives."""
        return struct.pack("<IifIHH", position, token, -0.5, 1, len(tops), finish) + b"".join(
            struct.pack("<if", t, -1.0 - i) for i, t in enumerate(tops))

    def answer(self, peer, r):
        plan = self.plan(r)
        r.cancelled.wait(plan.before_s)
        if r.flags & 4:
            tops = list(range(65, 65 + r.prompt_top_count))
            records = [self.record(i, t, 0, tops) for i, t in enumerate(r.ids) if i]
            for at in range(0, len(records), 4000):       # a frame is at most 1 MiB
                part = records[at:at + 4000]
                self.send(peer, SCORES, r.stream, struct.pack("<II", len(part), 0) + b"".join(part))
        ids = plan.ids[:r.max_tokens] if plan.code == 0 else plan.ids
        finish = "length" if len(plan.ids) > r.max_tokens else plan.finish
        sent, before, tops = 0, b"", list(range(97, 97 + r.top_count))
        while sent < len(ids) and not r.cancelled.is_set():
            if plan.quit_after is not None and sent >= plan.quit_after:
                peer.shutdown(socket.SHUT_RDWR)
                return
            part = ids[sent:sent + plan.per_frame]
            last = sent + len(part) == len(ids) and not plan.hold and plan.code == 0
            records = [self.record(len(r.ids) + sent + i, t,
                                   FINISH[finish] if last and i == len(part) - 1 else 0, tops)
                       for i, t in enumerate(part)]
            body = struct.pack("<II", len(records), 0) + b"".join(records)
            sent += len(part)
            if last and plan.at_once:
                before = self.frame(TOKENS, r.stream, body)
                break
            self.send(peer, TOKENS, r.stream, body)
            if plan.gap_s:
                r.cancelled.wait(plan.gap_s)
        if plan.hold:
            r.cancelled.wait(60)
        code = 6 if r.cancelled.is_set() else plan.code
        end = FINISH["abort"] if code == 6 else FINISH["error"] if code else FINISH[finish]
        self.send(peer, END, r.stream, struct.pack("<HHIIIIiiI", code, end, plan.retry_after,
                                                   len(r.ids), plan.cached, sent, 1, 2, 0), before)

    def hang_up(self):
        """As if rank 0 died."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)      # else accept() keeps it listening
        self.listener.close()
        if self.peer:
            with contextlib.suppress(OSError):
                self.peer.shutdown(socket.SHUT_RDWR)
        self.peer = None

    def close(self):
        self.hang_up()


class Gateway:
    """The program itself; `url` once it listens, `ready` once it said so."""

    def __init__(self, job, model, *flags, env=None, wait=True):
        command = [GATEWAY, "--model", model, "--listen", "127.0.0.1:0", "--link", job.path,
                   "--secret-file", job.secret_file, "--served-model-name", "tiny", *map(str, flags)]
        self.log, self.ready, self.url = [], threading.Event(), None
        self.listening = threading.Event()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, env={**os.environ, **(env or {})})
        for reader in (self.read_out, self.read_log):
            threading.Thread(target=reader, daemon=True).start()
        if wait:
            assert self.ready.wait(10 * PATIENCE), "\n".join(self.log)

    def read_out(self):
        for line in self.process.stdout:
            word, self.url = line.split()
            (self.ready if word == "ready" else self.listening).set()

    def read_log(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def logged(self, pattern, seconds=3):
        until = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < until:
            if any(re.search(pattern, line) for line in self.log):
                return True
            time.sleep(0.02)
        return False

    def stop(self, seconds=15):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
