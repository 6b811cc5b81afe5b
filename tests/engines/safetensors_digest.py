"""Every tensor of a safetensors file in order of the names, as numpy: count, bytes, digest. Arguments: file, mmap|pread."""
import hashlib
import sys

from safetensors import safe_open

backend = {} if sys.argv[2] == "mmap" else {"backend": sys.argv[2]}
digest, count, size = hashlib.sha256(), 0, 0
with safe_open(sys.argv[1], framework="np", **backend) as file:
    for name in file.keys():
        tensor = file.get_tensor(name)
        digest.update(tensor.tobytes())
        count += 1
        size += tensor.nbytes
print(f"tensors={count} bytes={size} sha={digest.hexdigest()[:16]}")
