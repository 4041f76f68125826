"""What moves the weights: the optimisers' own definitions, and learning rates over a run."""

from __future__ import annotations

import json
import math

import pytest
import torch

from UNetTrainerLib.optimizers import Schedule, build_optimizer, build_schedule
from UNetTrainerLib.options import OPTIMIZERS, SCHEDULES, Options

STEPS = 4


def options(**choices) -> Options:
    return Options(**{"epochs": 10, "lr": 0.1, "weight_decay": 0.0, **choices})


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor([3.0, -2.0]))]


def stepped(choice: str, decay: float, times: int = 3) -> torch.Tensor:
    """Some weights after steps down a bowl."""
    (weight,) = weights()
    optimizer = build_optimizer(options(optimizer=choice, weight_decay=decay), [weight])
    for _ in range(times):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_every_optimizer_walks_downhill_and_decays_weights_when_asked(choice):
    start = weights()[0].detach()
    assert (stepped(choice, 0.0).abs() < start.abs()).all()
    (flat,) = weights()
    optimizer = build_optimizer(options(optimizer=choice, weight_decay=0.5), [flat])
    (0 * flat.sum()).backward()
    optimizer.step()
    assert (flat.detach().abs() < start.abs()).all()


def test_sgd_has_nesterov_momentum_of_0_9():
    """Sutskever et al. 2013 in the form that looks ahead along the momentum."""
    weight, velocity = torch.tensor([3.0, -2.0]), torch.zeros(2)
    for _ in range(3):
        gradient = 2 * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.1 * (gradient + 0.9 * velocity)
    torch.testing.assert_close(stepped("sgd", 0.0), weight)


def test_the_decay_of_adamw_is_apart_from_its_gradients_and_that_of_adam_is_not():
    """Adam's first step is the learning rate whatever the gradient, so only AdamW's is longer."""
    start = weights()[0].detach()
    plain = start - 0.1 * start.sign()
    torch.testing.assert_close(stepped("adam", 0.5, 1), plain)
    torch.testing.assert_close(stepped("adamw", 0.5, 1), plain - 0.1 * 0.5 * start)


def walk(chosen: Options, losses: list[float]) -> tuple[list[float], Schedule]:
    """The rate before every batch of a run with these losses of its epochs."""
    optimizer = build_optimizer(chosen, weights())
    schedule = build_schedule(chosen, optimizer, STEPS)
    rates = []
    for loss in losses:
        for _ in range(STEPS):
            rates.append(schedule.lr)
            optimizer.step()
            schedule.step_batch()
        schedule.step_epoch(loss)
    assert [group["lr"] for group in optimizer.param_groups] == [schedule.lr]
    return rates, schedule


def test_one_cycle_rises_over_15_percent_and_falls_to_nothing():
    rates, schedule = walk(options(schedule="one-cycle"), [1.0] * 10)
    assert rates[0] == pytest.approx(0.1 / 25)
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert peak == pytest.approx(0.15 * len(rates) - 1, abs=1)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert schedule.lr == pytest.approx(0, abs=1e-6)


def test_cosine_falls_from_the_first_batch_to_the_last():
    rates, schedule = walk(options(schedule="cosine", min_lr=0.02), [1.0] * 10)
    for batch, rate in enumerate(rates):
        expected = 0.02 + 0.08 * (1 + math.cos(math.pi * batch / len(rates))) / 2
        assert rate == pytest.approx(expected, abs=1e-6)
    assert schedule.lr == pytest.approx(0.02)


def test_plateau_takes_a_quarter_after_more_than_five_epochs_without_a_better_one():
    chosen = options(schedule="plateau", epochs=30, min_lr=1e-3)
    losses = [1.0, 0.5, *[0.6] * 7, 0.4, *[0.4] * 20]
    rates, schedule = walk(chosen, losses)
    epochs = rates[::STEPS]
    assert epochs[:8] == [0.1] * 8
    assert epochs[8:16] == pytest.approx([0.025] * 8)
    assert epochs[16] == pytest.approx(0.00625)
    assert schedule.lr == 1e-3


def test_a_constant_rate_stays():
    rates, schedule = walk(options(schedule="constant"), [1.0, 2.0, 3.0])
    assert {*rates, schedule.lr} == {0.1}


@pytest.mark.parametrize("choice", SCHEDULES)
def test_no_rate_is_below_the_least(choice):
    rates, schedule = walk(options(schedule=choice, min_lr=0.03, epochs=30), [1.0] * 30)
    assert min(*rates, schedule.lr) >= 0.03
    if choice != "constant":
        assert schedule.lr == pytest.approx(0.03)


@pytest.mark.parametrize("choice", SCHEDULES)
def test_a_schedule_goes_on_from_plain_json_as_if_it_had_not_stopped(choice):
    chosen = options(schedule=choice, epochs=12, min_lr=1e-3)
    losses = [1.0, 0.5, *[0.6] * 10]
    whole, _ = walk(chosen, losses)
    for done in (0, 5):
        _, schedule = walk(chosen, losses[:done])
        state = json.loads(json.dumps(schedule.state_dict(), allow_nan=False))
        optimizer = build_optimizer(chosen, weights())
        again = build_schedule(chosen, optimizer, STEPS)
        again.load_state_dict(state)
        rates = []
        for loss in losses[done:]:
            for _ in range(STEPS):
                rates.append(again.lr)
                optimizer.step()
                again.step_batch()
            again.step_epoch(loss)
        assert rates == whole[done * STEPS :]
