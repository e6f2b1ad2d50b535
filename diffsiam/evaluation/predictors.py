"""How well scikit-learn's models predict factors from codes: importances (DCI), SAP, explicitness."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

# With max_features="sqrt", scikit-learn's default, trees are forced onto codes that know nothing, and even a
# perfect code of scalars scores a D of 0.7.
ESTIMATORS: dict[str, Callable[[int], Any]] = {
    "extra_trees": lambda seed: ExtraTreesClassifier(100, max_features=None, max_depth=10, random_state=seed),
    "gbt": lambda seed: GradientBoostingClassifier(random_state=seed),
    "l1": lambda seed: LogisticRegression(
        C=0.1, solver="saga", l1_ratio=1.0, max_iter=2000, random_state=seed
    ),
}


def importances(
    train: np.ndarray,
    train_y: np.ndarray,
    test: np.ndarray,
    test_y: np.ndarray,
    estimator: str = "extra_trees",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """DCI's R (d, K), columns summing to 1, and the test accuracy (K,) of a classifier of each factor.

    Args:
        train, test: (N, d) codes; a code without variance is left out and has importance 0.
        train_y, test_y: (N, K) int64.
        estimator: "extra_trees"; "gbt", what disentanglement_lib uses, hours at d = 512; "l1", a linear one.
            The choice decides the numbers: it is part of their name.
    """
    alive = train.std(axis=0) > 0
    result, accuracy = np.zeros((train.shape[1], train_y.shape[1])), np.zeros(train_y.shape[1])
    scaler = StandardScaler().fit(train[:, alive]) if alive.any() else None
    for k in range(train_y.shape[1]):
        if scaler is None:
            accuracy[k] = np.mean(test_y[:, k] == np.bincount(train_y[:, k]).argmax())
            continue
        model = ESTIMATORS[estimator](seed).fit(scaler.transform(train[:, alive]), train_y[:, k])
        found = abs(model.coef_).mean(axis=0) if estimator == "l1" else model.feature_importances_
        result[alive, k] = found / max(found.sum(), 1e-12)
        accuracy[k] = model.score(scaler.transform(test[:, alive]), test_y[:, k])
    return result, accuracy


def sap_matrix(train: np.ndarray, train_y: np.ndarray, test: np.ndarray, test_y: np.ndarray) -> np.ndarray:
    """Test accuracy of each factor from each single code by a linear SVM (C 0.01, balanced), (d, K).

    SAP (Kumar et al. 2018) is the mean over factors of best minus second best. A factor of several unordered
    values is no half-space of a scalar: a perfect scalar code of six values scores about 0.4.
    """
    scores = np.zeros((train.shape[1], train_y.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for i in range(train.shape[1]):
            for k in range(train_y.shape[1]):
                if train[:, i].std() > 0:
                    model = LinearSVC(C=0.01, class_weight="balanced").fit(train[:, i : i + 1], train_y[:, k])
                    scores[i, k] = model.score(test[:, i : i + 1], test_y[:, k])
    return scores


def auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over values of the one-vs-rest area under the ROC curve: 0.5 is chance (Ridgeway & Mozer 2018).

    Args:
        probabilities: (N, L), or anything that rises with them.
        labels: (N,) int64; a value that is absent, or the only one, is left out.
    """
    areas = []
    for value in np.unique(labels):
        positive = labels == value
        if not positive.all():
            areas.append(roc_auc_score(positive, probabilities[:, value]))
    return float(np.mean(areas)) if areas else 0.5
