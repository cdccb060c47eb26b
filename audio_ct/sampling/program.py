"""A model's step as a program of torch.export: weights, memories and schedule in one file that needs nothing of ours.

    tokens [1], state -> logits [1, vocabulary], state                 arguments are left as they were

What `TokenModel.step` decides by a sample's place in its stretch, the program decides itself, by `torch.cond`. Its
example inputs are the beginning of a waveform: the start token, and the state of a model that has heard nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from audio_ct.models.stage import State, map_state
from audio_ct.models.token_model import TokenModel
from audio_ct.sampling.weights import with_weights


def export_step(model: TokenModel, *, start_token: int) -> ExportedProgram:
    """Export a model's step for one waveform: the numbers of the engine's plain step.

    Args:
        model: on the CPU; left as it is.
        start_token: the codec's, which stands before the first sample.
    """
    step = _Program(with_weights(model, "float32"))
    state = step.model.initial_state(1)
    state = map_state(_contiguous, state | {"cache": step.model.open_cache(state)})
    # Strict: only dynamo knows how long a slice is whose place in the stretch is not known yet.
    program = torch.export.export(step, (torch.tensor([start_token]), state), strict=True)
    _make_fit_for_a_file(program)
    return program


class _Program(nn.Module):
    """`TokenModel.step` as a function of tensors, of a state that always holds its stretch's caches."""

    def __init__(self, model: TokenModel) -> None:
        super().__init__()
        self.model = model
        parts: dict[str, tuple[Any, int]] = {}
        if model.linear_prediction is not None:
            parts["linear_prediction"] = model.linear_prediction, model.linear_prediction.frame_length
        parts |= {name: (stage, stage.period) for name, stage in model.stages.items() if stage.period is not None}
        # One whose period is the stretch is brought up to date by its end.
        self._parts = {name: each for name, each in parts.items() if each[1] < model.cache_length}

    @torch.no_grad()
    def forward(self, tokens: Int[Tensor, " 1"], state: State) -> tuple[Float[Tensor, "1 vocabulary"], State]:
        """Read one token; return logits of the next one and the new state."""
        model, stretch = self.model, self.model.cache_length
        state = map_state(torch.clone, state)
        logits = model.head.distribution(model.read(tokens, state["cache"]))
        position = state["cache"]["position"][0]
        for name, (part, period) in self._parts.items():

            def advance(caches: State, part: Any = part, period: int = period) -> State:
                num_periods = (position // period).item()
                torch._check(num_periods >= 1)
                torch._check(num_periods < stretch // period)
                part.advance(caches, num_periods * period)
                return caches

            is_due = (position % period == 0) & (position < stretch)
            state["cache"][name] = _where(is_due, advance, state["cache"][name])

        def turn(state: State) -> State:
            caches = state.pop("cache")
            state = model.close_cache(state, caches)
            return state | {"cache": model.open_cache(state)}

        return logits, _where(position == stretch, turn, state)


def _where(condition: Tensor, function: Callable[[State], State], state: State) -> State:
    """A state through a function that may write to it, where a condition holds; else as it is."""
    leaves, layout = pytree.tree_flatten(state)

    def changed(*leaves: Tensor) -> tuple[Tensor, ...]:
        new_state = function(pytree.tree_unflatten([_contiguous(leaf) for leaf in leaves], layout))
        # In the order of the layout's names.
        ordered = pytree.tree_map(lambda _, tensor: _contiguous(tensor), state, new_state)
        return tuple(pytree.tree_leaves(ordered))

    def kept(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(_contiguous, leaves))

    return pytree.tree_unflatten(list(torch.cond(condition, changed, kept, tuple(leaves))), layout)


def _contiguous(tensor: Tensor) -> Tensor:
    """A copy: the branches of a condition return tensors of one layout, none of them an argument's."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _make_fit_for_a_file(program: ExportedProgram) -> None:
    """Keep what running takes: no source lines and paths, no constants in branches, no symbols that nobody reads."""
    symbols: set[Any] = set()
    for module in program.graph_module.modules():
        if not isinstance(module, GraphModule):
            continue
        if module is not program.graph_module:
            _write_out_constants(module)
        for node in module.graph.nodes:
            node.meta = {name: node.meta[name] for name in ("val", "unbacked_bindings") if name in node.meta}
            if isinstance(node.meta.get("val"), torch.SymInt):
                symbols |= node.meta["val"].node.expr.free_symbols
    for symbol in program.range_constraints.keys() - symbols:
        del program.range_constraints[symbol]


def _write_out_constants(branch: GraphModule) -> None:
    """Make a branch's constants, which are short, where they are used: a file has room for the outer graph's alone."""
    aten = torch.ops.aten
    for node in branch.graph.find_nodes(op="get_attr"):
        constant = getattr(branch, node.target)
        for copy in [user for user in node.users if user.target is aten.lift_fresh_copy.default]:
            options = {"dtype": constant.dtype, "device": constant.device}
            with branch.graph.inserting_before(copy), copy.meta["val"].fake_mode:
                numbers = []
                for number in constant.tolist():
                    numbers.append(branch.graph.call_function(aten.scalar_tensor.default, (number,), options))
                    numbers[-1].meta["val"] = torch.scalar_tensor(number, **options)
                vector = branch.graph.call_function(aten.stack.default, (numbers,))
            vector.meta = copy.meta
            copy.replace_all_uses_with(vector)
            branch.graph.erase_node(copy)
    branch.graph.eliminate_dead_code()
    branch.recompile()
