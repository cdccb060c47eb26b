"""The duties of every model: causality, one stream however it is cut, steps like windows, lanes by themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from audio_ct.models.build import build_model
from audio_ct.models.memory import MemoryShape
from audio_ct.models.settings import CompressiveTransformerSettings, TransformerXLSettings, WaveNetSettings
from audio_ct.models.stage import State, flatten, map_state, select_lanes, unflatten
from audio_ct.models.token_model import TokenModel, consume, is_cut, num_parameters, position

VOCABULARY = 11
SEGMENT = 4
LENGTH = 8 * SEGMENT
STACK = {
    "num_layers": 2,
    "d_model": 12,
    "num_heads": 2,
    "d_ff": 16,
    "segment_length": SEGMENT,
    "memory_length": SEGMENT,
}


def compressive(**changes: Any) -> TokenModel:
    sizes = {**STACK, "compressed_memory_length": 5, "compression_rate": 2, **changes}
    return build_model(CompressiveTransformerSettings(**sizes), VOCABULARY)


def transformer_xl(**changes: Any) -> TokenModel:
    return build_model(TransformerXLSettings(**STACK | changes), VOCABULARY)


def wavenet(**changes: Any) -> TokenModel:
    sizes: dict[str, Any] = {"num_stacks": 2, "layers_per_stack": 3, "residual_channels": 6, "skip_channels": 5}
    return build_model(WaveNetSettings(**sizes | changes), VOCABULARY)


front = {"front_dilations": [1, 2, 4]}
frames = {"segment_length": 2, "memory_length": 2, "frames": {"samples": 2, "channels": 6, "dilations": [1, 2]}}
predicting = {"linear_prediction": {"order": 3, "windows": [20, 5], "frame_length": 2, "bandwidth_expansion": 1.0}}
one_predictor = {"linear_prediction": {"order": 3, "windows": [20], "frame_length": 4, "bandwidth_expansion": 0.9}}
pitch = {"shortest_lag": 4, "longest_lag": 9, "window": 10, "taps_before": 2, "taps_after": 3}
with_pitch = {"linear_prediction": predicting["linear_prediction"] | {"pitch": pitch}}
around = {"convolutions": "swiglu", "front_dilations": [1, 2, 4], "back_dilations": [1, 2]}
with_logistics = {"linear_prediction": predicting["linear_prediction"] | {"logistics": True}}
mixture = {"output": "mixture_of_logistics"}


def by(function: str, loss: str, **others: Any) -> dict[str, Any]:
    return {"compression": {"function": function, "loss": loss, **others}}


VARIANTS: dict[str, Callable[[], TokenModel]] = {
    "pre": lambda: compressive(),
    "post": lambda: compressive(norm="post"),
    "front": lambda: compressive(**front),
    "memory-shorter-front": lambda: compressive(memory_length=2, **front),
    "memory-none": lambda: compressive(memory_length=0),
    "memory-longer-post": lambda: compressive(memory_length=7, norm="post"),
    "compressed-shorter-than-a-push": lambda: compressive(compressed_memory_length=1),
    "rate-1": lambda: compressive(compression_rate=1),
    "rate-3": lambda: compressive(compression_rate=3),
    "rate-4-odd-heads": lambda: compressive(compression_rate=4, num_heads=4),
    "own-positions-post-front": lambda: compressive(compressed_positions="own", norm="post", **front),
    "max-pooling": lambda: compressive(**by("max_pooling", "none")),
    "mean-pooling": lambda: compressive(**by("mean_pooling", "none")),
    "most-used": lambda: compressive(**by("most_used", "none")),
    "most-used-longer": lambda: compressive(memory_length=7, compression_rate=3, **by("most_used", "none"), **front),
    "dilated": lambda: compressive(**by("dilated_convolution", "attention_reconstruction", loss_form="norm")),
    "auto-encoding": lambda: compressive(compression_rate=3, **by("convolution", "auto_encoding")),
    "task": lambda: compressive(**by("convolution", "task")),
    "shared-keys": lambda: compressive(num_heads=4, num_key_value_heads=2, **by("most_used", "none")),
    "linear-prediction": lambda: compressive(**predicting),
    "linear-prediction-front-sinusoidal": lambda: compressive(embedding="sinusoidal", **predicting, **front),
    "mixture": lambda: compressive(**mixture, **front),
    "mixture-linear-prediction": lambda: compressive(**mixture, **predicting),
    "transformer-xl": lambda: transformer_xl(memory_length=7, norm="post", **front),
    "transformer-xl-no-memory": lambda: transformer_xl(memory_length=0, **predicting),
    "swiglu": lambda: compressive(**around),
    "swiglu-back-alone": lambda: transformer_xl(convolutions="swiglu", back_dilations=[1, 2]),
    "back": lambda: compressive(back_dilations=[1, 2], **front),
    "logistics": lambda: compressive(**around, **with_logistics),
    "frames": lambda: compressive(**frames),
    "frames-swiglu": lambda: compressive(convolutions="swiglu", **frames),
    "frames-linear-prediction": lambda: compressive(**frames, **predicting),
    "frames-pitch": lambda: compressive(**frames, **with_pitch),
    "frames-transformer-xl": lambda: transformer_xl(**frames, **with_pitch),
    "wavenet-2": lambda: wavenet(),
    "wavenet-pitch": lambda: wavenet(**with_pitch),
    "wavenet-3-sinusoidal": lambda: wavenet(width=3, embedding="sinusoidal"),
    "wavenet-linear-prediction": lambda: wavenet(**predicting),
    "wavenet-one-linear-prediction": lambda: wavenet(**one_predictor),
    "wavenet-logistics": lambda: wavenet(**with_logistics),
    "wavenet-mixture": lambda: wavenet(**mixture),
    "wavenet-mixture-linear-prediction": lambda: wavenet(**mixture, **predicting),
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> TokenModel:
    torch.manual_seed(1)
    built = VARIANTS[request.param]().double().eval()
    # Biases that start at zero would hide a mistake.
    for parameter in built.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return built


def tokens(num_lanes: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (num_lanes, length), generator=torch.Generator().manual_seed(seed))


def start(model: TokenModel, num_lanes: int = 2) -> State:
    return model.initial_state(num_lanes, dtype=torch.float64)


def by_steps(model: TokenModel, stream: Tensor, state: State) -> tuple[Tensor, State]:
    logits = []
    for t in range(stream.shape[1]):
        row, state = model.step(stream[:, t], state)
        logits.append(row)
    return torch.stack(logits, dim=1), state


def assert_same(a: State, b: State, tolerance: float = 1e-10) -> None:
    flat_a, flat_b = flatten(a), flatten(b)
    assert flat_a.keys() == flat_b.keys()
    for name in flat_a:
        torch.testing.assert_close(flat_a[name], flat_b[name], atol=tolerance, rtol=0)


def test_the_gradient_of_a_prediction_reaches_no_later_input(model: TokenModel) -> None:
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.embedding.register_forward_hook(keep)
    length = SEGMENT if model.segment_length > 1 else 12
    # Memories that are not empty, so that nothing hides behind zeros.
    state = model(tokens(1), start(model, 1)).state
    for t in (0, 1, length - 2, length - 1):
        embedded.clear()
        logits = model(tokens(1, length, seed=2), state).logits
        logits[0, t].square().sum().backward()
        reached = embedded[0].grad[0].abs().sum(dim=-1)
        assert torch.all(reached[t + 1 :] == 0)
        assert reached[t] > 0
        assert t == 0 or reached[t - 1] > 0


def test_a_changed_input_changes_no_earlier_prediction_and_some_later_one(model: TokenModel) -> None:
    stream = tokens()
    with torch.no_grad():
        logits = model(stream, start(model)).logits
        for s in (0, 3, 4, 9, 14, 20, LENGTH - 1):
            changed = stream.clone()
            changed[0, s] = (changed[0, s] + 1) % VOCABULARY
            moved = (model(changed, start(model)).logits - logits).abs().amax(dim=-1)
            assert torch.all(moved[0, :s] == 0)
            assert moved[0, s] > 0
            assert torch.all(moved[1] == 0), "another lane moved"


def test_the_past_is_seen_across_segments(model: TokenModel) -> None:
    shapes = [each.shape for each in model.modules() if isinstance(getattr(each, "shape", None), MemoryShape)]
    if shapes and model.linear_prediction is None and not any(shape.num_past for shape in shapes):
        pytest.skip("no memory, nothing to see")
    stream = tokens(1)
    changed = stream.clone()
    changed[0, SEGMENT - 1] = (changed[0, SEGMENT - 1] + 1) % VOCABULARY
    with torch.no_grad():
        moved = (model(changed, start(model, 1)).logits - model(stream, start(model, 1)).logits).abs().amax(dim=-1)
    assert torch.all(moved[0, SEGMENT : 2 * SEGMENT] > 0)


@pytest.mark.parametrize("cuts", [[1] * 8, [2, 5, 1]])
def test_a_stream_may_be_cut_into_any_windows(model: TokenModel, cuts: list[int]) -> None:
    stream = tokens()
    with torch.no_grad():
        whole = model(stream, start(model))
        state, logits = start(model), []
        for window in stream.split([cut * SEGMENT for cut in cuts], dim=1):
            output = model(window, state)
            logits.append(output.logits)
            state = output.state
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, atol=1e-12, rtol=0)
    assert_same(state, whole.state, 1e-12)


def test_wavenet_may_be_cut_anywhere() -> None:
    model = VARIANTS["wavenet-3-sinusoidal"]().double()
    stream = tokens()
    with torch.no_grad():
        whole = model(stream, start(model)).logits
        for cut in range(1, LENGTH):
            first = model(stream[:, :cut], start(model))
            second = model(stream[:, cut:], first.state)
            torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["pre", "wavenet-linear-prediction"])
def test_within_a_segment_only_steps_go_on(name: str) -> None:
    model = VARIANTS[name]()
    _, state = model.step(tokens()[:, 0], model.initial_state(2))
    with pytest.raises(AssertionError, match="see consume"):
        model(tokens(), state)
    with pytest.raises(AssertionError, match="between stretches"):
        select_lanes(torch.tensor([True, False]), model.initial_state(2), state)


def test_steps_are_the_same_numbers_as_windows(model: TokenModel) -> None:
    stream = tokens()
    with torch.no_grad():
        whole = model(stream, start(model))
        logits, state = by_steps(model, stream, start(model))
    torch.testing.assert_close(logits, whole.logits, atol=1e-10, rtol=0)
    assert_same(state, whole.state)


def test_segments_of_one_sample_are_stepped_through_as_well() -> None:
    model = compressive(segment_length=1, memory_length=4, compression_rate=1, **front).double().eval()
    with torch.no_grad():
        whole = model(tokens(), start(model))
        logits, state = by_steps(model, tokens(), start(model))
    torch.testing.assert_close(logits, whole.logits, atol=1e-10, rtol=0)
    assert_same(state, whole.state)


@pytest.mark.parametrize("length", [1, 5 * SEGMENT + 2])
def test_a_prompt_of_any_length_is_consumed_and_gone_on_from(model: TokenModel, length: int) -> None:
    stream = tokens()
    with torch.no_grad():
        whole = model(stream, start(model))
        last, state = consume(model, stream[:, :length], start(model))
        torch.testing.assert_close(last, whole.logits[:, length - 1], atol=1e-10, rtol=0)
        # As far as the next segment's end: what is there is the state of windows again.
        end = -(-(length + 1) // model.cache_length) * model.cache_length
        logits, state = by_steps(model, stream[:, length:end], state)
        whole = model(stream[:, :end], start(model))
    torch.testing.assert_close(logits, whole.logits[:, length:], atol=1e-10, rtol=0)
    if not is_cut(state):
        assert_same(state, whole.state)


def test_caches_stay_where_they_are_and_a_stretch_begins_anew_in_the_same_tensors(model: TokenModel) -> None:
    stream = tokens(length=3 * model.cache_length)
    with torch.no_grad():
        whole = model(stream, start(model))
        state, logits = start(model), []
        caches = model.open_cache(state)
        addresses = {name: tensor.data_ptr() for name, tensor in flatten(caches).items()}
        for t in range(stream.shape[1]):
            offset = t % model.cache_length
            if t and offset == 0:
                state = model.close_cache(state, caches)
                map_state(lambda old, new: old.copy_(new), caches, model.open_cache(state))
            elif offset and offset % model.period == 0:
                model.advance(caches, offset)
            logits.append(model.read(stream[:, t], caches))
            assert position({"cache": caches}) == offset + 1
        state = model.close_cache(state, caches)
    torch.testing.assert_close(torch.stack(logits, dim=1), whole.logits, atol=1e-10, rtol=0)
    assert_same(state, whole.state)
    assert addresses == {name: tensor.data_ptr() for name, tensor in flatten(caches).items()}


def test_a_long_prompt_is_consumed_in_pieces() -> None:
    torch.manual_seed(0)
    model = wavenet(num_stacks=1, layers_per_stack=2, residual_channels=2, skip_channels=2).double()
    stream = torch.randint(5, (1, 4099))
    with torch.no_grad():
        whole = model(stream, start(model, 1))
        last, state = consume(model, stream, start(model, 1))
    torch.testing.assert_close(last, whole.logits[:, -1], atol=1e-12, rtol=0)
    assert_same(state, whole.state)


def test_lanes_know_nothing_of_each_other(model: TokenModel) -> None:
    both = tokens()
    with torch.no_grad():
        together = model(both, start(model))
        for lane in range(2):
            alone = model(both[lane : lane + 1], start(model, 1))
            torch.testing.assert_close(together.logits[lane], alone.logits[0], atol=1e-12, rtol=0)
            of_lane = map_state(lambda tensor, lane=lane: tensor[lane : lane + 1], together.state)
            assert_same(of_lane, alone.state, 1e-12)


def test_a_reset_lane_starts_afresh_and_the_other_goes_on(model: TokenModel) -> None:
    with torch.no_grad():
        used = model(tokens(), start(model)).state
        reset = select_lanes(torch.tensor([True, False]), start(model), used)
        after = model(tokens(seed=3), reset).logits
        fresh = model(tokens(seed=3), start(model)).logits
        gone_on = model(tokens(seed=3), used).logits
    torch.testing.assert_close(after[0], fresh[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(after[1], gone_on[1], atol=1e-12, rtol=0)
    has_past = any(tensor.numel() for tensor in flatten(used).values())
    assert not has_past or (after[1] - fresh[1]).abs().max() > 1e-6


def test_the_state_is_detached_data_with_the_lane_first(model: TokenModel) -> None:
    model.train()
    initial = start(model, 3)
    stream = tokens(3)
    output = model(stream, initial)
    _, halfway = consume(model, stream[:, : SEGMENT + 1], initial)
    assert output.logits.requires_grad
    before, after = flatten(initial), flatten(output.state)
    assert before.keys() == after.keys()
    for name, tensor in (before | after | flatten(halfway)).items():
        assert tensor.shape[0] == 3, name
    for name, tensor in after.items():
        assert not tensor.requires_grad, name
        assert tensor.is_contiguous(), name
        assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
    assert not any(tensor.any() for tensor in before.values()), "forward or step wrote to the state it was given"
    assert_same(unflatten(after), output.state, 0)


def test_nothing_is_kept_between_calls(model: TokenModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        first = model(tokens(), start(model)).logits
        by_steps(model, tokens(seed=9), start(model))
        again = model(tokens(), start(model)).logits
    assert torch.equal(first, again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_parameter_learns(model: TokenModel) -> None:
    model.train()
    output = model(tokens(), start(model))
    loss = output.logits.logsumexp(-1).sum() + output.logits.square().sum() + sum(output.auxiliary_losses.values())
    loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert idle == set()
    assert num_parameters(model) == sum(parameter.numel() for parameter in model.parameters())


def test_recomputed_activations_give_the_same_gradients_from_less_memory(model: TokenModel) -> None:
    model.train()
    found = []
    for model.recompute_activations in (False, True):
        model.zero_grad()
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(tokens(), start(model))
        (output.logits.square().sum() + sum(output.auxiliary_losses.values())).backward()
        found.append((sum(kept.values()), [parameter.grad for parameter in model.parameters()]))
    (plain_bytes, plain), (bytes_, recomputed) = found
    for expected, got in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    assert bytes_ < plain_bytes


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_states_dtype(model: TokenModel, precision: torch.dtype) -> None:
    model.float()
    with torch.no_grad(), torch.autocast("cpu", precision):
        output = model(tokens(length=2 * SEGMENT), model.initial_state(2))
    assert torch.isfinite(output.logits).all()
    initial = model.initial_state(2)
    types = [{name: tensor.dtype for name, tensor in flatten(state).items()} for state in (initial, output.state)]
    assert types[0] == types[1]
