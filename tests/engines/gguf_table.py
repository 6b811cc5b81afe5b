"""The tensor table of a GGUF and a digest of its first and last tensor, read through numpy's memmap. Argument: file."""
import hashlib
import sys

import gguf

reader = gguf.GGUFReader(sys.argv[1])
first, last = reader.tensors[0], reader.tensors[-1]
digest = hashlib.sha256(first.data.tobytes() + last.data.tobytes())
print(len(reader.fields), len(reader.tensors), reader.data_offset, first.name, last.name, digest.hexdigest())
