"""The statistics of a comparison, one file for each question, all of them pure functions on numbers.

    win_rate.py         how often one is better, how sure that is, and what several such claims are worth together
    bradley_terry.py    one strength for each of several checkpoints, with ties and the side of an answer
    length_control.py   what of a win rate is left between answers of one length
    judge_error.py      what people would have said, from what a judge says that errs

The unit that is drawn and resampled is the prompt everywhere: answers to one prompt stand or fall together, and
intervals that ignore it are too narrow (Miller, arXiv:2411.00640). `make coverage` simulates experiments with a known
truth, and prints how often each interval holds it. What is left out: which checkpoints, judges and votes there are
(`pipeline.ratings`, `pipeline.compare`).
"""
