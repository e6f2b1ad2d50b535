"""What must not change without being noticed: numbers of the toy task, checkpoints of every format."""

from __future__ import annotations

import json
import platform
import re
import shutil
from pathlib import Path
from typing import get_args

import numba
import numpy as np
import pytest
import torch
from fault_suite import belongs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite.binding import get_host_cpu_name
from training import logged

from engine.checkpoint import FORMAT, latest, save, verify
from engine.config import Config
from engine.config_errors import Origins
from engine.config_file import _validated, config_hash, dump, from_dict
from engine.data.order import locate, order
from engine.data.share import Share
from engine.errors import FAILURES, UsageError
from engine.verify import state, state_hash

pytestmark = [pytest.mark.faults]
GOLDEN = Path(__file__).resolve().parent / "golden"


def this_arithmetic() -> str:
    """What decides the last bits of a sum on a CPU."""
    models = {
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    }
    model = next(iter(models), platform.processor()).partition(":")[2].strip()
    compiled = f"numba {numba.__version__} for {get_host_cpu_name()}"  # the loops of the group norms
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {model}, {compiled}"


def test_twenty_steps_have_the_losses_they_always_had(launcher, tmp_path):
    launcher.run(tmp_path, "train.steps=20")
    recorded = json.loads((GOLDEN / "losses.json").read_text())
    losses = logged(tmp_path, "loss")
    if this_arithmetic() in recorded:
        assert losses == recorded[this_arithmetic()]
    for known in recorded.values():  # of other versions and processors, which sum in another order
        assert losses == pytest.approx(known, abs=2e-3)
        assert losses[0] == pytest.approx(known[0], rel=1e-5)


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_checkpoint_of_every_format_goes_on(number, launcher, tmp_path):
    shutil.copytree(GOLDEN / f"format_{number}", tmp_path / "run")
    assert "4 to 12, from" in launcher.run(tmp_path / "run")
    recorded = json.loads((GOLDEN / "hashes.json").read_text())
    if this_arithmetic() in recorded:
        assert state_hash(state(tmp_path / "run")) == recorded[this_arithmetic()], "as it always went on"


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_checkpoint_of_every_format_is_committed_whole(number):
    found = verify(GOLDEN / f"format_{number}" / "checkpoints" / "step_00000004")
    assert found.step == 4
    assert {"model", "ema", "optimizer"} <= {file.stem for file in found.path.glob("*.safetensors")}


PROMISES = (GOLDEN.parent.parent / "docs" / "reliability.md").read_text()


def test_every_promise_names_tests_that_exist_and_belong_to_the_suite():
    sections = PROMISES.split("\n## ")
    promises = [section for section in sections if re.match(r"R\d+ ", section)]
    assert [section.split()[0] for section in promises] == [f"R{i}" for i in range(1, 11)]
    for promise in promises:
        named = re.findall(r"\[(test_\w+\.py)::(test_\w+)\]", promise)
        assert named, promise.splitlines()[0]
        for file, test in named:
            source = (GOLDEN.parent / file).read_text()
            assert f"def {test}(" in source, f"{file}::{test}"
            assert "pytest.mark.faults" in source or belongs(file, test), f"{file}::{test}"


def test_every_kind_of_fault_names_tests_that_exist_and_belong_to_the_suite():
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", PROMISES, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 35))
    for number, tests in rows:
        for group in tests.split(";"):
            file, names = re.fullmatch(r" *`(\w+)`: ([\w, ]+)", group.strip()).groups()
            source = (GOLDEN.parent / f"test_{file}.py").read_text()
            for name in names.split(","):
                test = f"test_{name.strip()}"
                assert f"def {test}(" in source, f"{number}: {file}::{test}"
                assert "mark.faults" in source or belongs(f"test_{file}.py", test), f"{file}::{test}"


def test_every_kind_of_error_has_the_exit_code_of_the_table():
    listed = dict(re.findall(r"^\| (\d+) \| (\w+)", PROMISES.partition("\n## ")[0], re.MULTILINE))
    words = {"UsageError": "usage", "NumericsError": "numerics", "CheckpointError": "checkpoints"}
    words |= {"DataError": "data", "RankError": "ranks"}
    assert {str(kind.exit_code): words[kind.__name__] for kind in FAILURES}.items() <= listed.items()
    assert get_args(type(Config().run).model_fields["stop_code"].annotation) == (0, 75)
    assert {"0", "75"} <= listed.keys()


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8])
tensors = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 4), max_size=3), dtypes
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 10**9),
    st.dictionaries(
        st.sampled_from(["model", "ema", "x"]), st.dictionaries(names, tensors, max_size=3), min_size=1
    ),
    st.dictionaries(st.text(), plain, max_size=4),
    st.text(),
)
def test_any_tensors_and_state_come_back_as_they_were_saved(tmp_path_factory, step, held, facts, name):
    run = tmp_path_factory.mktemp("round")
    save(run, step, held, facts, name)
    found = latest(run)
    assert (found.step, found.config_hash, found.state) == (step, name, facts)
    for stem, named in held.items():
        loaded = found.load(stem)
        assert loaded.keys() == named.keys()
        assert all(
            torch.equal(loaded[key], tensor) and loaded[key].dtype == tensor.dtype
            for key, tensor in named.items()
        )


changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "notes": st.lists(st.text(), max_size=2),
        "train": st.fixed_dictionaries(
            {}, optional={"steps": st.integers(1, 10**7), "ema_decay": st.floats(0, 0.9999)}
        ),
        "optimizer": st.fixed_dictionaries(
            {}, optional={"lr": st.floats(1e-9, 1), "grad_clip": st.none() | st.floats(1e-3, 1e3)}
        ),
        "run": st.fixed_dictionaries(
            {"dir": names}, optional={"timeout": st.floats(1, 1e5), "skips": st.integers(0, 99)}
        ),
        "data": st.fixed_dictionaries(
            {"path": st.none() | names}, optional={"broken": st.none() | st.integers(0, 9)}
        ),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes)
def test_a_config_comes_back_from_its_text_with_the_same_hash(values):
    try:
        config = _validated(values, Origins("drawn", {}, {}))
    except UsageError:
        return  # a combination that cannot run
    again = from_dict(json.loads(dump(config)))
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert config_hash(config) == config_hash(config.model_copy(update={"run": Config().run}))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**64),
    st.integers(1, 97),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 20),
    st.integers(1, 3),
)
def test_ranks_and_accumulation_deal_every_image_of_an_epoch_once_whatever_their_numbers(
    seed, count, micro, world, accumulation, first, epochs
):
    batch = micro * world * accumulation
    steps = -(-(epochs * count + batch) // batch)
    dealt = []
    for step in range(first, first + steps):
        shares = [
            Share(batch, rank, world, micro, accumulation, step * accumulation) for rank in range(world)
        ]
        positions = [int(p) for run in range(accumulation) for share in shares for p in share[run]]
        assert sorted(positions) == list(range(step * batch, (step + 1) * batch))
        dealt += sorted(positions)
    epoch, place = locate(np.array(dealt), count)
    indices = order(seed, epoch, place, count)
    for number in set(epoch.tolist()):
        shown = indices[epoch == number].tolist()
        assert len(set(shown)) == len(shown), "no image twice"
        if len(shown) == count:
            assert sorted(shown) == list(range(count))
