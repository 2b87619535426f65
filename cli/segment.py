"""`c2fmae eval segment …`: fine-tune backbones for semantic segmentation and test them."""

from c2fmae_cli.training_run import make_training_command

segment = make_training_command(
    "segment",
    summary="Fine-tune ViTs for semantic segmentation.",
    data_help="Images with semantic maps: a folder with a training and a test set (with --test, the training set), or "
    "`generated`.",
    recipes="paper, mae, linear, convnext or small",
)
