"""Build the optimiser from a config's text."""

import ast
from typing import Any

import optax

from mmjax.core.errors import InputError


def parse(text: str) -> optax.GradientTransformation:
    """Build an optax chain from a text.

    An example is `"clip_by_global_norm(1.0), scale_by_adam(b1=0.9)"`. The loop multiplies the
    chain's result by minus the learning rate, so the parts are optax's transformations
    (`scale_by_...`, `clip_by_...`, `add_decayed_weights`), not whole optimisers.

    Raises:
      InputError: the text is no list of calls with literal arguments, or optax lacks a name.
    """
    try:
        tree: Any = ast.parse(f"({text},)", mode="eval").body
        parts = []
        for call in tree.elts:
            positional = [ast.literal_eval(argument) for argument in call.args]
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            parts.append(getattr(optax, call.func.id)(*positional, **named))
        if not all(isinstance(part, optax.GradientTransformation) for part in parts):
            raise TypeError("not a gradient transformation")
    except (SyntaxError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"optimizer {text!r} is not a list of optax transformations such as "
            f"'clip_by_global_norm(1.0), scale_by_adam()': {error}"
        ) from None
    return optax.chain(*parts)
