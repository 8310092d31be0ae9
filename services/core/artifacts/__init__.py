"""What a generated file is, told from its bytes: a usable image, film or sound, or not.

`inspect` finds the type by content (never by name or header), walks the container to its end and
gives the facts that a bill may rest on. What cannot be walked is not delivered and not charged.
"""

from services.core.artifacts.inspect import inspect, inspect_pcm
from services.core.artifacts.source import ArtifactFacts, ArtifactInvalid, Source

__all__ = ["ArtifactFacts", "ArtifactInvalid", "Source", "inspect", "inspect_pcm"]
