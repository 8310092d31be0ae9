"""A running stack with media channels, for the tests of media through the public door."""

import json

from tests.parts.stack import Stack, started

PROVIDERS = {
    "openai": ["sim-image", "sim-speech", "sim-transcribe"],
    "openai-videos": ["sim-video"],
    "openai-embeddings": ["sim-embed"],
    "rerank": ["sim-rerank"],
}


def media_stack(folder):
    """A generator for a fixture; afterwards all that went through it must add up."""
    stack = Stack(folder, {"edge": {"event_stall_s": 2}})
    with stack.config_file.open("a") as file:
        for provider, models in PROVIDERS.items():
            file.write(
                f'[[channels]]\nname = "m-{provider}"\nprovider = "{provider}"\n'
                f'base_url = "{stack.sim.base_url}/v1"\ncredential = "env:SIM_KEY"\n'
                f"models = {json.dumps(models)}\n"
            )
    yield from started(stack)
