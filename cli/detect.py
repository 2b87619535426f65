"""`c2fmae eval detect …`: fine-tune backbones for detection and instance segmentation, and test them."""

from c2fmae_cli.training_run import make_training_command

detect = make_training_command(
    "detect",
    summary="Fine-tune ViTs for detection and instance segmentation.",
    data_help="Images with objects: a COCO folder, a YOLO data.yaml, a VOC folder, or scenes with instance maps, with "
    "a training and a test set (with --test, the training set), or `generated`.",
    recipes="paper, vitdet, lite or small",
)
