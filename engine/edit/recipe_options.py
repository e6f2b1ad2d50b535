"""The options of every command that samples: what a :class:`~diffsiam.sampling.Recipe` holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

Up = Annotated[int, typer.Option(help="DDIM moves of the inversion.", min=1)]
Down = Annotated[int, typer.Option(help="DDIM moves of sampling.", min=1)]
Spacing = Annotated[
    Literal["ends", "strided"],
    typer.Option(help="ends: from the first to the last time (PDAE); strided: 0, s, 2 s, ... (DiTi)."),
]
Coefficient = Annotated[
    Literal["ddim", "train"],
    typer.Option("--guidance", help="ddim: score form of published samplers; train: w_t of the loss."),
]
Scale = Annotated[float, typer.Option(help="Factor of G; more makes z prevail over what x_t shows.", min=0.0)]
NoClamp = Annotated[bool, typer.Option("--no-clamp", help="Do not clip x_0_hat, as in the algorithms.")]
Mask = Annotated[
    Literal["auto", "bins", "none"],
    typer.Option(help="Subsets seen at time t: as trained, those of its bin, or all (the algorithms)."),
]
Unguided = Annotated[bool, typer.Option("--unguided-inversion", help="Invert by the diffusion model alone.")]
RandomStart = Annotated[bool, typer.Option("--random-x-T", help="Draw x_T instead of inverting.")]


def with_recipe(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of :func:`recipe_of` in place of its parameter ``recipe``.

    Args:
        defaults: of those options, where the command has others.
    """
    options = [
        option.replace(default=defaults.get(option.name, option.default))
        for option in inspect.signature(recipe_of, eval_str=True).parameters.values()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            chosen = {option.name: given.pop(option.name) for option in options}
            command(recipe=recipe_of(**chosen), **given)

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += options if parameter.name == "recipe" else [parameter]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def recipe_of(
    inversion_moves: Up = 100,
    moves: Down = 100,
    spacing: Spacing = "ends",
    guidance: Coefficient = "ddim",
    guidance_scale: Scale = 1.0,
    no_clamp: NoClamp = False,
    mask: Mask = "auto",
    unguided_inversion: Unguided = False,
    random_x_t: RandomStart = False,
) -> Any:
    """The :class:`~diffsiam.sampling.Recipe` of these options."""
    from diffsiam.sampling import Recipe

    return Recipe(
        inversion_moves,
        moves,
        spacing,
        guidance,
        not no_clamp,
        mask,
        not unguided_inversion,
        "random" if random_x_t else "inverted",
        guidance_scale,
    )
