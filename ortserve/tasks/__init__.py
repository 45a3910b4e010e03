"""What a task is, and the table of those there are. A new task is one file here and one line in `_TASKS`; nothing else changes.

A task is all that the edge, the batcher and the session do not know: what a payload means and what an answer looks like.
Names are those of Hugging Face's task list, so that a manifest says what a newcomer would search for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ortserve.errors import ModelError
from ortserve.tasks.endpoint import Endpoint
from ortserve.tasks.image_classification import ImageClassification

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors


class Task(Protocol):
    """Payload to tensors, tensors to answer. Made once at start-up, then called from many threads at once: keeps no state of a request."""

    endpoints: tuple[Endpoint, ...]
    outputs: tuple[str, ...]  # the graph outputs that serving asks for

    def parameters(self, fields: Mapping[str, str]) -> Any:
        """The request's parameters, checked; what is not given has its default.

        Raises InvalidParameter for a value out of its range or an unknown field, naming the nearest known one.
        """
        ...

    def preprocess(self, payload: bytes | memoryview) -> Tensors:
        """One payload as `{name: [1, ...]}`, the session's inputs. Called in a worker thread. Raises RequestError."""
        ...

    def postprocess(self, outputs: Tensors, parameters: Any) -> Any:
        """What JSON can hold, from one payload's rows `{name: [1, ...]}` and the result of `parameters`."""
        ...


_TASKS: dict[str, Callable[[Manifest, Profile], Task]] = {
    "image-classification": ImageClassification,
}


def load(manifest: Manifest, profile: Profile) -> Task:
    """The task that the manifest names, made for its model.

    Raises ModelError for a task that is not in the table, naming those that are, and where the model does not fit its task.
    """
    if manifest.task not in _TASKS:
        raise ModelError(
            f"model {manifest.name} is for the task {manifest.task!r}, expected one of {', '.join(_TASKS)}: "
            "build it for one of these, or serve it with a version that knows its task"
        )
    return _TASKS[manifest.task](manifest, profile)
