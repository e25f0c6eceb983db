"""Recurrent cores: a sequence at once and step by step give the same numbers, and the past knows no future."""

import pytest
import torch

from workbench.nn.recurrence import CORES, S4D


def core(name: str, depth: int = 2):
    torch.manual_seed(0)
    return CORES[name](5, 16, depth, 0.0).eval()


@pytest.mark.parametrize("name", CORES)
def test_step_by_step_equals_the_whole_sequence(name):
    model, x = core(name), torch.randn(3, 70, 5)
    state, seen = model.start(3), []
    with torch.no_grad():
        for now in x.unbind(1):
            y, state = model.step(now, state)
            seen.append(y)
        torch.testing.assert_close(torch.stack(seen, 1), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CORES)
def test_the_state_does_not_grow(name):
    model, x = core(name), torch.randn(1, 5)
    size = lambda state: state.numel() if torch.is_tensor(state) else sum(map(size, state))
    state = model.start(1)
    before = size(state)
    for _ in range(20):
        _, state = model.step(x, state)
    assert size(state) == before


@pytest.mark.parametrize("name", CORES)
def test_a_later_input_changes_later_outputs_only(name):
    model, x = core(name), torch.randn(2, 40, 5)
    other = x.clone()
    other[:, 20] += 1.0
    with torch.no_grad():
        change = (model(other) - model(x)).abs().amax((0, 2))
    assert change[:20].max() < 1e-5 and change[20:25].min() > 1e-4      # an FFT leaks its rounding


@pytest.mark.parametrize("name", CORES)
def test_gradients_reach_every_parameter_through_time(name):
    model, x = core(name), torch.randn(2, 30, 5, requires_grad=True)
    model(x)[:, -1].square().sum().backward()
    assert x.grad[:, 0].any()
    assert all(p.grad.any() for p in model.parameters())


def test_s4d_is_the_convolution_that_its_differential_equation_says():
    """Against a fine Euler integration of h' = a h + x, x held during each step."""
    torch.manual_seed(1)
    filters, length, fine = S4D(2, states=4).double(), 12, 4000
    x = torch.randn(1, length, 2, dtype=torch.float64)
    rate = torch.complex(-filters.log_decay.exp(), filters.frequency).view(2, 2)
    gain, width = torch.view_as_complex(filters.gain), filters.log_step.exp()[:, None] / fine
    hidden, seen = torch.zeros(2, 2, dtype=torch.complex128), []
    with torch.no_grad():
        for now in x[0]:
            for _ in range(fine // 100):
                hidden = hidden + 100 * width * (rate * hidden + now[:, None])
            seen.append(2 * (gain * hidden).sum(1).real + filters.skip * now)
        torch.testing.assert_close(filters(x)[0], torch.stack(seen), atol=2e-3, rtol=2e-2)
