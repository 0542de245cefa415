"""``python -m nftk``: the same as ``nftk``, where its folder is not on the path."""

from nftk.cli import main

if __name__ == "__main__":
    main()
