"""What an operator's command was refused becomes one line on stderr and the error's exit status."""

import typer

from fabric.operator.cluster_file import ClusterFileError
from fabric.operator.wallet import WalletError
from fabric.wire.errors import Error


class Refusals:
    """A `with` around whatever a command does."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Error):
            typer.secho(error.message, err=True)
            raise typer.Exit(error.exit_code) from None
        if isinstance(error, ClusterFileError | WalletError | RuntimeError) and not isinstance(error, typer.Exit):
            typer.secho(str(error), err=True)
            raise typer.Exit(1) from None
