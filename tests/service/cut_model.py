"""tests/service/cut_model.py - a GGUF file cut behind its first layers, for tests that emulate a GPU.

    cut(path, out, layers=2)                the tokenizer works as before
    cut(path, out, layers=2, words=4096)    also fewer rows of the embedding: ids below that only
"""
import re
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, ARRAY, ALIGNMENT = 8, 9, 32
START = struct.Struct("<IIQQ")                                  # magic, version, tensors, keys


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self):
        return self.take(self.number("Q")).decode(errors="replace")

    def skip_value(self, kind):
        if kind == TEXT:
            self.take(self.number("Q"))
        elif kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in SIZES:
                self.take(SIZES[inner] * count)
            else:
                for _ in range(count):
                    self.skip_value(inner)
        else:
            self.take(SIZES[kind])


def read_keys(r, count, layers):
    """The keys as they stand, the number of layers replaced."""
    out = b""
    for _ in range(count):
        start = r.at
        name, kind = r.text(), r.number("I")
        value = r.at
        r.skip_value(kind)
        if name.endswith(".block_count"):
            out += r.data[start:value] + struct.pack("<I", layers)
        else:
            out += r.data[start:r.at]
    return out


def cut(path, out, layers, words=None):
    with open(path, "rb") as f:
        r = Reader(f.read())
    magic, version, tensor_count, key_count = START.unpack(r.take(START.size))
    keys = read_keys(r, key_count, layers)
    tensors = []
    for _ in range(tensor_count):
        name, dims = r.text(), r.number("I")
        shape = [r.number("Q") for _ in range(dims)]
        tensors.append((name, shape, r.number("I"), r.number("Q")))
    base = -(-r.at // ALIGNMENT) * ALIGNMENT
    ends = sorted(t[3] for t in tensors) + [len(r.data) - base]
    infos, blob, kept = b"", b"", 0
    for name, shape, kind, offset in tensors:
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer and int(layer.group(1)) >= layers:
            continue
        data = r.data[base + offset:base + ends[ends.index(offset) + 1]]
        if words and name == "token_embd.weight":
            row = len(data) // shape[1]
            data, shape = data[:row * words], [shape[0], words]
        raw = name.encode()
        infos += struct.pack("<Q", len(raw)) + raw + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}QIQ", *shape, kind, len(blob))
        blob += data + bytes(-len(data) % ALIGNMENT)
        kept += 1
    head = START.pack(magic, version, kept, key_count) + keys + infos
    with open(out, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGNMENT) + blob)
