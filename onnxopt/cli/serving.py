"""`onnxopt serve | package | placement`: answer over HTTP; clients of other stacks; where an artifact runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.serve_config import read_config
from onnxopt.cli.shared import (
    JsonOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    app,
    configure_logging,
    err_console,
    out_console,
)
from onnxopt.errors import InputError

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        help="auto (what the artifact was made for, else the CPU), cpu, cuda, tensorrt, openvino or tensorrt-rtx.",
    ),
]


@app.command(
    epilog="Examples: `onnxopt placement build/minilm` · `onnxopt placement build/minilm --device cuda --json`"
)
def placement(
    path: Annotated[Path, typer.Argument(help="An artifact folder or an .onnx file.")],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell which provider runs how many nodes, what is copied between devices, and which kernels take the time."""
    configure_logging(verbose=verbose)
    from onnxopt.run.there import model_file

    model_file(path)
    from onnxopt.artifact.placement import placement as run

    found = run(path, device=device)
    if as_json:
        print_answer(found)
    else:
        for line in found.lines():
            out_console.print(line, markup=False, soft_wrap=True)


@app.command(
    epilog="Examples: `onnxopt serve build/minilm` · `onnxopt serve build/minilm chat=build/smollm2 --port 9000` · "
    "`onnxopt serve build/minilm --host 0.0.0.0 --max-batch 64 --max-queue 4096` · `onnxopt serve --config serve.toml`",
    context_settings={"auto_envvar_prefix": "ONNXOPT_SERVE"},
)
def serve(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=DIR...",
            help="Artifact folders to serve, each with a name if it shall have another.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            is_eager=True,
            callback=read_config,
            help="A TOML file with these options by name, and [models] with a folder for each name. What is said here "
            "goes before the environment (`ONNXOPT_SERVE_PORT`, ...), and that before the file.",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Runs of one encoder at a time; on a CPU one per core, one thread each."),
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Rows of an encoder that run together.")] = 32,
    max_wait_ms: Annotated[
        float, typer.Option("--max-wait-ms", min=0.0, help="How long a request waits for others.")
    ] = 2.0,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Texts a decoder writes at the same time.")] = 8,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Waiting requests per model; then 429.")] = 1024,
    max_items: Annotated[int, typer.Option("--max-items", min=1, help="Texts of one request; then 413.")] = 256,
    max_body: Annotated[int, typer.Option("--max-body-mb", min=1, help="Size of a request in MiB; then 413.")] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="The most tokens to write for a prompt; then 422.")
    ] = 4096,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Open at the same time; then idle ones end, else 503.")
    ] = 1024,
    memory: Annotated[
        str,
        typer.Option(
            "--memory", help="Memory of the whole server, such as 2GB; else 75% of what the machine or cgroup allows."
        ),
    ] = "",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one request; then 503.")] = 300.0,
    grace: Annotated[
        float, typer.Option("--grace", min=1.0, help="Seconds to finish what was accepted after SIGTERM.")
    ] = 30.0,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key", help="Answer only who sends it, or another one of several; better `ONNXOPT_SERVE_API_KEY`."
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="A site whose pages may ask from a browser, or * for all; repeatable."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line on standard error for each request.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Serve artifacts: OpenAI's /v1, KServe's /v2, /metrics, /healthz; batches what callers send at the same time."""
    del config  # `read_config` has taken what it says
    configure_logging(verbose=verbose)
    from onnxopt.host.extras import require

    require("serve", "serving")
    from onnxopt.host.sizes import parse_size
    from onnxopt.serve.ahead import bound, named_folders, require_models
    from onnxopt.serve.limits import Limits

    limits = Limits(
        max_body_bytes=max_body << 20,
        max_items=max_items,
        max_queue=max_queue,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_new_tokens=max_new_tokens,
        max_connections=max_connections,
        memory_bytes=parse_size(memory) if memory else 0,
        timeout_s=timeout,
        grace_s=grace,
    )

    def say(line: str) -> None:
        if not quiet:
            err_console.print(line, markup=False, soft_wrap=True)

    def note_down(line: str) -> None:
        err_console.print(line, markup=False, soft_wrap=True, highlight=False)

    named = named_folders(folders or ())
    require_models(named.values())
    with bound(host, port) as listener:  # before models are opened, which takes a while
        from onnxopt.serve import app as web
        from onnxopt.serve.front import Access
        from onnxopt.serve.shelf import Opening

        how = Opening(device=device, threads=threads, workers=workers, max_rows=max_rows)
        access = Access(api_key or (), cors_origin or (), note_down if access_log else None)
        found = web.create_app(named, limits=limits, how=how, access=access, progress=say)
        for model in found.state.shelf.models.values():
            for note in model.session.plan.notes:
                err_console.print(f"note: {model.name}: {note}", markup=False, soft_wrap=True)
            say(f"{model.name}: {', '.join(model.routes)}")
        web.serve(found, listener, ready=lambda address: say(f"serving at {address}"))
    say(f"stopped; answered {found.state.metrics.answered()} requests")


@app.command(
    epilog="Examples: `onnxopt package build/minilm --for node` · `onnxopt package build/minilm --for web --for cpp` · "
    "`onnxopt package build/smollm2-135m --for genai`"
)
def package(
    path: Annotated[Path, typer.Argument(help="An artifact folder.")],
    stacks: Annotated[
        list[str], typer.Option("--for", help="node, web, genai, triton, cpp, csharp, java or rust; may be repeated.")
    ],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add small runnable clients for programs without Python; each repeats the golden cases and says when it cannot."""
    configure_logging(verbose=verbose)
    from onnxopt.artifact.place import resolved
    from onnxopt.records.manifest import Manifest

    Manifest.read(resolved(path))
    from onnxopt.artifact.clients import STACKS, add_client

    unknown = [stack for stack in stacks if stack not in STACKS]
    if unknown:
        raise InputError(f"unknown stack {unknown[0]!r}", hint=f"use one of {', '.join(STACKS)}")
    made = [add_client(path, stack) for stack in stacks]
    if as_json:
        shown = {client.stack: {"command": client.command, "ask": client.ask, "files": client.files} for client in made}
        print_answer(shown)
        return
    for client in made:
        for command in filter(None, (client.command, client.ask)):
            out_console.print(f"cd {client.folder} && {command}", markup=False, soft_wrap=True)
    for note in dict.fromkeys(note for client in made for note in client.notes):
        err_console.print(f"note: {note}", markup=False, soft_wrap=True)
