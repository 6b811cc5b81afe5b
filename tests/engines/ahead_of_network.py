"""Reads files in order through maps while threads read ahead of it in blocks, as engines with a prefetch do; both wait for the
network all the time. Arguments: files. Prints the SHA-256 of each, as the map had it."""
import concurrent.futures
import hashlib
import mmap
import os
import sys

BLOCK = 16 << 20
THREADS = 8
STEP = 1 << 20


def read_block(path, offset):
    """Reads a block, and counts its bytes; they only come to lie in the page cache."""
    buffer, count = memoryview(bytearray(STEP)), 0
    file = os.open(path, os.O_RDONLY)
    try:
        while count < BLOCK and (read := os.preadv(file, [buffer[: BLOCK - count]], offset + count)):
            count += read
    finally:
        os.close(file)
    return count


def digest_mapped(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        # While it digests, and so while it waits for a page, Python's other threads run.
        with memoryview(mapped) as view:
            for at in range(0, len(view), STEP):
                digest.update(view[at : at + STEP])
    return digest.hexdigest()


blocks = [(path, at) for path in sys.argv[1:] for at in range(0, os.path.getsize(path), BLOCK)]
with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    ahead = [pool.submit(read_block, *block) for block in blocks]
    for path in sys.argv[1:]:
        print(digest_mapped(path), flush=True)
    read = sum(block.result() for block in ahead)
assert read == sum(map(os.path.getsize, sys.argv[1:])), read
