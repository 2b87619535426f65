"""Random crops for segmentation and detection, and the photometric distortion of their images."""
