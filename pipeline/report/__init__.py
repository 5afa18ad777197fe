"""What a run found, for people: `report.html`, `report.md`, `results.json`, and the table that ends the command.

    render.py              everything that was found -> the text of the three files
    data.py                what a report is made of
    comparison_tables.py   tables of what the comparison found
    judge_tables.py        tables of who judged, and how well
    run_tables.py          tables of what the run took, and of what was found on the way
    sheet.py               a table, and how numbers are written in it
    standings.py           everybody against everybody, and all on one scale
    plots.py               win rates, confidence, time, as numbers that a template draws
    frontier.py            win rate and reward against KL
    curves.py              training curves
    axes.py                scales
    samples.py             the answers side by side, as far as they fit into one page
    evidence.py            what a judge said, in lines
    page.py, markdown.py   the two documents; templates.py finds their templates in `pipeline/templates`
    terminal.py            the table that ends the command

What is left out: every statistic (`pipeline.statistics`), and reading a run directory (`pipeline.compare`).
"""
