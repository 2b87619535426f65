import pytest
import torch
from torch import nn

from c2fmae.core.running_statistics import restore_statistics_unless, running_statistics

pytestmark = pytest.mark.numeric


def test_statistics_and_counts_are_restored_unless_a_condition_holds() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2), nn.BatchNorm1d(2))
    statistics = running_statistics(model)
    assert [name for name in statistics if name.startswith("0")] == [
        f"0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    saved = {name: buffer.clone() for name, buffer in statistics.items()}
    model(torch.tensor([[1.0, torch.nan], [3.0, 2.0]]))
    changed = {name: buffer.clone() for name, buffer in statistics.items()}
    restore_statistics_unless(torch.tensor(True), statistics, saved)
    for name, buffer in running_statistics(model).items():
        torch.testing.assert_close(buffer, changed[name], rtol=0, atol=0, equal_nan=True)
        assert not torch.equal(buffer, saved[name])
    restore_statistics_unless(torch.tensor(False), statistics, saved)
    assert all(torch.equal(buffer, saved[name]) for name, buffer in running_statistics(model).items())
