"""`make bench-ppo-curve`: what our PPO and TRL's last one gain at the same divergence from the same learnable reward.

    runs/bench/ppo_curve.json   by kind: gain_ratio, error, kl_up_to, and by side gain, gain_error, curves by seed

The work is that of `make bench-ppo` (see `ppo.py`) but for the reward, a learning rate at which something is learned,
and shorter answers. The reward is the share of the letter e in deviations of the untrained policy's, for which there is
no end in sight; a curve has an update's divergence in nats an answer and its mean reward. At small divergences the
most that any policy gains over its reference is proportional to the root of the divergence (Gao et al. 2022,
arXiv:2210.10760), so `gain` is the slope of the reward over that root, up to the divergence `kl_up_to` that every run
has reached; `gain_ratio` is ours over TRL's. One run says little, for noise that it learned early stays in its policy:
errors are those between seeds, and of one seed there is none. Curves that are there stay, and more seeds join them:
`make bench-ppo-curve KIND=nf4 SEEDS="3 4"`. Nothing here is timed: sides run beside each other, as many as there are
cores, TRL's with up to 9 GB each.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ppo import HERE, KINDS, TRL, Side, in_turn, trl_python

SIDES = {"trl": "ppo_trl.py", "ours": "ppo_ours.py"}
Curve = list[list[float]]
"""Of each update: divergence in nats an answer, and mean reward."""


def main() -> None:
    """Run both sides for the kinds and seeds that are named, and write what they gain."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    out = Path("runs/bench")
    out.mkdir(parents=True, exist_ok=True)
    python = {"trl": str(trl_python(out / "trl")), "ours": sys.executable}
    written = out / "ppo_curve.json"
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    found["against"] = TRL
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (kind, side, seed): pool.submit(_curve, python[side], HERE / script, kind, out, seed)
            for kind in options.kinds
            for seed in options.seeds
            for side, script in SIDES.items()
        }
        for kind in options.kinds:
            sides = [
                {**found.get(kind, {}).get(side, {}).get("curves", {}), **_done(runs, kind, side, options.seeds)}
                for side in ("ours", "trl")
            ]
            found[kind] = compared(*sides)
            print(kind, json.dumps({name: each for name, each in found[kind].items() if not isinstance(each, dict)}))
            written.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(written)


def _done(runs: Mapping[Any, Any], kind: str, side: str, seeds: list[int]) -> dict[str, Curve]:
    return {str(seed): runs[kind, side, seed].result() for seed in seeds}


def _curve(python: str, script: Path, kind: str, out: Path, seed: int) -> Curve:
    side = Side.start(python, script, kind, "curve", out, seed)
    in_turn([side])
    curve: Curve = side.found()["curve"]
    return curve


def compared(ours: Mapping[str, Curve], trl: Mapping[str, Curve]) -> dict[str, Any]:
    """The gains of two sides, each with a curve a seed, up to the divergence that all have reached."""
    up_to = min(max(kl for kl, _ in curve) for side in (ours, trl) for curve in side.values())
    found: dict[str, Any] = {"kl_up_to": round(up_to, 2)}
    gains = {name: [gain(curve, up_to) for curve in side.values()] for name, side in (("ours", ours), ("trl", trl))}
    for (name, each), curves in zip(gains.items(), (ours, trl), strict=True):
        found[name] = {"gain": round(float(np.mean(each)), 3), "gain_error": _error(each), "curves": dict(curves)}
    found["gain_ratio"] = round(found["ours"]["gain"] / found["trl"]["gain"], 3)
    parts = [found[name]["gain_error"] for name in gains]
    if None not in parts:
        relative = [error / found[name]["gain"] for error, name in zip(parts, gains, strict=True)]
        found["error"] = round(found["gain_ratio"] * float(np.hypot(*relative)), 3)
    return found


def _error(gains: list[float]) -> float | None:
    """The standard error of their mean; None of one, which does not know how far another seed is from it."""
    return round(float(np.std(gains, ddof=1) / len(gains) ** 0.5), 3) if len(gains) > 1 else None


def gain(curve: Curve, up_to: float) -> float:
    """The least-squares slope of the reward over the root of the divergence, through the origin.

    Args:
        curve: an estimate can make a divergence negative, which counts as 0.
        up_to: points beyond this divergence are left out.
    """
    points_N2 = np.array([point for point in curve if point[0] <= up_to])
    root_N = np.sqrt(points_N2[:, 0].clip(0))
    return float(root_N @ points_N2[:, 1] / (root_N @ root_N))


if __name__ == "__main__":
    main()
