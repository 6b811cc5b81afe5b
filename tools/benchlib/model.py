"""The model that is measured with: shards of random bytes, and what of it goes where.

Deterministic: the same size and number of shards give the same bytes, on any machine.
"""
import hashlib
import json
import os
import random
import struct

MIB = 1 << 20
TENSOR = 16 * MIB


class Shard:
    """One safetensors file of the model."""

    def __init__(self, path):
        self.path = path
        self.name = os.path.basename(path)
        self.size = os.path.getsize(path)
        self.digest = digest_of(path)


class Model:
    """The folder of the model, made where it is not there yet."""

    def __init__(self, folder, shards, size):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        names = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
        for number, name in enumerate(names):
            path = os.path.join(folder, name)
            if not (os.path.exists(path) and os.path.getsize(path) == size):
                write_shard(path, number, size)
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file)
        self.shards = [Shard(os.path.join(folder, name)) for name in names]

    @property
    def size(self):
        """The bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def write_shard(path, number, size):
    """A file of exactly `size` bytes: a header, and bf16 tensors of 16 MiB (of half the shard where that is less)."""
    room = size - 16384  # enough for the header of the largest shard that makes sense
    tensor = min(TENSOR, size // 2 // 4096 * 4096)
    sizes = [tensor] * (room // tensor)
    sizes.append(room - sum(sizes))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for place, length in enumerate(length for length in sizes if length):
        name = f"model.layers.{number * len(sizes) + place}.mlp.down_proj.weight"
        header[name] = {"dtype": "BF16", "shape": [length // 2], "data_offsets": [at, at + length]}
        at += length
    raw = json.dumps(header, separators=(",", ":")).encode()
    if len(raw) > 16376:
        raise SystemExit("tools/bench: --size: a shard of so many tensors is not made here; take more shards")
    source = random.Random(f"weightfs/{number}/{size}")
    part = path + ".part"
    with open(part, "wb") as file:
        file.write(struct.pack("<Q", 16376) + raw.ljust(16376))
        while room:
            piece = min(4 * MIB, room)
            file.write(source.randbytes(piece))
            room -= piece
    os.rename(part, path)


def digest_of(path):
    """`sha256:…` of the file at `path`."""
    with open(path, "rb", buffering=0) as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
