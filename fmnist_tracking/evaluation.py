"""Labels and probabilities -> numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import classification_report, confusion_matrix, log_loss

from fmnist_tracking.results import ClassScores, Evaluation

MACRO = "macro avg"
WEIGHTED = "weighted avg"


def evaluate(
    labels: NDArray[np.uint8], probabilities: NDArray[np.float32], class_names: Sequence[str]
) -> Evaluation:
    """Score class probabilities against the true labels.

    Precision, recall and F1 are scikit-learn's, 0 where a class was never predicted.

    Args:
        labels: integers 0..9, shape (n,).
        probabilities: shape (n, 10).
        class_names: ten names, in label order.
    """
    numbers = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    report = classification_report(
        labels,
        predicted,
        labels=numbers,
        target_names=list(class_names),
        output_dict=True,
        zero_division=0.0,
    )
    confusion = confusion_matrix(labels, predicted, labels=numbers)
    # Rows of float32 probabilities sum to 1 only to within float32; log_loss asks for float64.
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    return Evaluation(
        accuracy=float(np.mean(predicted == labels)),
        loss=float(log_loss(labels, exact, labels=numbers)),
        classes=tuple(_scores(name, report[name]) for name in class_names),
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
