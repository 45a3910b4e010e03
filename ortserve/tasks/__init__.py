"""What a task is, and the table of those there are. A new task is one file here and one line in `_TASKS`; nothing else changes.

A task is all that the edge, the batcher and the session do not know: what a payload means and what an answer looks like.
Names are those of Hugging Face's task list, so that a manifest says what a newcomer would search for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ortserve.errors import ModelError
from ortserve.tasks.endpoint import Endpoint
from ortserve.tasks.feature_extraction import FeatureExtraction
from ortserve.tasks.image_classification import ImageClassification
from ortserve.tasks.object_detection import ObjectDetection
from ortserve.tasks.row import Begun, Row
from ortserve.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors


class Task(Protocol):
    """Payload to tensors, tensors to answer. Made once at start-up, then called from many threads at once: keeps no state of a request.

    A task may also have `soon` and `begin`, as `Begins`.
    """

    endpoints: tuple[Endpoint, ...]
    outputs: tuple[str, ...]  # the graph outputs that serving asks for
    payloads_per_job: int  # how many share one hop to a worker thread: 1 where each takes milliseconds there

    def preprocess(self, payload: Any, parameters: Any) -> Row:
        """One payload as a row, under the request's parameters. Called in a worker thread, but as `Begins` says. Raises RequestError."""
        ...

    def postprocess(self, outputs: Tensors, row: Row, parameters: Any) -> Any:
        """What the endpoint's `render` takes, from one payload's outputs `{name: [1, ...]}`. Called in the event loop's thread."""
        ...


@runtime_checkable
class Begins(Protocol):
    """A task some of whose payloads need no worker thread of Python's."""

    def soon(self, payload: Any) -> bool:
        """Whether `preprocess` is over in a moment: it is called in the event loop's thread then, as this is."""
        ...

    def begin(self, payload: Any, parameters: Any) -> Begun | None:
        """What threads that do not want the interpreter are to decode; None: have `preprocess` do it all. Raises RequestError.

        Called in the event loop's thread: quick.
        """
        ...


_TASKS: dict[str, Callable[[Manifest, Path, Profile], Task]] = {
    "feature-extraction": FeatureExtraction,
    "image-classification": ImageClassification,
    "object-detection": ObjectDetection,
    "text-classification": TextClassification,
}


def load(manifest: Manifest, folder: Path, profile: Profile) -> Task:
    """The task that the manifest names, made for its model, the package in `folder`.

    Raises ModelError for a task that is not in the table, naming those that are, and where the model does not fit its task.
    """
    if manifest.task not in _TASKS:
        raise ModelError(
            f"model {manifest.name} is for the task {manifest.task!r}, expected one of {', '.join(_TASKS)}: "
            "build it for one of these, or serve it with a version that knows its task"
        )
    return _TASKS[manifest.task](manifest, folder, profile)
