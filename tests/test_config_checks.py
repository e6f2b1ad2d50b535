"""Combinations of config values that cannot run are refused with the key to change."""

from __future__ import annotations

import pytest
from config_files import ROOMS, refusal, rooms, write

from engine.config_checks import micro_batch
from engine.errors import UsageError


def staged(stages: str, dims: str) -> list[str]:
    return ["subsets.split=staged", f"subsets.stages={stages}", f"subsets.dims_per_stage={dims}"]


def boundaries(values: str) -> list[str]:
    return ["subsets.choice=profile", "subsets.n=4", f"subsets.boundaries={values}"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["subsets.n=7"], "must divide encoder.dim = 512"),
        (["subsets.n=512", "schedule.steps=512"], "must be below schedule.steps = 512"),
        (["train.batch_size=10", "train.accumulation=4"], "must divide train.batch_size = 10"),
        (["schedule.beta_start=0.5"], "exceeds schedule.beta_end = 0.02"),
        (["frozen.channel_mult=[1,2,2,2,2,2]"], "use a multiple of 32"),
        (["frozen.channel_mult=[1,2]", "frozen.attention=[4]"], "never downsamples by 4"),
        (
            ["frozen.channel_mult=[1,2]", "frozen.base_channels=32", "frozen.heads=3"],
            "does not divide the 64",
        ),
        (["simsiam.weight=0"], "nothing to train"),
        (["data.path=/tmp"], "data.source=auto"),
        (["data.px=8"], "draws 16 to 128 px"),
        (["data.source=folder", "report.factors=true"], "set report.factors=false"),
        (["encoder.width=7"], "crashes inside torch; use 8 or more"),
        (["encoder.arch=pdae"], "exists for data.px = 64 and 128"),
        (["subsets.choice=full", "subsets.detach=true"], "only the last would be trained"),
        (["subsets.choice=full", "subsets.mask=sequential"], "only the last would be trained"),
        (["subsets.mask=sequential", "subsets.detach=true"], "nothing before it to detach"),
        (["subsets.choice=profile"], "set subsets.choice=full"),
        (boundaries("[10,20]"), "needs 3"),
        (boundaries("[10,30,20]"), "must ascend strictly"),
        (boundaries("[0,20,30]"), "must ascend strictly"),
        (boundaries("[10,20,996]"), "must ascend strictly between 0 and 996"),
        ([*boundaries("[10,20,1000]"), "jump.steps=none"], "must ascend strictly between 0 and 1000"),
        (["subsets.choice=time_tied", "schedule.steps=100"], "exceeds the 36 times t"),
        (["subsets.split=staged"], "needs subsets.stages and subsets.dims_per_stage"),
        (staged("[9,1000]", "[512]"), "has 1 entries for 2"),
        (staged("[500,900]", "[256,256]"), "must ascend and end at schedule.steps = 1000"),
        (staged("[500,400,1000]", "[256,128,128]"), "must ascend and end at schedule.steps = 1000"),
        (staged("[500,1000]", "[256,255]"), "adds up to 511"),
        (staged("[500,1000]", "[500,12]"), "12 entries of z for 32 subsets"),
        (staged("[5,10,1000]", "[4,4,504]"), "4 entries of z for 0 subsets"),
        (["task=diffusion"], "needs its shape: set frozen.base_channels"),
        (["task=diffusion", "frozen.weights=random"], "leave it null"),
        (["task=diffusion", "frozen.learn_sigma=true"], "not trained by Eq. 3.4"),
        (["loss.weight=1", "frozen.weights=random"], "needs its shape: set frozen.base_channels"),
    ],
    ids=str,
)
def test_an_impossible_combination_is_refused(overrides, reason, tmp_path):
    assert reason in refusal(write(tmp_path, ROOMS), *overrides)


def test_one_image_is_no_batch_for_batch_norm(tmp_path):
    alone = ["train.batch_size=4", "train.accumulation=4"]
    with pytest.raises(UsageError, match="one image per pass"):
        micro_batch(rooms(tmp_path, *alone), world=1)
    without = ["simsiam.weight=0", "loss.weight=1", "frozen.weights=random", "frozen.base_channels=32"]
    shape = ["frozen.channel_mult=[1]", "frozen.blocks=1", "frozen.attention=[]"]
    assert micro_batch(rooms(tmp_path, *alone, *without, *shape), world=1) == 1
    with pytest.raises(UsageError, match="one image per pass"):
        micro_batch(rooms(tmp_path, *alone, *without, *shape, "encoder.norm=batch"), world=1)


def test_an_encoder_without_a_width_is_not_asked_for_one(tmp_path):
    assert rooms(tmp_path, "encoder.arch=pdae", "data.px=64", "encoder.width=1").encoder.arch == "pdae"


def test_the_unequal_split_of_diti_is_possible(tmp_path):
    config = rooms(tmp_path, *staged("[50,100,300,500,1000]", "[10,25,327,100,50]"))
    assert sum(config.subsets.dims_per_stage or ()) == config.encoder.dim


def test_the_global_batch_is_shared_by_ranks_and_accumulation_steps(tmp_path):
    config = rooms(tmp_path, "train.batch_size=48", "train.accumulation=2")
    assert [micro_batch(config, world) for world in (1, 2, 8)] == [24, 12, 3]
    with pytest.raises(UsageError, match=r"train\.batch_size=40 or train\.batch_size=50"):
        micro_batch(config, 5)
