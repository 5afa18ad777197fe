"""A walker with data of its own, named `scripted.starter` in a recipe: it reads neither labels nor prompts."""

from typing import ClassVar, Literal

from scripted import walker


class Config(walker.Config):
    READS: ClassVar[tuple[str, ...]] = ()

    name: Literal["scripted.starter"] = "scripted.starter"  # type: ignore[assignment]
