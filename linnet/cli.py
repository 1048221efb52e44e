"""The command line: one function for each verb, which calls the API or one stage.

What   `linnet VERB ...`. A verb's docstring is its help text.
Why    `linnet --help` must answer at once: a stage, and torch with it, is imported only when its verb is called.
How    A function checks how its options fit together and prints; the work is done below. `linnet.__main__` turns errors
       into a line and an exit code.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from linnet.errors import LinnetError, UsageError

app = typer.Typer(
    help="GPT-2 models out of your text, on the machine you have.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in recipe or the path of a .toml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, such as train.steps=200."),
]
WriterArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a model folder or a name on the hub.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to write, without the prompt.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens only.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that together have this share.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: make seen tokens less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.callback(invoke_without_command=True)
def linnet(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """GPT-2 models out of your text, on the machine you have."""
    if version:
        import linnet

        print(f"linnet {linnet.__version__}")
        raise typer.Exit


@app.command()
def demo(run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo")) -> None:
    """Train a miniature GPT-2 on the documentation that every Python brings along.

    Needs no network and no data. Shows the model's text before, midway and after.
    """
    from linnet.demo import run_demo

    run_demo(run)


@app.command()
def prepare(recipe: RecipeArgument, overrides: Overrides = None, *, as_json: AsJson = False) -> None:
    """Read, split, tokenize and store the data of a recipe.

    `linnet train` does it by itself when needed.
    """
    from linnet import preparing

    report = preparing.prepare(recipe, overrides=overrides or [])
    if as_json:
        print(json.dumps(report))
    else:
        print(f"{report['folder']}: {report['examples']:,} examples, {report['tokens']:,} tokens")


@app.command()
def inspect(
    subject: Annotated[
        str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a file, folder or glob of any data.")
    ],
    overrides: Overrides = None,
    *,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as a page as well.")] = None,
    rows: Annotated[int, typer.Option(help="How many of the first examples are shown.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what will be learned of the data: examples in colour, counts, what is left out, duplicates.

    Of a bare file it says what it seems to be and which recipe fits.
    """
    from linnet import inspection

    inspection.show(subject, overrides=overrides or [], html=html, as_json=as_json, rows=rows)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory to fit, such as 4GB; default: what is free here.")
    ] = "",
    device: Annotated[
        str, typer.Option(help="cpu or cuda; with cuda and --memory for a card that is not here.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what a training takes, before anything is downloaded or prepared: memory by item, disk, time.

    And the settings that fit.
    """
    from linnet import planning

    planning.show(recipe, overrides=overrides or [], memory=memory, device=device, as_json=as_json)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    run: Annotated[str, typer.Option(help="Folder of the run; auto: runs/RECIPE.")] = "auto",
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although data, tokenizer or recipe have changed.")
    ] = False,
    mirror: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Copy each checkpoint there, too; go on from it where it is further."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the settings and the first batch, then stop.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of a step goes, then stop.")
    ] = False,
) -> None:
    """Train a model, or go on where the run stopped.

    Ctrl-C and SIGTERM save first; the same command goes on. Exit codes: 3 diverged, 4 disk, 5 memory, 6 locked,
    130/143 stopped by a signal.
    """
    from linnet import api

    api.train(
        recipe,
        run=run,
        overrides=overrides or [],
        accept_changes=accept_changes,
        mirror=mirror,
        only="dry-run" if dry_run else "profile" if profile else "train",
    )


@app.command(name="eval")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [data.KEY=VALUE]...",
            help="Runs, model folders or names on the hub; data.KEY=VALUE says how --data is read.",
        ),
    ],
    *,
    data: Annotated[
        str, typer.Option(metavar="SOURCE", help="Measure on all of this, not on the run's held-out split.")
    ] = "",
    data_format: Annotated[
        str | None,
        typer.Option("--format", help="text, lines, instruct, chat or papers; default: the run's own."),
    ] = None,
    limit_tokens: Annotated[int | None, typer.Option(help="Measure the loss on at most so many.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens by which windows of long text move on; default: half a window.")
    ] = None,
    generate: Annotated[int, typer.Option(help="Questions that are answered; 0: none.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(help="Of the answers; 0 always takes the likeliest token.")
    ] = 0.8,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="exact-match or rouge; may be given again. Default: what fits the data."),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Measure models on held-out text: loss, perplexity, bits per byte, and whether their answers end.

    Several models are shown side by side.
    """
    from linnet import evaluation
    from linnet.evaluate.table import print_table

    settings = evaluation.Settings(
        data=data,
        format=data_format,
        limit_tokens=limit_tokens,
        stride=stride,
        generate=generate,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        metrics=metric or (),
        precision=precision,
    )
    overrides = [word for word in models if word.startswith("data.") and "=" in word]
    names = [word for word in models if word not in overrides]
    reports = evaluation.evaluate(names, settings, overrides=overrides)
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {"models": reports}))
    else:
        print_table(reports)


