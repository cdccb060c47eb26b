"""Steps of sampling as machine code.

On a CPU a step is compiled ahead of time for its shapes, without weights, and kept on disk. On a GPU it is compiled and
captured as a CUDA graph.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from audio_ct.errors import InputError

logger = logging.getLogger("audio_ct")

# torch._inductor.graph.GraphLowering.can_inline_constant
INLINED_LENGTH = 8


def can_compile(device: torch.device) -> bool:
    """Return whether there is a compiler for steps on this device."""
    if device.type == "cuda":
        return True
    # Compilers take a second to import.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def prepare(module: nn.Module, arguments: tuple[Any, ...], *, moved: Sequence[Tensor]) -> Callable[[], object]:
    """Return a function that does with these very arguments what the module does, by machine code.

    Args:
        module: static shapes, no decisions that depend on data.
        arguments: what it reads and writes, each time.
        moved: what of that must be as it was after the module has been tried; the rest it overwrites.
    """
    before = [tensor.clone() for tensor in moved]
    is_on_gpu = moved[0].device.type == "cuda"
    run = _capture_on_gpu(module, arguments) if is_on_gpu else _compile_for_cpu(module, arguments)
    for tensor, value in zip(moved, before, strict=True):
        tensor.copy_(value)
    return run


def _compile_for_cpu(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that does without Python what the module does.

    The code is compiled by the machine's C++ compiler in some 10 to 40 seconds, and kept under the user's cache folder
    (`cache_folder`) by everything that it depends on. Weights are no part of it: another checkpoint of the same model
    takes it from there in a second or two.

    Raises:
        InputError: if there is no C++ compiler.
    """
    # Private as the name is, this is how torch documents ahead-of-time compilation.
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    if not can_compile(torch.device("cpu")):
        raise InputError("compiled: there is no C++ compiler (g++ or $CXX) here; install one or sample uncompiled.")
    settings = {"cpp.threads": torch.get_num_threads(), "aot_inductor.package_constants_in_so": False}
    exported = torch.export.export(module, arguments)
    constants = {**exported.state_dict, **exported.constants}
    depends_on = (
        exported.graph_module.print_readable(print_output=False),
        str(exported.graph_signature),
        # The compiler writes the values of constants as short as this into the code.
        {name: tensor.tolist() for name, tensor in constants.items() if tensor.numel() <= INLINED_LENGTH},
        settings,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
    )
    path = cache_folder() / f"{hashlib.sha256(repr(depends_on).encode()).hexdigest()[:32]}.pt2"
    if not path.is_file():
        logger.info("compiling the step, once for this model's shapes: half a minute or more")
        began = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = aoti_compile_and_package(exported, package_path=f"{folder}/step.pt2", inductor_configs=settings)
            os.replace(made, path)
        logger.info("compiled in %.0f s, kept as %s", time.perf_counter() - began, path)
    runner = aoti_load_package(str(path), run_single_threaded=True)
    used = {name: constants[name].detach() for name in runner.get_constant_fqns()}
    runner.load_constants(used, check_full_update=True)
    # Called directly, the runner parses a description of its arguments each time.
    leaves = pytree.tree_leaves(arguments)
    return lambda: runner.loader.boxed_run(list(leaves))


def _capture_on_gpu(module: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that replays what the module does as a CUDA graph."""
    # One sample's products are read from memory faster by generated code than by matrix libraries.
    compiled = torch.compile(module, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True})
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            compiled(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compiled(*arguments)
    return graph.replay


def cache_folder() -> Path:
    """Return where compiled steps are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audio-ct" / "steps"
