"""What a CPU can time of the operations: the references, for regressions. ``make bench`` runs this.

Nothing here says how fast a kernel is: kernels run on a GPU (``python -m bench.kernels`` there).
"""

from collections import Counter
from functools import partial

import pytest
import torch

from bench.contests import Contest, contests, run
from bench.shapes import Norm, Preset

torch.set_num_threads(1)
SMALL = Preset(
    "small",
    px=32,
    dim=512,
    subsets=64,
    norms=Counter(
        {
            Norm(64, 32, True, False, trained=False): 1,
            Norm(64, 32, True, True, trained=True): 1,
            Norm(64, 32, False, False, trained=True, adds=True, used=True): 1,
        }
    ),
)
BATCH = 4
CONTESTS = list(contests(SMALL, BATCH, ("adagn_silu", "noise_jump", "recon_loss", "subset_mask")))


@pytest.mark.parametrize("contest", CONTESTS, ids=lambda c: f"{c.operation}, {c.title}")
def test_reference(contest: Contest, benchmark):
    """The eager reference, with its gradients where a step asks for them."""
    inputs = contest.make(torch.device("cpu"))
    benchmark.extra_info.update(least_bytes=contest.traffic.least, eager_bytes=contest.traffic.eager_bytes)
    results = benchmark(partial(run, contest.eager, inputs, contest.leaves))
    assert all(value.isfinite().all() for value in results.values())
