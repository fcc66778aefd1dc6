"""Members: their noise has the scale, the size and the memory that it claims, and they may change places."""

import math

import numpy as np
import pytest
import torch

from rainspark.data.randomness import generator
from rainspark.data.units import ModelSpace
from rainspark.models.encoder import build_encoder
from rainspark.models.nowcasting import members as members_module
from rainspark.models.nowcasting.cascade import NUM_LEVELS, SCALES_PX
from rainspark.models.nowcasting.members import NOISE_STEP_PX, Members, Noise
from rainspark.models.nowcasting.motion import MARGIN_PX, advect
from rainspark.models.nowcasting.nowcaster import Nowcaster

SPACE = ModelSpace(kind="log", scale_mmh=0.2)
LEADS = 4


def draw(member: int, size: int = 64, purpose: str = "test") -> Noise:
    return Noise.draw(generator(0, purpose, member), (size, size), LEADS)


def join(*noises: Noise) -> Noise:
    return Noise(
        white_nhw=torch.cat([noise.white_nhw for noise in noises]),
        shift_nls2=torch.cat([noise.shift_nls2 for noise in noises]),
        motion_n4=torch.cat([noise.motion_n4 for noise in noises]),
    )


@pytest.fixture(scope="module")
def model() -> Nowcaster:
    """An ensemble whose last layers are not zero."""
    torch.manual_seed(0)
    model = Nowcaster(
        build_encoder("resnet18", 3), frames_out=LEADS, decoder_width=32, translation="identity", head="cascade",
        ensemble=True, space=SPACE,
    ).eval()  # fmt: skip
    for projection in (model.dense_decoder.proj, model.noise_proj):
        assert projection is not None
        torch.nn.init.normal_(projection.weight, std=0.05)
        assert projection.bias is not None
        torch.nn.init.normal_(projection.bias, std=0.2)
    return model


def make_past(windows: int = 2) -> torch.Tensor:
    draws = torch.Generator().manual_seed(3)
    rain = torch.nn.functional.avg_pool2d(torch.rand(windows, 3, 72, 72, generator=draws) ** 4 * 60, 9, stride=1)
    return SPACE.from_mmh(rain)


