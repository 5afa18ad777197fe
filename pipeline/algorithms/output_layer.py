"""TRL's output layer on a processor: the positions that a loss counts, and not those of prompts and padding.

TRL 1.16 leaves the others out where Triton is. Everywhere else it multiplies every position with the vocabulary and
throws most of that away, because other accelerators compile each new shape; a processor compiles none. On one, that is
a quarter of an update of DPO and two fifths of one of KTO. What is left out: the layer itself and its gradient, which
are TRL's.
"""


def count_labels_alone() -> None:
    """From now on, in this process. Numbers change by rounding; an accelerator is not affected."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    utils._use_triton = lambda device: device.type == "cpu" or chunked_logprob._use_triton(device)
