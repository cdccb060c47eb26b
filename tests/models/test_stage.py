"""States as data, and frames of samples, of which the Compressive Transformer knows nothing."""

import pytest
import torch
from torch import Tensor, nn

from audio_ct.models.compressive_transformer import CompressiveTransformer
from audio_ct.models.frames import Frames
from audio_ct.models.gated_convolutions import GatedConvolution, GatedConvolutions
from audio_ct.models.heads import SkipBody, SoftmaxHead
from audio_ct.models.settings import CompressiveTransformerSettings
from audio_ct.models.stage import flatten, map_state, select_lanes, unflatten
from audio_ct.models.token_model import TokenModel

CHANNELS, FRAME, SEGMENT = 8, 3, 4
LENGTH = 4 * FRAME * SEGMENT


def settings(segment_length: int = SEGMENT) -> CompressiveTransformerSettings:
    return CompressiveTransformerSettings(
        num_layers=2,
        d_model=CHANNELS,
        num_heads=2,
        d_ff=8,
        segment_length=segment_length,
        memory_length=segment_length,
        compressed_memory_length=2,
        compression_rate=2,
    )


@pytest.fixture
def model() -> TokenModel:
    torch.manual_seed(0)
    stages = {
        "frames": Frames(CompressiveTransformer(settings()), channels=CHANNELS, d_model=CHANNELS, frame_length=FRAME),
        "convolutions": GatedConvolutions(
            GatedConvolution(CHANNELS, skip_channels=CHANNELS, width=2, dilation=dilation) for dilation in (1, 2)
        ),
    }
    head = SoftmaxHead(SkipBody(CHANNELS), CHANNELS, vocabulary_size=9)
    return TokenModel(9, embedding=nn.Embedding(9, CHANNELS), stages=stages, head=head).double().eval()


def stream() -> Tensor:
    return torch.randint(9, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_frames_are_cut_and_stepped_like_any_other_stage(model: TokenModel) -> None:
    assert (model.segment_length, model.period) == (FRAME * SEGMENT, FRAME)
    initial = model.initial_state(2, dtype=torch.float64)
    whole = model(stream(), initial)
    state, logits = initial, []
    for window in stream().split(FRAME * SEGMENT, dim=1):
        output = model(window, state)
        logits.append(output.logits)
        state = output.state
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, atol=1e-10, rtol=0)
    state, logits = initial, []
    for t in range(LENGTH):
        row, state = model.step(stream()[:, t], state)
        logits.append(row)
    torch.testing.assert_close(torch.stack(logits, dim=1), whole.logits, atol=1e-10, rtol=0)
    map_state(lambda a, b: torch.testing.assert_close(a, b, atol=1e-10, rtol=0) or a, state, whole.state)


@torch.no_grad()
def test_a_frame_is_heard_from_the_next_frame_on(model: TokenModel) -> None:
    initial = model.initial_state(2, dtype=torch.float64)
    logits = model(stream(), initial).logits
    for s in (0, 4, 5, 20):
        changed = stream()
        changed[0, s] = (changed[0, s] + 1) % 9
        moved = (model(changed, initial).logits - logits).abs().amax(-1) > 0
        assert not moved[0, :s].any()
        assert not moved[1].any()
        assert moved[0, s]
        # The convolutions see 3 samples back; further on it is heard by its frame.
        next_frame = (s // FRAME + 1) * FRAME
        assert moved[0, max(s + 4, next_frame) : next_frame + FRAME * SEGMENT - FRAME].all()


def test_losses_of_two_stages_are_added_and_their_segments_must_be_alike(model: TokenModel) -> None:
    def two(segment_length: int) -> TokenModel:
        torch.manual_seed(0)
        stages = {name: CompressiveTransformer(settings(length)) for name, length in (("a", 4), ("b", segment_length))}
        head = SoftmaxHead(nn.Identity(), CHANNELS, vocabulary_size=9)
        return TokenModel(9, embedding=nn.Embedding(9, CHANNELS), stages=stages, head=head).double().train()

    both = two(4)
    loss = both(stream(), both.initial_state(2, dtype=torch.float64)).auxiliary_losses["attention_reconstruction"]
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in both.auxiliary_parameters())
    with pytest.raises(AssertionError, match="segments of one length"):
        two(8)


def test_states_are_flattened_and_chosen_by_lane() -> None:
    state = {"a": {"0": torch.zeros(2, 3), "1": {"deep": torch.ones(2)}}, "b": torch.arange(2)}
    flat = flatten(state)
    assert list(flat) == ["a.0", "a.1.deep", "b"]
    assert flatten(unflatten(flat)) == flat
    other = map_state(lambda tensor: tensor + 10, state)
    chosen = flatten(select_lanes(torch.tensor([True, False]), other, state))
    assert chosen["b"].tolist() == [10, 1]
    assert chosen["a.1.deep"].tolist() == [11, 1]
