"""`python -m ortserve.compile`: compile the C for pixels with this machine's compiler, and say what works on pictures from now on."""

from __future__ import annotations

from ortserve import compiled, jpeg, resample


def main() -> None:
    """Never fails: Pillow can do it as well."""
    try:
        compiled.compile_here()
    except RuntimeError as error:
        print(f"Pillow decodes and resizes pictures, same pixels but slower: {error}; {compiled.REMEDY}")
        return
    print(f"JPEGs are decoded by {jpeg.way()}")
    print(f"pictures are resized by {resample.way()}")


if __name__ == "__main__":
    main()
