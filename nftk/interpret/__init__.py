"""What a trained network's Omega says about its layers and classes."""

from nftk.interpret.plot_omega import plot_omega

__all__ = ["plot_omega"]
