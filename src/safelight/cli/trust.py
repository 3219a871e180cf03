"""`safelight trust`: the certificate that signs finished pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli import ledger, options

if TYPE_CHECKING:
    from safelight.settings import Settings
    from safelight.trust.credentials import Credentials

EXAMPLES = """\
[bold]Examples[/]
  safelight trust certificate
  safelight trust certificate --pem > root.pem
  safelight trust init --certificate chain.pem --key key.pem"""

DEVELOPMENT = """
A development certificate: it shows that a picture has not changed, and not
whose it is. To all who do not trust its root, it is untrusted."""

app = typer.Typer(
    name="trust",
    help="The certificate that signs pictures: make or import it, show it, renew it.",
    no_args_is_help=True,
    epilog=EXAMPLES,
)
app.add_typer(ledger.app)


@app.command()
def init(
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your certificate chain as PEM: the signing certificate, then its issuers."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its private key as PEM; left out, SAFELIGHT_TRUST_SIGNER signs."),
    ] = None,
) -> None:
    """Make a development certificate, or sign with your own from now on.

    A certificate of your own is checked, and tried on an empty picture, before it is used. The former one is kept, so
    that earlier pictures are verified as before.
    """
    from safelight.errors import InvalidRequest
    from safelight.trust.credentials import open_credentials, own_credentials, read_credentials, use
    from safelight.trust.policy import Policy
    from safelight.trust.signer import Signer, load_callback

    settings = opened()
    if certificate is None:
        if key is not None:
            raise InvalidRequest("--key needs --certificate: a key alone says nothing of who signs")
        already = read_credentials(settings.trust)
        show(open_credentials(settings.trust), settings)
        if already:
            typer.echo("It was there already; `safelight trust rotate` makes a new one.", err=True)
        return
    if key is None and not settings.trust_signer:
        raise InvalidRequest(
            "--certificate also needs --key, its private key, unless SAFELIGHT_TRUST_SIGNER names an external signer"
        )
    own = own_credentials(settings.trust, read(certificate), None if key is None else read(key))
    callback = None if key is not None else load_callback(settings.trust_signer)
    Signer(own, Policy(), callback=callback, timeout_s=settings.trust_signer_timeout_s).try_out()
    use(own)
    show(own, settings)
    typer.echo("A server that runs signs with it when it is started again.", err=True)


@app.command()
def certificate(
    pem: Annotated[bool, typer.Option("--pem", help="Print the root that verifiers need, as PEM.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the certificate in use; without one, a development certificate is made."""
    from safelight.trust.credentials import open_credentials

    settings = opened()
    credentials = open_credentials(settings.trust)
    if pem:
        typer.echo(credentials.root_pem.decode(), nl=False)
    elif as_json:
        about = credentials.description
        said = {
            "subject": about.subject,
            "issuer": about.issuer,
            "not_before": about.not_before.isoformat(),
            "not_after": about.not_after.isoformat(),
            "sha256": about.fingerprint,
            "development": about.development,
            "signed_by": signed_by(credentials, settings),
        }
        typer.echo(json.dumps(said))
    else:
        show(credentials, settings)


@app.command()
def rotate(
    watermark: Annotated[
        bool, typer.Option("--watermark", help="Make a new key of the watermark, in place of a certificate.")
    ] = False,
) -> None:
    """Make a new development certificate; pictures signed with the former one are verified as before.

    With --watermark, make a new key of the watermark; marks of former keys are found as before.
    """
    from safelight.trust.credentials import rotate as make_another
    from safelight.trust.watermark.keys import Keyring

    settings = opened()
    if watermark:
        keyring = Keyring.rotate(settings.watermark_keys)
        typer.echo(f"The key is {keyring.current.id} from now on; {len(keyring.keys)} are read.")
        typer.echo("A server that runs marks with it when it is started again.", err=True)
        return
    show(make_another(settings.trust), settings)
    typer.echo("A server that runs signs with it when it is started again.", err=True)


def read(path: Path) -> bytes:
    from safelight.errors import InvalidRequest
    from safelight.regular_file import read_regular

    try:
        return read_regular(path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from None


def opened() -> "Settings":
    from safelight.settings import Settings

    settings = Settings.from_environment()
    settings.make_home()
    return settings


def show(credentials: "Credentials", settings: "Settings") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    about = credentials.description
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "subject": about.subject,
        "issuer": about.issuer,
        "valid": f"{about.not_before.date()} to {about.not_after.date()}",
        "sha256": about.fingerprint,
        "signed by": signed_by(credentials, settings),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console = Console(highlight=False)
    console.print(table)
    if about.development:
        console.print(Text(DEVELOPMENT))


def signed_by(credentials: "Credentials", settings: "Settings") -> str:
    if settings.trust_signer:
        return settings.trust_signer
    return "the key in SAFELIGHT_HOME/trust" if credentials.key else "nothing: set SAFELIGHT_TRUST_SIGNER"
