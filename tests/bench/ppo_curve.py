"""`make bench-ppo-curve`: what our PPO and TRL's last one gain at the same divergence from the same learnable reward.

    runs/bench/ppo_curve.json   by kind: gain_ratio, error, kl_up_to, and by side gain, gain_error, curve

The work is that of `make bench-ppo` (see `ppo.py`) but for the reward, a learning rate at which something is learned,
and shorter answers. The reward is the share of the letter e in deviations of the untrained policy's, for which there is
no end in sight; `curve` has an update's divergence in nats an answer and its mean reward. At small divergences the
most that any policy gains over its reference is proportional to the root of the divergence (Gao et al. 2022,
arXiv:2210.10760), so `gain` is the slope of the reward over that root, with its standard error, up to the divergence
`kl_up_to` that both sides have reached; `gain_ratio` is ours over TRL's. Nothing here is timed: the sides run beside
each other, as many as there are cores.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ppo import HERE, KINDS, TRL, measured, trl_python

SIDES = {"trl": "ppo_trl.py", "ours": "ppo_ours.py"}


def main() -> None:
    """Run both sides for the kinds that are named, or for all, and write what they gain."""
    out = Path("runs/bench")
    out.mkdir(parents=True, exist_ok=True)
    python = {"trl": str(trl_python(out / "trl")), "ours": sys.executable}
    written = out / "ppo_curve.json"
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    found["against"] = TRL
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (kind, side): pool.submit(measured, python[side], HERE / script, kind, "curve", out)
            for kind in sys.argv[1:] or KINDS
            for side, script in SIDES.items()
        }
        for kind in dict.fromkeys(kind for kind, _ in runs):
            found[kind] = compared(*(runs[kind, side].result()["curve"] for side in ("ours", "trl")))
            print(kind, json.dumps({name: found[kind][name] for name in ("gain_ratio", "error", "kl_up_to")}))
            written.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(written)


def compared(ours: list[list[float]], trl: list[list[float]]) -> dict[str, Any]:
    """The gains of two curves, of points (divergence, reward), up to the divergence that both have reached."""
    up_to = min(max(kl for kl, _ in curve) for curve in (ours, trl))
    sides = {}
    for name, curve in (("ours", ours), ("trl", trl)):
        value, error = gain(np.array([point for point in curve if point[0] <= up_to]))
        sides[name] = {"gain": round(value, 3), "gain_error": round(error, 3), "curve": np.round(curve, 3).tolist()}
    ratio = sides["ours"]["gain"] / sides["trl"]["gain"]
    spread = float(np.hypot(*(side["gain_error"] / side["gain"] for side in sides.values())))
    return {"gain_ratio": round(ratio, 3), "error": round(ratio * spread, 3), "kl_up_to": round(up_to, 2), **sides}


def gain(points_N2: "np.ndarray[Any, Any]") -> tuple[float, float]:
    """The slope of the reward over the root of the divergence, through the origin, and its standard error.

    Args:
        points_N2: divergence in nats, which an estimate can make negative, and reward.
    """
    root_N, reward_N = np.sqrt(points_N2[:, 0].clip(0)), points_N2[:, 1]
    slope = float(root_N @ reward_N / (root_N @ root_N))
    left_N = reward_N - slope * root_N
    return slope, float(np.sqrt(left_N @ left_N / (len(left_N) - 1) / (root_N @ root_N)))


if __name__ == "__main__":
    main()
