"""Labels (factors of Rooms, CelebA's list, a CSV), subsets and scales, as a command names them."""

import numpy as np
import pytest
from edited_runs import write_images
from image_sets import celeba

from diffsiam.subsets import Subsets, balanced_ends
from engine.data.rooms import FACTORS, LEVELS, Rooms
from engine.data.sources import FolderSource, RoomsSource, open_source
from engine.edit.attributes import read_labels, read_table
from engine.edit.choices import default_subsets, read_choices, read_scales, slug
from engine.errors import UsageError

NAMES = [factor.name for factor in FACTORS]
SPLIT = Subsets(balanced_ends(16, 4))


def rooms_labels(*asked):
    source, indices = RoomsSource(Rooms(16, 0, 200)), np.arange(200)
    return source.rooms.factors(indices), read_labels(source, indices, list(asked), None)


def test_a_factor_is_true_in_the_upper_half_of_its_values():
    levels, labels = rooms_labels("brightness", "quilt")
    for column, name in enumerate(("brightness", "quilt")):
        k = NAMES.index(name)
        assert (labels.values[:, column] == (2 * levels[:, k] >= LEVELS[k])).all()


def test_a_factor_s_value_is_true_where_it_is_it():
    levels, labels = rooms_labels("wall=navy")
    assert (labels.values[:, 0] == (levels[:, NAMES.index("wall")] == 4)).all()


def test_celeba_s_list_is_read_as_it_is_published(tmp_path):
    file = tmp_path / "list_attr_celeba.txt"
    file.write_text("2\n5_o_Clock_Shadow Young \n000001.jpg -1  1\n000002.jpg  1 -1\n")
    names, rows = read_table(file)
    assert names == ["5_o_Clock_Shadow", "Young"]
    assert rows == {"000001.jpg": [False, True], "000002.jpg": [True, False]}


@pytest.mark.parametrize("named_by", ["path", "name"])
def test_a_csv_labels_images_by_path_or_name_and_the_others_are_left_out(tmp_path, named_by):
    write_images(tmp_path / "in" / "deep", 4)
    source = FolderSource(tmp_path / "in")
    prefix = "deep/" if named_by == "path" else ""
    file = tmp_path / "labels.csv"
    file.write_text(f"image,warm,big\n{prefix}001.png,1,0\n{prefix}003.png,0,1\nelse.png,1,1\n")
    labels = read_labels(source, np.arange(4), ["big", "warm"], file)
    assert labels.names == ["big", "warm"]
    assert labels.indices.tolist() == [1, 3]
    assert labels.values.tolist() == [[False, True], [True, False]]
    assert read_labels(source, np.arange(4), [], file).names == ["warm"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("image,warm\n000.png,1,0\n", ":2: 2 labels for 1 attributes"),
        ("image,warm\n000.png,yes\n", "'yes' is neither 1 nor 0 nor -1"),
        ("image\n000.png\n", "names no attribute"),
        ("", "names no attribute"),
        ("image,warm\nother.png,1\n", "names none of the images"),
        ("image,warm\n000.png,1\n", "no such column; the nearest is warm"),
    ],
)
def test_what_is_wrong_with_a_file_of_labels_is_said_with_its_line(tmp_path, text, hint):
    write_images(tmp_path / "in", 1)
    file = tmp_path / "labels.csv"
    file.write_text(text)
    asked = ["worm"] if "column" in hint else []
    with pytest.raises(UsageError, match=hint):
        read_labels(FolderSource(tmp_path / "in"), np.arange(1), asked, file)


def test_a_set_with_attributes_of_its_own_needs_no_file(tmp_path):
    source = open_source("auto", celeba(tmp_path / "faces"), 16, 0, 0)
    labels = read_labels(source, np.array([1, 3, 4]), ["Young", "Bald"], None)
    assert labels.indices.tolist() == [1, 3, 4]
    assert labels.values.tolist() == [[bool(i >> 2 & 1), bool(i & 1)] for i in (1, 3, 4)]
    assert read_labels(source, np.arange(2), [], None).names == ["Bald"]
    with pytest.raises(UsageError, match="the nearest is Smiling"):
        read_labels(source, np.arange(2), ["smiling"], None)


def test_a_class_is_an_attribute_where_there_are_no_others(tmp_path):
    for name, count in (("cat", 2), ("dog", 3)):
        write_images(tmp_path / "in" / name, count)
    labels = read_labels(FolderSource(tmp_path / "in"), np.arange(5), ["dog", "cat"], None)
    assert labels.values.T.tolist() == [[False] * 2 + [True] * 3, [True] * 2 + [False] * 3]


def test_images_without_labels_need_a_file(tmp_path):
    write_images(tmp_path / "in", 1)
    with pytest.raises(UsageError, match="--labels: give a CSV"):
        read_labels(FolderSource(tmp_path / "in"), np.arange(1), [], None)


def test_ranges_are_half_open_and_counted_from_0_as_in_the_figures():
    first, single, none, everything = read_choices("0-2, 3,none,all", SPLIT)
    assert first.dims.nonzero()[:, 0].tolist() == list(range(8))
    assert single.dims.nonzero()[:, 0].tolist() == list(range(12, 16))
    assert single.name == "3-4"
    assert not none.dims.any()
    assert everything.dims.all()


def test_the_thesis_ranges_are_the_default_of_its_64_subsets():
    assert default_subsets(64) == "0-2,0-4,0-6,6-10,16-24,24-32,32-64"
    assert default_subsets(3) == "0-1,1-2,2-3"
    assert default_subsets(16) == "0-2,2-4,4-6,6-8,8-10,10-12,12-14,14-16"


def test_random_controls_have_as_many_dimensions_as_what_they_control():
    controls = read_choices("0-1,0-3", SPLIT, controls=True, seed=3)
    sizes = {c.name: int(c.dims.sum()) for c in controls}
    assert sizes["random 4 of 16 (as 0-1)"] == 4
    assert sizes["random 12 of 16 (as 0-3)"] == 12
    assert [c.moves_x_T for c in controls if "fixed" in c.name] == [False, False]


def test_scales_are_numbers_or_fractions():
    assert read_scales("0, 1/4,-0.5") == [0.0, 0.25, -0.5]


def test_a_file_name_holds_nothing_that_a_file_system_minds():
    assert slug("a b/c", "0-1, x_T fixed", "+0.5") == "a-b-c_0-1-x_T-fixed_+0.5"
