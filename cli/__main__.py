"""`python -m c2fmae_cli` is `c2fmae`."""

from c2fmae_cli import main

if __name__ == "__main__":
    main()
