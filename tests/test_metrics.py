import numpy as np
import pytest

from fmnist_tracking.metrics import evaluate

NAMES = tuple("abcdefghij")


def probabilities(predicted: list[int], confidence: float = 0.91) -> np.ndarray:
    rows = np.full((len(predicted), 10), (1 - confidence) / 9, dtype=np.float32)
    rows[np.arange(len(predicted)), predicted] = confidence
    return rows


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2], dtype=np.uint8)
    result = evaluate(labels, probabilities([0, 0, 1, 1, 0, 2]), NAMES)
    assert result.accuracy == 4 / 6
    a, b, c, d = result.classes[:4]
    assert (a.precision, a.recall, a.f1, a.support) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))
    assert (b.precision, b.recall, b.support) == (0.5, 0.5, 2)
    assert (c.precision, c.recall, c.f1) == (1, 1, 1)
    assert (d.precision, d.recall, d.f1, d.support) == (0, 0, 0, 0)  # never seen, never guessed
    assert result.macro.f1 == pytest.approx((2 / 3 + 0.5 + 1) / 10)
    assert result.weighted.recall == pytest.approx(4 / 6)
    assert result.confusion[0][:2] == (2, 1)
    assert sum(map(sum, result.confusion)) == 6
    assert result.loss == pytest.approx(-(4 * np.log(0.91) + 2 * np.log(0.01)) / 6, rel=1e-4)


def test_class_names_keep_label_order() -> None:
    result = evaluate(np.arange(10, dtype=np.uint8), probabilities(list(range(10))), NAMES)
    assert tuple(scores.name for scores in result.classes) == NAMES
    assert result.accuracy == result.macro.f1 == 1
