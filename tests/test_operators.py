"""The counts of benchmarks.operators."""

from __future__ import annotations

import torch

from benchmarks.operators import Launches, eager_layer, later_step


def test_views_are_not_counted_and_writes_are():
    x = torch.ones(4, 4)
    with Launches() as counted:
        x.view(16)[2:].unsqueeze(0)
        x[:, 0] = x[:, 1] + 2
        x.mul_(2)
    assert sorted(counted.found.elements()) == [
        "aten.add.Tensor",
        "aten.copy_.default",
        "aten.mul_.Tensor",
    ]


def test_a_step_has_the_operators_of_its_layers_and_a_replayed_one_has_none_of_them():
    plain = [later_step(layers, replayed=False) for layers in (1, 3)]
    assert plain[1] - plain[0] == 2 * eager_layer(True)
    replayed = [later_step(layers, replayed=True) for layers in (1, 3)]
    assert replayed[0] == replayed[1] < plain[1]
