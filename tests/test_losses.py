import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

from slug_lite import forget_loss, retain_loss


def test_forget_loss_is_small_when_the_model_knows(device):
    x = F.normalize(torch.randn(5, 8, device=device), dim=1)
    assert forget_loss(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert forget_loss(x, -x).item() == pytest.approx(2, abs=1e-6)
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert forget_loss(a, b).item() == pytest.approx(0.5)


def test_retain_loss_by_hand_and_against_open_clip(device):
    x, y = torch.eye(2, device=device), torch.eye(2, device=device)
    by_hand = -math.log(math.exp(3) / (math.exp(3) + 1))
    assert retain_loss(x, y, 3.0).item() == pytest.approx(by_hand, rel=1e-6)
    x, y = (F.normalize(torch.randn(7, 5, device=device), dim=1) for _ in range(2))
    scale = torch.tensor(12.0, device=device)
    assert retain_loss(x, y, scale).item() == pytest.approx(open_clip.ClipLoss()(x, y, scale).item(), rel=1e-5)


def test_retain_loss_is_symmetric_in_the_towers(device):
    x, y = (F.normalize(torch.randn(6, 4, device=device), dim=1) for _ in range(2))
    assert retain_loss(x, y, 5.0).item() == pytest.approx(retain_loss(y, x, 5.0).item(), rel=1e-6)
