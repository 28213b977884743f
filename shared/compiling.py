"""torch.compile for a model's layers, or a line that says why not."""

from collections.abc import Callable

import torch
from transformers.modeling_utils import PreTrainedModel

from shared.device import autocast

TRIAL_TOKENS = 8


def compile_layers(model: PreTrainedModel, say: Callable[[str], None]) -> bool:
    """Compile the decoder for rows of any length, in place; say so and leave it as it was where that fails.

    It is tried at once, forth and back: torch compiles at the first call, and a missing C++ compiler should
    not end a release hours later. The output layer is not compiled (shared/losses.py). Works on the
    CPU and CUDA; source: torch `nn.Module.compile`, with one graph for all shapes (dynamic=True).
    """
    decoder = model.get_decoder()
    rows = torch.full((2, TRIAL_TOKENS), 3, device=model.device)
    positions = torch.arange(TRIAL_TOKENS, device=model.device).expand(2, -1)
    try:
        decoder.compile(dynamic=True)
        with autocast(model.device):
            found = decoder(input_ids=rows, position_ids=positions, use_cache=False)
        found.last_hidden_state.sum().backward()
    except RuntimeError as error:  # what dynamo, inductor and the compilers under them raise
        decoder._compiled_call_impl = None
        torch._dynamo.reset()
        say(f"torch.compile failed ({type(error).__name__}); going on without")
        return False
    finally:
        model.zero_grad()
    return True
