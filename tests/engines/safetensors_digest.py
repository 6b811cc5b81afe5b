"""Every tensor of a safetensors file in order of the names, as numpy: count, bytes, digest. Arguments: file, mmap|pread|read."""
import hashlib
import sys

from safetensors import safe_open
from safetensors.numpy import load


def tensors(path, way):
    """Names and arrays: from a map, by one read a tensor, or from a copy of the whole file in memory."""
    if way == "read":
        with open(path, "rb") as file:
            yield from sorted(load(file.read()).items())
        return
    backend = {} if way == "mmap" else {"backend": way}
    with safe_open(path, framework="np", **backend) as file:
        for name in file.keys():
            yield name, file.get_tensor(name)


digest, count, size = hashlib.sha256(), 0, 0
for _, tensor in tensors(sys.argv[1], sys.argv[2]):
    digest.update(tensor.tobytes())
    count += 1
    size += tensor.nbytes
print(f"tensors={count} bytes={size} sha={digest.hexdigest()[:16]}")