@app.command()
def generate(
    model: WriterArgument,
    prompt: Annotated[
        str, typer.Argument(help="What the model answers or continues; - reads it from stdin.")
    ] = "",
    *,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: Annotated[
        float, typer.Option(help="Draw from tokens with at least this share of the likeliest one's.")
    ] = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given again.")] = None,
    seed: Seed = None,
    end_at_sentence: Annotated[
        bool, typer.Option("--end-at-sentence", help="Cut after the last whole sentence.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print each piece as it is written.")] = False,
    system: Annotated[
        str, typer.Option("--system", "--title", help="A turn before the prompt; of a paper its title.")
    ] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Take the prompt as it is, without the model's template.")
    ] = False,
    transcript: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Answer a conversation, lines like `user: ...` and `assistant: ...`; - reads it from stdin.",
        ),
    ] = None,
    continue_sections: Annotated[
        bool, typer.Option("--continue-sections", help="Write an article that is longer than the window.")
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8 (weights of 8 bits).")] = "fp32",
    as_json: AsJson = False,
) -> None:
    """Answer a prompt, or write on from it; only the new text goes to stdout.

    A model that was trained on turns (questions and answers, conversations, papers) reads the prompt as one: of
    a paper it is the abstract, for a summary the article.
    """
    if stream and as_json:
        raise UsageError("--stream and --json exclude each other: JSON is printed once, at the end.")
    if transcript is not None and (prompt or system or raw):
        raise UsageError(
            "--transcript holds the whole conversation: leave out the prompt, --system and --raw."
        )
    from linnet import api
    from linnet.generate.prompts import WritingOptions
    from linnet.turns.transcript import read_transcript

    text = _read_stdin() if prompt == "-" else prompt
    options: WritingOptions = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or [],
        "seed": "random" if seed is None else seed,
        "end_at_sentence": end_at_sentence,
        "system": system,
        "raw": raw,
        "continue_sections": continue_sections,
    }
    writer = api.load(model, precision=precision)
    if transcript is not None:
        options["messages"] = [
            {"role": role, "content": content}
            for role, content in read_transcript(transcript, writer.template)
        ]
    writing = writer.start(text, **options)
    if said := writing.shortened:
        print(said, file=sys.stderr)
    if stream:
        for piece in writing.pieces():
            print(piece, end="", flush=True)
        print()
        return
    completion = writing.complete()
    if as_json:
        print(json.dumps(asdict(completion)))
    else:
        print(completion.text)


@app.command()
def chat(
    model: WriterArgument,
    *,
    system: Annotated[str, typer.Option(help="How to behave; a turn before the conversation.")] = "",
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16, fp16 or int8; auto: the fastest that this machine has.")
    ] = "auto",
) -> None:
    """Talk to a model in the terminal; /help lists the commands. From a pipe each line is a message.

    Answers go to stdout, all else to stderr. A model that was not trained on turns writes on from what you type.
    """
    from linnet import api
    from linnet.device import choose_writing_precision
    from linnet.generate.chat import Conversation
    from linnet.generate.sampling import SamplingOptions
    from linnet.generate.terminal import note, talk

    options: SamplingOptions = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": "random" if seed is None else seed,
    }
    choice = choose_writing_precision(precision)
    conversation = Conversation(api.load(model, precision=choice.value), options, system=system)
    if not conversation.has_turns:
        note("This model was not trained on turns: it writes on from what you type.")
    talk(
        conversation,
        greeting=f"{model} in {choice.value}: {choice.reason}. /help lists the commands, Ctrl-D leaves.",
    )


@app.command()
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Runs, model folders or names on the hub.")
    ],
    *,
    host: Annotated[
        str, typer.Option(help="Where it listens; 0.0.0.0 is the whole network and wants a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str,
        typer.Option(
            metavar="KEY", envvar="LINNET_API_KEY", help="Only who has it may ask.", show_default=False
        ),
    ] = "",
    runs: Annotated[Path | None, typer.Option(metavar="DIR", help="Show the runs of this folder.")] = None,
    precision: Annotated[
        str,
        typer.Option(help="auto, fp32, bf16, fp16 or int8; auto: the quickest that this machine really has."),
    ] = "auto",
    queue: Annotated[int, typer.Option(help="Texts that may wait; who comes then is sent away.")] = 256,
    together: Annotated[int, typer.Option(help="Texts that are written at once.")] = 32,
    idle_minutes: Annotated[
        float, typer.Option(help="A model that nobody asks for so long gives its memory back.")
    ] = 15.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of this server; may be given again."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A page elsewhere that may ask; may be given again."),
    ] = None,
) -> None:
    """Serve models: OpenAI's API, a page to talk to them, a live view of runs.

    Models are loaded when somebody asks for them. Ctrl-C and SIGTERM let answers end first.
    """
    from linnet.serve.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        runs=runs,
        precision=precision,
        queue=queue,
        together=together,
        idle_minutes=idle_minutes,
        allow_hosts=allow_host or (),
        allow_origins=allow_origin or (),
    )
    from linnet import api
    from linnet.serve import server

    server.serve(
        models,
        settings,
        load=lambda folder, precision: api.load(folder, precision=precision, together=True),
    )


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder of runs.")] = Path("runs"),
    *,
    plot: Annotated[Path | None, typer.Option(help="Put all loss curves into this picture.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put curves and samples into this page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs of a folder side by side."""
    from linnet import overview

    overview.show(folder, plot=plot, html=html, as_json=as_json)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run or a model folder.")],
    place: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="hub", help="Where to: hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is made, only its owner sees it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a model and its card to the Hugging Face hub; no checkpoint and no data.

    Needs a token with write access: `hf auth login`, or HF_TOKEN. After a broken upload the same command goes on.
    """
    from linnet.export import TARGETS

    if to not in TARGETS:
        raise UsageError(f"--to {to} is no place to export to; there is: {', '.join(TARGETS)}.")
    from linnet.export.hub import export_to_hub

    report = export_to_hub(model, place, private=private, say=lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(f"The same by hand: {report.command}")
        print(report.url)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise LinnetError(
            f"The prompt on stdin is not UTF-8 (byte {error.start}); convert it first."
        ) from error
