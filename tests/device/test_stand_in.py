"""The stand-in for a GPU refuses what CUDA refuses and lets through what CUDA lets through; and the package runs on it.

All of it: make stand-in. Here, a part that takes a minute.
"""

import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stand_in import GENERATOR, INDEX, MIXED, TO_NUMPY, stand_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def x():
    """A tensor on the stand-in, (4, 3), inside of it."""
    with stand_in():
        yield torch.arange(12.0).view(4, 3).cuda()


@pytest.fixture
def y():
    """The same in ordinary memory."""
    return torch.arange(12.0).view(4, 3)


REFUSED = {
    "numpy": (TypeError, TO_NUMPY, lambda x, y: x.numpy()),
    "numpy of a result": (TypeError, TO_NUMPY, lambda x, y: (x.softmax(1) @ x.T).detach().numpy()),
    "asarray": (TypeError, TO_NUMPY, lambda x, y: np.asarray(x)),
    "array of numbers": (TypeError, TO_NUMPY, lambda x, y: np.array([x[0, 0], x[1, 1]])),
    "array of rows": (TypeError, TO_NUMPY, lambda x, y: [row.numpy() for row in x]),
    "sum": (RuntimeError, MIXED, lambda x, y: x + y),
    "product": (RuntimeError, MIXED, lambda x, y: y @ x.T),
    "a number there": (RuntimeError, MIXED, lambda x, y: y * x.sum()),
    "list": (RuntimeError, MIXED, lambda x, y: torch.cat([x, y])),
    "equal": (RuntimeError, MIXED, lambda x, y: torch.equal(x, y)),
    "in place": (RuntimeError, MIXED, lambda x, y: y.add_(x)),
    "targets": (RuntimeError, MIXED, lambda x, y: F.cross_entropy(x, torch.arange(3).repeat(2)[:4])),
    "a model here": (RuntimeError, MIXED, lambda x, y: torch.nn.Linear(3, 2)(x)),
    "a model there": (RuntimeError, MIXED, lambda x, y: torch.nn.Linear(3, 2).cuda()(y)),
    "loss": (RuntimeError, MIXED, lambda x, y: torch.nn.MSELoss()(x, y)),
    "gradient": (RuntimeError, MIXED, lambda x, y: setattr(x.requires_grad_(), "grad", y)),
    "index": (RuntimeError, INDEX, lambda x, y: y[x[:, 0].long() % 4]),
    "mask": (RuntimeError, INDEX, lambda x, y: y[x > 3]),
    "set by index": (RuntimeError, INDEX, lambda x, y: y.__setitem__(x[:, 0].long() % 4, 0.0)),
    "set to values": (RuntimeError, MIXED, lambda x, y: x.__setitem__(torch.tensor([0, 1]), y[:2])),
    "index_select": (RuntimeError, MIXED, lambda x, y: x.index_select(0, torch.tensor([0, 1]))),
    "where": (RuntimeError, MIXED, lambda x, y: torch.where(y > 3, x, x)),
    "noise": (RuntimeError, GENERATOR, lambda x, y: torch.randn(3, generator=torch.Generator(), device="cuda")),
    "noise like": (RuntimeError, GENERATOR, lambda x, y: torch.empty_like(x).normal_(generator=torch.Generator())),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cuda_refuses_is_refused(x, y, case):
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        call(x, y)


ALLOWED = {
    "back": lambda x, y: x.cpu().numpy(),
    "back by name": lambda x, y: x.to("cpu").numpy(),
    "back to where another is": lambda x, y: x.to(y).numpy(),
    "back in another dtype": lambda x, y: x.to("cpu", torch.float64).float().numpy(),
    "read": lambda x, y: np.array(x.tolist()),
    "by force": lambda x, y: x.numpy(force=True),
    "there and back": lambda x, y: y.to("cuda").to(x).cpu().numpy(),
    "with a number from here": lambda x, y: (x + torch.tensor(1.0) - torch.tensor(1.0)).cpu(),
    "copied in": lambda x, y: torch.zeros_like(x).copy_(y).cpu(),
    "copied out": lambda x, y: torch.zeros_like(y).copy_(x).numpy(),
    "by an index from here": lambda x, y: x[torch.arange(4)].cpu(),
    "by a mask from here": lambda x, y: x[y > -1].view(4, 3).cpu(),
    "by numbers from there": lambda x, y: torch.stack([y[i] for i in torch.arange(4, device="cuda")]),
    "set by place": lambda x, y: x.__setitem__(slice(0, 2), y[:2]) or x.cpu(),
    "numbers made here": lambda x, y: torch.tensor([[a for a in row] for row in x]).numpy(),
    "noise from here": lambda x, y: (x + 0 * torch.randn(4, 3, generator=torch.Generator()).to(x)).cpu(),
    "loaded": lambda x, y: torch.load(_saved(x)).numpy(),
}  # fmt: skip


def _saved(x):
    from io import BytesIO

    file = BytesIO()
    torch.save(x.cpu(), file)
    file.seek(0)
    return file


@pytest.mark.parametrize("case", ALLOWED)
def test_what_cuda_allows_is_allowed(x, y, case):
    assert np.array_equal(np.asarray(ALLOWED[case](x, y)), np.arange(12.0).reshape(4, 3))


def test_results_say_where_they_are(x, y):
    there = [x, x.T, x + 1, x[0], x.sum(), x.max(1).values, *x, x.double(), x.detach().clone(), torch.ones_like(x),
             y.cuda(), y.to("cuda:0"), y.to(device="cuda"), y.to(x), y.type_as(x), torch.zeros(2, device="cuda"),
             torch.eye(2, device=x.device), x.new_zeros(2), torch.stack([x, x]), copy.deepcopy(x)]  # fmt: skip
    assert all(t.device == torch.device("cuda", 0) and t.is_cuda and not t.is_cpu for t in there)
    here = [y, x.cpu(), x.to("cpu"), x.to(y), torch.ones_like(x, device="cpu"), torch.tensor([x[0, 0], x[0, 1]]),
            torch.zeros(2), torch.zeros_like(y).copy_(x)]  # fmt: skip
    assert all(t.device.type == "cpu" and not t.is_cuda and t.is_cpu for t in here)
    assert x.to("meta").is_meta and torch.zeros(2, device="meta").is_meta
    assert f"{x.sum():.1f}" == "66.0" and x.shape.numel() == 12


def test_what_is_moved_is_copied_as_on_cuda(x, y):
    back = x.cpu()
    back[0] = 9.0
    y.cuda().zero_()
    assert x[0].tolist() == [0, 1, 2] and y.sum() == 66
    assert x.to("cuda") is x and y.to("cpu") is y


def test_models_move_learn_and_are_copied(x):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).to(device=x.device)
    twin = copy.deepcopy(model)
    assert all(isinstance(p, torch.nn.Parameter) and p.is_cuda for p in [*model.parameters(), *twin.parameters()])
    assert all(b.is_cuda for b in model.buffers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss = F.mse_loss(model(x), torch.zeros_like(x))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert all(p.grad.is_cuda for p in model.parameters())
    optimizer.step()
    assert F.mse_loss(model(x), torch.zeros_like(x)) < loss
    assert not torch.equal(model[0].weight, twin[0].weight)
    model.load_state_dict({name: value.cpu() for name, value in twin.state_dict().items()})
    assert torch.equal(model[0].weight, twin[0].weight) and model[0].weight.is_cuda
    assert all(p.device.type == "cpu" for p in model.cpu().parameters())


def test_outside_nothing_is_left_of_it():
    available, made = torch.cuda.is_available(), torch.nn.Linear(2, 2)
    with pytest.raises(KeyError), stand_in():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        raise KeyError
    assert torch.cuda.is_available() is available and made.to("cpu").weight is made.weight


def test_an_autoencoder_is_measured_where_it_lies():
    from slug_lite.pretrain.autoencoder import VaeRecipe, build_vae, psnr

    vae, images = build_vae(VaeRecipe(channels=(8, 8, 8))), np.full((2, 64, 64, 3), 200, np.uint8)
    here = psnr(vae, images)
    with stand_in():
        assert psnr(vae.to("cuda"), images) == pytest.approx(here)


def ran(*command):
    """What a Python program says that ran from the root, and whether it ended well."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.cpu_only("starts a session of its own")
def test_the_trunk_runs_on_it():
    rooms = [f"tests/test_{room}.py" for room in ("losses", "search", "targets", "edit", "models")]
    # the stand-in is of one thread
    threads = [
        "an_edit_left_on_by_a_thread_that_ended_is_not_waited_for",
        "a_thread_that_has_ended_is_not_the_one_that_is_waited_for", "tasks_of_one_thread_do_not_mix_their_edits",
    ]  # fmt: skip
    alone = [part for name in threads for part in ("--deselect", f"tests/test_edit.py::test_{name}")]
    few = "tests/test_gradients.py::test_equal_to_plain_autograd_whatever_the_batch_size"
    well, said = ran("-m", "pytest", "-q", "-p", "no:cacheprovider", "--stand-in", *rooms, few, *alone)
    assert well, said
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= 90 and "skipped" not in said, said


@pytest.mark.cpu_only("starts a kernel of its own")
def test_a_chapter_runs_on_it():
    well, said = ran("tools/run_on_stand_in.py", "notebooks/01_clip_and_what_it_knows.ipynb")
    there = re.search(r"(\d+) calls with tensors on the device", said)
    assert well and "0 solutions" in said and said.strip().endswith("ok") and int(there[1]) > 10_000, said


@pytest.mark.cpu_only("starts a kernel of its own")
def test_a_chapter_that_mixes_devices_is_reported(tmp_path):
    import nbformat

    cells = ["import torch", "x = torch.zeros(2, device='cuda')", "x.numpy()", "x + torch.zeros(2)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    text = "````{solution} it\n```python\ntorch.equal(x, torch.zeros(2))\n```\n````"
    book.cells += [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("1 / 0")]
    book.cells[-1].metadata["tags"] = ["raises-exception"]
    nbformat.write(book, tmp_path / "mixed.ipynb")
    well, said = ran("tools/run_on_stand_in.py", str(tmp_path / "mixed.ipynb"), "--solutions")
    found = [line.split(":")[0].strip() for line in said.splitlines() if "Error" in line]
    assert not well and found == ["cell 3", "cell 4", "solution 1"], said
