"""Scores of class probabilities and predictions against the true labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import classification_report, confusion_matrix

from fmnist_tracking.results import ClassScores, Evaluation

MACRO = "macro avg"
WEIGHTED = "weighted avg"
# As in Keras: a probability of 0 costs 16 nats rather than infinity.
_SMALLEST_PROBABILITY = 1e-7


def cross_entropy(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> float:
    """Compute the mean cross-entropy in nats.

    It is the mean of minus the natural logarithm of the true class's probability.

    Args:
        labels: integers from 0 on, shape (n,).
        probabilities: shape (n, classes); values below 1e-7 count as 1e-7, as in Keras.
    """
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(of_truth, _SMALLEST_PROBABILITY, 1)).mean())


def accuracy(labels: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> float:
    """Compute the share of images, 0 to 1, whose predicted class is the true one.

    Args:
        labels: integers from 0 on, shape (n,).
        predicted: integers from 0 on, shape (n,).
    """
    return float(np.mean(predicted == labels))


def predicted_labels(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the most probable class of each row: shape (n, classes) -> uint8, shape (n,)."""
    return np.asarray(probabilities.argmax(axis=1), dtype=np.uint8)


def evaluate(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32], class_names: Sequence[str]
) -> Evaluation:
    """Score class probabilities, shape (n, classes), against the true labels; see `score`."""
    loss = cross_entropy(labels, probabilities)
    return score(labels, predicted_labels(probabilities), loss, class_names)


def score(
    labels: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    loss: float,
    class_names: Sequence[str],
) -> Evaluation:
    """Score predicted classes against the true labels.

    Precision, recall and F1 are scikit-learn's; they are 0 for a class that was never predicted.

    Args:
        labels: integers from 0 on, shape (n,).
        predicted: integers from 0 on, shape (n,).
        loss: the mean cross-entropy of the probabilities behind them, in nats.
        class_names: in label order.
    """
    numbers = np.arange(len(class_names))
    report = classification_report(
        labels,
        predicted,
        labels=numbers,
        target_names=[str(number) for number in numbers],  # a name may be "accuracy"
        output_dict=True,
        zero_division=0.0,
    )
    confusion = confusion_matrix(labels, predicted, labels=numbers)
    return Evaluation(
        accuracy=accuracy(labels, predicted),
        loss=loss,
        classes=tuple(_scores(name, report[str(n)]) for n, name in enumerate(class_names)),
        macro=_scores(MACRO, report[MACRO]),
        weighted=_scores(WEIGHTED, report[WEIGHTED]),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
    )


def _scores(name: str, row: dict[str, float]) -> ClassScores:
    return ClassScores(
        name=name,
        precision=float(row["precision"]),
        recall=float(row["recall"]),
        f1=float(row["f1-score"]),
        support=int(row["support"]),
    )
