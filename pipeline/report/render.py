"""What a run found, for people: `report.html`, `report.md` and `results.json`.

The same input gives the same bytes: no time, no random id. What is left out: every statistic (`pipeline.statistics`)
and reading a run directory.
"""

from pipeline.report.checkpoint_tables import checkpoint_sheet, cost_sheet, measure_sheet
from pipeline.report.comparison_tables import (
    comparison_sheet,
    controlled_sheet,
    corrected_sheet,
    habit_sheet,
    round_sheet,
    strength_sheet,
    summary_sheet,
)
from pipeline.report.data import ReportData
from pipeline.report.judge_tables import (
    against_people_sheet,
    between_judges_sheet,
    exam_sheet,
    gold_sheet,
    judge_sheet,
    label_sheet,
    people_sheet,
    place_sheet,
)
from pipeline.report.markdown import markdown
from pipeline.report.page import page
from pipeline.report.run_tables import curve_sheet, doctor_sheet, reward_sheet, spending_sheet, step_sheet
from pipeline.report.sheet import Sheet


def render(data: ReportData) -> dict[str, str]:
    """File name -> text of the three files."""
    sheets = _sheets(data)
    return {
        "report.html": page(data, sheets),
        "report.md": markdown(data, sheets),
        "results.json": data.results.model_dump_json(indent=2) + "\n",
    }


def _sheets(data: ReportData) -> dict[str, Sheet]:
    results = data.results
    return {
        "summary": summary_sheet(results),
        "rounds": round_sheet(data.rounds),
        "comparisons": comparison_sheet(results),
        "controlled": controlled_sheet(results),
        "corrected": corrected_sheet(results),
        "strengths": strength_sheet(results),
        "habits": habit_sheet(results),
        "checkpoints": checkpoint_sheet(results),
        "measures": measure_sheet(results),
        "costs": cost_sheet(results),
        "judges": judge_sheet(results.judges),
        "labels": label_sheet(data.labels),
        "exam": exam_sheet(data.exam),
        "place": place_sheet(data.exam.position if data.exam else None),
        "gold": gold_sheet(data.exam.gold if data.exam else None),
        "people": people_sheet(data.people),
        "between_judges": between_judges_sheet(data.between_judges),
        "against_people": against_people_sheet(data.against_people),
        "doctor": doctor_sheet(data.findings),
        "steps": step_sheet(data.steps),
        "spending": spending_sheet(data.spending),
        "reward_models": reward_sheet(data.reward_models),
        "curves": curve_sheet(data.curves),
        "machine": Sheet("Versions and hardware", ("what", "value"), tuple((data.versions | data.hardware).items()), 2),
    }
