"""What can go wrong, sorted by who can fix it.

Every message has three parts: where (a key path, or file:line), what was found, what to do. The command line
prints the message and exits with the class's code; any other exception is a defect of ours and shows its traceback.
One bad *record* is data (an abstention with a reason); a broken *boundary* raises one of these.
"""


class PrefloopError(Exception):
    """Base of everything a user can mend. `exit_code` is what the command line returns."""

    exit_code = 2


class RecipeError(PrefloopError):
    """The recipe or an override is wrong. Raised before any model loads, with every mistake at once."""


class DataError(PrefloopError):
    """An input file is missing or a row of it cannot be read. The message carries file:line."""


class ModelError(PrefloopError):
    """A model, tokenizer or adapter cannot be loaded or does not fit its role."""


class JudgeError(PrefloopError):
    """A judge cannot answer at all (no key, no server, too many abstentions). One unreadable reply is a Verdict."""


class BudgetError(PrefloopError):
    """The next paid call could pass the budget. What was paid for is kept; raise the budget and run again."""

    exit_code = 5


class TrainingError(PrefloopError):
    """Training cannot start, or was stopped by a guard. The message names the guard and the step."""


class RunLockedError(PrefloopError):
    """Another process holds the run directory. The message says which."""

    exit_code = 3


class StepFailedError(PrefloopError):
    """A step's own process ended badly. What it printed is above; what was finished is kept."""

    exit_code = 4


class LostRankError(PrefloopError):
    """A process that trains together with others cannot reach one of them. The cause is where that one is."""

    exit_code = 6
