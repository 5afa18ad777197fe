"""A train step that makes no policy, named `scripted.scorer` in a recipe."""

from typing import ClassVar, Literal

from pipeline.algorithms.base import AlgorithmConfig, Product


class Config(AlgorithmConfig):
    MAKES: ClassVar[Product] = "reward"

    name: Literal["scripted.scorer"] = "scripted.scorer"
