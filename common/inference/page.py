"""The flags of a page of handwriting: without torch, so that they are read and checked at once."""

from dataclasses import dataclass

from common.cli import TrainingFlags, check_range


@dataclass
class PageFlags(TrainingFlags):
    """The flags of `--write`, which the Config of gan_mnist.py inherits."""

    style: int = 0
    """Seed of the hand of --write; --seed is that of how its characters differ from each other."""
    width: int = 1600
    """Width of the page of --write in pixels, at most: longer lines wrap at spaces."""
    height: int = 128
    """Height of a line of --write in pixels, from one baseline to the next: 3.2 times that of an x."""
    ink: str = "black"
    """Colour of --write, by name or as #rrggbb."""
    paper: str = "transparent"
    """Background of --write: a colour, or transparent."""

    def check(self) -> None:
        """Refuses, with a UserError, values that cannot be used."""
        super().check()
        check_range(self, style=(0, 2**32 - 1), height=(16, 1_000), width=(4 * self.height, 20_000))


PAGE = ("style", "width", "height", "ink", "paper")
