"""What was computed -> the pictures of a report, each with its heading and caption."""

from fmnist_tracking import plots
from fmnist_tracking.inspection import ModelInspection
from fmnist_tracking.redact import printable
from fmnist_tracking.reports.page import Picture
from fmnist_tracking.results import Evaluation, SearchResult, TrainingResult


def curves(history: TrainingResult, subject: str) -> Picture:
    """Draw a trial's loss and accuracy by epoch; `subject` names the trial."""
    which, so = "last", "are none of the model that is kept."
    if history.validation is not None:
        which, so = "best", "can look worse than the validation figures."
    return Picture(
        file="learning_curves.png",
        heading="Learning curves",
        caption=f"Loss and accuracy after each epoch. The model kept is the {which} epoch's. "
        f"Training figures are taken while the weights change, with any dropout on, and so {so}",
        png=plots.png(plots.learning_curves(history, f"Learning curves of {subject}")),
    )


def confusion(evaluation: Evaluation, subject: str) -> Picture:
    """Draw which classes are taken for which."""
    return Picture(
        file="confusion_matrix.png",
        heading="Confusion matrix",
        caption="Each row holds the test images of one true class; the diagonal counts "
        "those classified rightly.",
        png=plots.png(plots.confusion_matrix(evaluation, f"Confusion matrix of {subject}")),
    )


def grid(search: SearchResult) -> Picture:
    """Draw every point of a search."""
    label = search.objective.label
    return Picture(
        file="grid.png",
        heading="What each hyperparameter did",
        caption=f"{label[0].upper()}{label[1:]} of every point. A thin line joins the points that "
        "differ in that one setting; the thick line is their mean; the star is the best point.",
        png=plots.png(plots.search_grid(search)),
    )


def activations(seen: ModelInspection, subject: str, seed: int) -> list[Picture]:
    """Draw the first sample, and its activation maps in a convolution, if the network has one."""
    image, truth = seen.images[0], seen.class_names[seen.labels[0]]
    guess = seen.class_names[int(seen.probabilities[0].argmax())]
    picture = Picture(
        file="sample.png",
        heading="A sample",
        caption=f"{seen.part.capitalize()} image {seen.chosen[0]}, chosen with seed {seed}.",
        png=plots.png(plots.sample(image, truth, guess, f"Sample for {subject}")),
    )
    if seen.layer is None:
        return [picture]
    count, height, width = seen.maps.shape
    shape = f"{count} maps of {height}×{width}"  # noqa: RUF001  # the sign people read
    layer = printable(seen.layer)
    title = f"Activations of {subject} in {layer}: {shape}"
    return [
        picture,
        Picture(
            file="activations.png",
            heading=f"What the layer {layer} sees in it",
            caption=f"{shape}, one for each filter, after the layer's activation: bright where a "
            "filter answers strongly.",
            png=plots.png(plots.activations(seen.maps, title)),
        ),
    ]


def predictions(seen: ModelInspection, subject: str, seed: int) -> Picture:
    """Draw the samples, each with the class that the model predicts."""
    figure = plots.predictions(
        seen.images,
        seen.labels,
        seen.probabilities,
        seen.class_names,
        seen.part,
        f"Predictions of {subject}",
    )
    return Picture(
        file="predictions.png",
        heading="Predictions",
        caption=f"{len(seen.chosen)} {seen.part} images chosen with seed {seed}: green and ticked "
        "where the prediction is right, red and crossed, with the true class, where it is wrong. "
        "The share is the probability the model gives its prediction.",
        png=plots.png(figure),
    )
