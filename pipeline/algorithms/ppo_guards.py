"""What stops PPO before it wastes the night: each guard looks at an update's numbers and says what is wrong and why.

What is left out: computing the numbers (`ppo_trainer.py`).
"""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from pipeline.plugins import Config


class GuardConfig(Config):
    """Limits; an update beyond one stops the training with the reason. None turns a guard off."""

    max_skipped: float = Field(default=0.05, ge=0, le=1)
    """Share of an update's answers whose score is missing or no finite number; up to it they are left out."""
    max_kl: float | None = Field(default=60.0, gt=0)
    """Nats from the reference, a whole answer. Useful policies are below 20; beyond 60 it is another model."""
    min_entropy: float | None = Field(default=0.1, ge=0)
    """Share of the entropy at the start that has to be left. Below it, all answers become one."""
    max_length: float | None = Field(default=4.0, gt=1)
    """Answers may grow by this factor, or shrink by it, before the reward is taken to be about length."""
    max_truncated: float | None = Field(default=None, ge=0, le=1)
    """Share of answers that are cut at the limit."""
    max_mismatch: float | None = Field(default=1.0, gt=0)
    """Mean of the difference in log p between sampler and trainer, in nats a token. 0.05 is rounding in bf16, and a
    server on a base that is quantised otherwise is beyond it."""
    patience: int = Field(default=3, ge=1)
    """Evaluations in a row with a higher reward and a lower held-out judge than at the start: reward hacking."""


def broken(limits: GuardConfig, line: Mapping[str, float], start: Mapping[str, float]) -> str | None:
    """The first limit that this update's metrics are beyond, as `guard: what was found; what to do`."""
    return next(_broken(limits, line, start), None)


def _broken(limits: GuardConfig, line: Mapping[str, float], start: Mapping[str, float]) -> Iterator[str]:
    if line["skipped"] > limits.max_skipped:
        yield f"max_skipped: {line['skipped']:.0%} of the answers have no finite score; look at the reward"
    if limits.max_kl is not None and line["kl"] > limits.max_kl:
        yield f"max_kl: {line['kl']:.1f} nats from the reference; raise kl_coef or lower learning_rate"
    if limits.min_entropy is not None and line["entropy"] < limits.min_entropy * start["entropy"]:
        yield (
            f"min_entropy: {line['entropy']:.3f} nats a token, {start['entropy']:.3f} at the start; "
            "lower learning_rate or raise ent_coef"
        )
    factor = line["length"] / start["length"]
    if limits.max_length is not None and not 1 / limits.max_length <= factor <= limits.max_length:
        yield (
            f"max_length: {line['length']:.0f} tokens an answer, {start['length']:.0f} at the start; "
            "the reward is likely one of length"
        )
    if limits.max_truncated is not None and 1 - line["ended"] > limits.max_truncated:
        yield f"max_truncated: {1 - line['ended']:.0%} of the answers are cut; raise missing_eos_penalty"
    if limits.max_mismatch is not None and line["mismatch"] > limits.max_mismatch:
        yield (
            f"max_mismatch: sampler and trainer differ by {line['mismatch']:.2f} nats a token; "
            "they do not compute the same model, so let both have the same base, dtype and quantization"
        )


def alarms(recent: Sequence[Mapping[str, float]]) -> list[str]:
    """What is odd about the latest update without being a reason to stop.

    Args:
        recent: metrics, the latest update's last. One batch is noisy, so what it says has to hold for three in a row.
    """
    latest = recent[-3:]
    found = []
    if recent[-1]["steps_skipped"]:
        found.append("a gradient was not finite, and its step was not taken")
    if len(latest) < 3:
        return found
    if all(line["kl"] < -1.0 for line in latest):
        found.append("the divergence from the reference is negative: answers are not sampled from the policy as it is")
    if all(abs(line["score_length_correlation"]) > 0.8 for line in latest):
        found.append("the score follows the answer's length")
    if all(line["ended"] < 0.5 for line in latest):
        found.append("more than half of the answers are cut at the limit")
    return found


def hacked(evaluations: Sequence[Mapping[str, float]], patience: int) -> str | None:
    """Why the reward is taken to be hacked: it rises on held-out prompts while the judge falls beyond its error.

    Args:
        evaluations: each with `step`, where an answer has one `score`, and where the judge could tell `judge` and
            `judge_error`, the standard error of its difference from the first evaluation; the first is of the policy
            before training.
    """
    known = [each for each in evaluations if "judge" in each and "score" in each]
    if len(known) <= patience:
        return None
    first, latest = known[0], known[-patience:]
    if all(e["score"] > first["score"] and e["judge"] < first["judge"] - 2 * e["judge_error"] for e in latest):
        return (
            f"reward hacking: on held-out prompts the reward rose from {first['score']:.2f} to "
            f"{latest[-1]['score']:.2f} while the judge fell from {first['judge']:.2f} to {latest[-1]['judge']:.2f}, "
            f"{patience} evaluations in a row; raise kl_coef or mend the reward"
        )
    return None
