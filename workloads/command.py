"""`fabric serve MODEL`: a model of transformers behind an OpenAI-compatible URL."""

import re
from typing import Annotated, Any

import typer

import fabric
from workloads.inference import ChatModel, Embedder

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A folder, a GGUF file or a known name, as the GPU's node sees it.")],
    gpu: Annotated[str | None, typer.Option(help="GPU grammar, such as 24GB..")] = None,
    replicas: Annotated[str, typer.Option(help="Least and most, such as 0-8; 0: none while nobody asks.")] = "0-1",
    budget: Annotated[str | None, typer.Option(help="USD for the endpoint's whole life.")] = None,
    max_price: Annotated[str | None, typer.Option(help="USD per GPU-hour.")] = None,
    max_rtt_ms: Annotated[float | None, typer.Option(help="At most so far from here.")] = None,
    tier: Annotated[str | None, typer.Option(help="spot or on_demand.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name towards clients.")] = None,
    embed: Annotated[bool, typer.Option("--embed", help="A model of embeddings instead of chat.")] = False,
) -> None:
    """Serve a model until `fabric endpoints stop ID`."""
    if not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?", replicas):
        raise fabric.InvalidRequest(f"--replicas {replicas} is not a number, nor two of them such as 0-8")
    least, _, most = replicas.partition("-")
    given: dict[str, Any] = {
        "gpu": gpu, "budget": budget, "max_price": max_price, "max_rtt_ms": max_rtt_ms, "tier": tier, "name": name,
    }  # fmt: skip
    wishes = {key: value for key, value in given.items() if value is not None}
    made = Embedder(model) if embed else ChatModel(model)
    service = fabric.serve(made, replicas=(int(least), int(most or least)), **wishes)
    typer.echo(f"{service.id}  {service.name}  {service.url}")


@app.callback()
def main() -> None:
    """Models behind a URL."""
