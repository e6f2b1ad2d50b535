"""`diffsiam evaluate`: data, cache and tables; and the scores that only it uses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn

from diffsiam.encoder import build_encoder
from diffsiam.evaluation.attributes import (
    Fold,
    average_precision,
    binary_attributes,
    pearson,
    real_attributes,
)
from diffsiam.evaluation.knn import knn_predict
from diffsiam.evaluation.linear import RECIPES, LinearRecipe, lbfgs_accuracy, linear_accuracy, train_linear
from diffsiam.evaluation.reconstruction import mean_squared_error, structural_similarity
from engine.errors import UsageError
from engine.suites.crops import crops, zoomed
from engine.suites.described import celeba, lfw, rooms_described
from engine.suites.features import Features
from engine.suites.labelled import Part, folder_set, rooms_sets
from engine.suites.tables import flat, grids_of, write
from engine.suites.vision import draw_split


def clusters(samples: int = 300, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return 4 * torch.eye(classes, 8)[y] + 0.5 * torch.randn(samples, 8, generator=generator), y


def picture(path: Path, size: int = 20, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size + 4, 3), shade, np.uint8)).save(path)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_learns_what_is_separable(name):
    (x, y), (test, test_y) = clusters(), clusters(seed=1)
    recipe = RECIPES[name]
    if recipe.optimizer == "lars":  # its steps are thousandths of the weights, as many as ImageNet has
        recipe = replace(recipe, epochs=3000)
    else:
        recipe = replace(recipe, epochs=60, batch=64, lr=min(recipe.lr, 0.5))
    assert linear_accuracy(train_linear([x], y, 3, recipe), test, test_y) > 0.95


def test_linear_training_is_a_function_of_its_seed():
    x, y = clusters()
    short = LinearRecipe("sgd", 0.1, 2, 64)
    one, same, other = (train_linear([x], y, 3, short, seed).weight for seed in (0, 0, 1))
    assert one.equal(same)
    assert not one.equal(other)


def test_the_deterministic_variant_and_neighbours_agree_on_clusters():
    (x, y), (test, test_y) = clusters(), clusters(seed=1)
    assert lbfgs_accuracy(x, y, test, test_y, 3) > 0.98
    assert (knn_predict(x, y, test, 3, neighbours=20) == test_y).double().mean() > 0.98


def test_neighbours_do_not_depend_on_batches_or_scale():
    (x, y), (test, _) = clusters(), clusters(seed=1)
    plain = knn_predict(x, y, test, 3)
    assert plain.equal(knn_predict(5 * x, y, 3 * test, 3, batch_size=7))


def test_average_precision_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (200, 3)), rng.normal(size=(200, 3)).round(1)
    found = average_precision(torch.from_numpy(scores), torch.from_numpy(labels))
    np.testing.assert_allclose(found, [average_precision_score(labels[:, k], scores[:, k]) for k in range(3)])
    assert np.isnan(average_precision(torch.zeros(4, 1), torch.zeros(4, 1))).all()


def test_pearson_is_that_of_numpy_and_0_for_a_constant():
    a, b = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
    assert pearson(a, b)[0] == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1])
    assert pearson(torch.ones(5, 1), torch.arange(5.0)[:, None])[0] == 0


def test_attributes_are_learned_and_test_is_not_looked_at_in_the_choice():
    z = torch.randn(1500, 6, generator=torch.Generator().manual_seed(0))
    real = z @ torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    parts = (slice(0, 1000), slice(1000, 1250), slice(1250, 1500))
    train, validation, test = (Fold(z[part], (real[part] > 0).float()) for part in parts)
    assert binary_attributes(train, validation, test).min() > 0.85  # after 120 small steps; chance is a half
    train, validation, test = (Fold(z[part], real[part]) for part in parts)
    r, error = real_attributes(train, validation, test)
    shuffled = Fold(test.z, test.y.flip(0))
    assert r.min() > 0.5
    assert error.max() < 1
    assert real_attributes(train, validation, shuffled)[0].max() < 0.3


def test_an_image_is_like_itself_and_less_like_a_noisy_or_a_foreign_one():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, 16, 16, generator=generator)
    noisy = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    same, near, far = (structural_similarity(a, other) for other in (a, noisy, b))
    torch.testing.assert_close(same, torch.ones(2))
    assert (near < 0.99).all()
    assert (far < near).all()
    torch.testing.assert_close(mean_squared_error(a, a), torch.zeros(2))
    with pytest.raises(ValueError, match="window of 11"):
        structural_similarity(a[..., :8], a[..., :8])


def test_a_folder_with_train_and_test_keeps_its_parts_and_limits_keep_all_classes(tmp_path):
    for part, count in (("train", 6), ("test", 3)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.png", shade=40 * c + i)
    data = folder_set(tmp_path, 16)
    assert data.classes == 2
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert data.test.pixels().shape == (6, 16, 16, 3)
    small = folder_set(tmp_path, 16, limit=4)
    assert small.train.labels.tolist() == [0, 0, 1, 1]
    assert small.train.key != data.train.key


def test_a_folder_without_parts_is_split_by_class_and_nothing_is_in_both(tmp_path):
    for c, name in enumerate(("a", "b")):
        for i in range(10):
            picture(tmp_path / name / f"{i}.png", shade=100 * c + i)
    data = folder_set(tmp_path, 16)
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    shades = [set(part.pixels()[:, 0, 0, 0].tolist()) for part in (data.train, data.test)]
    assert not shades[0] & shades[1]
    assert len(shades[0] | shades[1]) == 20


def test_images_without_a_class_are_refused(tmp_path):
    picture(tmp_path / "one.png")
    with pytest.raises(UsageError, match="without a class"):
        folder_set(tmp_path, 16)


def test_drawn_splits_have_their_numbers_and_no_overlap():
    labels = np.repeat(np.arange(4), 40)
    train, test = draw_split(labels, 30, None)
    assert np.bincount(labels[train]).tolist() == [30] * 4
    assert np.bincount(labels[test]).tolist() == [10] * 4
    assert not set(train) & set(test)
    assert len(draw_split(labels, 10, 5)[1]) == 20


def test_rooms_train_and_test_parts_are_other_rooms():
    data = rooms_sets(16, limit=40)
    assert {d.name for d in data} >= {"Rooms wall", "Rooms quilt"}
    assert (data[0].train.pixels()[:5] != data[0].test.pixels()[:5]).any()
    parts = rooms_described(16, binary=False, limit=20).parts
    assert [values.shape for _, values in parts] == [(20, 12)] * 3


def test_celeba_and_lfw_are_read_as_they_are_downloaded(tmp_path):
    faces, people = tmp_path / "celeba", tmp_path / "lfw-py"
    rows = [f"{i:06d}.jpg {' '.join('1' if (i + k) % 2 else '-1' for k in range(2))}" for i in range(6)]
    for i in range(6):
        picture(faces / "img_align_celeba" / f"{i:06d}.jpg", 218)
    (faces / "list_attr_celeba.txt").write_text("\n".join(["6", "Smiling Young", *rows]) + "\n")
    (faces / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg {i // 2}\n" for i in range(6)))
    found = celeba(tmp_path, 16)
    assert found.names == ["Smiling", "Young"]
    assert [values.tolist() for _, values in found.parts] == [[[0, 1], [1, 0]]] * 3
    assert found.parts[0][0].pixels().shape == (2, 16, 16, 3)

    lines = ["# lfw_attributes", "#\tperson\timagenum\tMale\tAsian"]
    for part in ("Train", "Test"):
        for person in range(5):
            name = f"{part}_{person}"
            picture(people / "lfw_funneled" / name / f"{name}_0001.jpg", 250)
            lines.append(f"{name.replace('_', ' ')}\t1\t{person}.5\t-1.0")
        listed = "".join(f"{part}_{person}\t1\n" for person in range(5))
        (people / f"peopleDev{part}.txt").write_text(f"5\n{listed}")
    (people / "lfw_attributes.txt").write_text("\n".join(lines) + "\n")
    found = lfw(tmp_path, 16)
    assert found.names == ["Male", "Asian"]
    assert [len(values) for _, values in found.parts] == [4, 1, 5]
    assert found.parts[2][1][:, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="list_attr_celeba.txt"):
        celeba(tmp_path, 16)


def run_of(encoder: nn.Module, folder: Path) -> SimpleNamespace:
    return SimpleNamespace(model=SimpleNamespace(encoder=encoder), run_dir=folder, config_hash="h", step=3)


def test_features_are_computed_once_and_again_for_another_step(tmp_path):
    asked = []
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)

    def pixels() -> np.ndarray:
        asked.append(1)
        return images

    part, encoder = Part(pixels, np.zeros(6, int), "six"), build_encoder("resnet10", 16, 8, 8)
    run = run_of(encoder, tmp_path)
    first, second = Features(run)(part), Features(run)(part)
    assert first.equal(second)
    assert len(asked) == 1
    run.step = 4
    Features(run)(part)
    assert len(asked) == 2


def test_the_company_of_an_image_does_not_change_its_features(tmp_path):
    """Were the encoder in training mode, batch norm would leak the other images into z."""
    encoder = build_encoder("resnet10", 16, 8, 8, norm="batch").train()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8))
    features = Features(run_of(encoder, tmp_path))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.testing.assert_close(features.encode(images)[:2], features.encode(images[:2]))
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


def test_crops_are_of_the_image_and_of_the_seed():
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 20, 24, 3) * 50
    one = crops(images, 16, seed=0)
    assert one.shape == (4, 16, 16, 3)
    assert (one[:, 0, 0, 0] == images[:, 0, 0, 0]).all()
    ramp = torch.arange(24, dtype=torch.uint8).expand(4, 20, 24)[..., None].expand(-1, -1, -1, 3).contiguous()
    assert crops(ramp, 16, 0).equal(crops(ramp, 16, 0))
    assert not crops(ramp, 16, 0).equal(crops(ramp, 16, 1))
    assert zoomed(ramp, 16).shape == (4, 16, 16, 3)


RECORD = {
    "run": "mine",
    "encoder": "resnet10",
    "data": "rooms",
    "px": 16,
    "step": 5,
    "batch": 8,
    "results": {
        "many-shot": {"CIFAR10": {"score": 0.5}, "own": {"score": 0.25}},
        "few-shot": {
            "CIFAR10": {
                s: {"linear": {"mean": 0.4, "ci95": 0.01}, "nearest_mean": {"mean": 0.3, "ci95": 0.01}}
                for s in ("1", "5", "10")
            },
            "own": {"1": {"skipped": "too few"}},
        },
        "linear": {"own": {"accuracy": 0.125, "recipe": "A"}},
    },
}


def test_tables_have_the_thesis_layout_and_its_numbers_beside_ours():
    grids = {grid.title[:9]: grid for grid in grids_of(RECORD)}
    many, few = grids["Many-shot"], grids["5-way few"]
    assert many.columns[1:4] == ["CIFAR10", "Aircraft", "Caltech"]
    assert many.columns[-2:] == ["own", "Avg."]
    assert many.rows[2][1:3] == ["90.880", "27.097"]
    assert many.rows[2][-1] == "43.759"  # the thesis' own average
    assert many.rows[3][1] == "50.00"
    assert many.rows[3][-2:] == ["25.00", "37.50"]
    assert few.rows[0][:2] == ["1-shot, thesis: SimSiam", "37.44±0.34"]
    assert few.rows[3][1] == "40.00±1.00"
    assert few.rows[3][-1] == "-"


def test_files_are_written_in_every_form(tmp_path):
    write(RECORD, tmp_path)
    tex, md = (tmp_path / "tables.tex").read_text(), (tmp_path / "tables.md").read_text()
    assert r"37.44$\pm$0.34" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 3
    assert "not comparable" in md
    assert "many-shot.own.score,0.25" in (tmp_path / "results.csv").read_text()
    assert dict(flat({"a": {"b": 1}, "c": True, "d": [1]})) == {"a.b": 1}
    json.dumps(RECORD)