@pytest.mark.parametrize("level", range(NUM_LEVELS))
def test_noise_of_a_level_has_variance_one_and_the_spectrum_of_a_difference_of_gaussians(level: int) -> None:
    size, step = 256, NOISE_STEP_PX[level]
    white = torch.from_numpy(np.random.default_rng(level).standard_normal((24, size, size)))
    noise = members_module._band(white, level).numpy()
    assert noise.shape == (24, size // step, size // step)
    assert noise.var() == pytest.approx(1.0, rel=0.25 if level > 4 else 0.05)
    if level == NUM_LEVELS - 1:
        np.testing.assert_allclose(noise.mean(axis=(1, 2)), 0, atol=1e-9)

    # Power against frequency, over all numbers drawn, against the response by its definition.
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(size // step)
    squared = frequency[:, None] ** 2 + frequency[None] ** 2
    inner = np.exp(-2 * math.pi**2 * (SCALES_PX[level] / step) ** 2 * squared)
    outer = np.zeros_like(inner)
    if level < NUM_LEVELS - 1:
        outer = np.exp(-2 * math.pi**2 * (SCALES_PX[level + 1] / step) ** 2 * squared)
    expected = (inner - outer) ** 2
    expected[0, 0] = 0.0
    expected *= power.sum() / expected.sum()
    assert np.abs(power - expected).sum() / power.sum() < 0.3
    assert np.corrcoef(power.ravel(), expected.ravel())[0, 1] > 0.8


def test_noise_grows_as_the_level_is_damped_and_remembers_as_the_level_does() -> None:
    noise = join(*(draw(member, 192) for member in range(6)))
    damping_l = torch.tensor([0.9, 0.7, 0.5, 0.2], dtype=torch.float64)
    damping = damping_l.expand(6, NUM_LEVELS, LEADS)
    fields = members_module._evolved(noise, damping, tuple(range(LEADS)))
    for level in range(4):
        series = [fields[lead][level] for lead in range(LEADS)]
        for lead in range(LEADS):
            assert float(series[lead].var()) == pytest.approx(1 - float(damping_l[lead]) ** 2, rel=0.1)
        # From the second to the third lead time it keeps 0.5 / 0.7 of itself.
        kept = float((series[1] * series[2]).mean() / series[1].square().mean())
        assert kept == pytest.approx(0.5 / 0.7, abs=0.08)


def test_a_level_that_is_lost_altogether_is_noise_of_its_full_variance() -> None:
    damping = torch.tensor([0.5, 0.0, 0.0, 0.0]).expand(1, NUM_LEVELS, LEADS)
    fields = members_module._evolved(draw(1, 192), damping, tuple(range(LEADS)))
    assert [float(finest.var()) for finest, *_ in fields] == pytest.approx([0.75, 1, 1, 1], rel=0.05)


def test_lead_times_that_are_skipped_change_nothing_but_the_draws() -> None:
    noise = draw(1, 192)
    damping = torch.tensor([0.9, 0.7, 0.5, 0.2]).expand(1, NUM_LEVELS, LEADS)
    (_, (last, *_)) = members_module._evolved(noise, damping, (0, 3))
    assert float(last.var()) == pytest.approx(1 - 0.2**2, rel=0.1)


def test_members_may_change_places_and_do_not_depend_on_each_other(model: Nowcaster) -> None:
    past = make_past(1)
    with torch.no_grad():
        start = model.start(past, None)
        three = model.members_of(start, join(draw(0), draw(1), draw(2)))
        turned = model.members_of(start, join(draw(2), draw(0), draw(1)))
        alone = model.members_of(start, draw(1))
    assert three.shape == (1, 3, LEADS, 64, 64)
    torch.testing.assert_close(turned, three[:, [2, 0, 1]])
    torch.testing.assert_close(alone[:, 0], three[:, 1])
    assert not torch.allclose(three[:, 0], three[:, 1])


def test_without_noise_and_motion_all_members_are_the_one_forecast(model: Nowcaster) -> None:
    past = make_past(1)
    calm = Members(LEADS)
    with torch.no_grad():
        calm.log_amplitude.fill_(-10)
        calm.log_motion.fill_(-10)
    kept, model.members = model.members, calm
    try:
        with torch.no_grad():
            one = model(past)
            members = model(past, noise=join(draw(0), draw(1)))
            some_leads = model(past, noise=join(draw(0), draw(1)), leads=(1, 3))
    finally:
        model.members = kept
    torch.testing.assert_close(members, one.unsqueeze(1).expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(some_leads, members[:, :, [1, 3]])


def test_windows_of_a_batch_do_not_depend_on_each_other(model: Nowcaster) -> None:
    past = make_past(2)
    noise = [draw(number) for number in range(4)]
    with torch.no_grad():
        both = model(past, noise=join(*noise))
        second = model(past[1:], noise=join(*noise[2:]))
    torch.testing.assert_close(both[1:], second)


def test_one_forecast_is_that_of_the_same_weights_without_members(model: Nowcaster) -> None:
    plain = Nowcaster(
        build_encoder("resnet18", 3), frames_out=LEADS, decoder_width=32, translation="identity", head="cascade",
        space=SPACE,
    ).eval()  # fmt: skip
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()})
    with torch.no_grad():
        assert torch.equal(plain(make_past()), model(make_past()))


def test_a_step_on_two_members_of_some_lead_times_reaches_every_weight(model: Nowcaster) -> None:
    past = make_past(1)
    members = model(past, noise=join(draw(0), draw(1)), leads=(0, 2))
    assert members.shape == (1, 2, 2, 64, 64)
    (members[:, 0] - members[:, 1]).square().mean().add(members.mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    for parameter in model.parameters():
        parameter.grad = None


def test_the_canvas_of_the_noise_reaches_beyond_the_frame() -> None:
    assert draw(0).white_nhw.shape == (1, 64 + 2 * MARGIN_PX, 64 + 2 * MARGIN_PX)


def test_noise_is_refused_by_what_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match="head 'direct' draws no members; expected 'cascade' for an ensemble"):
        Nowcaster(build_encoder("resnet18", 3), frames_out=LEADS, decoder_width=32, head="direct", ensemble=True)
    plain = Nowcaster(build_encoder("resnet18", 3), frames_out=LEADS, decoder_width=32, head="cascade", space=SPACE)
    with pytest.raises(ValueError, match="noise was given to a model that is no ensemble; build it with ensemble=True"):
        plain(make_past(1), noise=draw(0))


def test_no_member_rains_much_harder_than_the_past_did(model: Nowcaster) -> None:
    past = make_past(1)
    wild = Members(LEADS)
    with torch.no_grad():
        wild.log_amplitude.fill_(0.3)
    kept, model.members = model.members, wild
    try:
        with torch.no_grad():
            rains = [SPACE.to_mmh(model(own, noise=join(draw(0), draw(1)))) for own in (past, past * 0.2)]
            heaviest = float(SPACE.to_mmh(model.start(past, None).heaviest_b))
    finally:
        model.members = kept
    # The past is moved on to the last frame's time, between pixels linearly: that costs it a little.
    assert heaviest == pytest.approx(1.5 * float(SPACE.to_mmh(past).max()), rel=0.1)
    assert float(rains[0].max()) == pytest.approx(heaviest, rel=1e-4)
    # Where the past hardly rained, the bound is what a shower may bring.
    assert float(rains[1].max()) <= 10.0 * (1 + 1e-4)


def test_a_member_is_the_common_field_and_its_own_noise_carried_along_its_own_motion() -> None:
    """Against the formula, on levels whose local deviation is the same everywhere."""
    canvas, leads, rng = 64 + 2 * MARGIN_PX, (0, 2, 3), np.random.default_rng(2)
    module = Members(LEADS).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.from_numpy(rng.uniform(-0.05, 0.05, parameter.shape)))
    amplitude_sl = 10 * module.log_amplitude.detach().numpy().reshape(NUM_LEVELS, LEADS)
    along, across, pixels = np.exp(10 * module.log_motion.detach().numpy())

    # Levels that change sign from pixel to pixel; the decoder's factor is one number a level.
    sign = torch.from_numpy(np.indices((canvas, canvas)).sum(0) % 2 * 2.0 - 1)
    deviation_s, log_factor_s = rng.uniform(0.2, 1, NUM_LEVELS), rng.uniform(-0.5, 0.5, NUM_LEVELS)
    levels = torch.from_numpy(deviation_s).view(1, -1, 1, 1) * sign
    log_factor = torch.from_numpy(log_factor_s).view(1, -1, 1, 1).expand(1, -1, 64, 64)
    damping = torch.tensor([0.9, 0.7, 0.5, 0.2], dtype=torch.float64).expand(1, NUM_LEVELS, LEADS)
    start = torch.from_numpy(rng.normal(size=(1, len(leads), canvas, canvas)))
    steps = [torch.from_numpy(rng.uniform(2, 9, (1, 2, 1, 1))).expand(1, 2, 64, 64) for _ in range(LEADS)]
    noise = join(draw(0), draw(1))
    members = module(start, levels, damping, log_factor, steps, noise, leads)[0].detach()

    fields = members_module._evolved(noise, damping.expand(2, -1, -1), leads)
    for member in range(2):
        draws = noise.motion_n4[member].double().numpy()
        for position, lead in enumerate(leads):
            total = start[:, position : position + 1] + 10 * float(module.drift[lead].detach())
            for level in range(NUM_LEVELS):
                own = fields[position][level][member : member + 1].unsqueeze(0)
                own = torch.nn.functional.interpolate(own, size=(canvas, canvas), mode="bilinear", align_corners=False)
                size = np.exp(amplitude_sl[level, lead] + log_factor_s[level]) * np.sqrt(deviation_s[level] ** 2 + 1e-6)
                total = total + size * own
            x, y = (float(steps[lead][0, axis, 0, 0]) for axis in range(2))
            moved_x = x + along * draws[0] * x - across * draws[1] * y + pixels * (lead + 1) * draws[2]
            moved_y = y + along * draws[0] * y + across * draws[1] * x + pixels * (lead + 1) * draws[3]
            step = torch.tensor([moved_x, moved_y], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 64, 64)
            expected = advect(total, step, margin_px=MARGIN_PX)[0, 0]
            torch.testing.assert_close(members[member, position], expected, rtol=1e-6, atol=1e-6)


def test_a_level_chooses_how_near_the_rain_must_be_that_sizes_its_noise() -> None:
    levels = torch.zeros(1, NUM_LEVELS, 384, 384)
    levels[..., :192] = torch.from_numpy(np.indices((384, 192)).sum(0) % 2 * 2.0 - 1)
    sizes = []
    for nearness in (1.0, -1.0):
        module = Members(LEADS)
        torch.nn.init.constant_(module.nearness, nearness)
        with torch.no_grad():
            sizes.append(module._amplitudes(levels, torch.zeros(1, NUM_LEVELS, 64, 64))[0])
    near, far = sizes
    # Well inside the rain both are its deviation; beside it only the wide one reaches, and nothing far from it.
    assert float(near[0, 192, 40]) == pytest.approx(1.0, rel=1e-3) == float(far[0, 192, 40])
    assert float(near[0, 192, 222]) < 0.01 < 0.2 < float(far[0, 192, 222])
    assert float(far[0, 192, 370]) < 0.01
