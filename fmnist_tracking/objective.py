"""Objectives: the figure of the validation images by which epochs and points are compared."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A figure of the validation images, and whether a point is the better for more of it.

    Attributes:
        name: as it is typed, and as Keras calls it where it has it.
        label: for people.
        average, score: of `Evaluation` and `ClassScores`, what it is; "" for accuracy and loss.
        is_loss: whether less of it is better; it has no upper bound.
    """

    name: str
    label: str
    average: str = ""
    score: str = ""
    is_loss: bool = False

    @property
    def direction(self) -> str:
        """Return `max` or `min`, as KerasTuner does."""
        return "min" if self.is_loss else "max"

    def show(self, value: float) -> str:
        """Return a value for people: a share of one as a percentage, a loss as a number."""
        return f"{value:.4f}" if self.is_loss else f"{value:.2%}"

    def goodness(self, value: float) -> float:
        """Return a number that is the larger the better a value is."""
        return -value if self.is_loss else value


VAL_ACCURACY = Objective(name="val_accuracy", label="validation accuracy")
OBJECTIVES = {
    objective.name: objective
    for objective in (
        VAL_ACCURACY,
        Objective(name="val_loss", label="validation loss", is_loss=True),
        Objective(name="val_macro_f1", label="validation macro F1", average="macro", score="f1"),
        Objective(
            name="val_macro_precision",
            label="validation macro precision",
            average="macro",
            score="precision",
        ),
        Objective(
            name="val_macro_recall",
            label="validation macro recall",
            average="macro",
            score="recall",
        ),
        Objective(
            name="val_weighted_f1", label="validation weighted F1", average="weighted", score="f1"
        ),
    )
}
