"""An image that one rank cannot read: all ranks end at once, with the code of data, or all go on."""

import time

import pytest
from image_sets import picture

pytest.importorskip("nvidia.dali")
pytestmark = [pytest.mark.faults]


@pytest.fixture
def images(tmp_path):
    """A folder with one broken image, which is in the share of one rank."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(16):
        picture(i).save(folder / f"{i}.jpg")
    (folder / "9.jpg").write_bytes(b"no image")
    return "data.source=auto", f"data.path={folder}", "data.resident=off", "log.grid_images=1"


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_an_image_that_one_rank_cannot_read_ends_all_ranks_with_code_5(
    accumulation, images, launcher, tmp_path
):
    options = (*images, f"train.accumulation={accumulation}")
    ranks = launcher.start(tmp_path / "run", *options, world=2)
    codes = [ranks[0].wait()]
    ended = time.monotonic()
    codes.append(ranks[1].wait())
    assert codes == [5, 5], ranks[0].output()
    assert time.monotonic() - ended < 10
    said = [[line for line in rank.output().splitlines() if line.startswith("error:")] for rank in ranks]
    assert [len(lines) for lines in said] == [1, 1]
    reader = next(rank for rank in (0, 1) if "9.jpg" in said[rank][0])
    assert said[1 - reader][0] == f"error: rank {reader} cannot read the images, see the line of its own"


@pytest.mark.thorough
def test_an_image_within_the_budget_ends_no_rank(images, launcher, tmp_path):
    said = launcher.run(tmp_path / "run", *images, "data.broken=1", world=2)
    assert said.count("passed over a broken image") == 1
