"""Statistics on the device, and the files they go to."""

import json
import math

import pytest
import torch

from engine.collapse import collapse_warning
from engine.metrics import JsonLines, Metrics, TensorBoard, feature_std

torch.set_num_threads(1)


def test_means_are_weighted_by_their_counts_and_start_again_after_a_flush():
    metrics = Metrics("cpu")
    metrics.add("loss", torch.tensor(1.0), 3)
    metrics.add("loss", torch.tensor(5.0), 1)
    metrics.add("norm", torch.tensor(2.0, dtype=torch.bfloat16))
    assert metrics.flush() == {"loss": 2.0, "norm": 2.0}
    metrics.add("norm", torch.tensor(4.0))
    assert metrics.flush() == {"norm": 4.0}
    assert metrics.flush() == {}


def test_bins_hold_the_mean_of_their_own_values_and_none_where_empty():
    metrics = Metrics("cpu")
    metrics.add_by("loss_by_t", torch.tensor([0, 2, 2]), torch.tensor([1.0, 2.0, 4.0]), 4)
    metrics.add_by("loss_by_t", torch.tensor([0]), torch.tensor([3.0]), 4)
    metrics.add("loss", torch.tensor(7.0))
    assert metrics.flush() == {"loss": 7.0, "loss_by_t": [2.0, None, 3.0, None]}


def test_a_million_small_losses_do_not_drift():
    metrics = Metrics("cpu")
    metrics.add("loss", torch.tensor(1.0), 10_000_000)
    for _ in range(1000):
        metrics.add("loss", torch.tensor(1e-3), 1)
    assert metrics.flush()["loss"] == pytest.approx((1e7 + 1.0) / (1e7 + 1e3), rel=1e-12)


def test_adding_never_reads_a_value_back():
    metrics = Metrics("meta")  # a device without values: whatever needs one raises
    metrics.add("loss", torch.zeros((), device="meta", requires_grad=True), 8)
    metrics.add_by("by", torch.zeros(8, dtype=torch.int64, device="meta"), torch.zeros(8, device="meta"), 4)
    with pytest.raises((NotImplementedError, RuntimeError)):
        metrics.flush()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_adding_never_waits_for_the_gpu():
    metrics, one = Metrics("cuda"), torch.ones(8, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.add("loss", one[0], 8)
        metrics.add_by("by", one.long(), one, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics.flush() == {"loss": 1.0, "by": [None, 1.0, None, None]}


def test_a_flush_reduces_and_reads_exactly_one_tensor():
    seen = []

    def sum_of_two_equal_ranks(packed):
        seen.append(packed.shape)
        return packed * 2

    metrics = Metrics("cpu")
    metrics.add("b", torch.tensor(1.0))
    metrics.add("a", torch.tensor(2.0), 4)
    metrics.add_by("c", torch.tensor([1]), torch.tensor([3.0]), 2)
    assert metrics.flush(sum_of_two_equal_ranks) == {"a": 2.0, "b": 1.0, "c": [None, 3.0]}
    assert seen == [torch.Size([2 + 2 + 4])]


def test_two_ranks_that_added_in_another_order_are_summed_name_by_name():
    first, second = Metrics("cpu"), Metrics("cpu")
    first.add("a", torch.tensor(1.0), 1)
    first.add("b", torch.tensor(10.0), 1)
    second.add("b", torch.tensor(20.0), 3)
    second.add("a", torch.tensor(3.0), 1)
    packed = []
    second.flush(lambda tensor: packed.append(tensor.clone()) or tensor)
    assert first.flush(lambda tensor: tensor + packed[0]) == {"a": 2.0, "b": 17.5}


def test_a_resumed_log_has_every_step_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = JsonLines(path)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    with open(path, "a") as stream:
        stream.write('{"step": 15, "lo')  # the power went

    log = JsonLines(path, step=20)
    log.write(30, {"loss": 9.0})
    log.close()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 9.0}]


def test_a_line_is_on_disk_at_once_and_valid_json_even_for_nan(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.write(1, {"loss": math.nan, "by": [1.0, None, math.inf]})
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "loss": None, "by": [1.0, None, None]}
    log.close()


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.write(5, {"loss": 0.5, "by": [1.0, None, 3.0]})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "loss": 0.5,
        "by/00": 1.0,
        "by/02": 3.0,
    }


def test_spread_features_are_not_called_collapsed_and_equal_ones_are():
    torch.manual_seed(0)
    d = 512
    spread, behind_relu = torch.randn(256, d), torch.randn(256, d).relu()
    collapsed = torch.randn(1, d) + 0.01 * torch.randn(256, d)
    assert float(feature_std(spread)) * d**0.5 == pytest.approx(1, abs=0.02)
    assert collapse_warning(float(feature_std(spread)), d) is None
    assert collapse_warning(float(feature_std(behind_relu)), d) is None
    assert "collapsing" in collapse_warning(float(feature_std(collapsed)), d)
