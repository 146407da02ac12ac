"""`3dgp profiles`: what configurations there are, and what is in them."""

from __future__ import annotations

from typing import Annotated

import typer

from threedgp_cli.console import JsonOption, SetOption, print_json, say, show, table

app = typer.Typer(help="List and show configurations.", no_args_is_help=True)


@app.command("list")
def list_profiles(json_output: JsonOption = False) -> None:
    """List the profiles that come with the toolkit."""
    from threedgp.config.profile import load_profile, profile_names

    profiles = [load_profile(name) for name in profile_names()]
    if json_output:
        print_json([{"name": profile.name, "description": profile.description} for profile in profiles])
        return
    rows = [
        (
            profile.name,
            profile.model.kind,
            profile.data.resolution,
            profile.data.num_classes or "-",
            profile.description,
        )
        for profile in profiles
    ]
    show(table(None, ["profile", "model", "size", "classes", "what it is"], rows, right=(2, 3)))


@app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="A profile's name, or the path of a YAML file.")],
    overrides: SetOption = None,
    diff: Annotated[str | None, typer.Option("--diff", help="Show only what differs from this other profile.")] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Show the networks: modules, shapes, parameters, FLOPs per image.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Show a profile with every value; null follows from the others, as `3dgp profiles explain` says."""
    from threedgp.config.profile import flatten, load_profile, profile_yaml

    profile = load_profile(name, overrides or [])
    if model:
        _show_model(profile, json_output)
    elif diff is not None:
        mine, other = flatten(profile), flatten(load_profile(diff))
        rows = [(key, other.get(key), mine[key]) for key in mine if mine[key] != other.get(key)]
        rows = [row for row in rows if row[0] not in ("name", "description")]
        if json_output:
            print_json({key: {diff: old, name: new} for key, old, new in rows})
        else:
            show(table(None, ["key", diff, name], rows))
    elif json_output:
        print_json(profile.model_dump())
    else:
        say(profile_yaml(profile).rstrip())


@app.command("explain")
def explain_key(
    key: Annotated[str, typer.Argument(help="A setting or a section, such as training.batch_size or loss.")],
    json_output: JsonOption = False,
) -> None:
    """Say what a setting means, which values it takes, and its default; for a section, of all its settings."""
    from threedgp.config.profile import explain

    settings = explain(key)
    if json_output:
        print_json([setting._asdict() for setting in settings])
        return
    for setting in settings:
        default = "null" if setting.default is None else setting.default
        say(f"{setting.key} = {default}\n    {setting.meaning}; {setting.values}")


def _show_model(profile, json_output: bool) -> None:
    from threedgp.models.describe import describe_model

    rows = describe_model(profile)
    if json_output:
        print_json([row._asdict() for row in rows])
        return
    cells = [
        (row.module, row.output, f"{row.parameters:,}", f"{row.gflops:.2f}" if row.gflops else "-") for row in rows
    ]
    show(table(f"Networks of {profile.name}", ["module", "output", "parameters", "GFLOP/image"], cells, right=(2, 3)))
