"""3DGP: learn 3D from ordinary photos (arXiv 2303.01416), from a folder of images to scores and videos."""

__version__ = "0.1.0"
