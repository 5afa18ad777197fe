"""llama.cpp's own OpenAI-compatible server with the built-in model's GGUF: prints its address, runs until killed."""

import time

import xllamacpp

from pipeline.models import _gguf

if __name__ == "__main__":
    options = xllamacpp.CommonParams()
    options.model.path = str(_gguf())
    options.hostnames, options.port = ["127.0.0.1"], 0
    options.n_ctx, options.n_parallel = 4096, 2
    options.cpuparams.n_threads = 1
    options.warmup = False
    server = xllamacpp.Server(options)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)
