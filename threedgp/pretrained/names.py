"""Names of the feature extractors, without importing any network."""

from __future__ import annotations

INCEPTION_NAME = "inception"
OFFLINE_NAME = "tf_efficientnet_lite0"
VGG16_NAME = "vgg16-torchvision"
ALIASES = {
    "inceptionv3": INCEPTION_NAME,
    "inception_v3_fid": INCEPTION_NAME,
    "efficientnet-lite0": OFFLINE_NAME,
    "efficientnet_lite0": OFFLINE_NAME,
}


def canonical_name(name: str) -> str:
    """One name for each network: aliases resolved, for file names and cache keys."""
    return ALIASES.get(name.lower(), name)
