"""The page where people say which answer is better: `prefloop annotate RUN`.

    material.py   the pairs of a run, and in which order people see them
    ballots.py    what was said, in RUN/annotations.sqlite: a vote is acknowledged when it is on the disk
    desk.py       which pair an annotator sees next, on which sides; progress; undo
    server.py     the page over HTTP on loopback: who may ask, and what
    export.py     the votes as a table that `prefloop import` reads
    words.py      what the page says, in English and French

The page itself is `pipeline/templates/annotate.*`. What is left out: what the votes amount to, and every format but
our own (`pipeline.votes`).
"""
