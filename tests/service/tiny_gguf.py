"""tests/service/tiny_gguf.py - a GGUF file with a small random model, for jobs that are slow.

Three layers of llama, F16, with heads of 64; any text is encoded (a token a byte), and what is
generated is mostly words.
"""
import random
import struct

LAYERS, DIM, HEADS, KV_HEADS, HEAD, FFN, WORDS = 3, 128, 2, 1, 64, 128, 255


def text(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def vocabulary():
    """Bytes as GPT-2 writes them, words, and an end."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    tokens = [chr(b if b in shown else next(other)) for b in range(256)]
    return tokens + [f"\u0120word{i}" for i in range(WORDS)] + ["<|endoftext|>"]


def halves(seed, count, scale):
    dice = random.Random(seed)
    return struct.pack(f"<{count}e", *(scale * dice.uniform(-1, 1) for _ in range(count)))


def tensors(words):
    """Name, dimensions (inner first), type (0 F32, 1 F16), bytes."""
    sizes = [("token_embd", DIM, words)]
    for i in range(LAYERS):
        sizes += [(f"blk.{i}.{name}", *size) for name, size in {
            "attn_q": (DIM, HEADS * HEAD), "attn_k": (DIM, KV_HEADS * HEAD),
            "attn_v": (DIM, KV_HEADS * HEAD), "attn_output": (HEADS * HEAD, DIM),
            "ffn_gate": (DIM, FFN), "ffn_up": (DIM, FFN), "ffn_down": (FFN, DIM)}.items()]
    for name, inner, outer in sizes:
        yield (name + ".weight", (inner, outer), 1,
               halves(name, inner * outer, 2.5 / inner ** 0.5))
    for name in ["output_norm", *(f"blk.{i}.{n}_norm" for i in range(LAYERS)
                                  for n in ("attn", "ffn"))]:
        yield name + ".weight", (DIM,), 0, struct.pack(f"<{DIM}f", *[1.0] * DIM)


def write(path):
    vocab = vocabulary()
    u32 = lambda name, value: key(name, 4, struct.pack("<I", value))
    keys = [key("general.architecture", 8, text("llama")), key("general.name", 8, text("tiny")),
            u32("llama.block_count", LAYERS), u32("llama.embedding_length", DIM),
            u32("llama.feed_forward_length", FFN), u32("llama.attention.head_count", HEADS),
            u32("llama.attention.head_count_kv", KV_HEADS),
            u32("llama.attention.key_length", HEAD), u32("llama.attention.value_length", HEAD),
            u32("llama.context_length", 4096),
            key("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
            key("tokenizer.ggml.model", 8, text("gpt2")),
            key("tokenizer.ggml.pre", 8, text("smollm")),
            key("tokenizer.ggml.tokens", 9, array(8, [text(t) for t in vocab])),
            key("tokenizer.ggml.token_type", 9, array(5, [
                struct.pack("<i", 3 if t.startswith("<|") else 1) for t in vocab])),
            key("tokenizer.ggml.merges", 9, array(8, [])),
            u32("tokenizer.ggml.eos_token_id", len(vocab) - 1)]
    infos, data = [], b""
    for name, dims, kind, values in tensors(len(vocab)):
        infos.append(text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind,
                                              len(data)))
        data += values + bytes(-len(values) % 32)
    head = struct.pack("<IIQQ", 0x46554747, 3, len(infos), len(keys))
    head += b"".join(keys) + b"".join(infos)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32) + data)
