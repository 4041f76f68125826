"""`slicer.i18n`: the text itself, as in Slicer without a translation."""

from __future__ import annotations


def tr(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"_() is for texts, not for {text!r}")
    return text


def translate(context: str, text: str) -> str:
    if not isinstance(context, str) or not isinstance(text, str):
        raise TypeError("translate(context, text) is for texts")
    return text
