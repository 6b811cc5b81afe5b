"""Four greedy tokens of llama.cpp from a GGUF. Arguments: file, MMAP|NONE|DIRECT_IO. The answer is the last line."""
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.load_mode = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{sys.argv[2]}")
params.n_ctx, params.n_predict, params.n_parallel, params.warmup = 256, 4, 1, False
params.cpuparams.n_threads = 2
params.sampling.temp, params.sampling.seed = 0.0, 1
server = xllamacpp.Server(params)
prompt = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0, "seed": 1}
answer = server.handle_completions(prompt)
print(repr(answer["choices"][0]["text"]), flush=True)
