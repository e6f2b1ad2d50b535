"""Which routine computes attention: measured on CUDA, alike on all ranks, and told."""

import pytest
import torch
from config_files import rooms
from torch.nn.attention import SDPBackend

from diffsiam import attention_routines
from diffsiam.attention import AttentionBlock
from diffsiam.attention_routines import (
    ROUTINES,
    attend_by,
    attend_products,
    attend_sdpa,
    choose_attention,
    fastest,
    measure,
)
from diffsiam.unet import UNet, UNetConfig
from engine.errors import UsageError
from engine.step import choose_policy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = [(1, 256, 384), (1, 64, 512)]


@pytest.fixture
def clock(monkeypatch):
    """Times by routine and call, in place of a GPU's; a text is an error."""

    def given(**times):
        names = {attend: name for name, attend in ROUTINES.items()}
        asked = []

        def microseconds(attend, device, dtype, shape):
            asked.append((names[attend], dtype, shape))
            found = times.get(names[attend], "no such operator\nlong story")
            if isinstance(found, str):
                raise NotImplementedError(found)
            return found

        monkeypatch.setattr(attention_routines, "microseconds", microseconds)
        return asked

    return given


def chosen(**options):
    routine, why = choose_attention(CUDA, torch.bfloat16, SHAPES, **options)
    return next((name for name, attend in ROUTINES.items() if attend is routine), "sdpa"), why


def test_on_a_gpu_the_fastest_is_chosen_over_all_sizes_and_all_times_are_told(clock):
    asked = clock(xformers=30.0, flash=20.0, cudnn=15.0)
    name, why = chosen()
    assert name == "cudnn"
    assert why == "cudnn (measured, us: cudnn 30, flash 40, xformers 60; efficient: no such operator)"
    assert [shape for name, _, shape in asked if name == "xformers"] == SHAPES
    assert {dtype for _, dtype, _ in asked} == {torch.bfloat16}


def test_within_what_two_measurements_differ_by_the_order_decides():
    assert fastest({"xformers": 100.0, "flash": 91.0, "cudnn": 95.0}) == "xformers"
    assert fastest({"xformers": 100.0, "flash": 91.0, "cudnn": 89.0}) == "cudnn"
    assert fastest({"flash": 100.0, "xformers": 99.0}) == "flash"


def test_where_none_works_torch_chooses_and_every_reason_is_told(clock):
    clock()
    name, why = chosen()
    assert name == "sdpa"
    for routine in ROUTINES:
        assert f"{routine}: no such operator" in why
    assert "long story" not in why


def test_all_ranks_take_what_the_first_chose(clock):
    clock(xformers=30.0, flash=20.0)
    sent = []
    name, _ = chosen(agree=lambda here: sent.append(here) or list(ROUTINES).index("xformers"))
    assert name == "xformers"
    assert sent == [list(ROUTINES).index("flash")]
    assert chosen(agree=lambda _: -1)[0] == "sdpa"


def test_the_one_that_is_asked_for_runs_or_is_an_error(clock):
    clock(xformers=10.0, cudnn=20.0)
    assert chosen(asked="cudnn") == ("cudnn", "cudnn: train.attention=cudnn")
    assert chosen(asked="sdpa")[0] == "sdpa"
    with pytest.raises(ValueError, match="train.attention=flash does not work here: no such operator"):
        chosen(asked="flash")


def test_on_a_cpu_products_are_taken_and_routines_of_a_gpu_refused(tmp_path):
    routine, why = choose_attention(CPU, torch.float32)
    assert routine is attend_products
    assert "matrix products" in why
    assert choose_policy(rooms(tmp_path, "train.attention=sdpa"), CPU).attend is attend_sdpa
    with pytest.raises(UsageError, match="train.attention=flash is for CUDA, not cpu"):
        choose_policy(rooms(tmp_path, "train.attention=flash"), CPU)


def test_a_routine_of_torch_is_held_to_and_computes_attention():
    q, k, v = torch.randn(3, 2, 1, 16, 8)
    expected = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
    torch.testing.assert_close(attend_by(SDPBackend.MATH)(q, k, v), expected)
    with pytest.raises(RuntimeError, match="No viable backend|No available kernel"):
        attend_by(SDPBackend.CUDNN_ATTENTION)(q, k, v)


def test_a_routine_of_torch_compiles_as_one_graph():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 1, 16, 8).unbind())
    attend = attend_by(SDPBackend.MATH)
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))
    compiled(q, k, v).sum().backward()
    assert q.grad is not None


def test_what_refuses_a_size_is_left_out():
    def clock(attend, device, dtype, shape):
        attend(*torch.randn(3, 1, *shape))
        return 1.0

    def narrow(q, k, v):
        if q.shape[-1] > 256:
            raise RuntimeError("at most 256 channels")

    times, refusals = measure({"a": attend_sdpa, "b": narrow}, CPU, torch.float32, SHAPES, clock)
    assert times == {"a": 2.0}
    assert refusals == {"b": "at most 256 channels"}


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(8, (1, 2, 3), blocks=2, attention=(2, 4), heads=4),
        UNetConfig(32, (1, 2), blocks=1, attention=(), head_channels=16),
        UNetConfig(16, (1, 1, 2), blocks=3, attention=(1,)),
    ],
)
def test_a_model_knows_the_sizes_of_its_attention(config):
    unet, seen = UNet(config), []

    def recording(q, k, v):
        seen.append(tuple(q.shape[1:]))
        return v

    for block in (m for m in unet.modules() if isinstance(m, AttentionBlock)):
        block.attend = recording
    with torch.no_grad():
        unet(torch.randn(1, 3, 16, 16), torch.tensor([5]))
    assert seen == config.attentions(16)
