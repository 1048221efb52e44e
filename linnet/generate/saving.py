"""A conversation as a file: to train on, or to read and go on with.

What   `save` writes .jsonl, which the recipes `chat` and `text` train on, or .txt: a transcript as `linnet generate
       --transcript` reads it; of a model without turns the text itself.
Why    A talk that went well is data, and one that did not is a report.
How    In JSON the text is exact, and an answer that was cut has `"cut": true`. A transcript is for the eye: a line
       that would begin a turn gets a space before it, and control characters are replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from linnet.errors import LinnetError, UsageError
from linnet.files import write_file
from linnet.track.progress import printable
from linnet.turns.transcript import write_transcript

if TYPE_CHECKING:
    from linnet.generate.chat import Conversation


def save(conversation: Conversation, name: str, *, replace: bool) -> str:
    """Write `conversation` into the file `name`; returns a sentence that says what was written.

    Raises:
        LinnetError: the file is there and `replace` is not set, or it cannot be written.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".jsonl", ".txt") or not path.stem:
        raise UsageError("Name a file that ends with .jsonl (to train on) or .txt (to read).")
    if not conversation.exchanges:
        raise UsageError("Nothing was said yet.")
    if path.exists() and not replace:
        raise LinnetError(f"{path} is there already; name another file, or replace it with /save! {name}")
    as_json = path.suffix == ".jsonl"
    text = _json_lines(conversation) if as_json else _plain(conversation)
    try:
        write_file(path, [text.encode(errors="replace")])
    except OSError as error:
        raise LinnetError(f"{path} cannot be written: {error.strerror}.") from error
    return _report(conversation, path, as_json=as_json)


def _report(conversation: Conversation, path: Path, *, as_json: bool) -> str:
    cut = sum(exchange.is_cut for exchange in conversation.exchanges)
    if not conversation.has_turns:
        return f"{path}: the text, " + ("as a row of the recipe text." if as_json else "as it stands.")
    count = f"{path}: {len(conversation.turns)} messages"
    marked = f", {cut} cut before its end" if cut else ""
    use = f"linnet train chat data.source={path}" if as_json else f"linnet generate MODEL --transcript {path}"
    return f"{count}{marked}; {use}" + (
        "" if as_json else " answers it, once another turn stands at its end."
    )


def _json_lines(conversation: Conversation) -> str:
    if not conversation.has_turns:
        return "".join(
            json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in conversation.texts if text
        )
    messages: list[dict[str, object]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for exchange in conversation.exchanges:
        messages.append({"role": "user", "content": exchange.said})
        if exchange.answer.strip():
            answer: dict[str, object] = {"role": "assistant", "content": exchange.answer}
            messages.append(answer | ({"cut": True} if exchange.is_cut else {}))
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _plain(conversation: Conversation) -> str:
    template = conversation.model.template
    if template is None:
        return printable("\n\n".join(filter(None, conversation.texts)) + "\n")
    return printable(write_transcript(conversation.turns, template))
