"""Models: patches and positions, embeddings, encoder, decoders, targets, losses, and pre-trained backbones."""

from c2fmae.models.autoencoder import MultiGranularAutoencoder, PredictionHead
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.decoders import DECODERS, DecoderLayout
from c2fmae.models.embeddings import Embeddings, IdEmbedding, ImageEmbedding
from c2fmae.models.encoder import Encoder, create_vit
from c2fmae.models.hog import compute_hog
from c2fmae.models.patches import gather_patches, label_stride, patchify, unpatchify
from c2fmae.models.positions import sincos_positions
from c2fmae.models.targets import TARGETS, PredictionTarget

__all__ = [
    "DECODERS",
    "TARGETS",
    "Backbone",
    "DecoderLayout",
    "Embeddings",
    "Encoder",
    "IdEmbedding",
    "ImageEmbedding",
    "MultiGranularAutoencoder",
    "PredictionHead",
    "PredictionTarget",
    "compute_hog",
    "create_vit",
    "gather_patches",
    "label_stride",
    "load_backbone",
    "patchify",
    "sincos_positions",
    "unpatchify",
]
