"""From what was asked to turns.

Why: a model that was trained on turns must read a prompt as a turn, and one that was not must read it as it is.
How: a prompt is the user's turn (of a paper: its abstract; for a summary: its article), a system text the turn before
it (the title), messages are a whole conversation. How turns become ids, and what gives way where they do not fit, is
`linnet.turns.layout`'s business, as in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linnet.errors import UsageError
from linnet.generate.sampling import SamplingOptions
from linnet.turns.template import PAPERS, Template, Turn, normalize


class WritingOptions(SamplingOptions, total=False):
    """The keywords of `Model.generate`, `stream`, `complete` and `start`; `Asked` holds the meaning of these."""

    system: str
    messages: Sequence[Mapping[str, Any]]
    raw: bool
    continue_sections: bool
    choice: int


@dataclass(frozen=True)
class Asked:
    """What a caller gave. A UsageError says what does not go together."""

    prompt: str
    """What the model answers, or continues."""
    system: str = ""
    """A turn before the prompt: how to behave, or the title of a paper."""
    messages: Sequence[Mapping[str, Any]] = ()
    """A whole conversation in place of prompt and system: {"role", "content"}, as transformers takes it."""
    raw: bool = False
    """The prompt is taken as it is, though the model has a template."""
    continue_sections: bool = False
    """An article goes on beyond the window."""

    def __post_init__(self) -> None:
        for name in ("prompt", "system"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise UsageError(f"{name} is {value!r}, but must be a text.")
        if self.messages and (self.prompt or self.system):
            raise UsageError("messages hold the whole conversation: leave out prompt and system.")
        if self.raw and (self.messages or self.system or self.continue_sections):
            raise UsageError(
                "raw takes the prompt as it is: leave out system, messages and continue_sections."
            )

    def turns(self, template: Template | None) -> list[Turn] | None:
        """The turns, normalized; None where the prompt is taken as it is.

        Raises:
            UsageError: something asks for a template that the model does not have, or a message is none.
        """
        if self.continue_sections and template != PAPERS:
            raise UsageError(
                "continue_sections is for models that were trained to write articles (recipe papers): leave it out."
            )
        if template is None and (self.messages or self.system):
            raise UsageError(
                "This model was not trained on turns, so it knows neither system nor messages: put all of it into the "
                "prompt."
            )
        if template is None or self.raw:
            return None
        if self.messages:
            return normalize([_turn(message, template) for message in self.messages])
        return normalize([Turn("system", self.system), Turn("user", self.prompt)])


def _turn(message: Mapping[str, Any], template: Template) -> Turn:
    try:
        role, content = message["role"], message.get("content")
    except (TypeError, KeyError, AttributeError):
        raise UsageError(f'{message!r} is no message of the form {{"role": ..., "content": ...}}.') from None
    if role not in template.headers:
        raise UsageError(
            f"A message has the role {role!r}, but must have one of {', '.join(template.headers)}."
        )
    if not isinstance(content, str | None):
        raise UsageError(f"The content of a message is {content!r}, but must be a text.")
    return Turn(role, content or "")
